"""Answers: the JSON in them is found, judged and never guessed at."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

from batchchat.structured import AnswerValidator, CheckedAnswer, load_schema
from batchchat.structured.checker import MAX_ERRORS
from batchchat.structured.dialect import path_text, shorten
from batchchat.structured.find import MAX_DEPTH, NotJSON, embedded, fenced, parse
from tests.thorough import examples, one_in

TICKET: dict[str, Any] = {
    "type": "object",
    "properties": {
        "label": {"enum": ["billing", "bug"]},
        "count": {"type": "integer"},
        "order": {
            "anyOf": [
                {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id", "when"]},
                {"type": "null"},
            ]
        },
        "due": {"type": "string", "format": "date-time"},
    },
    "required": ["label"],
    "additionalProperties": False,
}


def validator(schema: dict[str, Any]) -> AnswerValidator:
    return load_schema(schema, folder=Path()).validator


tickets = validator(TICKET)
anything = validator({})

patient = examples(60, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine is slow, not wrong."""

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=20)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=10), inner, max_size=4)
    ),
    max_leaves=12,
)
containers = st.lists(values, max_size=4) | st.dictionaries(st.text('ab"{}[]`\\ é', max_size=5), values, max_size=4)
prose = st.text(st.characters(codec="utf-8", exclude_characters="{}[]`"), max_size=40)


def test_a_plain_answer_is_taken_as_it_is() -> None:
    assert tickets.read('{"label": "bug"}') == CheckedAnswer({"label": "bug"})
    assert tickets.read(' \n{"label": "bug", "count": 2}\n').tolerated is False


@pytest.mark.parametrize(
    "text",
    [
        '```json\n{"label": "bug"}\n```',
        '```\n{"label": "bug"}\n```\nHope this helps!',
        'Sure:\n```JSON\r\n{"label": "bug"}\r\n```',
        '```json {"label": "bug"}```',
        '```json\n{"label": "bug"}',
        'The label is {"label": "bug"}, see above.',
        'As [1] and [see] say, {not json} and [2, 3]: {"label": "bug"}',
        'Like {"nothing": "alike"} but {"label": "bug"}.',
        'Twice the same: {"label": "bug"} and {"label":"bug"}',
        '```python\nlabels = {}\n```\nso\n```json\n{"label": "bug"}\n```',
        'First {"label": "billing"} seemed right, but:\n```json\n{"label": "bug"}\n```',
        '\ufeff{"label": "bug"}',
    ],
)
def test_fences_and_prose_are_tolerated_and_told(text: str) -> None:
    assert tickets.read(text) == CheckedAnswer({"label": "bug"}, tolerated=True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "is empty"),
        ("", "is empty"),
        (" \n\t", "is empty"),
        ("I cannot say.", "there is no JSON"),
        ('"bug', "is not JSON: unexpected end"),
        ('{"label": "bug"', "Expecting ',' delimiter"),
        ('{"label": "bug", "label": "billing"}', "the name 'label' is given twice"),
        ('Well, {"label": "bug", "label": "bug"}', "the name 'label' is given twice"),
        ('{"label": NaN}', "unexpected character"),
        ('{"label": "\\ud800"}', "surrogate"),
        ('{"label": "bug"} or {"label": "billing"}', "2 different JSON values"),
        ('```\n{"label": "bug"}\n```\n```\n{"label": "billing"}\n```', "2 different JSON values"),
        ('{"label": "bug"} or rather {"label": bil', "Expecting value"),
        ("[1] " * 300 + '{"label": "bug"}', "too many pieces"),
        ("[" * 1000 + "]" * 1000, "nested"),
        ('{"label": "bug", "count": 9223372036854775808}', "$.count: is a whole number beyond 64 bits"),
        ('{"label": "bug", "due": "tomorrow"}', '$.due: the value is not a "date-time"'),
    ],
)
def test_what_cannot_be_taken_says_why(text: str | None, reason: str) -> None:
    answer = tickets.read(text)
    assert not answer.ok
    assert answer.parsed is None
    assert reason in "\n".join(answer.errors)


def test_a_piece_of_a_broken_answer_is_no_answer() -> None:
    tree = validator(
        {"type": "object", "properties": {"name": {"type": "string"}, "child": {"$ref": "#"}}, "required": ["name"]}
    )
    assert tree.read('{"name": "a", "child": {"name": "b"}}').ok
    assert not tree.read('{"child": {"name": "b"}, "name": ').ok
    assert not tree.read('{"child": {"name": "b"}, oops').ok
    assert not tree.read('{"child": oops {"name": "b"}}').ok


