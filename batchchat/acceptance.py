"""What an answer comes to: taken, failed, or asked for again. A pure decision over (request, reply).

An `Acceptance` holds what a job asks of its answers: a schema, tools, and what becomes of an answer that was cut off.
It sends nothing and changes nothing; `go_on` then makes a request ask its next question. An answer that settles nothing
is kept by the journal as `journaled` writes it, and `resume` goes on from there after a crash: it decides again about
the answers that are there, so that none of them is asked for twice.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from batchchat.cascade import Cascade
from batchchat.dataclass import dataclass
from batchchat.reasoning import is_blank
from batchchat.records import Answerer, Completion, ErrorKind, Failure, Reply, Request, Steps, Usage, Verdict

if TYPE_CHECKING:
    from batchchat.money import Tariff
    from batchchat.structured import Confidence, ConfidenceRule, ResponseSchema, Tools

_BYTES_A_TOKEN = 4
"""What one token of English text has, as OpenAI counts it: it guesses what a correction adds to a prompt."""
_LENGTHS = ("max_completion_tokens", "max_tokens")
_TOOL_SETS = 256
"""Sets of tools that are kept compiled if each row brings its own. Chosen: rows repeat a few sets."""


@dataclass(frozen=True, slots=True)
class Accept:
    """The answer is taken.

    `parsed` is its value for the typed column, `tolerated` says that other text stood by. `confidence` is there if the
    job measures it.
    """

    parsed: Any = None
    tolerated: bool = False
    confidence: Confidence | None = None


@dataclass(frozen=True, slots=True)
class Fail:
    """The answer is none, and no further one is asked for."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class AskAgain:
    """What to send next. `corrects` tells a correction from a longer second try; `reasons` are of the last answer."""

    body: bytes
    prompt_tokens: int
    max_tokens: int | None
    corrects: bool
    reasons: str
    kind: ErrorKind


@dataclass(frozen=True, slots=True)
class Escalate:
    """The answer is not taken, and the next step of the cascade is asked. `failure` is None if it is only unsure."""

    reason: str
    confidence: float | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Resumed:
    """The request asks its next question already: nothing is to be decided about its last answer."""


Decision = Accept | Fail | AskAgain | Escalate | Resumed


@dataclass(frozen=True, slots=True)
class TextCheck:
    """What a text must fit, and what is then made of it.

    `repeats_schema` says whether a correction must say the schema again: where the prompt does not hold it.
    `confidence` measures how sure a text that fits is.
    """

    schema: ResponseSchema
    repeats_schema: bool = True
    confidence: ConfidenceRule | None = None


