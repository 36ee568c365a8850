"""Variants: named sets of changes to the base job, listed one by one or as the product of lists.

    variants:
      matrix:                                    # every model with every prompt
        model: [small, large]
        messages: [prompts/short.yaml, prompts/long.yaml]

    variants:
      - {name: baseline}                         # the job as it is
      - {name: warm, params.temperature: 0.7}
      - matrix: {model: [small, large]}          # both forms in one list

A variant's folder is named by a slug of its name and a digest of its changes as they are written, so that it does not
depend on the other variants. What a prompt's file holds does not count: an edited prompt is asked again in its folder.
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import PurePath
from typing import Any, NamedTuple

from batchchat.dataclass import dataclass
from batchchat.errors import JobError
from batchchat.job.model import Job
from batchchat.job.origin import FieldPlace, combined
from batchchat.job.values import nearest

MAX_VARIANTS = 100
"""Variants of one suite: 100 of them make 4,950 pairs, each with its tests."""
_SLUG_LETTERS = 48
"""Letters of a variant's name in its folder; the digest behind them tells variants apart."""
_REFUSED: Mapping[str, str] = {
    "name": "the variants share the suite's name",
    "input": "all variants answer the same rows: change `input` in the base job, or with --set",
    "output": "every variant has a folder of its own inside the suite's `output`",
    "samples": "all variants give as many answers: set `samples` of the suite",
    "budget": "one budget holds for all variants: set `budget` of the suite",
    "deadline": "one deadline holds for all variants: set `deadline` of the suite",
}
_Fail = Callable[..., JobError]


class Override(NamedTuple):
    """One changed field of the base job, by its dotted path, and its place in the suite file."""

    path: str
    value: Any
    place: FieldPlace


@dataclass(frozen=True, slots=True)
class VariantText:
    """A variant as the suite file has it, with its place there."""

    name: str
    overrides: tuple[Override, ...]
    place: FieldPlace

    @property
    def changes(self) -> dict[str, Any]:
        """The changed fields by dotted path, in the order of the file."""
        return {override.path: override.value for override in self.overrides}

    @property
    def digest(self) -> str:
        """Ten hexadecimal digits that tell these changes from others, in whatever order they are written."""
        text = json.dumps(_canonical(self.changes), sort_keys=True, ensure_ascii=False)
        return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=5).hexdigest()

    @property
    def folder(self) -> str:
        """The name of the variant's folder."""
        return f"{slug(self.name)}-{self.digest}"


def slug(name: str) -> str:
    """Return a name as a part of a path: lower-case ASCII letters, digits, dots and dashes."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9.]+", "-", plain)[:_SLUG_LETTERS].strip("-.") or "variant"


def _canonical(value: Any) -> Any:
    """The value with one form for each number: 0 and 0.0 are the same change."""
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def read_variants(data: Any, place: FieldPlace, fail: _Fail) -> tuple[VariantText, ...]:
    """Read the variants that the value of a suite's `variants` names. Raises the error of `fail(message, *place)`."""
    items: list[tuple[Any, FieldPlace]]
    if isinstance(data, Mapping):
        items = [(data, place)]
        if set(data) != {"matrix"}:
            raise fail("must be a list of variants, or {matrix: {field: [values]}}", *place)
    elif isinstance(data, list):
        items = [(item, (*place, at)) for at, item in enumerate(data)]
    else:
        raise fail("must be a list of variants, or {matrix: {field: [values]}}", *place)
    found: list[VariantText] = []
    errors: list[JobError] = []
    for item, at in items:
        try:
            for made in _expanded(item, at, fail):
                found.append(made)
                if len(found) > MAX_VARIANTS:
                    raise fail(f"comes to more than {MAX_VARIANTS} variants, too many to compare", *at)
        except JobError as error:
            errors.append(error)
    errors += _clashes(found, fail)
    if errors:
        raise combined(errors)
    if not found:
        raise fail("is empty: there is nothing to run", *place)
    return tuple(found)


def _clashes(variants: Sequence[VariantText], fail: _Fail) -> list[JobError]:
    errors = []
    names: dict[str, VariantText] = {}
    folders: dict[str, VariantText] = {}
    for variant in variants:
        if names.setdefault(variant.name, variant) is not variant:
            message = f"two variants are called {variant.name!r}: give each a name of its own"
            errors.append(fail(message, *variant.place))
        # Two names may come to one slug. With equal changes their outputs would be one folder.
        elif (other := folders.setdefault(variant.folder, variant)) is not variant:
            message = f"{variant.name!r} changes the same as {other.name!r}, and their names give the same folder"
            errors.append(fail(message, *variant.place))
    return errors


