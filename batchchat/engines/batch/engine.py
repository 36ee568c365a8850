"""The batch engine: requests go to a provider's Batch API, many in one file.

Three things are at work at once. The *feed* is written into chunks on disk. *Creators* upload them and create their
batches while the provider's queue has room. The *watch* looks at all batches with one call at a time, and harvests
those that have ended; what must be asked again goes into further chunks.

A run may be left at any time: batches go on at the provider, and the next run knows them from the ledger. It takes what
is ready first, and sends only requests that are in no batch.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from typing import Any

import anyio

from batchchat.engines.batch.building import Planned
from batchchat.engines.batch.creation import RunEnds
from batchchat.engines.batch.joining import join
from batchchat.engines.batch.ledger import ChunkState, Ledger, Step
from batchchat.engines.batch.queue import ChunkQueue
from batchchat.engines.batch.rooms import Rooms
from batchchat.engines.batch.sending import Sending
from batchchat.engines.batch.service import Gone
from batchchat.engines.batch.setting import Means
from batchchat.engines.batch.signals import RunSignals
from batchchat.engines.batch.watch import Watch
from batchchat.engines.port import Engine, EngineProgress, Feed, Sink, halted
from batchchat.errors import BatchchatError, NeedsHuman, ProviderUnavailable, StoppedEarly, StorageError
from batchchat.events import Event, Pace

_CREATORS = 2
"""Chunks that are uploaded at the same time: one alone leaves the line idle while its batch is created."""


class BatchEngine:
    """Executes requests through a batch service."""

    def __init__(self, means: Means) -> None:
        self.halt: BatchchatError | None = None
        self._means = means
        self._signals = RunSignals()
        self._rooms: Rooms | None = None
        self._ledger: Ledger
        self._sending: Sending
        self._watch: Watch
        self._scope: anyio.CancelScope | None = None

    # --- what the run sees

    @property
    def _single(self) -> Engine | None:
        """The engine for single requests, once it is at work."""
        return None if self._rooms is None else self._rooms.onward.engine

    @property
    def answered(self) -> bool:
        """Return true once the model has answered in this run."""
        by_batches = self._rooms is not None and self._watch.answered
        return by_batches or (self._single is not None and self._single.answered)

    def progress(self, oldest: int = 0) -> EngineProgress:
        """Return how many requests are in batches that have not ended, and what was done in this run."""
        single = EngineProgress(0, 0, 0, 0, 0, 0, Pace(), ())
        if self._single is not None:
            single = self._single.progress(oldest)
        rooms = self._rooms
        if rooms is None:
            return single
        waiting = sum(planned.state.lines for planned in rooms.queue.ready) + rooms.feeding.waiting
        return replace(
            single,
            sending=single.sending + sum(planned.state.lines for planned in rooms.queue.live.values()),
            waiting=single.waiting + waiting,
            attempts=single.attempts + self._sending.sent,
            retries=single.retries + self._means.known.asked_again,
            corrections=single.corrections + self._means.known.corrections,
            pace=replace(single.pace, held_by=_words(rooms.queue) or single.pace.held_by),
        )

    def pause(self) -> None:
        """Create no batch until `resume`. Batches that are under way go on, and are harvested."""
        self._signals.paused = True
        if self._single is not None:
            self._single.pause()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._signals.paused = False
        if self._single is not None:
            self._single.resume()
        self._signals.wake()

    def drain(self) -> None:
        """Create no more batches, and leave those that are under way to the next run."""
        self._signals.draining = True
        if self._single is not None:
            self._single.drain()
        self._signals.wake()

    def cancel(self) -> None:
        """End at once. What was answered and is not counted yet is read by the next run."""
        self.drain()
        if self._single is not None:
            self._single.cancel()
        if self._scope is not None:
            self._scope.cancel()

    def halt_for(self, error: BatchchatError) -> None:
        """Create no more batches for this reason; the first one is kept in `halt`."""
        if self.halt is None:
            self.halt = error
            self._means.listener(halted(error))
        self.drain()

    def retune(
        self, *, requests_per_minute: float | None, tokens_per_minute: float | None, concurrency: int | None
    ) -> None:
        """Take other ceilings. A batch has none of them: they are for what is sent as single requests."""
        if self._single is not None:
            self._single.retune(
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
                async with self._means.service, aclosing(feed):
                    rooms = await self._open(sink)
                    await self._take_over(rooms)
                    await self._work(rooms, feed, sink)
        except* BatchchatError as errors:
            self.halt_for(_first(errors))
        except* RunEnds:
            pass  # what it waited for is asked again by the next run
        except* Gone as errors:
            message = f"the provider does not know what was just made: {_first(errors)}"
            self.halt_for(ProviderUnavailable(message, remedy="Run the same command again."))
        if self._rooms is not None:
            await self._end(self._rooms, sink)

    async def _open(self, sink: Sink) -> Rooms:
        """Read the ledger, and make the parts of the engine."""
        means = self._means
        self._ledger = await means.offload(Ledger, means.setting.folder)
        rooms, looks = join(means, self._ledger, self._signals, sink, self.halt_for)
        self._sending = Sending(rooms, means.service.preflight)
        wait = means.setting.wait or means.setting.cancel
        self._watch = Watch(rooms, self._sending, looks, means.known, wait=wait)
        self._rooms = rooms
        return rooms

    async def _take_over(self, rooms: Rooms) -> None:
        """Go on with the chunks of earlier runs."""
        chunks = self._ledger.chunks
        # A key that is refused is told at once, before anything is asked about batches.
        if any(state.paid for state in chunks.values()):
            await self._sending.check()
        for number in list(chunks):
            state = await self._settled(rooms, chunks[number])
            if state.step >= Step.HARVESTED:
                await rooms.gathering.clean(state)  # it was killed before its files were removed
                continue
            hold = self._means.account.bulk() if self._means.account is not None else None
            if hold is not None:
                hold.take_over(state.prompt_tokens, state.max_tokens, state.lines)
            # Still unsure after all looks: it is created anew.
            if state.step < Step.CREATED:
                rooms.queue.ready.append(Planned(state, hold))
            else:
                rooms.queue.live[state.number] = Planned(state, hold)
        names = {planned.state.name for planned in (*rooms.queue.ready, *rooms.queue.live.values())}
        await self._means.offload(self._means.known.take_over, names)

    async def _settled(self, rooms: Rooms, state: ChunkState) -> ChunkState:
        """Return a chunk of an earlier run when it is known whether it has a batch."""
        if state.step < Step.CREATING:
            # Nothing exists that costs: its requests come again with the feed, as the job is today.
            return await rooms.creation.note(state, "dropped", reason="not created when its run ended")
        if state.step is not Step.CREATING:
            return state
        found = await rooms.creation.settle(state)
        if found is not None:
            return found
        if state.prompt_id == self._means.setting.asker.prompt_id and not self._means.setting.cancel:
            # It is created anew, and not forgotten: a batch that shows up in the list later is known for its own.
            return rooms.creation.latest(state)
        return await rooms.creation.note(state, "dropped", reason="never created")

    async def _work(self, rooms: Rooms, feed: Feed, sink: Sink) -> None:
        if self._means.setting.cancel:
            await self._watch.cancel(rooms.queue.live.values())
            await self._watch.look()
            await self._watch.run()
            return
        if rooms.queue.live and not self._signals.draining:
            # Else requests would be sent again that a batch has answered by now.
            await self._watch.look()  # what is ready is taken first
        async with anyio.create_task_group() as group:
            group.start_soon(rooms.feeding.take, feed, sink)
            for _ in range(_CREATORS):
                group.start_soon(self._sending.create)
            await self._watch.run()
            group.cancel_scope.cancel()

    # --- the end

    async def _end(self, rooms: Rooms, sink: Sink) -> None:
        """Send what goes on as single requests; then say what is left to the next run."""
        if not self._signals.draining and rooms.onward.wanted:
            await rooms.onward.run(sink, self._means.offload)
            if self._single is not None and self._single.halt is not None:
                self.halt_for(self._single.halt)
        with anyio.CancelScope(shield=True):
            await self._means.offload(rooms.feeding.discard)
            await self._means.offload(self._means.known.discard)
        # Told last: a reason that a person must act on comes before it.
        if rooms.feeding.out_of_budget is not None and self.halt is None:
            self.halt_for(rooms.feeding.out_of_budget)
        if self._means.known.postponed and self.halt is None:
            message = (
                f"{self._means.known.postponed} answers came just before their rows were read, and lie in the archive"
            )
            self.halt_for(
                StoppedEarly(message, remedy="The same command takes them from there; nothing is sent twice.")
            )
        running = [planned.state for planned in rooms.queue.live.values() if planned.state.step >= Step.CREATING]
        # What a person must do first is said alone.
        if not running or isinstance(self.halt, NeedsHuman | StorageError):
            return
        requests = sum(state.lines for state in running)
        which = "1 batch" if len(running) == 1 else f"{len(running)} batches"
        goes = "goes" if len(running) == 1 else "go"
        message = f"{which} with {requests:,} requests {goes} on at the provider"
        if self.halt is not None:
            self._means.listener(Event("batches_left", message))
            return
        self.halt_for(
            StoppedEarly(message, remedy="The same command takes their answers later; nothing is sent twice.")
        )


def _words(queue: ChunkQueue) -> str | None:
    """Say where the batches are, for a progress display."""
    if not queue.live:
        return None
    counts: dict[str, int] = {}
    done = total = 0
    for planned in queue.live.values():
        state = planned.state
        word = state.status.value.replace("_", " ") if state.batch is not None else "being created"
        counts[word] = counts.get(word, 0) + 1
        done += (state.completed or 0) + (state.failed or 0)
        total += state.lines
    told = ", ".join(f"{number} {word}" for word, number in counts.items())
    return f"batches: {told}; the provider has done {min(done, total):,} of {total:,}"


def _first(errors: BaseExceptionGroup[Any]) -> Any:
    """Return the first error of a group."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
