"""The acceptance decides purely: the same request and reply give the same decision, and change nothing."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.acceptance import Accept, Acceptance, AskAgain, Fail, TextCheck, go_on, journaled, resume, revised
from batchchat.records import Completion, ErrorKind, Failure, Reply, Request, Usage, Verdict
from batchchat.structured import load_schema, load_tools

SCHEMA = load_schema({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, folder=Path())
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA.schema}}]
BODY = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
USAGE = Usage(10, 5, 15)


def request(**fields: Any) -> Request:
    batch: Any = None
    return Request("ab" * 16, json.dumps({**BODY, **fields}).encode(), 3, 9, batch, 0)


def reply(text: str | None = None, calls: Any = None, *, cut: bool = False) -> Reply:
    completion = Completion(text, "length" if cut else "stop", "m", USAGE, "id", tool_calls=calls)
    failure = Failure(ErrorKind.TRUNCATED, "the answer was cut off", 200) if cut else None
    verdict = Verdict.NO if cut else Verdict.OK
    return Reply(verdict, completion, failure, USAGE, text, latency_s=0.5, request_id="id", model="m")


def call(arguments: str) -> tuple[dict[str, str | None], ...]:
    return ({"id": "c", "type": "function", "name": "f", "arguments": arguments},)


def test_a_job_that_asks_for_nothing_has_nothing_to_review() -> None:
    assert Acceptance().idle
    assert not Acceptance(text=TextCheck(SCHEMA)).idle
    assert not Acceptance(tools=load_tools(TOOLS)).idle
    assert not Acceptance(tools_vary=True).idle
    assert not Acceptance(truncated="keep").idle


def test_what_is_no_answer_is_left_to_retry() -> None:
    acceptance = Acceptance(text=TextCheck(SCHEMA))
    failed = Reply(Verdict.TRANSIENT, failure=Failure(ErrorKind.SERVER, "500", 500))
    assert not acceptance.concerns(request(), failed)
    refused = reply("no")
    refused.verdict, refused.failure = Verdict.NO, Failure(ErrorKind.REFUSAL, "no", 200)
    assert not acceptance.concerns(request(), refused)
    assert acceptance.concerns(request(), reply("{}"))
    assert acceptance.concerns(request(), reply("{", cut=True))


@pytest.mark.parametrize(
    ("acceptance", "answer", "decision"),
    [
        (Acceptance(text=TextCheck(SCHEMA)), reply('{"a": 1}'), Accept({"a": 1})),
        (Acceptance(text=TextCheck(SCHEMA)), reply('So: {"a": 1}'), Accept({"a": 1}, tolerated=True)),
        (Acceptance(tools=load_tools(TOOLS)), reply(None, call('{"a": 1}')), Accept()),
        (Acceptance(tools=load_tools(TOOLS)), reply("no tool"), Accept()),
        (Acceptance(truncated="keep"), reply("half", cut=True), Accept()),
        (Acceptance(text=TextCheck(SCHEMA), truncated="keep"), reply('{"a": 1}', cut=True), Accept({"a": 1})),
    ],
)
def test_what_fits_is_taken(acceptance: Acceptance, answer: Reply, decision: Accept) -> None:
    assert acceptance.decide(request(), answer) == decision


def test_a_decision_changes_neither_request_nor_reply() -> None:
    asked, answer = request(), reply("nonsense")
    before = copy.deepcopy((asked.body, asked.steps, answer))
    first, second = (Acceptance(text=TextCheck(SCHEMA)).decide(asked, answer) for _ in range(2))
    assert first == second
    assert (asked.body, asked.steps, answer) == before


def test_a_model_that_repeats_itself_is_not_asked_the_very_same_again() -> None:
    acceptance = Acceptance(text=TextCheck(SCHEMA), corrections=5)
    asked, bodies = request(), set()
    for _ in range(5):
        decision = acceptance.decide(asked, reply('{"a": "one"}'))
        assert isinstance(decision, AskAgain)
        go_on(asked, reply('{"a": "one"}'), decision)
        bodies.add(asked.body)
    assert len(bodies) == 5
    assert isinstance(acceptance.decide(asked, reply('{"a": "one"}')), Fail)
    assert max(len(json.loads(body)["messages"]) for body in bodies) == 3


def test_tools_that_cannot_be_used_in_one_row_let_its_calls_pass() -> None:
    acceptance = Acceptance(tools_vary=True)
    assert acceptance.decide(request(tools=[{"type": "function"}]), reply(None, call("{"))) == Accept()
    assert isinstance(acceptance.decide(request(tools=TOOLS), reply(None, call("{"))), AskAgain)
    assert acceptance.decide(request(), reply("no tools at all")) == Accept()


def test_numbers_of_a_schema_keep_their_digits_in_a_correction() -> None:
    big = 2**90 + 1
    sent = revised(json.dumps({**BODY, "response_format": {"maximum": big, "ratio": 0.1}}).encode(), (), 50)
    assert json.loads(sent) == {**BODY, "max_tokens": 50, "response_format": {"maximum": big, "ratio": 0.1}}


@given(st.lists(st.sampled_from(["wrong", "cut", "call"]), min_size=1, max_size=6))
def test_a_resumed_request_asks_what_it_would_have_asked(kinds: list[str]) -> None:
    """Whatever answers there were: after a crash the next body is the same, and so is all that is counted."""
    answers = {"wrong": reply('{"a": "é"}'), "cut": reply('{"a', cut=True), "call": reply(None, call('{"a": 1.5}'))}
    acceptance = Acceptance(text=TextCheck(SCHEMA), tools=load_tools(TOOLS), corrections=3, truncated=50)
    live, payloads = request(), []
    decision: Any = None
    for number, kind in enumerate(kinds):
        live.attempts += 1
        live.active_s += 0.5
        decision = acceptance.decide(live, answers[kind])
        if not isinstance(decision, AskAgain):
            break
        live.usage = live.usage.plus(USAGE)
        payloads.append(json.loads(json.dumps(journaled(live, answers[kind]))))
        go_on(live, answers[kind], decision)
        resumed = request()
        found = resume(resumed, payloads, acceptance)
        assert found is not None
        again, answer = found[1], found[0]
        assert isinstance(again, AskAgain)
        go_on(resumed, answer, again)
        assert (resumed.body, resumed.max_tokens, resumed.prompt_tokens) == (
            live.body,
            live.max_tokens,
            live.prompt_tokens,
        )
        assert resumed.steps == live.steps
        assert (resumed.usage, resumed.attempts, resumed.active_s) == (live.usage, number + 1, live.active_s)
        assert found[0].usage is None


@pytest.mark.parametrize(
    "payload", [None, {}, [], "x", {"completion": None}, {"completion": {"usage": []}, "failure": ["odd", "", 1]}]
)
def test_answers_that_cannot_be_read_are_asked_for_anew(payload: Any) -> None:
    asked = request()
    assert resume(asked, [payload], Acceptance(text=TextCheck(SCHEMA))) is None
    assert (asked.steps, asked.attempts, asked.usage) == (None, 0, Usage())


def test_an_answer_that_another_version_kept_is_read_as_far_as_it_is_known() -> None:
    kept = journaled(request(), reply('{"a": 1}'))
    kept["completion"]["mood"] = "fine"
    found = resume(request(), [kept], Acceptance(text=TextCheck(SCHEMA)))
    assert found is not None
    assert found[1] == Accept({"a": 1})
