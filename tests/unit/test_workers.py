"""A coordinator and its workers, on a virtual clock: claims, deaths, ends, and what a person says to all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from batchchat.errors import StorageError, UsageError
from batchchat.events import Snapshot
from batchchat.history import history_of
from batchchat.inspection import status_of
from batchchat.job import Job
from batchchat.runner.control import Control
from batchchat.runner.options import RunOptions
from batchchat.store import verify
from batchchat.store.location.choice import location_of
from batchchat.store.sharding import shard_place
from batchchat.workers.claims import Claims
from tests.integration.jobs import make_job, texts, write_rows
from tests.thorough import one_in
from tests.unit.test_run_clock import Provider, answer
from tests.worker_tasks import Played, TaskLauncher, TaskWorker, ids_of, play

ROWS = 60


def provider_of(seconds: float = 1.0, refuse: Any = None) -> Provider:
    """A provider that answers after so many seconds; `refuse` may return a response in place of the answer."""

    async def handler(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(seconds)
        refused = None if refuse is None else refuse(json.loads(request.content)["messages"][0]["content"])
        return answer() if refused is None else refused

    return Provider(handler)


def job_of_shards(folder: Path, rows: int = ROWS, shards: int | None = 8, **fields: Any) -> Job:
    write_rows(folder / "rows.jsonl", texts(rows))
    output = {"path": str(folder / "out")} | ({"shards": shards} if shards else {})
    return make_job(folder, "http://test.invalid/v1", output=output, **fields)


def test_workers_are_one_run(tmp_path: Path) -> None:
    played = play(job_of_shards(tmp_path), 3, provider_of())
    summary = played.summary
    assert (summary.exit_code, summary.rows, summary.ok, summary.new_ok, summary.open, summary.sent) == (
        *(0, ROWS, ROWS, ROWS, 0),
        ROWS,
    )
    assert summary.spend.requests == summary.spend_total.requests == ROWS
    # All of them ask one keeper: what it tells is that of all, and not to be added up.
    assert max(snapshot.pace.in_use for snapshot in played.snapshots) <= 8
    assert max(snapshot.pace.concurrency for snapshot in played.snapshots) == 8
    assert 40 < max(snapshot.pace.requests_used for snapshot in played.snapshots) <= ROWS
    last = played.snapshots[-1]
    assert (last.ok, last.total, last.total_exact, last.run_id) == (ROWS, ROWS, True, summary.run_id)
    assert len(set(ids_of(tmp_path / "out"))) == ROWS
    history = history_of(tmp_path / "out")
    assert [(run.run_id, run.new_ok, run.exit_code) for run in history.runs] == [(summary.run_id, ROWS, 0)]
    again = play(job_of_shards(tmp_path), 2, provider_of())
    assert (again.summary.ok, again.summary.sent, again.summary.exit_code) == (ROWS, 0, 0)
    assert verify(tmp_path / "out").ok


def test_a_worker_that_finds_no_place_is_given_up_when_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed = TaskLauncher.start

    async def start(launcher: TaskLauncher, name: str) -> TaskWorker:
        if name != "1":
            await anyio.sleep_forever()
        return await placed(launcher, name)

    monkeypatch.setattr(TaskLauncher, "start", start)
    played = play(job_of_shards(tmp_path), 3, provider_of())
    assert (played.summary.exit_code, played.summary.ok, len(played.launcher.workers)) == (0, ROWS, 1)


def test_the_death_of_a_worker_costs_what_was_in_flight_and_another_takes_its_shards(tmp_path: Path) -> None:
    killed: list[int] = []

    def during(played: Played, snapshot: Snapshot) -> None:
        if snapshot.ok >= 10 and not killed:
            killed.append(snapshot.sending)
            played.launcher.workers[0].scope.cancel()

    played = play(job_of_shards(tmp_path), 2, provider_of(), during=during)
    assert "worker_died" in played.names()
    assert (played.summary.exit_code, played.summary.ok, played.summary.open) == (0, ROWS, 0)
    assert ROWS <= len(played.provider.times) <= ROWS + killed[0]
    assert len(set(ids_of(tmp_path / "out"))) == ROWS
    assert played.summary.new_ok == ROWS  # also what the dead one had counted
    assert len(played.launcher.workers) >= 3


def test_shards_that_kill_every_worker_are_given_up(tmp_path: Path) -> None:
    def during(played: Played, snapshot: Snapshot) -> None:
        for worker in played.launcher.workers:
            worker.scope.cancel()

    played = play(job_of_shards(tmp_path, shards=2), 1, provider_of(10.0), during=during)
    assert played.summary.exit_code == 70
    assert "killed every worker" in str(played.summary.reason)
    assert played.summary.open == ROWS
    assert play(job_of_shards(tmp_path, shards=2), 1, provider_of()).summary.exit_code == 0


ENDS = [
    ("a key that is refused", httpx.Response(401, json={"error": {"message": "no"}}), {}, 3),
    ("rows that fail", httpx.Response(400, json={"error": {"message": "bad row"}}), {"retry": {"attempts": 1}}, 1),
    (
        "too many rows that fail",
        httpx.Response(400, json={"error": {"message": "x"}}),
        {"limits": {"max_failed": 3}},
        3,
    ),
]


@pytest.mark.parametrize(("what", "response", "fields", "code"), one_in(3, ENDS), ids=[end[0] for end in ENDS])
def test_an_end_of_one_worker_is_that_of_the_run(
    tmp_path: Path, what: str, response: httpx.Response, fields: dict[str, Any], code: int
) -> None:
    def refuse(text: str) -> httpx.Response | None:
        wanted = True if code == 3 and not fields else text.endswith(("1", "2", "3", "4"))
        return httpx.Response(response.status_code, content=response.content) if wanted else None

    played = play(job_of_shards(tmp_path, **fields), 2, provider_of(refuse=refuse))
    summary = played.summary
    assert summary.exit_code == code
    assert summary.ok + summary.failed + summary.open == ROWS
    assert (summary.open == 0) == (code == 1)
    assert status_of(tmp_path / "out").last.exit_code == code  # type: ignore[union-attr]
    if code == 3:
        assert summary.remedy
        assert played.names().count("halted") == 1


def test_a_stop_drains_all_workers_and_the_same_command_goes_on(tmp_path: Path) -> None:
    control = Control()

    def during(_played: Played, snapshot: Snapshot) -> None:
        if snapshot.ok >= 10 and not control.asked:
            control.stop(reason="stopped by a test", exit_code=130)

    played = play(job_of_shards(tmp_path), 2, provider_of(), control=control, during=during)
    summary = played.summary
    assert (summary.exit_code, summary.reason) == (130, "stopped by a test")
    assert 10 <= summary.ok < ROWS
    assert summary.ok + summary.open == ROWS
    assert summary.sent == summary.ok == len(played.provider.times)  # what was in flight was waited for
    again = play(job_of_shards(tmp_path), 2, provider_of())
    assert (again.summary.exit_code, again.summary.ok, again.summary.sent) == (0, ROWS, ROWS - summary.ok)


def test_a_pause_holds_all_workers_and_a_limit_is_set_for_all(tmp_path: Path) -> None:
    control = Control()
    paused: list[Snapshot] = []

    def during(played: Played, snapshot: Snapshot) -> None:
        if snapshot.ok >= 10 and not paused:
            control.pause(by="me")
            paused.append(snapshot)
        if snapshot.phase == "paused" and snapshot.sending == 0:
            paused.append(snapshot)
            if len(paused) == 6:
                control.resume()

    played = play(job_of_shards(tmp_path), 2, provider_of(), control=control, during=during)
    assert played.summary.exit_code == 0
    assert len({snapshot.ok for snapshot in paused[2:]}) == 1
    assert paused[-1].steering.paused_by == "me"


def test_a_deadline_ends_all_workers(tmp_path: Path) -> None:
    job = job_of_shards(tmp_path, deadline="3s", limits={"concurrency": 2})
    played = play(job, 2, provider_of(), options=RunOptions(grace=2.0))
    assert (played.summary.exit_code, played.summary.ok + played.summary.open) == (4, ROWS)
    assert "deadline" in str(played.summary.reason)
    assert 0 < played.summary.ok < ROWS


def test_a_worker_whose_coordinator_is_gone_ends_in_order(tmp_path: Path) -> None:
    def during(played: Played, snapshot: Snapshot) -> None:
        if snapshot.ok >= 10:
            for worker in played.launcher.workers:
                worker._told_in.close()

    played = play(job_of_shards(tmp_path), 2, provider_of(), during=during)
    assert "the coordinator" in str(played.summary.reason)
    assert played.summary.ok == len(ids_of(tmp_path / "out"))


def test_what_workers_cannot_do_is_refused_with_words(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--workers needs an output in shards") as error:
        play(job_of_shards(tmp_path, shards=None), 2, provider_of())
    assert "--set output.shards=64" in str(error.value.remedy)
    with pytest.raises(UsageError, match="cannot read standard input"):
        play(job_of_shards(tmp_path, input={"path": "-", "key": "id"}), 2, provider_of())
    assert not (tmp_path / "out").exists()


def test_a_launcher_that_cannot_start_a_worker_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(_self: object, name: str) -> None:
        raise StorageError(f"worker {name} cannot be started", remedy="Start fewer.")

    monkeypatch.setattr("tests.worker_tasks.TaskLauncher.start", start)
    summary = play(job_of_shards(tmp_path), 2, provider_of()).summary
    assert (summary.exit_code, summary.open, summary.remedy) == (74, ROWS, "Start fewer.")


def test_claims_give_every_shard_once_and_again_after_a_death() -> None:
    claims = Claims(range(64), 4)
    first, second = claims.take("1", 0), claims.take("2", 0)
    assert first is not None
    assert second is not None
    assert len(first) == 8
    claims.end("2")
    assert claims.died("1", 0, got_on=False) == first
    assert claims.is_orphaned(first)
    assert claims.take("3", 0) == first
    taken = [*second, *first]
    while (claim := claims.take("2", 0)) is not None:
        assert not claims.is_orphaned(claim)
        taken += claim
        claims.end("2")
    assert sorted(taken) == list(range(64))
    assert (claims.left, claims.given_up) == (False, [])
    assert Claims((3, 5), 4).take("1", 0) == (3,)


def test_a_claim_that_somebody_still_holds_comes_later() -> None:
    claims = Claims((1, 2), 1)
    assert claims.take("1", 0) == (1,)
    claims.defer("1", 0, 5)
    assert claims.take("1", 1) == (2,)
    claims.end("1")
    assert claims.take("1", 4) is None
    assert claims.left
    assert claims.take("1", 5) == (1,)
    assert claims.held_for("1", 7) == 7


DEATHS = [
    # seconds until each death, whether the worker had got on, whether the shards are given up
    ([1, 1], True, False),
    ([1, 1, 1], True, True),
    ([400, 400, 400, 400], True, False),
    ([400, 400, 400], False, True),
    ([1, 1, 400, 1], True, False),
    ([1, 1, 400, 1, 1], True, True),
]


@pytest.mark.parametrize(("lives", "got_on", "given_up"), DEATHS)
def test_shards_are_given_up_if_they_kill_and_not_for_accidents(
    lives: list[float], got_on: bool, given_up: bool
) -> None:
    claims, now = Claims((1,), 1), 0.0
    for life in lives:
        assert claims.take("1", now) == (1,)
        now += life
        claims.died("1", now, got_on=got_on)
    assert (bool(claims.given_up), claims.left) == (given_up, not given_up)


@pytest.mark.thorough
def test_a_long_run_outlives_more_deaths_than_its_shards_could_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchchat.workers.claims._ACCIDENT_S", 30.0)
    killed: list[float] = [0.0]

    def during(played: Played, snapshot: Snapshot) -> None:
        if snapshot.elapsed_s - killed[-1] > 33 and len(killed) < 5:
            killed.append(snapshot.elapsed_s)
            played.launcher.workers[-1].scope.cancel()

    job = job_of_shards(tmp_path, shards=2, limits={"concurrency": 2})
    played = play(job, 1, provider_of(10.0), during=during, tick_s=0.5)
    assert (played.summary.exit_code, played.summary.ok, played.names().count("worker_died")) == (0, ROWS, 4)


def orders_to(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], bool]]:
    """Note which shards workers are told to run, and whether they are to be taken over."""
    told, real = [], TaskWorker.tell

    async def tell(worker: TaskWorker, message: Any) -> None:
        if message["do"] == "work":
            told.append((message["shards"], message.get("take_over", False)))
        await real(worker, message)

    monkeypatch.setattr(TaskWorker, "tell", tell)
    return told


def test_the_shards_of_a_dead_worker_are_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a lock that goes with its process nobody else can tell that it is dead."""
    told = orders_to(monkeypatch)

    def during(played: Played, snapshot: Snapshot) -> None:
        if snapshot.ok >= 10 and len(played.launcher.workers) == 2:
            played.launcher.workers[0].scope.cancel()

    assert play(job_of_shards(tmp_path), 2, provider_of(), during=during).summary.exit_code == 0
    again = [shards for shards, take_over in told if take_over]
    assert len(again) == 1
    assert told.count((again[0], False)) == 1


