"""When only one request at a time may go, to see whether the provider answers: a probe.

`Breaker` is for a provider that is down, `RateLimitHold` for one that refuses everybody. Both let one request through
after growing waits, until one comes back well.
"""

from __future__ import annotations

import math
import random

from batchchat.records import Axis

_OPEN_AFTER = 5
"""Failures in a row that open the breaker at least. Chosen: fewer may be the luck of a healthy provider."""
_MOST = 128
"""No longer streak is asked than that, however many rows are bad: the provider may be down as well."""
_CHANCE = 1e-6
"""How seldom rows that fail by themselves may look like an outage: by chance, once in a million runs of failures.

So with every second row bad it takes 20 in a row, with every tenth 6.
"""
_LATELY = 64.0
"""Rows by which the share of bad ones is known: as many as that are forgotten by half. Chosen, not measured."""
_SUSPECTS = 4096
"""Requests that are remembered as the cause of their failures. Older ones are forgotten: it bounds memory."""
_QUICK_S = 3.0
_LONGEST_S = 16.0
"""The longest wait between probes. Spread by a fifth it is 19 s: so soon after its end even a long outage is over."""
_LEAVES, _LEAVES_MAX = 0.03, 0.06
"""After the first share a window holds what a learned pace fills it with; the last is the error of what is learned."""
_FIRST_S = 0.25
"""The first wait after refusals: a limit per second, or a bucket that refills quickly, costs no more than that."""


class ProbeGate:
    """Closed to all but probes while `since` is set. `probing` while one is under way; the next may go at `next_at`."""

    __slots__ = ("_random", "next_at", "probing", "since", "tries")

    def __init__(self, rng: random.Random) -> None:
        self._random = rng
        self.since: float | None = None
        self.next_at = 0.0
        self.probing = False
        self.tries = 0

    @property
    def active(self) -> bool:
        """Whether only probes may go."""
        return self.since is not None

    def delay(self, now: float) -> float:
        """Seconds until a probe may go: infinite while one is under way, 0 when the gate is open to all."""
        if self.since is None:
            return 0.0
        return math.inf if self.probing else max(0.0, self.next_at - now)

    def _wait(self, base: float) -> float:
        """Spread a wait by a fifth either way, so that processes that failed together do not return together."""
        return base * self._random.uniform(0.8, 1.2)

    def _back_off(self, now: float, first: float = 2.0) -> None:
        """Wait `first` seconds, then twice as long each time; in the long run an eighth of the time since it began.

        At least up to 8 and at most up to `_LONGEST_S` seconds.
        """
        self.probing = False
        self.tries += 1
        age = now - self.since if self.since is not None else 0.0
        wait = first * 2.0 ** min(self.tries - 1, 10)
        self.next_at = now + self._wait(min(wait, max(8.0, age / 8), _LONGEST_S))

    def _shut(self, since: float) -> None:
        self.since = since
        self.tries = 0
        self.probing = False

    def release(self, now: float) -> None:
        """A probe was abandoned: the next one may go at once."""
        self.probing = False
        self.next_at = min(self.next_at, now)

    def open(self) -> None:
        """Let everybody through again."""
        self.since = None
        self.probing = False


