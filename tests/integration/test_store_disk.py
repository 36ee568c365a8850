"""A disk that fails at any single operation: one plain error, and the next start has everything that was counted."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from batchchat.errors import BatchchatError, StorageError
from batchchat.store import Entry
from tests.integration.test_store_crashes import check, first_run, second_run
from tests.store_cases import open_store
from tests.thorough import one_in

OPERATIONS = ("open", "write", "fsync", "fdatasync", "replace", "rename", "unlink", "mkdir", "truncate", "ftruncate")
FAILURES = {"open": errno.EMFILE, "unlink": errno.EROFS, "rename": errno.EROFS, "replace": errno.EROFS}


class Disk:
    """Counts operations of this process on files, and lets one of them fail, or all from one on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: Callable[[int], bool]) -> None:
        self.count = 0
        for name in OPERATIONS:
            monkeypatch.setattr(os, name, self._counted(name, getattr(os, name), fails))

    def _counted(self, name: str, real: Callable[..., Any], fails: Callable[[int], bool]) -> Callable[..., Any]:
        def operation(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if fails(self.count):
                number = FAILURES.get(name, errno.ENOSPC)
                raise OSError(number, os.strerror(number), *arguments[:1])
            return real(*arguments, **options)

        return operation


@contextmanager
def failing(fails: Callable[[int], bool]) -> Iterator[Disk]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Disk(monkeypatch, fails)


def work(directory: Path, counted: list[Entry]) -> None:
    store = open_store(directory, "run-2", part_rows=5)
    try:
        second_run(store, counted)
    finally:
        store.close()


def operations_of_a_run(directory: Path) -> int:
    first_run(directory)
    with failing(lambda _: False) as disk:
        work(directory, [])
    return disk.count


def check_failure(directory: Path, fails: Callable[[int], bool], *, stays: bool) -> None:
    first_run(directory)
    counted: list[Entry] = []
    error: BatchchatError | None = None
    with failing(fails):
        try:
            work(directory, counted)
        except BatchchatError as caught:
            error = caught
    if error is None:
        assert not stays
    else:
        assert isinstance(error, StorageError) or counted == []  # a folder that cannot be written is a wrong choice
        assert str(directory) in error.message
        assert error.remedy
    check(directory, counted, 4)
    with open_store(directory, "run-3", part_rows=5) as store:
        assert store.recovery.messages == []
    check(directory, counted, 4)


def check_failures(directory: Path, *, stays: bool, first: int, step: int) -> None:
    for place in range(first, operations_of_a_run(directory / "whole") + 1, step):
        fails = range(place, 10**6 if stays else place + 1).__contains__
        check_failure(directory / str(place), fails, stays=stays)


@pytest.mark.parametrize("step", one_in(2, [35, 7]))
@pytest.mark.parametrize("stays", [False, True], ids=["once", "for good"])
def test_an_operation_may_fail_and_nothing_counted_is_lost(tmp_path: Path, stays: bool, step: int) -> None:
    check_failures(tmp_path, stays=stays, first=6 if stays else 3, step=step)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("stays", [False, True], ids=["once", "for good"])
def test_any_operation_may_fail_and_nothing_counted_is_lost(tmp_path: Path, stays: bool) -> None:
    check_failures(tmp_path, stays=stays, first=1, step=1)
