"""Runs of batches on a virtual clock: lost answers, lists that lag, outages of days, pauses, queues, wrong keys."""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import anyio
import httpx
import pyarrow as pa
import pytest
import trio.testing
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from batchchat import read_output
from batchchat.engines.batch.building import Planned
from batchchat.engines.batch.carried import Carried
from batchchat.engines.batch.chunks import ChunkReader, ChunkWriter, remove_leftovers
from batchchat.engines.batch.ledger import ChunkState, Ledger, Step, read_history
from batchchat.engines.batch.onward import Onward
from batchchat.engines.batch.service import (
    BatchProblem,
    BatchStatus,
    ChunkTooLarge,
    QueueFull,
    RemoteBatch,
    ResultLine,
    ServiceLimits,
    Unavailable,
)
from batchchat.errors import NeedsHuman, StorageError
from batchchat.events import Event, RunSummary
from batchchat.records import Completion, Request, RowBatch, Steps, Usage
from batchchat.runner.control import Control
from batchchat.runner.options import RunOptions
from batchchat.runner.run import run_job
from batchchat.store.index import RecordIndex
from tests.fake_batches import FakeService, completion
from tests.integration.jobs import make_job, texts, write_rows
from tests.thorough import examples
from tests.unit.test_run_clock import Provider, inline


def simulate(
    folder: Path,
    service: FakeService,
    rows: int | list[dict[str, Any]] = 20,
    *,
    engine: dict[str, Any] | None = None,
    options: RunOptions | None = None,
    stop: Control | None = None,
    during: Callable[[Control], Any] | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    **fields: Any,
) -> tuple[RunSummary, float, list[Event]]:
    """Run a job of batches; return the summary, the virtual seconds it took and its events."""
    write_rows(folder / "rows.jsonl", texts(rows) if isinstance(rows, int) else rows)
    fields = {"provider": {"base_url": "http://127.0.0.1:1/v1"}, **fields}
    job = make_job(folder, None, engine={"kind": "batch", "max_lines": 10, **(engine or {})}, **fields)
    events: list[Event] = []
    control = stop or Control()

    async def main() -> tuple[RunSummary, float]:
        started = anyio.current_time()
        found: list[RunSummary] = []
        async with anyio.create_task_group() as group:
            if during is not None:
                group.start_soon(during, control)
            found.append(
                await run_job(
                    job, offload=inline, environ={}, seed=1, listener=events.append, stop=control,
                    options=options or RunOptions(), open_service=lambda *_, **__: service,
                    demo_url="http://demo.invalid/v1", transport=transport, tick_s=10.0,
                )
            )  # fmt: skip
            group.cancel_scope.cancel()
        return found[0], anyio.current_time() - started

    clock = trio.testing.MockClock(autojump_threshold=0)
    summary, elapsed = anyio.run(main, backend="trio", backend_options={"clock": clock})
    return summary, elapsed, events


def names(events: list[Event]) -> list[str]:
    return [event.name for event in events if event.name.startswith("batch")]


# --- never twice


@pytest.mark.parametrize("lag", [0.0, 20.0, 100.0])
def test_a_lost_answer_to_create_is_settled_by_looking(tmp_path: Path, lag: float) -> None:
    service = FakeService(lost_creates=2, list_lag=lag)
    summary, _, events = simulate(tmp_path, service)
    assert (summary.exit_code, summary.ok) == (0, 20)
    assert len(service.batches) == 2
    assert names(events).count("batch_uncertain") == 2


def test_a_batch_that_shows_up_too_late_is_cancelled_and_what_it_cost_is_counted(tmp_path: Path) -> None:
    service = FakeService(lost_creates=1, list_lag=400.0, seconds=600.0)
    summary, _, events = simulate(tmp_path, service, 10)
    assert (summary.exit_code, summary.ok) == (0, 10)
    assert len(service.batches) == 2
    assert "batch_surplus" in names(events)
    assert list(service.cancelled) == ["batch_0"]
    assert summary.spend.requests == 10


