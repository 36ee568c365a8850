"""The demo provider's own limits: requests and tokens in a sliding window, and concurrent requests."""

from __future__ import annotations

import math
from collections import deque

from batchchat.demo.server_options import DemoOptions
from batchchat.records import Axis


class Window:
    """At most `limit` units in any `length_s` seconds. Times are seconds of one monotonic clock, never falling."""

    def __init__(self, limit: int, length_s: float) -> None:
        self.limit = limit
        self.length_s = length_s
        self.used = 0
        self._entries: deque[tuple[float, int]] = deque()

    def expire(self, now: float) -> None:
        """Forget what was admitted `length_s` or longer ago."""
        entries = self._entries
        while entries and now - entries[0][0] >= self.length_s:
            self.used -= entries.popleft()[1]

    def wait(self, units: int, now: float) -> float:
        """Return the seconds until `units` fit: 0 now, infinity if they never do."""
        self.expire(now)
        excess = self.used + units - self.limit
        if excess <= 0:
            return 0.0
        # The oldest leave first: so many of them must go before there is room.
        for admitted_at, size in self._entries:
            excess -= size
            if excess <= 0:
                return admitted_at + self.length_s - now
        return math.inf

    def add(self, units: int, now: float) -> None:
        """Count `units` as admitted now."""
        self._entries.append((now, units))
        self.used += units

    def reset(self, now: float) -> float:
        """Return the seconds until the oldest entry leaves and the allowance moves on; 0 if nothing is counted."""
        return max(0.0, self._entries[0][0] + self.length_s - now) if self._entries else 0.0


class RateGate:
    """Admits requests under all three limits at once, or says which one refuses and for how long.

    A request is charged its real tokens on admission: the demo model knows its answer beforehand.
    """

    def __init__(self, options: DemoOptions) -> None:
        self._concurrency = options.concurrency
        rpm, tpm = options.requests_per_minute, options.tokens_per_minute
        self._requests = Window(rpm, options.window_s) if rpm is not None else None
        self._tokens = Window(tpm, options.window_s) if tpm is not None else None
        self.in_flight = 0
        self.max_in_flight = 0

    def admit(self, tokens: int, now: float) -> tuple[Axis, float] | None:
        """Admit a request, or return the axis that refuses it and the seconds to wait (infinity: never fits).

        Call `leave` when an admitted request ends. A refused one is charged nothing.
        """
        if self._requests is not None and (wait := self._requests.wait(1, now)) > 0:
            return Axis.REQUESTS, wait
        if self._tokens is not None and (wait := self._tokens.wait(tokens, now)) > 0:
            return Axis.TOKENS, wait
        if self._concurrency is not None and self.in_flight >= self._concurrency:
            return Axis.CONCURRENCY, 0.0
        # Only now: a request that one limit refuses is charged by none.
        if self._requests is not None:
            self._requests.add(1, now)
        if self._tokens is not None:
            self._tokens.add(tokens, now)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        return None

    def leave(self) -> None:
        """Count out a request that was admitted, however it ended."""
        self.in_flight -= 1

    def headers(self, now: float) -> list[tuple[bytes, bytes]]:
        """Return the rate-limit headers of the axes that have a limit, as Scaleway names them."""
        found: list[tuple[bytes, bytes]] = []
        for name, window in ((b"requests", self._requests), (b"tokens", self._tokens)):
            if window is None:
                continue
            window.expire(now)
            found += (
                (b"x-ratelimit-limit-" + name, b"%d" % window.limit),
                (b"x-ratelimit-remaining-" + name, b"%d" % (window.limit - window.used)),
                (b"x-ratelimit-reset-" + name, format_duration(window.reset(now)).encode()),
            )
        return found


def format_duration(seconds: float) -> str:
    """Write seconds as providers do: `250ms`, `1.5s`, `1m30s`; rounded up to a millisecond."""
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    text = f"{rest / 1000:g}s"
    return f"{minutes}m{text}" if minutes else text
