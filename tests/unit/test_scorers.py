"""Scorers as users meet them: YAML-like data in, a value and a reason for each record out."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchchat.errors import UsageError
from batchchat.evaluation.scorers.answer_scorers import KINDS, Regex, read_scorer
from batchchat.evaluation.scorers.matching import json_difference, normalize, numbers_in
from batchchat.evaluation.scorers.score_batch import ScoreBatch, Scores
from batchchat.evaluation.statistics.unit import SHARE, YES_NO, ScoreUnit
from tests.thorough import examples

Result = tuple[float | None, str | None]


def results(scores: Scores) -> list[Result]:
    return list(zip(scores.values.to_pylist(), scores.reasons.to_pylist(), strict=True))


def batch(
    answers: list[Any], expected: list[Any] | None = None, *, arrow: bool = True, **columns: list[Any]
) -> ScoreBatch:
    records = {"status": ["ok"] * len(answers), "completion": answers, **columns}
    inputs = {} if expected is None else {"gold": expected}
    if arrow:
        return ScoreBatch(pa.table(records), pa.table(inputs) if inputs else None)
    lines = [dict(zip(records, line, strict=True)) for line in zip(*records.values(), strict=True)]
    return ScoreBatch(lines, [{"gold": value} for value in expected] if expected is not None else None)


def judge(kind: str, answer: Any, expected: Any = None, **fields: Any) -> Result:
    if expected is not None:
        fields["expected"] = "gold"
    scorer = read_scorer({"name": "s", "kind": kind, **fields})
    (result,) = results(scorer.score(batch([answer], [expected], arrow=False)))
    return result


# Kinds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected", "value"),
    [
        ("billing", "billing", 1.0),
        ("billing ", "billing", 0.0),
        ("Billing", "billing", 0.0),
        (3, 3.0, 1.0),
        (3, "3", 1.0),
        (True, "true", 1.0),
        (True, 1, 0.0),
        (["a", 1], ["a", 1], 1.0),
        ({"a": 1}, '{"a":1}', 1.0),
    ],
)
def test_exact(answer: Any, expected: Any, value: float) -> None:
    assert judge("exact", answer, expected) == (value, None)


@pytest.mark.parametrize(
    ("answer", "expected", "value"),
    [
        ("  Feature  REQUEST.\n", "feature_request", 1.0),
        ("STRASSE", "Straße", 1.0),
        ("\uff22\uff49\uff4c\uff4c\uff49\uff4e\uff47", "billing", 1.0),
        ("e-mail", "e mail", 1.0),
        ("don't", "dont", 1.0),
        ("3.5", "35", 0.0),
        ("-5", "5", 0.0),
        ("1,000", "1.000", 0.0),
        ("!!!", "???", 0.0),
        ("bill", "billing", 0.0),
    ],
)
def test_normalized(answer: str, expected: str, value: float) -> None:
    assert judge("normalized", answer, expected) == (value, None)


def test_normalized_ignores_only_what_it_is_told() -> None:
    assert judge("normalized", "Bug", "bug", ignore=["space"])[0] == 0.0
    assert judge("normalized", " bug  fix", "bug fix", ignore=["space"])[0] == 1.0
    assert judge("normalized", "bug!", "bug", ignore=["case", "unicode"])[0] == 0.0


def test_contains_all_and_any() -> None:
    assert judge("contains", "the bug is here", "bug") == (1.0, None)
    assert judge("contains", "the BUG is here", "bug") == (0.0, 'not found: "bug"')
    assert judge("contains", "the BUG is here", "bug", ignore_case=True)[0] == 1.0
    assert judge("contains", "in 42 days", value=42)[0] == 1.0
    assert judge("all_of", "red and green", value=["red", "green"])[0] == 1.0
    assert judge("all_of", "red and green", value=["red", "blue"]) == (0.0, 'not found: "blue"')
    assert judge("any_of", "red and green", ["red", "blue"]) == (1.0, None)
    assert judge("any_of", "black", ["red", "blue"]) == (0.0, 'not found: "red", "blue"')
    assert judge("any_of", "black", "black")[0] == 1.0
    # An empty text is in every answer and says nothing.
    assert judge("contains", "anything", "") == (None, "the input has no gold here")


def test_regex() -> None:
    assert judge("regex", "order 4711 is late", pattern=r"\b\d{4}\b") == (1.0, None)
    assert judge("regex", "order 4711 is late", pattern=r"\d{4}", full=True) == (0.0, None)
    assert judge("regex", "YES", pattern="^yes$", ignore_case=True)[0] == 1.0
    assert judge("regex", ["yes"], pattern=r'^\["yes"\]$')[0] == 1.0


def test_a_function_that_leaves_the_process_gives_a_null(tmp_path: Path) -> None:
    code = "import sys\n\ndef leave(row):\n    sys.exit(3)\n"
    (tmp_path / "own_scorer_that_leaves.py").write_text(code, encoding="utf-8")
    scorer = read_scorer({"name": "s", "python": "own_scorer_that_leaves:leave"}, base=tmp_path)
    assert results(scorer.score(batch(["a"]))) == [(None, "own_scorer_that_leaves:leave raised SystemExit: 3")]
    (tmp_path / "own_script.py").write_text("import sys\nsys.exit(3)\n", encoding="utf-8")
    with pytest.raises(UsageError, match="own_script cannot be imported: SystemExit: 3"):
        read_scorer({"name": "s", "python": "own_script:main"}, base=tmp_path)


def test_a_regex_that_explodes_gives_nulls_and_then_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Regex, "ROW_SECONDS", 0.01)
    monkeypatch.setattr(Regex, "ALL_SLOW_S", 0.0101)  # one row may use up that much, two always do
    scorer = read_scorer({"name": "s", "kind": "regex", "pattern": r"^(a|aa|a?)+$|(x+x+)+y"})
    slow = [("x" * 4000) + str(at) for at in range(4)]
    found = results(scorer.score(batch(["aaa", *slow])))
    assert found[0] == (1.0, None)
    assert found[1] == (None, "the pattern took longer than 0.01 s")
    assert found[3:] == [(None, "not tried: the pattern took too long on rows before")] * 2


@pytest.mark.parametrize(
    ("answer", "expected", "fields", "value"),
    [
        ("6 times 7 is 42", 42, {}, 1.0),
        ("42 is 6 times 7", 42, {}, 0.0),
        ("42 is 6 times 7", 42, {"pick": "first"}, 1.0),
        ("42 is 6 times 7", 42, {"pick": "only"}, 0.0),
        ("19.99", 20, {"absolute": 0.01}, 1.0),
        ("19.98", 20, {"absolute": 0.01}, 0.0),
        ("0.3", "0.1", {"absolute": 0.2}, 1.0),
        ("-98", -100, {"relative": 0.02}, 1.0),
        ("-97.9", -100, {"relative": 0.02}, 0.0),
        ("1,234.50 EUR", 1234.5, {}, 1.0),
        ("1.234,50 EUR", 1234.5, {"decimal": ","}, 1.0),
        ("\u22125", -5, {}, 1.0),
        ("1e3", 1000, {}, 1.0),
        (7, "7", {}, 1.0),
        (7.0, 7, {}, 1.0),
        ("none at all", 7, {}, 0.0),
        (True, 1, {}, 0.0),
    ],
)
def test_numeric(answer: Any, expected: Any, fields: dict[str, Any], value: float) -> None:
    assert judge("numeric", answer, expected, **fields)[0] == value


def test_numeric_says_what_it_found() -> None:
    assert judge("numeric", "41", 42) == (0.0, "found 41.0, expected 42")
    assert judge("numeric", "no idea", 42) == (0.0, "no number found")
    assert judge("numeric", "41", "between 1 and 9") == (None, 'the expected value "between 1 and 9" is not one number')


@pytest.mark.parametrize(
    ("answer", "expected", "fields", "result"),
    [
        ('{"a": 1, "b": [1, 2]}', '{"b": [1.0, 2], "a": 1}', {}, (1.0, None)),
        ('```json\n{"a": 1}\n```', '{"a": 1}', {}, (1.0, None)),
        ('{"a": 1, "b": null}', {"a": 1}, {}, (1.0, None)),
        ('{"a": {"b": "x"}}', {"a": {"b": "y"}}, {}, (0.0, '$.a.b: "x" instead of "y"')),
        ('{"a": 1}', {"a": 1, "b": 2}, {}, (0.0, "$.b: nothing instead of 2")),
        ("[2, 1]", "[1, 2]", {}, (0.0, "$.0: 2 instead of 1")),
        ("[2, 1.0]", "[1, 2]", {"ignore_order": True}, (1.0, None)),
        ("[1, 1, 2]", "[1, 2, 2]", {"ignore_order": True}, (0.0, "$: 2 is missing")),
        ("[1]", "[1, 2]", {}, (0.0, "$: 1 items instead of 2")),
        ("true", 1, {}, (0.0, "$: true instead of 1")),
        ("not json", '{"a": 1}', {}, (0.0, "the answer is not JSON")),
        ('{"label": "bug", "id": 7}', "bug", {"field": "completion.label"}, (1.0, None)),
        ('{"label": "bug", "id": 7}', 7, {"field": "completion.id"}, (1.0, None)),
        ('{"id": 7}', "bug", {"field": "completion.label"}, (0.0, "there is no completion.label")),
    ],
)
def test_json_equal(answer: str, expected: Any, fields: dict[str, Any], result: Result) -> None:
    assert judge("json_equal", answer, expected, **fields) == result


SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


def test_schema() -> None:
    assert judge("schema", '{"age": 3}', schema=SCHEMA) == (1.0, None)
    value, reason = judge("schema", '{"age": "3"}', schema=SCHEMA)
    assert value == 0.0
    assert (reason or "").startswith("$.age: ")
    assert judge("schema", "three", schema=SCHEMA) == (0.0, "the answer is not JSON")
    assert judge("schema", {"age": 3}, schema=SCHEMA)[0] is None


def test_schema_from_a_file_beside_the_suite(tmp_path: Path) -> None:
    (tmp_path / "age.json").write_text(json.dumps(SCHEMA))
    scorer = read_scorer({"name": "s", "kind": "schema", "schema": "age.json"}, base=tmp_path)
    assert results(scorer.score(batch(['{"age": 3}']))) == [(1.0, None)]


def test_set_f1() -> None:
    assert judge("set_f1", ["a", "b"], ["b", "a"]) == (1.0, None)
    value, reason = judge("set_f1", "a, b, x", "a, b, c")
    assert value == pytest.approx(2 / 3)
    assert reason == "missing: c; extra: x"
    assert judge("set_f1", '["A"]', "a", ignore_case=True)[0] == 1.0
    assert judge("set_f1", "", [])[0] == 1.0
    assert judge("set_f1", "x;y", "x", separator=";")[0] == pytest.approx(2 / 3)


def test_edit_similarity() -> None:
    # The usual example: three edits over seven letters.
    assert judge("edit_similarity", "kitten", "sitting")[0] == pytest.approx(1 - 3 / 7)
    assert judge("edit_similarity", "ABC", "abc", ignore_case=True)[0] == 1.0


def test_classes_give_labels_beside_values() -> None:
    scorer = read_scorer(
        {"name": "s", "kind": "classes", "expected": "gold", "labels": ["bug", "Billing"], "normalized": True}
    )
    made = scorer.score(batch([" BUG.", "billing", "what?", None, "bug"], ["bug", "Billing", "bug", "bug", "other"]))
    assert results(made) == [
        (1.0, None),
        (1.0, None),
        (0.0, '"what?" is none of the labels'),
        (0.0, "completion is null"),
        (None, 'the expected value "other" is none of the labels'),
    ]
    assert made.labels is not None
    assert made.labels == (["bug", "Billing", "bug", "bug", None], ["bug", "Billing", "what", None, None])
    assert scorer.METRICS == ("accuracy", "macro_f1")


def test_measures() -> None:
    records = batch(["one two", "x"], latency_s=[1.5, 2.0], cost=[0.25, None], completion_tokens=[7, 1])
    by_kind = {
        kind: results(read_scorer({"name": "s", "kind": kind}).score(records)) for kind in ("latency", "cost", "length")
    }
    assert by_kind["latency"] == [(1.5, None), (2.0, None)]
    assert by_kind["cost"] == [(0.25, None), (None, "cost is null")]
    assert by_kind["length"] == [(7.0, None), (1.0, None)]
    words = read_scorer({"name": "s", "kind": "length", "unit": "words", "higher_is_better": False})
    assert results(words.score(records)) == [(2.0, None), (1.0, None)]
    assert words.scale == ScoreUnit("words", False, 0.0)
    tokens = read_scorer({"name": "s", "kind": "length", "unit": "tokens"})
    assert results(tokens.score(records)) == [(7.0, None), (1.0, None)]
    assert "completion_tokens" in (tokens.columns or ())


OWN = """
def right(row):
    return row["completion"] == row["gold"]

