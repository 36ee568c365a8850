"""A suite file is read as it is meant, or every wrong field is told: where, why, and what to write instead."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from batchchat.errors import UsageError
from batchchat.evaluation.suite.reading import load_suite
from batchchat.evaluation.suite.suite import Suite
from batchchat.evaluation.suite.variants import MAX_VARIANTS, slug

JOB = """\
name: label
input: {path: rows.jsonl, key: id}
output: out/label
provider: demo
model: small
messages: [{role: user, content: '{{ text }}'}]
params: {temperature: 0, max_tokens: 16}
"""
SUITE = {
    "name": "name: a-suite",
    "job": "job: label.yaml",
    "variants": "variants: [{name: base}, {name: warm, params.temperature: 0.7}]",
    "scorers": "scorers: [{name: accuracy, kind: exact, expected: gold}]",
    "output": "output: out/suite",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of suite and job, which is not the current folder."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    jobs = tmp_path / "jobs"
    (jobs / "prompts").mkdir(parents=True)
    (jobs / "label.yaml").write_text(JOB, encoding="utf-8")
    for name in ("short", "long"):
        text = f"- {{role: user, content: '{name}: {{{{ text }}}}'}}\n"
        (jobs / "prompts" / f"{name}.yaml").write_text(text, encoding="utf-8")
    return jobs


def load(folder: Path, *more: str, set: Sequence[str] = (), **changed: Any) -> Suite:
    """A suite with one field a line in the order of `SUITE`; values that are no text are written as YAML."""
    lines = []
    for name, line in {**SUITE, **changed}.items():
        if line is not None:
            lines.append(line if isinstance(line, str) else yaml.safe_dump({name: line}, sort_keys=False).rstrip())
    file = folder / "suite.yaml"
    file.write_text("\n".join([*lines, *more]) + "\n", encoding="utf-8")
    return load_suite(file, overrides=set)


def refused(folder: Path, *more: str, set: Sequence[str] = (), **changed: Any) -> str:
    with pytest.raises(UsageError) as raised:
        load(folder, *more, set=set, **changed)
    return str(raised.value).replace(f"{folder}{os.sep}", "")


MATRIX = {
    "matrix": {
        "model": ["small", "large"],
        "messages": ["prompts/short.yaml", "prompts/long.yaml"],
        "params.temperature": [0, 0.7],
    }
}


def test_a_matrix_is_the_product_of_its_lists(folder: Path) -> None:
    suite = load(folder, variants=MATRIX)
    assert len(suite.variants) == 8
    first, last = suite.variants[0], suite.variants[-1]
    assert [first.name, last.name] == ["small short temperature=0", "large long temperature=0.7"]
    assert last.overrides == {"model": "large", "messages": "prompts/long.yaml", "params.temperature": 0.7}
    assert (last.job.model, last.job.params.temperature, last.job.params.max_tokens) == ("large", 0.7, 16)
    assert last.job.messages == [{"role": "user", "content": "long: {{ text }}"}]
    assert (last.job.name, last.job.output.path) == ("a-suite", str(folder / "out/suite/variants" / last.folder))
    assert last.folder.startswith("large-long-temperature-0.7-")
    assert (suite.output, suite.variants[0].job.input.path) == (folder / "out/suite", str(folder / "rows.jsonl"))


def test_adding_a_variant_moves_no_other(folder: Path) -> None:
    before = {variant.name: variant.folder for variant in load(folder, variants=MATRIX).variants}
    longer = {"matrix": {**MATRIX["matrix"], "model": ["tiny", "large", "small"]}}
    after = {variant.name: variant.folder for variant in load(folder, variants=[longer, {"name": "base"}]).variants}
    assert before.items() <= after.items()
    assert len(after) == 13


def test_the_folder_depends_on_the_changes_not_on_how_they_are_written(folder: Path) -> None:
    one = load(folder, variants="variants: [{name: x, params.temperature: 0, model: m}]").variants[0]
    other = load(folder, variants="variants: [{model: m, params.temperature: 0.0, name: x}]").variants[0]
    third = load(folder, variants="variants: [{model: m, params.temperature: 0.1, name: x}]").variants[0]
    assert one.folder == other.folder != third.folder


def test_values_with_equal_short_names_get_whole_ones(folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "short.yaml").write_bytes((folder / "prompts" / "short.yaml").read_bytes())
    suite = load(folder, variants={"matrix": {"messages": ["prompts/short.yaml", "other/short.yaml"]}})
    assert [variant.name for variant in suite.variants] == ["prompts/short", "other/short"]
    inline = load(folder, variants={"matrix": {"params.stop": [["a"], None, "b"], "params.logprobs": [True, False]}})
    assert [variant.name for variant in inline.variants][:3] == [
        'stop=["a"] logprobs=true',
        'stop=["a"] logprobs=false',
        "stop=none logprobs=true",
    ]


def test_slugs_are_short_and_plain() -> None:
    assert slug("Größe/Short  prompt ☃ 0.7") == "groe-short-prompt-0.7"
    assert slug("☃") == "variant"
    assert slug("../../etc") == "etc"
    assert len(slug("x" * 100)) == 48


def test_what_the_command_line_sets(folder: Path, tmp_path: Path) -> None:
    suite = load(folder, set=["limits.concurrency=3", "output=there", "seed=5", "params.temperature=0.2"])
    assert suite.output == tmp_path / "elsewhere" / "there"
    assert suite.seed == 5
    assert [variant.job.limits.concurrency for variant in suite.variants] == [3, 3]
    # What a variant changes lies over it.
    assert [variant.job.params.temperature for variant in suite.variants] == [0.2, 0.7]


def test_the_policy_for_failed_rows_is_that_of_the_suite_or_the_scorers_own(folder: Path) -> None:
    scorers = [
        {"name": "a", "kind": "exact", "expected": "gold"},
        {"name": "b", "kind": "exact", "expected": "gold", "failed": "wrong"},
        {"name": "c", "kind": "latency"},
    ]
    suite = load(folder, "failed: skip", scorers=scorers)
    assert [getattr(scorer, "failed", None) for scorer in suite.scorers] == ["skip", "wrong", None]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"name": None}, "suite.yaml: name: is missing; for example `name: ticket-prompts`"),
        ({"name": "name: a b"}, "suite.yaml:1: name: must begin with a letter or digit"),
        ({"job": "job: labels.yaml"}, "there is no job file labels.yaml (did you mean 'label.yaml'?)"),
        ({"scorers": "scorers: []"}, "suite.yaml:4: scorers: must not be empty"),
        ({"variants": "variants: []"}, "suite.yaml:3: variants: is empty: there is nothing to run"),
        ({"variants": "variants: 3"}, "suite.yaml:3: variants: must be a list or a mapping"),
        ({"variants": "variants: {matrx: {}}"}, "suite.yaml:3: variants: must be a list of variants, or {matrix:"),
        ({"variants": "variants: [base]"}, "suite.yaml:3: variants.0: must be a mapping: a name and the fields"),
        ({"variants": "variants: [{model: m}]"}, "variants.0: needs a `name`, or a `matrix`"),
        ({"variants": "variants: [{name: 3}]"}, "variants.0.name: must be a text of up to 100 letters"),
        ({"variants": "variants: [{name: a}, {name: a, model: m}]"}, "variants.1: two variants are called 'a'"),
        ({"variants": "variants: [{name: A b}, {name: a-b}]"}, "variants.1: 'a-b' changes the same as 'A b'"),
        ({"variants": "variants: [{name: a, matrix: {}}]"}, "variants.0: a matrix stands alone: move name into it"),
        ({"variants": "variants: {matrix: {}}"}, "variants.matrix: must be a mapping of fields to lists"),
        ({"variants": "variants: {matrix: {model: []}}"}, "variants.matrix.model: is an empty list"),
        ({"variants": "variants: {matrix: {model: m}}"}, "variants.matrix.model: must be a list of values"),
        ({"variants": "variants: {matrix: {params.seed: [1, 1.0]}}"}, "matrix.params.seed: seed=1 stands twice"),
        ({"variants": "variants: [{name: a, modl: m}]"}, "modl: is not a field of a job (did you mean 'model'?)"),
        ({"variants": "variants: [{name: a, input: x}]"}, "input: cannot differ between variants: all variants answer"),
        ({"variants": "variants: [{name: a, output: x}]"}, "output: cannot differ between variants"),
        ({"variants": "variants: [{name: a, params.: x}]"}, "params.: is no dotted path of a field"),
        (
            {"variants": "variants: [{name: a, params: {seed: 1}, params.seed: 2}]"},
            "variants.0.params.seed: changes a part of params, which the variant sets whole",
        ),
        (
            {"variants": "variants: [{name: a, params.temprature: 1}]"},
            "suite.yaml:3: params.temprature: is not a field (did you mean 'temperature'?)",
        ),
        ({"variants": "variants: {matrix: {params.temperature: [0, 3]}}"}, "params.temperature: must be between 0"),
        ({"variants": "variants: [{name: a, messages: nope.yaml}]"}, "suite.yaml:3: messages: the template file"),
        (
            {"variants": {"matrix": {"params.seed": list(range(11)), "params.top_p": [n / 20 for n in range(10)]}}},
            f"comes to 110 variants, too many to compare: {MAX_VARIANTS} are the most",
        ),
        ({"scorers": "scorers: [{name: a, kind: exat}]"}, 'scorers.0.kind: "exat" is no kind of scorer (did you mean'),
        ({"scorers": "scorers: [{name: a, kind: exact}]"}, "scorers.0: needs either `expected`"),
        ({"scorers": "scorers: [exact]"}, "scorers.0: must be a mapping, such as {name: accuracy"),
        (
            {"scorers": "scorers: [{name: a, kind: latency}, {name: a, kind: cost}]"},
            "scorers.1.name: two scorers are called 'a'",
        ),
    ],
)
def test_what_a_suite_cannot_be(folder: Path, changed: dict[str, Any], told: str) -> None:
    assert told in refused(folder, **changed)


def test_fields_of_a_job_are_told_where_they_belong(folder: Path) -> None:
    assert "suite.yaml:6: model: is not a field: it belongs into the base job" in refused(folder, "model: x")
    assert "suite.yaml:6: scorer: is not a field (did you mean 'scorers'?)" in refused(folder, "scorer: x")


def test_the_line_is_that_of_the_wrong_value(folder: Path) -> None:
    variants = "variants:\n  matrix:\n    params.temperature:\n      - 0\n      - 5"
    assert "suite.yaml:7: params.temperature: must be between 0 and 2, not 5" in refused(folder, variants=variants)
    inline = "variants:\n  - name: a\n    messages:\n      - {role: user, content: x}\n      - 3"
    assert "suite.yaml:7: messages.1: must be a message" in refused(folder, variants=inline)


def test_all_mistakes_are_told_at_once_and_those_of_the_job_once(folder: Path) -> None:
    (folder / "label.yaml").write_text(JOB.replace("temperature: 0", "temperature: 9"), encoding="utf-8")
    told = refused(folder, scorers="scorers: [{name: a, kind: exat}, {name: b, kind: regex, pattern: '('}]")
    assert told.count("label.yaml:7: params.temperature: must be between 0 and 2, not 9") == 1
    assert "exat" in told
    assert "is not a regular expression" in told


def test_a_set_that_no_variant_would_feel_is_refused(folder: Path) -> None:
    told = refused(folder, set=["model=x"], variants="variants: {matrix: {model: [a, b]}}")
    assert "--set model: every variant sets it" in told
    assert load(folder, set=["model=x"]).variants[0].job.model == "x"


def test_files_that_are_no_suite(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"is a job, not a suite\nRun it with `batchchat run"):
        load_suite(folder / "label.yaml")
    with pytest.raises(UsageError, match="no such job file"):
        load_suite(folder / "nope.yaml")
    (folder / "suite.yaml").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="is empty"):
        load_suite(folder / "suite.yaml")
    assert "cannot read standard input" in refused(folder, set=["input=-"])
