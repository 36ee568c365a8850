"""OpenAI batch files: run as they are, and their answers given back as a batch API gives them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from pydantic import BaseModel, ConfigDict

import batchchat
from batchchat.demo import DemoOptions, DemoServer
from batchchat.errors import JobError, UsageError
from batchchat.export import export
from batchchat.export.batch import COLUMNS, line
from batchchat.inspection import find_records
from batchchat.job import Job, load_job, validate_job
from batchchat.planning import plan_job
from tests.integration.jobs import ROOT, make_job, query, run, texts, write_rows

MODEL = "llama-3.1-8b-instruct"
USER = [{"role": "user", "content": "Labels: yes, no\nIt says yes."}]


@pytest.fixture
def demo() -> Iterator[DemoServer]:
    with DemoServer(DemoOptions(latency_s=0)) as server:
        yield server


def request(number: int, **body: Any) -> dict[str, Any]:
    return {
        "custom_id": f"request-{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": MODEL, "messages": USER, "max_tokens": 20, **body},
    }


def requests(count: int) -> list[dict[str, Any]]:
    return [request(number, messages=[{"role": "user", "content": f"Say {number}."}]) for number in range(count)]


def batch_job(folder: Path, base_url: str | None, **fields: Any) -> Job:
    return validate_job(
        {
            "name": "test",
            "input": {"path": str(folder / "requests.jsonl"), "format": "openai-batch"},
            "output": {"path": str(folder / "out")},
            "provider": {"profile": "demo", "base_url": base_url} if base_url else "demo",
            **fields,
        }
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


def results(folder: Path, **options: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Export, and read the lines of the output and of the errors, each checked to have the official shape."""
    target = folder / "results.jsonl"
    export(folder / "out", target, format="openai-batch", force=True, **options)
    errors = folder / "results.errors.jsonl"
    found = read_lines(target), read_lines(errors) if errors.exists() else []
    for each in (*found[0], *found[1]):
        OutputLine.model_validate(each)
    return found


# --- the official shapes, nothing more and nothing less


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Function(Strict):
    name: str
    arguments: str


class ToolCall(Strict):
    id: str
    type: Literal["function"]
    function: Function


class Message(Strict):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: list[ToolCall] = []
    reasoning_content: str | None = None


class Choice(Strict):
    index: Literal[0]
    message: Message
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


class PromptDetails(Strict):
    cached_tokens: int


class CompletionDetails(Strict):
    reasoning_tokens: int