def _expanded(item: Any, place: FieldPlace, fail: _Fail) -> Iterator[VariantText]:
    if not isinstance(item, Mapping):
        raise fail("must be a mapping: a name and the fields that the variant changes", *place)
    if "matrix" in item:
        others = [str(name) for name in item if name != "matrix"]
        if others:
            raise fail(f"a matrix stands alone: move {', '.join(others)} into it, or into an item of its own", *place)
        yield from _product(item["matrix"], (*place, "matrix"), fail)
        return
    name = item.get("name")
    if name is None:
        raise fail("needs a `name`, or a `matrix`", *place)
    if not isinstance(name, str) or not name.strip() or len(name) > 100 or not name.isprintable():
        raise fail("must be a text of up to 100 letters in one line", *place, "name")
    overrides = [Override(path, value, (*place, path)) for path, value in item.items() if path != "name"]
    _check_paths(overrides, fail)
    yield VariantText(name.strip(), tuple(overrides), place)


def _product(data: Any, place: FieldPlace, fail: _Fail) -> Iterator[VariantText]:
    if not isinstance(data, Mapping) or not data:
        raise fail("must be a mapping of fields to lists of values, such as {model: [small, large]}", *place)
    axes: list[list[tuple[str, Override]]] = []
    for path, values in data.items():
        at = (*place, path)
        if not isinstance(values, list):
            raise fail("must be a list of values, one for each variant", *at)
        if not values:
            raise fail("is an empty list: without a value there is no variant", *at)
        _check_paths([Override(path, None, at)], fail)
        seen: list[Any] = []
        for value in map(_canonical, values):
            # True equals 1 in Python, and is another value of a job.
            if value in seen and any(type(value) is type(other) and value == other for other in seen):
                raise fail(f"{_label(path, value, whole=True)} stands twice", *at)
            seen.append(value)
        overrides = [Override(path, value, (*at, number)) for number, value in enumerate(values)]
        axes.append(list(zip(_labels(path, values), overrides, strict=True)))
    count = 1
    for axis in axes:
        count *= len(axis)
    # Counted before any is made: a few long lists come to millions.
    if count > MAX_VARIANTS:
        raise fail(f"comes to {count:,} variants, too many to compare: {MAX_VARIANTS} are the most", *place)
    for chosen in itertools.product(*axes):
        name = " ".join(label for label, _ in chosen)
        yield VariantText(name, tuple(override for _, override in chosen), place)


def _labels(path: str, values: Sequence[Any]) -> list[str]:
    short = [_label(path, value) for value in values]
    # Short names are for people; they must still tell the variants apart.
    if len(set(short)) == len(short):
        return short
    return [_label(path, value, whole=True) for value in values]


def _label(path: str, value: Any, *, whole: bool = False) -> str:
    """A value as a part of a variant's name: a model or a file by itself, others behind their field's last name."""
    field = path.rpartition(".")[2]
    if isinstance(value, Mapping | list):
        text = json.dumps(_canonical(value), sort_keys=True, ensure_ascii=False)
        short = len(text) <= 20 and text.isprintable()
        return f"{field}={text if short else blake2b(text.encode(), digest_size=3).hexdigest()}"
    if isinstance(value, str):
        text = " ".join(value.split())
        # A file of messages is known by its name, and not by its folder or form.
        if PurePath(text).suffix in {".yaml", ".yml", ".json"}:
            return str(PurePath(text).with_suffix("")) if whole else PurePath(text).stem
        if path in {"model", "messages", "provider"}:
            return text if whole or len(text) <= 40 else f"{text[:39]}…"
        return f"{field}={text if whole or len(text) <= 20 else text[:19] + '…'}"
    if value is None or isinstance(value, bool):
        return f"{field}={str(value).lower() if value is not None else 'none'}"
    return f"{field}={value:g}" if isinstance(value, float) else f"{field}={value}"


def _check_paths(overrides: Sequence[Override], fail: _Fail) -> None:
    errors = [error for override in overrides if (error := _path_error(override, fail)) is not None]
    paths = [tuple(override.path.split(".")) for override in overrides]
    for one, other in itertools.permutations(zip(paths, overrides, strict=True), 2):
        # Which of the two holds would depend on their order in the file.
        if len(one[0]) < len(other[0]) and other[0][: len(one[0])] == one[0]:
            errors.append(fail(f"changes a part of {one[1].path}, which the variant sets whole", *other[1].place))
    if errors:
        raise combined(errors)


def _path_error(override: Override, fail: _Fail) -> JobError | None:
    parts: list[Hashable] = list(override.path.split("."))
    top = str(parts[0])
    if not all(parts):
        return fail("is no dotted path of a field, such as params.temperature", *override.place)
    if top in _REFUSED:
        return fail(f"cannot differ between variants: {_REFUSED[top]}", *override.place)
    if top not in Job.model_fields:
        near = nearest(top, Job.model_fields)
        return fail(f"is not a field of a job{near}; known are {', '.join(Job.model_fields)}", *override.place)
    return None
