"""The keeper of a shared limit: the one controller that all processes ask, and who of them is next.

It is plain state and functions of a time that is passed in. The carriers hold it: a file, or a broker's memory.

A permit is to be used within `lease_s` of the moment at which the process began to ask. So the pace is
`(60 + lease + catch-up + jitter) / N` seconds a unit: N requests that were granted so are never sent in less than
60 seconds, however late within its lease each is. A process that dies or stalls takes only its own permits with it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any

from batchchat.dataclass import dataclass
from batchchat.limits import MAX_CONCURRENCY
from batchchat.limits.ceilings import Advertised, LimitCeilings
from batchchat.limits.concurrency import Concurrency
from batchchat.limits.controller import Controller, Grant
from batchchat.limits.limiter import pace_of
from batchchat.limits.rates import Rate
from batchchat.sharing.messages import GrantedPermit, KeeperAnswer, KeeperAsk, KeeperEvent, LimitStanding

if TYPE_CHECKING:
    import random

    from batchchat.events import Level

_GRACE_S = 0.1
"""Seconds that a process may be late for its turn. The schedule makes good as much (`limits.schedule.CATCH_UP`)."""
_LEAD_S = 0.1
"""Seconds of the pace that a process may be ahead of others that wait: it takes that many permits with one ask."""
_NEXT_S = 0.005
"""Seconds until another look for a process whose turn it is not. Chosen, not measured."""
_EVENT_S = 0.25
"""The longest wait that is told: what others learn or give back is seen so late at most."""
_SLOT_S = 0.05
"""The wait that is told if only an answer can make room. A process asks anyway when it has one; this is for those that
have none under way. Chosen, not measured."""
_TOLD = 64
"""Events that are kept for processes which did not ask since. They come at most a few a minute."""


@dataclass(slots=True)
class SharingProcess:
    """A process that uses the limit.

    `in_use` and `probes` are its permits. `wants` is how many requests of it waited at its last ask, `waits_until` is
    until when it counts as waiting. `served` is what it was granted, counted on from where others were when it came.
    """

    ceilings: LimitCeilings = LimitCeilings()
    in_use: int = 0
    probes: int = 0
    wants: int = 0
    waits_until: float = -math.inf
    served: float = 0.0


@dataclass(slots=True)
class KeeperEvents:
    """Keeps what the controller tells until every process has heard it."""

    last: int = 0
    events: deque[KeeperEvent] = field(default_factory=lambda: deque(maxlen=_TOLD))

    def __call__(self, name: str, message: str, level: Level, fields: Mapping[str, Any]) -> None:
        """Note something that the controller tells; the oldest is forgotten."""
        self.last += 1
        self.events.append(KeeperEvent(self.last, name, message, level, dict(fields)))


class LimitKeeper:
    """See the module.

    Arguments:
        lease_s: how long a permit may be used, from the moment at which the process began to ask.
        advertised: what the provider is known to allow.
        rng: spreads waits.
    """

    def __init__(self, lease_s: float, advertised: Advertised, rng: random.Random) -> None:
        self.lease_s = lease_s
        self.holders: dict[str, SharingProcess] = {}
        self._told = KeeperEvents()
        self._cap = advertised.concurrency or MAX_CONCURRENCY
        self._ceilings = LimitCeilings()
        self._turn = 0.0
        self._by_tokens = False
        self._closed_until = -math.inf
        self._controller = Controller(
            Rate(None, advertised.requests_per_minute, lease_s),
            Rate(None, advertised.tokens_per_minute, lease_s),
            Concurrency(None, self._cap),
            rng,
            self._told,
        )

    # --- processes come and go

    def join(self, name: str, ceilings: LimitCeilings, now: float) -> None:
        """Take a process in. One that is known already goes on as it was."""
        self.holders.setdefault(name, SharingProcess(ceilings, served=self._turn)).ceilings = ceilings
        self._apply_ceilings(now)

    def leave(self, name: str, now: float) -> None:
        """Take the slots of a process back that ended or died. What it was granted stays counted as sent."""
        holder = self.holders.pop(name, None)
        if holder is None:
            return
        controller = self._controller
        controller.in_use -= holder.in_use
        if holder.probes:
            self._release(now)
        if self.holders:
            self._apply_ceilings(now)

    def _release(self, now: float) -> None:
        """Let another probe go in the place of one of which nothing will be heard."""
        for gate in (self._controller.breaker, self._controller.hold):
            if gate.active:
                gate.release(now)

    def stand(self, now: float) -> None:
        """Grant nothing as long as permits of an earlier keeper may still be used, and for one unit's time more."""
        self._closed_until = now + self.lease_s

    def _apply_ceilings(self, now: float) -> None:
        """Keep the lowest of what the jobs set."""
        lowest = LimitCeilings(
            *(
                min((value for value in values if value is not None), default=None)
                for values in zip(*(holder.ceilings for holder in self.holders.values()), strict=True)
            )
        )
        if lowest == self._ceilings:
            return
        controller = self._controller
        for rate, ceiling in (
            (controller.requests, lowest.requests_per_minute),
            (controller.tokens, lowest.tokens_per_minute),
        ):
            if rate.ceiling != ceiling:
                rate.ceiling = ceiling
                rate.apply(now)
                rate.schedule.stand(self._closed_until)
        if lowest.concurrency != self._ceilings.concurrency:
            controller.concurrency.limit(lowest.concurrency, lowest.concurrency or self._cap)
        self._ceilings = lowest

    # --- asks

    def exchange(self, name: str, ask: KeeperAsk, now: float) -> KeeperAnswer:
        """Draw the conclusions of what a process tells, and grant what may go of what it wants."""
        holder = self.holders.get(name)
        if holder is None or holder.ceilings != ask.ceilings:
            self.join(name, ask.ceilings, now)
            holder = self.holders[name]
        controller = self._controller
        reused = self._settle(holder, ask, now)
        # They differ if an answer was lost on its way, the process has come back, or the keeper is new.
        controller.in_use += ask.in_use - holder.in_use
        holder.in_use = ask.in_use
        if ask.probes < holder.probes:
            self._release(now)
        holder.probes = ask.probes
        for act, keys in ask.acts:
            self._act(act, keys, now)
        granted, wait = self._grant(holder, ask, now)
        reusable = self._reusable(holder, now)
        heard = [one for one in self._told.events if one.place > ask.heard]
        return KeeperAnswer(granted, wait, reused, reusable, self._standing(now), heard)

    def _settle(self, holder: SharingProcess, ask: KeeperAsk, now: float) -> list[GrantedPermit]:
        """Draw the conclusions of what came of permits, in their order; return the permits of those that were reused.

        Raises ValueError if a permit is named by the place of an entry that has no successor.
        """
        controller = self._controller
        successors: dict[int, Grant] = {}
        for place, one in enumerate(ask.settled):
            if isinstance(one.lent, GrantedPermit):
                lent = one.lent
                grant = Grant(one.key, lent.tokens, lent.at, lent.level, lent.number, lent.probe)
            elif one.lent in successors:
                grant = successors[one.lent]
                grant.key = one.key
            else:
                raise ValueError("a permit that nobody was granted")
            if one.took is not None:
                # The keeper heard of it later than it went, and hears of its end later than that.
                grant.at = now - one.took
            if not holder.in_use:
                controller.in_use += 1  # its slot came back when its holder was taken for dead
            else:
                holder.in_use -= 1
                holder.probes -= grant.probe
            if one.reply is None:
                controller.abandon(grant, now)
                if one.unused:
                    controller.unused(grant)
            else:
                controller.settle(grant, one.reply, now)
            if one.successor is not None:
                tokens, key = one.successor
                successors[place] = controller.count(now, tokens, key)
                holder.in_use += 1
        return [GrantedPermit(one.tokens, one.at, one.level, one.number, one.probe) for one in successors.values()]

    def _act(self, act: str, keys: tuple[str, ...], now: float) -> None:
        breaker = self._controller.breaker
        if act == "hurry":
            breaker.next_at = min(breaker.next_at, now)
            return
        for key in keys:
            breaker.suspect(key)
        if act == "blame" and breaker.active:
            self._controller.close_breaker(now)

    def _grant(self, holder: SharingProcess, ask: KeeperAsk, now: float) -> tuple[list[GrantedPermit], float]:
        """Grant the wants in their order as far as they may go; return the permits, and when to ask for the rest."""
        controller = self._controller
        granted: list[GrantedPermit] = []
        wait = _EVENT_S
        if now >= holder.waits_until:
            holder.served = max(holder.served, self._turn)
        others = self._waiting_beside(holder, now)
        for tokens, key in ask.wants:
            delay = max(controller.wait(now, tokens), self._closed_until - now)
            if delay > 0.0:
                wait = min(delay, _EVENT_S if delay < math.inf else _SLOT_S)
                break
            if others and not self._is_next(holder, others):
                wait = _NEXT_S
                break
            grant = controller.grant(now, tokens, key)
            granted.append(GrantedPermit(tokens, grant.at, grant.level, grant.number, grant.probe))
            holder.in_use += 1
            holder.probes += grant.probe
            self._turn = max(self._turn, holder.served) if not others else holder.served
            holder.served += self._cost(tokens)
        holder.wants = len(ask.wants) - len(granted)
        holder.waits_until = now + wait + _GRACE_S if holder.wants else -math.inf
        return granted, wait

    def _reusable(self, holder: SharingProcess, now: float) -> int:
        """Return how many permits a process may have by reuse: all it has, less what others that wait are short of."""
        controller = self._controller
        if not controller.only_slots(now) or now < self._closed_until:
            return 0
        slots = controller.concurrency.slots
        room = max(0, slots - (controller.in_use - holder.in_use))
        others = self._waiting_beside(holder, now)
        share, short = self._shares(others)
        return min(room, max(share, holder.in_use - short))

    def _waiting_beside(self, holder: SharingProcess, now: float) -> list[SharingProcess]:
        return [one for one in self.holders.values() if one is not holder and one.waits_until > now]

    def _shares(self, others: list[SharingProcess]) -> tuple[int, int]:
        """Return one process's share of the slots among those that wait, and how many `others` lack of theirs."""
        share = max(1, self._controller.concurrency.slots // (len(others) + 1))
        return share, sum(min(other.wants, max(0, share - other.in_use)) for other in others)

    def _cost(self, tokens: int) -> float:
        """Return what a permit takes of a process's share: by tokens if only these are limited."""
        controller = self._controller
        by_tokens = controller.tokens.schedule.rate is not None and controller.requests.schedule.rate is None
        if by_tokens is not self._by_tokens:
            # Tokens and requests are not to be compared: everybody begins anew.
            self._by_tokens = by_tokens
            self._turn = 0.0
            for holder in self.holders.values():
                holder.served = 0.0
        return float(tokens if by_tokens else 1)

    def _is_next(self, holder: SharingProcess, others: list[SharingProcess]) -> bool:
        """Tell whether it is this process's turn: nobody who waits has fewer slots than his share, or was served less.

        Shares of slots count only while slots are what is short. A process that does not come when its time has come
        waits no longer (`waits_until`), so one that died or stalls holds nobody up for more than a moment.
        """
        controller = self._controller
        share, short = self._shares(others)
        if holder.in_use >= share and short >= controller.concurrency.slots - controller.in_use:
            return False
        rates = [rate.schedule.rate for rate in (controller.requests, controller.tokens)]
        rate = rates[self._by_tokens]
        if rate is None:
            return True
        lead = rate / 60 * _LEAD_S
        return holder.served <= min(other.served for other in others) + (lead if lead >= 1 else 0.0)

    def _standing(self, now: float) -> LimitStanding:
        controller = self._controller
        return LimitStanding(
            pace=pace_of(controller, now),
            down=controller.breaker.active,
            refusing=controller.hold.active,
            failed_probes=controller.breaker.tries,
            answered=controller.answered,
            outage_s=controller.outage_s(now),
            unreachable_s=controller.unreachable_s(now),
            holders=len(self.holders),
        )