def test_a_batch_whose_run_ended_before_it_was_found_is_not_forgotten(tmp_path: Path) -> None:
    service = FakeService(lost_creates=1, list_lag=400.0, seconds=600.0)

    async def stop(control: Control) -> None:
        await anyio.sleep(20)
        control.stop(reason="stopped", exit_code=130)

    first, _, _ = simulate(tmp_path, service, 10, during=stop)
    assert (first.exit_code, first.open, len(service.batches)) == (130, 10, 1)
    service.batches = {name: (batch, 0.0) for name, (batch, _) in service.batches.items()}
    summary, _, events = simulate(tmp_path, service, 10)
    assert (summary.exit_code, summary.ok) == (0, 10)
    assert "batch_surplus" in names(events)
    assert list(service.cancelled) == ["batch_0"]
    assert summary.spend_total.requests == 10


def test_a_provider_is_not_asked_if_nothing_is_to_be_sent(tmp_path: Path) -> None:
    assert simulate(tmp_path, FakeService())[0].exit_code == 0
    service = FakeService(script={"preflight": [NeedsHuman("the key is refused")]})
    summary, _, _ = simulate(tmp_path, service)
    assert (summary.exit_code, summary.ok, service.calls) == (0, 20, {})
    summary, _, _ = simulate(tmp_path, service, 25)
    assert (summary.exit_code, summary.open, "upload" in service.calls) == (3, 5, False)


def test_nothing_is_created_while_paused(tmp_path: Path) -> None:
    service = FakeService()

    async def pause(control: Control) -> None:
        await anyio.sleep(500)
        control.resume()

    control = Control()
    control.pause()
    summary, elapsed, _ = simulate(tmp_path, service, stop=control, during=pause)
    assert summary.exit_code == 0
    assert elapsed > 500
    assert min(service.calls["create"]) >= 500


# --- patience


def test_one_look_tells_of_all_batches_and_few_looks_are_made(tmp_path: Path) -> None:
    service = FakeService(seconds=1800.0)
    summary, elapsed, _ = simulate(tmp_path, service, 60)
    assert summary.exit_code == 0
    assert len(service.calls["poll"]) <= 120 * elapsed / 3600
    assert elapsed < 1800 + 120


def test_a_provider_that_is_out_of_sight_costs_nothing(tmp_path: Path) -> None:
    down: list[Exception | None] = [None, *(Unavailable("no connection") for _ in range(40))]
    service = FakeService(seconds=300.0, script={"poll": down})
    summary, elapsed, events = simulate(tmp_path, service)
    assert (summary.exit_code, summary.ok) == (0, 20)
    assert elapsed > 2_000
    assert names(events).count("batch_waits") == 1


def test_a_provider_that_takes_no_files_is_given_up_after_the_outage(tmp_path: Path) -> None:
    service = FakeService(script={"upload": [Unavailable("no connection") for _ in range(10_000)]})
    summary, elapsed, _ = simulate(tmp_path, service, retry={"outage": "5m"})
    assert (summary.exit_code, summary.open) == (69, 20)
    assert 300 < elapsed < 400


def test_a_full_queue_is_waited_for(tmp_path: Path) -> None:
    service = FakeService(script={"create": [None, *(QueueFull("try later") for _ in range(2)), None]}, seconds=300)
    summary, _, events = simulate(tmp_path, service)
    assert (summary.exit_code, summary.ok, len(service.batches)) == (0, 20, 2)
    assert names(events).count("batch_queue_full") == 2


def test_a_file_that_is_too_large_is_sent_in_parts(tmp_path: Path) -> None:
    service = FakeService(script={"create": [ChunkTooLarge("too large")]})
    summary, _, _ = simulate(tmp_path, service, 10)
    assert (summary.exit_code, summary.ok, len(service.batches)) == (0, 10, 2)