class Usage(Strict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None


class Completion(Strict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    system_fingerprint: str | None = None
    service_tier: str | None = None
    usage: Usage | None = None


class ErrorBody(Strict):
    message: str
    type: str
    param: None
    code: str


class Failed(Strict):
    error: ErrorBody


class Response(Strict):
    status_code: int
    request_id: str
    body: Completion | Failed


class Error(Strict):
    code: str
    message: str


class OutputLine(Strict):
    id: str
    custom_id: str
    response: Response | None
    error: Error | None


# --- runs


def test_lines_are_sent_as_they_are_and_their_ids_come_back(tmp_path: Path) -> None:
    given = requests(6)
    given[2]["body"] |= {"temperature": 0.5, "stop": ["x"], "metadata": {"team": "a"}}
    write_rows(tmp_path / "requests.jsonl", given)
    bodies: list[dict[str, Any]] = []

    def answer(asked: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(asked.content))
        return httpx.Response(200, json={"choices": [{"message": {"content": "ok"}, "finish_reason": "stop"}]})

    summary = batchchat.run(batch_job(tmp_path, None), transport=httpx.MockTransport(answer), environ={})
    assert (summary.exit_code, summary.ok, summary.model) == (0, 6, MODEL)
    by_text = {body["messages"][0]["content"]: body for body in bodies}
    assert [by_text[f"Say {number}."] for number in range(6)] == [each["body"] for each in given]
    done, failed = results(tmp_path)
    assert [each["custom_id"] for each in done] == [each["custom_id"] for each in given]
    assert failed == []
    assert done[0]["response"]["body"]["choices"][0]["message"]["content"] == "ok"
    assert "usage" not in done[0]["response"]["body"]
    assert done[0]["error"] is None


def test_a_file_is_resumed_like_any_input(tmp_path: Path, demo: DemoServer) -> None:
    given = requests(10)
    write_rows(tmp_path / "requests.jsonl", given)
    job = batch_job(tmp_path, demo.base_url)
    assert (run(job, limit=4).ok, run(job).sent, run(job).sent) == (4, 6, 0)
    given[3]["body"]["max_tokens"] = 5
    write_rows(tmp_path / "requests.jsonl", [request(99), *given])
    assert plan_job(job).requests == 2
    assert (run(job).sent, demo.stats().requests) == (2, 12)
    found = query(tmp_path, "select key, input_custom_id, body->>'$.max_tokens' from data where key = 'request-3'")
    assert found == [("request-3", "request-3", "5")]
    shown = {view.record["key"]: view.messages for view in find_records(tmp_path / "out")}
    assert shown["request-3"] == given[3]["body"]["messages"]


def test_answers_of_every_kind_keep_the_official_shape(tmp_path: Path, demo: DemoServer) -> None:
    tool = {"type": "function", "function": {"name": "sort", "parameters": {"type": "object", "properties": {}}}}
    given = [
        request(0),
        request(1, tools=[tool], tool_choice={"type": "function", "function": {"name": "sort"}}),
        request(2, reasoning_effort="low"),
        request(3, response_format={"type": "json_object"}),
        request(4, logprobs=True),
        request(5, messages=[{"role": "user", "content": "Tell me a long story, please."}], max_tokens=2),
    ]
    write_rows(tmp_path / "requests.jsonl", given)
    summary = run(batch_job(tmp_path, demo.base_url))
    assert (summary.ok, summary.failed) == (5, 1)
    done, failed = results(tmp_path)
    assert [each["custom_id"] for each in done] == [f"request-{number}" for number in range(5)]
    bodies = [each["response"]["body"] for each in done]
    assert bodies[0]["usage"]["total_tokens"] > 0
    assert bodies[1]["choices"][0]["finish_reason"] == "tool_calls"
    assert bodies[1]["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "sort"
    assert bodies[2]["choices"][0]["message"]["reasoning_content"]
    assert json.loads(bodies[3]["choices"][0]["message"]["content"])
    tokens = bodies[4]["choices"][0]["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == bodies[4]["choices"][0]["message"]["content"]
    assert [(each["custom_id"], each["response"], each["error"]["code"]) for each in failed] == [
        ("request-5", None, "truncated")
    ]
    # What a batch API calls an answer is one here too, where the job says so.
    kept = run(batch_job(tmp_path, demo.base_url, response={"truncated": "keep"}, retry={"failed": "all"}))
    assert (kept.sent, kept.ok) == (1, 6)
    done, failed = results(tmp_path)
    assert (len(done), failed) == (6, [])
    assert not (tmp_path / "results.errors.jsonl").exists()
    assert done[5]["response"]["body"]["choices"][0]["finish_reason"] == "length"


def test_lines_that_no_batch_takes_are_told_under_errors(tmp_path: Path, demo: DemoServer) -> None:
    bad: list[dict[str, Any]] = [
        {**request(1), "method": "GET"},
        {**request(2), "url": "/v1/embeddings"},
        {"custom_id": "request-3", "method": "POST", "url": "/v1/chat/completions"},
        request(4, stream=True),
        request(5, n=2),
        request(6, model="another-model"),
        request(7, frequency_penalty=1),
    ]
    write_rows(tmp_path / "requests.jsonl", [request(0), *bad])
    summary = run(batch_job(tmp_path, demo.base_url))
    assert (summary.exit_code, summary.ok, summary.failed, summary.sent) == (1, 1, 7, 1)
    assert query(tmp_path, "select distinct error_kind from data where status = 'failed'") == [("input",)]
    done, failed = results(tmp_path)
    assert [each["custom_id"] for each in done] == ["request-0"]
    assert [each["custom_id"] for each in failed] == [f"request-{number}" for number in range(1, 8)]
    assert {(each["response"], each["error"]["code"]) for each in failed} == {(None, "input")}
    # What the job says goes over the lines: the model, and a param that the provider does not know.
    mended = run(batch_job(tmp_path, demo.base_url, model=MODEL, params={"frequency_penalty": None}))
    assert (mended.sent, mended.ok, mended.failed) == (2, 3, 5)


def test_log_probabilities_take_the_form_of_the_api() -> None:
    row: dict[str, Any] = dict.fromkeys(COLUMNS) | {"custom_id": "ab" * 16, "status": "ok", "completion": "é"}
    row["logprobs"] = [{"token": "é", "logprob": -0.25, "top": [{"token": "e", "logprob": -1.5}]}]
    made = line(row)
    OutputLine.model_validate(made)
    assert made["response"]["body"]["choices"][0]["logprobs"] == {
        "content": [
            {
                "token": "é",
                "logprob": -0.25,
                "bytes": [0xC3, 0xA9],
                "top_logprobs": [{"token": "e", "logprob": -1.5, "bytes": [0x65]}],
            }
        ],
        "refusal": None,
    }


def test_a_refused_request_is_told_as_the_response_that_it_had(tmp_path: Path) -> None:
    write_rows(tmp_path / "requests.jsonl", requests(10))
    with DemoServer(DemoOptions(latency_s=0, faults={"error_400": 0.3})) as demo:
        summary = run(batch_job(tmp_path, demo.base_url))
    assert 0 < summary.failed < 10
    done, failed = results(tmp_path)
    assert (len(done), len(failed)) == (summary.ok, summary.failed)
    for each in failed:
        assert each["error"] is None
        assert each["response"]["status_code"] == 400
        assert each["response"]["body"]["error"]["type"] == "invalid_request_error"
        assert each["response"]["body"]["error"]["code"] == "invalid_request"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([request(1), request(1)], "'request-1' in row 0 and again in row 1"),
        ([{"method": "POST"}], "the key custom_id is missing in row 0"),
        (
            [{**request(1), "url": "/v1/embeddings"}],
            "url must be /v1/chat/completions, or left out, not '/v1/embeddings'",
        ),
        ([request(1, stream=True)], "body.stream must be false"),
        ([request(1, model=None)], "none of the first 1 lines of the input names one"),
    ],
)
def test_a_file_that_cannot_be_run_is_refused_before_anything_is_sent(
    tmp_path: Path, demo: DemoServer, lines: list[dict[str, Any]], told: str
) -> None:
    write_rows(tmp_path / "requests.jsonl", lines)
    with pytest.raises(JobError) as caught:
        run(batch_job(tmp_path, demo.base_url))
    assert told in caught.value.message
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"messages": USER}, "messages: the lines of a batch file hold their own messages: leave messages out"),
        ({"input": {"path": "x", "format": "openai-batch", "key": "id"}}, "its custom_id: leave key out"),
        ({"input": {"path": "x", "format": "openai-batch", "types": {"a": "json"}}}, "leave types out"),
        ({"params": {"n": 2}}, "`samples: N` of the job asks each row N times"),
        ({"images": {"max_bytes": 5}}, "no message shows the image of a column"),
    ],
)
def test_a_job_that_contradicts_its_lines_is_refused(
    tmp_path: Path, demo: DemoServer, fields: dict[str, Any], told: str
) -> None:
    write_rows(tmp_path / "requests.jsonl", [request(1)])
    with pytest.raises(JobError) as caught:
        run(batch_job(tmp_path, demo.base_url, **fields))
    assert told in caught.value.message