HELD = [
    # for how many seconds one shard is held, whether by an ended run, and how the run ends
    (20.0, True, 0, None),
    (1e9, True, 75, "waited for, 120 s at most"),
    (1e9, False, 75, None),
]


@pytest.mark.parametrize(("seconds", "ended", "code", "words"), one_in(3, HELD))
def test_shards_that_a_process_of_an_ended_run_holds_are_waited_for(
    tmp_path: Path, seconds: float, ended: bool, code: int, words: str | None
) -> None:
    """So it is after the coordinator was killed: its workers let what is in flight end."""
    first = play(job_of_shards(tmp_path, rows=8), 2, provider_of()).summary
    hold = shard_place(location_of(tmp_path / "out"), 3).hold(first.run_id if ended else "20990101T000000Z-000000")

    def during(_played: Played, snapshot: Snapshot) -> None:
        if snapshot.elapsed_s >= seconds:
            hold.release()

    played = play(job_of_shards(tmp_path), 2, provider_of(), during=during)
    hold.release()
    summary = played.summary
    assert summary.exit_code == code
    assert summary.ok + summary.open == ROWS
    held = [event.message for event in played.events if event.name == "shards_held"]
    assert len(held) == ended
    if code:
        assert "shard 3: another run" in str(summary.reason)
        # Only what is held stays undone, if it was waited for.
        assert (summary.ok > ROWS / 2) == ended
        assert (100 < summary.elapsed_s < 150) == ended
    else:
        assert len(set(ids_of(tmp_path / "out"))) == ROWS
    if words is not None:
        assert words in held[0]