def test_a_key_of_another_project_stops_the_run_and_forgets_nothing(tmp_path: Path) -> None:
    service = FakeService(seconds=1e6)
    assert simulate(tmp_path, service, options=RunOptions(wait=False))[0].exit_code == 4
    kept, service.batches = service.batches, {}
    summary, _, _ = simulate(tmp_path, service)
    assert (summary.exit_code, summary.open) == (3, 20)
    assert "knows none of the 2 batches" in (summary.reason or "")
    service.batches, service.seconds = kept, 0.0
    service.batches = {name: (batch, -1e6) for name, (batch, _) in kept.items()}
    summary, _, _ = simulate(tmp_path, service)
    assert (summary.exit_code, summary.ok, summary.sent) == (0, 20, 0)


def test_a_job_that_every_line_is_refused_for_stops_with_all_rows_open(tmp_path: Path) -> None:
    body = json.dumps({"error": {"message": "no such model", "code": "model_not_found"}}).encode()
    service = FakeService(answer=lambda custom_id, _: ResultLine(custom_id, 404, body))
    summary, _, _ = simulate(tmp_path, service)
    assert (summary.exit_code, summary.failed, summary.open) == (3, 0, 20)


@pytest.mark.parametrize("limit", ["20%", 30])
def test_too_many_failed_lines_stop_the_run(tmp_path: Path, limit: object) -> None:
    refused = json.dumps({"error": {"message": "the text is too long", "code": "too_long"}}).encode()

    def answer(custom_id: str, line: bytes) -> ResultLine | None:
        if int(json.loads(line)["body"]["messages"][-1]["content"].rsplit(" ", 1)[1]) % 2:
            return ResultLine(custom_id, 400, refused)
        return ResultLine(custom_id, 200, completion())

    service = FakeService(answer=answer)
    engine = {"max_lines": 40, "queued_tokens": 1_500}
    limits = {"max_failed": limit}
    summary, _, _ = simulate(tmp_path, service, 400, engine=engine, limits=limits)
    assert summary.exit_code == 3
    assert summary.open > 100
    assert 0 < summary.failed < 100
    assert f"limits.max_failed ({limit})" in (summary.reason or "")
    assert "raise limits.max_failed" in (summary.remedy or "")
    created = len(service.batches)
    # The limit shapes no request: without it, the same rows go on, and none is asked again.
    later, _, _ = simulate(tmp_path, service, 400, engine=engine)
    assert (later.exit_code, later.ok, later.failed, later.open) == (1, 200, 200, 0)
    assert len(service.batches) > created
    assert b"".join(service.files.values()).count(b"\n") == 400


def test_a_remedy_of_the_provider_stops_the_run(tmp_path: Path) -> None:
    problem = BatchProblem("model_not_found", "no such model", remedy="Choose another one.")
    service = FakeService(status=BatchStatus.FAILED, problems=(problem,))
    summary, _, _ = simulate(tmp_path, service)
    assert (summary.exit_code, summary.open, summary.remedy) == (3, 20, "Choose another one.")


def test_a_row_that_no_batch_takes_fails_before_anything_is_sent(tmp_path: Path) -> None:
    rows = [*texts(3), {"id": 9, "text": "forbidden"}, {"id": 10, "text": "long " * 2_000}]
    service = FakeService(limits=ServiceLimits(line_bytes=2_000))
    write_rows(tmp_path / "rows.jsonl", rows)
    job = make_job(tmp_path, None, engine="batch")
    run = functools.partial(
        run_job, job, offload=inline, environ={}, open_service=lambda *_, **__: service, demo_url="http://x.invalid/v1"
    )
    clock = trio.testing.MockClock(autojump_threshold=0)
    summary = anyio.run(run, backend="trio", backend_options={"clock": clock})
    assert (summary.exit_code, summary.ok, summary.failed) == (1, 3, 2)
    assert b"forbidden" not in b"".join(service.files.values())


def test_files_are_deleted_only_if_the_job_says_so(tmp_path: Path) -> None:
    for keep in (True, False):
        folder = tmp_path / str(keep)
        folder.mkdir()
        service = FakeService()
        assert simulate(folder, service, 10, engine={"keep_files": keep})[0].exit_code == 0
        assert bool(service.deleted) is not keep


