"""An output in shards: where rows go, what is refused, what readers see, and another number of shards."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from batchchat.cli.sharding import read_share
from batchchat.errors import JobError, OutputLocked, UsageError
from batchchat.history import history_of
from batchchat.identity import shard_of
from batchchat.inspection import find_records, status_of
from batchchat.job import Job
from batchchat.planning import plan_job
from batchchat.resharding import reshard_output
from batchchat.runner.options import RunOptions
from batchchat.store import Completions, Shards, read_output, read_state, verify
from batchchat.store.coordinated import CoordinatedOutput
from batchchat.store.joined_runs import worst_code
from batchchat.store.location import place_change
from batchchat.store.location.folder import FolderLocation
from batchchat.store.location.place_change import PlaceChange
from tests.integration.jobs import make_job, texts, write_rows
from tests.thorough import one_in
from tests.unit.test_run_clock import Provider, answer
from tests.worker_tasks import ids_of

GOLDEN = {"": 5, "a": 2, "0": 0, "1": 3, "ticket-17": 2, "Grüße": 7, "\ud800": 4}
"""Shards of some keys among 8. They never change: a row that moved would be asked again."""
BAD = "{broken\n{broken\n"
NO_KEYS = '{"id": null, "text": "x"}\n{"id": 3, "text": "again"}\n'
"""Rows without a key of their own; a run that finds one among its first thousand rows does not begin."""


def shards_job(folder: Path, count: int | None = 4, **fields: Any) -> Job:
    output: dict[str, Any] = {"path": str(folder / "out")} | ({"shards": count} if count else {})
    return make_job(folder, "http://test.invalid/v1", output=output, **fields)


def run_rows(folder: Path, rows: int = 20, *, shards: int | None = 4, bad: bool = False, **given: Any) -> Any:
    """Run a job over so many rows and some that cannot be asked; return its summary and the requests that were sent."""

    async def handler(_request: Any) -> Any:
        return answer()

    provider = Provider(handler)
    write_rows(folder / "rows.jsonl", texts(rows))
    if bad:
        with (folder / "rows.jsonl").open("a") as file:
            file.write(BAD + (NO_KEYS if rows > 1000 else ""))
    summary = run_prepared(shards_job(folder, shards, **given.pop("fields", {})), provider, **given)
    return summary, len(provider.times)


def run_prepared(job: Job, provider: Provider, **given: Any) -> Any:
    from batchchat.runner.run import run_job
    from tests.unit.test_run_clock import inline

    async def main() -> Any:
        return await run_job(job, transport=provider, offload=inline, environ={}, seed=1, **given)

    return anyio.run(main)


def test_the_shard_of_a_key_never_changes() -> None:
    assert {key: shard_of(key, 8) for key in GOLDEN} == GOLDEN
    assert shard_of(None, 8) == 0
    counts = [0] * 64
    for number in range(64_000):
        counts[shard_of(f"r{number}", 64)] += 1
    assert min(counts) > 850
    assert max(counts) < 1150


def test_the_identities_are_those_of_an_output_without_shards(tmp_path: Path) -> None:
    for name, shards in (("one", None), ("many", 4)):
        (tmp_path / name).mkdir()
        summary, sent = run_rows(tmp_path / name, 1001, shards=shards, bad=True)
        assert (summary.ok, summary.failed, summary.open, summary.rows, sent) == (1001, 4, 0, 1005, 1001)
        again, sent = run_rows(tmp_path / name, 1001, shards=shards, bad=True)
        assert (again.ok, again.failed, sent) == (1001, 4, 0)
    assert ids_of(tmp_path / "one/out") == ids_of(tmp_path / "many/out")
    assert {path.name[:9] for path in (tmp_path / "many/out/data").iterdir()} == {f"part-{n:03d}-" for n in range(4)}


def test_shards_are_taken_by_several_runs_one_after_another_and_readers_see_the_sum(tmp_path: Path) -> None:
    sent = []
    for share in range(2):
        _, number = run_rows(tmp_path, bad=True, options=RunOptions(share=(share, 2)))
        sent.append(number)
        status = status_of(tmp_path / "out")
        assert status.open == (None if share == 0 else 0)  # nobody has looked at the other shards yet
    assert sum(sent) == 20
    assert min(sent) > 0
    status, history = status_of(tmp_path / "out"), history_of(tmp_path / "out")
    assert (status.ok, status.failed, status.spent.requests) == (20, 2, 20)
    assert [run.new_ok for run in history.runs] == sent
    assert (history.total.new_ok, history.total.new_failed) == (20, 2)
    assert read_output(tmp_path / "out").num_rows == 22
    assert len(Completions(tmp_path / "out")) == 20
    assert len(list(find_records(tmp_path / "out", key="7"))) == 1
    assert verify(tmp_path / "out").ok
    assert verify(tmp_path / "out").records == 22
    plan = plan_job(shards_job(tmp_path))
    assert (plan.done, plan.requests) == (20, 0)


def test_an_edited_row_and_a_pruned_one_leave_their_shard(tmp_path: Path) -> None:
    run_rows(tmp_path)
    summary, sent = run_rows(tmp_path, 10, fields={"messages": [{"role": "user", "content": "New {{ text }}"}]})
    assert (summary.ok, summary.kept, sent) == (10, 10, 10)
    summary, sent = run_rows(tmp_path, 10, options=RunOptions(prune=True))
    assert (summary.kept, sent) == (0, 0)  # going back costs nothing: the archive of each shard has the answers
    assert verify(tmp_path / "out").archived == 30 - 10 + 10


def test_the_number_of_shards_is_frozen(tmp_path: Path) -> None:
    run_rows(tmp_path)
    with pytest.raises(UsageError, match=r"output\.shards is 8, and the output .* has 4 shards") as error:
        run_rows(tmp_path, shards=8)
    assert "batchchat reshard" in str(error.value.remedy)
    assert run_rows(tmp_path, shards=None)[1] == 0  # a job that says nothing takes what the output has
    (tmp_path / "out/_batchchat/shards.json").write_text("")
    with pytest.raises(Exception, match=r"shards.json is missing or damaged"):
        run_rows(tmp_path, shards=None)


def test_what_cannot_be_in_shards_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = str(tmp_path / "rows.jsonl")
    with pytest.raises(JobError, match=r"output\.shards: needs input.key") as error:
        run_rows(tmp_path, fields={"input": {"path": path}})
    assert "key: id" in str(error.value.remedy)
    with pytest.raises(JobError, match="batches of a provider need one process"):
        run_rows(tmp_path, fields={"engine": "batch"})
    with pytest.raises(UsageError, match="--shard is for an output with shards"):
        run_rows(tmp_path, shards=None, options=RunOptions(share=(0, 2)))
    with pytest.raises(UsageError, match="4 shards, which are too few for 5 processes"):
        run_rows(tmp_path, options=RunOptions(share=(0, 5)))
    with pytest.raises(UsageError, match="--fresh sets the whole output aside"):
        run_rows(tmp_path, options=RunOptions(share=(0, 2), fresh=True))
    assert not (tmp_path / "out").exists()


def test_a_shard_that_is_held_and_an_output_that_is_led_are_refused(tmp_path: Path) -> None:
    run_rows(tmp_path)
    hold = FolderLocation(tmp_path / "out", 2).hold("other")
    with pytest.raises(OutputLocked, match="shard 2: another run"):
        run_rows(tmp_path)
    run_rows(tmp_path, options=RunOptions(share=(1, 4)))
    hold.release()
    output = CoordinatedOutput.open(
        tmp_path / "out", Shards(4, (0, 1, 2, 3)), run_id="whole", job_name="test", snapshot={"name": "test"},
        fresh=False, take_over=False, outage=1.0, tell=lambda _message: None,
    )  # fmt: skip
    with pytest.raises(OutputLocked):
        run_rows(tmp_path)
    output.close()


@pytest.mark.thorough
def test_another_number_of_shards_keeps_everything_and_asks_nothing(tmp_path: Path) -> None:
    rows, bad = 1001, 4
    run_rows(tmp_path, rows, shards=None, bad=True)
    edited = {"messages": [{"role": "user", "content": "New {{ text }}"}]}
    run_rows(tmp_path, rows, shards=None, bad=True, fields=edited)
    (tmp_path / "out/NOTES.md").write_text("mine")
    ids, before = ids_of(tmp_path / "out"), status_of(tmp_path / "out")
    for count in (6, 1):
        done = reshard_output(tmp_path / "out", count)
        assert (done.records, done.archived, done.shards) == (rows + bad, rows, count)
        report = verify(tmp_path / "out")
        assert report.ok
        assert (report.records, report.archived) == (rows + bad, rows)
        assert ids_of(tmp_path / "out") == ids
        after = status_of(tmp_path / "out")
        assert (after.ok, after.failed, after.spent) == (before.ok, before.failed, before.spent)
        assert [run.new_ok for run in history_of(tmp_path / "out").runs] == [rows, rows]
        assert (tmp_path / "out/NOTES.md").read_text() == "mine"
    # Neither prompt is asked again, and no row that cannot be asked is noted twice.
    for fields in (edited, {}, edited):
        summary, sent = run_rows(tmp_path, rows, shards=None, bad=True, fields=fields)
        assert (sent, summary.ok, summary.failed, summary.kept) == (0, rows, bad, 0)
    reshard_output(tmp_path / "out", 5)
    for fields in ({}, edited):
        summary, sent = run_rows(tmp_path, rows, shards=5, bad=True, fields=fields)
        assert (sent, summary.ok, summary.failed, summary.kept) == (0, rows, bad, 0)
    assert len(list(tmp_path.glob("out.old-*"))) == 3
    assert not (tmp_path / "out.resharding").exists()


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, passes: int = 0) -> Iterator[None]:
    """Let a process kill itself at a call, once it has passed it so often."""
    real, left = getattr(owner, name), [passes]

    def kill(*given: Any, **named: Any) -> Any:
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return real(*given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, kill)
        yield


MOVE_KILLS = [
    # whether the system can exchange folders; the call that kills, and at which pass; whether the new output counts
    (True, FolderLocation, "carry_over", 0, False),
    (True, place_change, "exchange", 0, False),
    (True, Path, "rename", 0, True),
    (True, PlaceChange, "_unmark", 1, True),
    (False, Path, "rename", 0, False),
    (False, Path, "rename", 1, True),
    (False, PlaceChange, "_unmark", 1, True),
]


@pytest.mark.parametrize(("exchanges", "owner", "name", "passes", "moved"), one_in(4, MOVE_KILLS))
def test_a_move_that_is_killed_leaves_an_output_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool, owner: Any, name: str, passes: int, moved: bool
) -> None:
    run_rows(tmp_path, 30, shards=None)
    ids = ids_of(tmp_path / "out")
    if not exchanges:
        monkeypatch.setattr(place_change, "exchange", lambda *_: False)
    child = os.fork()
    if child == 0:
        try:
            with killed_at(monkeypatch, owner, name, passes):
                reshard_output(tmp_path / "out", 4)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    # Whoever comes first finds the output, as a reader or as a run.
    if passes:
        assert status_of(tmp_path / "out").ok == 30
    assert run_rows(tmp_path, 30, shards=4 if moved else None)[1] == 0
    assert ids_of(tmp_path / "out") == ids
    # A move that is killed is done again, another one begins anew, and each leaves the old output.
    assert reshard_output(tmp_path / "out", 3 if moved else 4).records == 30
    assert not (tmp_path / "out.resharding").exists()
    assert run_rows(tmp_path, 30, shards=3 if moved else 4)[1] == 0
    kept = list(tmp_path.glob("out.old-*"))
    assert len(kept) == 1 + moved
    assert all(ids_of(folder) == ids for folder in kept)
    assert not list(tmp_path.glob("*/_batchchat/changing-places"))


def test_a_whole_draft_does_not_take_the_place_of_an_output_that_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_rows(tmp_path, 30, shards=None)
    child = os.fork()
    if child == 0:
        try:
            with killed_at(monkeypatch, place_change, "exchange"):
                reshard_output(tmp_path / "out", 4)
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    shutil.rmtree(tmp_path / "out")
    assert run_rows(tmp_path, 30, shards=None)[1] == 30


def test_a_move_is_refused_without_a_key_and_while_a_run_goes_on(tmp_path: Path) -> None:
    run_rows(tmp_path, shards=None, fields={"input": {"path": str(tmp_path / "rows.jsonl")}})
    with pytest.raises(UsageError, match="its job names no key"):
        reshard_output(tmp_path / "out", 4)
    with pytest.raises(UsageError, match="has no shards already"):
        reshard_output(tmp_path / "out", 1)
    hold = FolderLocation(tmp_path / "out").hold("other")
    run_rows_key = make_job(tmp_path, "http://test.invalid/v1")
    assert run_rows_key.input.key == "id"
    with pytest.raises((OutputLocked, UsageError)):
        reshard_output(tmp_path / "out", 4)
    hold.release()


SHARES = [
    ("7/64", {}, (7, 64)),
    ("auto", {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "8"}, (1, 4)),
    ("auto", {"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_STEP": "2"}, (2, 3)),
    ("auto", {"JOB_COMPLETION_INDEX": "3", "BATCHCHAT_SHARDS": "8"}, (3, 8)),
    ("64/64", {}, "no share 64 of 64: they count from 0"),
    ("7", {}, "not of the form I/N"),
    ("a/b", {}, "not of the form I/N"),
    ("auto", {}, "neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX"),
    ("auto", {"JOB_COMPLETION_INDEX": "3"}, "BATCHCHAT_SHARDS is not in the environment"),
    ("auto", {"JOB_COMPLETION_INDEX": "x", "BATCHCHAT_SHARDS": "8"}, "JOB_COMPLETION_INDEX is 'x', and no number"),
]


@pytest.mark.parametrize(("text", "environ", "expected"), SHARES)
def test_a_share_is_read_from_the_option_or_the_array_job(text: str, environ: dict[str, str], expected: Any) -> None:
    if isinstance(expected, tuple):
        assert read_share(text, environ) == expected
    else:
        with pytest.raises(UsageError, match=expected) as error:
            read_share(text, environ)
        assert error.value.remedy


def test_the_exit_code_of_several_is_what_a_person_must_know_first() -> None:
    order = [3, 70, 74, 2, 69, 4, 1, 0]
    for place, code in enumerate(order):
        assert worst_code(reversed(order[place:])) == code
    assert worst_code([]) == 0
    assert worst_code([1, 130]) == 130
    assert worst_code([130, 4]) == 4


def _run_ids(output: Path) -> list[str]:
    """Return the runs that an output tells of, none before it is one."""
    try:
        return read_state(output).run_ids()
    except UsageError:
        return []


@pytest.mark.thorough
def test_runs_over_some_of_the_shards_each_are_told_together(tmp_path: Path) -> None:
    """Two runs side by side: `status` adds them up, `control` reaches both, and what they commit can be followed."""
    import functools
    import threading

    from batchchat.choosing import RecordFilter
    from batchchat.controlling import control_run
    from batchchat.following import follow_records
    from batchchat.runner.run import run_job

    async def handler(_request: Any) -> Any:
        await anyio.sleep(0.01)
        return answer()

    write_rows(tmp_path / "rows.jsonl", texts(2_000))
    job = shards_job(tmp_path, limits={"concurrency": 2})
    ended: list[Any] = []

    def work(share: int) -> None:
        run = functools.partial(
            run_job, job, transport=Provider(handler), options=RunOptions(share=(share, 2)), environ={}
        )
        ended.append(anyio.run(run))

    threads = [threading.Thread(target=work, args=(share,)) for share in range(2)]
    for thread in threads:
        thread.start()
    while len(_run_ids(tmp_path / "out")) < 2:
        time.sleep(0.02)
    followed = follow_records(tmp_path / "out", RecordFilter())
    told = [record for record in (next(followed) for _ in range(30)) if record is not None]
    status = status_of(tmp_path / "out")
    assert status.running is not None
    done = control_run(tmp_path / "out", "stop")
    for thread in threads:
        thread.join()
    assert done.changed
    assert [summary.exit_code for summary in ended] == [130, 130]
    assert told
    assert sum(summary.ok for summary in ended) == len(ids_of(tmp_path / "out"))
    assert status_of(tmp_path / "out").last.exit_code == 130  # type: ignore[union-attr]
