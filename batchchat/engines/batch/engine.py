"""The batch engine: requests go to a provider's Batch API, many in one file.

Three things are at work at once. The *feed* is written into chunks on disk. *Creators* upload them and create their
batches while the provider's queue has room. The *watch* looks at all batches with one call at a time, and harvests
those that have ended; what must be asked again goes into further chunks.

A run may be left at any time: batches go on at the provider, and the next run knows them from the ledger. It takes what
is ready first, and sends only requests that are in no batch.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from batchchat.budget import Account
from batchchat.engines.batch.building import Asker, Bounds, Builder, Planned
from batchchat.engines.batch.carried import Carried
from batchchat.engines.batch.creation import Creation, Patience, RunEnds
from batchchat.engines.batch.gathering import Gathering
from batchchat.engines.batch.harvest import Terms
from batchchat.engines.batch.ledger import ChunkState, Ledger, Step
from batchchat.engines.batch.parting import Parting, RefusedChunk
from batchchat.engines.batch.service import (
    ENDED,
    BadLine,
    BatchService,
    BatchStatus,
    ChunkTooLarge,
    Gone,
    QueueFull,
    RemoteBatch,
)
from batchchat.engines.batch.services.problems import queued_tokens_in
from batchchat.engines.port import Engine, EngineProgress, Feed, Outcome, Settled, Sink, halted
from batchchat.errors import BatchchatError, NeedsHuman, ProviderUnavailable, StoppedEarly, StorageError
from batchchat.events import Event, Listener, Pace
from batchchat.records import ErrorKind, Failure, Reply, Request, Verdict

_CREATORS = 2
"""Chunks that are uploaded at the same time: one alone leaves the line idle while its batch is created."""
_AHEAD = 2
"""Chunks that are written before the first of them is taken: more would only fill the disk."""
POLL_FIRST_S, _POLL_LONGEST_S = 30.0, 60.0
"""Seconds between two looks at young batches, and at those that are an hour old: what providers advise."""
_POLL_CANCELLED_S = 10.0
"""The same while batches are being cancelled: a person waits for it, and it takes up to ten minutes."""
_AGE_S = 3600.0
_OUT_OF_SIGHT_S = 86_400.0
"""How long batches may be out of sight. They go on meanwhile, and their results are kept for weeks."""
_TRIES_ALONE = 3
"""Creations that the provider's queue refuses, with no other batch of ours under way, before a chunk is parted."""
_UNKNOWN_LOOKS = 10
"""Looks in a row at which the provider does not know a batch, before it is given up."""


_NO_ROOM = "the budget is reserved for batches that are under way: it has no room for requests that are asked again"
_NEW_BUDGET = "The same command goes on where it stopped, with a new budget."


@dataclass(frozen=True, slots=True)
class BatchSetting:
    """How a batch engine works.

    `folder` holds chunks and ledger. `poll` is the time between two looks in seconds, None for the usual one, which
    begins with `poll_first` and grows with the age of the batches. `lines`, `nbytes` and `queued_tokens` bound chunks
    below what the provider allows. `outage` is how long the provider may be out of reach for uploads. With `keep_files`
    the provider's copies stay. With `wait` the run waits for its batches. With `cancel` it cancels all batches, and
    takes what they answered.
    """

    folder: Path
    asker: Asker
    terms: Terms
    poll: float | None = None
    poll_first: float = POLL_FIRST_S
    lines: int | None = None
    nbytes: int | None = None
    queued_tokens: int | None = None
    outage: float = 600.0
    keep_files: bool = True
    wait: bool = True
    cancel: bool = False


