"""The monitor: looks, while a run goes on, at what no single attempt can tell."""

from __future__ import annotations

import anyio

from batchchat.endpoints.traffic import Traffic
from batchchat.engines.halting import OutageStep
from batchchat.engines.state import EngineState
from batchchat.events import Event, Listener

_MONITOR_S = 1.0
"""Seconds between two looks at an outage. `retry.outage` is in minutes, so a second more does not matter."""


class OutageMonitor:
    """Acts on an outage that lasts, a host that never answers, and a feed that gives nothing while refusals wait."""

    def __init__(self, state: EngineState, traffic: Traffic, listener: Listener) -> None:
        self._state = state
        self._traffic = traffic
        self._listener = listener

    async def run(self) -> None:
        """Look every second until nothing is left to do, or the run takes no more work."""
        given = -1
        supply, pool, refusals = self._state.supply, self._state.pool, self._state.refusals
        while not (pool.draining or supply.exhausted):
            # Nobody asks the provider during a pause, so nothing can tell whether it is back.
            step = None if pool.paused else self._state.outage.next_step(answered=self._state.succeeded)
            if step is OutageStep.ASK_THE_REST:
                self._traffic.hurry()
            elif step is OutageStep.TAKE_FOR_CAUSES:
                self._take_for_causes()
            elif step is not None:
                pool.halt_for(step)
            # The limits that this run shares with others cannot be asked any more: nothing may be sent without them.
            if self._traffic.lost is not None:
                pool.halt_for(self._traffic.lost)
            if self._traffic.down:
                supply.read_on()  # it reaches further now
            # The feed has given nothing since the last look: what it gave is all there is to try.
            if given == supply.given and refusals.reading:
                refusals.read_on()
                pool.staff()
            given = supply.given if refusals.reading else -1
            await pool.idle(lambda: anyio.sleep(_MONITOR_S))

    def _take_for_causes(self) -> None:
        """Let the requests that are left go on, each with its own attempts: no other request can show more."""
        suspects = self._state.causes.suspects
        message = f"{len(suspects)} requests are left and each fails: they are taken for the cause, not the provider"
        self._listener(Event("requests_suspected", message, "warning"))
        self._traffic.blame([request.custom_id for request in suspects])
