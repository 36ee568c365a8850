"""Steering a running job: pause, resume and other limits, on a virtual clock; several watchers of one control."""

from __future__ import annotations

import json
import threading
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

import batchchat
from batchchat.errors import UsageError
from batchchat.events import Setting, Snapshot
from batchchat.job import validate_job
from batchchat.runner.control import Ceilings, Control, Settings, StopRequest
from batchchat.runner.options import RunOptions
from batchchat.runner.settings import checked_settings, read_settings
from batchchat.runner.steering import RunSteering
from batchchat.store import CommandFiles, lock_holder, running_outputs, verify
from tests.integration.jobs import make_job, texts, write_rows
from tests.integration.suites import Bench
from tests.integration.suites import Provider as EvalProvider
from tests.unit.test_run_clock import Provider, answer, simulate


class Watcher:
    """Notes what a control calls."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def on_stop(self, times: int) -> None:
        self.calls.append(times)

    def on_pause(self) -> None:
        self.calls.append("pause")

    def on_resume(self) -> None:
        self.calls.append("resume")

    def on_retune(self, ceilings: Ceilings) -> None:
        self.calls.append(ceilings)

    def check(self, settings: Settings) -> None:
        if settings.get("grace") == 13:
            raise UsageError("not that one")

    def on_set(self, settings: Settings) -> None:
        self.calls.append(dict(settings))


def test_every_watcher_hears_what_comes_and_what_came_before() -> None:
    control, first, second = Control(), Watcher(), Watcher()
    ceilings = Ceilings(concurrency=3)
    assert not control.watched
    with control.watch(first):
        control.pause()
        control.pause()
        control.retune(ceilings)
        with control.watch(second):
            control.stop(reason="one", exit_code=143)
        control.stop(reason="two", exit_code=130)
        control.resume()
    control.stop(reason="three", exit_code=130)
    assert first.calls == ["pause", ceilings, 1, 2, "resume"]
    assert second.calls == [ceilings, "pause", 1]
    assert (control.reason, control.exit_code, control.asked) == ("one", 143, 3)
    assert control.watched


def test_the_old_name_of_a_control_goes_on() -> None:
    assert StopRequest is Control


def steered(tmp_path: Path, control: Control, steps: dict[int, Any], rows: int, **fields: Any) -> Any:
    """Run rows that take a second each; `steps` holds what is done with the control at which request."""

    async def handler(_request: httpx.Request) -> httpx.Response:
        step = steps.get(len(provider.times))
        if step is not None:
            step()
        await anyio.sleep(1)
        return answer("yes")

    provider = Provider(handler)
    summary, elapsed, _ = simulate(tmp_path, provider, rows, stop=control, **fields)
    return summary, elapsed, provider


@pytest.mark.parametrize("pace", [{"concurrency": 2}, {"concurrency": 2, "requests_per_minute": 60}])
def test_a_pause_sends_nothing_and_loses_nothing(tmp_path: Path, pace: dict[str, Any]) -> None:
    control = Control()
    phases: list[str] = []

    async def handler(_request: httpx.Request) -> httpx.Response:
        if len(provider.times) == 5:
            control.pause()
        await anyio.sleep(1)
        return answer("yes")

    def on_snapshot(snapshot: Snapshot) -> None:
        phases.append(snapshot.phase)
        if control.paused and snapshot.elapsed_s > 200:
            control.resume()

    provider = Provider(handler)
    summary, _, _ = simulate(tmp_path, provider, 10, stop=control, limits=pace, on_snapshot=on_snapshot)
    assert (summary.exit_code, summary.ok, summary.sent) == (0, 10, 10)
    gaps = [later - earlier for earlier, later in zip(provider.times, provider.times[1:], strict=False)]
    assert max(gaps) > 180
    assert sum(gap > 100 for gap in gaps) == 1
    assert "paused" in phases


def test_a_pause_during_an_outage_is_no_part_of_it(tmp_path: Path) -> None:
    """The provider is back when the run goes on: the pause does not end it."""
    control = Control()

    async def handler(_request: httpx.Request) -> httpx.Response:
        await anyio.sleep(1)
        if len(provider.times) >= 3 and not resumed:
            return httpx.Response(503, json={"error": {"message": "overloaded"}})
        return answer("yes")

    resumed = False

    def on_snapshot(snapshot: Snapshot) -> None:
        nonlocal resumed
        if 20 < snapshot.elapsed_s < 22:
            control.pause()
        elif control.paused and snapshot.elapsed_s > 200:
            resumed = True
            control.resume()

    provider = Provider(handler)
    summary, elapsed, _ = simulate(
        tmp_path,
        provider,
        10,
        stop=control,
        limits={"concurrency": 2},
        retry={"outage": "60s"},
        on_snapshot=on_snapshot,
    )
    assert (summary.exit_code, summary.ok, summary.reason) == (0, 10, None)
    assert elapsed > 200


def test_a_stop_ends_a_paused_run(tmp_path: Path) -> None:
    control = Control()

    def on_snapshot(snapshot: Snapshot) -> None:
        if snapshot.elapsed_s > 50 and not control.asked:
            control.stop(reason="asked to", exit_code=143)

    provider = Provider(slow)
    control.pause()
    summary, elapsed, _ = simulate(tmp_path, provider, 10, stop=control, on_snapshot=on_snapshot)
    assert (summary.exit_code, summary.sent, summary.open) == (143, 0, 10)
    assert elapsed < 60


async def slow(_request: httpx.Request) -> httpx.Response:
    await anyio.sleep(1)
    return answer("yes")


def test_limits_change_while_a_run_goes_on(tmp_path: Path) -> None:
    """Ten rows one at a time, then ninety ten at a time; and the other way round."""
    wide, narrow = Control(), Control()
    more = {10: lambda: wide.retune(Ceilings(concurrency=10))}
    summary, elapsed, _ = steered(made(tmp_path / "wide"), wide, more, 100, limits={"concurrency": 1})
    assert (summary.exit_code, summary.ok) == (0, 100)
    assert elapsed < 40
    less = {90: lambda: narrow.retune(Ceilings(concurrency=1))}
    summary, elapsed, _ = steered(made(tmp_path / "narrow"), narrow, less, 100, limits={"concurrency": 10})
    assert (summary.exit_code, summary.ok) == (0, 100)
    assert 10 < elapsed < 40


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


# --- settings


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("limits.concurrency=64", {"limits.concurrency": 64}),
        ("rpm=1_000", {"limits.requests_per_minute": 1000}),
        ("tpm=1e6", {"limits.tokens_per_minute": 1_000_000}),
        ("concurrency=null", {"limits.concurrency": None}),
        ("max_cost=2.5", {"budget.max_cost": 2.5}),
        ("budget.max_tokens=10", {"budget.max_tokens": 10}),
        ("deadline=1h30m", {"deadline": 5400.0}),
        ("deadline=none", {"deadline": None}),
        ("grace=0", {"grace": 0.0}),
    ],
)
def test_what_can_be_set(text: str, found: dict[str, Any]) -> None:
    assert read_settings([text]) == found
    # What one process writes as JSON, another reads again.
    assert checked_settings(json.loads(json.dumps(found))) == found


@pytest.mark.parametrize(
    ("texts", "told", "remedy"),
    [
        (["concurrency=0"], "limits.concurrency: '0' is not possible", "from 1 to 20,000"),
        (["concurrency=20001"], "limits.concurrency: '20001'", "from 1 to 20,000"),
        (["concurrency=1.5"], "limits.concurrency: '1.5'", "whole number"),
        (["concurrency="], "limits.concurrency: ''", "whole number"),
        (["rpm=many"], "limits.requests_per_minute: 'many'", "at least 1"),
        (["rpm=true"], "limits.requests_per_minute: 'true'", "at least 1"),
        (["max_cost=inf"], "budget.max_cost: 'inf'", "more than 0"),
        (["max_cost=nan"], "budget.max_cost: 'nan'", "more than 0"),
        (["max_cost=-1"], "budget.max_cost: '-1'", "more than 0"),
        (["deadline=0"], "deadline: '0'", "such as 50m"),
        (["deadline=soon"], "deadline: 'soon'", "such as 50m"),
        (["grace=null"], "grace: null", "such as 20s"),
        (["grace=-4s"], "grace: '-4s'", "such as 20s"),
        (["model=x"], "'model' cannot be set while a run goes on", "change the job"),
        (["limits.concurency=3"], "did you mean 'limits.concurrency'?", "What can be set is limits.concurrency"),
        (["rpm=3", "limits.requests_per_minute=4"], "limits.requests_per_minute is set twice", "once"),
        (["concurrency"], "not of the form FIELD=VALUE", "limits.concurrency=64"),
        (["=3"], "not of the form FIELD=VALUE", "limits.concurrency=64"),
        ([], "set needs a field", "grace"),
    ],
)
def test_what_cannot_be_set_is_told_with_what_is_possible(texts: list[str], told: str, remedy: str) -> None:
    with pytest.raises(UsageError) as error:
        read_settings(texts)
    assert told in error.value.message
    assert remedy in (error.value.remedy or "")


def test_settings_hold_for_those_that_begin_to_watch_late_until_newer_ceilings_come() -> None:
    control, watcher = Control(), Watcher()
    control.set({"limits.concurrency": 3, "grace": 5.0}, by="ana")
    with control.watch(watcher):
        control.set({"grace": 6.0})
        with pytest.raises(UsageError, match="not that one"):
            control.set({"grace": 13.0, "limits.concurrency": 9})
    assert watcher.calls == [{"limits.concurrency": 3, "grace": 5.0}, {"grace": 6.0}]
    assert control.settings == {"limits.concurrency": 3, "grace": 6.0}
    assert control.steering.settings == (Setting("limits.concurrency", 3, "ana"), Setting("grace", 6.0))
    control.retune(Ceilings(concurrency=4))
    late = Watcher()
    with control.watch(late):
        pass
    assert late.calls == [Ceilings(concurrency=4), {"grace": 6.0}]


def test_one_limit_is_set_and_the_job_keeps_the_others(tmp_path: Path) -> None:
    """Sixty a minute still hold, though thirty may be under way now."""
    control = Control()
    steps = {2: lambda: control.set({"limits.concurrency": 30})}
    limits = {"concurrency": 1, "requests_per_minute": 60}
    summary, elapsed, provider = steered(tmp_path, control, steps, 120, limits=limits)
    assert (summary.exit_code, summary.ok) == (0, 120)
    for at, begun in enumerate(provider.times):
        assert sum(begun <= time < begun + 59.9 for time in provider.times[at:]) <= 60
    assert elapsed < 130


def test_a_deadline_is_put_off_brought_forward_or_taken_away(tmp_path: Path) -> None:
    for name, deadline, code, most in (("off", 500.0, 0, 110), ("on", 20.0, 4, 22), ("none", None, 0, 110)):
        control = Control()
        steps = {5: lambda control=control, deadline=deadline: control.set({"deadline": deadline})}
        summary, elapsed, _ = steered(
            made(tmp_path / name), control, steps, 100, limits={"concurrency": 1}, deadline="50s"
        )
        assert (summary.exit_code, elapsed < most) == (code, True), name


def test_the_grace_changes_while_a_run_drains(tmp_path: Path) -> None:
    async def handler(_request: httpx.Request) -> httpx.Response:
        if len(provider.times) == 1:
            control.stop(reason="enough", exit_code=130)
        await anyio.sleep(1000)
        return answer("yes")

    def on_snapshot(snapshot: Snapshot) -> None:
        if snapshot.phase == "draining" and not control.settings:
            control.set({"grace": 100.0})

    control = Control()
    provider = Provider(handler)
    summary, elapsed, _ = simulate(tmp_path, provider, 3, stop=control, on_snapshot=on_snapshot, limits={})
    assert (summary.exit_code, summary.ok) == (130, 0)
    assert 100 <= elapsed < 102


@pytest.mark.parametrize("budget", [{}, {"max_requests": 1000}], ids=["no budget", "a budget"])
@pytest.mark.parametrize(
    "cap", [{"budget.max_requests": 20}, {"budget.max_tokens": 220}, {"budget.max_cost": 0.001}], ids=str
)
def test_a_budget_is_set_while_a_run_goes_on(tmp_path: Path, cap: dict[str, Any], budget: dict[str, int]) -> None:
    control = Control()
    prices = {"input": 4.0, "output": 10.0, "currency": "EUR"}
    summary, _, _ = steered(
        tmp_path,
        control,
        {5: lambda: control.set(cap)},
        100,
        limits={"concurrency": 1},
        budget=budget,
        prices=prices,
        params={"max_tokens": 1},
    )
    assert summary.exit_code == 4
    assert next(iter(cap)) in (summary.reason or "")
    # 20 requests of 11 tokens and 50 millionths of a EUR. A budget reserves what a prompt may take, and without one a
    # second's look may come a request or two late.
    assert 10 <= summary.sent <= 23
    assert summary.sent + summary.open == 100


def test_a_cap_on_money_needs_a_price(tmp_path: Path) -> None:
    for name, budget in (("none", {}), ("some", {"max_requests": 1000})):
        control = Control()
        told: list[str] = []

        def step(control: Control = control, told: list[str] = told) -> None:
            try:
                control.set({"limits.concurrency": 3, "budget.max_cost": 1.0})
            except UsageError as error:
                told.append(error.message)

        folder = made(tmp_path / name)
        summary, _, _ = steered(folder, control, {3: step}, 10, model="one without a price", budget=budget)
        assert (summary.exit_code, control.settings) == (0, {})
        assert told == ["budget.max_cost cannot be kept: the price of the model is not known"]


def test_a_control_may_be_used_from_another_thread(tmp_path: Path) -> None:
    """Pause, resume and stop from threads while `run` holds the caller's; errors come back to the thread."""
    control = Control()
    events: list[str] = []
    told: list[str] = []

    def steer() -> None:
        control.pause()
        control.resume()
        try:
            control.set({"deadline": 0.0001})
        except UsageError as error:
            told.append(error.message)
        control.stop(reason="that is enough", exit_code=4)

    thread = threading.Thread(target=steer)

    def on_snapshot(_snapshot: Snapshot) -> None:
        if thread.ident is None:
            thread.start()

    async def handler(_request: httpx.Request) -> httpx.Response:
        await anyio.sleep(0.02)
        return answer("yes")

    write_rows(tmp_path / "rows.jsonl", texts(400))
    job = make_job(tmp_path, None, limits={"concurrency": 1})
    result = batchchat.run(
        job,
        control=control,
        transport=Provider(handler),
        environ={},
        on_snapshot=on_snapshot,
        listener=lambda event: events.append(event.name),
    )
    thread.join(5)
    assert (result.exit_code, result.reason) == (4, "that is enough")
    assert [name for name in events if name in {"paused", "resumed", "stopping"}] == ["paused", "resumed", "stopping"]
    assert [text.partition(":")[0] for text in told] == ["deadline"]
    with pytest.raises(UsageError, match="one control"):
        batchchat.run(job, control=control, stop=Control())


