"""How the tests are spread: the whole of them over the machine's processors, named files in one process."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import os
import shutil
import sys
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import hypothesis
import pytest
import trio._core._run as scheduler

from batchchat import retry
from batchchat.demo import DemoOptions

ROOT = Path(__file__).resolve().parents[1]
THOROUGH = "thorough"
EXAMPLES = 25
"""Examples of a property test in the normal run. A hundred take 69 s of processor time over all of them, these 20 s."""
MOST_WORKERS = 8
MORE_WORKERS = 1
"""Workers beside one for each processor, since some tests wait. Each worker takes 6 s of processor time to collect."""
LATENCY_S = 0.02
MEMORY = Path("/dev/shm")
"""Where the tests' temporary folders are, if it is there: they synchronize thousands of files. Measured over 194 tests
of runs and stores: 95 and 103 s instead of 111 and 166 s."""
ROOM_BYTES = 4 * 2**30
"""Free bytes that this needs. A whole run of the tests leaves 150 MB."""


def pytest_configure(config: pytest.Config) -> None:
    """Let no test fail because the machine is busy: an example may take what it takes."""
    thorough = config.option.markexpr == THOROUGH
    if thorough:
        # A property test is in both runs: with few examples in the normal one, with all of them here.
        config.option.markexpr = f"({THOROUGH} or hypothesis) and not long"
    hypothesis.settings.register_profile("batchchat", deadline=None, max_examples=100 if thorough else EXAMPLES)
    hypothesis.settings.load_profile("batchchat")
    # Hundreds of processes are started. If the environment lets none of them keep compiled modules, each compiles all
    # it imports anew: 1.3 s instead of 0.6 s for a start.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    if "PYTEST_DEBUG_TEMPROOT" not in os.environ and _is_roomy(MEMORY):
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(MEMORY)


def _is_roomy(folder: Path) -> bool:
    """Tell whether temporary folders of the tests fit into a folder with space to spare."""
    return os.access(folder, os.W_OK | os.X_OK) and shutil.disk_usage(folder).free > ROOM_BYTES


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Collect the tests without looking for garbage, of which there is none: 3.9 s instead of 4.6 s."""
    gc.disable()
    try:
        if hasattr(session.config, "workerinput"):
            _import_tests(session.config.workerinput, session.config.args)
        return (yield)
    finally:
        gc.enable()


def _import_tests(worker: dict[str, Any], arguments: list[str]) -> None:
    """Import the test modules, each worker from a place of its own on.

    In a fresh checkout pytest rewrites and compiles every module, 9 s for all of them. Workers that collect in one
    order all do it at the same time. So each finds what the others have compiled before it comes there.
    """
    files = [file for argument in arguments for file in sorted(Path(argument).rglob("test_*.py"))]
    first = len(files) * int(worker["workerid"].removeprefix("gw")) // worker["workercount"]
    for file in files[first:] + files[:first]:
        # What cannot be imported is told by the collection, which tries it again.
        with suppress(Exception, pytest.skip.Exception):
            importlib.import_module(".".join(file.resolve().relative_to(ROOT).with_suffix("").parts))


def pytest_collection_finish() -> None:
    """Collect garbage less often: thousands of tests are never garbage, and each look at them takes long.

    Measured over 150 tests of runs: 22.8 s of processor time instead of 25.0 s.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the number of workers; 0 where only some files are asked for, since workers take seconds to start."""
    whole = all(Path(argument).is_dir() for argument in config.args)
    return min(MOST_WORKERS, _processors() + MORE_WORKERS) if whole else 0


def _processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # what this process may use; not on every system
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


@pytest.fixture(autouse=True)
def _one_order_of_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test on the virtual clock take the same way each time.

    Trio shuffles the tasks that can go on, and the figures of a run vary with that: one of 240 rows took 31 s, and 62 s
    at one of thirty orders. Trio has no public way to say the order; its plugin for hypothesis uses these two names.
    """
    monkeypatch.setattr(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    scheduler._r.seed(1)


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs of this process wait milliseconds before they try a row again: usually it is half a second at least."""
    monkeypatch.setattr(retry, "_BACKOFF_S", (0.01, 0.05))


@pytest.fixture(scope="session", autouse=True)
def _one_duckdb() -> Iterator[None]:
    """Let all who open a DuckDB of their own in this process share one: to open one takes 40 ms."""
    shared = duckdb.connect(config={"threads": 1})
    # A file that a test changes must be read again, also if its time is the same.
    shared.execute("SET enable_external_file_cache = false")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duckdb, "connect", shared.cursor)
        yield
    shared.close()


@pytest.fixture(scope="session", autouse=True)
def _soon_answered() -> Iterator[None]:
    """Let a demo provider of this process answer soon if a test does not say how soon: usually it takes 350 ms."""
    names = [each.name for each in dataclasses.fields(DemoOptions)]
    defaults = dict(zip(names, DemoOptions.__init__.__defaults__ or (), strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DemoOptions.__init__, "__defaults__", tuple({**defaults, "latency_s": LATENCY_S}.values()))
        assert DemoOptions().latency_s == LATENCY_S
        yield