class Acceptance:
    """A job's demands on its answers.

    `text` judges texts. `tools` judges calls; with `tools_vary` each request's own tools do. `corrections` is how often
    an answer that does not fit is asked for again. `truncated` is what to do with an answer that was cut off: `fail`,
    `keep` (it is judged like any other), or the bound of one more try, in tokens. `cascade` holds the steps that may be
    asked one after the other.
    """

    def __init__(
        self,
        *,
        text: TextCheck | None = None,
        tools: Tools | None = None,
        tools_vary: bool = False,
        corrections: int = 2,
        truncated: Literal["fail", "keep"] | int = "fail",
        cascade: Cascade | None = None,
    ) -> None:
        self._schema = text.schema if text is not None else None
        self._confidence = text.confidence if text is not None else None
        self._repeated = text.schema.text if text is not None and text.repeats_schema else None
        self._tools = tools
        self._tools_vary = tools_vary
        self._corrections = corrections
        self._truncated = truncated
        self.cascade = cascade

    @property
    def idle(self) -> bool:
        """Whether every answer is taken as it is, so that there is nothing to decide."""
        if self.cascade is not None:
            return False
        return self._schema is None and self._tools is None and not self._tools_vary and self._truncated == "fail"

    def concerns(self, request: Request, reply: Reply) -> bool:
        """Return whether a reply holds an answer to decide about; any other is a matter of retry.

        What the model wrote and the server itself could not use is corrected as long as corrections are left; after
        that it is tried again.
        """
        if reply.completion is None or reply.verdict is Verdict.OK or reply.failure is None:
            return reply.completion is not None and reply.verdict is Verdict.OK
        if reply.failure.kind is ErrorKind.INVALID_OUTPUT:
            return self._checks(request) and _made(request) < self._corrections
        return reply.failure.kind is ErrorKind.TRUNCATED

    def decide(self, request: Request, reply: Reply) -> Decision:
        """Decide about an answer that `concerns` the acceptance. Takes time linear in its length."""
        if self.cascade is None:
            return self._decide(request, reply)
        # A kept answer may be one that only a cascade goes on from, such as a refusal.
        failed = reply.failure is not None and not self.concerns(request, reply)
        decision = Fail(reply.failure) if failed and reply.failure is not None else self._decide(request, reply)
        if isinstance(decision, Fail):
            return self.escalation(request, decision.failure) or decision
        if isinstance(decision, Accept):
            reason = self.cascade.doubt(request.target, decision.confidence)
            if reason is not None:
                return Escalate(reason, decision.confidence.value if decision.confidence is not None else None)
        return decision

    def escalation(self, request: Request, failure: Failure) -> Escalate | None:
        """Return that the next step is asked in place of this failure; None if there is none, or not for this kind."""
        if self.cascade is None or not self.cascade.passes_on(request.target, failure.kind):
            return None
        return Escalate(f"{failure.kind.value}: {failure.message}", None, failure)

    def escalate(self, request: Request, reply: Reply, decision: Escalate) -> None:
        """Make a request ask the next step of the cascade."""
        assert self.cascade is not None  # noqa: S101 - what decided it
        self.cascade.advance(request, reply, decision.reason, decision.confidence)

    def _decide(self, request: Request, reply: Reply) -> Decision:
        completion = reply.completion
        assert completion is not None  # noqa: S101 - what `concerns` says
        if reply.failure is not None:
            decision = self._review_failure(request, completion, reply.failure)
            if decision is not None:
                return decision
        tools = self._tools_of(request)
        if tools is not None:
            decision = self._review_calls(request, completion, tools)
            if decision is not None:
                return decision
        if self._schema is None:
            return Accept()
        answer = self._schema.validator.read(completion.text)
        if answer.ok:
            measured = None
            if self._confidence is not None:
                measured = self._confidence.measure(completion.text, answer.parsed, completion.logprobs)
            return Accept(answer.parsed, answer.tolerated, measured)
        from batchchat.structured import answer_correction

        messages = answer_correction(completion.text, answer.errors, schema=self._repeated, made=_made(request))
        return self._corrected(request, messages, answer.errors, "the answer does not fit the schema")

    def _review_failure(self, request: Request, completion: Completion, failure: Failure) -> Decision | None:
        """Decide about an answer that was cut off or that the server could not use; None if it may be whole enough."""
        if failure.kind is ErrorKind.INVALID_OUTPUT:
            return self._unusable(request, completion, failure)
        if isinstance(self._truncated, int):
            return self._with_more_room(request, failure, self._truncated)
        # All of its tokens may have gone into reasoning: then there is nothing to keep.
        if self._truncated == "fail" or (not completion.tool_calls and is_blank(completion.text)):
            return Fail(failure)
        return None

    def _checks(self, request: Request) -> bool:
        """Return whether there is something that a correction can ask for."""
        return self._schema is not None or self._tools_of(request) is not None

    def _unusable(self, request: Request, completion: Completion, failure: Failure) -> Decision:
        """Ask again for what the server could not use of what the model wrote."""
        from batchchat.structured import answer_correction, missing_call_correction

        problem = (failure.message,)
        if self._schema is not None:
            messages = answer_correction(completion.text, problem, schema=self._repeated, made=_made(request))
        else:
            messages = missing_call_correction(completion.text, failure.message, made=_made(request))
        return self._corrected(request, messages, problem, "the server cannot use the answer")

    def _review_calls(self, request: Request, completion: Completion, tools: Tools) -> Decision | None:
        """Decide about an answer of tool calls; None if there are none and none are needed."""
        from batchchat.structured import calls_correction, missing_call_correction

        calls = completion.tool_calls
        missing = tools.missing_call(calls)
        if missing is not None:
            messages = missing_call_correction(completion.text, missing, made=_made(request))
            return self._corrected(request, messages, (missing,), "the answer is not the one that was asked for")
        if not calls:
            return None
        errors = tools.check_calls(calls)
        if not any(errors):
            return Accept()
        told = [f"{call.get('name')}: {error}" for call, wrong in zip(calls, errors, strict=True) for error in wrong]
        messages = calls_correction(completion.text, calls, errors, made=_made(request))
        return self._corrected(request, messages, told, "a tool call does not fit the tool's parameters")

    def _corrected(
        self, request: Request, messages: Sequence[dict[str, Any]], errors: Sequence[str], problem: str
    ) -> Decision:
        steps, made = request.steps, _made(request)
        reasons = "; ".join(errors)
        # The last answer is kept in the record: a person may see what the model makes of the schema.
        if made >= self._corrections:
            after = f" after {made} correction{'s' * (made != 1)}" if made else ""
            return Fail(Failure(ErrorKind.INVALID_OUTPUT, f"{problem}{after}: {reasons}", 200))
        # Always the first question: earlier wrong answers would cost tokens, and repeat the mistake.
        own = steps.body if steps is not None else request.body
        raised = self._truncated if steps is not None and steps.longer and isinstance(self._truncated, int) else None
        added = sum(len(json.dumps(message, ensure_ascii=False)) for message in messages) // _BYTES_A_TOKEN
        return AskAgain(
            revised(own, messages, raised),
            (steps.prompt_tokens if steps is not None else request.prompt_tokens) + added,
            request.max_tokens,
            corrects=True,
            reasons=reasons,
            kind=ErrorKind.INVALID_OUTPUT,
        )

    def _with_more_room(self, request: Request, failure: Failure, room: int) -> Decision:
        steps = request.steps
        # One more try only: an answer that fills twice its room mostly has no end.
        if steps is not None and steps.longer:
            return Fail(Failure(failure.kind, f"{failure.message} (it was asked for with {room} already)", 200))
        # The second try would have no more room than the first.
        if request.max_tokens is not None and request.max_tokens >= room:
            message = f"{failure.message} (its bound was {request.max_tokens}, and retry_with_max_tokens is {room})"
            return Fail(Failure(failure.kind, message, failure.http_status))
        return AskAgain(
            revised(request.body, (), room),
            request.prompt_tokens,
            room,
            corrects=False,
            reasons=failure.message,
            kind=ErrorKind.TRUNCATED,
        )

    def _tools_of(self, request: Request) -> Tools | None:
        # The tools of all rows are one object; only a template of tools makes them differ.
        if not self._tools_vary:
            return self._tools
        own = request.steps.body if request.steps is not None else request.body
        body = json.loads(own)
        return _loaded_tools(json.dumps(body.get("tools")), json.dumps(body.get("tool_choice")))