def test_a_correction_keeps_its_steps_over_batches_and_runs(tmp_path: Path) -> None:
    answers = {"first": completion("no JSON"), "second": completion('{"label": "a"}')}

    def answer(custom_id: str, line: bytes) -> ResultLine:
        return ResultLine(custom_id, 200, answers["second" if b"no JSON" in line else "first"])

    schema = {"type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]}
    service = FakeService(answer=answer, seconds=0.0)
    folder = tmp_path
    codes = []
    for _ in range(4):
        summary, _, _ = simulate(
            folder, service, 10, options=RunOptions(wait=False), response={"schema": schema, "mode": "prompt"}
        )
        codes.append(summary.exit_code)
        if not summary.exit_code:
            break
    assert codes[-1] == 0
    assert len(service.batches) == 2
    assert summary.spend_total.requests == 20


def test_equal_rows_are_sent_once(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"id": number, "text": f"row {number % 5}"} for number in range(20)])
    service = FakeService()
    job = make_job(tmp_path, None, engine={"kind": "batch", "max_lines": 10}, dedupe=True)
    run = functools.partial(
        run_job, job, offload=inline, environ={}, open_service=lambda *_, **__: service, demo_url="http://x.invalid/v1"
    )
    clock = trio.testing.MockClock(autojump_threshold=0)
    summary = anyio.run(run, backend="trio", backend_options={"clock": clock})
    assert (summary.exit_code, summary.ok, summary.cache_hits) == (0, 20, 15)
    assert b"".join(service.files.values()).count(b"\n") == 5


# --- ledger and chunks


def test_a_torn_line_of_the_ledger_is_cut_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for number in (1, 2):
        assert ledger.next_number() == number
        ledger.note(number, "planned", at=1.0, name=f"c{number}", lines=3)
    ledger.note(1, "creating", at=2.0)
    ledger.note(2, "cleaned", at=3.0)
    path = tmp_path / "batches.jsonl"
    whole = path.read_bytes()
    for cut in range(1, 40, 7):
        path.write_bytes(whole + whole[:cut])
        again = Ledger(tmp_path)
        assert set(again.chunks) == {1}
        assert again.next_number() == 3
        assert path.read_bytes() == whole
    assert [(state.number, state.step) for state in read_history(tmp_path)] == [(1, Step.CREATING), (2, Step.CLEANED)]
    path.write_bytes(whole.replace(b'"lines":3', b'"lines":4', 1))
    with pytest.raises(StorageError, match=r"batches\.jsonl:1: the line is damaged"):
        Ledger(tmp_path)


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@examples(25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(_TEXT, st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1))), min_size=1, max_size=40))
def test_a_chunk_gives_its_requests_back(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, Any]]) -> None:
    folder = tmp_path_factory.mktemp("chunk")
    columns = pa.RecordBatch.from_pydict(
        {
            "body": pa.array([text for text, _ in rows]).dictionary_encode(),
            "input": pa.array([n for _, n in rows], pa.int64()),
        }
    )
    batch = RowBatch("a.jsonl", 7, columns, [{} for _ in rows], nbytes=100 * len(rows))
    writer = ChunkWriter(folder, "job-000001-ab")
    requests = []
    for offset, (text, number) in enumerate(rows):
        request = Request(
            f"{offset:032x}", text.encode() or b"{}", offset, number and 5, batch, offset, text or None, 2
        )
        if offset % 3 == 0:
            request.usage, request.cost, request.started_at = Usage(1, None, 3), 7, 11
            last = Completion(text, "stop", "m", Usage(4, 5), tool_calls=({"id": "1", "name": text},))
            request.steps = Steps(b"first", 3, answers=1, corrections=1, reasons=text, last=last, problem="p")
        requests.append(request)
        writer.add(request, b"line\n", reserved=(1, 2), batches=offset)
    facts = writer.finish()
    assert (facts.lines, facts.nbytes, facts.max_tokens) == (len(rows), 5 * len(rows), 2 * len(rows))
    reader = ChunkReader(folder, facts.name)
    assert list(reader.custom_ids()) == [request.custom_id for request in requests]
    assert reader.at_line(len(rows)) == requests[-1].custom_id
    assert reader.at_line(len(rows) + 1) is None
    assert "nobody" not in reader
    for request in reversed(requests):
        found, batches = reader.get(request.custom_id) or pytest.fail("it is not there")
        assert batches == request.offset
        taken = found.batch.columns.slice(found.offset, 1)
        assert (
            taken.equals(columns.slice(request.offset, 1))
            or taken.to_pylist() == columns.slice(request.offset, 1).to_pylist()
        )
        assert taken.schema.equals(columns.schema)
        assert found.row_index == request.row_index
        for name in (
            "body",
            "key",
            "sample_index",
            "prompt_tokens",
            "max_tokens",
            "usage",
            "cost",
            "started_at",
            "steps",
        ):
            assert getattr(found, name) == getattr(request, name), name
    reader.close()
    remove_leftovers(folder, set())
    assert list(folder.iterdir()) == []


