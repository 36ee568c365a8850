"""Creating the batch of a chunk at most once.

The ledger knows of each step before it is taken. If nobody can tell whether a `create` was carried out (its answer was
lost, or this process died just then), the provider's list is looked at, again and again for a bounded time since lists
may lag: a batch that is found there is taken, a second one is cancelled. Only when nothing is found is it created anew.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import anyio

from batchchat.engines.batch.chunks import LINES
from batchchat.engines.batch.ledger import ChunkState, Ledger, Step
from batchchat.engines.batch.service import (
    BatchStatus,
    Gone,
    OutcomeUnknown,
    RemoteBatch,
    Unavailable,
)
from batchchat.engines.batch.setting import Means
from batchchat.errors import ProviderUnavailable
from batchchat.events import Event, Listener

_LOOKS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""When the list is looked at for a batch whose creation is uncertain: waits between looks, in polls.

With the usual 30 s between polls the last look is four minutes after the first. OpenAI-like lists were seen to lag by
some seconds; a batch that shows up later still is found when its chunk is harvested.
"""
_MORE_LOOKS = 3
"""Gone uploads that are made again before it is an error: a provider may need a moment until a file can be used."""
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 60.0

_Result = TypeVar("_Result")


class RunEnds(Exception):
    """The run is to end, and what was asked was not done."""


class Patience:
    """Waits while a provider cannot be reached, with growing waits.

    `outage` is after how many seconds the wait is given up. `rest` waits for some seconds, and raises RunEnds if the
    run is to end before.
    """

    def __init__(self, outage: float, listener: Listener, rest: Callable[[float], Awaitable[None]]) -> None:
        self._outage = outage
        self._listener = listener
        self.rest = rest

    async def __call__(self, ask: Callable[[], Awaitable[_Result]], what: str) -> _Result:
        """Return what `ask` returns. Raises ProviderUnavailable, RunEnds, and what else `ask` raises."""
        since: float | None = None
        wait = _FIRST_WAIT_S
        while True:
            try:
                return await ask()
            except Unavailable as error:
                now = anyio.current_time()
                if since is None:
                    since = now
                    self._listener(Event("batch_waits", f"{what}: {error}; it is tried again", "warning"))
                # Counted from the first failure of this call, since a batch needs no provider while it waits.
                if now - since > self._outage:
                    raise ProviderUnavailable(
                        f"{what} has failed for {now - since:.0f} s: {error}",
                        remedy="Run the same command again later: batches that are under way go on by themselves.",
                    ) from error
                await self.rest(max(wait, min(error.retry_after or 0.0, 3600.0)))
                wait = min(wait * 2, _LONGEST_WAIT_S)


