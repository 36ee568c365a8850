"""What an engine sees of whoever it sends to, as if it were one: may more go, does nobody answer, how fast is it.

An engine with one endpoint sees that endpoint's `Limiter`. With a route it sees a `PooledTraffic`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from batchchat.endpoints.target_list import TargetList
from batchchat.errors import BatchchatError
from batchchat.events import Pace
from batchchat.limits import MAX_CONCURRENCY, LimitCeilings, Limiter


class Traffic(Protocol):
    """What an engine knows of the limits and the state of whoever it sends to: a `Limiter` or a `PooledTraffic`."""

    @property
    def down(self) -> bool:
        """Whether everybody seems to be down, so that only probes may go."""

    @property
    def lost(self) -> BatchchatError | None:
        """Why no permit comes any more: those who keep a limit that processes share cannot be asked."""

    @property
    def failed_probes(self) -> int:
        """How many probes have failed since."""

    @property
    def window(self) -> int:
        """How many requests may be under way at once now, however many are."""

    @property
    def answered(self) -> bool:
        """Whether any HTTP response ever came, whatever it said."""

    @property
    def outage_s(self) -> float:
        """Seconds since somebody last answered well, while nobody does; 0 otherwise."""

    @property
    def unreachable_s(self) -> float:
        """Seconds since the first failed connection, while nothing has ever answered; 0 otherwise."""

    def hurry(self) -> None:
        """Let the next probe go at once, if it waits longer."""

    def suspect(self, key: object) -> None:
        """Say that this request failed for good in an earlier run."""

    def blame(self, keys: Iterable[object]) -> None:
        """Say that these requests are the cause of their failures."""

    def pace(self) -> Pace:
        """Return what is allowed and used now."""

    def retune(
        self,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        concurrency: int | None = None,
    ) -> None:
        """Take other ceilings from the job."""


class PooledTraffic:
    """The state of all endpoints of a route, and the job's limits over them.

    Arguments:
        targets: whose endpoints they are.
        over: the job's limits over all endpoints, None if it sets none.
        wake: lets those look again that wait for a permit.
    """

    def __init__(self, targets: TargetList, over: Limiter | None, wake: Callable[[], None]) -> None:
        self._targets = targets
        self._wake = wake
        self.over = over
        self._note_most()

    def _note_most(self) -> None:
        for target in self._targets:
            target.most = self.over.window if self.over is not None else 0

    @property
    def down(self) -> bool:
        """Return true if every endpoint that decides about the run is down."""
        return any(all(endpoint.limiter.down for endpoint in chain) for chain in self._targets.deciding())

    @property
    def lost(self) -> BatchchatError | None:
        """Return why no permit comes any more; None as long as permits may come."""
        limiters = [endpoint.limiter for endpoint in self._targets.endpoints()]
        if self.over is not None:
            limiters.append(self.over)
        return next((limiter.lost for limiter in limiters if limiter.lost is not None), None)

    @property
    def failed_probes(self) -> int:
        """Return how many probes have failed at the endpoint that had the fewest."""
        return max(min((one.limiter.failed_probes for one in chain), default=0) for chain in self._targets.deciding())

    @property
    def window(self) -> int:
        """Return how many requests may be under way at once now."""
        limiters = [endpoint.limiter for endpoint in self._targets.endpoints() if endpoint.out is None]
        # One that is down gets a probe at a time, whatever its window is.
        window = sum(1 if limiter.down else limiter.window for limiter in limiters)
        return window if self.over is None else min(window, self.over.window)

    @property
    def answered(self) -> bool:
        """Return true if any HTTP response ever came."""
        # A step that has not been asked yet says nothing: only one that cannot be reached does.
        return any(endpoint.limiter.answered for endpoint in self._targets.endpoints()) and not self._unreached()

    @property
    def outage_s(self) -> float:
        """Return for how many seconds nobody has answered well."""
        return max(min((one.limiter.outage_s for one in chain), default=0.0) for chain in self._targets.deciding())

    @property
    def unreachable_s(self) -> float:
        """Return for how many seconds nobody could be reached."""
        if not self._unreached() and self.answered:
            return 0.0
        return max(
            min((one.limiter.unreachable_s for one in chain), default=0.0)
            for chain in self._targets.deciding()
            if not any(one.limiter.answered for one in chain)
        )

    def _unreached(self) -> bool:
        """Return true if a further step of a cascade was tried, and nobody there has ever answered."""
        return any(
            not any(one.limiter.answered for one in chain) and any(one.limiter.unreachable_s > 0 for one in chain)
            for chain in self._targets.deciding()[1:]
        )

    def hurry(self) -> None:
        """Let the next probe of each endpoint that is down go at once."""
        for endpoint in self._targets.deciding_endpoints():
            endpoint.limiter.hurry()
        self._wake()

    def suspect(self, key: object) -> None:
        """Say that this request failed for good in an earlier run: if it does so again, nobody is down."""
        for endpoint in self._targets.endpoints():
            endpoint.limiter.suspect(key)

    def blame(self, keys: Iterable[object]) -> None:
        """Say that these requests are the cause of their failures. Everybody may go again."""
        keys = list(keys)
        for endpoint in self._targets.deciding_endpoints():
            endpoint.limiter.blame(keys)
        self._wake()

    def retune(
        self,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        concurrency: int | None = None,
    ) -> None:
        """Take other limits over all endpoints. An endpoint's own limits stay."""
        for endpoint in self._targets.endpoints():
            own = endpoint.limits
            # Without a number of its own an endpoint has the job's as its window: see `registry`.
            endpoint.limiter.retune(
                requests_per_minute=own.requests_per_minute,
                tokens_per_minute=own.tokens_per_minute,
                concurrency=own.concurrency or concurrency,
            )
        if self.over is None:
            self.over = Limiter(LimitCeilings(concurrency=MAX_CONCURRENCY))
        self.over.retune(
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            concurrency=concurrency or MAX_CONCURRENCY,
        )
        self._note_most()
        self._wake()

    def pace(self) -> Pace:
        """Return what is allowed and used now, over all endpoints that are in use."""
        paces = [endpoint.limiter.pace() for endpoint in self._targets.endpoints() if endpoint.out is None]
        if not paces:  # all are out: the run ends, and its last snapshot still needs a figure
            return next(self._targets.endpoints()).limiter.pace()
        # One that is down says nothing about a run that goes on with the others.
        up = [pace for pace in paces if pace.breaker == "closed"]
        one = replace(
            (up or paces)[0],
            requests_per_minute=_sum(pace.requests_per_minute for pace in paces),
            tokens_per_minute=_sum(pace.tokens_per_minute for pace in paces),
            concurrency=self.window,
            requests_used=sum(pace.requests_used for pace in paces),
            tokens_used=sum(pace.tokens_used for pace in paces),
            in_use=sum(pace.in_use for pace in paces),
            paused_s=min(pace.paused_s for pace in paces),
            held_by=next((pace.held_by for pace in up or paces if pace.held_by is not None), None),
            shared_by=max(pace.shared_by for pace in paces),
        )
        if self.over is None:
            return one
        over = self.over.pace()
        return replace(
            one,
            requests_per_minute=_least(one.requests_per_minute, over.requests_per_minute),
            tokens_per_minute=_least(one.tokens_per_minute, over.tokens_per_minute),
            held_by=over.held_by or one.held_by,
        )


def _sum(rates: Iterable[float | None]) -> float | None:
    """Add rates; a single one that has no limit makes the sum have none."""
    total = 0.0
    for rate in rates:
        if rate is None:
            return None
        total += rate
    return total


def _least(one: float | None, other: float | None) -> float | None:
    given = [rate for rate in (one, other) if rate is not None]
    return min(given) if given else None