class Expiring(FakeService):
    """The batches of the first run expire with every other line answered; those of later runs answer all."""

    first: frozenset[str] = frozenset()

    def _now(self, batch_id: str) -> RemoteBatch:
        batch = super()._now(batch_id)
        return replace(batch, status=BatchStatus.EXPIRED, result_refs=("out",)) if batch_id in self.first else batch

    async def results(self, batch: RemoteBatch, scratch: Path) -> AsyncIterator[ResultLine]:
        number = 0
        async for line in super().results(batch, scratch):
            number += 1
            if batch.id not in self.first or number % 2:
                yield line


@pytest.mark.parametrize("edited", [False, True])
def test_what_expired_is_asked_again_by_the_next_run_as_the_job_is_then(tmp_path: Path, edited: bool) -> None:
    service = Expiring()
    assert simulate(tmp_path, service, 30, options=RunOptions(wait=False))[0].exit_code == 4
    service.first = frozenset(service.batches)
    fields: dict[str, Any] = {"messages": [{"role": "user", "content": "Edited: {{ text }}"}]} if edited else {}
    summary, _, _ = simulate(tmp_path, service, 30, **fields)
    assert (summary.exit_code, summary.ok, summary.failed) == (0, 30, 0)
    sent = sum(file.count(b"\n") for file in service.files.values())
    assert sent == 30 + (30 if edited else 15)
    assert summary.spend_total.requests == 15 + (30 if edited else 15)
    again, _, _ = simulate(tmp_path, service, 30, **fields)
    assert (again.exit_code, again.sent, again.new_ok) == (0, 0, 0)


@pytest.mark.parametrize(("failed", "lines"), [("none", 20), ("transient", 40)])
def test_a_failure_that_is_read_before_its_row_is_counted_and_tried_again_if_the_job_says_so(
    tmp_path: Path, failed: str, lines: int
) -> None:
    body = json.dumps({"error": {"message": "an error of the server"}}).encode()
    service = FakeService(answer=lambda custom_id, _: ResultLine(custom_id, 500, body), seconds=0.0)
    retry = {"attempts": 1, "failed": failed}
    assert simulate(tmp_path, service, options=RunOptions(wait=False), retry=retry)[0].exit_code == 4
    summary, _, _ = simulate(tmp_path, service, retry=retry)
    assert (summary.exit_code, summary.failed, summary.open) == (1, 20, 0)
    assert b"".join(service.files.values()).count(b"\n") == lines


# --- time that runs out: `then: local`


class Slow(FakeService):
    """Batches never end by themselves; a cancelled one has answered its first line."""

    def _now(self, batch_id: str) -> RemoteBatch:
        batch = super()._now(batch_id)
        return replace(batch, result_refs=("out",)) if batch_id in self.cancelled else batch

    async def results(self, batch: RemoteBatch, scratch: Path) -> AsyncIterator[ResultLine]:
        async with aclosing(cast(AsyncGenerator[ResultLine, None], super().results(batch, scratch))) as lines:
            async for line in lines:
                yield line
                return


