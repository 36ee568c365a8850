"""Models of servers. Each decides on a request as it arrives; times are seconds, rates are per minute."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from batchchat.records import Axis, ErrorKind, Failure, LimitHeaders, Reply, Usage, Verdict

REFUSAL_S = 0.01
"""Seconds that a server takes to refuse."""


class Rule(Protocol):
    """What a server allows."""

    def wait(self, now: float, amount: float) -> float:
        """Return 0 if `amount` is accepted now, else the seconds until it would be."""

    def add(self, now: float, amount: float) -> None:
        """Count an accepted amount."""

    def remaining(self, now: float) -> float:
        """Return what is left of the allowance."""

    @property
    def limit(self) -> float:
        """Units a minute."""


class SlidingWindow:
    """At most `limit` in any `window_s` seconds."""

    def __init__(self, limit: float, window_s: float = 60.0) -> None:
        self.limit = limit
        self.window_s = window_s
        self._entries: deque[tuple[float, float]] = deque()
        self._used = 0.0

    def _room(self) -> float:
        return self.limit * self.window_s / 60.0

    def _forget(self, now: float) -> None:
        while self._entries and now - self._entries[0][0] >= self.window_s:
            self._used -= self._entries.popleft()[1]

    def wait(self, now: float, amount: float) -> float:
        self._forget(now)
        excess = self._used + amount - self._room()
        for at, size in self._entries:
            if excess <= 1e-9:
                break
            excess -= size
            if excess <= 1e-9:
                return at + self.window_s - now
        return 0.0

    def add(self, now: float, amount: float) -> None:
        self._entries.append((now, amount))
        self._used += amount

    def remaining(self, now: float) -> float:
        self._forget(now)
        return self._room() - self._used


class FixedWindow:
    """At most `limit` a minute in windows that begin on the server's own clock, `offset_s` after ours."""

    def __init__(self, limit: float, window_s: float = 60.0, offset_s: float = 0.0) -> None:
        self.limit = limit
        self.window_s = window_s
        self._offset_s = offset_s
        self._number = -1
        self._used = 0.0

    def _begin(self, now: float) -> None:
        number = math.floor((now + self._offset_s) / self.window_s)
        if number != self._number:
            self._number, self._used = number, 0.0

    def wait(self, now: float, amount: float) -> float:
        self._begin(now)
        if self._used + amount <= self.limit * self.window_s / 60.0 + 1e-9:
            return 0.0
        return self.window_s * (self._number + 1) - (now + self._offset_s)

    def add(self, now: float, amount: float) -> None:
        self._begin(now)
        self._used += amount

    def remaining(self, now: float) -> float:
        self._begin(now)
        return self.limit * self.window_s / 60.0 - self._used


class TokenBucket:
    """A bucket of `burst` units that refills at `limit` a minute; full at the start."""

    def __init__(self, limit: float, burst: float) -> None:
        self.limit = limit
        self.burst = burst
        self._level = burst
        self._at = 0.0

    def _fill(self, now: float) -> None:
        self._level = min(self.burst, self._level + max(0.0, now - self._at) * self.limit / 60.0)
        self._at = now

    def wait(self, now: float, amount: float) -> float:
        self._fill(now)
        return 0.0 if amount <= self._level + 1e-9 else (amount - self._level) * 60.0 / self.limit

    def add(self, now: float, amount: float) -> None:
        self._fill(now)
        self._level -= amount

    def remaining(self, now: float) -> float:
        self._fill(now)
        return self._level


Tell = Callable[["Server", float, Axis | None, float], dict[str, Any]]
"""What a server says: (server, now, axis of a refusal or None, true wait) to fields of `Reply`."""


def silent(_server: Server, _now: float, _axis: Axis | None, _wait: float) -> dict[str, Any]:
    """Say nothing."""
    return {}


