"""The end of a run: what only a complete pass may do, the checks of its counts, and its summary."""

from __future__ import annotations

from datetime import UTC, datetime

from batchchat.errors import BatchchatError, StoppedEarly, StorageError
from batchchat.events import Event, RunSummary
from batchchat.format import plural
from batchchat.runner.run_summary import Figures, plain
from batchchat.runner.state import RunState
from batchchat.store import StoreChange, earlier_prompts

SHARED_ANSWERS = "answers"
"""The scratch folder for answers that equal requests of one pass share (`dedupe`)."""


class Ending:
    """Ends a run whose engine has ended and whose outcomes are durable."""

    def __init__(self, run: RunState, figures: Figures) -> None:
        self._run = run
        self._figures = figures

    async def end(self) -> RunSummary:
        """Archive, check and count what a run leaves; return its summary, which is appended to the output's runs."""
        run = self._run
        error = run.writer.error or run.engine.halt or run.failed
        if isinstance(error, StoppedEarly) and self._nothing_left():
            error = None  # the deadline came when nothing was left to do
        if run.engine.answered and run.writer.error is None:
            try:
                await run.offload(run.wording.answered)
            except StorageError as failed:
                error = error or failed
        complete = run.read_all and error is None and not run.control.asked and run.prepared.selection.whole
        if complete:
            error = await self._complete_pass()
        # A run that ended early has not seen every row, and the summary says how many are open.
        if not run.read_all:
            await self._count_rest()
        if not complete and run.writer.error is None and run.store.counts().kept:
            await self._count_earlier()
        run.warnings += [
            *run.prepared.warnings,
            *run.prepared.first_empty,
            *run.prepared.source.warnings,
            *run.tally.remarks(),
        ]
        if run.budget is not None and run.budget.unmetered:
            run.warnings.append(
                f"{plural(run.budget.unmetered, 'answer')} came without usage: their tokens and cost are not known, "
                "and the budget was charged what was reserved for them"
            )
        if run.reuse is not None:
            run.warnings += run.reuse.remarks()
        run.phase = "ended"
        summary = self._figures.summary(error)
        if run.writer.error is None:
            ended = {**plain(summary), "ended_at": datetime.now(UTC).isoformat(timespec="seconds")}
            try:
                await run.offload(run.store.runs.append_run, ended)
            except StorageError as failed:
                summary = self._figures.summary(failed)
        return summary

    def _nothing_left(self) -> bool:
        """Return true if every sample of the pass that this run had to settle is settled."""
        run = self._run
        counts, tally = run.intake.counts, run.tally
        settled = tally.ok + tally.failed + tally.revived - tally.early
        return run.read_all and settled == counts.to_send + counts.archived + counts.invalid

    async def _count_rest(self) -> None:
        """Count the rows that were not read any more, so that the number of open rows is exact."""
        run = self._run
        try:
            rows: int = await run.offload(run.prepared.source.count_rows)
        except BatchchatError:
            return  # standard input can be read only once
        most = run.options.most_rows
        run.counted = rows if most is None else min(rows, most)

    async def _count_earlier(self) -> None:
        """Count the records of rows outside of this pass that answer another prompt than the job's.

        Only a pass over a part of the input leaves any: after a complete one, such rows are no longer in the input.
        """
        run = self._run
        found: int = await run.offload(earlier_prompts, run.store.directory, run.prompt_id)
        # A row whose request did not change keeps its record, and with it the digest of the earlier text.
        run.earlier_prompt = min(found, run.store.counts().kept)

    async def _complete_pass(self) -> BatchchatError | None:
        """Archive what the input no longer yields, which only a complete pass can know, and check the counts."""
        run = self._run
        if run.options.prune or (run.job.input.key is None and run.wording.mixed):
            self._tell_archived(await run.offload(run.store.archive_unseen), "that the input no longer yields")
        elif run.store.counts().kept:
            change = await run.offload(run.store.archive_surplus, run.job.samples)
            self._tell_archived(change, "beyond the job's `samples`")
        run.store.drop_answers()
        # Answers that equal rows share are of no use once every row has its own record.
        shared = run.store.location.scratch(SHARED_ANSWERS)
        if shared.exists():
            from batchchat.cache import remove_cache

            await run.offload(remove_cache, shared)
        await run.offload(run.wording.settle)
        return await self._check_counts()

    def _tell_archived(self, change: StoreChange, which: str) -> None:
        run = self._run
        run.store.apply(change)
        if change.removed:
            run.tell(Event("archived", f"{plural(len(change.removed), 'record')} {which} went to the archive"))

    async def _check_counts(self) -> BatchchatError | None:
        """Return an error unless rows * samples = ok + failed + skipped, and dataset = ok + failed + kept."""
        run = self._run
        counts, rows, samples = run.store.index.counts(), run.intake.counts.rows, run.job.samples
        skipped = run.intake.counts.skipped
        stored = await run.offload(run.store.stored_rows)
        if counts.seen + skipped == rows * samples and counts.live == stored:
            return None
        each = f" for {samples} samples each" if samples > 1 else ""
        settled = f"{rows} rows read{each}, {counts.seen} settled, {skipped} skipped"
        return BatchchatError(
            f"the counts do not agree: {settled}; {counts.live} records known, {stored} stored",
            remedy=f"Run `batchchat verify {run.job.output.path}` and report what it says.",
        )
