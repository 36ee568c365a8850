"""Whole runs on a virtual clock: outages, limits, deadlines and stops, hours in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import trio.testing

from batchchat.demo import DemoOptions
from batchchat.demo.app import create_app
from batchchat.engines.refusals import TRIAL_REQUESTS
from batchchat.events import Event, RunSummary, Snapshot
from batchchat.runner.control import StopRequest
from batchchat.runner.options import RunOptions
from batchchat.runner.run import run_job
from tests.integration.jobs import make_job, texts, write_rows
from tests.thorough import one_in

Handler = Callable[[httpx.Request], Awaitable[httpx.Response]]


async def inline(function: Callable[..., Any], *args: Any, abandon: bool = False) -> Any:
    """Blocking work in line: a thread's work does not hold the virtual clock back."""
    del abandon
    return function(*args)


class Provider(httpx.AsyncBaseTransport):
    """A provider whose answers a test makes up; it remembers when each request came."""

    def __init__(self, handler: Handler) -> None:
        self.times: list[float] = []
        self._handler = handler

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.times.append(anyio.current_time())
        return await self._handler(request)


def answer(text: str = "yes") -> httpx.Response:
    usage = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
    choice = {"message": {"content": text}, "finish_reason": "stop"}
    return httpx.Response(200, json={"choices": [choice], "usage": usage, "model": "m"})


def simulate(
    folder: Path,
    provider: Provider,
    rows: int,
    /,
    *,
    stop: StopRequest | None = None,
    options: RunOptions | None = None,
    lines: list[dict[str, Any]] | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
    **fields: Any,
) -> tuple[RunSummary, float, list[Event]]:
    """Run a job of so many rows, or of these; returns the summary, the virtual seconds it took and its events."""
    write_rows(folder / "rows.jsonl", texts(rows) if lines is None else lines)
    job = make_job(folder, None, **fields)
    events: list[Event] = []

    async def main() -> tuple[RunSummary, float]:
        started = anyio.current_time()
        summary = await run_job(
            job, transport=provider, offload=inline, environ={}, seed=1, listener=events.append, stop=stop,
            options=options or RunOptions(), on_snapshot=on_snapshot,
            # These runs last minutes to hours: four snapshots a second would be most of the work.
            tick_s=1.0 if on_snapshot is None else 0.25,
        )  # fmt: skip
        return summary, anyio.current_time() - started

    clock = trio.testing.MockClock(autojump_threshold=0)
    summary, elapsed = anyio.run(main, backend="trio", backend_options={"clock": clock})
    return summary, elapsed, events


def row_of(request: httpx.Request) -> int:
    return int(json.loads(request.content)["messages"][0]["content"].rsplit(" ", 1)[1])


def test_a_minutes_outage_fails_no_row_and_sends_a_handful_of_probes(tmp_path: Path) -> None:
    async def handler(_request: httpx.Request) -> httpx.Response:
        await anyio.sleep(0.5)
        if 5 <= anyio.current_time() - provider.times[0] < 65:
            return httpx.Response(503, json={"error": "down"})
        return answer()

    provider = Provider(handler)
    summary, elapsed, events = simulate(tmp_path, provider, 400, limits={"concurrency": 16})
    assert (summary.exit_code, summary.ok) == (0, 400)
    during = [time for time in provider.times if 5 <= time - provider.times[0] < 64]
    # Those in flight when it began, and then probes only.
    assert len(during) <= 16 + 20
    assert elapsed < 65 + 12 + 20
    assert {"breaker_opened", "breaker_closed"} <= {event.name for event in events}


@pytest.mark.thorough
def test_an_outage_longer_than_allowed_ends_the_run_with_everything_open(tmp_path: Path) -> None:
    async def handler(_request: httpx.Request) -> httpx.Response:
        await anyio.sleep(0.1)
        if anyio.current_time() - provider.times[0] > 3:
            raise httpx.ConnectError("refused")
        return answer()

    provider = Provider(handler)
    summary, elapsed, _ = simulate(tmp_path, provider, 500, retry={"outage": "5m"})
    assert (summary.exit_code, summary.failed) == (69, 0)
    assert 0 < summary.ok < 500
    assert summary.ok + summary.open == 500
    assert 300 < elapsed < 340