def test_a_stop_ends_the_wait_for_shards_that_are_held(tmp_path: Path) -> None:
    first = play(job_of_shards(tmp_path, rows=8), 2, provider_of()).summary
    hold = shard_place(location_of(tmp_path / "out"), 3).hold(first.run_id)
    control = Control()

    def during(_played: Played, snapshot: Snapshot) -> None:
        if snapshot.elapsed_s >= 15:
            control.stop(reason="enough", exit_code=130)

    played = play(job_of_shards(tmp_path), 2, provider_of(), during=during, control=control)
    hold.release()
    assert played.summary.exit_code == 130
    assert played.summary.elapsed_s < 20


def test_the_budget_and_the_limits_hold_over_all_workers(tmp_path: Path) -> None:
    under_way = most = 0

    async def handler(_request: httpx.Request) -> httpx.Response:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await anyio.sleep(1.0)
        under_way -= 1
        return answer()

    provider = Provider(handler)
    fields: dict[str, Any] = {"limits": {"concurrency": 6}, "budget": {"max_requests": 25}}
    played = play(job_of_shards(tmp_path, **fields), 3, provider)
    summary = played.summary
    assert (summary.exit_code, len(provider.times), summary.ok, summary.open) == (4, 25, 25, ROWS - 25)
    assert "max_requests" in str(summary.reason)
    assert summary.budget is not None
    assert summary.budget.requests == 25
    assert most == 6
    again = play(job_of_shards(tmp_path, budget={"max_requests": 100}), 2, provider)
    assert (again.summary.exit_code, again.summary.ok, len(provider.times)) == (0, ROWS, ROWS)


