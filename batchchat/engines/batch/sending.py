"""Creating batches of the chunks that are ready, and what follows from a provider that refuses one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from batchchat.engines.batch.building import Planned
from batchchat.engines.batch.creation import RunEnds
from batchchat.engines.batch.parting import RefusedChunk
from batchchat.engines.batch.rooms import Rooms
from batchchat.engines.batch.service import BadLine, ChunkTooLarge, QueueFull
from batchchat.errors import BatchchatError
from batchchat.events import Event


class Sending:
    """Creates batches, several at a time. `preflight` checks the provider before it is asked for the first time."""

    def __init__(self, rooms: Rooms, preflight: Callable[[], Awaitable[None]]) -> None:
        self.busy = 0
        self.sent = 0
        self._signals = rooms.signals
        self._queue = rooms.queue
        self._schedule = rooms.schedule
        self._feeding = rooms.feeding
        self._creation = rooms.creation
        self._gathering = rooms.gathering
        self._parting = rooms.parting
        self._listener = rooms.listener
        self._preflight = preflight
        self._checked = False
        self._checking = anyio.Lock()

    async def check(self) -> None:
        """Check key, address and bucket, once. Raises as `preflight` of the service."""
        async with self._checking:  # the creators begin together
            if not self._checked:
                await self._creation.patience(self._preflight, "a first look at the provider's batches")
                self._checked = True

    async def create(self) -> None:
        """Create the batches of chunks that are ready, as the provider's queue has room, until the run ends."""
        while not self._signals.draining:
            planned = None if self._signals.paused else self._queue.take()
            # Nothing to create now: a chunk, a batch that ends or the end of a full queue's wait may change that.
            if planned is None:
                await self._signals.change(self._queue.wait())
                continue
            self.busy += 1
            try:
                await self._create_one(planned)
            finally:
                self.busy -= 1
                self._schedule.note_created()
                self._signals.wake()

    async def _create_one(self, planned: Planned) -> None:
        state = planned.state
        try:
            await self.check()
            planned.state = await self._creation.create(state)
            self.sent += state.lines
        except QueueFull as error:
            await self.refused(planned, error)
        except ChunkTooLarge as error:
            self._listener(Event("batch_too_large", f"{state.name}: {error}: it is sent in parts", "warning"))
            bounds = self._queue.bounds
            # Later chunks are built smaller too, or each would be refused and parted again.
            bounds.lines = max(1, min(bounds.lines, state.lines // 2))
            bounds.nbytes = max(1, min(bounds.nbytes, state.nbytes // 2))
            await self.part(planned, RefusedChunk(str(error), too_large=True))
        except BadLine as error:
            await self.part(planned, RefusedChunk(str(error), line=error.line, code=error.code))
        except RunEnds:
            self._queue.remove(planned)  # the next run knows from the ledger how far it is
        except BatchchatError as error:
            self._queue.remove(planned)
            self._feeding.halt_for(error)

    async def refused(self, planned: Planned, error: QueueFull) -> None:
        """Let a chunk wait for room in the provider's queue; send it in parts if it can never fit."""
        planned.state = self._creation.latest(planned.state)
        self._listener(Event("batch_queue_full", f"the provider's queue is full: {error}", "info"))
        if self._queue.refused(planned, error, self._schedule.seconds(self._queue)):
            await self.part(planned, RefusedChunk(str(error), too_large=True))

    async def part(self, planned: Planned, refused: RefusedChunk) -> None:
        """Send a refused chunk in parts. They are planned before it is dropped, so that no crash forgets a request."""
        state = planned.state
        if planned.hold is not None:
            planned.hold.release()
        builder = self._feeding.new_builder()
        await self._parting.part(state, refused, builder)
        await self._feeding.plan(builder, splits=state.splits + 1)
        await self.drop(planned, refused.message)

    async def send_singly(self) -> None:
        """Put the requests of all chunks aside that have no batch.

        Chunks of which nobody can tell whether they have one are left to be created, found or not, and then cancelled:
        single requests beside a batch would be paid twice.
        """
        waiting = [planned for planned in self._queue.ready if not planned.state.unsure]
        for planned in waiting:
            self._queue.ready.remove(planned)
            await self._parting.each(planned.state, self._feeding.again)
            await self.drop(planned, "its requests are sent one by one")

    async def drop(self, planned: Planned, why: str) -> None:
        """Let go of a chunk of which nothing will be read."""
        state = await self._creation.note(planned.state, "dropped", reason=why[:300])
        self._queue.remove(planned)
        if planned.hold is not None:
            planned.hold.release()
        await self._gathering.clean(state)
        self._signals.wake()
