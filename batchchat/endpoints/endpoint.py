"""An endpoint: one address of a provider with one key."""

from __future__ import annotations

from dataclasses import field

from batchchat.client import ChatClient
from batchchat.dataclass import dataclass
from batchchat.endpoints.body import BodyFor
from batchchat.job.pool_fields import LimitFields
from batchchat.limits import Limiter, TokenEstimator
from batchchat.records import Request


@dataclass(slots=True, eq=False)
class Endpoint:
    """Who sends to one address, and under which limits.

    The circuit breaker is part of `limiter`, the price part of `client`, which prices what it reads. `estimator`
    guesses the tokens that a request will take, and learns from answers. `name` tells the endpoint to people. `weight`
    is its share of the requests, relative to others of its target. `body` rewrites requests for it, None if they go
    as they are. `limits` are the job's for this endpoint alone.

    `answered` says that its model has answered in this run. `out` is why nothing is sent to it any more, None while it
    is in use. `bit` tells it from others in sets of endpoints (`Request.broke`). `refused` holds the rows that it has
    refused since its last answer.
    """

    client: ChatClient
    limiter: Limiter
    name: str = ""
    weight: float = 1.0
    estimator: TokenEstimator = field(default_factory=TokenEstimator)
    body: BodyFor | None = None
    limits: LimitFields = LimitFields.model_construct()
    answered: bool = False
    out: str | None = None
    bit: int = 1
    refused: set[int] = field(default_factory=set)

    def body_of(self, request: Request) -> bytes:
        """Return what is sent for a request."""
        return request.body if self.body is None else self.body.of(request.body)

    @property
    def up(self) -> bool:
        """Return true if requests may go to it: it is in use, and does not seem to be down."""
        return self.out is None and not self.limiter.down