# --- commands in the output


def commanded(
    tmp_path: Path, commands: dict[float, dict[str, Any]], rows: int = 40, **fields: Any
) -> tuple[Any, list[dict[str, Any]], list[Any], list[Snapshot]]:
    """Run rows that take a second each, one at a time; send each command when so many seconds are over."""
    sent: dict[float, str] = {}
    snapshots: list[Snapshot] = []
    files = CommandFiles(tmp_path / "out")

    def on_snapshot(snapshot: Snapshot) -> None:
        snapshots.append(snapshot)
        for moment, command in commands.items():
            if moment not in sent and snapshot.elapsed_s >= moment:
                sent[moment] = files.send(snapshot.run_id, command)

    fields = {"limits": {"concurrency": 1}, **fields}
    summary, _, events = simulate(tmp_path, Provider(slow), rows, on_snapshot=on_snapshot, **fields)
    replies = [files.reply_to(name) or {} for name in sent.values()]
    return summary, replies, events, snapshots


def test_a_run_carries_out_commands_and_replies(tmp_path: Path) -> None:
    summary, replies, events, snapshots = commanded(
        tmp_path,
        {
            3: {"action": "pause", "by": "ana on host7"},
            5: {"action": "pause", "by": "ben on host8"},
            6: {"action": "set", "settings": {"limits.concurrency": 10}, "by": "ben on host8"},
            7: {"action": "set", "settings": {"limits.concurrency": 10}},
            8: {"action": "set", "settings": {"limits.concurrency": 0}},
            9: {"action": "set", "settings": "x"},
            10: {"action": "explode"},
            11: {},
            12: {"action": "set", "settings": {"deadline": 4}},
            60: {"action": "resume"},
            61: {"action": "resume"},
        },
    )
    assert (summary.exit_code, summary.ok) == (0, 40)
    assert [reply.get("changed") for reply in replies] == [True, False, True, False, *[None] * 5, True, False]
    assert replies[0]["did"].startswith("paused")
    assert replies[1]["did"] == "it was paused already"
    assert replies[2]["did"] == "set limits.concurrency=10"
    assert replies[3]["did"] == "limits.concurrency=10 was set already"
    assert replies[4]["error"] == "limits.concurrency: '0' is not possible"
    assert [("error" in reply, "did" in reply) for reply in replies[4:9]] == [(True, False)] * 5
    assert "the run began 12s ago" in replies[8]["error"]
    assert [event.name for event in events if event.name in {"paused", "settings_changed", "resumed"}] == [
        "paused",
        "settings_changed",
        "resumed",
    ]
    while_paused = next(one for one in snapshots if one.elapsed_s > 30)
    assert while_paused.phase == "paused"
    assert while_paused.steering.paused_by == "ana on host7"
    assert datetime.fromisoformat(while_paused.steering.paused_since or "").tzinfo is not None
    assert while_paused.steering.settings == (Setting("limits.concurrency", 10, "ben on host8"),)
    assert snapshots[-1].steering.paused_since is None
    # In force within a second: ten at a time were under way right after the end of the pause.
    assert max(one.sending for one in snapshots if 60 <= one.elapsed_s <= 61) == 10


