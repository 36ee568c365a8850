"""The feed of a run: from the rows of the input to the requests that are still to be sent."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import anyio.lowlevel

from batchchat.acceptance import Accept, AskAgain, Escalate, Fail, go_on, resume
from batchchat.engines.port import Settled
from batchchat.errors import BatchchatError, StorageError
from batchchat.records import Request
from batchchat.runner.rows import Archived, Rows
from batchchat.runner.state import RunState

_SLICE = 64
"""Rows that are sorted before other tasks get their turn: under a millisecond of work. Chosen, not measured."""


class RequestFeed:
    """Yields the requests of a run to its engine, and settles the rows that need no request."""

    def __init__(self, run: RunState) -> None:
        self._run = run

    async def requests(self) -> AsyncGenerator[list[Request], None]:
        """Yield lists of requests until the input ends, and note in the run's state how far it was read."""
        run = self._run
        rows = Rows(run.prepared, run.store.known)
        batches = iter(rows)
        archived = Archived()
        while True:
            try:
                batch, known = await run.offload(next, batches, (None, None), abandon=True)
            except BatchchatError as error:
                # The input broke in the middle: what was read goes on, the rest stays open.
                run.failed = error
                return
            if batch is None or run.prepared.selection.past(batch.first_index):
                break
            rows.begin(batch)
            for found in run.intake.slices(batch, _SLICE, known):
                rows.add(found)
                for invalid in found.invalid:
                    run.writer.add_invalid(invalid)
                archived.add(found.archived)
                for custom_id in found.reopened:
                    run.engine.failed_before(custom_id)
                requests = self._resumed(found.requests) if run.open_answers else found.requests
                if run.reuse is not None:
                    try:
                        requests = await run.reuse.sift(requests)
                    except StorageError as error:
                        run.engine.halt_for(error)
                        return
                run.forecaster.add(requests)
                yield requests
                # Sorting is blocking work: others get their turn between slices.
                await anyio.lowlevel.checkpoint()
                if archived.full:
                    yield await self._revive(archived.requests)
                    archived = Archived()
            rows.end(batch)
            if rows.full:
                await run.offload(rows.flush)
        yield await self._revive(archived.requests)
        run.failed = self._cut_short()
        if run.failed is None:
            rows.finish()
            run.read_all = True

    def _cut_short(self) -> StorageError | None:
        """Return an error if the input promised another number of rows than it gave, None if the pass is whole."""
        run = self._run
        source = run.prepared.source
        promised, counts = source.known_rows(), run.intake.counts
        read = counts.rows + counts.elsewhere
        # Only a pass over everything must meet what was promised: one with a limit ends before.
        if promised is None or promised == read or not run.prepared.selection.whole:
            return None
        return StorageError(
            f"the input {run.job.input.path} promised {promised:,} rows and gave {read:,}: it was cut or changed "
            "while it was read",
            remedy="Restore it, then run the same command again: it goes on where it stopped. Nothing was archived.",
        )

    def _resumed(self, requests: list[Request]) -> list[Request]:
        """Go on from the answers that an earlier run kept; return what is still to be sent."""
        run = self._run
        left = []
        for request in requests:
            answers = run.open_answers.pop(request.custom_id, [])
            payloads = [answer.payload for answer in answers]
            found = resume(request, payloads, run.prepared.acceptance, run.tariff) if answers else None
            if found is not None:
                reply, decision = found
                # The answer was good, and the run ended between the answer and its record: nothing is sent.
                if isinstance(decision, Accept):
                    run.sink.put(
                        Settled(request, reply, None, decision.parsed, decision.tolerated, decision.confidence)
                    )
                    continue
                if isinstance(decision, Fail):
                    run.sink.put(Settled(request, reply, decision.failure))
                    continue
                if isinstance(decision, Escalate):
                    run.prepared.acceptance.escalate(request, reply, decision)
                elif isinstance(decision, AskAgain):
                    go_on(request, reply, decision)
            left.append(request)
        return left

    async def _revive(self, requests: list[Request]) -> list[Request]:
        """Take answers back from the archive: going back to an earlier prompt costs nothing.

        Returns the requests whose answer the archive lost by damage: they are asked again.
        """
        run = self._run
        if not requests:
            return []
        outcomes = await run.offload(run.store.fetch_archived, [request.custom_id for request in requests])
        lost = [request for request in requests if request.custom_id not in outcomes]
        for request in requests:
            if request.custom_id in outcomes:
                run.writer.add_revived(request, outcomes[request.custom_id])
            else:
                # The index must not promise an answer that is not there.
                run.store.index.forget_archived(request.custom_id)
        return lost
