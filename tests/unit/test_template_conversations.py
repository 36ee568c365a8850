"""Messages from a column as data sets have them: ShareGPT, older roles, arguments as objects."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from batchchat.errors import JobError
from batchchat.template import RowTemplateError, compile_template

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": "é"}}}
WRITTEN = {**CALL, "function": {"name": "f", "arguments": '{"a":"é","b":1}'}}


def sent(value: Any) -> Any:
    template = compile_template({"from": "chat"}, {}, model="m")
    return orjson.loads(template.render({"chat": value}).body)["messages"]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        *[
            ([{"from": name, "value": "hi"}], [{"role": role, "content": "hi"}])
            for name, role in [("human", "user"), ("gpt", "assistant"), ("System", "system"), ("user", "user")]
        ],
        ([{"from": "human", "value": "hi", "weight": None}], [{"role": "user", "content": "hi"}]),
        ({"conversations": [{"from": "human", "value": "hi"}]}, [{"role": "user", "content": "hi"}]),
        ([{"role": "developer", "content": "hi"}], [{"role": "developer", "content": "hi"}]),
        (
            [{"role": "function", "name": "f", "content": "1"}],
            [{"role": "function", "name": "f", "content": "1"}],
        ),
        ([{"role": "assistant", "tool_calls": [CALL]}], [{"role": "assistant", "tool_calls": [WRITTEN]}]),
        ([{"role": "assistant", "tool_calls": [WRITTEN]}], [{"role": "assistant", "tool_calls": [WRITTEN]}]),
        (
            [{"role": "assistant", "content": None, "function_call": CALL["function"]}],
            [{"role": "assistant", "function_call": WRITTEN["function"]}],
        ),
    ],
)
def test_conversations_of_data_sets_are_read(given: Any, wanted: Any) -> None:
    assert sent(given) == wanted
    assert sent(orjson.dumps(given).decode()) == wanted


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([{"from": "observation", "value": "1"}], "with its tool_call_id"),
        ([{"from": "human", "value": 3}], "not text"),
        ([{"role": "function", "content": "1"}], "give the function's name"),
        ([{"role": "assistant", "tool_calls": [{"function": {"arguments": {"a": b"x"}}}]}], "bytes"),
    ],
)
def test_what_is_no_message_fails_its_row(given: Any, told: str) -> None:
    with pytest.raises(RowTemplateError, match=told):
        sent(given)


def test_arguments_in_a_job_become_text_and_refuse_templates() -> None:
    def compiled(call: Any) -> Any:
        messages: list[dict[str, Any]] = [
            {"role": "assistant", "tool_calls": [call]},
            {"role": "user", "content": "{{ a }}"},
        ]
        return orjson.loads(compile_template(messages, {}, model="m").render({"a": "x"}).body)["messages"]

    assert compiled(CALL)[0]["tool_calls"] == [WRITTEN]
    with pytest.raises(JobError, match="tojson"):
        compiled({**CALL, "function": {"name": "f", "arguments": {"a": "{{ a }}"}}})