class Breaker(ProbeGate):
    """Opens when distinct requests fail one after the other (5xx, no connection, timeouts) and none succeeds.

    At least five, and a quarter of what is under way, so that one lost connection with many requests on it
    is no outage. A request that failed with an answer while others succeeded is suspected of being the
    cause itself: its later failures are no evidence, so that the bad rows left at the end of a run do
    not look like an outage. The more such rows there were lately, the longer a streak of them has to be. The
    one that asks for probes should offer another request each time, as a queue of waiting requests does by itself.
    """

    __slots__ = (
        "_accused",
        "_bad",
        "_first_at",
        "_first_granted_at",
        "_good",
        "_late_successes",
        "_own",
        "_streak",
        "_suspects",
        "opened_at",
    )

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._streak: dict[object, bool] = {}
        self._accused: list[object] = []
        self._suspects: dict[object, None] = {}
        self._first_at = 0.0
        self._first_granted_at = 0.0
        self._late_successes = 0
        self._bad = self._good = 0.0
        self._own = 0
        self.opened_at = -math.inf

    @property
    def watchful(self) -> bool:
        """Whether a success has anything to tell: a streak to end, a suspect to clear."""
        return bool(self._streak or self._suspects or self._bad)

    def failed(self, now: float, granted_at: float, key: object, *, suspicious: bool, under_way: int) -> bool:
        """Count a failure while closed; True when it opens the breaker. `suspicious`: the request may be the cause."""
        if suspicious and key in self._suspects:
            return False
        if not self._streak:
            self._first_at = now
            self._first_granted_at = granted_at
            self._late_successes = self._own = 0
        self._own += suspicious and key not in self._streak
        self._streak[key] = suspicious
        least = max(_OPEN_AFTER, under_way // 4)
        if under_way:
            least += self._late_successes  # with nothing under way no long answer can come any more
        # Failures that a row cannot cause by itself count without regard to how many bad rows there are.
        if len(self._streak) - self._own < least and len(self._streak) < max(least, self._usual_streak()):
            return False
        self._shut(self._first_at)
        self._accused = [key for key, suspicious in self._streak.items() if suspicious]
        self._streak.clear()
        self.opened_at = now
        self.next_at = now + self._wait(1.0)
        return True

    def succeeded(self, granted_at: float, key: object) -> None:
        """End the streak: the provider is up, so what failed is to blame for its failure.

        A success that was sent before the first failure of the streak does not show that the provider is still up. It
        only asks for one failure more, so that long answers among quick failures are no outage either.
        """
        mended = key in self._suspects
        if mended:
            del self._suspects[key]
        if self._bad:
            if mended:
                self._bad = max(0.0, self._bad - 1.0)  # it did not fail by itself
            self._remember(0, 1)
        if self._streak and granted_at <= self._first_granted_at:
            self._late_successes += 1
            return
        for failed, suspicious in self._streak.items():
            if suspicious:
                self.suspect(failed)
        self._remember(self._own, 0)
        self._own = 0
        self._streak.clear()

    def _remember(self, bad: int, good: int) -> None:
        """Count rows that failed by themselves, and others; the older they are the less they count."""
        self._bad += bad
        self._good += good
        if self._bad + self._good > _LATELY:
            self._bad /= 2
            self._good /= 2
        if not bad and self._bad < 1.0:
            self._bad = self._good = 0.0  # from here on it says no more than that bad rows are rare

    def _usual_streak(self) -> float:
        """Return how many rows in a row may fail by themselves, given how many did so lately."""
        if not self._bad:
            return 0.0
        share = self._bad / (self._bad + self._good + 1.0)
        return min(_MOST, math.ceil(math.log(_CHANCE) / math.log(share)))

    def suspect(self, key: object) -> None:
        """Take a request for the cause of its failures, until it succeeds."""
        self._suspects[key] = None
        if len(self._suspects) > _SUSPECTS:
            del self._suspects[next(iter(self._suspects))]

    def open(self) -> None:
        """Let everybody through again. If those that shut it out fail once more, they are to blame themselves."""
        super().open()
        for key in self._accused:
            self.suspect(key)
        self._remember(len(self._accused), 0)
        self._accused = []

    def probe_failed(self, now: float) -> None:
        """Wait for the next probe."""
        self._back_off(now)


class RateLimitHold(ProbeGate):
    """From a refusal (429) until something is accepted again. `is_rate`: it cannot be a limit of requests at once."""

    __slots__ = ("_asked", "axis", "is_rate")

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.axis = Axis.UNKNOWN
        self.is_rate = False
        self._asked = 0.0

    @property
    def quick(self) -> bool:
        """Whether the first probe was accepted, and soon: there was room as soon as something had ended."""
        return self.tries == 0 and self._asked < _QUICK_S

    def begin(self, now: float, axis: Axis, hint: float | None, *, is_rate: bool) -> None:
        """Start at the first refusal; `hint` is the server's wait in seconds, already bounded."""
        self._shut(now)
        self.axis = axis
        self.is_rate = is_rate
        self._asked = hint or 0.0
        self.next_at = now + (hint if hint is not None else self._wait(_FIRST_S))

    def heard(self, now: float, hint: float | None) -> None:
        """Another request of the same round trip was refused: the longest hint counts."""
        if hint is not None and not self.probing:
            self.next_at = max(self.next_at, now + hint)
            self._asked = max(self._asked, hint)

    def probe_refused(self, now: float, axis: Axis, hint: float | None) -> bool:
        """Wait for the next probe; False when this is the first sign that an unknown limit is one per minute."""
        self.probe_failed(now, hint)
        known = self.axis is not Axis.UNKNOWN or self.is_rate
        if axis is not Axis.UNKNOWN:
            self.axis = axis
        self.is_rate = True
        return known

    def step(self) -> float:
        """Return the share of a full window that should leave it before the next probe: growing, but never by much.

        The last refused probe and the one that is accepted tell how much a window holds.
        """
        return min(_LEAVES_MAX, _LEAVES * 1.5**self.tries)

    def wait_for_room(self, now: float, room_at: float | None, hint: float | None) -> None:
        """Wait for the next probe until a window has some room; a longer hint is obeyed."""
        if room_at is not None:
            self.next_at = max(now + (hint or 0.0), min(now + self._wait(_LONGEST_S), room_at))

    def probe_failed(self, now: float, hint: float | None = None) -> None:
        """Wait for the next probe; a longer hint is obeyed."""
        self._back_off(now, 2 * _FIRST_S)
        self.next_at = max(self.next_at, now + (hint or 0.0))
