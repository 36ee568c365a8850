"""Halting: for how long a provider may be down, and what a run that ends for it says. `DESIGN.md` has the rules."""

from __future__ import annotations

import math
from enum import Enum

import anyio

from batchchat.endpoints.traffic import Traffic
from batchchat.engines.causes import Causes
from batchchat.engines.refusals import Refusals
from batchchat.engines.supply import Supply
from batchchat.errors import BatchchatError, NeedsHuman, ProviderUnavailable
from batchchat.records import ErrorKind, Failure
from batchchat.retry import RetryPolicy

UNREACHABLE_S = 30.0
"""Seconds that a host which has never answered may refuse connections.

It is more likely to be a wrong address than an outage, so `retry.outage` is not waited for. Chosen, not measured: a
server that is being restarted is back by then.
"""


class OutageStep(Enum):
    """What to do in an outage if the run does not end for it."""

    ASK_THE_REST = "ask every request that is left once, one after the other, without waits"
    TAKE_FOR_CAUSES = "take the requests that are left for the cause of their failures"


class Outage:
    """How long the provider has been down, as the limiter sees it, and what follows.

    `resumed_at` is when the last pause ended, by anyio's clock. `last_unreached` is the message of the last attempt
    that did not reach the provider.
    """

    def __init__(
        self, limiter: Traffic, policy: RetryPolicy, causes: Causes, refusals: Refusals, supply: Supply
    ) -> None:
        self.resumed_at = -math.inf
        self.last_unreached = "no connection"
        self._limiter = limiter
        self._policy = policy
        self._causes = causes
        self._refusals = refusals
        self._supply = supply

    def next_step(self, *, answered: bool) -> OutageStep | BatchchatError | None:
        """Return what follows from the outage now: a step, why the run ends, or None to go on waiting.

        `answered` says that the model has answered in this run.
        """
        seconds = self.seconds()
        asks = seconds > 0 and self.asks_the_rest()
        # All that is left may cause its own failure, so no further request could show that the provider is up.
        if asks and 0 < self._supply.left == len(self._causes.suspects):
            return OutageStep.TAKE_FOR_CAUSES
        # Only then: a run whose last rows are bad must end with its records, not with an outage.
        if seconds > self._policy.outage:
            return self.error(seconds, answered=answered)
        if asks:
            return OutageStep.ASK_THE_REST
        return self.unreachable_error() if self.unreachable else None

    def seconds(self) -> float:
        """Return for how many seconds the provider has been down, 0 if it is up."""
        return self._since_resume(self._limiter.outage_s)

    def _since_resume(self, seconds: float) -> float:
        # Nothing is sent during a pause, so its length tells nothing of the provider.
        return min(seconds, anyio.current_time() - self.resumed_at)

    def asks_the_rest(self) -> bool:
        """Return true if it is time to ask every request that is left once, one after the other.

        The provider is down for long enough, no further request will come that could show that it is up, and no
        request that waits has a failure that only the provider can have caused.
        """
        patience = min(self._causes.patience, self._policy.outage / 2)
        return (
            self._supply.ended
            and self._refusals.model_answered
            and self.seconds() > patience
            and all(request in self._causes.suspects for request in self._supply.delayed())
        )

    @property
    def unreachable(self) -> bool:
        """Return true if nothing has ever answered and connections have failed for too long."""
        return (
            not self._limiter.answered
            and self._since_resume(self._limiter.unreachable_s) > UNREACHABLE_S
            # A host that takes requests, and has answered in an earlier run, can be reached.
            and not (self._refusals.model_answered and self._causes.suspects)
        )

    def unreachable_error(self) -> ProviderUnavailable:
        """Return why a run ends whose provider cannot be reached."""
        return ProviderUnavailable(f"the provider cannot be reached: {self.last_unreached}", remedy=_ADDRESS_REMEDY)

    def error(self, seconds: float, *, answered: bool) -> ProviderUnavailable:
        """Return why a run ends whose provider has been down for these seconds.

        `answered` says that the model has answered in this run: then the job's fields are not the cause.
        """
        message, remedy = f"the provider has been unavailable for {seconds:.0f} s", _LATER_REMEDY
        if self._causes.last is not None:
            message += f"; the last error: {self._causes.last.message}"
        # A model that has answered takes the job's fields.
        field = self._causes.field if not answered else None
        if field is not None:
            which = f"{field} {_MODES}" if field == "response.mode" else field
            remedy = f"Every request failed with the same words, which are about the request: change {which}. {remedy}"
        return ProviderUnavailable(message, remedy=remedy)


def fatal_error(failure: Failure) -> NeedsHuman:
    """Return why a run ends at a failure that every request would meet."""
    # A failure that is fatal without an answer is that of a server that cannot prove who it is.
    untrusted = failure.kind is ErrorKind.CONNECTION
    return NeedsHuman(failure.message, remedy=_CERTIFICATE_REMEDY if untrusted else _FATAL_REMEDY)


_FATAL_REMEDY = "Check the key, the account's credit and its permissions, then run the same command again."
_LATER_REMEDY = "Run the same command again later: nothing that was answered is lost."
_CERTIFICATE_REMEDY = (
    "Check the host in provider.base_url. If the server's certificate is signed by an authority of your own, name that "
    "authority's file in provider.ca_file (PEM). Then run the same command again."
)
_MODES = "(json_object or prompt, if the server does not take json_schema)"
_ADDRESS_REMEDY = (
    "Is the server running? Check the provider's base_url and your network, then run the same command again."
)
