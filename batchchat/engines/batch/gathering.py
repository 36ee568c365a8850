"""Gathering what batches answered: files are read until they are whole, answers are counted, and then files removed.

A chunk is let go only when every answer of it is durable in the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial

import anyio

from batchchat.engines.batch.building import Planned
from batchchat.engines.batch.chunks import ChunkReader, downloads, remove_files
from batchchat.engines.batch.creation import Creation, Patience
from batchchat.engines.batch.harvest import Harvest, Owner
from batchchat.engines.batch.ledger import ChunkState
from batchchat.engines.batch.service import BatchStatus, Gone, RemoteBatch, TornLine, Unavailable
from batchchat.engines.batch.setting import Means
from batchchat.engines.port import Sink
from batchchat.errors import BatchchatError
from batchchat.events import Event

_READS = 4
"""Downloads of a file that is cut or damaged, before it is taken as it is."""
_LOOKS = 6
"""Looks, one poll apart, at a batch that is `completed` and tells of fewer requests than it was asked.

Result files were seen to be named some minutes after the batch was `completed`.
"""
_WHY = {
    BatchStatus.EXPIRED: "batch_expired: the time of the batch was over",
    BatchStatus.CANCELLED: "batch_cancelled",
    BatchStatus.FAILED: "the batch failed",
    BatchStatus.COMPLETED: "the results have no line of it",
}


class Gathering:
    """Reads the results of chunks. `owner` says what becomes of a request that has no completion."""

    def __init__(self, means: Means, creation: Creation, patience: Patience, owner: Owner, sink: Sink) -> None:
        self._service = means.service
        self._setting = means.setting
        self._terms = means.terms
        self._listener = means.listener
        self._wall_clock = means.wall_clock
        self._offload = means.offload
        self._creation = creation
        self._patience = patience
        self._owner = owner
        self._sink = sink

    async def gather(self, planned: Planned, batches: Sequence[RemoteBatch], why: str | None = None) -> Harvest | None:
        """Settle the requests of a chunk by what its batches answered; return None if the disk failed.

        `why` says why nothing is left to read of it, if the provider does not know it any more.
        """
        state = await self._creation.note(planned.state, "harvesting")
        reader: ChunkReader = await self._offload(ChunkReader, self._setting.folder, state.name)
        earlier = state.run_id != self._setting.asker.run_id
        if self._terms.leave_open and state.prompt_id == self._setting.asker.prompt_id:
            earlier = False  # nothing is read of the input, so that no pass can ask for it
        harvest = Harvest(
            state.name,
            reader,
            self._sink,
            self._owner,
            self._terms,
            planned.hold,
            of_prompt=state.prompt_id if earlier else None,
            prompt_id=self._setting.asker.prompt_id,
            asked_at=int((state.created_at or state.planned_at) * 1_000_000),
            wall_clock=self._wall_clock,
            offload=self._offload,
        )
        try:
            for batch in batches:
                await self._read_whole(harvest, batch)
            status = batches[0].status if batches else BatchStatus.UNKNOWN
            counts = await harvest.finish(why or _WHY.get(status, "the provider does not know the batch any more"))
            # Only then may the provider's files go: they are the only copy of what is not on the disk.
            if not await self._sink.counted():
                return None
        finally:
            reader.close()
        told = {name: number for name, number in asdict(counts).items() if number}
        state = await self._creation.note(state, "harvested", harvest=told)
        words = ", ".join(f"{number:,} {name}" for name, number in told.items())
        fields = {"batch": state.batch, "chunk": state.number, **told}
        self._listener(Event("batch_harvested", f"batch {state.batch} is harvested: {words}", "info", fields))
        if not self._setting.keep_files:
            refs = [state.ref, *(ref for batch in batches for ref in batch.result_refs)]
            await self._delete([ref for ref in refs if ref])
        await self.clean(state)
        return harvest

    async def _read_whole(self, harvest: Harvest, batch: RemoteBatch) -> None:
        """Read a batch until its files tell of every request, or it was looked at often enough."""
        await self._read(harvest, batch)
        refs, looks = batch.result_refs, 0
        while batch.status is BatchStatus.COMPLETED and harvest.missing and not harvest.extra_batch(batch.id):
            # Read once more, as files may have grown under the same name.
            if looks == _LOOKS:
                await self._read(harvest, batch)
                return
            looks += 1
            await self._patience.rest(self._setting.repeat_s)
            found = await self._patience(partial(self._service.poll, [batch.id]), "a look at a batch")
            batch = found.get(batch.id, batch)
            if batch.result_refs != refs:
                refs = batch.result_refs
                await self._read(harvest, batch)

    async def _read(self, harvest: Harvest, batch: RemoteBatch) -> None:
        """Read the files of a batch, again if they are cut."""
        scratch = downloads(self._setting.folder)
        what = f"the results of batch {batch.id}"
        for tries in range(1, _READS + 1):
            try:
                await self._patience(lambda: harvest.read(self._service, batch, scratch), what)
                return
            except Gone as error:
                self._listener(Event("batch_gone", f"{what} are gone: {error}", "warning", {"batch": batch.id}))
                return
            # Every line that could be read was taken: reading again counts each once.
            except TornLine as error:
                if tries == _READS:
                    message = f"{what} stay damaged: {error}; what cannot be read is asked for again"
                    self._listener(Event("batch_damaged", message, "warning", {"batch": batch.id}))
                    return
                await self._patience.rest(self._setting.repeat_s)

    async def cancel(self, batch_id: str) -> None:
        """Ask the provider to cancel a batch."""
        with suppress(Gone):
            await self._patience(lambda: self._service.cancel(batch_id), f"the cancelling of batch {batch_id}")

    async def _delete(self, refs: list[str]) -> None:
        """Delete the provider's copies of our files. If that fails, they stay: nothing depends on it."""
        try:
            await self._service.delete(refs)
        except (Unavailable, Gone, BatchchatError) as error:
            self._listener(Event("batch_files_kept", f"files at the provider could not be deleted: {error}", "warning"))

    async def clean(self, state: ChunkState) -> None:
        """Remove the files of a chunk whose answers are counted, or which was dropped."""
        with anyio.CancelScope(shield=True):
            await self._offload(remove_files, self._setting.folder, state.name)
        await self._creation.note(state, "cleaned")
        self._creation.forget(state)