def odd(row):
    if row["completion"] == "raise":
        raise KeyError("gone")
    return {"none": None, "nan": float("nan"), "text": "1", "pair": (0.5, "half"), "two": 2, "bool": True}[
        row["completion"]
    ]
"""


def test_python_functions_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "own_scorer_one.py").write_text(OWN)
    # `kind` may be left out; the input is the current one, not what the record froze.
    scorer = read_scorer({"name": "s", "python": "own_scorer_one:right", "unit": "yes/no"}, base=tmp_path)
    assert results(scorer.score(batch(["a", "b"], ["a", "a"], gold=["old", "old"]))) == [(1.0, None), (0.0, None)]
    odd = read_scorer({"name": "s", "python": "own_scorer_one:odd"}, base=tmp_path)
    answers = ["raise", "none", "nan", "text", "pair", "two", "bool"]
    assert results(odd.score(batch(answers))) == [
        (None, "own_scorer_one:odd raised KeyError: 'gone'"),
        (None, "own_scorer_one:odd gave None"),
        (None, 'own_scorer_one:odd gave "nan", which is no number'),
        (None, "own_scorer_one:odd gave \"'1'\", which is no number, and the scorer has no `labels`"),
        (0.5, "half"),
        (2.0, None),
        (1.0, None),
    ]
    share = read_scorer({"name": "s", "python": "own_scorer_one:odd", "unit": "share"}, base=tmp_path)
    assert results(share.score(batch(["two"]))) == [(None, "own_scorer_one:odd gave 2, which is no share")]


# Rules for all kinds -----------------------------------------------------------------------------------------

SAMPLES: dict[str, dict[str, Any]] = {
    "exact": {"expected": "gold"},
    "normalized": {"expected": "gold"},
    "contains": {"expected": "gold"},
    "all_of": {"expected": "gold"},
    "any_of": {"expected": "gold"},
    "regex": {"pattern": "a"},
    "numeric": {"expected": "gold"},
    "json_equal": {"expected": "gold"},
    "schema": {"schema": True},
    "set_f1": {"expected": "gold"},
    "classes": {"expected": "gold"},
    "edit_similarity": {"expected": "gold"},
    "latency": {},
    "cost": {},
    "length": {},
    "python": {"python": "json:dumps"},
}
MEASURES = {"latency", "cost", "length"}


def test_every_kind_has_a_sample() -> None:
    assert set(KINDS) == set(SAMPLES)


FAILED = {
    "status": "failed",
    "error_kind": "rate_limit",
    "error_message": "too many",
    "completion": None,
    "latency_s": 1.0,
    "cost": 0.1,
}


@pytest.mark.parametrize("kind", KINDS)
def test_failed_rows_are_wrong_or_skipped_with_the_reason(kind: str) -> None:
    failed = ScoreBatch([FAILED], [{"gold": "a"}])
    reason = "failed: rate_limit: too many"
    scorer = read_scorer({"name": "s", "kind": kind, **SAMPLES[kind]})
    assert results(scorer.score(failed)) == [(None if kind in MEASURES else 0.0, reason)]
    if kind not in MEASURES:
        skipping = read_scorer({"name": "s", "kind": kind, "failed": "skip", **SAMPLES[kind]})
        assert results(skipping.score(failed)) == [(None, reason)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "expected" in SAMPLES[kind]])
@pytest.mark.parametrize("record", [{"status": "ok", "completion": "a"}, FAILED], ids=["ok", "failed"])
def test_no_expected_value_is_null_never_zero(kind: str, record: dict[str, Any]) -> None:
    scorer = read_scorer({"name": "s", "kind": kind, **SAMPLES[kind]})
    made = scorer.score(ScoreBatch([record], [{"gold": None}]))
    assert results(made) == [(None, "the input has no gold here")]
    assert scorer.inputs == frozenset({"gold"})


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_has_typed_empty_columns(kind: str) -> None:
    names = ["status", "completion", "latency_s", "cost"]
    records = pa.table({name: pa.array([], pa.string()) for name in names})
    made = read_scorer({"name": "s", "kind": kind, **SAMPLES[kind]}).score(
        ScoreBatch(records, pa.table({"gold": pa.array([], pa.string())}))
    )
    assert (made.values.type, made.reasons.type, len(made.values)) == (pa.float64(), pa.string(), 0)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in {"latency", "cost", "python"}])
def test_arrow_and_dicts_score_alike(kind: str) -> None:
    scorer = read_scorer({"name": "s", "kind": kind, **SAMPLES[kind]})
    answers, expected = ["a", "1", None, '["a"]', "b, a"], ["a", "1", "x", "a", None]
    arrow, dicts = (results(scorer.score(batch(answers, expected, arrow=arrow))) for arrow in (True, False))
    assert arrow == dicts


@examples(40)
@given(st.sampled_from(sorted({*KINDS} - {*MEASURES, "python"})), st.lists(st.tuples(st.text(), st.text()), max_size=6))
def test_any_text_gives_values_inside_the_scale(kind: str, texts: list[tuple[str, str]]) -> None:
    scorer = read_scorer({"name": "s", "kind": kind, **SAMPLES[kind]})
    answers, expected = [a for a, _ in texts], [b for _, b in texts]
    made = results(scorer.score(batch(answers, expected, arrow=False)))
    assert len(made) == len(texts)
    for value, reason in made:
        assert reason if value is None else scorer.scale.low <= value <= scorer.scale.high


def test_scales() -> None:
    scales = {kind: read_scorer({"name": "s", "kind": kind, **SAMPLES[kind]}).scale for kind in KINDS}
    assert scales["exact"] == scales["classes"] == YES_NO
    assert scales["set_f1"] == scales["edit_similarity"] == SHARE
    assert (scales["latency"].unit, scales["latency"].higher_is_better) == ("seconds", False)
    assert scales["length"].higher_is_better is None


# Where an answer is read -------------------------------------------------------------------------------------


def test_paths_go_through_structs_lists_and_json_texts() -> None:
    calls = [[{"name": "find", "arguments": '{"city": "Oslo"}'}], []]
    records = batch(["x", "y"], ["Oslo", "Oslo"], parsed=[{"label": "bug"}, None], tool_calls=calls)

    def at(path: str) -> list[Result]:
        return results(read_scorer({"name": "s", "kind": "exact", "field": path, "expected": "gold"}).score(records))

    assert at("tool_calls.0.arguments.city") == [(1.0, None), (0.0, "there is no tool_calls.0")]
    assert at("parsed.label") == [(0.0, None), (0.0, "parsed.label is null")]
    assert at("completion.city") == [(0.0, "completion is not JSON")] * 2
    assert at("parsed.label.x") == [(0.0, "parsed.label is not JSON"), (0.0, "parsed.label is null")]
    with pytest.raises(UsageError, match=r"no column 'lable' in parsed \(did you mean 'label'\?\)"):
        at("parsed.lable")
    with pytest.raises(UsageError, match=r"no column 'parse' in the records \(did you mean 'parsed'\?\)"):
        at("parse.label")


def test_a_column_whose_name_has_a_dot_is_itself() -> None:
    records = ScoreBatch([{"status": "ok", "meta.flag": "yes"}], [{"gold": "yes"}])
    scorer = read_scorer({"name": "s", "kind": "exact", "field": "meta.flag", "expected": "gold"})
    assert results(scorer.score(records)) == [(1.0, None)]


def test_missing_columns_are_found_before_anything_is_sent() -> None:
    scorer = read_scorer({"name": "accuracy", "kind": "exact", "field": "parsed.label", "expected": "lable"})
    with pytest.raises(
        UsageError, match=r"no column 'lable' in the input, which scorer accuracy reads \(did you mean 'label'\?\)"
    ):
        scorer.check(["status", "error_kind", "error_message", "parsed"], ["label", "text"])
    with pytest.raises(UsageError, match="no column 'parsed' in the output, which scorer accuracy reads"):
        scorer.check(["status", "error_kind", "error_message", "completion"], ["lable"])
    with pytest.raises(UsageError, match="no column 'gold'"):
        read_scorer({"name": "s", "kind": "exact", "expected": "gold"}).score(batch(["a"]))
    with pytest.raises(ValueError, match="2 records stand beside 1 rows"):
        ScoreBatch([{}, {}], [{}])


# What cannot be a scorer -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "exat"}, r"scorer s.kind: \"exat\" is no kind of scorer \(did you mean 'exact'\?\)"),
        ({}, "scorer s: needs a `kind`: exact, "),
        ({"kind": "exact", "expcted": "x"}, r"expcted: is not a field \(did you mean 'expected'\?\)"),
        ({"kind": "exact"}, "needs either `expected`"),
        ({"kind": "exact", "expected": "x", "value": "y"}, "needs either `expected`"),
        ({"kind": "latency", "failed": "wrong"}, "failed: is not a field; known are .*name, margin, kind"),
        ({"kind": "regex", "pattern": "("}, "pattern: is not a regular expression"),
        ({"kind": "numeric", "value": "x"}, "value: is a number"),
        ({"kind": "numeric", "value": 1, "absolute": -1}, "absolute: must be at least 0, not -1"),
        ({"kind": "contains", "value": ["a"]}, "value: is one text"),
        ({"kind": "schema", "schema": {"type": "nonsense"}}, "schema: is not a usable JSON Schema"),
        ({"kind": "schema", "schema": {"$ref": "http://localhost:1/x"}}, "other documents are not read"),
        ({"kind": "schema", "schema": "gone.json"}, r"schema: .*gone\.json cannot be read"),
        ({"kind": "length", "unit": "tokens", "field": "reasoning"}, "tokens are known of the whole completion only"),
        ({"python": "no_such_module_here:f"}, "no_such_module_here cannot be imported: ModuleNotFoundError"),
        ({"python": "json:nope"}, "json has no function 'nope'"),
        ({"python": "json:dumps", "higher_is_better": False}, "set `failed: skip`"),
        ({"kind": "exact", "value": "x", "name": "a.b"}, "scorer a.b.name: must be a name of letters"),
    ],
)
def test_what_cannot_be_a_scorer_is_said(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_scorer({"name": "s", **data})


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        read_scorer({"name": "s", "kind": "numeric", "value": 1, "absolute": -1, "pik": "last"})
    assert len(caught.value.message.splitlines()) == 2


# Matching ----------------------------------------------------------------------------------------------------


@example("0¡-0")
@example("a.\u0301")
@given(st.text())
def test_normalizing_twice_changes_nothing_more(text: str) -> None:
    assert normalize(normalize(text)) == normalize(text)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
def test_numbers_are_found_as_they_are_written(number: Decimal) -> None:
    assert numbers_in(f"it is {number} EUR") == [number]
    assert numbers_in(f"{number:,}") == [number]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, JSON)
def test_json_is_the_same_as_itself_and_differs_both_ways(a: Any, b: Any) -> None:
    assert json_difference(a, a) is None
    assert json_difference(a, a, ignore_order=True) is None
    assert (json_difference(a, b) is None) == (json_difference(b, a) is None)


@given(st.lists(JSON, max_size=5), st.randoms(use_true_random=False))
def test_lists_in_another_order_are_the_same_where_order_is_ignored(items: list[Any], random: Any) -> None:
    shuffled = list(items)
    random.shuffle(shuffled)
    assert json_difference(shuffled, items, ignore_order=True) is None


MIDNIGHT = datetime(2024, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("1", 1.0),
        ("1.0", 1),
        ("1", Decimal("1.00")),
        ("1.5", Decimal("1.50")),
        ("True", True),
        ("2024-01-02", date(2024, 1, 2)),
        ("2024-01-02T00:00:00Z", MIDNIGHT),
        ("2024-01-02 01:00+01:00", MIDNIGHT),
        ("2024-01-02", datetime(2024, 1, 2)),  # noqa: DTZ001 - what a column without a zone gives
        ("10:30", time(10, 30)),
        ("x", b"x"),
    ],
)
@pytest.mark.parametrize("kind", ["exact", "normalized", "json_equal", "classes"])
def test_an_answer_is_text_and_equals_what_a_typed_column_holds(kind: str, answer: str, gold: Any) -> None:
    assert judge(kind, answer, gold)[0] == 1.0
    assert judge(kind, f"not {answer}", gold)[0] == 0.0


@pytest.mark.parametrize("gold", [float("nan"), float("inf"), Decimal("NaN"), "", " \n"])
@pytest.mark.parametrize(
    "kind", ["exact", "normalized", "json_equal", "classes", "numeric", "contains", "edit_similarity"]
)
def test_where_nothing_is_expected_there_is_no_value(kind: str, gold: Any) -> None:
    assert judge(kind, "a", gold) == (None, "the input has no gold here")


def test_a_label_has_one_name_in_the_matrix_however_it_is_written() -> None:
    scorer = read_scorer({"kind": "classes", "name": "c", "expected": "gold"})
    records = [{"status": "ok", "completion": text} for text in ("1", "1.0", "2")]
    labels = scorer.score(ScoreBatch(records, [{"gold": 1.0}, {"gold": 1}, {"gold": 1.0}])).labels
    assert labels == (["1", "1", "1"], ["1", "1", "2"])


def test_a_list_without_items_and_nulls_in_a_list_of_texts() -> None:
    assert judge("set_f1", "[]", "")[0] == 1.0
    assert judge("all_of", "a", ["a", None])[0] == 1.0
    assert judge("any_of", "null", [None])[0] is None


def test_a_date_inside_of_json_is_text_in_the_answer() -> None:
    gold = {"day": date(2024, 1, 2), "price": Decimal("9.50"), "note": None}
    assert judge("json_equal", '{"day": "2024-01-02", "price": 9.5}', gold)[0] == 1.0
    assert judge("json_equal", '{"day": "2024-01-03", "price": 9.5}', gold)[0] == 0.0