def test_a_stop_drains_and_a_second_one_ends_at_once(tmp_path: Path) -> None:
    summary, replies, _, _ = commanded(made(tmp_path / "one"), {3: {"action": "stop", "by": "ana on host7"}})
    assert (summary.exit_code, summary.reason) == (130, "stopped by ana on host7 (`batchchat control`)")
    assert "a second stop ends it at once" in replies[0]["did"]
    assert 3 <= summary.ok <= 5

    async def stuck(_request: httpx.Request) -> httpx.Response:
        await anyio.sleep(10_000)
        return answer("yes")

    files = CommandFiles(tmp_path / "two" / "out")
    names: list[str] = []

    def on_snapshot(snapshot: Snapshot) -> None:
        if len(names) < 3 and snapshot.elapsed_s > 3 * len(names):
            names.append(files.send(snapshot.run_id, {"action": "pause" if len(names) == 1 else "stop"}))

    folder = made(tmp_path / "two")
    summary, elapsed, _ = simulate(
        folder, Provider(stuck), 5, on_snapshot=on_snapshot, options=RunOptions(grace=500), limits={}
    )
    assert (summary.exit_code, summary.ok) == (130, 0)
    assert elapsed < 10
    replies = [files.reply_to(name) or {} for name in names]
    assert replies[1]["error"] == "the run is ending: it launches nothing more"
    assert replies[2]["did"].startswith("stopped at once")