async def answer_singly(_: httpx.Request) -> httpx.Response:
    return httpx.Response(200, content=completion("one by one"))


def test_near_the_deadline_batches_are_cancelled_and_the_rest_goes_on_as_single_requests(tmp_path: Path) -> None:
    """Of 40 rows, 20 are in batches when time runs out, and 20 wait for room in the queue."""
    service = Slow(seconds=1e9, limits=ServiceLimits(queued_tokens=80))
    summary, elapsed, events = simulate(
        tmp_path, service, 40, engine={"then": "local"}, deadline="2h", transport=Provider(answer_singly)
    )
    assert (summary.exit_code, summary.ok) == (0, 40)
    created = len(service.batches)
    assert 0 < created < 4
    assert all(5_400 <= at < 5_460 for at in service.cancelled.values())
    assert elapsed < 7_200
    engines = [record["engine"] for record in read_output(tmp_path / "out").to_pylist()]
    assert engines.count("batch") == created, "what a cancelled batch has answered is kept"
    assert engines.count("local") == 40 - created
    assert summary.spend.requests == 40, "nothing is paid twice"
    assert {"batch_closing", "batch_onward"} <= set(names(events))


def test_without_a_word_of_single_requests_a_deadline_leaves_batches_running(tmp_path: Path) -> None:
    service = Slow(seconds=1e9)
    summary, elapsed, _ = simulate(tmp_path, service, 20, deadline="2h")
    assert (summary.exit_code, summary.open, service.cancelled) == (4, 20, {})
    assert elapsed >= 7_200


def test_a_batch_that_cannot_be_cancelled_is_left_to_the_next_run(tmp_path: Path) -> None:
    service = Slow(seconds=1e9, script={"cancel": [NeedsHuman("use the console"), None]})
    summary, _, events = simulate(
        tmp_path, service, 20, engine={"then": "local"}, deadline="20m", transport=Provider(answer_singly)
    )
    assert (summary.exit_code, len(service.cancelled)) == (4, 1)
    assert names(events).count("batch_not_cancelled") == 1
    assert summary.open == 19


@pytest.mark.parametrize(
    ("state", "closing", "due"),
    [
        (ChunkState(1, step=Step.CREATED, round=2, created_at=0.0, expires_at=86_400.0), False, 82_800.0),
        (ChunkState(1, step=Step.CREATED, round=1, created_at=0.0, expires_at=86_400.0), False, None),
        (ChunkState(1, step=Step.CREATED, round=2, created_at=0.0), False, None),
        (ChunkState(1, step=Step.CREATED, round=2, created_at=0.0, expires_at=3_600.0), False, 2_700.0),
        (ChunkState(1, step=Step.CREATED, round=1, created_at=0.0), True, 0.0),
        (ChunkState(1, step=Step.CREATED, status=BatchStatus.EXPIRED), True, None),
        (ChunkState(1, step=Step.CREATING), True, None),
    ],
    ids=["last round", "first round", "no window told", "short window", "the job's deadline", "ended", "uncertain"],
)
def test_a_batch_is_cancelled_before_its_window_ends_only_in_its_last_round(
    tmp_path: Path, state: ChunkState, closing: bool, due: float | None
) -> None:
    async def main() -> float | None:
        known = Carried(RecordIndex(), None, {}, tmp_path)
        onward = Onward(
            lambda: pytest.fail("not yet"), known, 2, deadline=None, listener=lambda _: None, wall_clock=lambda: 0.0
        )
        onward.closing = closing
        planned = Planned(state, None)
        if due == 0.0:
            assert onward.to_cancel([planned]) == [planned]
            assert onward.to_cancel([planned]) == [], "once is enough"
            return 0.0
        return onward.due_in([planned])

    assert anyio.run(main) == due
