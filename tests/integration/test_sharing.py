"""Answers that are shared: between jobs by a cache, between equal rows of a run by `dedupe`."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pyarrow as pa
import pytest
import trio.testing

import batchchat
from batchchat.acceptance import Acceptance
from batchchat.cache import AnswerCache
from batchchat.demo import DemoOptions, DemoServer
from batchchat.engines.port import Settled
from batchchat.errors import StorageError, UsageError
from batchchat.events import RunSummary
from batchchat.job import Job
from batchchat.planning import plan_job
from batchchat.records import Completion, Reply, Request, RowBatch, Usage, Verdict
from batchchat.runner.control import Control
from batchchat.runner.options import RunOptions
from batchchat.runner.reuse import Reuse
from batchchat.runner.run import run_job
from batchchat.store import read_output, verify
from tests.integration.jobs import make_job, query, run, texts, write_rows
from tests.integration.processes import start, wait_for
from tests.thorough import one_in
from tests.unit.test_run_clock import Provider, inline

TOKENS = (10, 1, 11)


@pytest.fixture
def demo() -> Iterator[DemoServer]:
    with DemoServer(DemoOptions(latency_s=0)) as server:
        yield server


def folder(tmp_path: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    (tmp_path / name).mkdir()
    write_rows(tmp_path / name / "rows.jsonl", rows)
    return tmp_path / name


def equal_rows(count: int, kinds: int) -> list[dict[str, Any]]:
    """Rows with keys of their own that ask one of a few things."""
    return [{"id": number, "text": f"row number {number % kinds}"} for number in range(count)]


def answers(tmp_path: Path) -> list[tuple[Any, ...]]:
    return query(tmp_path, "select key, completion from data order by key")


# --- a cache between jobs


def test_two_jobs_share_answers_and_the_second_costs_nothing(tmp_path: Path, demo: DemoServer) -> None:
    cache = str(tmp_path / "cache")
    one = folder(tmp_path, "one", texts(20))
    two = folder(tmp_path, "two", [{"id": f"k{row['id']}", "text": row["text"]} for row in texts(30)])
    first = run(make_job(one, demo.base_url, cache=cache))
    assert (first.cache_hits, first.sent) == (0, 20)
    job = make_job(two, demo.base_url, cache=cache, name="other")
    view = plan_job(job)
    assert (view.cached, view.requests, view.new) == (20, 10, 30)
    second = run(job)
    assert (second.ok, second.cache_hits, second.sent, second.spend.requests) == (30, 20, 10, 10)
    assert demo.stats().requests == 30
    found = query(
        two,
        "select cache_hit, count(*), sum(cost), sum(attempts), count(latency_s), count(http_status), min(model), "
        "count(distinct run_id), count(total_tokens) from data group by all order by 1",
    )
    assert found[1] == (True, 20, 0.0, 0, 0, 0, "llama-3.1-8b-instruct", 1, 20)
    assert found[0][:2] == (False, 10)
    assert found[0][2] == pytest.approx(second.spend.cost)
    same = "select completion, total_tokens, request_id from data where row_index < 20 order by row_index"
    assert query(one, same) == query(two, same)
    assert run(job).sent == 0
    assert verify(two / "out").problems == []


def test_another_provider_model_prompt_or_sample_is_another_answer(tmp_path: Path, demo: DemoServer) -> None:
    cache = {"cache": str(tmp_path / "cache")}
    rows = texts(3)
    run(make_job(folder(tmp_path, "a", rows), demo.base_url, **cache))
    others: list[dict[str, Any]] = [
        {"model": "mistral-small-3.2-24b-instruct-2506"},
        {"messages": [{"role": "user", "content": "Labels: yes, no\n{{ text }}!"}]},
        {"params": {"seed": 7}},
    ]
    for number, changed in enumerate(others):
        assert run(make_job(folder(tmp_path, f"b{number}", rows), demo.base_url, **changed, **cache)).cache_hits == 0
    elsewhere = make_job(folder(tmp_path, "c", rows), None, provider={"base_url": demo.base_url}, **cache)
    assert run(elsewhere).cache_hits == 0
    again = run(make_job(folder(tmp_path, "d", rows), demo.base_url, samples=3, **cache))
    assert (again.cache_hits, again.sent) == (3, 6)


def test_failures_refusals_and_cut_answers_are_never_stored(tmp_path: Path) -> None:
    def say(finish: str, **message: Any) -> httpx.MockTransport:
        choice = {"message": message, "finish_reason": finish}
        return httpx.MockTransport(lambda _: httpx.Response(200, json={"choices": [choice]}))

    cache = str(tmp_path / "cache")
    bad = {
        "refused": say("stop", content=None, refusal="no"),
        "filtered": say("content_filter", content="ye"),
        "cut": say("length", content="ye"),
        "wrong": httpx.MockTransport(lambda _: httpx.Response(400, json={"error": "wrong"})),
        "kept": say("length", content="ye"),
    }
    for name, transport in bad.items():
        more = {"response": {"truncated": "keep"}} if name == "kept" else {}
        job = make_job(folder(tmp_path, name, texts(2)), None, cache=cache, **more)
        assert batchchat.run(job, transport=transport, environ={}).ok == (2 if name == "kept" else 0)
    good = batchchat.run(
        make_job(folder(tmp_path, "good", texts(2)), None, cache=cache),
        transport=say("stop", content="yes"),
        environ={},
    )
    assert (good.ok, good.cache_hits, good.sent) == (2, 0, 2)


def test_an_answer_from_the_cache_must_fit_the_jobs_own_schema(tmp_path: Path) -> None:
    asked = 0

    def provider(_request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        choice = {"message": {"content": '{"label": "yes"}'}, "finish_reason": "stop"}
        return httpx.Response(200, json={"choices": [choice]})

    def go(name: str, pattern: str) -> RunSummary:
        schema = {"type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]}
        schema["properties"]["label"]["pattern"] = pattern  # type: ignore[index]
        response = {"schema": schema, "mode": "json_object", "corrections": 0}
        job = make_job(folder(tmp_path, name, texts(2)), None, cache=str(tmp_path / "cache"), response=response)
        return batchchat.run(job, transport=httpx.MockTransport(provider), environ={})

    assert go("a", "^yes$").ok == 2
    shared = go("b", "^yes$")
    assert (shared.cache_hits, asked) == (2, 2)
    assert query(tmp_path / "b", "select distinct parsed.label from data") == [("yes",)]


def test_a_run_without_cache_and_dedupe_knows_nothing_of_them(tmp_path: Path, demo: DemoServer) -> None:
    where = folder(tmp_path, "a", equal_rows(6, 2))
    job = make_job(where, demo.base_url)
    view = plan_job(job)
    assert (view.cache, view.dedupe, view.equal, view.requests) == (None, False, 4, 6)
    assert run(job).sent == 6
    assert query(where, "select distinct cache_hit from data") == [(False,)]
    assert not (where / "out" / "_batchchat" / "answers").exists()


def test_a_folder_that_cannot_be_a_cache_is_refused_before_anything_is_written(
    tmp_path: Path, demo: DemoServer
) -> None:
    where = folder(tmp_path, "a", texts(2))
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(UsageError, match="cache"):
        run(make_job(where, demo.base_url, cache=str(tmp_path / "file")))
    assert not (where / "out").exists()
    assert demo.stats().requests == 0


def test_a_cache_that_cannot_be_read_ends_the_run_and_nothing_is_paid_unawares(
    tmp_path: Path, demo: DemoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise StorageError("the cache is malformed")

    where = folder(tmp_path, "a", texts(300))
    job = make_job(where, demo.base_url, cache=str(tmp_path / "cache"))
    with monkeypatch.context() as patched:
        patched.setattr(AnswerCache, "fetch", broken)
        ended = run(job)
    assert (ended.exit_code, ended.reason, ended.sent, ended.open) == (74, "the cache is malformed", 0, 300)
    assert run(job).ok == 300


def test_a_cache_that_takes_no_more_is_told_and_costs_the_run_nothing(
    tmp_path: Path, demo: DemoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise StorageError("the cache: database or disk is full")

    where = folder(tmp_path, "a", texts(30))
    with monkeypatch.context() as patched:
        patched.setattr(AnswerCache, "add", full)
        ended = run(make_job(where, demo.base_url, cache=str(tmp_path / "cache")))
    assert (ended.exit_code, ended.ok) == (0, 30)
    assert [warning for warning in ended.warnings if "missing in the cache" in warning]


def test_damaged_answers_are_asked_for_again_and_told(tmp_path: Path, demo: DemoServer) -> None:
    cache = str(tmp_path / "cache")
    run(make_job(folder(tmp_path, "a", texts(10)), demo.base_url, cache=cache))
    with sqlite3.connect(tmp_path / "cache" / "answers.sqlite3") as connection:
        connection.execute("UPDATE answers SET sum = x'00' WHERE rowid <= 4")
    connection.close()
    ended = run(make_job(folder(tmp_path, "b", texts(10)), demo.base_url, cache=cache))
    assert (ended.ok, ended.cache_hits, ended.sent) == (10, 6, 4)
    assert any("4 answers in the cache" in warning for warning in ended.warnings)
    assert run(make_job(folder(tmp_path, "c", texts(10)), demo.base_url, cache=cache)).cache_hits == 10


@pytest.mark.thorough
def test_processes_share_a_cache_and_one_that_is_killed_harms_nobody(tmp_path: Path) -> None:
    with DemoServer(DemoOptions(latency_s=0.05)) as demo:
        places = [folder(tmp_path, f"p{number}", texts(400)) for number in range(3)]
        jobs = [write_job(place, demo.base_url, tmp_path / "cache") for place in places]
        running = [start("run", job, "-q", cwd=tmp_path) for job in jobs]
        wait_for(lambda: demo.stats().answered > 100)
        running[0].send_signal(signal.SIGKILL)
        for process in running:
            process.communicate()
        assert [process.returncode for process in running] == [-signal.SIGKILL, 0, 0]
        sent = demo.stats().requests
        last = run(make_job(folder(tmp_path, "last", texts(400)), demo.base_url, cache=str(tmp_path / "cache")))
        assert (last.ok, last.cache_hits, last.sent) == (400, 400, 0)
        assert demo.stats().requests == sent
        for place in places[1:]:
            assert query(place, "select count(*), count(distinct custom_id) from data") == [(400, 400)]
            assert verify(place / "out").problems == []


def write_job(place: Path, base_url: str, cache: Path) -> Path:
    data = make_job(place, base_url, cache=str(cache), limits={"concurrency": 16}).snapshot()
    data.pop("file")
    (place / "job.yaml").write_text(json.dumps(data), encoding="utf-8")
    return place / "job.yaml"


# --- equal rows of one run


def test_equal_requests_are_sent_once(tmp_path: Path, demo: DemoServer) -> None:
    where = folder(tmp_path, "a", equal_rows(2500, 7))
    job = make_job(where, demo.base_url, dedupe=True)
    view = plan_job(job)
    assert (view.dedupe, view.equal, view.requests) == (True, 2493, 7)
    summary = run(job)
    assert (summary.ok, summary.sent, summary.cache_hits) == (2500, 7, 2493)
    assert demo.stats().requests == 7
    assert query(where, "select count(*), count(distinct custom_id), sum(cache_hit::int) from data") == [
        (2500, 2500, 2493)
    ]
    assert query(where, "select count(distinct text), count(distinct (text, completion, request_id)) from data") == [
        (7, 7)
    ]
    assert query(where, "select sum(cost) from data")[0][0] == pytest.approx(summary.spend.cost)
    # What was shared within the pass goes with it.
    assert not (where / "out" / "_batchchat" / "answers").exists()
    assert run(job).sent == 0


def test_without_a_key_equal_rows_are_one_request_too(tmp_path: Path, demo: DemoServer) -> None:
    where = folder(tmp_path, "a", [{"text": "the same"}] * 50)
    job = make_job(where, demo.base_url, input={"path": str(where / "rows.jsonl")}, dedupe=True, samples=2)
    assert (run(job).ok, demo.stats().requests) == (100, 2)


Handler = Callable[[httpx.Request], Awaitable[httpx.Response]]


def simulate(job: Job, handler: Handler, **more: Any) -> tuple[RunSummary, Provider, float]:
    provider = Provider(handler)

    async def main() -> tuple[RunSummary, float]:
        started = anyio.current_time()
        summary = await run_job(job, transport=provider, offload=inline, environ={}, seed=1, **more)
        return summary, anyio.current_time() - started

    clock = trio.testing.MockClock(autojump_threshold=0)
    summary, elapsed = anyio.run(main, backend="trio", backend_options={"clock": clock})
    return summary, provider, elapsed


def asked(request: httpx.Request) -> str:
    text: str = json.loads(request.content)["messages"][0]["content"].splitlines()[-1]
    return text


def yes() -> httpx.Response:
    usage = dict(zip(("prompt_tokens", "completion_tokens", "total_tokens"), TOKENS, strict=True))
    return httpx.Response(
        200, json={"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}], "usage": usage}
    )


def test_those_that_wait_take_over_a_failure_too_and_the_next_run_asks_once_more(tmp_path: Path) -> None:
    async def broken(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(1)
        return httpx.Response(500) if asked(request).endswith(" 0") else yes()

    where = folder(tmp_path, "a", equal_rows(40, 4))
    job = make_job(where, None, dedupe=True, retry={"attempts": 2})
    summary, provider, _ = simulate(job, broken)
    assert (summary.exit_code, summary.ok, summary.failed) == (1, 30, 10)
    assert len(provider.times) == 3 + 2
    assert query(where, "select status, cache_hit, count(*), max(attempts), sum(cost) from data group by all "
                 "order by all") == [
        ("failed", False, 1, 2, None),
        ("failed", True, 9, 0, 0.0),
        ("ok", False, 3, 1, pytest.approx(3 * 11 * 0.2e-6)),
        ("ok", True, 27, 0, 0.0),
    ]  # fmt: skip

    async def mended(_request: httpx.Request) -> httpx.Response:
        await anyio.sleep(1)
        return yes()

    summary, provider, _ = simulate(job, mended)
    assert (summary.exit_code, summary.ok, len(provider.times)) == (0, 40, 1)


@pytest.mark.thorough
def test_an_equal_row_that_comes_after_the_failure_shares_it_too(tmp_path: Path) -> None:
    async def broken(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(0.01)
        return yes() if asked(request).endswith("r1") else httpx.Response(400, json={"error": "no"})

    # More than the engine takes ahead: the last rows are read when the first have long failed.
    where = folder(tmp_path, "a", [{"id": n, "text": "same" if n in {0, 1499} else f"r{n}"} for n in range(1500)])
    summary, provider, _ = simulate(make_job(where, None, dedupe=True, limits={"concurrency": 100}), broken)
    assert (summary.ok, summary.failed, len(provider.times)) == (1, 1499, 1499)


def test_what_waits_for_a_request_that_never_ends_stays_open(tmp_path: Path) -> None:
    stop = Control()

    async def slow(request: httpx.Request) -> httpx.Response:
        if asked(request).endswith(" 3"):
            stop.stop(reason="asked to", exit_code=143)
            await anyio.sleep(1000)
        await anyio.sleep(1)
        return yes()

    where = folder(tmp_path, "a", equal_rows(40, 4))
    job = make_job(where, None, dedupe=True)
    summary, _, _ = simulate(job, slow, stop=stop)
    assert (summary.exit_code, summary.ok + summary.open, summary.failed) == (143, 40, 0)
    assert summary.open == 10

    async def quick(_request: httpx.Request) -> httpx.Response:
        return yes()

    # The answers of the pass that was stopped are still shared.
    summary, provider, _ = simulate(job, quick)
    assert (summary.exit_code, summary.ok) == (0, 40)
    assert len(provider.times) == 1


def test_the_input_waits_when_too_many_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parked = 0
    monkeypatch.setattr("batchchat.runner.reuse._PARKED_MAX", 100)
    park = Reuse._park

    def counted(self: Reuse, request: Any) -> bool:
        nonlocal parked
        kept = park(self, request)
        parked = max(parked, self._parked)
        return kept

    monkeypatch.setattr(Reuse, "_park", counted)

    async def handler(_request: httpx.Request) -> httpx.Response:
        await anyio.sleep(5)
        return yes()

    where = folder(tmp_path, "a", equal_rows(2000, 1))
    summary, provider, elapsed = simulate(make_job(where, None, dedupe=True), handler)
    assert (summary.ok, len(provider.times)) == (2000, 1)
    assert 100 < parked <= 100 + 64
    assert elapsed < 7


@pytest.mark.thorough
def test_equal_rows_that_come_while_answers_are_written_behind_are_not_sent(tmp_path: Path) -> None:
    """Answers go to the cache with the next commit: until then they are found in memory."""

    async def handler(_request: httpx.Request) -> httpx.Response:
        await anyio.sleep(0.001)
        return yes()

    where = folder(tmp_path, "a", equal_rows(3000, 1000))
    summary, provider, _ = simulate(make_job(where, None, dedupe=True, limits={"concurrency": 10}), handler)
    assert (summary.ok, len(provider.times), summary.cache_hits) == (3000, 1000, 2000)


def test_a_budget_is_not_touched_by_what_is_not_sent(tmp_path: Path) -> None:
    async def handler(_request: httpx.Request) -> httpx.Response:
        await anyio.sleep(0.1)
        return yes()

    where = folder(tmp_path, "a", equal_rows(100, 5))
    job = make_job(where, None, dedupe=True, cache=str(tmp_path / "cache"), budget={"max_requests": 5})
    summary, _, _ = simulate(job, handler)
    assert (summary.exit_code, summary.ok, summary.sent) == (0, 100, 5)
    where = folder(tmp_path, "b", equal_rows(100, 7))
    summary, _, _ = simulate(make_job(where, None, cache=str(tmp_path / "cache"), budget={"max_requests": 1}), handler)
    assert (summary.exit_code, summary.cache_hits, summary.sent) == (4, 85, 1)
    view = plan_job(make_job(where, None, cache=str(tmp_path / "cache")), RunOptions(fresh=True))
    assert (view.cached, view.equal, view.requests) == (86, 13, 1)


def texts_in(output: Path) -> set[str]:
    return set(read_output(output, columns=["text"]).column("text").to_pylist())


@pytest.mark.parametrize("shared", one_in(3, ["both", "dedupe", "cache"]))
def test_what_a_killed_run_counted_is_paid_for_by_nobody_again(tmp_path: Path, shared: str) -> None:
    """Not by its other rows, not by the next run, and not by another output, also before the first one goes on."""
    with DemoServer(DemoOptions(latency_s=0.2)) as demo:
        where, other = folder(tmp_path, "a", equal_rows(300, 100)), folder(tmp_path, "b", equal_rows(100, 100))
        fields: dict[str, Any] = {} if shared == "cache" else {"dedupe": True}
        fields |= {} if shared == "dedupe" else {"cache": str(tmp_path / "cache")}
        data = make_job(where, demo.base_url, limits={"concurrency": 8}, **fields).snapshot()
        data.pop("file")
        (where / "job.yaml").write_text(json.dumps(data), encoding="utf-8")
        killed = start("run", where / "job.yaml", "-q", cwd=tmp_path)
        wait_for(lambda: demo.stats().answered >= 40)
        # What was answered is counted with the next commit: how long that takes is the disk's affair.
        wait_for(lambda: len(texts_in(where / "out")) >= 40)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        paid = demo.stats().requests
        counted = texts_in(where / "out")
        assert len(counted) >= 40
        if shared != "dedupe":
            second = run(make_job(other, demo.base_url, **fields))
            assert (second.ok, second.sent) == (100, 100 - second.cache_hits)
            assert second.cache_hits >= len(counted)
            paid += second.sent
        ended = run(make_job(where, demo.base_url, **fields))
        assert (ended.exit_code, ended.ok, demo.stats().requests) == (0, 300, paid + ended.sent)
        assert ended.sent <= (100 - len(counted) if shared == "dedupe" else 0)
        assert query(where, "select count(*), count(distinct custom_id), count(distinct text) from data") == [
            (300, 300, 100)
        ]
        assert verify(where / "out").problems == []


def test_a_cache_alone_asks_equal_rows_of_one_run_once(tmp_path: Path, demo: DemoServer) -> None:
    where = folder(tmp_path, "a", equal_rows(1200, 400))
    job = make_job(where, demo.base_url, cache=str(tmp_path / "cache"))
    view = plan_job(job)
    assert (view.dedupe, view.equal, view.requests) == (True, 800, 400)
    assert (run(job).cache_hits, demo.stats().requests) == (800, 400)


def test_an_answer_that_is_written_behind_while_the_cache_is_looked_up_is_found(tmp_path: Path) -> None:
    """Whoever looks before it is in the cache, and asks memory after it has left it, must not miss it."""
    shared: list[Request] = []

    class Notes:
        full = False

        def put(self, outcome: Any) -> None:
            pass

        def add_shared(self, request: Request, _outcome: Settled) -> None:
            shared.append(request)

    async def slow_look(function: Callable[..., Any], *args: Any, abandon: bool = False) -> Any:
        result = await inline(function, *args, abandon=abandon)
        if function.__name__ == "_look_up":
            await anyio.sleep(1)
        return result

    def request(number: int) -> Request:
        batch = RowBatch("rows", number, pa.record_batch({"a": [1]}), [{}])
        return Request(f"{number:032x}", b"{}", 1, None, batch, 0, answer_id=bytes(16))

    async def main() -> None:
        cache = AnswerCache.open(tmp_path / "cache")
        writer: Any = Notes()
        reuse = Reuse(cache, writer, Acceptance(), own=True, offload=slow_look, listener=lambda _: None)
        leader, late, last = request(0), request(1), request(2)
        assert await reuse.sift([leader]) == [leader]
        async with anyio.create_task_group() as group:

            async def look() -> None:
                assert await reuse.sift([late]) == []

            group.start_soon(look)
            await anyio.sleep(0.1)
            completion = Completion("yes", "stop", "m", Usage(1, 1, 2))
            reuse.put(Settled(leader, Reply(Verdict.OK, completion=completion, text="yes"), None))
            reuse.keep(reuse.take())
            reuse.kept()
            await anyio.sleep(2)
            assert shared == [late]
            assert await reuse.sift([last]) == []
        assert shared == [late, last]
        assert cache.fetch([bytes(16)]) == {bytes(16): completion}
        cache.close()

    anyio.run(main, backend="trio", backend_options={"clock": trio.testing.MockClock(autojump_threshold=0)})


@pytest.mark.thorough
@pytest.mark.parametrize("shared", ["dedupe", "cache"])
def test_what_the_job_took_is_given_to_equal_rows_also_late_ones(tmp_path: Path, shared: str) -> None:
    """An answer that was corrected, given a longer bound or kept though it was cut off: one request each, whenever."""
    schema = {"type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]}
    asked_for: dict[str, int] = {}

    async def handler(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(0.01)
        body = json.loads(request.content)
        what = body["messages"][0]["content"].splitlines()[-1]
        asked_for[what] = asked_for.get(what, 0) + 1
        finish, text = "stop", '{"label": "yes"}'
        if what == "mend" and len(body["messages"]) == 1:
            text = "not JSON"
        if what == "long" and body["max_tokens"] == 5:
            finish = "length"
        return httpx.Response(200, json={"choices": [{"message": {"content": text}, "finish_reason": finish}]})

    kinds = ["mend", "long"]
    rows = [{"id": n, "text": kinds[n % 2] if n < 40 or n > 1400 else f"r{n}"} for n in range(1500)]
    job = make_job(
        folder(tmp_path, "a", rows),
        None,
        **({"dedupe": True} if shared == "dedupe" else {"cache": str(tmp_path / "cache")}),
        limits={"concurrency": 100},
        params={"max_tokens": 5},
        response={"schema": schema, "truncated": {"retry_with_max_tokens": 50}},
    )
    summary, _, _ = simulate(job, handler)
    assert (summary.ok, summary.exit_code) == (1500, 0)
    assert (asked_for["mend"], asked_for["long"]) == (2, 2)
    where = tmp_path / "a"
    assert query(where, "select text, cache_hit, count(*), min(corrections), max(corrections), min(parsed.label) "
                 "from data where text in ('mend', 'long') group by all order by all") == [
        ("long", False, 1, 0, 0, "yes"), ("long", True, 69, 0, 0, "yes"),
        ("mend", False, 1, 1, 1, "yes"), ("mend", True, 68, 0, 0, "yes"),
    ]  # fmt: skip
