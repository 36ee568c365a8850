"""The watch over batches that are under way: what a look tells of each, and the harvest of those that have ended."""

from __future__ import annotations

from collections.abc import Iterable

from batchchat.engines.batch.building import Planned
from batchchat.engines.batch.carried import Carried
from batchchat.engines.batch.creation import RunEnds
from batchchat.engines.batch.looks import Looks, batches_of
from batchchat.engines.batch.parting import RefusedChunk
from batchchat.engines.batch.rooms import Rooms
from batchchat.engines.batch.sending import Sending
from batchchat.engines.batch.service import ENDED, BatchStatus, QueueFull, RemoteBatch
from batchchat.engines.batch.services.problems import queued_tokens_in
from batchchat.errors import BatchchatError, NeedsHuman
from batchchat.events import Event


class Watch:
    """Looks at batches, and has those read that have ended. `answered` is true once the model has answered.

    With `wait` it goes on until all have ended.
    """

    def __init__(self, rooms: Rooms, sending: Sending, looks: Looks, known: Carried, *, wait: bool) -> None:
        self.answered = False
        self._signals = rooms.signals
        self._queue = rooms.queue
        self._schedule = rooms.schedule
        self._onward = rooms.onward
        self._feeding = rooms.feeding
        self._creation = rooms.creation
        self._gathering = rooms.gathering
        self._parting = rooms.parting
        self._listener = rooms.listener
        self._sending = sending
        self._looks = looks
        self._known = known
        self._wait = wait

    async def run(self) -> None:
        """Look at the batches until nothing is left to do, or the run is to end."""
        while not self._ended():
            look = self._schedule.due_in(self._queue)
            # A run that does not wait is over long before any deadline.
            close = self._onward.due_in(self._queue.live.values()) if self._wait else None
            try:
                if self._signals.draining:
                    await self._signals.change()  # creations that are under way may end
                elif close is not None and close <= 0:
                    await self._end_in_time()
                elif look is not None and look <= 0:
                    await self.look()
                else:
                    await self._signals.change(min((each for each in (look, close) if each is not None), default=None))
            except RunEnds:
                continue

    def _ended(self) -> bool:
        """Return true if every request is settled, or if the run does not wait for its batches."""
        queue, busy = self._queue, self._sending.busy
        # A creation that is under way may make a batch, which must be known before the run ends.
        if busy:
            return False
        if self._signals.draining:
            return True
        idle = not queue.ready or self._signals.paused
        if not self._wait:
            # With a full queue, waiting for room would be waiting for batches.
            return (self._feeding.ended and idle) or (queue.blocked and not self._signals.paused)
        return self._feeding.ended and not queue.live and not queue.ready

    async def cancel(self, planned: Iterable[Planned]) -> None:
        """Ask the provider to cancel the batches of these chunks that have not ended. They are harvested later."""
        self._schedule.hurry = True
        for state in [each.state for each in planned]:
            for batch_id in (state.batch, *state.surplus):
                if batch_id is not None and state.status not in ENDED:
                    await self._gathering.cancel(batch_id)

    async def _end_in_time(self) -> None:
        """Let batches end whose time runs out: what they do not answer is sent one by one."""
        if self._onward.close_if_due():
            self._signals.wake()  # the feed waits for room in the queue
        if self._onward.closing:
            await self._sending.send_singly()
        for planned in self._onward.to_cancel(self._queue.live.values()):
            try:
                await self.cancel([planned])
            except BatchchatError as error:
                # Its answers are taken if it ends in time. Else it goes on, and is left to the next run.
                message = f"batch {planned.state.batch} cannot be cancelled: {error}"
                self._listener(Event("batch_not_cancelled", message, "warning", {"batch": planned.state.batch}))

    async def look(self) -> None:
        """Look at all batches once, and harvest those that have ended."""
        created = self._queue.created
        if created:
            found = await self._looks.look(created)
            for planned in created:
                await self._follow(planned, found)
            await self._feeding.plan_again()
        self._schedule.looked(self._queue)
        self._signals.wake()

    async def _follow(self, planned: Planned, found: dict[str, RemoteBatch]) -> None:
        """Note what the provider tells of a chunk's batches; harvest the chunk if they have all ended."""
        state = planned.state
        ids = batches_of(planned)
        lost = [each for each in ids if each not in found and self._looks.is_lost(each)]
        batches = [found[each] for each in ids if each in found]
        if state.batch in found:
            noted = await self._creation.note_state(state, found[state.batch])
            if noted.status is not state.status:
                message = f"batch {state.batch} is {noted.status.value.replace('_', ' ')}"
                fields = {"batch": state.batch, "chunk": state.number, "status": noted.status.value}
                self._listener(Event("batch_state", message, "info", fields))
            planned.state = noted
        # A surplus batch may hold answers, too: they are read together, so that each request is settled once.
        if len(batches) + len(lost) < len(ids) or not all(batch.ended for batch in batches):
            return
        # By now every list shows a batch whose creation nobody could tell. It is read together with this one.
        if planned.state.unsure and await self._find_surplus(planned):
            return
        first = next((batch for batch in batches if batch.id == planned.state.batch), None)
        # A batch that failed with result files has answered some: these are taken as usual.
        if first is not None and first.status is BatchStatus.FAILED and not first.result_refs:
            await self._follow_failed(planned, first)
            return
        done = await self._gathering.gather(planned, batches)
        if done is None:
            return  # the disk failed, or the run ends: the next run reads it again
        self.answered = self.answered or done.answered > 0
        self._parting.note_taken()
        self._known.asked_again += done.counts.again
        self._known.corrections += done.corrections
        self._queue.remove(planned)
        self._queue.freed()
        self._signals.wake()

    async def _find_surplus(self, planned: Planned) -> bool:
        """Look for a second batch of a chunk whose creation was uncertain; true if there is one that has not ended."""
        known = set(batches_of(planned))
        others = [batch for batch in await self._creation.find(planned.state) if batch.id not in known]
        for other in others:
            planned.state = await self._creation.cancel_surplus(planned.state, other.id)
        planned.state = await self._creation.note(planned.state, "settled", unsure=False)
        return bool(others)

    async def _follow_failed(self, planned: Planned, batch: RemoteBatch) -> None:
        """Go on after a batch that failed as a whole: it has answered nothing."""
        problem = batch.problems[0] if batch.problems else None
        message = problem.message if problem is not None else "the provider gives no reason"
        if problem is not None and problem.code == "token_limit_exceeded":
            # The queue was full when the provider came to it, so that it is as if it had not been created.
            await self._creation.note(
                planned.state, "not_created", batch=None, status=BatchStatus.UNKNOWN.value, reason=message[:300]
            )
            await self._sending.refused(planned, QueueFull(message, queued_tokens=queued_tokens_in(message)))
            return
        self._listener(Event("batch_failed", f"batch {batch.id} failed: {message}", "warning", {"batch": batch.id}))
        if problem is not None and problem.remedy is not None:
            await self._sending.drop(planned, message)
            raise NeedsHuman(f"batch {batch.id} failed: {message}", remedy=problem.remedy)
        line, code = (problem.line, problem.code) if problem is not None else (None, None)
        await self._sending.part(planned, RefusedChunk(message, line=line, code=code))
