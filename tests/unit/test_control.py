"""Steering a running job: pause, resume and other limits, on a virtual clock; several watchers of one control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from batchchat.errors import UsageError
from batchchat.events import Snapshot
from batchchat.runner.control import Ceilings, Control, Settings, StopRequest
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
