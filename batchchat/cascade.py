"""A cascade: models that are asked one after the other, each only for the rows that the one before leaves.

A step's answer is taken if it is valid and its confidence is at least the step's threshold; the last step's is taken if
it is valid. This module says which step comes next, and makes a request ask it. It sends nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from batchchat.dataclass import dataclass
from batchchat.records import EarlierStep, ErrorKind, FirstAsked, Reply, Request

if TYPE_CHECKING:
    from batchchat.structured import Confidence

PASSED_ON = frozenset(
    {
        ErrorKind.REFUSAL,
        ErrorKind.CONTENT_FILTER,
        ErrorKind.TRUNCATED,
        ErrorKind.INVALID_OUTPUT,
        ErrorKind.INVALID_REQUEST,
    }
)
"""Failures that the next step is asked for: they are about this model and this row. A timeout or an error of the server
tells nothing of the model, and would send every row to the dearest one in an outage: such a row stays at its step."""
_LENGTHS = ("max_completion_tokens", "max_tokens")


@dataclass(frozen=True, slots=True)
class StepRule:
    """What holds for the answers of one target of a route.

    `step` counts from 1. `threshold` is the least confidence that is taken, None at the last step. `following` is the
    number of the target that is asked next, None at the last step. `params` are set in the request in place of the
    job's; None takes one away. `identity` tells what is asked there from what the first step is asked; it is empty
    at the first step.
    """

    step: int
    provider: str
    model: str
    threshold: float | None = None
    following: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    identity: bytes = b""


class Cascade:
    """The steps of a job's cascade. `rules` has one entry for each target of the route, in its order."""

    def __init__(self, rules: Sequence[StepRule]) -> None:
        self.rules = tuple(rules)

    def doubt(self, target: int, confidence: Confidence | None) -> str | None:
        """Return why the next step is asked although an answer is valid; None if the answer is taken."""
        least = self.rules[target].threshold
        if least is None:
            return None
        if confidence is None or confidence.value is None:
            reason = confidence.reason if confidence is not None else None
            return f"its confidence is not known: {reason or 'it was not measured'}"
        # Enough digits that a value just below the threshold does not look equal to it.
        return None if confidence.value >= least else f"its confidence {confidence.value:.4g} is below {least:g}"

    def passes_on(self, target: int, kind: ErrorKind) -> bool:
        """Return true if the next step is asked in place of a failure of this kind."""
        return self.rules[target].following is not None and kind in PASSED_ON

    def is_asked(self, target: int, model: str | None) -> bool:
        """Return true if a target is there and this is its model: a kept answer may be of an earlier cascade."""
        return 0 <= target < len(self.rules) and model in (None, self.rules[target].model)

    def answer_id(self, request: Request) -> bytes:
        """Return the identity of the answer of the step that a request is at: equal requests may share it."""
        own = self.rules[request.target].identity
        if not own:
            return request.answer_id
        return blake2b(request.answer_id + own, digest_size=len(request.answer_id) or 16).digest()

    def advance(self, request: Request, reply: Reply, reason: str, confidence: float | None) -> None:
        """Make a request ask its next step, after an answer that is not taken.

        What was billed for that answer is in the request already.
        """
        rule = self.rules[request.target]
        assert rule.following is not None  # noqa: S101 - who decides asks `doubt` or `passes_on` first
        before = request.first
        if before is None:
            steps = request.steps
            before = request.first = (
                FirstAsked(request.body, request.prompt_tokens, request.max_tokens)
                if steps is None
                else FirstAsked(steps.body, steps.prompt_tokens, steps.max_tokens)
            )
        # What is billed until now, less what the steps before have taken, is this step's own.
        cost = None if request.cost is None else request.cost - sum(one.cost or 0 for one in request.earlier)
        request.earlier = (
            *request.earlier,
            EarlierStep(rule.step, rule.model, rule.provider, confidence, reason, reply.text, cost),
        )
        following = self.rules[rule.following]
        body, bound = before.body, before.max_tokens
        if following.params:
            body, bound = _with_params(body, bound, following.params)
        # Kept answers are numbered on: a number that comes twice would take the place of another one.
        request.before += (request.steps.answers if request.steps is not None else 0) + (reply.completion is not None)
        # Corrections begin anew: the next model has not been told anything yet.
        request.steps = None
        request.body, request.prompt_tokens, request.max_tokens = body, before.prompt_tokens, bound
        request.target = rule.following
        request.counted = request.unsent = request.broke = 0
        request.left = None


def _with_params(body: bytes, bound: int | None, params: Mapping[str, Any]) -> tuple[bytes, int | None]:
    """Return a body with these params in place of its own, and the bound of its answer."""
    # The standard library keeps every digit of a schema's numbers.
    request = json.loads(body)
    for name, value in params.items():
        if value is None:
            request.pop(name, None)
        else:
            request[name] = value
    if any(name in params for name in _LENGTHS):
        bounds = [request[name] for name in _LENGTHS if isinstance(request.get(name), int)]
        bound = min(bounds, default=None)
    return json.dumps(request, ensure_ascii=False, separators=(",", ":")).encode(), bound
