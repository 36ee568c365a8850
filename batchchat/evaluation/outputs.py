"""The outputs in an evaluation's folder, of variants and judges, under the names that a person knows them by.

It needs no lock, and no library of the extra, and works while the evaluation is going on. Blocking code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from batchchat.addresses import is_url
from batchchat.dataclass import dataclass
from batchchat.errors import UsageError
from batchchat.evaluation.suite.variants import slug
from batchchat.job.values import nearest
from batchchat.store import evaluation_outputs, judge_outputs

_SUMMARY = "summary.json"
_TABLES = ("scores.parquet", "pairwise.parquet")
_DIGEST = re.compile(r"-[0-9a-f]{10}$")
"""What stands behind the name in the name of a variant's folder."""


@dataclass(frozen=True, slots=True)
class EvaluationOutput:
    """The output of one variant, or of one judge.

    `name` is the variant's own once the evaluation was scored; before that, it is the name of its folder.
    """

    name: str
    path: Path
    judge: bool = False


def outputs_of(directory: Path | str) -> list[EvaluationOutput]:
    """Return the outputs of an evaluation, variants before judges, in the order of the suite as far as it is known.

    None if the folder holds no evaluation.
    """
    variants, judges = evaluation_outputs(directory), judge_outputs(directory)
    if not variants:
        return []
    names = {str(one.get("folder")): str(one.get("name")) for one in _summary(directory)}
    # A variant that came after the last scoring stands behind those that were scored.
    order = {folder: place for place, folder in enumerate(names)}
    variants.sort(key=lambda path: (order.get(path.name, len(order)), path.name))
    found = [EvaluationOutput(names.get(path.name, path.name), path) for path in variants]
    return [*found, *(EvaluationOutput(path.name, path, judge=True) for path in judges)]


def chosen_output(directory: Path | str, variant: str | None) -> Path | str:
    """Return the output that a command is about: that of a variant of an evaluation, or the folder itself.

    A variant is known by its name, or by that of its folder; before the first scoring, by its name as the folder has
    it. Raises UsageError, which names the variants, if it is needed and not given, or not there.
    """
    outputs = outputs_of(directory)
    if not outputs:
        if variant is None:
            return directory
        raise UsageError(
            f"--variant {variant}: {directory} is no evaluation that has begun",
            remedy="Leave --variant out, or give the folder that a suite's `output` names.",
        )
    names = ", ".join(repr(one.name) for one in outputs)
    if variant is None:
        raise UsageError(
            f"{directory} is an evaluation of {len([one for one in outputs if not one.judge])} variants",
            remedy=f"Say which output is meant, with --variant NAME: {names}.",
        )
    exact = [one for one in outputs if variant in {one.name, one.path.name}]
    # `long t=0.7` has the folder long-t-0.7-3f…: as long as nothing was scored, only that tells its name.
    alike = exact or [one for one in outputs if _DIGEST.sub("", one.path.name) == slug(variant)]
    if len(alike) != 1:
        what = "could be several" if alike else f"is none of them{nearest(variant, [one.name for one in outputs])}"
        raise UsageError(f"--variant {variant}: {what}", remedy=f"{directory} has {names}.")
    return alike[0].path


def check_files(directory: Path | str) -> list[str]:
    """Return what is wrong with the files that a scoring left: one that cannot be read, or that is not there."""
    problems: list[str] = []
    if is_url(directory):
        return []
    path = Path(directory) / _SUMMARY
    if not path.exists():
        return problems
    try:
        orjson.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        problems.append(f"{path}: {error}. Score the suite again.")
    for name in _TABLES:
        table = Path(directory) / name
        if name == _TABLES[0] and not table.exists():
            problems.append(f"{table}: missing. Score the suite again.")
        elif table.exists():
            try:
                # Each page is read and uncompressed, so that a damaged one is found.
                with pq.ParquetFile(table) as file:
                    for _ in file.iter_batches():
                        pass
            except (OSError, pa.ArrowException) as error:
                problems.append(f"{table}: {error}. Score the suite again.")
    return problems


def _summary(directory: Path | str) -> Sequence[Mapping[str, Any]]:
    """Return the variants as the last scoring tells them; none if there is no summary that can be read."""
    with suppress(OSError, ValueError):
        data = orjson.loads((Path(directory) / _SUMMARY).read_bytes())
        variants = data.get("variants") if isinstance(data, dict) else None
        if isinstance(variants, list):
            return [one for one in variants if isinstance(one, dict)]
    return []