class Creation:
    """Uploads chunks and creates their batches."""

    def __init__(self, means: Means, ledger: Ledger, patience: Patience) -> None:
        self.patience = patience
        self._ledger = ledger
        self._service = means.service
        self._setting = means.setting
        self._listener = means.listener
        self._wall_clock = means.wall_clock
        self._offload = means.offload

    async def note(self, state: ChunkState, step: str, **told: Any) -> ChunkState:
        """Write a step down, durably. It is not cut short by a cancellation."""
        with anyio.CancelScope(shield=True):
            noted: ChunkState = await self._offload(_note, self._ledger, state.number, step, self._wall_clock(), told)
        return noted

    def forget(self, state: ChunkState) -> None:
        """Let go of a chunk that is cleaned up."""
        self._ledger.forget(state.number)

    def latest(self, state: ChunkState) -> ChunkState:
        """Return what the ledger says of a chunk by now."""
        return self._ledger.chunks[state.number]

    async def note_state(self, state: ChunkState, batch: RemoteBatch) -> ChunkState:
        """Write down what the provider tells of a batch, if it is news."""
        noted: ChunkState = await self._offload(_note_state, self._ledger, state.number, batch, self._wall_clock())
        return noted

    async def create(self, state: ChunkState) -> ChunkState:
        """Upload a chunk's file and create its batch; return the chunk's state then.

        Raises QueueFull, ChunkTooLarge or BadLine if the provider refuses it, ProviderUnavailable, and what the service
        raises for a person to act on. Then it is certain, and noted, that there is no batch.
        """
        for again in range(_MORE_LOOKS):
            state = await self._upload(state)
            state = await self.note(state, "creating", tries=state.tries + 1)
            ref = state.ref or ""
            try:
                labels = labels_of(state)
                batch = await self.patience(partial(self._service.create, ref, labels), "the creation of a batch")
            except OutcomeUnknown as error:
                self._listener(Event("batch_uncertain", f"{state.name}: {error}; looking for the batch", "warning"))
                found = await self.settle(state)
                if found is not None:
                    return found
                # `settle` has noted that there is no batch, so the next try is a new one.
                state = self._ledger.chunks[state.number]
            except Gone:
                state = await self.note(state, "not_created", ref=None)
                if again == _MORE_LOOKS - 1:
                    raise
                await self.patience.rest(self._setting.repeat_s)
            except BaseException as error:
                if not isinstance(error, Exception):
                    raise  # cancelled in the middle: the next run looks
                await self.note(state, "not_created", reason=str(error)[:300])
                raise
            else:
                return await self._created(state, batch)
        raise ProviderUnavailable(
            f"{state.name}: the provider takes the file and then does not create its batch",
            remedy="Look at the provider's list of batches, then run the same command again.",
        )

    async def _upload(self, state: ChunkState) -> ChunkState:
        # A run before this one has uploaded it. If the file is gone by now, `create` says so.
        if state.step >= Step.UPLOADED and state.ref is not None:
            return state
        state = await self.note(state, "uploading")
        name = f"{state.name}{LINES}"
        upload = partial(self._service.upload, name, self._setting.folder / name)
        ref = await self.patience(upload, f"the upload of {name}")
        return await self.note(state, "uploaded", ref=ref)

    async def _created(self, state: ChunkState, batch: RemoteBatch) -> ChunkState:
        state = await self.note(
            state,
            "created",
            batch=batch.id,
            created_at=batch.created_at or self._wall_clock(),
            expires_at=batch.expires_at,
            status=batch.status.value,
        )
        message = f"batch {batch.id} created: {state.lines:,} requests ({state.name})"
        self._listener(Event("batch_created", message, "info", {"batch": batch.id, "chunk": state.number}))
        return state

    async def settle(self, state: ChunkState) -> ChunkState | None:
        """Find out whether the batch of a chunk was created. Return None, noted, if it was not."""
        for wait in _LOOKS:
            await self.patience.rest(wait * self._setting.repeat_s)
            found = await self.find(state)
            if found:
                first, *others = found
                state = await self._created(state, first)
                for other in others:
                    state = await self.cancel_surplus(state, other.id)
                return state
        await self.note(state, "not_created", unsure=True)
        return None

    async def find(self, state: ChunkState) -> list[RemoteBatch]:
        """Return the batches of a chunk that the provider's list holds now, save those that are known to be dead.

        Each try to create one had labels of its own.
        """
        ref = state.ref or ""
        found: dict[str, RemoteBatch] = {}
        for tries in range(1, max(1, state.tries) + 1):
            ask = partial(self._service.find, ref, labels_of(replace(state, tries=tries)), state.planned_at)
            for batch in await self.patience(ask, "the list of batches"):
                # One that failed and answered nothing is no reason not to create another.
                if batch.status is not BatchStatus.FAILED or batch.result_refs:
                    found.setdefault(batch.id, batch)
        return list(found.values())

    async def cancel_surplus(self, state: ChunkState, batch_id: str) -> ChunkState:
        """Cancel a batch that is one too many. It is noted first, so that what it answers all the same is counted."""
        state = await self.note(state, "surplus", batch=batch_id)
        message = f"batch {batch_id} is a second one for the same requests: it is cancelled"
        self._listener(Event("batch_surplus", message, "warning", {"batch": batch_id, "chunk": state.number}))
        with suppress(Gone):
            await self.patience(lambda: self._service.cancel(batch_id), f"the cancelling of batch {batch_id}")
        return state


def labels_of(state: ChunkState) -> dict[str, str]:
    """Return what a batch says of itself at the provider, so that it can be found there."""
    return {
        "batchchat_job": state.name.rsplit("-", 3)[0][:100],
        "batchchat_chunk": str(state.number),
        "batchchat_nonce": f"{state.nonce}-{state.tries}" if state.tries > 1 else state.nonce,
        "batchchat_digest": state.digest,
        "batchchat_run": state.run_id,
    }


def _note(ledger: Ledger, number: int, step: str, at: float, told: dict[str, Any]) -> ChunkState:
    return ledger.note(number, step, at=at, **told)


def _note_state(ledger: Ledger, number: int, batch: RemoteBatch, at: float) -> ChunkState:
    return ledger.note_state(number, batch, at=at)
