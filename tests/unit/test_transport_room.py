"""Open files: as many as the system gives, and no more connections than fit."""

from __future__ import annotations

import resource
from typing import Any

import pytest

from batchchat.transport import allow_many_files, connection_room
from batchchat.transport.room import RESERVED

INFINITE = resource.RLIM_INFINITY


class System:
    """Limits of open files as a system may hold them, with a bound of its own on what may be set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, most: int = 10**9) -> None:
        self.limits = (soft, hard)
        self.most = most
        monkeypatch.setattr(resource, "getrlimit", lambda _: self.limits)
        monkeypatch.setattr(resource, "setrlimit", self.set)

    def set(self, _: int, limits: Any) -> None:
        if limits[0] > self.most or limits[1] != self.limits[1]:
            raise ValueError("not allowed")
        self.limits = limits


@pytest.mark.parametrize(
    ("soft", "hard", "most", "now"),
    [
        (1024, 524_288, 10**9, 65_536),
        (1024, 4096, 10**9, 4096),
        (256, INFINITE, 10**9, 65_536),
        (256, INFINITE, 10_240, 10_240),
        (256, INFINITE, 256, 256),
        (100_000, INFINITE, 10**9, 100_000),
        (INFINITE, INFINITE, 10**9, INFINITE),
        (512, 512, 10**9, 512),
    ],
)
def test_the_soft_limit_is_raised_as_far_as_it_goes(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, most: int, now: int
) -> None:
    system = System(monkeypatch, soft, hard, most)
    allow_many_files()
    assert system.limits == (now, hard)


@pytest.mark.parametrize("each", [1, 2])
def test_there_is_room_for_what_is_left_of_the_limit(monkeypatch: pytest.MonkeyPatch, each: int) -> None:
    System(monkeypatch, 1024, 1024)
    room = connection_room(each)
    assert 400 // each < room <= (1024 - RESERVED) // each
    System(monkeypatch, 20, 20)
    assert connection_room(each) == 1
    System(monkeypatch, INFINITE, INFINITE)
    assert connection_room(each) > 30_000 // each
