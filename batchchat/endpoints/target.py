"""A target: one model at one provider, behind one endpoint or several."""

from __future__ import annotations

import math
from collections.abc import Sequence

from batchchat.endpoints.affinity import Ring
from batchchat.endpoints.endpoint import Endpoint

SOON_S = 0.05
"""Seconds until another look at an endpoint whose limiter serves others first. Chosen, not measured."""


class Target:
    """The endpoints that give the same answers, and the pick among them.

    The endpoint with the fewest requests under way, relative to its weight, gets the next one. Ties rotate. A server
    that is slow keeps its requests longer, so it gets fewer. Requests whose prompts begin alike go to one endpoint, as
    long as that does not have more than its share (see `affinity`). An endpoint that is down gets one request, a probe,
    when its time has come: so its recovery is seen while others do the work.

    `on` holds the reasons for which this target is asked in place of one before it; it is empty for a run's first one.
    `provider` and `model` tell it to people. `step` is that of a cascade to which it belongs, from 1. `most` is how
    many requests the job lets be under way in all, 0 if that is not known.
    """

    __slots__ = ("_next", "_ring", "endpoints", "model", "most", "on", "provider", "step")

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        provider: str = "",
        model: str = "",
        on: frozenset[str] = frozenset(),
        step: int = 1,
    ) -> None:
        if not endpoints:
            raise ValueError("a target has at least one endpoint")
        self.endpoints = tuple(endpoints)
        self.provider = provider
        self.model = model
        self.on = on
        self.step = step
        self.most = 0
        self._next = 0
        self._ring: Ring | None = None

    @property
    def unavailable(self) -> bool:
        """Return true if every endpoint is down or out."""
        return not any(endpoint.up for endpoint in self.endpoints)

    @property
    def refusing(self) -> bool:
        """Return true if every endpoint that is up refuses everybody for its rate limit (429)."""
        up = [endpoint for endpoint in self.endpoints if endpoint.up]
        return bool(up) and all(endpoint.limiter.refusing for endpoint in up)

    def has_up(self, *, besides: int) -> bool:
        """Return true if an endpoint is up that is not in the set `besides`."""
        return any(endpoint.up and not endpoint.bit & besides for endpoint in self.endpoints)

    def pick(self, tokens: int, now: float, broke: int = 0, head: int = 0) -> tuple[Endpoint | None, float]:
        """Return the endpoint for the next attempt, and for how long none is free if there is none.

        Arguments:
            tokens: what the request may take.
            now: the time of the event loop, in seconds.
            broke: the set of endpoints at which this request has failed. Others are taken while one is up.
            head: the number of what its prompt begins with, 0 if that tells nothing.

        Returns the endpoint and 0, or None and seconds: infinite if only an event can help.
        """
        endpoints, count = self.endpoints, len(self.endpoints)
        # If it has failed at all that are up, none is avoided: it must go somewhere.
        avoid = broke if broke and self.has_up(besides=broke) else 0
        if head and count > 1:
            kept = self._by_head(head, tokens, now, avoid)
            if kept is not None:
                return kept, 0.0
        best, least, wait = None, math.inf, math.inf
        for step in range(count):
            place = (self._next + step) % count
            endpoint = endpoints[place]
            if endpoint.out is not None or endpoint.bit & avoid:
                continue
            limiter = endpoint.limiter
            down = limiter.down
            load = (limiter.in_use + 1) / endpoint.weight
            # Looked at before its limiter is asked, which costs more.
            if load >= least and not down:
                continue
            delay = limiter.wait(now, tokens)
            if delay > 0.0:
                wait = min(wait, delay)
                continue
            # A probe is due: it goes first, or an endpoint that is back would be found late.
            if down:
                return endpoint, 0.0
            best, least = place, load
        if best is None:
            return None, wait
        self._next = (best + 1) % count
        return endpoints[best], 0.0

    def _by_head(self, head: int, tokens: int, now: float, avoid: int) -> Endpoint | None:
        """Return the endpoint that a head belongs to, or the next one on the ring that has room; None if none has.

        A probe of an endpoint that is down is due before that: its recovery would be found late.
        """
        endpoints = self.endpoints
        if self._ring is None:
            names = [endpoint.name or str(place) for place, endpoint in enumerate(endpoints)]
            self._ring = Ring(names, [endpoint.weight for endpoint in endpoints])
        loads = [None if not one.up or one.bit & avoid else one.limiter.in_use for one in endpoints]
        for one in endpoints:
            if one.out is None and not one.bit & avoid and one.limiter.down and one.limiter.wait(now, tokens) <= 0.0:
                return one
        for place in self._ring.order(head):
            if self._ring.room(loads, place, self.most) and endpoints[place].limiter.wait(now, tokens) <= 0.0:
                return endpoints[place]
        return None
