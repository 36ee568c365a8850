"""The limiter of a process whose limit is shared: it asks a keeper, in a file or at a broker, for permits."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
from anyio import current_time

from batchchat.errors import BatchchatError
from batchchat.events import Pace
from batchchat.limits import MAX_CONCURRENCY, Limiter, Permit
from batchchat.limits.ceilings import Advertised, LimitCeilings
from batchchat.limits.controller import Grant
from batchchat.records import Verdict
from batchchat.sharing.asking import AskLoop, Carrier
from batchchat.sharing.ended import BorrowedGrant, EndedPermits, words_for
from batchchat.sharing.messages import KeeperAnswer, KeeperAsk, LimitStanding, key_of

if TYPE_CHECKING:
    from batchchat.events import Listener
    from batchchat.records import Reply

_MOST_WANTS = 256
"""Requests that one ask names: more than a keeper grants at once at any pace that is limited."""
_SPARE = 32
"""Permits that are asked for ahead at most, for a caller that looks now and then in place of waiting in line."""
_BEAT_S = 1.0
"""Seconds between two asks of a process that wants nothing and has permits: so it hears what others learn."""
_BEATS_A_LEASE = 4
"""How often a process that reuses permits asks within a lease, so that it may go on if one ask or two take long."""
_ENTRIES_MAX = 512
"""What came of so many permits is told at once. With 256 wants that is an ask of 63 KB, measured."""


class _Wanted:
    """A request that waits for a permit."""

    __slots__ = ("digest", "event", "grant", "key", "tokens")

    def __init__(self, tokens: int, key: object) -> None:
        self.tokens = tokens
        self.key = key
        self.digest = key_of(key)
        self.event = anyio.Event()
        self.grant: BorrowedGrant | None = None


class SharedLimiter(Limiter):
    """A limiter that shares what it knows and grants with other processes. It is used as a `Limiter` is.

    While `kept` is entered it asks the keeper, for all requests that wait together, as often as `Carrier.interval_s`
    says. A permit that comes too late is given back unused, and asked for again. As long as the keeper allows it, a
    request that was answered leaves its slot to the next one here without an ask.

    Arguments:
        carrier: the way to the keeper.
        ceilings: what the job sets.
        room: how many requests this process may have under way at most.
        listener: takes what the shared limiter tells, whichever process it learned it from.
    """

    def __init__(
        self,
        carrier: Carrier,
        ceilings: LimitCeilings,
        *,
        room: int = MAX_CONCURRENCY,
        listener: Listener | None = None,
    ) -> None:
        super().__init__(advertised=Advertised(concurrency=room), listener=listener)
        self._carrier = carrier
        self._ceilings = ceilings
        self._room = room
        self._standing = LimitStanding()
        self._standing_at = -math.inf
        self._line: deque[_Wanted] = deque()
        self._spare: deque[BorrowedGrant] = deque()
        self._looks: deque[int] = deque(maxlen=_SPARE)
        self._ended = EndedPermits()
        self._acts: list[tuple[str, tuple[str, ...]]] = []
        self._out = self._probes = 0
        self._heard = 0
        self._next_at = -math.inf
        self._loop = AskLoop(carrier, ask=self._ask, due=self._due, lose=self._lose)

    # --- asking

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[SharedLimiter]:
        """Ask the keeper as long as this is entered. Several runs on one event loop may enter it."""
        async with self._loop.entered():
            yield self

    def _lose(self, error: BatchchatError | None) -> None:
        self.lost = error

    def _due(self, now: float) -> float:
        """Return when to ask next if nothing hurries."""
        if self._line or self._looks:
            return self._next_at
        lease_s = self._carrier.lease_s
        return now + (min(_BEAT_S, lease_s / _BEATS_A_LEASE) if self._ended.reusable else _BEAT_S)

    async def _ask(self) -> None:
        ended = self._ended.take()
        acts, self._acts = self._acts, []
        line = [wanted for wanted in self._line if wanted.grant is None]
        room = max(0, min(_MOST_WANTS, self._room - self._out))
        asked_for = line[:room]
        looks = list(self._looks)[: max(0, room - len(asked_for))]
        self._looks.clear()
        asked = current_time()
        ask = KeeperAsk(
            self._ceilings,
            [*((wanted.tokens, wanted.digest) for wanted in asked_for), *((tokens, None) for tokens in looks)],
            words_for(ended, self._carrier.connection),
            self._out,
            self._probes,
            acts,
            self._heard,
        )
        try:
            answer = await self._carrier.exchange(ask)
        except BaseException:
            # Nobody knows whether it was heard. What came of permits is not told again: to give the same tokens back
            # twice would let too many go. The next ask says how many permits are left.
            self._acts = acts + self._acts
            self._ended.unheard(ended)
            raise
        self._ended.heard(ended, answer.reused)
        self._take(answer, asked, asked_for)

    def _take(self, answer: KeeperAnswer, asked: float, asked_for: list[_Wanted]) -> None:
        now = current_time()
        self._standing, self._standing_at = answer.standing, now
        until = asked + self._carrier.lease_s
        # What was refused meanwhile is told with the next ask.
        self._ended.allow(0 if self._loop.urgent else answer.reusable, until)
        waiting = iter(asked_for)
        for lent in answer.granted:
            grant = BorrowedGrant(
                *(None, lent.tokens, now, lent.level, lent.number, lent.probe, lent, until),
                connection=self._carrier.connection,
            )
            self._out += 1
            self._probes += lent.probe
            wanted = next(waiting, None)
            if wanted is None:
                self._spare.append(grant)
            elif wanted.grant is None and wanted in self._line:
                grant.key = wanted.key
                wanted.grant = grant
                wanted.event.set()
            else:
                self._void(grant)  # its wait was cancelled meanwhile
        self._next_at = now + answer.wait if len(answer.granted) < len(asked_for) else now
        for heard in answer.heard:
            self._heard = heard.place
            self._tell(heard.name, heard.message, heard.level, heard.fields)  # type: ignore[arg-type] # a level

    def _void(self, grant: BorrowedGrant) -> None:
        """Give a permit back that was not used."""
        self._out -= 1
        self._probes -= grant.probe
        self._ended.add(grant, None, current_time(), unused=True)
        self._loop.ask_soon()

    def _reuse(self, tokens: int, key: object, now: float) -> BorrowedGrant | None:
        """Take the slot of a request that was answered since the last ask; None if there is none, or it may not be."""
        if not self._ended.can_reuse(self._out, now):
            return None
        self._out += 1
        return self._ended.reuse(tokens, key, now, self._carrier.connection)

    # --- granting

    def try_acquire(self, tokens: int, *, key: object = None, now: float | None = None) -> Permit | None:
        """Take a permit that was asked for ahead; None if there is none, and then one is asked for."""
        now = current_time() if now is None else now
        grant = self._take_spare(tokens, now)
        if grant is not None:
            grant.key = key
        elif not self._line:
            grant = self._reuse(tokens, key, now)
        return None if grant is None else Permit(self, grant)

    def wait(self, now: float, tokens: int) -> float:
        """Return 0 if a permit is there that was asked for ahead; else ask for one, and return when to look again."""
        self._drop_late(now)
        if any(grant.tokens >= tokens for grant in self._spare):
            return 0.0
        if not self._line and self._ended.can_reuse(self._out, now):
            return 0.0
        self._looks.append(tokens)
        self._loop.ask_soon()
        return max(self._carrier.interval_s, min(self._next_at - now, self._carrier.lease_s / 2))

    def _drop_late(self, now: float) -> None:
        while self._spare and self._spare[0].until < now:
            self._void(self._spare.popleft())

    def _take_spare(self, tokens: int, now: float) -> BorrowedGrant | None:
        self._drop_late(now)
        for place, grant in enumerate(self._spare):
            if grant.tokens >= tokens:
                del self._spare[place]
                return grant
        return None

    async def acquire(self, tokens: int, *, key: object = None) -> Permit:
        """Wait in turn for a permit. None comes any more once the limiter is `lost`."""
        permit = self.try_acquire(tokens, key=key)
        if permit is not None:
            return permit
        wanted = _Wanted(tokens, key)
        if not self._line:
            self._loop.ask_soon()
        self._line.append(wanted)
        try:
            while True:
                await wanted.event.wait()
                wanted.event = anyio.Event()
                grant, wanted.grant = wanted.grant, None
                if grant is None:
                    continue
                if current_time() <= grant.until:
                    return Permit(self, grant)
                self._void(grant)
        finally:
            self._line.remove(wanted)
            if wanted.grant is not None:
                self._void(wanted.grant)

    # --- settling

    def _settle(self, grant: Grant, reply: Reply | None, now: float) -> None:
        assert isinstance(grant, BorrowedGrant)  # noqa: S101 - what this limiter grants
        self._out -= 1
        self._probes -= grant.probe
        # What slows others down, or says that a server is back, is told at once.
        if grant.probe or (reply is not None and reply.verdict in _URGENT):
            self._loop.urgent = True
            self._ended.reusable = 0
        self._ended.add(grant, reply, now)
        if self._loop.urgent or len(self._ended) >= _ENTRIES_MAX or (self._line and not self._serve_line(now)):
            self._loop.ask_soon()

    def _serve_line(self, now: float) -> bool:
        """Leave a slot to the first request that waits. Return false if that may not be."""
        wanted = next((wanted for wanted in self._line if wanted.grant is None), None)
        if wanted is None:
            return True
        wanted.grant = self._reuse(wanted.tokens, wanted.key, now)
        if wanted.grant is None:
            return False
        wanted.event.set()
        return True

    def _unused(self, grant: Grant) -> None:
        # It is the one that was settled just now, with no reply.
        self._ended.was_unused(grant)

    # --- steering

    def retune(
        self,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        concurrency: int | None = None,
    ) -> None:
        """Take other ceilings from the job while a run is going. The lowest of all processes holds."""
        self._ceilings = LimitCeilings(requests_per_minute, tokens_per_minute, concurrency)
        self._loop.ask_at_once()

    def suspect(self, key: object) -> None:
        """Say that this request failed for good in an earlier run; see `Limiter`."""
        self._act("suspect", [key])

    def blame(self, keys: Iterable[object]) -> None:
        """Say that the provider is not down: these requests are the cause of their failures."""
        self._act("blame", keys)
        self._loop.ask_at_once()

    def hurry(self) -> None:
        """Let the next probe of a provider that is down go at once, if it waits longer."""
        self._act("hurry", [])
        self._loop.ask_at_once()

    def _act(self, act: str, keys: Iterable[object]) -> None:
        self._acts.append((act, tuple(digest for key in keys if (digest := key_of(key)) is not None)))

    # --- telling

    def pace(self) -> Pace:
        """Return what is allowed and used now by all that share the limit, and how many these are."""
        return replace(self._standing.pace, shared_by=self._standing.holders)

    @property
    def down(self) -> bool:
        """Whether the provider seems to be down, so that only probes may go."""
        return self._standing.down

    @property
    def in_use(self) -> int:
        """How many permits this process has."""
        return self._out

    @property
    def refusing(self) -> bool:
        """Whether the provider refuses everybody for its rate limit, so that only probes may go."""
        return self._standing.refusing

    @property
    def failed_probes(self) -> int:
        """How many probes have failed since the provider went down."""
        return self._standing.failed_probes

    @property
    def window(self) -> int:
        """How many requests this process may have under way at most, if the others have none."""
        return min(self._room, self._standing.pace.concurrency or self._ceilings.concurrency or _FIRST_WINDOW)

    @property
    def answered(self) -> bool:
        """Whether any HTTP response ever came to any of them, whatever it said."""
        return self._standing.answered

    @property
    def outage_s(self) -> float:
        """Seconds since the provider last answered well, while it is down or refuses everybody; 0 otherwise."""
        return self._since(self._standing.outage_s)

    @property
    def unreachable_s(self) -> float:
        """Seconds since the first failed connection, while nothing has ever answered; 0 otherwise."""
        return self._since(self._standing.unreachable_s)

    def _since(self, seconds: float) -> float:
        return seconds + current_time() - self._standing_at if seconds else 0.0


_URGENT = frozenset({Verdict.RATE_LIMIT, Verdict.TRANSIENT})
_FIRST_WINDOW = 8
"""The window before the keeper has answered first: what an unset concurrency begins with."""
