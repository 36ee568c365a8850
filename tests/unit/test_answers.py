"""Whatever a server answers becomes the right record: one run, a row for each answer, read back from Parquet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel, field_validator, model_validator

from batchchat.client.finish import Finish, judge_finish
from batchchat.events import RunSummary
from batchchat.job import load_job
from batchchat.runner.run import run_job

pytestmark = pytest.mark.usefixtures("quick_retries")
SCHEMA = {
    "type": "object",
    "properties": {"label": {"type": "string", "enum": ["spam", "ham"]}},
    "required": ["label"],
    "additionalProperties": False,
}
USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}


def chat(content: Any, finish: Any = "stop", *, message: dict[str, Any] | None = None, **choice: Any) -> dict[str, Any]:
    said = {"role": "assistant", "content": content, **(message or {})}
    choices = [{"index": 0, "finish_reason": finish, "message": said, **choice}]
    return {"id": "x", "object": "chat.completion", "model": "m", "choices": choices, "usage": USAGE}


def problem(message: str, *, code: Any = None, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "code": code, **fields}}


def stream(*deltas: dict[str, Any], finish: Any = "stop", last: dict[str, Any] | None = None) -> str:
    chunks: list[dict[str, Any]] = [
        {"id": "s", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
    ]
    chunks.append(
        {"id": "s", "model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": finish}], **(last or {})}
    )
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


Answer = tuple[int, Any]
Case = tuple[str, Answer, dict[str, Any]]

PLAIN: list[Case] = [
    ("Mistral's bound", (200, chat("half", "model_length")), {"error_kind": "truncated"}),
    ("Gemini's bound", (200, chat("half", "MAX_TOKENS")), {"error_kind": "truncated"}),
    ("with spaces", (200, chat("half", "Max Tokens")), {"error_kind": "truncated"}),
    ("Anthropic's window", (200, chat("half", "model_context_window_exceeded")), {"error_kind": "truncated"}),
    ("Gemini's filter", (200, chat("half", "PROHIBITED_CONTENT")), {"error_kind": "content_filter"}),
    ("Cohere's filter", (200, chat("half", "ERROR_TOXIC")), {"error_kind": "content_filter"}),
    ("Zhipu's filter", (200, chat("half", "sensitive")), {"error_kind": "content_filter"}),
    ("vLLM's abort", (200, chat("half", "abort")), {"error_kind": "server"}),
    ("a broken network", (200, chat("half", "Network-Error")), {"error_kind": "server"}),
    ("an unknown word", (200, chat("whole", "gizmo")), {"status": "ok", "completion": "whole"}),
    ("the end of a turn", (200, chat("whole", "END_TURN")), {"status": "ok"}),
    ("no word", (200, chat("whole", None)), {"status": "ok"}),
    ("reasoning closed only", (200, chat("2+2 is 4.\n</think>\n4")), {"completion": "4", "reasoning": "2+2 is 4."}),
    ("reasoning in tags", (200, chat("<thinking>hm</thinking>yes")), {"completion": "yes", "reasoning": "hm"}),
    (
        "channels",
        (200, chat("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>yes")),
        {"completion": "yes", "reasoning": "hm"},
    ),
    ("empty", (200, chat("")), {"error_kind": "protocol"}),
    ("blank", (200, chat(" \n\t")), {"error_kind": "protocol"}),
    ("null", (200, chat(None)), {"error_kind": "protocol"}),
    ("only reasoning", (200, chat("", message={"reasoning_content": "hm"})), {"error_kind": "protocol"}),
    ("no choices", (200, {**chat("x"), "choices": []}), {"error_kind": "protocol"}),
    (
        "an error in a choice",
        (200, chat("par", None, error={"code": 502, "message": "upstream went away"})),
        {"error_kind": "server", "has": "upstream went away"},
    ),
    (
        "a filter in a choice",
        (200, chat("par", "error", error={"code": 403, "message": "flagged by moderation"})),
        {"error_kind": "content_filter"},
    ),
    (
        "the words of the provider behind",
        (400, problem("Provider returned error", code=400, metadata={"raw": '{"error":{"message":"one image only"}}'})),
        {"error_kind": "invalid_request", "has": "one image only"},
    ),
    (
        "a list of errors",
        (400, {"errors": [{"message": "the prompt is too long", "code": "context_length_exceeded"}]}),
        {"error_kind": "invalid_request", "has": "the prompt is too long"},
    ),
    (
        "a detail",
        (422, {"detail": [{"loc": ["body", "stop"], "msg": "stop must be a list", "type": "value_error"}]}),
        {"error_kind": "invalid_request", "has": "stop must be a list"},
    ),
    (
        "flagged",
        (403, problem("m requires moderation. Your input was flagged", code=403)),
        {"error_kind": "content_filter"},
    ),
    ("Azure's filter", (400, problem("filtered", code="content_filter")), {"error_kind": "content_filter"}),
    (
        "DashScope's filter",
        (400, problem("bad input", code="data_inspection_failed")),
        {"error_kind": "content_filter"},
    ),
    (
        "a call without words",
        (
            200,
            chat(
                "",
                "tool_calls",
                message={"tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            ),
        ),
        {"status": "ok"},
    ),
    ("whole", (200, chat("fine")), {"status": "ok", "completion": "fine", "prompt_tokens": 9}),
]

TYPED: list[Case] = [
    (
        "a label that reasoning rejected",
        (200, chat('Perhaps {"label": "ham"}? No.\n</think>\nspam it is')),
        {"error_kind": "invalid_output"},
    ),
    (
        "behind reasoning",
        (200, chat('Is it {"label": "ham"}? No.</think>{"label": "spam"}')),
        {"parsed": {"label": "spam"}},
    ),
    ("a byte order mark", (200, chat('\ufeff{"label": "spam"}')), {"parsed": {"label": "spam"}}),
    (
        "the server's own check",
        (400, problem("Failed to generate JSON", code="json_validate_failed", failed_generation='{"label": "sp')),
        {"error_kind": "invalid_output", "completion": '{"label": "sp'},
    ),
    ("whole", (200, chat('{"label": "ham"}')), {"parsed": {"label": "ham"}}),
]

STREAMED: list[Case] = [
    ("cut", (200, stream({"content": "ha"}, {"content": "lf"}, finish="MAX_TOKENS")), {"error_kind": "truncated"}),
    ("filtered", (200, stream({"content": "half"}, finish="SAFETY")), {"error_kind": "content_filter"}),
    ("broken", (200, stream({"content": "half"}, finish="error")), {"error_kind": "server"}),
    ("empty", (200, stream({"content": ""})), {"error_kind": "protocol"}),
    ("blank", (200, stream({"content": " "}, {"content": "\n"})), {"error_kind": "protocol"}),
    (
        "reasoning closed only",
        (200, stream({"content": "hm\n</th"}, {"content": "ink>\n4"})),
        {"completion": "4", "reasoning": "hm"},
    ),
    (
        "usage of a vendor",
        (200, stream({"content": "yes"}, last={"x_groq": {"id": "r", "usage": USAGE}})),
        {"status": "ok", "prompt_tokens": 9, "completion_tokens": 5},
    ),
    ("an unknown word", (200, stream({"content": "yes"}, finish="gizmo")), {"status": "ok"}),
]


def run(
    folder: Path, answers: list[Callable[[int], Answer]], retry: dict[str, Any] | None = None, **fields: Any
) -> tuple[RunSummary, list[dict[str, Any]]]:
    """Run a job whose row n is answered by `answers[n](time)`; return its summary and the records in row order."""
    asked = [0] * len(answers)

    class Server(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            body = json.loads(await request.aread())
            number = int(body["messages"][0]["content"])
            asked[number] += 1
            status, said = answers[number](asked[number])
            if isinstance(said, str):
                return httpx.Response(status, headers={"content-type": "text/event-stream"}, content=said.encode())
            return httpx.Response(status, json=said)

    (folder / "rows.jsonl").write_text("".join(f'{{"n": {number}}}\n' for number in range(len(answers))))
    job = {
        "name": "answers",
        "input": "rows.jsonl",
        "output": "out",
        "provider": {"base_url": "http://server.invalid/v1"},
        "model": "m",
        "messages": [{"role": "user", "content": "{{ n }}"}],
        "limits": {"concurrency": 1},
        "retry": {"attempts": 1, **(retry or {})},
        **fields,
    }
    (folder / "job.yaml").write_text(json.dumps(job))
    loaded = load_job(folder / "job.yaml")

    async def main() -> RunSummary:
        return await run_job(loaded, transport=Server(), environ={"OPENAI_API_KEY": "k"})

    summary = anyio.run(main)
    records = [
        record
        for part in sorted((folder / "out" / "data").glob("*.parquet"))
        for record in pq.read_table(part).to_pylist()
    ]
    return summary, sorted(records, key=lambda record: int(record["row_index"]))


def always(answer: Answer) -> Callable[[int], Answer]:
    return lambda _time: answer


@pytest.mark.parametrize(
    ("cases", "fields"),
    [
        (PLAIN, {}),
        (TYPED, {"response": {"schema": SCHEMA, "corrections": 0}}),
        (STREAMED, {"params": {"stream": True}}),
    ],
    ids=["plain", "typed", "streamed"],
)
def test_each_answer_becomes_the_record_that_it_is(tmp_path: Path, cases: list[Case], fields: dict[str, Any]) -> None:
    # Good rows between them: what a server says of one row is about that row.
    good = (200, stream({"content": "good"})) if "params" in fields else (200, chat('{"label": "ham"}'))
    answers = [always(answer) for _, answer, _ in cases]
    mixed = [each for answer in answers for each in (answer, always(good))]
    summary, records = run(tmp_path, mixed, **fields)
    assert summary.exit_code == 1, summary.reason
    assert len(records) == len(mixed)
    assert all(record["status"] == "ok" for record in records[1::2])
    wrong = {}
    for (name, _, want), record in zip(cases, records[::2], strict=True):
        words = want.get("has", "")
        got = {key: record.get(key) for key in want if key != "has"}
        if got != {key: value for key, value in want.items() if key != "has"} or words not in (
            record["error_message"] or ""
        ):
            wrong[name] = (got, record["error_message"])
    assert not wrong
    unknown = any("gizmo" in str(answer) for _, answer, _ in cases)
    assert any("gizmo" in warning for warning in summary.warnings) is unknown


def test_rows_that_are_moderated_side_by_side_never_stop_a_run(tmp_path: Path) -> None:
    refusals = [
        (
            403,
            problem(
                "m requires moderation. Your input was flagged for violence",
                code=403,
                metadata={"reasons": ["violence"]},
            ),
        ),
        (400, problem("filtered by the content management policy", code="content_filter")),
        (400, problem("inappropriate content", code="data_inspection_failed")),
        (451, problem("blocked by the content policy", code="moderation_blocked")),
    ]
    rows = [always(refusals[number % 4]) for number in range(20)] + [always((200, chat("fine")))] * 20
    summary, records = run(tmp_path, rows, limits={"concurrency": 8})
    assert summary.exit_code == 1, summary.reason
    assert [record["error_kind"] for record in records] == ["content_filter"] * 20 + [None] * 20


def test_a_refusal_that_cannot_be_true_is_tried_again_before_it_is_believed(tmp_path: Path) -> None:
    lost = (400, problem("We could not parse the JSON body of your request."))
    rows = [lambda time: lost if time == 1 else (200, chat("fine")), always(lost), always((200, chat("fine")))]
    _, records = run(tmp_path, rows, retry={"attempts": 6})
    assert [record["status"] for record in records] == ["ok", "failed", "ok"]
    assert records[1]["error_kind"] == "invalid_request"
    assert [record["attempts"] for record in records] == [2, 3, 1]


class Fair(BaseModel):
    """Low is below high, and neither is 13."""

    low: int
    high: int

    @field_validator("low", "high")
    @classmethod
    def _lucky(cls, value: int) -> int:
        if value == 13:
            raise ValueError("13 is not wanted")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Fair:
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


def test_the_validators_of_a_pydantic_model_run_and_what_they_reject_is_corrected(tmp_path: Path) -> None:
    texts = ['{"low": 1, "high": 2}', '{"low": 3, "high": 2}', '{"low": 13, "high": 20}']

    class Asked:
        def __init__(self, text: str) -> None:
            self.text = text

        def __call__(self, time: int) -> Answer:
            return 200, chat(self.text if time == 1 or "13" in self.text else '{"low": 2, "high": 3}')

    _, records = run(
        tmp_path,
        [Asked(text) for text in texts],
        response={"schema": "tests.unit.test_answers:Fair", "corrections": 1},
    )
    assert [record["status"] for record in records] == ["ok", "ok", "failed"], records
    assert [record["parsed"] for record in records[:2]] == [{"low": 1, "high": 2}, {"low": 2, "high": 3}]
    assert records[2]["error_kind"] == "invalid_output"
    assert "13 is not wanted" in records[2]["error_message"]


def test_a_wrong_address_is_named_with_what_is_missing_in_it(tmp_path: Path) -> None:
    _, (record,) = run(tmp_path, [always((404, "Not Found"))], provider={"base_url": "http://server.invalid"})
    assert "http://server.invalid/chat/completions" in record["error_message"]
    assert "/v1" in record["error_message"]


@pytest.mark.parametrize(
    ("word", "finish"),
    [
        ("STOP", Finish.WHOLE),
        ("finish_reason_stop", Finish.WHOLE),
        ("eos_token", Finish.WHOLE),
        ("FINISH_REASON_UNSPECIFIED", Finish.WHOLE),
        ("length", Finish.CUT),
        ("max_output_tokens", Finish.CUT),
        ("ERROR_LIMIT", Finish.CUT),
        ("IMAGE_SAFETY", Finish.FILTERED),
        ("guardrail_intervened", Finish.FILTERED),
        ("refusal", Finish.REFUSED),
        ("MALFORMED_FUNCTION_CALL", Finish.MISSAMPLED),
        ("insufficient_system_resource", Finish.BROKEN),
        ("cancelled", Finish.BROKEN),
        ("gizmo", Finish.UNKNOWN),
    ],
)
def test_the_words_of_servers_for_an_end(word: str, finish: Finish) -> None:
    assert judge_finish(word) is finish