def _made(request: Request) -> int:
    """Return how many corrections a request has had."""
    return request.steps.corrections if request.steps is not None else 0


@lru_cache(maxsize=_TOOL_SETS)
def _loaded_tools(tools: str, choice: str) -> Tools | None:
    """Return the tools of one request; None if it has none, or such that nothing can be checked against them."""
    from batchchat.structured import SchemaError, load_tools

    try:
        return load_tools(json.loads(tools), json.loads(choice))
    except SchemaError:
        return None


def revised(body: bytes, messages: Sequence[dict[str, Any]], max_tokens: int | None) -> bytes:
    """Return a request's body with these messages at its end, and with this bound of the answer."""
    # The standard library keeps every digit of a schema's numbers.
    request = json.loads(body)
    request["messages"] = [*request["messages"], *messages]
    if max_tokens is not None:
        # Under the name that the job uses: newer models of OpenAI refuse `max_tokens`.
        for name in [name for name in _LENGTHS if request.get(name) is not None] or ["max_tokens"]:
            request[name] = max_tokens
    return json.dumps(request, ensure_ascii=False, separators=(",", ":")).encode()


def go_on(request: Request, reply: Reply, again: AskAgain) -> None:
    """Make a request ask its next question, after a reply that settled nothing."""
    steps = request.steps
    if steps is None:
        steps = request.steps = Steps(request.body, request.prompt_tokens, request.max_tokens)
    steps.answers += 1
    if again.corrects:
        steps.corrections += 1
        steps.reasons = again.reasons
    else:
        steps.longer = True
    if reply.completion is not None:
        # Log probabilities are the largest part of an answer, and nobody reads those of one that was not taken.
        steps.last, steps.problem = replace(reply.completion, logprobs=None), again.reasons
    request.body, request.prompt_tokens, request.max_tokens = again.body, again.prompt_tokens, again.max_tokens


