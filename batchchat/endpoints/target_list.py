"""The targets of a run in their order: who is asked in place of whom, and which endpoints the run cannot do without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from batchchat.endpoints.endpoint import Endpoint
from batchchat.endpoints.target import Target


class TargetList:
    """The job's own target, then those that are asked in its place or for a further step of a cascade.

    A target goes by its number here. A `reason` is a word that a job may write under `on`.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self._targets = tuple(targets)
        for place, endpoint in enumerate(self.endpoints()):
            endpoint.bit = 1 << place
        # For each step of a cascade, the target that is asked and those that are when it is down. If all of one step
        # are down, the run is: a row that waits for that step cannot be settled without it.
        self._chains: list[list[Target]] = [
            [target for target in self._targets if target.step == step and (not target.on or "outage" in target.on)]
            for step in sorted({target.step for target in self._targets})
        ]

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, number: int) -> Target:
        return self._targets[number]

    def __iter__(self) -> Iterator[Target]:
        return iter(self._targets)

    def endpoints(self) -> Iterator[Endpoint]:
        """Return the endpoints of all targets."""
        return (endpoint for target in self._targets for endpoint in target.endpoints)

    # --- which endpoints decide

    def deciding(self) -> list[list[Endpoint]]:
        """Return the endpoints in use that decide whether a step of a cascade can be asked.

        There is one list for each step; without a cascade there is one list.
        """
        return [
            [endpoint for target in chain for endpoint in target.endpoints if endpoint.out is None]
            for chain in self._chains
        ]

    def deciding_endpoints(self) -> list[Endpoint]:
        """Return the endpoints in use that decide whether the run can go on."""
        return [endpoint for chain in self.deciding() for endpoint in chain]

    def can_spare(self, endpoint: Endpoint) -> bool:
        """Return true if the endpoint's step can be asked without it."""
        step = next(target.step for target in self._targets if endpoint in target.endpoints)
        others = next(
            chain for chain, targets in zip(self.deciding(), self._chains, strict=True) if targets[0].step == step
        )
        return any(other is not endpoint for other in others)

    # --- who is asked in place of whom

    def following(self, number: int, reason: str) -> int | None:
        """Return the number of the next target that is asked for this reason, None if there is none."""
        later = range(number + 1, len(self._targets))
        return next((place for place in later if reason in self._targets[place].on), None)

    def following_up(self, number: int, reason: str) -> int | None:
        """Return the number of the next target that is asked for this reason and is up, None if there is none."""
        later = self.following(number, reason)
        while later is not None and self._targets[later].unavailable:
            later = self.following(later, reason)
        return later

    def in_place_of(self, number: int) -> int | None:
        """Return the target that is asked while this one cannot answer; None if it can, or there is none."""
        target = self._targets[number]
        if target.unavailable:
            return self.following(number, "outage")
        return self.following(number, "rate_limit") if target.refusing else None

    def all_down_from(self, number: int) -> bool:
        """Return true if this target is down, and all that are asked when it is."""
        place: int | None = number
        while place is not None:
            if not self._targets[place].unavailable:
                return False
            place = self.following(place, "outage")
        return True
