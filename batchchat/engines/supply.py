"""The requests that wait for a sender: read ahead from the feed, to be tried again at some time, or due now.

It knows three queues. `ready` holds new requests, in the order of the feed; how far it reaches ahead is bounded in
requests and in bytes. `delayed` holds those that failed and wait for their time. `due` holds what goes before new ones.
Which new request is next is a decision of its own: while rows that stand together may be bad together, one is drawn
from anywhere.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import aclosing
from itertools import count

import anyio

from batchchat.endpoints.affinity import Heads
from batchchat.endpoints.traffic import Traffic
from batchchat.engines.causes import Causes
from batchchat.engines.port import Feed, Sink
from batchchat.engines.refusals import Refusals
from batchchat.limits import TokenEstimator
from batchchat.records import Request

_TRIES_FOR_ANOTHER = 32
"""Random looks for a request to probe with that is no larger: enough if one in ten is. Chosen, not measured."""
_DELAYED_MAX = 10_000
"""Requests that may wait for another attempt before no new one is begun: it bounds memory in a long outage."""
_DELAYED_BYTES = 256 * 2**20
"""Bytes that may wait for another attempt: like `_DELAYED_MAX`, for large requests."""
_READY_MIN = 512
"""Requests that are read ahead at least, so that a slow read of the input leaves no sender idle."""
_READY_BYTES = 16 * 2**20
"""Bytes that are read ahead at most: four requests of 4 MiB, with an image each. A row is in memory as a request, as
values and as its column: measured with rows of 200 KB, twice as many bytes took 50 MB more and were no faster."""
_READY_FAR = 16_384
"""Requests that are read ahead, within the same bytes, if rows that stand together may all be bad."""
_HAND_BYTES = 128 * 2**20
"""Bytes of requests that senders have at once: rows of 60 MB are not sent 32 at a time. Chosen, not measured."""


class Supply:
    """See the module. A request that a sender took is *in hand* until `put_down`, and part of what is left.

    The limiter's window, and whether the provider is down, decide how far is read ahead. `causes` and `refusals` decide
    which new request is drawn. `heads` are told of all that is read, if there are endpoints to choose from.
    """

    def __init__(
        self,
        limiter: Traffic,
        causes: Causes,
        refusals: Refusals,
        rng: random.Random,
        heads: Heads | None = None,
    ) -> None:
        self.heads = heads
        self.ended = False
        self.given = 0
        self.in_hand = 0
        self._limiter = limiter
        self._causes = causes
        self._refusals = refusals
        self._rng = rng
        self._ready: deque[Request] = deque()
        self._due: deque[Request] = deque()
        self._delayed: list[tuple[float, int, Request]] = []
        self._order = count()
        self._ready_bytes = self._delayed_bytes = self._hand_bytes = 0
        self._room = anyio.Event()
        self._wants_room = False

    # --- how much there is

    @property
    def waiting(self) -> int:
        """Return how many requests wait for another attempt."""
        return len(self._delayed) + len(self._due)

    @property
    def startable(self) -> int:
        """Return how many requests a sender could take now, if nothing else held them back."""
        return len(self._ready) + len(self._due)

    @property
    def left(self) -> int:
        """Return how many requests are here or in hand."""
        return len(self._ready) + len(self._due) + len(self._delayed) + self.in_hand

    @property
    def exhausted(self) -> bool:
        """Return true if the feed has ended and nothing is left."""
        return self.ended and not self.left

    @property
    def next_due(self) -> float | None:
        """Return when the first delayed request comes due, by the loop's clock; None if none is delayed."""
        return self._delayed[0][0] if self._delayed else None

    def delayed(self, first: int | None = None) -> Iterator[Request]:
        """Yield the requests that are delayed: all of them, or so many that come due first, in that order."""
        places = self._delayed if first is None else heapq.nsmallest(first, self._delayed)
        return (request for _, _, request in places)

    # --- from the feed

    async def read(self, feed: Feed, sink: Sink, more: Callable[[], None]) -> None:
        """Take requests from the feed as there is room for them; call `more` after each list, and at the end."""
        async with aclosing(feed):
            async for requests in feed:
                if self.heads is not None:
                    self.heads.note(requests)
                self._ready.extend(requests)
                self._ready_bytes += sum([len(request.body) for request in requests])
                self.given += 1
                more()
                while len(self._ready) >= self._reach() or self._ready_bytes >= _READY_BYTES:
                    self._room = anyio.Event()
                    self._wants_room = True
                    await self._room.wait()
                # What was answered may wait for the disk: to read on would only move the queue into memory.
                if sink.full:
                    await sink.room()
        self.ended = True
        more()

    def read_on(self) -> None:
        """Look again whether there is room for more: the reach may be further now, or the run is at its end."""
        self._room.set()

    def _usual(self) -> int:
        return max(_READY_MIN, 2 * self._limiter.window)

    def _reach(self) -> int:
        """Return how many requests are read ahead now."""
        # What stands together in the input may be bad together: a probe is to come from far beyond it.
        far = self._refusals.reading or self._limiter.down
        return max(self._usual(), _READY_FAR) if far else self._usual()

    # --- to the senders, and back

    def take(self) -> Request | None:
        """Take the next request in hand. Return None if there is none, or none is to be begun now."""
        request: Request | None = None
        # It runs for each attempt, so that it calls little.
        if self._due:
            request = self._due.popleft()
        elif self._ready and self._may_begin():
            if self._refusals.trying:
                request = self._try_another()
            # In the order of the input while all is well: neighbours share heads of prompts, and records come in order.
            elif not self._causes.suspects:
                request = self._ready.popleft()
            else:
                request = self._draw()
            if request is not None:
                self._taken(request)
        if request is not None:
            self.in_hand += 1
            self._hand_bytes += len(request.body)
        return request

    def put_down(self, nbytes: int) -> bool:
        """Count a request of this size out of hand. Return true if its size kept others from being begun."""
        crowded = self._hand_bytes >= _HAND_BYTES
        self.in_hand -= 1
        self._hand_bytes -= nbytes
        return crowded

    def put_first(self, request: Request) -> None:
        """Take back a request that goes before all others."""
        self._due.appendleft(request)

    def put_due(self, request: Request) -> None:
        """Take back a request that goes before new ones."""
        self._due.append(request)

    def delay(self, request: Request, due: float) -> bool:
        """Take back a request until this time of the loop's clock. Return true if it is the first to come due."""
        first = not self._delayed or due < self._delayed[0][0]
        heapq.heappush(self._delayed, (due, next(self._order), request))
        self._delayed_bytes += len(request.body)
        return first

    def collect_due(self, now: float) -> None:
        """Let the delayed requests go whose time has come."""
        while self._delayed and self._delayed[0][0] <= now:
            request = heapq.heappop(self._delayed)[2]
            self._delayed_bytes -= len(request.body)
            self._due.append(request)

    def swap(self, request: Request, estimator: TokenEstimator) -> Request:
        """Return another new request in place of this one: one from anywhere that is no larger, if one is found.

        The given one waits as due then. Its permit and its place in the budget fit the other.
        """
        # Nothing to swap with, or a new request would pass the bounds for those that wait.
        if not self._ready or not self._may_begin():
            return request
        most = estimator.at_most(request.prompt_tokens, request.max_tokens)
        for _ in range(_TRIES_FOR_ANOTHER):
            place = self._rng.randrange(len(self._ready))
            other = self._ready[place]
            prompt, completion = estimator.at_most(other.prompt_tokens, other.max_tokens)
            if prompt <= most[0] and completion <= most[1]:
                del self._ready[place]
                self._taken(other)
                self._due.append(request)
                return other
        return request

    def _may_begin(self) -> bool:
        """Return true if a new request may be begun, although it may come to those that wait for another attempt."""
        return (
            len(self._delayed) < _DELAYED_MAX
            and self._delayed_bytes < _DELAYED_BYTES
            and self._hand_bytes < _HAND_BYTES
        )

    def _draw(self) -> Request:
        """Take a new request from anywhere: some that failed may be the cause themselves.

        So a block of bad rows is mixed with others, whose answers show that the provider is up.
        """
        place = self._rng.randrange(len(self._ready))
        request = self._ready[place]
        del self._ready[place]
        return request

    def _try_another(self) -> Request | None:
        """Return a row to try while refusals are held, None if none is to be tried now."""
        if self._refusals.reading:
            if not (self.ended or len(self._ready) >= _READY_FAR or self._ready_bytes >= _READY_BYTES):
                self._room.set()
                return None
            self._refusals.read_on()
        return self._refusals.pick(self._ready, self._rng)

    def _taken(self, request: Request) -> None:
        """Count a new request out, and read on once half of the usual number is gone."""
        self._ready_bytes -= len(request.body)
        # Half full is early enough for a slow input, and one wake-up serves many requests.
        if self._wants_room and len(self._ready) * 2 < self._usual() and self._ready_bytes * 2 < _READY_BYTES:
            self._wants_room = False
            self._room.set()