def left_with(request: Request, reply: Reply, failure: Failure) -> tuple[Reply, Failure]:
    """Return what is recorded of a request for good when its last attempt brought this failure and no answer.

    Where an earlier answer was asked for again, that answer is kept, and the failure tells of both.
    """
    steps = request.steps
    if steps is None or steps.last is None or (reply.completion is not None and not is_blank(reply.text)):
        return reply, failure
    message = f"{failure.message}; the answer before it was not taken: {steps.problem}"
    # Of two answers that were not taken, the one that says something is kept.
    if is_blank(reply.text):
        reply = replace(reply, completion=steps.last, text=steps.last.text, model=steps.last.model)
    return reply, Failure(failure.kind, message, failure.http_status)


# --- through a crash


def journaled(request: Request, reply: Reply) -> dict[str, Any]:
    """Return an answer that settles nothing, as JSON, with what its request came to so far (its usage included)."""
    completion, failure = reply.completion, reply.failure
    return {
        "completion": {item.name: getattr(completion, item.name) for item in fields(Completion)},
        "failure": None if failure is None else [failure.kind.value, failure.message, failure.http_status],
        "latency_s": reply.latency_s,
        "ttft_s": reply.ttft_s,
        "output_tokens_per_s": reply.output_tokens_per_s,
        "request_id": reply.request_id,
        "model": reply.model,
        "by": None if reply.by is None else list(reply.by),
        "target": request.target,
        "attempts": request.attempts,
        "usage": list(request.usage),
        "cost": request.cost,
        "started_at": request.started_at,
        "active_s": request.active_s,
    }


def left_for(request: Request, reply: Reply, failure: Failure) -> dict[str, Any]:
    """Return an answer that was not taken, as JSON, after which `request` goes to the target that it names now."""
    told = [failure.kind.value, failure.message, failure.http_status]
    return {**journaled(request, reply), "failure": told, "fallback": request.target}


def resume(
    request: Request, answers: Sequence[Any], acceptance: Acceptance, tariff: Tariff | None = None
) -> tuple[Reply, Decision] | None:
    """Go on from a request's journaled answers, in their order: the last one, and what is decided about it now.

    The request is then as it was before that decision; its usage includes the answers', and the reply's own is None.
    `tariff` prices what an earlier version journaled, which has no cost.

    Returns None if the request is to be asked as it is: the answers cannot be read, and it is unchanged, or the last
    one sent it to another target.
    """
    try:
        moves = [number for number, answer in enumerate(answers) if answer.get("fallback") is not None]
        before = moves[-1] + 1 if moves else 0
        replies = [_restored(answer) for answer in answers]
        last = answers[-1]
        usage, started_at = Usage(*last["usage"]), int(last["started_at"])
        attempts, active_s = int(last["attempts"]), float(last["active_s"])
        target = int(last.get("target", 0))
        cost = last["cost"] if "cost" in last else tariff.cost(usage) if tariff is not None else None
        cost = None if cost is None else int(cost)
    # Written by another version, or damaged: to ask anew costs one answer.
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None
    request.usage, request.cost, request.started_at = usage, cost, started_at
    request.attempts, request.active_s = attempts, active_s
    if acceptance.cascade is not None:
        return _resume_cascade(request, answers, replies, acceptance)
    request.target, request.before = target, before
    if before:
        move, failure = replies[before - 1], replies[before - 1].failure
        request.left = (move, failure) if failure is not None else None
        # The last answer sent it on, and nobody has answered since.
        if before == len(answers):
            return None
    for reply in replies[before:-1]:
        decision = acceptance.decide(request, reply)
        if isinstance(decision, AskAgain):
            go_on(request, reply, decision)
    return replies[-1], acceptance.decide(request, replies[-1])


