"""The harvest of one chunk: what its batches answered becomes outcomes, judged as the answers of single requests are.

Lines are matched by `custom_id` alone. The first success of a request wins; failures are looked at when every file was
read, since another line may hold a success. What has no line at all never ran: it goes into another batch.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import field
from pathlib import Path
from typing import Any, Protocol

import anyio.lowlevel

from batchchat.acceptance import Accept, Acceptance, AskAgain, Fail, go_on, journaled, left_with
from batchchat.budget import Bulk
from batchchat.client.wire import read_reply
from batchchat.dataclass import dataclass
from batchchat.engines.batch.chunks import ChunkReader
from batchchat.engines.batch.service import BatchService, RemoteBatch, ResultLine
from batchchat.engines.causes import NUMBERED
from batchchat.engines.halting import fatal_error
from batchchat.engines.port import Answered, Billed, Settled, Sink
from batchchat.engines.refusals import is_by_status
from batchchat.errors import BatchchatError, NeedsHuman
from batchchat.limits import FIRST_COMPLETION
from batchchat.money import Tariff
from batchchat.records import ErrorKind, Failure, Reply, Request, Usage, Verdict

_AS_IT_IS = Accept()
_LINES_BETWEEN = 64
"""Lines that are judged before other tasks get their turn: some milliseconds of work. Chosen, not measured."""
_BYTES_BETWEEN = 8 * 2**20
"""Bytes of answers that are read before all of them are to be counted: answers come as fast as the disk reads them, and
what waits for its commit, and for the part that is being written, is held in memory. Measured with 100,000 answers of
2 kB on two cores: a peak of 269 MiB, against 342 with the sink's own bound alone, in the same time."""
_OUTCOME_BYTES = 1_500
"""What the objects of one outcome take beside its text: request, reply, record."""
_REFUSED_ROWS = 3
"""Rows that are refused alike (403, 404, 422), none answered, before the run stops: as for single requests."""
_ALIKE_ROWS = 10
"""The same for 400, which is mostly about the row."""
_REMEDY = (
    "Check model, params and the key's permissions against what the provider takes in batches, then run the same "
    "command again: these rows are open."
)


def reserved(prompt_tokens: int, max_tokens: int | None) -> tuple[int, int]:
    """Return the prompt and completion tokens that a budget reserves for a request in a batch."""
    return prompt_tokens, int(FIRST_COMPLETION) if max_tokens is None else max_tokens


@dataclass(slots=True)
class HarvestCounts:
    """What became of a chunk's requests.

    Each of them is `ok`, `failed`, goes `again` into another batch, or is `left` open. `unanswered` of them had no
    answer. `known` were counted before, `replaced` went to the archive since their row is asked something else by now.
    `twice` are answers beyond a request's first, `strange` lines of nobody.
    """

    ok: int = 0
    failed: int = 0
    again: int = 0
    left: int = 0
    unanswered: int = 0
    known: int = 0
    replaced: int = 0
    twice: int = 0
    strange: int = 0


class Owner(Protocol):
    """What a harvest asks and tells its engine."""

    def is_settled(self, custom_id: str) -> bool:
        """Return true if the request has a counted completion."""

    def steps_kept(self, custom_id: str) -> int:
        """Return how many answers of a request that goes on are counted already."""

    def again(self, request: Request, batches: int) -> bool:
        """Take a request that is to be asked again, and was in so many batches. False: it stays open for now."""

    def is_replaced(self, request: Request) -> bool:
        """Return true if the pass asks the row of a request something else."""

    def wants(self, custom_id: str) -> bool:
        """Return true if the pass that is under way asks for the request, as far as it was read."""

    def release(self, request: Request, batches: int) -> None:
        """Let the feed have a request that stays open: it was in so many batches."""

    def let_go(self, custom_id: str) -> None:
        """Note that a request failed for good before the pass asked for it: the job says whether it is asked again."""

    def halt_for(self, error: BatchchatError) -> None:
        """Create nothing more, for this reason."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How answers are judged.

    `acceptance` is None if each answer is taken as it is. A request fails for good after so many `attempts`, or after
    `rounds` batches that did not answer it; with `onward` it is never given up for the latter, and with `leave_open`
    it stays open at once. `tariff` is what tokens cost in a batch. `job_answered` says that the model has answered this
    job before.
    """

    acceptance: Acceptance | None
    attempts: int
    rounds: int = 3
    onward: bool = False
    leave_open: bool = False
    tariff: Tariff | None = None
    job_answered: bool = False