def test_model_and_messages_stay_required_elsewhere(tmp_path: Path) -> None:
    data = {"name": "x", "input": "rows.jsonl", "output": "out", "provider": "demo"}
    with pytest.raises(JobError) as caught:
        validate_job(data)
    assert "model: is missing" in caught.value.message
    assert "messages: is missing" in caught.value.message


def test_samples_of_a_line_have_no_place_in_a_batch(tmp_path: Path, demo: DemoServer) -> None:
    write_rows(tmp_path / "requests.jsonl", requests(2))
    assert run(batch_job(tmp_path, demo.base_url, samples=2, params={"seed": "{{ sample_index }}"})).ok == 4
    with pytest.raises(UsageError, match="each row has 2 answers"):
        results(tmp_path)
    assert export(tmp_path / "out", tmp_path / "all.jsonl").rows == 4


def test_a_schema_of_the_job_holds_for_every_line(tmp_path: Path, demo: DemoServer) -> None:
    write_rows(tmp_path / "requests.jsonl", requests(3))
    schema = {
        "type": "object",
        "properties": {"label": {"enum": ["yes", "no"]}},
        "required": ["label"],
        "additionalProperties": False,
    }
    assert run(batch_job(tmp_path, demo.base_url, response={"schema": schema}, params={"max_tokens": 100})).ok == 3
    assert query(tmp_path, "select count(parsed.label) from data") == [(3,)]


def test_any_output_can_be_exported_as_a_batch(tmp_path: Path, demo: DemoServer) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(4))
    run(make_job(tmp_path, demo.base_url), limit=3)
    target = tmp_path / "results.jsonl"
    told = export(tmp_path / "out", target, format="openai-batch")
    assert (told.rows, told.missing, told.failed, told.files) == (3, 1, 0, (target,))
    assert [each["custom_id"] for each in results(tmp_path)[0]] == ["0", "1", "2"]
    (tmp_path / "results.errors.jsonl").write_text("mine\n", encoding="utf-8")
    target.unlink()
    with pytest.raises(UsageError, match=r"results\.errors\.jsonl exists already"):
        export(tmp_path / "out", target, format="openai-batch")
    # Without a key, the identity of the request is its custom_id.
    job = make_job(tmp_path, demo.base_url, input=str(tmp_path / "rows.jsonl"), output=str(tmp_path / "o2"))
    run(job)
    export(tmp_path / "o2", target, format="openai-batch", force=True)
    ids = batchchat.read_output(tmp_path / "o2", columns=["custom_id"]).column("custom_id").to_pylist()
    assert [each["custom_id"] for each in read_lines(target)] == ids


def test_the_sample_file_is_one_that_every_batch_api_takes() -> None:
    lines = read_lines(ROOT / "sample_data" / "requests.jsonl")
    assert len({each["custom_id"] for each in lines}) == len(lines) >= 10
    assert len({each["body"]["model"] for each in lines}) == 1
    for each in lines:
        assert list(each) == ["custom_id", "method", "url", "body"]
        assert (each["method"], each["url"]) == ("POST", "/v1/chat/completions")
        assert each["body"].keys() >= {"model", "messages"}
        known = {"temperature", "max_tokens", "seed", "stop", "tools", "tool_choice", "response_format"}
        assert each["body"].keys() <= {"model", "messages"} | known
        assert all(message["role"] in {"system", "user", "assistant"} for message in each["body"]["messages"])
    assert load_job(ROOT / "jobs" / "batch-requests.yaml").input.format == "openai-batch"