@dataclass
class Server:
    """A server: rules for requests and tokens, requests at once, refusals by chance, latency, outages.

    `noise` gives the share of requests that are refused for reasons of the server's own, by time. `broken` gives True
    while the server is down. `latency` takes (requests under way, generator) to seconds; `overloaded_from` is the
    number under way from which on it answers 503. `changes` are (moment, function) that change it in mid-run.
    """

    seed: int
    requests: Rule | None = None
    tokens: Rule | None = None
    concurrency: float = math.inf
    noise: Callable[[float], float] = lambda _now: 0.0
    broken: Callable[[float], bool] = lambda _now: False
    latency: Callable[[int, random.Random], float] = lambda _under_way, rng: rng.uniform(0.4, 0.6)
    overloaded_from: float = math.inf
    tell: Tell = silent
    changes: list[tuple[float, Callable[[Server], None]]] = field(default_factory=list)
    under_way: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self._free: list[float] = []

    def arrive(self, now: float, tokens: int) -> tuple[Reply, float]:
        """Decide on a request that arrives now: the reply, and the seconds until it is sent."""
        while self.changes and self.changes[0][0] <= now:
            self.changes.pop(0)[1](self)
        if self.broken(now):
            return Reply(Verdict.TRANSIENT, failure=Failure(ErrorKind.SERVER, "down", 502)), REFUSAL_S
        if self.under_way >= self.overloaded_from:
            return Reply(Verdict.TRANSIENT, failure=Failure(ErrorKind.SERVER, "overloaded", 503)), REFUSAL_S
        axis, wait = self._refuses(now, tokens)
        if axis is None and self.rng.random() < self.noise(now):
            axis, wait = Axis.UNKNOWN, 0.0
        if axis is not None:
            failure = Failure(ErrorKind.RATE_LIMIT, "too many requests", 429)
            said = self.tell(self, now, axis, wait)
            return Reply(Verdict.RATE_LIMIT, failure=failure, **said), REFUSAL_S
        for rule, amount in ((self.requests, 1), (self.tokens, tokens)):
            if rule is not None:
                rule.add(now, amount)
        self.under_way += 1
        latency = self.latency(self.under_way, self.rng)
        said = self.tell(self, now, None, 0.0)
        usage = Usage(tokens - 1, 1, tokens)
        return Reply(Verdict.OK, usage=usage, latency_s=latency, **said), latency

    def leave(self) -> None:
        """Note that an accepted request was answered."""
        self.under_way -= 1

    def _refuses(self, now: float, tokens: int) -> tuple[Axis | None, float]:
        if self.under_way >= self.concurrency:
            return Axis.CONCURRENCY, 0.1
        for axis, rule, amount in ((Axis.REQUESTS, self.requests, 1), (Axis.TOKENS, self.tokens, tokens)):
            if rule is not None and (wait := rule.wait(now, amount)) > 0.0:
                return axis, wait
        return None, 0.0


def first_refusals(number: int) -> Callable[[float], float]:
    """Return a `noise` that refuses the first `number` requests after one second, and nothing else."""
    left = [number]

    def share(now: float) -> float:
        if now > 1.0 and left[0]:
            left[0] -= 1
            return 1.0
        return 0.0

    return share


# -- what servers say -------------------------------------------------------------------------------------------------


def bare_retry_after(_server: Server, _now: float, axis: Axis | None, _wait: float) -> dict[str, Any]:
    """Ask each refused request to wait for one second."""
    return {} if axis is None else {"retry_after": 1.0}


def false_limit(_server: Server, _now: float, axis: Axis | None, _wait: float) -> dict[str, Any]:
    """State a limit in refusals that is not kept."""
    if axis is None:
        return {}
    return {"limits": LimitHeaders(limit_requests=60, remaining_requests=0, reset_requests=1.0), "retry_after": 1.0}


def true_limit_in_refusals(server: Server, now: float, axis: Axis | None, wait: float) -> dict[str, Any]:
    """State the true limit, in refusals only."""
    return {} if axis is None else _true(server, now, wait)


def true_limits(server: Server, now: float, _axis: Axis | None, wait: float) -> dict[str, Any]:
    """State the true limits in every answer."""
    return _true(server, now, wait)


def _true(server: Server, now: float, wait: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, rule in (("requests", server.requests), ("tokens", server.tokens)):
        if rule is not None:
            found[f"limit_{name}"] = int(rule.limit)
            found[f"remaining_{name}"] = max(0, int(rule.remaining(now)))
            found[f"reset_{name}"] = wait or 60.0 * (1 - max(0.0, rule.remaining(now)) / rule.limit)
    return {"limits": LimitHeaders(**found)}


def nothing_remains(_server: Server, _now: float, axis: Axis | None, _wait: float) -> dict[str, Any]:
    """Say on every accepted answer that nothing remains for a minute."""
    if axis is not None:
        return {}
    return {"limits": LimitHeaders(remaining_requests=0, reset_requests=59.0)}


def contradictions(server: Server, _now: float, axis: Axis | None, _wait: float) -> dict[str, Any]:
    """State another limit in each answer."""
    if axis is not None:
        return {}
    limit = server.rng.choice((10, 60, 5_000, 100_000))
    remaining = server.rng.choice((0, 1, limit - 1))
    return {"limits": LimitHeaders(limit_requests=limit, remaining_requests=remaining, reset_requests=30.0)}
