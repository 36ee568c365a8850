"""Tools, the calls of them, and how an answer that does not fit is asked for again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.acceptance import revised
from batchchat.structured import (
    SchemaError,
    Tools,
    answer_correction,
    calls_correction,
    load_tools,
)


def tool(name: str = "find_order", **function: Any) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {"number": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["number"],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters, **function}}


def call(arguments: str | None, name: str | None = "find_order", call_id: str | None = "c1") -> dict[str, str | None]:
    return {"id": call_id, "type": "function", "name": name, "arguments": arguments}


TOOLS = load_tools([tool(), tool("list_all", parameters={"type": "object"})])


def test_valid_calls_have_no_errors() -> None:
    calls = [call('{"number": "7"}'), call("", "list_all"), call(None, "list_all"), call('{"x": 1}', "list_all")]
    assert TOOLS.check_calls(calls) == ((), (), (), ())
    assert TOOLS.check_calls(None) == ()
    assert TOOLS.missing_call(None) is None


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (call('{"number": 7}'), '$.number: the value is not of type "string"'),
        (call("{}"), '"number" is a required property'),
        (call('{"number": "7", "number": "8"}'), "given twice"),
        (call('Here: {"number": "7"}'), "the arguments are not JSON: "),
        (call('["7"]'), "not a JSON object"),
        (call("{}", "find_ordre"), "there is no tool 'find_ordre'; there is find_order, list_all"),
        (call("{}", None), "names no tool"),
        (call("{}", ""), "names no tool"),
    ],
)
def test_a_wrong_call_says_why(wrong: dict[str, str | None], reason: str) -> None:
    errors = TOOLS.check_calls([call('{"number": "7"}'), wrong])
    assert errors[0] == ()
    assert reason in "\n".join(errors[1])


def test_a_choice_binds_the_answer() -> None:
    named = load_tools([tool(), tool("other")], {"type": "function", "function": {"name": "other"}})
    assert named.missing_call([]) == "the answer does not call 'other'"
    assert named.check_calls([call('{"number": "7"}')]) == (("the tool to call is 'other', not 'find_order'",),)
    assert load_tools([tool()], "required").missing_call(None) == "the answer calls no tool"
    assert load_tools([tool()], "auto").missing_call(None) is None


@pytest.mark.parametrize(
    ("tools", "choice", "reason"),
    [
        (None, None, r"\$\.tools: needs a list"),
        ([], None, r"\$\.tools: needs a list"),
        ([tool(f"t{n}") for n in range(129)], None, "at most 128"),
        (["find"], None, r"\$\.tools\[0\]: is not a tool"),
        ([{"type": "retrieval"}], None, r"\$\.tools\[0\]: is not a tool"),
        ([{"type": "function"}], None, r"\$\.tools\[0\]\.function: needs a mapping"),
        ([tool("two words")], None, r"\$\.tools\[0\]\.function\.name: needs a name"),
        ([tool(), tool()], None, r"\$\.tools\[1\]\.function\.name: a second tool"),
        ([tool(description=7)], None, r"description: is not text"),
        (
            [tool(parameters=None)],
            None,
            r"\$\.tools\[0\]\.function\.parameters: the tool 'find_order' has no parameters",
        ),
        ([tool(parameters={})], None, "not a schema of `type: object`"),
        ([tool(parameters=[1])], None, "not a schema of `type: object`"),
        ([tool(parameters={"type": "object", "required": 1})], None, r"parameters\.required: is not a JSON Schema"),
        ([tool(parameters={"type": "object", 1: 2})], None, "the name 1 is not text"),
        ([tool()], "find_order", "'find_order' is not one of none, auto"),
        ([tool()], 7, r"\$\.tool_choice: names no tool"),
        ([tool()], {"type": "function"}, r"\$\.tool_choice: names no tool"),
        (
            [tool()],
            {"function": {"name": "find_ordre"}},
            r"there is no tool 'find_ordre' \(did you mean 'find_order'\?\)",
        ),
    ],
)
def test_tools_that_cannot_be_used_are_refused_with_their_place(tools: Any, choice: Any, reason: str) -> None:
    with pytest.raises(SchemaError, match=reason) as caught:
        load_tools(tools, choice)
    assert caught.value.place[0] in {"tools", "tool_choice"}


wire_text = st.none() | st.text(st.characters(codec="utf-8"))


@given(wire_text, wire_text, wire_text)
def test_no_call_makes_the_check_raise_or_the_correction_unusable(
    arguments: str | None, name: str | None, call_id: str | None
) -> None:
    calls = [call(arguments, name, call_id), call("{}", "list_all", None)]
    messages = calls_correction(None, calls, TOOLS.check_calls(calls))
    sent = json.loads(revised(b'{"messages": [{"role": "user", "content": "x"}]}', messages, None))["messages"]
    made = sent[1]["tool_calls"]
    assert [one["id"] for one in made] == [one["tool_call_id"] for one in sent[2:]]
    assert all(isinstance(json.loads(one["function"]["arguments"]), dict) for one in made)


def test_a_text_answer_is_asked_for_again_with_its_own_text_and_the_errors() -> None:
    messages = answer_correction('{"label": 1}', ["$.label: is not text", "$: more"], schema='{"type": "object"}')
    assert [message["role"] for message in messages] == ["assistant", "user"]
    assert messages[0]["content"] == '{"label": 1}'
    assert "- $.label: is not text\n- $: more\n" in messages[1]["content"]
    assert messages[1]["content"].endswith('The schema:\n{"type": "object"}')
    assert "The schema:" not in answer_correction("x", ["y"])[1]["content"]
    assert "The schema:" not in answer_correction("x", ["y"], schema="z" * 10_000)[1]["content"]


def test_an_empty_or_endless_answer_still_makes_messages_that_servers_take() -> None:
    assert answer_correction(None, ["the answer is empty"])[0]["content"] == "(no answer)"
    assert answer_correction(" \n", ["the answer is empty"])[0]["content"] == "(no answer)"
    long = answer_correction("a" + " " * 500_000 + "z", ["it is not JSON"])[0]["content"]
    assert len(long) < 20_000
    assert (long[0], long[-1]) == ("a", "z")


def test_calls_are_asked_for_again_by_a_tool_message_each() -> None:
    calls = [call('{"number": "7"}'), call("not json", "find_order", None)]
    first, good, bad = calls_correction("Let me look.", calls, TOOLS.check_calls(calls))
    assert first["content"] == "Let me look."
    assert [one["id"] for one in first["tool_calls"]] == ["c1", "call00001"]
    assert [one["function"]["arguments"] for one in first["tool_calls"]] == ['{"number": "7"}', "{}"]
    assert (good["role"], good["tool_call_id"]) == ("tool", "c1")
    assert "again as it is" in good["content"]
    assert (bad["role"], bad["tool_call_id"]) == ("tool", "call00001")
    assert "the arguments are not JSON" in bad["content"]
    assert "The arguments were:\nnot json" in bad["content"]


def test_a_body_keeps_everything_else() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"\xc3\xa9"}],"seed":9007199254740993,"temperature":0.1}'
    added = answer_correction("x", ["y"])
    request = json.loads(revised(body, added, None))
    assert request == {**json.loads(body), "messages": [{"role": "user", "content": "é"}, *added]}


def test_tools_share_nothing_between_checks() -> None:
    assert isinstance(TOOLS, Tools)
    wrong = [call("{}")]
    assert TOOLS.check_calls(wrong) == TOOLS.check_calls(wrong) != ((),)