@dataclass(slots=True)
class _Bill:
    """Adds up what answers of a chunk cost that leave no completion, so that it is told once, at the end.

    A run that is killed before the chunk is noted as harvested reads it again. Completions are known by then, but
    failures are not, and would be counted twice.
    """

    name: str
    answers: int = 0
    usage: Usage = Usage()
    cost: int = 0

    def add(self, reply: Reply) -> None:
        """Count an answer, if it was billed."""
        if reply.usage is not None:
            self.answers += 1
            self.usage = self.usage.plus(reply.usage)
            self.cost += reply.cost or 0

    def outcome(self) -> Billed:
        """Return the sum."""
        return Billed(f"batch {self.name}", self.answers, self.usage, self.cost)


@dataclass(slots=True)
class Harvest:
    """Reads the batches of one chunk, and settles its requests.

    `name` is the chunk's, which no other chunk has. `of_prompt` is there for a chunk of an earlier run: see `Settled`.
    `prompt_id` is that of this run. `hold` is the chunk's reservation, None without a budget. `asked_at` is when its
    batch was created, in microseconds since the epoch.
    """

    name: str
    reader: ChunkReader
    sink: Sink
    owner: Owner
    terms: Terms
    hold: Bulk | None
    of_prompt: str | None
    prompt_id: str
    asked_at: int
    wall_clock: Callable[[], float]
    offload: Callable[..., Awaitable[Any]]
    counts: HarvestCounts = field(default_factory=HarvestCounts)
    answered: int = 0
    corrections: int = 0
    _done: bytearray = field(init=False)
    _lines: dict[str, bytearray] = field(default_factory=dict)
    _failed: dict[str, Reply] = field(default_factory=dict)
    _reasons: dict[str, str] = field(default_factory=dict)
    _refused: list[tuple[Request, Reply]] = field(default_factory=list)
    _bill: _Bill = field(init=False)

    def __post_init__(self) -> None:
        # One byte for each request and batch: as sets of identities they would take 10 MB for a chunk of 50,000.
        self._done = bytearray(self.reader.rows)
        self._bill = _Bill(self.name)

    def extra_batch(self, batch_id: str) -> bool:
        """Return true if another batch of the same requests was read before: then lines may be missing in this one."""
        return any(other != batch_id for other in self._lines)

    @property
    def missing(self) -> int:
        """Return how many requests no line has told of yet."""
        return self._done.count(0) - len(self._failed) - len(self._reasons)

    async def read(self, service: BatchService, batch: RemoteBatch, scratch: Path) -> None:
        """Take all lines of a batch. May be repeated: what was taken before counts once. Raises as `results` does."""
        met = bytearray(self.reader.rows)
        number = uncounted = 0
        async for line in service.results(batch, scratch):
            number += 1
            self._take(batch.id, line, met)
            if not number % _LINES_BETWEEN:
                await anyio.lowlevel.checkpoint()
            uncounted += len(line.body) + _OUTCOME_BYTES
            if uncounted > _BYTES_BETWEEN:
                uncounted = 0
                await self.sink.counted()  # a disk that failed is told of at the end
            elif self.sink.full:
                await self.sink.room()

    def _take(self, batch_id: str, line: ResultLine, met: bytearray) -> None:
        """Take one line. `met` marks the requests whose lines this reading of the files has met."""
        custom_id = line.custom_id
        place = None if custom_id is None else self.reader.place(custom_id)
        if custom_id is None or place is None:
            self.counts.strange += 1
            return
        before = self._lines.setdefault(batch_id, bytearray(self.reader.rows))
        if before[place] and not met[place]:
            met[place] = 1  # the file is read again
            return
        # The same request twice in one file: some providers repeat lines when they try again.
        repeated = bool(met[place])
        before[place] = met[place] = 1
        if line.status is None:
            if not repeated and not self._done[place] and custom_id not in self._failed:
                self._reasons[custom_id] = ": ".join(part for part in (line.code, line.message) if part)
            return
        reply = read_reply(line.status, {}, line.body, now=self.wall_clock())
        # The provider's name of the single request is worth more to support than that of the batch.
        if line.request_id is not None:
            reply.request_id = line.request_id[:200]
        if self.terms.tariff is not None and reply.usage is not None:
            reply.cost = self.terms.tariff.cost(reply.usage)
        if self._done[place] or (repeated and reply.completion is None):
            self._count_surplus(custom_id, reply)
        # Counted by a run that was killed before it could note that this chunk is harvested.
        elif self.owner.is_settled(custom_id):
            self._done[place] = 1
            self._reasons.pop(custom_id, None)
            self._forget(custom_id)
            self.counts.known += 1
        elif self._succeeds(custom_id, reply):
            self._done[place] = 1
            self._reasons.pop(custom_id, None)
            self._forget(custom_id)
        else:
            self._reasons.pop(custom_id, None)
            self._forget(custom_id)
            self._failed[custom_id] = reply

    def _forget(self, custom_id: str) -> None:
        """Count what a failure was billed that another line of its request takes the place of."""
        earlier = self._failed.pop(custom_id, None)
        if earlier is not None:
            self._count_surplus(custom_id, earlier)

    def _count_surplus(self, custom_id: str, reply: Reply) -> None:
        """Count an answer that is one too many: it is billed, too."""
        self.counts.twice += 1
        found = self.reader.get(custom_id, with_body=False)
        if found is None or reply.usage is None:
            return
        self._bill.add(reply)
        if self.hold is not None:
            tokens = reserved(found[0].prompt_tokens, found[0].max_tokens)
            self.hold.take_over(*tokens, requests=1)
            self.hold.settle(*tokens, reply)

    def _succeeds(self, custom_id: str, reply: Reply) -> bool:
        """Settle a request by its answer, or let it ask again. False if the reply is a failure."""
        acceptance = self.terms.acceptance
        found = self.reader.get(custom_id, with_body=acceptance is not None)
        assert found is not None  # noqa: S101 - its identity is in the chunk
        request, batches = found
        concerned = acceptance is not None and acceptance.concerns(request, reply)
        if not concerned and reply.verdict is not Verdict.OK:
            return False
        self._begin(request, reply)
        self.answered += 1
        if not concerned or acceptance is None:
            self._settle(request, reply, None)
            return True
        decision = acceptance.decide(request, reply)
        if isinstance(decision, Accept):
            self._settle(request, reply, None, decision)
        elif isinstance(decision, Fail):
            self._settle(request, reply, decision.failure)
        elif isinstance(decision, AskAgain):
            self._go_on(request, reply, decision, batches)
        return True

    def _go_on(self, request: Request, reply: Reply, decision: AskAgain, batches: int) -> None:
        usage = reply.usage or Usage()
        request.add_billed(reply)
        step = request.steps.answers if request.steps is not None else 0
        if self.owner.steps_kept(request.custom_id) <= step:  # else a harvest before this one has counted it
            self.sink.put(Answered(request, usage, reply.cost or 0, step, journaled(request, reply)))
        go_on(request, reply, decision)
        self.corrections += decision.corrects
        # A question of its own: its batches are counted anew.
        self._ask_again(request, 0)

    def _begin(self, request: Request, reply: Reply) -> None:
        """Count an attempt, and settle what was reserved for it."""
        if not request.started_at:
            request.started_at = self.asked_at
        request.attempts += 1
        if self.hold is not None:
            self.hold.settle(*reserved(request.prompt_tokens, request.max_tokens), reply)

    def _settle(self, request: Request, reply: Reply, failure: Failure | None, accepted: Accept = _AS_IT_IS) -> None:
        late = self.of_prompt is not None and self.owner.is_replaced(request)
        if late:
            self.counts.replaced += 1
        elif failure is None:
            self.counts.ok += 1
        else:
            self.counts.failed += 1
        if failure is not None:
            self._bill.add(reply)
        value = (accepted.parsed, accepted.tolerated, accepted.confidence)
        outcome = Settled(request, reply, failure, *value, of_prompt=self.of_prompt, late=late)
        outcome.billed_apart = failure is not None
        self.sink.put(outcome)

    def _ask_again(self, request: Request, batches: int) -> None:
        if self.owner.again(request, batches):
            self.counts.again += 1
        else:
            self.counts.left += 1

    # --- the end

    async def finish(self, why_unanswered: str) -> HarvestCounts:
        """Settle what failed, and ask again what was not answered. `why_unanswered` tells of what has no line."""
        for number, (custom_id, reply) in enumerate(self._failed.items(), 1):
            self._settle_failed(custom_id, reply)
            if not number % _LINES_BETWEEN:
                await self._rest()
        self._settle_refused()
        for number, custom_id in enumerate(self.reader.custom_ids(), 1):
            # No line told of it, or one without an answer.
            if not self._done[number - 1] and custom_id not in self._failed:
                self._settle_unanswered(custom_id, self._reasons.get(custom_id) or why_unanswered)
            if not number % _LINES_BETWEEN:
                await self._rest()
        if self._bill.answers:
            self.sink.put(self._bill.outcome())
        if self.hold is not None:
            self.hold.release()
        return self.counts

    async def _rest(self) -> None:
        await anyio.lowlevel.checkpoint()
        if self.sink.full:
            await self.sink.room()

    def _settle_failed(self, custom_id: str, reply: Reply) -> None:
        found = self.reader.get(custom_id)
        assert found is not None and reply.failure is not None  # noqa: S101, PT018 - what a failure of a line is
        request, batches = found
        self._begin(request, reply)
        if reply.verdict is Verdict.FATAL:
            self._put_billed(request, reply)
            # The key or the credit, said in a line of the file: the next batch would meet the same.
            self.owner.halt_for(fatal_error(reply.failure))
            self.counts.left += 1
        elif reply.verdict is Verdict.REFUSED or (is_by_status(reply) and not self.terms.job_answered):
            self._refused.append((request, reply))
        elif reply.verdict is Verdict.NO:
            self._fail(request, reply, None, batches + 1)
        else:
            # A limit inside of a batch is the provider's own affair: it costs an attempt, so that it ends some day.
            request.counted += 1
            if request.counted >= self.terms.attempts:
                self._fail(request, reply, f"after {request.counted} attempts", batches + 1)
            else:
                self._put_billed(request, reply)
                self._ask_again(request, batches + 1)

    def _settle_refused(self) -> None:
        """Fail the rows that were refused; if the whole chunk was, for one reason, stop and leave them open."""
        held, self._refused = self._refused, []
        words = {NUMBERED.sub("0", reply.failure.message) for _, reply in held if reply.failure is not None}
        rows = len({request.row_index for request, _ in held})
        about_rows = all(reply.verdict is Verdict.NO for _, reply in held)
        enough = rows >= (_ALIKE_ROWS if about_rows else _REFUSED_ROWS)
        if held and enough and len(words) == 1 and not self.answered and not self.terms.job_answered:
            failure = held[-1][1].failure
            assert failure is not None  # noqa: S101 - what a refusal has
            message = f"{rows} rows of a batch were refused the same way, and none was answered: {failure.message}"
            self.owner.halt_for(NeedsHuman(message, remedy=_REMEDY))
            self.counts.left += len(held)
            return
        for request, reply in held:
            self._fail(request, reply, None, 1)

    def _fail(self, request: Request, reply: Reply, reason: str | None, batches: int) -> None:
        assert reply.failure is not None  # noqa: S101 - what a failure has
        message = f"{reply.failure.message} ({reason})" if reason else reply.failure.message
        failure = Failure(reply.failure.kind, message, reply.failure.http_status)
        if self.of_prompt is not None and not self.owner.wants(request.custom_id):
            if self.of_prompt != self.prompt_id or self.owner.is_replaced(request):
                # A failure is no reason to put an earlier prompt's record into the dataset.
                self._put_billed(request, reply)
                self.owner.release(request, batches)
                self.counts.left += 1
                return
            self.owner.let_go(request.custom_id)  # the pass comes to its row later, and finds it failed
        reply, failure = left_with(request, reply, failure)
        self._settle(request, reply, failure)

    def _put_billed(self, request: Request, reply: Reply) -> None:
        if reply.usage is not None:
            request.add_billed(reply)
            self._bill.add(reply)

    def _settle_unanswered(self, custom_id: str, why: str) -> None:
        """Ask again for what never ran; give it up if it was in `rounds` batches."""
        if self.owner.is_settled(custom_id):
            self.counts.known += 1
            return
        found = self.reader.get(custom_id)
        assert found is not None  # noqa: S101 - its identity is in the chunk
        request, batches = found
        self.counts.unanswered += 1
        # This run cancels batches, so nothing is asked again.
        if self.terms.leave_open:
            self.counts.left += 1
            return
        if batches + 1 < self.terms.rounds or self.terms.onward:
            self._ask_again(request, batches + 1)
            return
        batches += 1
        which = f"{batches} batches" if batches > 1 else "its batch"
        failure = Failure(ErrorKind.TIMEOUT, f"{which} did not answer it ({why})")
        self._fail(request, Reply(Verdict.TRANSIENT, failure=failure), None, batches)
