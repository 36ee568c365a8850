"""How sure an answer is: the tokens of a value, the alternatives of a schema, what the model says of itself."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.structured.confidence import ConfidenceRule, choice_fields, is_number_field
from batchchat.structured.spans import alignment, value_spans

LABELS = {"type": "object", "properties": {"label": {"enum": ["bug", "bug_fix", "billing"]}, "n": {"type": "integer"}}}


def _tokens(*parts: Any) -> list[dict[str, Any]]:
    """Tokens as records keep them: a text, or (text, chance) or (text, chance, {other: chance})."""
    made = []
    for part in parts:
        text, chance, tops = (*((part,) if isinstance(part, str) else part), 1.0, {})[:3]
        if not isinstance(chance, float):
            raise TypeError(part)
        tops = tops if isinstance(tops, dict) else {}
        shown = {text: chance, **tops} if tops else {}
        top = [{"token": name, "logprob": math.log(p)} for name, p in shown.items()]
        made.append({"token": text, "logprob": math.log(chance), "top": top})
    return made


def _measured(schema: Any, tokens: list[dict[str, Any]], text: str | None = None) -> Any:
    whole = "".join(token["token"] for token in tokens) if text is None else text
    return ConfidenceRule("logprobs", choice_fields(schema)).measure(whole, None, tokens)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        # One token for the whole value: no alternative is shown.
        (_tokens('{"label":"', ("billing", 0.8), '"}'), 0.8),
        # What is shown and forbidden takes nothing away.
        (_tokens('{"label":"', ("billing", 0.6, {"Billing": 0.3, "bug": 0.1}), '"}'), 0.6 / 0.7),
        # What is not shown counts against it.
        (_tokens('{"label":"', ("billing", 0.6, {"Billing": 0.2}), '"}'), 0.6 / 0.8),
        # A token that stands across the quote.
        (_tokens('{"label', '":"bi', ("lling", 0.5), '"}'), 0.5),
        (_tokens('{"label', ('":"bi', 0.7, {'":"bu': 0.2, '": "': 0.1}), "lling", '"}'), 0.7 / 0.9),
        # The same value in other tokens counts for it.
        (_tokens('{"label":"', ("bill", 0.5, {"billing": 0.25, "bug": 0.25}), "ing", '"}'), 0.75),
        # `bug` may go on as `bug_fix`: that it ends is a choice too.
        (_tokens('{"label":"', ("bug", 0.9), ('"', 0.6, {"_fix": 0.4}), "}"), 0.9 * 0.6),
        (_tokens('{"label":"', ("bug", 0.9), ("_fix", 0.4, {'"': 0.6}), '"}'), 0.9 * 0.4),
        # No quote is a choice elsewhere: nothing else begins like billing.
        (_tokens('{"label":"', ("billing", 0.9), ('"', 0.2), "}"), 0.9),
        # Numbers of other fields do not count.
        (_tokens('{"n":', ("3", 0.01), ',"label":"', ("billing", 0.9), '"}'), 0.9),
        # Words before the value, such as a fence, and reasoning that is not part of the text.
        (_tokens("Here:\n```json\n", '{"label": "', ("billing", 0.7), '"}\n```'), 0.7),
    ],
)
def test_the_tokens_of_the_value_alone(tokens: list[dict[str, Any]], expected: float) -> None:
    assert _measured(LABELS, tokens).value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("schema", "tokens", "expected"),
    [
        ({"properties": {"a": {"type": "boolean"}}},
         _tokens('{"a": ', ("true", 0.7, {"false": 0.2, "1": 0.1}), "}"), 0.7 / 0.9),
        ({"properties": {"a": {"enum": [1, 10]}}}, _tokens('{"a":', ("1", 0.6, {"10": 0.4}), "}"), 0.6),
        ({"properties": {"a": {"enum": [1, 10]}}}, _tokens('{"a":', ("10", 0.4, {"1": 0.6}), "}"), 0.4),
        # Null beside texts: that a quote opens is a choice.
        ({"properties": {"a": {"enum": ["x", None]}}}, _tokens('{"a":', ('"', 0.6, {"null": 0.4}), "x", '"}'), 0.6),
        ({"properties": {"a": {"anyOf": [{"$ref": "#/$defs/l"}, {"type": "null"}]}},
          "$defs": {"l": {"enum": ["x", "y"]}}},
         _tokens('{"a":', ("null", 0.4, {'"': 0.6}), "}"), 0.4),
        # A value that is the whole answer.
        ({"enum": ["yes", "no"]}, _tokens('"', ("yes", 0.9, {"no": 0.1}), '"'), 0.9),
        # The least of several.
        ({"properties": {"a": {"enum": ["x", "y"]}, "b": {"properties": {"c": {"type": "boolean"}}}}},
         _tokens('{"a":"', ("x", 0.9), '","b":{"c":', ("false", 0.6), "}}"), 0.6),
    ],
)  # fmt: skip
def test_alternatives_of_a_schema(schema: Any, tokens: list[dict[str, Any]], expected: float) -> None:
    assert _measured(schema, tokens).value == pytest.approx(expected)


def test_each_field_has_its_own_value() -> None:
    schema = {"properties": {"a": {"enum": ["x", "y"]}, "b": {"properties": {"c": {"type": "boolean"}}}}}
    found = _measured(schema, _tokens('{"a":"', ("x", 0.9), '","b":{"c":', ("false", 0.6), "}}"))
    assert [name for name, _ in found.fields] == ["a", "b.c"]
    assert [value for _, value in found.fields] == pytest.approx([0.9, 0.6])
    assert found.detail()["method"] == "logprobs"


def test_a_character_in_several_tokens_that_are_no_text() -> None:
    schema = {"properties": {"a": {"enum": ["日本", "中国"]}}}
    tokens = _tokens('{"a":"', ("\ufffd", 0.9), ("\ufffd\ufffd", 0.8), ("本", 0.5), '"}')
    assert _measured(schema, tokens, '{"a":"日本"}').value == pytest.approx(0.9 * 0.8 * 0.5)
    escaped = _tokens('{"a":"', ("\\u65e5\\u672c", 0.7), '"}')
    assert _measured(schema, escaped).value == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("tokens", "text", "words"),
    [
        ([], '{"label": "bug"}', "no log probabilities"),
        (_tokens("something else altogether"), '{"label": "bug"}', "do not spell"),
        (_tokens('{"n": 1}'), None, "none of the fields"),
        (_tokens("no JSON"), None, "no text"),
        (_tokens("x"), None, "no text"),
        ([{"token": '{"label": "bug"}', "logprob": None, "top": None}], None, "has no log probability"),
    ],
)
def test_why_nothing_can_be_told(tokens: list[dict[str, Any]], text: str | None, words: str) -> None:
    found = _measured(LABELS, tokens, text)
    assert found.value is None
    assert words in str(found.reason)


@pytest.mark.parametrize(
    ("parsed", "value", "words"),
    [
        ({"a": {"sure": 0.5}}, 0.5, None),
        ({"a": {"sure": 1}}, 1.0, None),
        ({"a": {"sure": 85}}, None, "85"),
        ({"a": {"sure": -0.1}}, None, "from 0 to 1"),
        ({"a": {"sure": True}}, None, "no number"),
        ({"a": {"sure": float("nan")}}, None, "from 0 to 1"),
        ({"a": None}, None, "null"),
    ],
)
def test_what_the_model_says_of_itself(parsed: Any, value: float | None, words: str | None) -> None:
    found = ConfidenceRule("field", (), ("a", "sure")).measure("{}", parsed, None)
    assert found.value == value
    assert (words or "") in str(found.reason)


def test_which_fields_are_measured() -> None:
    schema = {
        "properties": {
            "only": {"enum": ["one"]},
            "list": {"type": "array", "items": {"enum": ["a", "b"]}},
            "free": {"type": "string"},
            "maybe": {"type": ["boolean", "null"]},
            "itself": {"$ref": "#"},
            "sure": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        }
    }
    names = [field.name for field in choice_fields(schema)]
    assert names[0] == "maybe"
    assert {name.rpartition(".")[2] for name in names} == {"maybe"}
    assert is_number_field(schema, ("sure",))
    assert not is_number_field(schema, ("free",))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner, max_size=4)
)


@given(
    value=st.dictionaries(st.text(), _JSON, max_size=4),
    cut=st.lists(st.integers(1, 6), min_size=1),
    ascii_=st.booleans(),
)
def test_spans_and_tokens_find_every_value_again(value: dict[str, Any], cut: list[int], ascii_: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_)
    paths = [(name,) for name, item in value.items() if not isinstance(item, dict)]
    spans = value_spans(text, paths)
    assert spans is not None
    assert {path: json.loads(text[first:last]) for path, (first, last) in spans.items()} == {
        path: value[path[0]] for path in paths
    }
    tokens: list[str] = []
    at = 0
    while at < len(text):
        size = cut[len(tokens) % len(cut)]
        tokens.append(text[at : at + size])
        at += size
    found = alignment(text, tokens)
    assert found is not None
    assert [text[first:last] for first, last in found] == tokens


@given(text=st.text(), tokens=st.lists(st.text(max_size=5), max_size=12))
def test_whatever_a_server_writes_is_measured_or_told(text: str, tokens: list[str]) -> None:
    made = [{"token": token, "logprob": -0.5, "top": [{"token": token[:1], "logprob": -1.0}]} for token in tokens]
    found = _measured(LABELS, made, text)
    assert found.value is None or 0 <= found.value <= 1
    assert (found.value is None) is (found.reason is not None)
