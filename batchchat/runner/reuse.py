"""Requests that need not be sent: their answer is in the cache, or an equal one of this run has it or will have it.

`Reuse` stands between the feed and the engine (`sift` keeps back what need not be sent) and between the engine and the
writer (as the engine's sink it sees every answer). A job without `cache` and `dedupe` has none.

An answer is put into the cache in the same step that commits its record to the journal, and before it: whatever a
record is counted for, equal requests find too, also after a kill or a loss of power. Until then it is looked for in
memory.

A request whose equal is under way is parked until that one is settled, and takes over what becomes of it, a failure
too: equal requests of a run are sent once. If the run stops before, both stay open. The parked are bounded in number
and bytes; beyond that the input waits.

An answer that is taken over is judged again by the job's own demands; one that they do not accept is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, replace

import anyio

from batchchat.acceptance import Accept, Acceptance, Escalate, journaled
from batchchat.cache import AnswerCache
from batchchat.dataclass import dataclass
from batchchat.engines.port import Answered, Outcome, Settled
from batchchat.errors import StorageError, UsageError
from batchchat.events import Event, Listener
from batchchat.format import plural
from batchchat.records import Completion, EarlierStep, Failure, Reply, Request, Usage, Verdict, answer_bytes
from batchchat.runner.writer import Offload, Writer

_PARKED_MAX = 10_000
_PARKED_BYTES = 64 * 2**20
"""Requests, and bytes of them, that may wait in memory for an equal one. With more the input waits. Chosen, not
measured."""
_FAILURES_MAX = 10_000
"""Failures that are kept for equal requests. Beyond them an equal request is sent by itself, which is right too."""
_LOCAL_BYTES = 16 * 2**20
"""Bytes of answers that are kept in memory in front of the cache on disk. Chosen, not measured."""


@dataclass(slots=True)
class _Line:
    """Requests that wait for an equal one which is under way, and how many bytes they keep in memory."""

    requests: list[Request] = field(default_factory=list)
    nbytes: int = 0


class Reuse:
    """Answers of a cache, and of the run itself, for requests that ask the same. See the module.

    `cache` is where answers go and come from; it is the run's `own`, or shared with other jobs. `acceptance` judges an
    answer that is taken over. `offload` runs blocking code. It is the `writer`'s shelf: see `Shelf`.
    """

    def __init__(
        self,
        cache: AnswerCache,
        writer: Writer,
        acceptance: Acceptance,
        *,
        own: bool,
        offload: Offload,
        listener: Listener,
    ) -> None:
        self._warnings: list[str] = []
        self._cache = cache
        self._writer = writer
        self._acceptance = acceptance
        self._own = own
        self._offload = offload
        self._listener = listener
        self._fresh: dict[bytes, Completion] = {}
        self._flushing: dict[bytes, Completion] = {}
        self._flushed: dict[bytes, Completion] = {}
        self._looking = False
        self._error: StorageError | None = None
        self._lines: dict[bytes, _Line] = {}
        self._parked = 0
        self._parked_bytes = 0
        self._failures: dict[bytes, tuple[Failure, tuple[EarlierStep, ...]]] = {}
        self._passed: dict[str, list[Answered]] = {}
        self._local: dict[bytes, Completion] = {}
        self._local_bytes = 0
        self._moved = anyio.Event()
        writer.shelf = self

    # --- before the engine

    async def sift(self, requests: list[Request]) -> list[Request]:
        """Settle or park the requests that need not be sent; return the others. Raises StorageError."""
        if not requests:
            return requests
        # Before, not behind: what they wait for may be among these.
        while self.crowded:
            self._moved = anyio.Event()
            await self._moved.wait()
        self._looking = True
        try:
            found = await self._offload(self._look_up, requests, {**self._flushing, **self._fresh})
        finally:
            self._looking = False
        left = []
        for request in requests:
            outcome = found.get(request.custom_id) or self._remembered(request)
            if outcome is not None:
                self._writer.add_shared(request, outcome)
            elif not self._park(request):
                # What a cascade goes on from is kept: after a kill, later answers are read from there.
                for answered in self._passed.get(request.custom_id, ()):
                    self._writer.put(answered)
                left.append(request)
        self._flushed, self._passed = {}, {}
        return left

    @property
    def crowded(self) -> bool:
        """Whether so many wait for an equal request that the input waits for them."""
        return self._parked > _PARKED_MAX or self._parked_bytes > _PARKED_BYTES

    def _look_up(self, requests: Sequence[Request], fresh: dict[bytes, Completion]) -> dict[str, Settled]:
        """The outcomes of requests whose answer is known, by `custom_id`. Blocking."""
        found: dict[str, Settled] = {}
        left = list(requests)
        # Once, or with a cascade once for each of its steps: who is passed on is looked for at the next one.
        while left:
            names = {request.custom_id: self._name(request) for request in left}
            unknown = [name for name in names.values() if name not in fresh]
            answers = self._cache.fetch(unknown) if unknown else {}
            passed_on = []
            for request in left:
                name = names[request.custom_id]
                answer = fresh.get(name) or answers.get(name)
                outcome = self._judge(request, answer) if answer is not None else None
                if isinstance(outcome, Settled):
                    found[request.custom_id] = outcome
                elif outcome is not None:
                    passed_on.append(request)
            left = passed_on
        return found

    def _name(self, request: Request) -> bytes:
        """Return what the answer is kept under that a request asks for now."""
        cascade = self._acceptance.cascade
        return request.answer_id if cascade is None else cascade.answer_id(request)

    def _remembered(self, request: Request) -> Settled | None:
        """The outcome of a request whose equal was settled while the cache was looked up, or failed before."""
        places = (self._fresh, self._flushing, self._flushed, self._local)
        outcome: Settled | Escalate | None = None
        while True:
            key = self._name(request)
            answer = next((place[key] for place in places if key in place), None)
            outcome = None if answer is None else self._judge(request, answer)
            if not isinstance(outcome, Escalate):
                break
        if outcome is not None:
            return outcome
        known = self._failures.get(request.answer_id)
        if known is None:
            return None
        failure, request.earlier = known
        return Settled(request, Reply(Verdict.NO, failure=failure), failure)

    def _judge(self, request: Request, answer: Completion) -> Settled | Escalate | None:
        """What an answer is worth to this job; None where it is not taken.

        Where a cascade asks its next step, the request is there already.
        """
        reply = _reply(answer)
        # A job that demands nothing takes every answer, and needs no decision for it.
        if self._acceptance.idle:
            return Settled(request, reply, None)
        decision = self._acceptance.decide(request, reply)
        if isinstance(decision, Accept):
            return Settled(request, reply, None, decision.parsed, decision.tolerated, decision.confidence)
        if isinstance(decision, Escalate) and decision.failure is None:
            step = request.before + (request.steps.answers if request.steps is not None else 0)
            kept = Answered(request, Usage(), 0, step, journaled(request, reply))
            self._passed.setdefault(request.custom_id, []).append(kept)
            self._acceptance.escalate(request, reply, decision)
            return decision
        return None

    def _park(self, request: Request) -> bool:
        """Put a request behind the equal one that is under way; False where none is: then it is that one."""
        line = self._lines.get(request.answer_id)
        if line is None:
            self._lines[request.answer_id] = _Line()
            return False
        # What it keeps in memory is its body, and its row's whole batch where no other one of the line does that.
        alone = not line.requests or line.requests[-1].batch is not request.batch
        nbytes = len(request.body) + (request.batch.nbytes if alone else 0)
        line.requests.append(request)
        line.nbytes += nbytes
        self._parked += 1
        self._parked_bytes += nbytes
        return True

    # --- behind the engine: a sink

    def put(self, outcome: Outcome) -> None:
        """Take an engine's outcome over, for its own row and for all that wait for it; see `Sink`."""
        self._writer.put(outcome)
        if isinstance(outcome, Answered) and outcome.unsure is not None and outcome.unsure.completion is not None:
            # It is the answer of its step, though this job does not take it.
            if self._own or not (outcome.request.steps is not None and outcome.request.steps.longer):
                answer = _answer(outcome.unsure, outcome.unsure.completion)
                self._fresh[self._name(outcome.request)] = answer
            return
        if not isinstance(outcome, Settled):
            return
        key, reply = self._name(outcome.request), outcome.reply
        if self._is_answer(outcome) and reply.completion is not None:
            self._fresh[key] = _answer(reply, reply.completion)
        elif outcome.failure is not None and len(self._failures) < _FAILURES_MAX:
            self._failures[outcome.request.answer_id] = outcome.failure, _for_nothing(outcome.request)
        elif reply.completion is not None:
            self._keep_local(key, _answer(reply, reply.completion))
        line = self._lines.pop(outcome.request.answer_id, None)
        if line is not None and line.requests:
            self._share(outcome, line)

    def _keep_local(self, key: bytes, answer: Completion) -> None:
        """Remember an answer that this job took and other jobs may not: for its equals in this run, as far as they fit.

        Beyond the bound, equal rows that come later are asked for themselves.
        """
        nbytes = answer_bytes(answer.text, answer.reasoning, answer.tool_calls, answer.logprobs)
        if key not in self._local and self._local_bytes + nbytes <= _LOCAL_BYTES:
            self._local[key] = answer
            self._local_bytes += nbytes

    def _is_answer(self, outcome: Settled) -> bool:
        """Whether an outcome is a whole answer to its request: not failed, cut off, or given a longer bound.

        Among equal rows of the run's own, whatever the job took is.
        """
        if self._own:
            return outcome.failure is None
        steps = outcome.request.steps
        return outcome.failure is None and outcome.reply.failure is None and not (steps is not None and steps.longer)

    def _share(self, outcome: Settled, line: _Line) -> None:
        """Give the outcome to the requests that waited for it."""
        reply = outcome.reply
        own = Reply(Verdict.NO, failure=outcome.failure, text=reply.text)
        if outcome.failure is None and reply.completion is not None:
            own = _reply(_answer(reply, reply.completion))
        for request in line.requests:
            request.earlier = _for_nothing(outcome.request)
            shared = Settled(
                request, own, outcome.failure, outcome.parsed, outcome.tolerated, confidence=outcome.confidence
            )
            self._writer.add_shared(request, shared)
        self._parked -= len(line.requests)
        self._parked_bytes -= line.nbytes
        self._moved.set()

    @property
    def full(self) -> bool:
        """Whether more waits to be written than should."""
        return self._writer.full

    async def room(self) -> None:
        """Wait until there is room again."""
        await self._writer.room()

    async def counted(self) -> bool:
        """Wait until all that was put so far is durable. Return false if the disk failed."""
        return await self._writer.counted()

    # --- beside the commits: the writer's shelf

    def take(self) -> dict[bytes, Completion]:
        """Return the answers of the records that the writer commits next."""
        self._flushing, self._fresh = self._fresh, {}
        return self._flushing

    def keep(self, answers: dict[bytes, Completion]) -> None:
        """Put answers into the cache, durably. Blocking code. A cache that refuses is left alone from then on."""
        if answers and self._error is None:
            try:
                self._cache.add(list(answers.items()))
            except (StorageError, UsageError) as error:
                self._error = error if isinstance(error, StorageError) else StorageError(error.message)

    def kept(self) -> None:
        """Let go of the answers that were kept; on the event loop."""
        if self._looking:  # who looks the cache up now may have looked before these were in it
            self._flushed.update(self._flushing)
        self._flushing = {}
        if self._error is not None:
            self._give_up(self._error)

    def _give_up(self, error: StorageError) -> None:
        """Tell once that the cache takes no more. The run goes on: its own output is not concerned."""
        if not self._warnings:
            message = f"{error.message}: answers of this run are missing in the cache"
            self._warnings.append(message)
            self._listener(Event("cache", message, "warning"))

    def remarks(self) -> list[str]:
        """Return what was wrong with the cache, for the summary."""
        damaged = self._cache.damaged
        what = f"{plural(damaged, 'answer')} in the cache {self._cache.path}"
        told = [f"{what} {'is damaged, and was' if damaged == 1 else 'are damaged, and were'} asked for again"]
        return self._warnings + (told if damaged else [])


def _for_nothing(request: Request) -> tuple[EarlierStep, ...]:
    """Return the steps of a cascade that a request has behind it, as an equal one takes them over, at no cost."""
    return tuple(step._replace(cost=0) for step in request.earlier)


def _answer(reply: Reply, completion: Completion) -> Completion:
    """An answer as it is kept: under the identity that its own record has."""
    return completion if reply.request_id is None else replace(completion, request_id=reply.request_id)


def _reply(answer: Completion) -> Reply:
    return Reply(
        Verdict.OK,
        completion=answer,
        usage=answer.usage,
        text=answer.text,
        request_id=answer.request_id,
        model=answer.model,
    )