def _resume_cascade(
    request: Request, answers: Sequence[Any], replies: Sequence[Reply], acceptance: Acceptance
) -> tuple[Reply, Decision] | None:
    """Go on from kept answers step by step, by the thresholds of the job as it is now.

    Answers of a model that the cascade does not ask any more are paid, and tell nothing: they end the way.
    """
    assert acceptance.cascade is not None  # noqa: S101 - what `resume` says
    usage, cost = request.usage, request.cost
    found: tuple[Reply, Decision] | None = None
    for number, (answer, reply) in enumerate(zip(answers, replies, strict=True)):
        if found is not None:
            before, decision = found
            if isinstance(decision, AskAgain):
                go_on(request, before, decision)
            elif isinstance(decision, Escalate):
                acceptance.escalate(request, before, decision)
            elif not isinstance(decision, Resumed):
                break  # with a lower threshold, an earlier answer is good enough now
        moved = answer.get("fallback") is not None
        target = int(answer.get("target", 0))
        # An answer after which somebody else was asked names that one, and was given by another.
        model = reply.by.model if reply.by is not None and not moved else None
        known = acceptance.cascade.is_asked(target, model)
        if not known or acceptance.cascade.rules[target].step != len(request.earlier) + 1:
            # The request is at its next question already: nothing is left to decide.
            found = None if found is None else (found[0], Resumed())
            break
        request.target = target
        # What was billed until then: so each step of the cascade is told its own cost.
        request.usage, request.cost = Usage(*answer["usage"]), answer.get("cost")
        if moved and reply.failure is not None:
            begin_again(request)
            request.before, request.left = number + 1, (reply, reply.failure)
            found = reply, Resumed()
        else:
            found = reply, acceptance.decide(request, reply)
    request.usage, request.cost = usage, cost
    return found


def begin_again(request: Request) -> None:
    """Make a request ask its own question again, of somebody who has not been asked yet."""
    steps = request.steps
    if steps is None:
        return
    request.body, request.prompt_tokens, request.max_tokens = steps.body, steps.prompt_tokens, steps.max_tokens
    request.steps = None


def _restored(answer: dict[str, Any]) -> Reply:
    known = {item.name for item in fields(Completion)}
    kept = {name: value for name, value in answer["completion"].items() if name in known}
    for name in ("tool_calls", "logprobs"):
        if kept.get(name) is not None:
            kept[name] = tuple(kept[name])
    kept["usage"] = Usage(*kept["usage"])
    completion = Completion(**kept)
    failure = answer["failure"]
    return Reply(
        Verdict.OK if failure is None else Verdict.NO,
        completion=completion,
        failure=None if failure is None else Failure(ErrorKind(failure[0]), failure[1], failure[2]),
        text=completion.text,
        latency_s=float(answer["latency_s"]),
        request_id=answer["request_id"],
        model=answer["model"],
        by=Answerer(*answer["by"]) if answer.get("by") else None,
        ttft_s=answer.get("ttft_s"),
        output_tokens_per_s=answer.get("output_tokens_per_s"),
    )
