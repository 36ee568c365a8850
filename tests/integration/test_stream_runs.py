"""Streamed jobs as a user runs them: what goes out, which columns come of it, and what switching costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import batchchat
from batchchat.cli.json_output import as_json
from batchchat.cli.record_page import render_record
from batchchat.cli.status_page import render_status
from batchchat.cli.summary_page import render_summary
from batchchat.demo import DemoOptions, DemoServer
from batchchat.events import RunSummary
from batchchat.inspection import find_records, status_of
from batchchat.runner.options import RunOptions
from batchchat.store import verify
from tests.integration.jobs import ROOT, make_job, query, run, texts, write_rows

INCLUDE_USAGE = {"stream_options": {"include_usage": True}}
TOKENS = [
    {"token": "ye", "logprob": -0.25, "bytes": [121, 101], "top_logprobs": [{"token": "no", "logprob": -1.5}]},
    {"token": "s", "logprob": -0.5, "bytes": [115], "top_logprobs": []},
]
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


class Provider(httpx.AsyncBaseTransport):
    """Answers `yes` in the way it is asked to, and keeps what came. `answer` takes the place of that."""

    def __init__(self, answer: Callable[[int], httpx.Response] | None = None) -> None:
        self.bodies: list[dict[str, Any]] = []
        self._answer = answer

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.bodies.append(body)
        if self._answer is not None:
            return self._answer(len(self.bodies))
        tokens = TOKENS if body.get("logprobs") else None
        return streamed(tokens) if body.get("stream") else whole(tokens)


def whole(tokens: Any) -> httpx.Response:
    message = {"role": "assistant", "content": "yes", "reasoning_content": "it is one"}
    choice = {"message": message, "finish_reason": "stop", "logprobs": tokens and {"content": tokens}}
    return httpx.Response(200, json={"id": "c", "model": "m", "choices": [choice], "usage": USAGE})


def streamed(tokens: Any, *, cut: bool = False) -> httpx.Response:
    chunks: list[Any] = [{"delta": {"reasoning": "it is one"}}]
    for number, piece in enumerate(("ye", "s")):
        chunks.append({"delta": {"content": piece}, "logprobs": tokens and {"content": tokens[number : number + 1]}})
    if cut:
        chunks = chunks[:2]
    else:
        chunks.append({"delta": {}, "finish_reason": "stop"})
    events: list[dict[str, Any]] = [{"id": "c", "model": "m", "choices": [{"index": 0, **chunk}]} for chunk in chunks]
    if not cut:
        events.append({"choices": [], "usage": USAGE})
    data = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + ("" if cut else "data: [DONE]\n\n")
    return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=data.encode())


def go(folder: Path, provider: Provider, rows: int = 2, **fields: Any) -> RunSummary:
    write_rows(folder / "rows.jsonl", texts(rows))
    fields = {"provider": {"base_url": "http://llm.test/v1"}, **fields}
    options = RunOptions(fresh=fields.pop("fresh", False))
    return batchchat.run(make_job(folder, None, **fields), transport=provider, environ={}, options=options)


def shown(renderable: Any) -> str:
    from rich.console import Console

    console = Console(width=100, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_a_streamed_job_asks_for_streams_and_stores_the_same_answers(tmp_path: Path) -> None:
    found = {}
    for stream in (False, True):
        folder = tmp_path / str(stream)
        folder.mkdir()
        provider = Provider()
        params = {"temperature": 0, "logprobs": True, "top_logprobs": 1, "stream": stream}
        assert go(folder, provider, params=params).ok == 2
        asked = {name: value for name, value in provider.bodies[0].items() if name.startswith("stream")}
        assert asked == ({"stream": True, **INCLUDE_USAGE} if stream else {})
        found[stream] = query(
            folder,
            "select id, custom_id, completion, reasoning, finish_reason, total_tokens, logprobs from data order by id",
        )
        times = query(folder, "select ttft_s >= 0 and ttft_s <= latency_s, output_tokens_per_s from data")
        assert times == ([(True, None)] if stream else [(None, None)]) * 2
    assert found[True] == found[False]
    assert found[True][0][6] == [
        {"token": "ye", "logprob": -0.25, "top": [{"token": "no", "logprob": -1.5}]},
        {"token": "s", "logprob": -0.5, "top": []},
    ]


@pytest.mark.parametrize("first", [False, True])
def test_switching_streaming_on_or_off_asks_nothing_again(tmp_path: Path, first: bool) -> None:
    provider = Provider()
    assert go(tmp_path, provider, params={"stream": first}).sent == 2
    again = go(tmp_path, provider, params={"stream": not first})
    assert (again.ok, again.sent, len(provider.bodies)) == (2, 0, 2)
    assert go(tmp_path, provider, params={}).sent == 0
    assert go(tmp_path, provider, params={"stream": not first}, fresh=True).sent == 2


@pytest.mark.parametrize(
    ("provider", "asked"),
    [
        ({"base_url": "http://llm.test/v1"}, INCLUDE_USAGE),
        ({"base_url": "http://llm.test/v1", "stream_options": False}, {}),
        ({"profile": "mistral", "base_url": "http://llm.test/v1"}, {}),
        ({"profile": "mistral", "base_url": "http://llm.test/v1", "stream_options": True}, INCLUDE_USAGE),
        ({"profile": "scaleway", "base_url": "http://llm.test/v1"}, INCLUDE_USAGE),
    ],
)
def test_usage_is_asked_for_where_the_provider_allows_it(
    tmp_path: Path, provider: dict[str, Any], asked: dict[str, Any]
) -> None:
    server = Provider()
    write_rows(tmp_path / "rows.jsonl", texts(1))
    job = make_job(tmp_path, None, provider=provider, params={"stream": True})
    keys = {"MISTRAL_API_KEY": "canary-" + "5a" * 12, "SCW_SECRET_KEY": "canary-" + "5a" * 12}
    assert batchchat.run(job, transport=server, environ=keys).ok == 1
    assert {name: value for name, value in server.bodies[0].items() if name.startswith("stream_")} == asked


@pytest.mark.parametrize("stream", [False, True])
def test_params_reach_the_provider_as_they_stand(tmp_path: Path, stream: bool) -> None:
    params = {
        "seed": 7,
        "stop": ["END", "\n\n"],
        "reasoning_effort": "low",
        "logprobs": True,
        "top_logprobs": "{{ 1 + id }}",
        "stream": stream,
    }
    provider = Provider()
    assert go(tmp_path, provider, params=params).ok == 2
    for number, body in enumerate(sorted(provider.bodies, key=lambda body: int(body["top_logprobs"]))):
        sent = {name: body.get(name) for name in params}
        assert sent == {**params, "top_logprobs": 1 + number, "stream": True if stream else None}


def test_log_probabilities_that_are_not_there_are_null(tmp_path: Path) -> None:
    odd = {"content": [{"token": 7, "logprob": "x"}, "odd", {"token": "s", "logprob": True, "top_logprobs": 7}]}

    def answer(_number: int) -> httpx.Response:
        choice = {"message": {"content": "yes"}, "finish_reason": "stop", "logprobs": odd}
        return httpx.Response(200, json={"choices": [choice]})

    assert go(tmp_path, Provider(answer), 1, params={"logprobs": True}).ok == 1
    assert query(tmp_path, "select logprobs from data") == [
        ([{"token": None, "logprob": None, "top": []}, {"token": "s", "logprob": None, "top": []}],)
    ]


def test_a_failed_stream_has_its_text_beside_the_failure_and_its_times(tmp_path: Path) -> None:
    summary = go(
        tmp_path,
        Provider(lambda _number: streamed(None, cut=True)),
        1,
        params={"stream": True},
        retry={"attempts": 1},
    )
    assert (summary.exit_code, summary.failed, summary.streamed) == (1, 1, None)
    found = query(tmp_path, "select status, error_kind, completion, reasoning, ttft_s >= 0, http_status from data")
    assert found == [("failed", "protocol", "ye", "it is one", True, 200)]


def test_the_times_of_the_answer_are_those_of_its_last_attempt(tmp_path: Path) -> None:
    answers = [lambda: streamed(None, cut=True), lambda: whole(None)]
    provider = Provider(lambda number: answers[number - 1]())
    assert go(tmp_path, provider, 1, params={"stream": True}).ok == 1
    assert query(tmp_path, "select completion, attempts, ttft_s from data") == [("yes", 2, None)]


def test_streams_can_be_corrected(tmp_path: Path) -> None:
    def answer(number: int) -> httpx.Response:
        content = streamed(None).content
        if number == 2:
            content = content.replace(b'"ye"', b'"1"').replace(b'"s"', b'"7"')
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=content)

    provider = Provider(answer)
    assert go(tmp_path, provider, 1, params={"stream": True}, response={"schema": {"type": "integer"}}).ok == 1
    assert all(body["stream"] for body in provider.bodies)
    assert query(tmp_path, "select parsed, corrections, ttft_s is not null from data") == [(17, 1, True)]


def test_the_medians_stand_in_summary_and_status(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(30))
    with DemoServer(DemoOptions(latency_s=0.05, chunk_chars=2)) as demo:
        job = make_job(tmp_path, demo.base_url, params={"stream": True}, limits={"concurrency": 30})
        summary = run(job)
    assert summary.ok == 30
    exact = query(tmp_path, "select quantile_disc(ttft_s, 0.5), quantile_disc(output_tokens_per_s, 0.5) from data")[0]
    for streamed_ in (summary.streamed, status_of(tmp_path / "out").streamed):
        assert streamed_ is not None
        assert streamed_.median_ttft_s == pytest.approx(exact[0], rel=0.011)
        assert streamed_.median_output_tokens_per_s == pytest.approx(exact[1], rel=0.011)
    assert as_json(summary)["streamed"]["median_ttft_s"] == summary.streamed.median_ttft_s  # type: ignore[union-attr]
    for text in (shown(render_summary(summary)), shown(render_status(status_of(tmp_path / "out")))):
        assert "median time to the first token" in text
        assert "median output tokens/s" in text
    assert verify(tmp_path / "out").ok


def test_what_is_not_streamed_says_nothing_about_it(tmp_path: Path) -> None:
    summary = go(tmp_path, Provider())
    assert summary.streamed is None
    assert status_of(tmp_path / "out").streamed is None
    assert "first token" not in shown(render_summary(summary)) + shown(render_status(status_of(tmp_path / "out")))


def test_a_record_shows_log_probabilities_in_short(tmp_path: Path) -> None:
    go(tmp_path, Provider(), 1, params={"logprobs": True})
    text = shown(render_record(next(find_records(tmp_path / "out"))))
    assert "of 2 tokens, -0.375 on average" in text


def test_the_sample_job_tells_how_soon_and_how_fast_answers_came(tmp_path: Path) -> None:
    pace = DemoOptions(latency_s=0, ttft_s=0.03, tokens_per_s=2000.0, faults={"stream_cut": 0.1, "stream_error": 0.05})
    with DemoServer(pace) as demo:
        job = batchchat.load_job(
            ROOT / "jobs" / "stream-answers.yaml",
            overrides=[f"provider.base_url={demo.base_url}", "limits.concurrency=60"],
            output=str(tmp_path / "out"),
        )
        summary = batchchat.run(job, environ={})
        stats = demo.stats()
    assert (summary.exit_code, summary.ok) == (0, 60)
    assert summary.retries >= sum(stats.faults.values()) > 0
    assert (stats.answered, stats.answered_again) == (60, 0)
    (told,) = query(
        tmp_path,
        "select count(*), min(ttft_s) >= 0.03 * 0.6, bool_and(ttft_s < latency_s), min(output_tokens_per_s) > 0,"
        " bool_and(reasoning is not null), bool_and(len(logprobs) > 3),"
        " bool_and(completion_tokens > 3) from data where status = 'ok'",
    )
    assert told == (60, True, True, True, True, True, True)
    written = query(tmp_path, "select completion, logprobs from data")
    assert all("".join(entry["token"] for entry in logprobs) == completion for completion, logprobs in written)