def test_a_budget_whose_price_is_not_known_is_refused_before_a_worker_starts(tmp_path: Path) -> None:
    job = job_of_shards(tmp_path, budget={"max_cost": 5}, provider={"base_url": "http://test.invalid/v1"})
    with pytest.raises(UsageError, match="no price is known"):
        play(job, 2, provider_of())


def test_settings_of_a_running_run_reach_all_workers(tmp_path: Path) -> None:
    control = Control()

    def during(_played: Played, snapshot: Snapshot) -> None:
        if snapshot.ok >= 8 and not control.settings:
            control.set({"limits.concurrency": 2, "budget.max_requests": 30}, by="me")

    job = job_of_shards(tmp_path, limits={"concurrency": 8}, budget={"max_requests": 1_000})
    played = play(job, 2, provider_of(), control=control, during=during)
    assert (played.summary.exit_code, len(played.provider.times)) == (4, 30)
    assert min(snapshot.sending for snapshot in played.snapshots if snapshot.ok > 20) <= 2


def test_a_job_that_uses_no_shards_imports_nothing_of_them() -> None:
    code = "import sys, batchchat.cli.running, batchchat.runner.run; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    rooms = ("batchchat.workers", "batchchat.resharding", "batchchat.sharing", "batchchat.cli.sharding")
    modules = ("sharded", "coordinated", "resharding", "joined_runs")
    assert not [name for name in loaded if name.startswith(rooms)]
    assert not {f"batchchat.store.{name}" for name in modules} & set(loaded)
