"""Answers held to a schema or to tools, in whole runs: what is asked again, what is stored, what a stop costs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

import batchchat
from batchchat.errors import JobError, UsageError
from batchchat.events import RunSummary
from batchchat.export import export
from batchchat.inspection import find_records
from batchchat.records import ErrorKind
from batchchat.runner.control import Control
from batchchat.runner.options import RunOptions
from batchchat.runner.run import run_job
from batchchat.store import read_state, verify
from tests.integration.jobs import make_job, query, texts, write_rows
from tests.thorough import one_in

LABEL: dict[str, Any] = {
    "type": "object",
    "properties": {"label": {"enum": ["yes", "no"]}, "n": {"type": ["integer", "null"]}},
    "required": ["label", "n"],
    "additionalProperties": False,
}
GOOD = '{"label": "yes", "n": 7}'
WRONG = '{"label": "maybe", "n": 7}'
TOOL = {
    "type": "function",
    "function": {
        "name": "find_order",
        "parameters": {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]},
    },
}

Said = str | dict[str, Any]


def said(answer: Said, number: int = 0) -> httpx.Response:
    """An answer of 10 + 5 tokens: a text, or a message with `finish_reason` beside it."""
    message = {"content": answer} if isinstance(answer, str) else dict(answer)
    finish = message.pop("finish_reason", "stop")
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    choice = {"message": message, "finish_reason": finish}
    return httpx.Response(200, json={"id": f"a{number}", "choices": [choice], "usage": usage, "model": "m"})


def call(arguments: str, name: str = "find_order", id_: str = "c1") -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


class Scripted(httpx.AsyncBaseTransport):
    """A provider that says, for each row, one thing after another; `bodies` are the requests in their order."""

    def __init__(self, script: Callable[[int, int], Said | httpx.Response]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.asked: dict[int, int] = {}
        self._script = script

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.bodies.append(body)
        row = int(
            next(m for m in body["messages"] if m["role"] == "user")["content"].split("row number ")[1].split()[0]
        )
        step = self.asked[row] = self.asked.get(row, 0) + 1
        found = self._script(row, step)
        return found if isinstance(found, httpx.Response) else said(found, len(self.bodies))


def go(
    folder: Path, script: Callable[[int, int], Said | httpx.Response] | Scripted, rows: int = 1, **fields: Any
) -> tuple[RunSummary, Scripted]:
    if not (folder / "rows.jsonl").exists():
        write_rows(folder / "rows.jsonl", texts(rows))
    provider = script if isinstance(script, Scripted) else Scripted(script)
    options = fields.pop("options", RunOptions())
    summary = batchchat.run(make_job(folder, None, **fields), transport=provider, environ={}, options=options)
    return summary, provider


def record(folder: Path) -> dict[str, Any]:
    found: list[dict[str, Any]] = batchchat.read_output(folder / "out").to_pylist()
    assert len(found) == 1
    return found[0]


def typed(**more: Any) -> dict[str, Any]:
    return {"response": {"schema": LABEL, **more}}


def test_an_answer_that_fits_goes_into_a_typed_column(tmp_path: Path) -> None:
    summary, provider = go(
        tmp_path, lambda row, _: json.dumps({"label": "yes" if row % 2 else "no", "n": row}), 9, **typed()
    )
    assert (summary.exit_code, summary.sent, summary.ok) == (0, 9, 9)
    wanted = {"name": "answer", "strict": True, "schema": LABEL}
    assert provider.bodies[0]["response_format"] == {"type": "json_schema", "json_schema": wanted}
    sql = "select parsed.label, count(*), sum(parsed.n) from data group by all order by all"
    assert query(tmp_path, sql) == [("no", 5, 20), ("yes", 4, 16)]
    assert batchchat.read_output(tmp_path / "out").schema.names[-1] == "parsed"
    again, _ = go(tmp_path, provider, **typed())
    assert again.sent == 0


def test_an_answer_that_does_not_fit_is_asked_for_again_with_what_is_wrong(tmp_path: Path) -> None:
    answers: list[Any] = [WRONG, "no idea", f"Of course:\n```json\n{GOOD}\n```"]
    summary, provider = go(tmp_path, lambda _, step: answers[step - 1], **typed())
    assert (summary.exit_code, summary.sent, summary.retries) == (0, 3, 0)
    found = record(tmp_path)
    assert found["parsed"] == {"label": "yes", "n": 7}
    assert (found["corrections"], found["tolerated"], found["attempts"]) == (2, True, 3)
    assert (found["prompt_tokens"], found["completion_tokens"], found["total_tokens"]) == (30, 15, 45)
    assert (found["status"], found["error_kind"], found["error_message"]) == (
        "ok",
        None,
        "there is no JSON in the answer",
    )
    assert summary.spend.requests == summary.spend_total.requests == 3
    own, second, third = (body["messages"] for body in provider.bodies)
    assert second[: len(own)] == third[: len(own)] == own
    assert [message["role"] for message in second[len(own) :]] == ["assistant", "user"]
    assert second[-2]["content"] == WRONG
    assert "$.label" in second[-1]["content"]
    assert third[-2]["content"] == "no idea"
    assert all(body["response_format"] == provider.bodies[0]["response_format"] for body in provider.bodies)


def test_an_answer_that_never_fits_keeps_its_text_and_the_reasons(tmp_path: Path) -> None:
    summary, _ = go(tmp_path, lambda _, step: WRONG if step < 3 else '{"label": "yes"}', **typed())
    assert (summary.exit_code, summary.sent) == (1, 3)
    found = record(tmp_path)
    assert (found["status"], found["error_kind"], found["corrections"]) == ("failed", "invalid_output", 2)
    assert found["completion"] == '{"label": "yes"}'
    assert found["error_message"].startswith("the answer does not fit the schema after 2 corrections: $: ")
    assert '"n"' in found["error_message"]
    assert (found["parsed"], found["http_status"]) == (None, 200)
    again, provider = go(tmp_path, lambda _row, _step: GOOD, **typed())
    assert (again.sent, provider.bodies) == (0, [])  # no transient failure
    retried, _ = go(
        tmp_path,
        lambda _row, _step: GOOD,
        options=RunOptions(retry_failed=frozenset([ErrorKind.INVALID_OUTPUT])),
        **typed(),
    )
    assert (retried.sent, retried.ok) == (1, 1)


def test_without_corrections_one_answer_decides(tmp_path: Path) -> None:
    summary, _ = go(tmp_path, lambda _row, _step: WRONG, **typed(corrections=0))
    assert (summary.failed, summary.sent) == (1, 1)
    assert record(tmp_path)["error_message"].startswith("the answer does not fit the schema: $.label")


@pytest.mark.parametrize("mode", ["json_object", "prompt"])
def test_a_schema_can_go_into_the_prompt(tmp_path: Path, mode: str) -> None:
    system = {"role": "system", "content": "You decide. {{ text }}"}
    user = {"role": "user", "content": "row number {{ id }} {% raw %}{{{% endraw %}"}
    schema = {**LABEL, "title": "Verdict", "description": "{{ not a template }}"}
    answers: list[Any] = [WRONG, GOOD]
    _, provider = go(
        tmp_path, lambda _, step: answers[step - 1], response={"schema": schema, "mode": mode}, messages=[system, user]
    )
    first, second = provider.bodies
    assert first.get("response_format") == ({"type": "json_object"} if mode == "json_object" else None)
    assert first["messages"][0]["content"].startswith("You decide. row number 0\n\nAnswer with one JSON value")
    assert json.dumps(schema, separators=(",", ":")) in first["messages"][0]["content"]
    assert len(second["messages"]) == 4
    assert "The schema:" not in second["messages"][-1]["content"]
    assert record(tmp_path)["parsed"] == {"label": "yes", "n": 7}


def test_the_schema_is_part_of_the_request(tmp_path: Path) -> None:
    go(tmp_path, lambda _row, _step: GOOD, 3, **typed())
    wider = {**LABEL, "properties": {**LABEL["properties"], "label": {"enum": ["yes", "no", "maybe"]}}}
    edited, _ = go(tmp_path, lambda _row, _step: WRONG, response={"schema": wider})
    assert (edited.sent, edited.ok) == (3, 3)
    assert query(tmp_path, "select parsed.label, count(*) from data group by all") == [("maybe", 3)]
    back, _ = go(tmp_path, lambda _row, _step: pytest.fail("asked again"), **typed())
    assert (back.sent, back.revived) == (0, 3)
    assert query(tmp_path, "select parsed.label, sum(parsed.n) from data group by all") == [("yes", 21)]


def test_a_schema_that_changes_the_type_needs_fresh(tmp_path: Path) -> None:
    go(tmp_path, lambda _row, _step: GOOD, **typed())
    other: dict[str, Any] = {"response": {"schema": {"type": "object", "properties": {"label": {"type": "boolean"}}}}}
    with pytest.raises(JobError, match=r"needs --fresh: .*parsed.label was text and is boolean") as error:
        go(tmp_path, lambda _row, _step: pytest.fail("asked"), **other)
    assert error.value.exit_code == 2
    assert "--fresh" in (error.value.remedy or "")
    summary, _ = go(tmp_path, lambda _row, _step: '{"label": true}', options=RunOptions(fresh=True), **other)
    assert summary.ok == 1
    assert record(tmp_path)["parsed"] == {"label": True}


def test_a_schema_may_come_later_and_go(tmp_path: Path) -> None:
    go(tmp_path, lambda _row, _step: "plain", 2)
    go(tmp_path, lambda _row, _step: GOOD, **typed())
    assert query(tmp_path, "select parsed.label, count(*) from data group by all") == [("yes", 2)]
    gone, _ = go(tmp_path, lambda _row, _step: pytest.fail("asked again"))
    assert gone.revived == 2
    assert query(tmp_path, "select parsed, completion, count(*) from data group by all") == [(None, "plain", 2)]
    assert verify(tmp_path / "out").problems == []


# --- tools


def test_a_call_that_does_not_fit_is_asked_for_again(tmp_path: Path) -> None:
    answers: list[Any] = [
        {"content": None, "tool_calls": [call('{"number": "A-1"}')]},
        {"content": None, "tool_calls": [call('{"number": 1}')]},
    ]
    summary, provider = go(tmp_path, lambda _, step: answers[step - 1], params={"tools": [TOOL]})
    assert (summary.ok, summary.sent) == (1, 2)
    found = record(tmp_path)
    assert found["tool_calls"][0]["arguments"] == '{"number": 1}'
    assert (found["corrections"], found["status"]) == (1, "ok")
    assert "parsed" not in found
    added = provider.bodies[1]["messages"][1:]
    assert [message["role"] for message in added] == ["assistant", "tool"]
    assert added[0]["tool_calls"][0]["function"]["arguments"] == '{"number": "A-1"}'
    assert "$.number" in added[1]["content"]


def test_calls_that_never_fit_fail_and_are_kept(tmp_path: Path) -> None:
    summary, _ = go(
        tmp_path,
        lambda _row, _step: {"content": "", "tool_calls": [call("{}"), call("{", name="nothing", id_="c2")]},
        params={"tools": [TOOL]},
        response={"corrections": 1},
    )
    assert (summary.failed, summary.sent) == (1, 2)
    found = record(tmp_path)
    assert len(found["tool_calls"]) == 2
    assert found["error_kind"] == "invalid_output"
    assert "find_order: $" in found["error_message"]
    assert "there is no tool 'nothing'" in found["error_message"]


def test_an_answer_without_the_call_that_was_asked_for_is_none(tmp_path: Path) -> None:
    answers: list[Any] = ["Shall I?", {"content": None, "tool_calls": [call('{"number": 1}')]}]
    summary, provider = go(
        tmp_path, lambda _, step: answers[step - 1], params={"tools": [TOOL], "tool_choice": "required"}
    )
    assert (summary.ok, summary.sent) == (1, 2)
    assert "calls no tool" in provider.bodies[1]["messages"][-1]["content"]
    assert record(tmp_path)["error_message"] == "the answer calls no tool"


def test_text_beside_tools_is_an_answer_unless_a_schema_says_more(tmp_path: Path) -> None:
    summary, _ = go(tmp_path, lambda _row, _step: "no call needed", params={"tools": [TOOL]})
    assert (summary.ok, summary.sent) == (1, 1)
    answers: list[Any] = ["no call needed", {"content": None, "tool_calls": [call('{"number": 1}')]}]
    both, _ = go(tmp_path, lambda _, step: answers[step - 1], params={"tools": [TOOL]}, **typed())
    assert (both.ok, both.sent) == (1, 2)
    assert record(tmp_path)["parsed"] is None


def test_tools_that_differ_by_row_judge_their_own_calls(tmp_path: Path) -> None:
    arguments = ['{"number": 4}', '{"name": 4}', '{"number": 4}']
    summary, provider = go(
        tmp_path,
        lambda row, step: {"content": None, "tool_calls": [call(arguments[2 if row and step == 1 else row])]},
        2,
        params={"tools": "{{ " + json.dumps([TOOL]).replace('"number"', "('number' if id == 0 else 'name')") + " }}"},
        response={"corrections": 1},
    )
    assert (summary.ok, summary.sent, len(provider.bodies)) == (2, 3, 3)


# --- answers that are cut off


def cut(text: str = "half an ans") -> dict[str, Any]:
    return {"content": text, "finish_reason": "length"}


def test_a_cut_answer_fails_by_default(tmp_path: Path) -> None:
    summary, _ = go(tmp_path, lambda _row, _step: cut())
    assert (summary.failed, summary.sent) == (1, 1)
    assert (record(tmp_path)["error_kind"], record(tmp_path)["completion"]) == ("truncated", "half an ans")


def test_a_cut_answer_may_be_kept(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(2))
    summary, _ = go(tmp_path, lambda row, _step: cut() if row else cut(" \n"), response={"truncated": "keep"})
    assert (summary.ok, summary.failed, summary.sent) == (1, 1, 2)
    sql = "select status, finish_reason, error_kind, completion from data order by row_index"
    assert query(tmp_path, sql) == [("failed", "length", "truncated", " \n"), ("ok", "length", None, "half an ans")]


@pytest.mark.parametrize(
    ("params", "name"),
    [({"max_tokens": 5}, "max_tokens"), ({}, "max_tokens"), ({"max_completion_tokens": 5}, "max_completion_tokens")],
)
def test_a_cut_answer_may_be_asked_for_once_more_with_more_room(
    tmp_path: Path, params: dict[str, int], name: str
) -> None:
    longer: dict[str, Any] = {"response": {"truncated": {"retry_with_max_tokens": 50}}}
    summary, provider = go(
        tmp_path, lambda _, step: cut() if step == 1 else "the whole answer", params=params, **longer
    )
    assert (summary.ok, summary.sent) == (1, 2)
    first, second = provider.bodies
    assert second == {**first, name: 50}
    found = record(tmp_path)
    assert (found["corrections"], found["attempts"], found["error_message"], found["total_tokens"]) == (0, 2, None, 30)


def test_a_request_is_never_sent_again_as_it_was(tmp_path: Path) -> None:
    longer: dict[str, Any] = {"truncated": {"retry_with_max_tokens": 50}}
    summary, provider = go(tmp_path, lambda _row, _step: cut(), params={"max_tokens": "{{ 50 + id }}"}, response=longer)
    assert (summary.failed, summary.sent) == (1, 1)
    assert "retry_with_max_tokens is 50" in record(tmp_path)["error_message"]
    twice, provider = go(tmp_path, lambda _row, _step: cut(), params={"max_tokens": 6}, response=longer)
    assert (twice.failed, twice.sent) == (1, 2)
    assert "asked for with 50 already" in record(tmp_path)["error_message"]
    assert [body["max_tokens"] for body in provider.bodies] == [6, 50]


def test_a_longer_try_and_corrections_go_together(tmp_path: Path) -> None:
    answers: list[Any] = [WRONG, cut('{"label": "y'), WRONG, GOOD]
    summary, provider = go(
        tmp_path,
        lambda _, step: answers[step - 1],
        params={"max_tokens": 5},
        **typed(truncated={"retry_with_max_tokens": 50}),
    )
    assert (summary.ok, summary.sent) == (1, 4)
    assert [body["max_tokens"] for body in provider.bodies] == [5, 5, 50, 50]
    assert [len(body["messages"]) for body in provider.bodies] == [1, 3, 3, 3]
    assert record(tmp_path)["corrections"] == 2


# --- odd schemas and long answers


@pytest.mark.parametrize(
    ("schema", "value", "parsed"),
    one_in(
        3,
        [
            (
                {
                    "type": "object",
                    "properties": {name: {"type": "integer"} for name in ("a.b", "a", 'q"', "é\n", "parsed")},
                },
                {"a.b": 1, "a": 2, 'q"': 3, "é\n": 4, "parsed": 5},
                {"a.b": 1, "a": 2, 'q"': 3, "é\n": 4, "parsed": 5},
            ),
            ({"type": "integer", "maximum": 10**30}, 10**29, "100000000000000000000000000000"),
            (
                {"type": "array", "items": {"type": ["object"], "properties": {"x": {"type": "number"}}}},
                [{"x": 1}],
                [{"x": 1}],
            ),
            ({"enum": ["yes", "no"]}, "yes", "yes"),
            ({}, {"any": [None]}, '{"any":[null]}'),
            (
                {"$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"},
                {"n": {"n": {}}},
                {"n": '{"n":{}}'},
            ),
        ],
    ),
)
def test_any_schema_goes_the_whole_way(tmp_path: Path, schema: dict[str, Any], value: Any, parsed: Any) -> None:
    fields: dict[str, Any] = {"response": {"schema": schema, "mode": "prompt"}}
    summary, _ = go(tmp_path, lambda _row, _step: json.dumps(value), 2, **fields)
    assert (summary.ok, summary.sent) == (2, 2)
    assert query(tmp_path, "select distinct parsed from data") == [(parsed,)]
    for name in ("all.jsonl", "all.csv", "all.parquet"):
        export(tmp_path / "out", tmp_path / name)
    assert json.loads((tmp_path / "all.jsonl").read_text().splitlines()[1])["parsed"] == parsed
    assert verify(tmp_path / "out").problems == []
    assert all(view.messages for view in find_records(tmp_path / "out"))
    again, _ = go(tmp_path, lambda _row, _step: pytest.fail("asked again"), **fields)
    assert again.sent == 0


def test_a_very_long_answer_is_judged_like_any_other(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"words": {"type": "array", "items": {"type": "string"}}}}
    answers = [json.dumps({"words": ["word"] * 40_000 + [7]}), json.dumps({"words": ["word"] * 40_000})]
    summary, provider = go(tmp_path, lambda _, step: answers[step - 1], response={"schema": schema})
    assert (summary.ok, summary.sent) == (1, 2)
    assert query(tmp_path, "select len(parsed.words), corrections from data") == [(40_000, 1)]
    assert "$.words[40000]" in record(tmp_path)["error_message"]
    assert len(json.dumps(provider.bodies[1])) < 30_000


# --- beside transport faults, stops and crashes


@pytest.mark.usefixtures("quick_retries")
def test_corrections_do_not_use_up_the_attempts(tmp_path: Path) -> None:
    def script(_row: int, step: int) -> Said | httpx.Response:
        return httpx.Response(503, headers={"retry-after-ms": "1"}) if step == 2 else WRONG if step < 4 else GOOD

    summary, _ = go(tmp_path, script, retry={"attempts": 2}, **typed())
    assert (summary.ok, summary.sent, summary.retries) == (1, 4, 1)
    found = record(tmp_path)
    assert (found["attempts"], found["corrections"], found["total_tokens"]) == (4, 2, 45)


def test_what_a_refusal_or_a_filter_stops_is_not_corrected(tmp_path: Path) -> None:
    answers: list[Any] = [{"content": None, "refusal": "no"}, {"content": "", "finish_reason": "content_filter"}]
    summary, _ = go(tmp_path, lambda row, _step: answers[row], 2, **typed())
    assert (summary.failed, summary.sent) == (2, 2)
    assert query(tmp_path, "select error_kind from data order by row_index") == [("refusal",), ("content_filter",)]


def stopped_after(folder: Path, answers: Sequence[Said], **fields: Any) -> Scripted:
    """Run one row and stop it, as a signal does, while its next request is under way."""
    write_rows(folder / "rows.jsonl", texts(1))
    stop = Control()

    def script(_row: int, step: int) -> Said:
        if step <= len(answers):
            return answers[step - 1]
        stop.stop(reason="asked to", exit_code=143)
        stop.stop(reason="asked to", exit_code=143)
        raise httpx.ReadError("the run is over")

    provider = Scripted(script)
    job = make_job(folder, None, **fields)
    summary = anyio.run(lambda: run_job(job, transport=provider, environ={}, stop=stop))
    assert (summary.exit_code, summary.ok, summary.failed, summary.open) == (143, 0, 0, 1)
    assert summary.spend_total.requests == len(answers)
    return provider


def test_a_stopped_correction_goes_on_from_the_answer_that_is_kept(tmp_path: Path) -> None:
    before = stopped_after(tmp_path, [WRONG, '{"label": 3}'], **typed())
    (kept,) = read_state(tmp_path / "out").answers.values()
    assert [answer.step for answer in kept] == [0, 1]
    summary, after = go(tmp_path, lambda _row, _step: GOOD, **typed())
    assert (summary.ok, summary.sent) == (1, 1)
    assert after.bodies == [before.bodies[2]]
    found = record(tmp_path)
    assert (found["corrections"], found["attempts"], found["total_tokens"]) == (2, 3, 45)
    assert found["started_at"] < found["finished_at"]
    assert summary.spend.requests == 1
    assert summary.spend_total.requests == 3
    assert read_state(tmp_path / "out").answers == {}


def test_a_stopped_longer_try_goes_on_with_more_room(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"params": {"max_tokens": 5}, **typed(truncated={"retry_with_max_tokens": 50})}
    before = stopped_after(tmp_path, [WRONG, cut()], **fields)
    summary, after = go(tmp_path, lambda _row, _step: GOOD, **fields)
    assert (summary.ok, after.bodies) == (1, [before.bodies[2]])
    assert after.bodies[0]["max_tokens"] == 50


def test_answers_that_are_kept_are_judged_by_the_job_as_it_is_now(tmp_path: Path) -> None:
    stopped_after(tmp_path, [WRONG], **typed())
    summary, after = go(tmp_path, lambda _row, _step: pytest.fail("asked"), **typed(corrections=0))
    assert (summary.failed, summary.sent, after.bodies) == (1, 0, [])
    found = record(tmp_path)
    assert (found["error_kind"], found["completion"], found["total_tokens"]) == ("invalid_output", WRONG, 15)
    assert summary.spend_total.requests == 1


def test_a_kept_cut_answer_is_taken_where_the_job_now_keeps_them(tmp_path: Path) -> None:
    stopped_after(tmp_path, [cut()], response={"truncated": {"retry_with_max_tokens": 50}})
    summary, _ = go(tmp_path, lambda _row, _step: pytest.fail("asked"), response={"truncated": "keep"})
    assert (summary.ok, summary.sent, record(tmp_path)["completion"]) == (1, 0, "half an ans")


def test_a_fatal_answer_to_a_correction_leaves_the_row_open_at_its_step(tmp_path: Path) -> None:
    summary, _ = go(
        tmp_path, lambda _, step: WRONG if step == 1 else httpx.Response(401, json={"error": "key"}), **typed()
    )
    assert (summary.exit_code, summary.open) == (3, 1)
    again, provider = go(tmp_path, lambda _row, _step: GOOD, **typed())
    assert (again.ok, again.sent, len(provider.bodies[0]["messages"])) == (1, 1, 3)


# --- looking at it


def test_export_and_show_know_the_typed_column(tmp_path: Path) -> None:
    go(tmp_path, lambda row, step: WRONG if row == 1 and step == 1 else GOOD, 3, **typed())
    export(tmp_path / "out", tmp_path / "all.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [line["parsed"] for line in lines] == [{"label": "yes", "n": 7}] * 3
    export(tmp_path / "out", tmp_path / "all.csv")
    assert '"{""label"":""yes"",""n"":7}"' in (tmp_path / "all.csv").read_text()
    export(tmp_path / "out", tmp_path / "all.parquet")
    assert batchchat.read_output(tmp_path / "out").column("parsed").to_pylist() == [{"label": "yes", "n": 7}] * 3
    (view,) = find_records(tmp_path / "out", row=1)
    assert view.record["parsed"] == {"label": "yes", "n": 7}
    assert view.record["corrections"] == 1
    assert "parsed" not in view.input
    assert view.messages is not None


# --- what cannot be used is refused before anything is sent


@pytest.mark.parametrize(
    ("fields", "place", "words"),
    [
        ({"response": {"schema": {"type": "strin"}}}, "response.schema.type", "is not a JSON Schema"),
        ({"response": {"schema": {"label": "yes"}}}, "response.schema", "has no keyword"),
        ({"response": {"schema": {"properties": {"a": {}, "A": {}}}}}, "response.schema", "differ only in case"),
        ({"response": {"schema": "nothing.json"}}, "response.schema", "cannot be read"),
        (
            {"response": {"schema": LABEL}, "params": {"response_format": {"type": "text"}}},
            "params.response_format",
            "set by",
        ),
        ({"response": {"mode": "prompt"}}, "response.mode", "there is none"),
        ({"response": {"corrections": 1}}, "response.corrections", "there is none"),
        ({"params": {"tools": [{"type": "function", "function": {"name": "f"}}]}}, "parameters", "has no parameters"),
        ({"params": {"tool_choice": "auto"}}, "params.tool_choice", "there are none"),
        (
            {"params": {"tools": [TOOL], "tool_choice": {"function": {"name": "find_oder"}}}},
            "tool_choice",
            "did you mean",
        ),
        (
            {"params": {"max_tokens": 60}, "response": {"truncated": {"retry_with_max_tokens": 60}}},
            "response.truncated.retry_with_max_tokens",
            "more than the 60 tokens",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_first(tmp_path: Path, fields: dict[str, Any], place: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        go(tmp_path, lambda _row, _step: pytest.fail("asked"), **fields)
    assert place in str(error.value)
    assert error.value.exit_code == 2
    assert not (tmp_path / "out").exists()
