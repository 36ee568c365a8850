"""Chance that repeats itself: every draw is a digest of the seed and of what it is about."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

from batchchat.demo.server_options import COUNTS, DemoOptions, is_sticky

T = TypeVar("T")


def draw(seed: int, *about: str | bytes | int) -> float:
    """Return a number in [0, 1) that depends on `seed` and `about` alone."""
    state = blake2b(digest_size=8)
    for part in (seed, *about):
        data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
        state.update(b"%d:" % len(data))
        state.update(data)
    return (int.from_bytes(state.digest(), "big") >> 11) / (1 << 53)


def pick(choices: Sequence[T], seed: int, *about: str | bytes | int) -> T:
    """Pick one of `choices`, evenly, by `draw`."""
    return choices[int(draw(seed, *about) * len(choices))]


class FaultPlan:
    """Which fault befalls a request. Counted faults come first, then sticky ones, then those of the attempt."""

    def __init__(self, options: DemoOptions) -> None:
        self._seed = options.seed
        drawn = sorted((name, p) for name, p in options.faults.items() if name not in COUNTS and p > 0)
        self._sticky = [(name, p) for name, p in drawn if is_sticky(name)]
        self._passing = [(name, p) for name, p in drawn if not is_sticky(name)]
        self._revoke_after = options.faults.get("revoke_after")
        self._quota_after = options.faults.get("quota_after")
        self._day_after = options.faults.get("day_after")

    def befalls(self, digest: bytes, attempt: int, request_number: int) -> str | None:
        """Name the fault of attempt `attempt` (from 1) of a body; `request_number` counts all requests from 1."""
        if self._revoke_after is not None and request_number > self._revoke_after:
            return "error_401"
        if self._quota_after is not None and request_number > self._quota_after:
            return "quota"
        if self._day_after is not None and request_number > self._day_after:
            return "day"
        return self._drawn(self._sticky, digest, 0) or self._drawn(self._passing, digest, attempt)

    def _drawn(self, faults: list[tuple[str, float]], digest: bytes, attempt: int) -> str | None:
        if not faults:
            return None
        rest = draw(self._seed, "fault", digest, attempt)
        for name, probability in faults:
            if rest < probability:
                return name
            # One draw for all faults, so that they exclude each other.
            rest -= probability
        return None