def test_a_command_for_another_run_is_never_carried_out(tmp_path: Path) -> None:
    summary, *_ = commanded(tmp_path, {}, rows=3)
    files = CommandFiles(tmp_path / "out")
    left = files.send(summary.run_id, {"action": "stop"})
    files.reply("00000000000000000001-dead", {"did": "x"})
    (tmp_path / "out" / "_batchchat" / "control" / "junk.command").write_bytes(b"\xff{")
    again, *_ = commanded(tmp_path, {}, rows=6)
    assert (again.exit_code, again.ok, again.new_ok) == (0, 6, 3)
    assert files.reply_to(left) is None
    assert list((tmp_path / "out" / "_batchchat" / "control").iterdir()) == []
    assert verify(tmp_path / "out").problems == []


def test_commands_come_in_their_order_to_their_run_and_are_withdrawn_once(tmp_path: Path) -> None:
    commanded(tmp_path, {}, rows=1)
    files = CommandFiles(tmp_path / "out")
    names = [files.send("run-a", {"action": str(number)}) for number in range(5)]
    folder = tmp_path / "out" / "_batchchat" / "control"
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert files.withdraw(names[1])
    assert not files.withdraw(names[1])
    assert files.take("run-b") == []
    names = [files.send("run-a", {"action": str(number)}) for number in range(3)]
    assert [command["action"] for _, command in files.take("run-a")] == ["0", "1", "2"]
    assert not files.withdraw(names[0])
    assert files.reply_to(names[0]) is None
    files.reply(names[0], {"did": "x"})
    assert files.reply_to(names[0]) == {"did": "x"}
    assert files.reply_to(names[0]) is None


