"""The way of requests into chunks: those of the feed, and those that their batch did not answer."""

from __future__ import annotations

from collections.abc import Callable

from batchchat.engines.batch.building import Builder
from batchchat.engines.batch.onward import Onward
from batchchat.engines.batch.queue import ChunkQueue
from batchchat.engines.batch.setting import Means
from batchchat.engines.batch.signals import RunSignals
from batchchat.engines.port import Feed, Settled, Sink
from batchchat.errors import BatchchatError, StoppedEarly
from batchchat.records import ErrorKind, Failure, Reply, Request, Verdict

_AHEAD = 2
"""Chunks that are written before the first of them is taken: more would only fill the disk."""
_NO_ROOM = "the budget is reserved for batches that are under way: it has no room for requests that are asked again"
_NEW_BUDGET = "The same command goes on where it stopped, with a new budget."


class Feeding:
    """Puts requests into chunks, or aside for single exchanges; answers what a harvest asks of a request (`Owner`).

    `new_builder` makes what writes chunks.
    """

    def __init__(
        self,
        means: Means,
        queue: ChunkQueue,
        signals: RunSignals,
        onward: Onward,
        *,
        new_builder: Callable[[], Builder],
        halt_for: Callable[[BatchchatError], None],
    ) -> None:
        self.done = False
        self.out_of_budget: StoppedEarly | None = None
        self.new_builder = new_builder
        self.halt_for = halt_for
        self._service = means.service
        self._known = means.known
        self._wall_clock = means.wall_clock
        # A run that cancels batches asks nothing again.
        self._cancelling = means.setting.cancel
        self._queue = queue
        self._signals = signals
        self._onward = onward
        # Two of them: what is asked again must not wait until the feed has filled a chunk.
        self._fresh = new_builder()
        self._again = new_builder()

    @property
    def waiting(self) -> int:
        """Return how many requests are written and in no chunk yet."""
        return self._fresh.waiting + self._again.waiting

    @property
    def ended(self) -> bool:
        """Tell whether nothing more comes of the feed."""
        return self.done or self.out_of_budget is not None or self._cancelling

    # --- the feed

    async def take(self, feed: Feed, sink: Sink) -> None:
        """Write the requests of the feed into chunks."""
        async for requests in feed:
            for request in requests:
                taken = self._known.take(request)
                if taken is not None and not await self._write(*taken, sink):
                    return
            if sink.full:
                await sink.room()
            if self._signals.draining:
                return
        self._fresh.next_chunk()
        await self.plan(self._fresh)
        self.done = True
        self._signals.wake()

    async def _write(self, request: Request, batches: int, sink: Sink) -> bool:
        """Write one request; wait for the budget, and for a chunk that is taken. False if the run ends before."""
        line = None if self._onward.takes(batches) else self._encoded(request, sink)
        while line is not None and not self._onward.closing:
            try:
                added = self._fresh.add(request, line, batches)
            except StoppedEarly as error:
                self.out_of_budget = error
                added = False
            # A budget without room ends the chunk too: what is reserved comes back only from a batch that ends.
            if self._fresh.full or not added:
                if not added:
                    self._fresh.next_chunk()  # only a batch that ends gives its reservation back
                await self.plan(self._fresh)
            if added:
                return True
            if self.out_of_budget is not None:
                self._signals.wake()
                return False
            if self._signals.draining:
                return False
            await self._signals.change()
        if self._onward.takes(batches):
            self._onward.keep(request)
        return not self._signals.draining

    def _encoded(self, request: Request, sink: Sink) -> bytes | None:
        """Return a request as a line; None, with its row failed, if no batch can take it."""
        bounds = self._queue.bounds
        reason = self._service.refuses(request.body)
        line = b"" if reason is not None else self._service.encode(request.custom_id, request.body)
        most = min(bounds.line_bytes or bounds.nbytes, bounds.nbytes)
        if reason is None and len(line) > most:
            reason = f"its line of {len(line):,} bytes is longer than the {most:,} that a batch takes"
        if reason is None:
            return line
        failure = Failure(ErrorKind.INVALID_REQUEST, f"it cannot be sent in a batch: {reason}")
        sink.put(Settled(request, Reply(Verdict.NO, failure=failure, sent=False), failure))
        return None

    async def plan(self, builder: Builder, splits: int = 0) -> None:
        """Make full chunks ready for their creation; the feed waits while enough are."""
        for planned in await builder.plan(at=self._wall_clock(), splits=splits):
            self._queue.ready.append(planned)
            self._signals.wake()
        # Only the feed waits. What is asked again, or parted, comes from chunks that are on the disk already.
        while (
            builder is self._fresh
            and len(self._queue.ready) >= _AHEAD
            and not (self._signals.draining or self._onward.closing)
        ):
            await self._signals.change()

    async def plan_again(self) -> None:
        """Make a chunk of what is asked again, however few they are: they have waited for long."""
        self._again.next_chunk()
        await self.plan(self._again)

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
        if self._cancelling:
            return False
        if not self._known.wants(request.custom_id):
            # Of an earlier run, and the pass has not come to its row: it may be asked something else by now.
            self._known.release(request, batches)
            return False
        if self._onward.takes(batches):
            self._onward.keep(request)
            return True
        try:
            added = builder.add(request, self._service.encode(request.custom_id, request.body), batches)
        except StoppedEarly as error:
            self.out_of_budget = self.out_of_budget or error
            return False
        if not added:
            self.out_of_budget = self.out_of_budget or StoppedEarly(_NO_ROOM, remedy=_NEW_BUDGET)
        return added

    def discard(self) -> None:
        """Remove what is in no chunk: its requests stay open. Blocking code."""
        self._fresh.discard()
        self._again.discard()