def test_a_host_that_never_answers_is_given_up_soon(tmp_path: Path) -> None:
    async def handler(_request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("[Errno 111] Connection refused")

    provider = Provider(handler)
    summary, elapsed, _ = simulate(tmp_path, provider, 500)
    assert (summary.exit_code, summary.failed, summary.open) == (69, 0, 500)
    assert "Connection refused" in (summary.reason or "")
    assert 30 <= elapsed < 40
    assert len(provider.times) < 60


def test_a_slow_first_answer_is_no_outage(tmp_path: Path) -> None:
    async def handler(_request: httpx.Request) -> httpx.Response:
        await anyio.sleep(200)
        return answer()

    summary, elapsed, _ = simulate(tmp_path, Provider(handler), 16)
    assert (summary.exit_code, summary.ok) == (0, 16)
    assert 400 <= elapsed < 410


def test_a_row_that_hangs_ends_by_its_deadline_and_the_others_are_not_held_up(tmp_path: Path) -> None:
    async def handler(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(1_000_000 if row_of(request) == 3 else 1)
        return answer()

    retry = {"request_timeout": "40s", "row_deadline": "2m"}
    summary, elapsed, _ = simulate(tmp_path, Provider(handler), 50, retry=retry)
    assert (summary.exit_code, summary.ok, summary.failed) == (1, 49, 1)
    assert summary.failures[0].kind == "timeout"
    assert elapsed < 125


def test_rows_that_always_fail_cost_their_attempts_and_slow_nobody(tmp_path: Path) -> None:
    async def handler(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(1)
        return httpx.Response(500) if row_of(request) % 10 == 0 else answer()

    provider = Provider(handler)
    summary, elapsed, _ = simulate(tmp_path, provider, 400, retry={"attempts": 4})
    assert (summary.ok, summary.failed) == (360, 40)
    assert len(provider.times) == 360 + 4 * 40
    # 520 attempts of a second each, eight at a time, and the last row's waits.
    assert elapsed < 520 / 8 + 30


@pytest.mark.parametrize("concurrency", [8, 64])
@pytest.mark.parametrize(
    ("place", "within"), one_in(3, [(0, 260), (200, 260), (400, 400)]), ids=["first", "middle", "last"]
)
@pytest.mark.parametrize("status", [500, pytest.param(504, marks=pytest.mark.long)])
def test_bad_rows_that_stand_together_are_not_taken_for_an_outage(
    tmp_path: Path, status: int, place: int, within: float, concurrency: int
) -> None:
    async def handler(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(1)
        return httpx.Response(status) if place <= row_of(request) < place + 40 else answer()

    provider = Provider(handler)
    summary, elapsed, _ = simulate(tmp_path, provider, 440, limits={"concurrency": concurrency})
    assert (summary.exit_code, summary.ok, summary.failed, summary.open) == (1, 400, 40, 0)
    attempts = 6 if status == 500 else 3
    # A probe costs its row no attempt.
    assert 400 + 40 * attempts <= len(provider.times) <= 400 + 40 * attempts + 100
    assert elapsed < within


@pytest.mark.parametrize("left", [8, 24, 400])
def test_a_minute_of_plain_errors_fails_no_row_however_few_are_left(tmp_path: Path, left: int) -> None:
    async def handler(_request: httpx.Request) -> httpx.Response:
        began = anyio.current_time()
        await anyio.sleep(0.5)
        return httpx.Response(500) if 5 <= began - provider.times[0] < 65 else answer()

    provider = Provider(handler)
    summary, elapsed, _ = simulate(tmp_path, provider, 80 + left)
    assert (summary.exit_code, summary.ok) == (0, 80 + left)
    assert elapsed < 65 + 12 + left / 16 + 20


def broken(how: str) -> httpx.Response:
    """What a healthy provider may do with a row that breaks it."""
    if how == "dropped":
        raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
    if how == "empty choices":
        return httpx.Response(200, json={"choices": [], "model": "m"})
    return httpx.Response(500, json={"error": {"message": "cannot"}})


HOWS = ["500", "empty choices", "dropped"]
BLOCKS = {
    "last": (52, range(40, 52), 16),
    "last, one at a time": (52, range(40, 52), 1),
    "first": (52, range(12), 16),
    "middle": (52, range(20, 32), 4),
    "more than are under way at once": (164, range(100, 164), 8),
    "one row": (1, range(1), 8),
}
LARGE = {
    "more than are read ahead": (2000, range(300, 900), 32),
    "last, more than are read ahead": (1000, range(400, 1000), 64),
}


@pytest.mark.parametrize(
    ("how", "rows", "bad", "concurrency"),
    one_in(
        4,
        [pytest.param(how, *block, id=f"{name}-{how}") for how in HOWS for name, block in BLOCKS.items()]
        + [pytest.param("500", *block, id=name) for name, block in LARGE.items()],
    ),
)
def test_a_block_of_rows_that_break_a_healthy_provider_pays_its_own_attempts(
    tmp_path: Path, how: str, rows: int, bad: range, concurrency: int
) -> None:
    async def handler(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(0.05)
        return broken(how) if row_of(request) in bad else answer()

    provider = Provider(handler)
    retry = {"attempts": 2, "outage": "4m"}
    summary, elapsed, _ = simulate(tmp_path, provider, rows, limits={"concurrency": concurrency}, retry=retry)
    assert (summary.exit_code, summary.ok, summary.failed, summary.open) == (1, rows - len(bad), len(bad), 0)
    assert elapsed < 400
    assert len(provider.times) <= rows + len(bad) * 3 + 100


@pytest.mark.parametrize("bad", one_in(2, [range(0, 240, 2), range(60, 180)]), ids=["every other", "middle"])
def test_many_bad_rows_cost_no_waits_for_a_provider_that_is_up(tmp_path: Path, bad: range) -> None:
    async def handler(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(0.05)
        return broken("500") if row_of(request) in bad else answer()

    provider = Provider(handler)
    summary, elapsed, events = simulate(tmp_path, provider, 240)
    assert (summary.exit_code, summary.ok, summary.failed) == (1, 120, 120)
    assert len(provider.times) <= 120 + 6 * 120 + 10
    assert elapsed < 80
    assert sum(event.name == "breaker_opened" for event in events) <= 2


def test_empty_answers_at_the_end_are_soon_taken_for_their_rows_own(tmp_path: Path) -> None:
    async def handler(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(0.05)
        return answer("") if row_of(request) >= 30 else answer()

    provider = Provider(handler)
    summary, elapsed, _ = simulate(tmp_path, provider, 52)
    assert (summary.exit_code, summary.ok, summary.failed) == (1, 30, 22)
    assert elapsed < 60


SLOTS = 2


@pytest.mark.parametrize("how", one_in(3, ["503", "529", "no connection", "waits too long"]))
def test_a_server_that_is_only_full_is_not_called_down(tmp_path: Path, how: str) -> None:
    busy = 0

    async def handler(_request: httpx.Request) -> httpx.Response:
        nonlocal busy
        if busy >= SLOTS:
            await anyio.sleep(1000 if how == "waits too long" else 0.01)
            if how == "no connection":
                raise httpx.ConnectError("[Errno 111] Connection refused")
            return httpx.Response(int(how), json={"error": {"message": "no free slot"}})
        busy += 1
        try:
            await anyio.sleep(0.5)
        finally:
            busy -= 1
        return answer()

    provider = Provider(handler)
    fields: dict[str, Any] = {"limits": {"concurrency": 64}, "retry": {"request_timeout": "8s"}}
    summary, elapsed, events = simulate(tmp_path, provider, 200, **fields)
    assert (summary.exit_code, summary.ok) == (0, 200)
    assert "breaker_opened" not in {event.name for event in events}
    # Two at a time take 50 s; those that wait too long cost 8 s each time.
    assert elapsed < (100 if how == "waits too long" else 60)
    assert len(provider.times) <= 200 + (220 if how == "waits too long" else 100)


def test_a_provider_that_goes_down_at_once_is_not_taken_for_a_full_one_for_long(tmp_path: Path) -> None:
    async def handler(_request: httpx.Request) -> httpx.Response:
        down = 5 <= anyio.current_time() - provider.times[0] < 35
        await anyio.sleep(0.01 if down else 1)
        return httpx.Response(503, json={"error": "down"}) if down else answer()

    provider = Provider(handler)
    summary, elapsed, events = simulate(tmp_path, provider, 640, limits={"concurrency": 32})
    assert (summary.exit_code, summary.ok) == (0, 640)
    assert "breaker_opened" in {event.name for event in events}
    # Those under way, a few more until it is called down, and then probes.
    assert sum(6 <= time - provider.times[0] < 34 for time in provider.times) <= 20
    assert elapsed < 20 + 30 + 25


@pytest.mark.parametrize("how", one_in(3, HOWS))
def test_bad_rows_that_an_earlier_run_left_open_end_with_the_next(tmp_path: Path, how: str) -> None:
    async def handler(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(0.5)
        return broken(how) if row_of(request) >= 100 else answer()

    simulate(tmp_path, Provider(handler), 100)
    again, elapsed, events = simulate(tmp_path, Provider(handler), 112, retry={"outage": "20s"})
    assert (again.exit_code, again.ok, again.failed, again.open) == (1, 100, 12, 0)
    assert "6 attempts failed" in again.failures[0].example
    assert elapsed < 80
    assert "requests_suspected" in {event.name for event in events}


@pytest.mark.parametrize("how", one_in(4, ["refused", "503", "500, then refused", "dropped, then 503"]))
def test_a_provider_that_dies_near_the_end_leaves_the_rows_open(tmp_path: Path, how: str) -> None:
    first, _, then = how.partition(", then ")

    async def handler(_request: httpx.Request) -> httpx.Response:
        await anyio.sleep(0.5)
        since = anyio.current_time() - provider.times[0] - 4
        if since < 0:
            return answer()
        now = first if since < 30 else then or first
        if now == "refused":
            raise httpx.ConnectError("[Errno 111] Connection refused")
        return httpx.Response(503, json={"error": "loading"}) if now == "503" else broken(now)

    provider = Provider(handler)
    summary, elapsed, _ = simulate(tmp_path, provider, 70, limits={"concurrency": 8}, retry={"outage": "5m"})
    assert (summary.exit_code, summary.failed, summary.ok + summary.open) == (69, 0, 70)
    assert summary.open > 0
    assert 300 < elapsed < 340
    said = "refused" if "refused" in how else "loading"
    _, found, last = (summary.reason or "").partition("the last error: ")
    assert found
    assert said in last


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (
            "[{'loc': ('body', 'response_format', 'type'), 'msg': \"Input should be 'text'\"}] (row {row})",
            "response.mode",
        ),
        ("logprobs are not supported", "params.logprobs"),
        ("1 validation error for ChatRequest", "params, messages or response.mode"),
        ("out of memory", None),
    ],
)
def test_a_request_that_a_server_cannot_take_but_calls_its_own_error_is_told_with_the_field(
    tmp_path: Path, message: str, named: str | None
) -> None:
    async def handler(request: httpx.Request) -> httpx.Response:
        told = message.replace("{row}", str(row_of(request)))
        return httpx.Response(500, json={"error": {"message": told}})

    summary, _, _ = simulate(tmp_path, Provider(handler), 40, retry={"outage": "20s"})
    assert (summary.exit_code, summary.open) == (69, 40)
    assert message.partition(" (row")[0] in (summary.reason or "")
    remedy = summary.remedy or ""
    assert ("same words" in remedy) == (named is not None)
    assert named is None or f"change {named}" in remedy


@pytest.mark.parametrize(
    ("headers", "wasted"),
    # A server that says "2 seconds" and means a minute is asked every two seconds.
    one_in(
        4, [({}, 0.1), ({"retry-after": "99999999"}, 0.1), ({"retry-after": "-5"}, 0.1), ({"retry-after": "2"}, 0.25)]
    ),
)
def test_refusals_for_rate_cost_no_row_and_few_requests(tmp_path: Path, headers: dict[str, str], wasted: float) -> None:
    accepted: list[float] = []

    async def handler(_request: httpx.Request) -> httpx.Response:
        now = anyio.current_time()
        await anyio.sleep(0.3)
        if sum(1 for time in accepted[-300:] if time > now - 60) >= 300:
            return httpx.Response(429, json={"error": {"message": "requests per minute"}}, headers=headers)
        accepted.append(now)
        return answer()

    provider = Provider(handler)
    summary, elapsed, _ = simulate(tmp_path, provider, 900, limits={})
    assert (summary.exit_code, summary.ok) == (0, 900)
    assert summary.rate_limited <= wasted * 900
    assert elapsed < 3 * 60 * 1.3


TOLD = {
    "nothing": {"rate_headers": False},
    "retry-after": {"rate_headers": False, "retry_after": True},
    "headers": {"rate_headers": True},
}


def check_untold_limits(folder: Path, rows: int, words: int, told: dict[str, bool]) -> None:
    """The demo provider under 300 requests and 20,000 tokens a minute, 10 at once; the job knows nothing of it."""
    limits = {"requests_per_minute": 300, "tokens_per_minute": 20_000, "concurrency": 10}
    demo = httpx.ASGITransport(create_app(DemoOptions(latency_s=0.4, **limits, **told)))  # type: ignore[arg-type]
    text = "Labels: yes, no\n" + "word " * words + "{{ text }}"
    messages = [{"role": "user", "content": text}]
    provider = Provider(demo.handle_async_request)
    summary, elapsed, _ = simulate(folder, provider, rows, limits={}, messages=messages)
    assert (summary.exit_code, summary.ok, summary.failed) == (0, rows, 0)
    assert summary.rate_limited <= 0.05 * rows
    assert len(provider.times) == rows + summary.retries
    tokens = summary.spend.total_tokens
    assert elapsed < 1.1 * max(rows / 300, tokens / 20_000) * 60 + 15


@pytest.mark.parametrize("words", one_in(2, [0, 100]), ids=["requests bind", "tokens bind"])
def test_untold_limits_cost_no_row_and_few_requests(tmp_path: Path, words: int) -> None:
    check_untold_limits(tmp_path, 400, words, TOLD["nothing"])


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("words", [0, 100], ids=["requests bind", "tokens bind"])
@pytest.mark.parametrize("told", TOLD.values(), ids=TOLD)
def test_untold_limits_over_two_thousand_rows(tmp_path: Path, words: int, told: dict[str, bool]) -> None:
    check_untold_limits(tmp_path, 2000, words, told)


def test_a_ceiling_is_never_passed_and_well_used(tmp_path: Path) -> None:
    async def handler(_request: httpx.Request) -> httpx.Response:
        await anyio.sleep(0.2)
        return answer()

    provider = Provider(handler)
    limits = {"requests_per_minute": 120, "concurrency": 8}
    summary, elapsed, _ = simulate(tmp_path, provider, 480, limits=limits)
    assert summary.ok == 480
    worst = max(sum(1 for time in provider.times if start <= time < start + 60) for start in provider.times)
    assert worst <= 120
    assert elapsed < 4 * 60 * 1.03


def test_a_stop_waits_for_what_is_in_flight_and_no_longer_than_the_grace(tmp_path: Path) -> None:
    stop = StopRequest()

    async def handler(request: httpx.Request) -> httpx.Response:
        row = row_of(request)
        if row == 20:
            stop.stop(reason="asked to", exit_code=143)
        await anyio.sleep(1_000 if row == 19 else 2)
        return answer()

    provider = Provider(handler)
    summary, _, _ = simulate(tmp_path, provider, 100, stop=stop)
    assert (summary.exit_code, summary.reason) == (143, "asked to")
    # Row 19 outlives the grace of 20 s and stays open; everything else that was sent is counted.
    assert summary.ok == len(provider.times) - 1
    assert summary.ok + summary.open == 100


QUOTA = {"error": {"message": "You exceeded your current quota", "type": "insufficient_quota"}}


@pytest.mark.parametrize(
    ("status", "told"),
    one_in(
        4,
        [
            (401, {"error": {"message": "invalid key"}}),
            (402, {"error": {"message": "payment required"}}),
            (403, {"error": "forbidden"}),
            (429, QUOTA),
        ],
    ),
    ids=["key revoked", "payment", "permission", "credit used up"],
)
def test_what_needs_a_person_in_mid_run_stops_it_within_a_few_requests(
    tmp_path: Path, status: int, told: dict[str, Any]
) -> None:
    async def handler(_request: httpx.Request) -> httpx.Response:
        allowed = len(provider.times) <= 50
        await anyio.sleep(0.5)
        return answer() if allowed else httpx.Response(status, json=told)

    provider = Provider(handler)
    summary, _, _ = simulate(tmp_path, provider, 300)
    assert (summary.exit_code, summary.ok, summary.failed, summary.open) == (3, 50, 0, 250)
    assert "same command again" in (summary.remedy or "")
    assert len(provider.times) <= 50 + (18 if status == 403 else 8)
    mended = Provider(always_yes)
    again, _, _ = simulate(tmp_path, mended, 300)
    assert (again.exit_code, again.ok, len(mended.times)) == (0, 300, 250)


async def always_yes(_request: httpx.Request) -> httpx.Response:
    await anyio.sleep(0.5)
    return answer()


def test_a_few_forbidden_rows_among_good_ones_are_only_failed_rows(tmp_path: Path) -> None:
    async def handler(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(0.5)
        return httpx.Response(403, json={"error": "moderated"}) if row_of(request) % 20 == 0 else answer()

    summary, _, _ = simulate(tmp_path, Provider(handler), 200)
    assert (summary.exit_code, summary.ok, summary.failed) == (1, 190, 10)


def test_a_caller_that_cancels_keeps_what_was_answered(tmp_path: Path) -> None:
    async def handler(_request: httpx.Request) -> httpx.Response:
        await anyio.sleep(1)
        return answer()

    write_rows(tmp_path / "rows.jsonl", texts(100))
    job = make_job(tmp_path, None)

    async def main() -> RunSummary:
        with anyio.move_on_after(4.5):
            await run_job(job, transport=Provider(handler), offload=inline, environ={})
        return await run_job(job, transport=Provider(handler), offload=inline, environ={})

    clock = trio.testing.MockClock(autojump_threshold=0)
    summary = anyio.run(main, backend="trio", backend_options={"clock": clock})
    assert (summary.ok, summary.new_ok) == (100, 100 - 32)


def refusing(refused: Callable[[int], bool], message: str = "unknown field top_q in row {row}") -> Handler:
    async def handler(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(1)
        row = row_of(request)
        if refused(row):
            return httpx.Response(400, json={"error": {"message": message.format(row=row)}})
        return answer()

    return handler


@pytest.mark.parametrize("concurrency", one_in(3, [1, 8, 64]))
def test_a_param_that_every_request_is_refused_for_stops_the_run(tmp_path: Path, concurrency: int) -> None:
    provider = Provider(refusing(lambda row: True))
    summary, _, _ = simulate(tmp_path, provider, 5000, limits={"concurrency": concurrency})
    assert (summary.exit_code, summary.failed, summary.open) == (3, 0, 5000)
    assert "unknown field top_q" in (summary.reason or "")
    assert "params" in (summary.remedy or "")
    assert TRIAL_REQUESTS <= summary.sent <= TRIAL_REQUESTS + concurrency


def test_a_small_job_of_nothing_but_refused_rows_is_stopped_at_its_end(tmp_path: Path) -> None:
    summary, _, _ = simulate(tmp_path, Provider(refusing(lambda row: True)), 12, limits={"concurrency": 32})
    assert (summary.exit_code, summary.failed, summary.open) == (3, 0, 12)


def test_a_few_refused_rows_and_no_others_are_failed_rows(tmp_path: Path) -> None:
    summary, _, _ = simulate(tmp_path, Provider(refusing(lambda row: True)), 9)
    assert (summary.exit_code, summary.failed, summary.open) == (1, 9, 0)


@pytest.mark.parametrize(
    ("bad", "concurrency"),
    one_in(
        4,
        [
            *((bad, concurrency) for bad in (1, 40, 400) for concurrency in (8, 64)),
            (40, 1),
            # One by one they take seconds.
            *(pytest.param(bad, 1, marks=pytest.mark.long) for bad in (1, 400)),
        ],
    ),
)
def test_rows_that_are_bad_together_at_the_start_stop_nothing(tmp_path: Path, bad: int, concurrency: int) -> None:
    """As the longest prompts of a sorted input are, of which each is said to be too long by so many tokens."""
    rows = [{"id": n, "text": ("word " * 50 if n < bad else "") + f"row {n}"} for n in range(800)]
    provider = Provider(refusing(lambda row: row < bad))
    limits = {"concurrency": concurrency}
    summary, _, _ = simulate(tmp_path, provider, 800, lines=rows, limits=limits)
    assert (summary.exit_code, summary.failed, summary.ok) == (1, bad, 800 - bad)
    assert summary.sent == 800


@pytest.mark.thorough
def test_a_block_of_bad_rows_longer_than_the_supply_stops_nothing(tmp_path: Path) -> None:
    """All rows that are read ahead are bad, and no smaller than the good ones: the feed is read further."""
    provider = Provider(refusing(lambda row: row < 1500))
    summary, _, _ = simulate(tmp_path, provider, 2000)
    assert (summary.exit_code, summary.failed, summary.ok) == (1, 1500, 500)
    assert summary.sent == 2000


@pytest.mark.thorough
def test_a_block_of_bad_rows_without_end_is_passed_by_way_of_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the stop's own advice says, also where the output holds records of another prompt."""
    monkeypatch.setattr("batchchat.engines.supply._READY_FAR", 600)
    earlier: dict[str, Any] = {"params": {"max_tokens": 9}}
    assert simulate(tmp_path, Provider(always_yes), 10, **earlier)[0].exit_code == 0
    bad = Provider(refusing(lambda row: row < 800))
    stopped, _, _ = simulate(tmp_path, bad, 1000)
    assert (stopped.exit_code, stopped.new_failed) == (3, 0)
    assert "--sample 100" in (stopped.remedy or "")
    sampled, _, _ = simulate(tmp_path, bad, 1000, options=RunOptions(sample=100, seed=1))
    assert sampled.exit_code == 1
    assert sampled.new_ok > 0
    whole, _, _ = simulate(tmp_path, bad, 1000)
    assert (whole.exit_code, whole.failed, whole.ok) == (1, 800, 200)


LATE = {"under way": 0, "tried first": 350, "tried last": 699}


@pytest.mark.parametrize("late", one_in(3, LATE.values()), ids=LATE)
def test_refused_rows_are_judged_only_when_every_row_that_was_tried_came_back(tmp_path: Path, late: int) -> None:
    """All rows are refused at once but one, which is answered late, and only at its second attempt."""
    attempts: list[int] = []

    async def handler(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(1)
        if row_of(request) != late:
            return httpx.Response(400, json={"error": "unknown field top_q"})
        attempts.append(late)
        await anyio.sleep(100)
        return answer() if len(attempts) > 1 else httpx.Response(503)

    rows = [{"id": n, "text": f"row {n}" if n == 350 else f"this is row {n}"} for n in range(700)]
    summary, _, _ = simulate(tmp_path, Provider(handler), 700, lines=rows)
    assert (summary.exit_code, summary.failed, summary.ok) == (1, 699, 1)


@pytest.mark.parametrize("late", one_in(3, LATE.values()), ids=LATE)
def test_a_row_that_never_ends_does_not_keep_refused_ones_waiting(tmp_path: Path, late: int) -> None:
    """It fails by its deadline, and tells nothing of the others: another one takes its place."""

    async def handler(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(1)
        if row_of(request) == late:
            await anyio.sleep_forever()
        return httpx.Response(400, json={"error": "unknown field top_q"})

    rows = [{"id": n, "text": f"row {n}" if n == 350 else f"this is row {n}"} for n in range(700)]
    provider = Provider(handler)
    retry = {"request_timeout": "40s", "row_deadline": "2m"}
    summary, elapsed, _ = simulate(tmp_path, provider, 700, lines=rows, retry=retry)
    assert (summary.exit_code, summary.failed, summary.open) == (3, 1, 699)
    assert "unknown field" in (summary.reason or "")
    assert len(provider.times) <= 8 + TRIAL_REQUESTS + 3
    assert elapsed < 150


@pytest.mark.thorough
def test_samples_of_a_row_are_one_of_those_that_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row has so many that only five are read ahead, and that cannot be read further."""
    monkeypatch.setattr("batchchat.engines.supply._READY_FAR", 512)
    summary, _, _ = simulate(tmp_path, Provider(refusing(lambda row: row < 12)), 15, samples=100)
    assert (summary.exit_code, summary.failed, summary.ok) == (1, 1200, 300)


def test_samples_of_rows_that_are_all_refused_are_not_tried_one_by_one(tmp_path: Path) -> None:
    provider = Provider(refusing(lambda row: True))
    summary, _, _ = simulate(tmp_path, provider, 40, samples=10)
    assert (summary.exit_code, summary.failed) == (3, 0)
    assert len(provider.times) <= 8 + TRIAL_REQUESTS


def test_a_stop_ends_the_wait_for_rows_that_are_tried(tmp_path: Path) -> None:
    stop = StopRequest()

    async def handler(request: httpx.Request) -> httpx.Response:
        if len(provider.times) > 8:
            await anyio.sleep(5)
            if not stop.asked:
                stop.stop(reason="asked to", exit_code=143)
            await anyio.sleep_forever()
        return httpx.Response(400, json={"error": "too long"})

    provider = Provider(handler)
    summary, elapsed, _ = simulate(tmp_path, provider, 100, stop=stop)
    assert (summary.exit_code, summary.ok, summary.failed, summary.open) == (143, 0, 0, 100)
    assert elapsed < 40


def test_each_refused_row_that_says_something_else_is_its_own(tmp_path: Path) -> None:
    async def handler(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(1)
        return httpx.Response(400, json={"error": f"no such label: {'x' * row_of(request)}"})

    summary, _, _ = simulate(tmp_path, Provider(handler), 50)
    assert (summary.exit_code, summary.failed) == (1, 50)


def test_rows_that_are_refused_once_others_were_answered_are_their_own(tmp_path: Path) -> None:
    """In this run, or in an earlier one of the same job; an edited job is another."""
    summary, _, _ = simulate(tmp_path, Provider(refusing(lambda row: row >= 5)), 60, limits={"concurrency": 1})
    assert (summary.exit_code, summary.ok, summary.failed) == (1, 5, 55)
    again: dict[str, Any] = {"retry": {"failed": "all"}}
    summary, _, _ = simulate(tmp_path, Provider(refusing(lambda row: True)), 60, **again)
    assert (summary.exit_code, summary.ok, summary.failed) == (1, 5, 55)
    edited: dict[str, Any] = {"params": {"max_tokens": 9}}
    summary, _, _ = simulate(tmp_path, Provider(refusing(lambda row: True)), 60, **edited)
    assert (summary.exit_code, summary.new_failed) == (3, 0)


def test_samples_of_one_row_are_one_row_when_they_are_refused(tmp_path: Path) -> None:
    async def handler(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(1)
        return httpx.Response(422, json={"error": "bad image"}) if row_of(request) == 0 else answer()

    summary, _, _ = simulate(tmp_path, Provider(handler), 6, samples=5, limits={"concurrency": 8})
    assert (summary.exit_code, summary.ok, summary.failed) == (1, 25, 5)


def test_an_answer_that_was_cut_off_is_an_answer_of_the_model(tmp_path: Path) -> None:
    async def handler(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(1)
        if row_of(request) < 3:
            return httpx.Response(422, json={"error": "bad image"})
        found = answer().json()
        found["choices"][0]["finish_reason"] = "length"
        return httpx.Response(200, json=found)

    summary, _, _ = simulate(tmp_path, Provider(handler), 6, limits={"concurrency": 1}, retry={"failed": "none"})
    assert summary.exit_code == 3  # three, and no answer before
    rows = [{"id": n, "text": f"row {n}"} for n in (5, 0, 1, 2, 4)]
    summary, _, _ = simulate(
        tmp_path, Provider(handler), 5, lines=rows, limits={"concurrency": 1}, output=str(tmp_path / "other")
    )
    assert (summary.exit_code, summary.failed) == (1, 5)