def test_a_batch_has_no_limits_to_set() -> None:
    """What a run refuses is refused as a whole."""
    job = validate_job({**BATCH_JOB, "engine": "batch"})
    control = Control()
    run = SimpleNamespace(
        job=job, options=RunOptions(), store=SimpleNamespace(location="."), budget=None, currency=None, started=0.0
    )

    async def main() -> None:
        async with anyio.create_task_group() as group:
            steering = RunSteering(run, group, anyio.lowlevel.checkpoint, look_s=1)
            refused = pytest.raises(UsageError, match=r"limits\.concurrency: this run sends batches")
            with control.watch(steering), refused:
                control.set({"limits.concurrency": 3, "grace": 3.0})

    anyio.run(main)
    assert control.settings == {}


BATCH_JOB: dict[str, Any] = {
    "name": "b",
    "input": "rows.jsonl",
    "output": "out",
    "provider": "demo",
    "model": "m",
    "messages": [{"role": "user", "content": "{{ text }}"}],
}


# --- evaluations


@pytest.mark.thorough
def test_a_command_for_an_evaluation_reaches_all_its_runs(tmp_path: Path) -> None:
    bench = Bench(tmp_path, EvalProvider(lambda _model, _text: "yes"))
    bench.rows({"id": number, "text": f"row {number}", "gold": "yes"} for number in range(30))
    suite = bench.suite(deadline="40s", job={"limits": {"concurrency": 1}})
    sent: dict[int, str] = {}
    steps = {
        5: {"action": "pause", "whole": True, "by": "ana"},
        20: {"action": "set", "whole": True, "settings": {"limits.concurrency": 5, "deadline": 1000}},
        22: {"action": "set", "whole": True, "settings": {"budget.max_tokens": 5}},
        60: {"action": "resume", "whole": True},
    }
    files: list[CommandFiles] = []

    def on_snapshot(snapshot: Snapshot) -> None:
        bench.snapshots.append(snapshot)
        running = running_outputs(bench.out)
        for moment, command in steps.items():
            if moment not in sent and snapshot.elapsed_s >= moment:
                files.append(CommandFiles(running[0]))
                sent[moment] = files[-1].send(str(lock_holder(running[0])["run_id"]), command)  # type: ignore[index]

    done = bench.evaluate(suite, on_snapshot=on_snapshot)
    replies = [box.reply_to(name) or {} for box, name in zip(files, sent.values(), strict=True)]
    assert (done.exit_code, len(running_outputs(bench.out))) == (0, 0)
    assert [reply.get("changed") for reply in replies] == [True, True, None, True]
    assert "begun without a budget" in replies[2]["error"]
    assert [one.phase for one in bench.snapshots if 10 < one.elapsed_s < 50] == ["paused"] * sum(
        10 < one.elapsed_s < 50 for one in bench.snapshots
    )
    # Nothing was sent meanwhile, and the deadline of the suite would have been over.
    times = bench.provider.times
    assert not [time for time in times if times[0] + 10 < time < times[0] + 50]
    assert max(times) - times[0] > 50
    assert max(one.sending for one in bench.snapshots) >= 5