def test_errors_have_paths_and_look_into_the_form_that_was_meant() -> None:
    answer = tickets.read('{"label": "other", "order": {"id": 7}, "colour": 1}')
    assert answer.errors == (
        "$: Additional properties are not allowed ('colour' was unexpected)",
        '$.label: the value is not one of "billing" or "bug"',
        '$.order: "when" is a required property',
        '$.order.id: the value is not of type "string"',
    )
    assert tickets.read('{"label": "bug", "order": 7}').errors == (
        "$.order: the value is not valid under any of the schemas listed in the 'anyOf' keyword",
    )


def test_errors_are_few_and_short() -> None:
    many = validator({"type": "array", "items": {"enum": ["x" * 2_000]}})
    errors = many.read(json.dumps(["y" * 5_000] * 400)).errors
    assert len(errors) == MAX_ERRORS
    assert errors[-1] == "and there is more that does not fit"
    assert max(map(len, errors)) < 600


def test_a_date_time_may_lack_its_offset() -> None:
    for due in ("2026-01-31T10:00:00", "2026-01-31T10:00:00.5Z", "2026-01-31t10:00:00+02:00"):
        assert tickets.read(json.dumps({"label": "bug", "due": due})).ok
    for due in ("2026-13-31T10:00:00", "2026-01-31", "2026-01-31T10:00:00 CET", "2026-01-31T10:00:00Z\n"):
        assert not tickets.read(json.dumps({"label": "bug", "due": due})).ok


def test_null_is_an_answer_where_the_schema_allows_it() -> None:
    nullable = validator({"type": ["object", "null"], "properties": {"a": {"type": "string"}}})
    assert nullable.read("null") == CheckedAnswer(None)
    assert nullable.read("```json\nnull\n```") == CheckedAnswer(None, tolerated=True)


def same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@patient
@given(values)
def test_all_json_is_read_with_all_its_digits(value: Any) -> None:
    assert same(parse(json.dumps(value)), value)


@patient
@given(containers, prose, prose, st.sampled_from([None, 2]))
def test_an_object_or_array_between_any_sentences_is_found(value: Any, before: str, after: str, indent: Any) -> None:
    text = before + json.dumps(value, indent=indent, ensure_ascii=False) + after
    assert [same(found, value) for found in embedded(text)] == [True]


@patient
@given(values, prose, prose, st.sampled_from(["```json\n", "```\n", "``` JSON\r\n", "```json "]), st.booleans())
def test_any_value_in_a_fence_is_found(value: Any, before: str, after: str, fence: str, ascii_only: bool) -> None:
    text = before + fence + json.dumps(value, ensure_ascii=ascii_only) + "\n```" + after
    assert [same(found, value) for found in fenced(text)][:1] == [True]


@patient
@given(st.text() | st.text('{}[]",:`\\ \n1a-.eEtrufalsn', max_size=60))
@example('{"label": ' + "1" * 5_000 + "}")
@example("[" + "1" * 5_000 + "]")
@example("[-1e999]")
def test_no_text_makes_it_raise_and_what_is_taken_is_json(text: str) -> None:
    for judge in (tickets, anything):
        answer = judge.read(text)
        assert answer.ok == (not answer.errors)
        json.dumps(answer.parsed, allow_nan=False).encode()


@pytest.mark.parametrize(
    "piece",
    one_in(
        4,
        ["{", "[", "[1,", '{"', '{""', '{"a":', '["",', '["{",', "[[],", "[] ", "```", "```[", "```\n", "[ ", '"', "\\",
         '{"a":1} ', "`", "[1e", '{"\\', "{ \n", "```json \t", '{"a":[', '{"a":{"b":1},x'],
    ),
)  # fmt: skip
def test_time_grows_with_the_text_alone(piece: str) -> None:
    def seconds(size: int) -> float:
        text = (piece * size)[:size]
        best = math.inf
        for _ in range(3):
            started = time.thread_time()
            tickets.read(text)
            best = min(best, time.thread_time() - started)
        return best

    # Processor time of this thread, which other work on the machine does not lengthen.
    # Sixteen times the text: a quadratic search would take 256 times as long.
    assert seconds(320_000) < 80 * seconds(20_000) + 0.1


def test_nesting_is_bounded_on_every_way_in() -> None:
    deepest = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert anything.read(deepest).ok
    for text in (f"[{deepest}]", f"so: [{deepest}]", f'{{"a": {deepest}}}'):
        assert not anything.read(text).ok
    with pytest.raises(NotJSON, match="nested"):
        parse("[" * 900 + "]" * 900)


def test_paths_and_cut_texts_are_readable() -> None:
    assert path_text(("items", 0, "two words", "x")) == '$.items[0]["two words"].x'
    assert shorten("a" * 50, 20) == "a" * 11 + " … " + "a" * 6
    assert shorten("short", 20) == "short"


@patient
@given(st.text(max_size=60), st.integers(10, 40))
def test_a_cut_text_keeps_its_bound(text: str, limit: int) -> None:
    assert len(shorten(text, limit)) <= limit
