"""Permits of a process that have ended: what the keeper is told of them, and who may have their slots.

As long as the keeper allows it, a request that was answered leaves its slot to the next one of the same process. The
keeper hears of both with the next ask, in their order.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from batchchat.dataclass import dataclass
from batchchat.limits.controller import Grant
from batchchat.records import Usage
from batchchat.sharing.messages import GrantedPermit, PermitSettled, key_of

if TYPE_CHECKING:
    from batchchat.records import Reply


@dataclass(slots=True, eq=False)
class BorrowedGrant(Grant):
    """A grant as this process counts it.

    `lent` is the keeper's own word for it: a reused permit has none before the keeper has heard of it. `until` is until
    when it may be used. `reused` tells that this process took the slot of an earlier request for it. `untold` tells
    that nobody knows whether the keeper heard of it. `connection` is the way on which it came.
    """

    lent: GrantedPermit | None = None
    until: float = math.inf
    reused: bool = False
    untold: bool = False
    connection: int = 0


class EndedPermit:
    """What came of a permit; `successor` is the permit that took its slot."""

    __slots__ = ("grant", "reply", "successor", "took", "unused")

    def __init__(self, grant: BorrowedGrant, reply: Reply | None, now: float, *, unused: bool) -> None:
        self.grant = grant
        self.reply = reply
        self.unused = unused
        self.took = now - grant.at if grant.reused else None
        self.successor: BorrowedGrant | None = None


class EndedPermits:
    """What came of permits since the last ask. `reusable` is how many this process may have by reuse; 0 for none."""

    def __init__(self) -> None:
        self.reusable = 0
        self._until = -math.inf
        self._ended: list[EndedPermit] = []
        self._vacant: deque[EndedPermit] = deque()

    def __len__(self) -> int:
        return len(self._ended)

    def add(self, grant: BorrowedGrant, reply: Reply | None, now: float, *, unused: bool = False) -> None:
        """Note what came of a permit: the reply, or None if the attempt was abandoned or the permit was not used."""
        # The next ask says how many permits are left. To tell more of one that the keeper may not know would be wrong.
        if grant.untold:
            return
        one = EndedPermit(grant, reply, now, unused=unused)
        self._ended.append(one)
        if reply is not None:
            self._vacant.append(one)

    def was_unused(self, grant: Grant) -> None:
        """Note that the permit that ended just now was never used."""
        if self._ended and self._ended[-1].grant is grant:
            self._ended[-1].unused = True

    # --- reuse

    def allow(self, reusable: int, until: float) -> None:
        """Take the keeper's word for how many permits this process may have by reuse, until its lease ends."""
        self.reusable, self._until = reusable, until

    def can_reuse(self, in_use: int, now: float) -> bool:
        """Tell whether a request may take the slot of one that was answered. `in_use` permits are under way."""
        return bool(self._vacant) and in_use < self.reusable and now < self._until

    def reuse(self, tokens: int, key: object, now: float, connection: int) -> BorrowedGrant:
        """Take the slot of a request that was answered. To be called only if `can_reuse` says so."""
        grant = BorrowedGrant(key, tokens, now, 0, 0, reused=True, connection=connection)
        self._vacant.popleft().successor = grant
        return grant

    # --- telling

    def take(self) -> list[EndedPermit]:
        """Return what the keeper is to be told now. Slots that nobody has taken go back to it."""
        self._vacant.clear()
        ended, self._ended = self._ended, []
        return ended

    def heard(self, told: Sequence[EndedPermit], reused: Sequence[GrantedPermit]) -> None:
        """Give the successors among `told` the names that the keeper has for them. Raises ValueError if one lacks."""
        successors = (one.successor for one in told if one.successor is not None)
        for grant, lent in zip(successors, reused, strict=True):
            grant.lent = lent

    def unheard(self, told: Sequence[EndedPermit]) -> None:
        """Drop what came of the permits that reused the slots of `told`: the keeper may not know of them."""
        self.reusable = 0
        for one in told:
            one.grant.untold = True
        # In their order: each follows the one whose slot it took.
        for one in (*told, *self._ended):
            if one.successor is not None and one.grant.untold:
                one.successor.untold = True
        self._ended = [one for one in self._ended if not one.grant.untold]
        self._vacant.clear()


def words_for(ended: Sequence[EndedPermit], connection: int) -> list[PermitSettled]:
    """Return what came of permits in the words of an ask that goes out on this connection.

    Nothing is given back on another connection: its keeper may never have taken it, and then more than the limit goes.
    """
    places = {id(one.successor): place for place, one in enumerate(ended) if one.successor is not None}
    told = []
    for one in ended:
        grant, successor = one.grant, one.successor
        # A permit that was reused since the last ask is named by the entry that left it its slot.
        lent = grant.lent if grant.lent is not None else places[id(grant)]
        after = None if successor is None else (successor.tokens, key_of(successor.key))
        reply, unused = one.reply, one.unused
        if grant.connection != connection:
            unused = False
            reply = None if reply is None else replace(reply, usage=Usage(total_tokens=grant.tokens))
        told.append(PermitSettled(lent, key_of(grant.key), reply, unused, one.took, after))
    return told