class BatchEngine:
    """Executes requests through a batch service.

    `known` is what the output tells of requests. `account` holds the run's budget. `onward` makes the engine that takes
    what batches did not answer, None if they are to be given up. `offload` runs blocking code off the event loop.
    """

    def __init__(
        self,
        service: BatchService,
        setting: BatchSetting,
        known: Carried,
        *,
        listener: Listener,
        account: Account | None = None,
        onward: Callable[[], Engine] | None = None,
        rng: random.Random | None = None,
        offload: Callable[..., Awaitable[Any]] = anyio.to_thread.run_sync,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.halt: BatchchatError | None = None
        self._service = service
        self._setting = setting
        self._known = known
        self._listener = listener
        self._account = account
        self._make_onward = onward
        self._onward: Engine | None = None
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not cryptography
        self._offload = offload
        self._wall_clock = wall_clock
        self._ledger: Ledger
        self._bounds: Bounds
        self._builder: Builder
        self._again: Builder
        self._creation: Creation
        self._gathering: Gathering
        self._patience: Patience
        self._parting: Parting
        self._ready: deque[Planned] = deque()
        self._live: dict[int, Planned] = {}
        self._unknown: dict[str, int] = {}
        self._opened = False
        self._checked = False
        self._checking = anyio.Lock()
        self._feed_done = False
        self._creating = 0
        self._created_at = 0.0
        self._next_look: float | None = None
        self._queue_full_until: float | None = None
        self._out_of_budget: StoppedEarly | None = None
        self._draining = False
        self._paused = False
        self._changed = anyio.Event()
        self._scope: anyio.CancelScope | None = None
        self._sent = 0
        self._answered = False

    # --- what the run sees

    @property
    def answered(self) -> bool:
        """Return true once the model has answered in this run."""
        return self._answered or (self._onward is not None and self._onward.answered)

    def progress(self, oldest: int = 0) -> EngineProgress:
        """Return how many requests are in batches that have not ended, and what was done in this run."""
        if self._onward is not None:
            return self._with_batches(self._onward.progress(oldest))
        return self._with_batches(EngineProgress(0, 0, 0, 0, 0, 0, Pace(), ()))

    def _with_batches(self, single: EngineProgress) -> EngineProgress:
        waiting = sum(planned.state.lines for planned in self._ready)
        retries = self._known.asked_again
        corrections = self._known.corrections
        if self._opened:
            waiting += self._builder.waiting + self._again.waiting
        return replace(
            single,
            sending=single.sending + sum(planned.state.lines for planned in self._live.values()),
            waiting=single.waiting + waiting,
            attempts=single.attempts + self._sent,
            retries=single.retries + retries,
            corrections=single.corrections + corrections,
            pace=replace(single.pace, held_by=self._words() or single.pace.held_by),
        )

    def _words(self) -> str | None:
        """Say where the batches are, for a progress display."""
        if not self._live:
            return None
        counts: dict[str, int] = {}
        done = total = 0
        for planned in self._live.values():
            state = planned.state
            word = state.status.value.replace("_", " ") if state.batch is not None else "being created"
            counts[word] = counts.get(word, 0) + 1
            done += (state.completed or 0) + (state.failed or 0)
            total += state.lines
        told = ", ".join(f"{number} {word}" for word, number in counts.items())
        return f"batches: {told}; the provider has done {min(done, total):,} of {total:,}"

    def pause(self) -> None:
        """Create no batch until `resume`. Batches that are under way go on, and are harvested."""
        self._paused = True
        if self._onward is not None:
            self._onward.pause()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._paused = False
        if self._onward is not None:
            self._onward.resume()
        self._wake()

    def drain(self) -> None:
        """Create no more batches, and leave those that are under way to the next run."""
        self._draining = True
        if self._onward is not None:
            self._onward.drain()
        self._wake()

    def cancel(self) -> None:
        """End at once. What was answered and is not counted yet is read by the next run."""
        self.drain()
        if self._onward is not None:
            self._onward.cancel()
        if self._scope is not None:
            self._scope.cancel()

    def halt_for(self, error: BatchchatError) -> None:
        """Create no more batches for this reason; the first one is kept in `halt`."""
        if self.halt is None:
            self.halt = error
            self._listener(halted(error))
        self.drain()

    def retune(
        self, *, requests_per_minute: float | None, tokens_per_minute: float | None, concurrency: int | None
    ) -> None:
        """Take other ceilings. A batch has none of them: they are for what is sent as single requests."""
        if self._onward is not None:
            self._onward.retune(
                requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute, concurrency=concurrency
            )

    def failed_before(self, custom_id: str) -> None:
        """Note that this request failed for good in an earlier run. That is of no matter in a batch."""

    def release_held(self, sink: Sink) -> None:
        """Settle requests that are held back: there are none in a batch."""

    # --- running

    async def run(self, feed: Feed, sink: Sink) -> None:
        """Execute all requests of the feed; return when all are settled, or the batches are left to the next run."""
        try:
            with anyio.CancelScope() as self._scope:
                async with self._service, aclosing(feed):
                    await self._open(sink)
                    await self._work(feed, sink)
        except* BatchchatError as errors:
            self.halt_for(_first(errors))
        except* RunEnds:
            pass  # what it waited for is asked again by the next run
        except* Gone as errors:
            message = f"the provider does not know what was just made: {_first(errors)}"
            self.halt_for(ProviderUnavailable(message, remedy="Run the same command again."))
        if not self._draining and self._make_onward is not None:
            await self._go_onward(sink)
        if self._opened:
            with anyio.CancelScope(shield=True):
                await self._offload(self._builder.discard)
                await self._offload(self._again.discard)
        self._leave()

    async def _open(self, sink: Sink) -> None:
        """Read the ledger, and find out what became of the chunks of earlier runs."""
        setting = self._setting
        self._created_at = anyio.current_time()
        self._ledger = await self._offload(Ledger, setting.folder)
        self._bounds = Bounds.of(
            self._service, lines=setting.lines, nbytes=setting.nbytes, queued_tokens=setting.queued_tokens
        )
        self._builder, self._again = self._new_builder(), self._new_builder()
        patience = Patience(setting.outage, self._listener, self._rest)
        self._patience = Patience(_OUT_OF_SIGHT_S, self._listener, self._rest)
        self._creation = Creation(
            self._service,
            self._ledger,
            setting.folder,
            patience=patience,
            listener=self._listener,
            poll_s=setting.poll or POLL_FIRST_S,
            wall_clock=self._wall_clock,
            offload=self._offload,
        )
        self._gathering = Gathering(
            self._service,
            self._creation,
            self._patience,
            self,
            sink,
            folder=setting.folder,
            terms=replace(setting.terms, onward=self._make_onward is not None, leave_open=setting.cancel),
            keep_files=setting.keep_files,
            poll_s=setting.poll or POLL_FIRST_S,
            asker=setting.asker,
            listener=self._listener,
            wall_clock=self._wall_clock,
            offload=self._offload,
        )
        self._parting = Parting(setting.folder, self, sink, taken_before=setting.terms.job_answered)
        self._opened = True
        await self._take_over()

    async def _check(self) -> None:
        """Check key, address and bucket before the provider is asked for the first time. Raises as `preflight`."""
        async with self._checking:
            if not self._checked:
                await self._creation.patience(self._service.preflight, "a first look at the provider's batches")
                self._checked = True

    def _new_builder(self) -> Builder:
        setting = self._setting
        return Builder(
            setting.folder, self._ledger, setting.asker, self._bounds, account=self._account, offload=self._offload
        )

    async def _take_over(self) -> None:
        """Go on with the chunks of earlier runs."""
        if any(state.paid for state in self._ledger.chunks.values()):
            await self._check()
        for number in list(self._ledger.chunks):
            state = await self._settled(self._ledger.chunks[number])
            if state.step >= Step.HARVESTED:
                await self._gathering.clean(state)
                continue
            hold = self._account.bulk() if self._account is not None else None
            if hold is not None:
                hold.take_over(state.prompt_tokens, state.max_tokens, state.lines)
            if state.step < Step.CREATED:
                self._ready.append(Planned(state, hold))
            else:
                self._live[state.number] = Planned(state, hold)
        names = {planned.state.name for planned in (*self._ready, *self._live.values())}
        await self._offload(self._known.take_over, names)

    async def _settled(self, state: ChunkState) -> ChunkState:
        """Return a chunk of an earlier run when it is known whether it has a batch."""
        if state.step < Step.CREATING:
            # Nothing exists that costs: its requests come again with the feed, as the job is today.
            return await self._creation.note(state, "dropped", reason="not created when its run ended")
        if state.step is not Step.CREATING:
            return state
        found = await self._creation.settle(state)
        if found is not None:
            return found
        if state.prompt_id == self._setting.asker.prompt_id and not self._setting.cancel:
            # It is created anew, and not forgotten: a batch that shows up in the list later is known for its own.
            return self._ledger.chunks[state.number]
        return await self._creation.note(state, "dropped", reason="never created")

    async def _work(self, feed: Feed, sink: Sink) -> None:
        if self._setting.cancel:
            await self._cancel_all()
            await self._watch()
            return
        if self._live and not self._draining:
            await self._look()  # what is ready is taken first
        async with anyio.create_task_group() as group:
            group.start_soon(self._take, feed, sink)
            for _ in range(_CREATORS):
                group.start_soon(self._create)
            await self._watch()
            group.cancel_scope.cancel()

    async def _cancel_all(self) -> None:
        for planned in self._live.values():
            state = planned.state
            for batch_id in (state.batch, *state.surplus):
                if batch_id is not None and state.status not in ENDED:
                    await self._gathering.cancel(batch_id)
        await self._look()

    # --- the feed

    async def _take(self, feed: Feed, sink: Sink) -> None:
        """Write the requests of the feed into chunks."""
        async for requests in feed:
            for request in requests:
                taken = self._known.take(request)
                if taken is not None and not await self._write(*taken, sink):
                    return
            if sink.full:
                await sink.room()
            if self._draining:
                return
        self._builder.next_chunk()
        await self._plan(self._builder)
        self._feed_done = True
        self._wake()

    async def _write(self, request: Request, batches: int, sink: Sink) -> bool:
        """Write one request; wait for the budget, and for a chunk that is taken. False if the run ends before."""
        line = self.encoded(request, sink)
        while line is not None:
            try:
                added = self._builder.add(request, line, batches)
            except StoppedEarly as error:
                self._out_of_budget = error
                added = False
            if self._builder.full or not added:
                if not added:
                    self._builder.next_chunk()
                await self._plan(self._builder)
            if added:
                return True
            if self._out_of_budget is not None:
                self._wake()
                return False
            if self._draining:
                return False
            await self._change()
        return not self._draining

    def encoded(self, request: Request, sink: Sink) -> bytes | None:
        """Return a request as a line; None, with its row failed, if no batch can take it."""
        reason = self._service.refuses(request.body)
        line = b"" if reason is not None else self._service.encode(request.custom_id, request.body)
        most = min(self._bounds.line_bytes or self._bounds.nbytes, self._bounds.nbytes)
        if reason is None and len(line) > most:
            reason = f"its line of {len(line):,} bytes is longer than the {most:,} that a batch takes"
        if reason is None:
            return line
        failure = Failure(ErrorKind.INVALID_REQUEST, f"it cannot be sent in a batch: {reason}")
        sink.put(Settled(request, Reply(Verdict.NO, failure=failure, sent=False), failure))
        return None

    async def _plan(self, builder: Builder, splits: int = 0) -> None:
        """Make full chunks ready for their creation; wait while enough are."""
        for planned in await builder.plan(at=self._wall_clock(), splits=splits):
            self._ready.append(planned)
            self._wake()
        while builder is self._builder and len(self._ready) >= _AHEAD and not self._draining:
            await self._change()

    # --- creating

    async def _create(self) -> None:
        """Create the batches of chunks that are ready, as the provider's queue has room."""
        while not self._draining:
            planned = self._next()
            if planned is None:
                await self._change(self._queue_wait())
                continue
            self._creating += 1
            try:
                await self._create_one(planned)
            finally:
                self._creating -= 1
                self._created_at = anyio.current_time()
                self._wake()

    def _next(self) -> Planned | None:
        """Take the next chunk whose batch may be created now."""
        if self._paused or not self._ready or self._queue_wait() is not None:
            return None
        state = self._ready[0].state
        most = self._bounds.queued_tokens
        if most is not None and self._live:
            queued = sum(planned.state.prompt_tokens for planned in self._live.values())
            if queued + state.prompt_tokens > most:
                return None
        planned = self._ready.popleft()
        self._live[state.number] = planned
        return planned

    def _queue_wait(self) -> float | None:
        """Return the seconds for which nothing is created, as the provider's queue was full; None if it may not be."""
        if self._queue_full_until is None:
            return None
        left = self._queue_full_until - anyio.current_time()
        if left <= 0:
            self._queue_full_until = None
            return None
        return left

    async def _create_one(self, planned: Planned) -> None:
        state = planned.state
        try:
            await self._check()
            planned.state = await self._creation.create(state)
            self._sent += state.lines
            return
        except QueueFull as error:
            await self._queue_is_full(planned, error)
        except ChunkTooLarge as error:
            self._listener(Event("batch_too_large", f"{state.name}: {error}: it is sent in parts", "warning"))
            self._bounds.lines = max(1, min(self._bounds.lines, state.lines // 2))
            self._bounds.nbytes = max(1, min(self._bounds.nbytes, state.nbytes // 2))
            await self._part(planned, RefusedChunk(str(error), too_large=True))
        except BadLine as error:
            await self._part(planned, RefusedChunk(str(error), line=error.line, code=error.code))
        except RunEnds:
            self._live.pop(state.number, None)
        except BatchchatError as error:
            self._live.pop(state.number, None)
            self.halt_for(error)

    async def _queue_is_full(self, planned: Planned, error: QueueFull) -> None:
        """Let a chunk wait for room in the provider's queue; send it in parts if it can never fit."""
        state = planned.state = self._ledger.chunks[planned.state.number]
        if error.queued_tokens is not None:
            self._bounds.lower_queue(error.queued_tokens)
        # Batches of others count too, so that waiting for our own to end may not be enough.
        others = len(self._live) > 1
        wait = error.retry_after or self._poll_s() * (2 if others else 4)
        self._queue_full_until = anyio.current_time() + wait
        self._listener(Event("batch_queue_full", f"the provider's queue is full: {error}", "info"))
        most = self._bounds.queued_tokens
        alone = not others and state.tries >= _TRIES_ALONE
        if state.lines > 1 and (alone or (most is not None and state.prompt_tokens > most)):
            # Its tokens are guessed by size, and may be more in truth.
            self._bounds.lower_queue(max(1, state.prompt_tokens // 2))
            await self._part(planned, RefusedChunk(str(error), too_large=True))
            return
        self._live.pop(state.number, None)
        self._ready.appendleft(planned)

    async def _part(self, planned: Planned, refused: RefusedChunk) -> None:
        """Send a refused chunk in parts. They are planned before it is dropped, so that no crash forgets a request."""
        state = planned.state
        if planned.hold is not None:
            planned.hold.release()
        builder = self._new_builder()
        await self._parting.part(state, refused, builder)
        await self._plan(builder, splits=state.splits + 1)
        await self._drop(planned, refused.message)

    async def _drop(self, planned: Planned, why: str) -> None:
        """Let go of a chunk of which nothing will be read."""
        state = await self._creation.note(planned.state, "dropped", reason=why[:300])
        self._live.pop(state.number, None)
        if planned.hold is not None:
            planned.hold.release()
        await self._gathering.clean(state)
        self._wake()

    # --- the watch

    async def _watch(self) -> None:
        """Look at the batches until nothing is left to do, or the run is to end."""
        while not self._ended():
            seconds = self._next_look_in()
            if seconds is not None and seconds <= 0 and not self._draining:
                try:
                    await self._look()
                except RunEnds:
                    continue
            else:
                await self._change(seconds)

    def _next_look_in(self) -> float | None:
        """Return the seconds until the next look at the batches, None if there are none."""
        if not any(planned.state.batch is not None for planned in self._live.values()):
            self._next_look = None
            return None
        now = anyio.current_time()
        if self._next_look is None:
            self._next_look = now + self._poll_s()
        return self._next_look - now

    def _ended(self) -> bool:
        """Return true if every request is settled, or if the run does not wait for its batches."""
        if self._draining and not self._creating:
            return True
        no_more = self._feed_done or self._out_of_budget is not None or self._setting.cancel
        idle = not self._creating and (not self._ready or self._paused)
        if not self._setting.wait and not self._setting.cancel:
            stuck = self._ready and not self._paused and self._queue_blocked()
            return bool((no_more and idle) or (stuck and not self._creating))
        return no_more and idle and not self._live and not self._ready

    def _queue_blocked(self) -> bool:
        """Return true if the first chunk that is ready has to wait for the provider's queue."""
        if self._queue_wait() is not None:
            return True
        most = self._bounds.queued_tokens
        queued = sum(planned.state.prompt_tokens for planned in self._live.values())
        return most is not None and bool(self._live) and queued + self._ready[0].state.prompt_tokens > most

    def _poll_s(self) -> float:
        """Return the seconds between two looks at the batches: more as they grow older."""
        if self._setting.poll is not None:
            return self._setting.poll
        if self._setting.cancel:
            return _POLL_CANCELLED_S
        now = self._wall_clock()
        ages = [now - (planned.state.created_at or now) for planned in self._live.values()]
        age = max(0.0, min(ages, default=0.0))
        # Where batches may end within seconds, the wait is as long as the newest is old, up to the usual one.
        newest = anyio.current_time() - self._created_at
        young = min(POLL_FIRST_S, max(self._setting.poll_first, newest))
        return young + (_POLL_LONGEST_S - young) * min(1.0, age / _AGE_S)

    async def _look(self) -> None:
        """Look at all batches once, and harvest those that have ended."""
        created = [planned for planned in self._live.values() if planned.state.batch is not None]
        ids = [batch_id for planned in created for batch_id in (planned.state.batch, *planned.state.surplus)]
        asked = [batch_id for batch_id in ids if batch_id is not None]
        if asked:
            found = await self._patience(lambda: self._service.poll(asked), "a look at the batches")
            await self._judge_unknown(asked, found)
            for planned in created:
                await self._follow(planned, found)
            self._again.next_chunk()
            await self._plan(self._again)
        jitter = 1.0 if self._setting.poll is not None else self._rng.uniform(1.0, 1.2)
        self._next_look = anyio.current_time() + self._poll_s() * jitter
        self._wake()

    async def _judge_unknown(self, asked: list[str], found: dict[str, RemoteBatch]) -> None:
        """Count for how long the provider has not known a batch. If it knows none at all, the key is another one's."""
        for batch_id in asked:
            self._unknown[batch_id] = 0 if batch_id in found else self._unknown.get(batch_id, 0) + 1
        lost = [batch_id for batch_id in asked if self._unknown[batch_id] >= _UNKNOWN_LOOKS]
        for state in [planned.state for planned in self._live.values() if planned.state.batch in lost]:
            # Results that lie in a bucket of our own tell of a batch that the provider has forgotten.
            ended = [batch for batch in await self._creation.find(state) if batch.ended and batch.result_refs]
            if ended and state.batch is not None:
                found[state.batch] = replace(ended[0], id=state.batch)
        if lost and not found:
            raise NeedsHuman(
                f"the provider knows none of the {len(asked)} batches of this output, such as {lost[0]}",
                remedy="Is the key one of another project or account? With the key that created them, the same command "
                "takes their answers.",
            )

    async def _find_surplus(self, planned: Planned) -> bool:
        """Look for a second batch of a chunk whose creation was uncertain; true if there is one that has not ended."""
        state = planned.state
        known = {state.batch, *state.surplus}
        others = [batch for batch in await self._creation.find(state) if batch.id not in known]
        for other in others:
            planned.state = await self._creation.cancel_surplus(planned.state, other.id)
        planned.state = await self._creation.note(planned.state, "settled", unsure=False)
        return bool(others)

    async def _follow(self, planned: Planned, found: dict[str, RemoteBatch]) -> None:
        """Note what the provider tells of a chunk's batches; harvest the chunk if they have all ended."""
        state = planned.state
        ids = [each for each in (state.batch, *state.surplus) if each is not None]
        lost = [each for each in ids if each not in found and self._unknown.get(each, 0) >= _UNKNOWN_LOOKS]
        batches = [found[each] for each in ids if each in found]
        if state.batch in found:
            noted = await self._creation.note_state(state, found[state.batch])
            if noted.status is not state.status:
                self._listener(
                    Event(
                        "batch_state",
                        f"batch {state.batch} is {noted.status.value.replace('_', ' ')}",
                        "info",
                        {"batch": state.batch, "chunk": state.number, "status": noted.status.value},
                    )
                )
            planned.state = noted
        if len(batches) + len(lost) < len(ids) or not all(batch.ended for batch in batches):
            return
        await self._harvest(planned, batches)

    async def _harvest(self, planned: Planned, batches: list[RemoteBatch]) -> None:
        if planned.state.unsure and await self._find_surplus(planned):
            return
        first = next((batch for batch in batches if batch.id == planned.state.batch), None)
        if first is not None and first.status is BatchStatus.FAILED and not first.result_refs:
            problem = first.problems[0] if first.problems else None
            message = problem.message if problem is not None else "the provider gives no reason"
            if problem is not None and problem.code == "token_limit_exceeded":
                await self._creation.note(
                    planned.state, "not_created", batch=None, status=BatchStatus.UNKNOWN.value, reason=message[:300]
                )
                await self._queue_is_full(planned, QueueFull(message, queued_tokens=queued_tokens_in(message)))
                return
            self._listener(Event("batch_failed", f"batch {first.id} failed: {message}", "warning", {"batch": first.id}))
            if problem is not None and problem.remedy is not None:
                await self._drop(planned, message)
                raise NeedsHuman(f"batch {first.id} failed: {message}", remedy=problem.remedy)
            await self._part(
                planned,
                RefusedChunk(message, line=problem.line if problem else None, code=problem.code if problem else None),
            )
            return
        done = await self._gathering.gather(planned, batches)
        if done is None:
            return  # the disk failed, or the run ends: the next run reads it again
        self._answered = self._answered or done.answered > 0
        self._parting.note_taken()
        self._known.asked_again += done.counts.again
        self._known.corrections += done.corrections
        self._live.pop(planned.state.number, None)
        self._queue_full_until = None
        self._wake()

    # --- what a harvest asks and tells: see `Owner`

    def is_settled(self, custom_id: str) -> bool:
        """Return true if the request has a counted completion."""
        return self._known.is_settled(custom_id)

    def steps_kept(self, custom_id: str) -> int:
        """Return how many answers of a request that goes on are counted already."""
        return self._known.steps_kept(custom_id)

    def wants(self, custom_id: str) -> bool:
        """Return true if the pass asks for the request, as far as it was read."""
        return self._known.wants(custom_id)

    def is_replaced(self, request: Request) -> bool:
        """Return true if the pass asks the row of a request something else."""
        return self._known.is_replaced(request)

    def release(self, request: Request, batches: int) -> None:
        """Let the feed have a request that its batch did not answer."""
        self._known.release(request, batches)

    def let_go(self, custom_id: str) -> None:
        """Note that a request failed for good before the pass asked for it."""
        self._known.let_go(custom_id)

    def again(self, request: Request, batches: int) -> bool:
        """Put a request into a further chunk; False if it stays open for now."""
        return self.again_into(self._again, request, batches)

    def again_into(self, builder: Builder, request: Request, batches: int) -> bool:
        """Put a request into a further chunk of this builder; False if it stays open for now."""
        if self._setting.cancel:
            return False
        if not self._known.wants(request.custom_id):
            self._known.release(request, batches)
            return False
        if self._make_onward is not None and batches >= self._setting.terms.rounds:
            self._known.keep_onward(request)
            return True
        try:
            added = builder.add(request, self._service.encode(request.custom_id, request.body), batches)
        except StoppedEarly as error:
            self._out_of_budget = self._out_of_budget or error
            return False
        if not added:
            self._out_of_budget = self._out_of_budget or StoppedEarly(_NO_ROOM, remedy=_NEW_BUDGET)
        return added

    # --- the end

    async def _go_onward(self, sink: Sink) -> None:
        """Send what batches did not answer as single requests."""
        feed = await self._offload(self._known.onward)
        if feed is None or self._make_onward is None:
            return
        self._onward = self._make_onward()
        count = self._known.onward_count
        self._listener(Event("batch_onward", f"{count:,} requests that batches did not answer are sent one by one"))
        await self._onward.run(feed, _SingleRequests(sink))
        if self._onward.halt is not None:
            self.halt_for(self._onward.halt)

    def _leave(self) -> None:
        """Say what is left to the next run."""
        if self._out_of_budget is not None and self.halt is None:
            self.halt_for(self._out_of_budget)
        if self._known.postponed and self.halt is None:
            message = f"{self._known.postponed} answers came just before their rows were read, and lie in the archive"
            self.halt_for(
                StoppedEarly(message, remedy="The same command takes them from there; nothing is sent twice.")
            )
        running = [planned.state for planned in self._live.values() if planned.state.step >= Step.CREATING]
        if not running or isinstance(self.halt, NeedsHuman | StorageError):
            return
        requests = sum(state.lines for state in running)
        which = "1 batch" if len(running) == 1 else f"{len(running)} batches"
        goes = "goes" if len(running) == 1 else "go"
        message = f"{which} with {requests:,} requests {goes} on at the provider"
        if self.halt is not None:
            self._listener(Event("batches_left", message))
            return
        self.halt_for(
            StoppedEarly(message, remedy="The same command takes their answers later; nothing is sent twice.")
        )

    # --- waiting

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def _rest(self, seconds: float) -> None:
        """Wait for so many seconds. Raises RunEnds if the run is to end before."""
        ends = anyio.current_time() + seconds
        while not self._draining and anyio.current_time() < ends:
            await self._change(ends - anyio.current_time())
        if self._draining:
            raise RunEnds

    async def _change(self, seconds: float | None = None) -> None:
        """Wait until something has changed, for so many seconds at most."""
        with anyio.move_on_after(seconds) if seconds is not None else anyio.CancelScope():
            await self._changed.wait()


class _SingleRequests:
    """A sink for outcomes of single requests within a run of batches: they have a price of their own."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def put(self, outcome: Outcome) -> None:
        """Take an outcome over."""
        self._sink.put(replace(outcome, engine="local") if isinstance(outcome, Settled) else outcome)

    @property
    def full(self) -> bool:
        """Whether more waits than should."""
        return self._sink.full

    async def room(self) -> None:
        """Wait until there is room."""
        await self._sink.room()

    async def counted(self) -> bool:
        """Wait until all that was put so far is durable."""
        return await self._sink.counted()


def _first(errors: BaseExceptionGroup[Any]) -> Any:
    """Return the first error of a group."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
