"""The figures of a run: a snapshot while it goes on, and the summary at its end."""

from __future__ import annotations

import shlex
from dataclasses import fields, is_dataclass, replace
from typing import Any

import anyio

from batchchat.engines.quota import DayUsedUp
from batchchat.errors import BatchchatError
from batchchat.events import Event, FailureGroup, Forecast, Phase, RunSummary, Snapshot
from batchchat.format import money, one_line, short
from batchchat.providers import DEMO
from batchchat.runner.state import RunState

_OLDEST = 8
"""Requests in flight that a snapshot names: as many as fit below a progress display of 24 lines."""


class Figures:
    """Reads the parts of a run and returns its figures. It changes nothing."""

    def __init__(self, run: RunState) -> None:
        self._run = run

    def snapshot(self) -> Snapshot:
        """Return the counts of the run now."""
        run = self._run
        tally, counts, progress = run.tally, run.intake.counts, run.engine.progress(_OLDEST)
        total, exact = self._total()
        # What a batch of an earlier run answered is counted by the tally, and found done by the pass.
        done = max(0, counts.done - tally.early)
        settled = tally.ok + tally.failed + tally.revived + done + counts.failed_before + counts.skipped
        rate, now = tally.rows.per_s, anyio.current_time()
        return Snapshot(
            run_id=run.run_id,
            job=run.job.name,
            phase=self._phase(),
            samples=run.job.samples,
            elapsed_s=now - run.started,
            total=total,
            total_exact=exact,
            ok=tally.ok,
            failed=tally.failed,
            done_before=done + tally.revived,
            failed_before=counts.failed_before,
            sending=progress.sending,
            waiting=progress.waiting,
            attempts=progress.attempts,
            retries=progress.retries,
            rate_limited=progress.rate_limited,
            spend=tally.spend,
            currency=run.currency,
            rows_per_s=rate,
            tokens_per_s=tally.tokens.per_s,
            eta_s=max(0, total - settled) / rate if total is not None and rate > 0 else None,
            failures=tally.failures(),
            pace=progress.pace,
            oldest=progress.oldest,
            budget=run.budget.use() if run.budget else None,
            forecast=self._forecast(max(0, total - settled)) if total is not None else None,
            cache_hits=tally.shared,
            prompt_id=run.prompt_id,
            steering=run.control.steering,
            uncommitted=run.writer.uncommitted,
            commit_lag_s=run.writer.lag_s(now),
            skipped=counts.skipped,
        )

    def _forecast(self, left: int) -> Forecast | None:
        """Return what the run will have used when `left` more samples are settled."""
        run = self._run
        tally = run.tally
        return run.forecaster.forecast(settled=tally.ok + tally.failed, asked=tally.asked, spend=tally.spend, left=left)

    def _phase(self) -> Phase:
        """Return the phase that is shown: an engine that halts drains, and a person may have paused the run."""
        run = self._run
        if run.phase != "running":
            return run.phase
        if run.engine.halt is not None:
            return "draining"
        return "paused" if run.control.paused else "running"

    def _total(self) -> tuple[int | None, bool]:
        """Return how many samples the pass has, and whether that is exact or an estimate by the share that was read."""
        rows, exact = self._total_rows()
        return None if rows is None else rows * self._run.job.samples, exact

    def _total_rows(self) -> tuple[int | None, bool]:
        run = self._run
        seen, source, options = run.intake.counts.rows, run.prepared.source, run.options
        # The whole input was read: this is a count, and no estimate.
        if run.read_all:
            return seen, True
        shards = run.prepared.shards
        # The source counts the rows of all shards, and this run has some of them.
        if shards is not None and not shards.whole:
            return self._rows_of_shards(len(shards.chosen) / shards.count), False
        if run.counted is not None:
            return run.counted, True
        known = source.known_rows()
        if known is None:
            share = source.fraction()
            # The first rows of a file are too few to estimate from.
            if share <= 0.001 or seen == 0:
                return None, False
            known, exact = round(seen / share), False
        else:
            exact = True
        known = known if options.most_rows is None else min(known, options.most_rows)
        return max(known, seen), exact

    def _rows_of_shards(self, share: float) -> int | None:
        """Estimate how many rows of the pass are in the shards of this run: keys spread evenly over all shards."""
        run = self._run
        known = run.counted if run.counted is not None else run.prepared.source.known_rows()
        if known is None:
            read = run.prepared.source.fraction()
            counts = run.intake.counts
            known = round((counts.rows + counts.elsewhere) / read) if read > 0.001 else None
        if known is None:
            return None
        most = run.options.most_rows
        return max(round((known if most is None else min(known, most)) * share), run.intake.counts.rows)

    def summary(self, error: BatchchatError | None) -> RunSummary:
        """Return how the run ended; `error` is why it ended early, if it did."""
        run = self._run
        counts, tally, intake = run.store.index.counts(), run.tally, run.intake.counts
        progress = run.engine.progress()
        total, _ = self._total_rows()
        rows = total if total is not None else intake.rows
        failed = sum(counts.seen_failed.values())
        reason, remedy, code = None, None, 1 if failed else 0
        # Who stops a run that has failed must still read why it failed.
        if error is not None:
            reason, remedy, code = error.message, error.remedy, error.exit_code
        elif run.control.asked:
            reason, code = run.control.reason, run.control.exit_code or 1
        resets_at = error.resets_at if isinstance(error, DayUsedUp) else None
        elapsed = anyio.current_time() - run.started
        left = max(0, rows * run.job.samples - counts.seen - intake.skipped)
        reopened = failed and any(kind in run.job.retry.reopens() for kind in counts.seen_failed)
        return RunSummary(
            run_id=run.run_id,
            job=run.job.name,
            output=run.job.output.path,
            provider=run.provider.name,
            model=run.job.model,
            exit_code=code,
            reason=reason,
            remedy=remedy,
            resets_at=resets_at.isoformat() if resets_at is not None else None,
            elapsed_s=elapsed,
            rows=rows,
            samples=run.job.samples,
            ok=counts.seen_ok,
            failed=failed,
            open=left,
            skipped=intake.skipped,
            kept=counts.kept,
            new_ok=tally.ok,
            new_failed=tally.failed,
            revived=tally.revived,
            sent=progress.attempts,
            retries=progress.retries,
            rate_limited=progress.rate_limited,
            corrections=progress.corrections,
            spend=tally.spend,
            spend_total=run.store.ledger_total(),
            currency=run.currency,
            rows_per_s=(tally.ok + tally.failed) / elapsed if elapsed > 0 else 0.0,
            failures=self._failures(),
            warnings=tuple(run.warnings),
            note=run.provider.note if run.provider.name == DEMO else "",
            resume=run.options.command if left or reopened else None,
            budget=run.budget.use() if run.budget else None,
            forecast=self._forecast(0),
            cache_hits=tally.shared,
            streamed=tally.streamed,
            prompt_id=run.prompt_id,
            earlier_prompt=run.earlier_prompt,
            retry=self._retry(),
            answered_by=tally.answered_by(),
            steps=tally.steps.shares(),
        )

    def _retry(self) -> str | None:
        """Return the command that tries again the failed rows that a next run leaves as they are."""
        run = self._run
        reopened = run.job.retry.reopens()
        kinds = [kind.value for kind in run.store.index.counts().seen_failed if kind not in reopened]
        # A run from Python has no command that could be repeated.
        if run.options.command is None or not kinds:
            return None
        words = shlex.split(run.options.command)
        words = [word for word in words if word.partition("=")[0] != "--retry-failed"]
        return shlex.join([*words, f"--retry-failed={','.join(sorted(kinds))}"])

    def _failures(self) -> tuple[FailureGroup, ...]:
        """Failed rows of the pass by kind; this run's examples, and the count alone where an earlier run had them."""
        run = self._run
        groups = {group.kind: group for group in run.tally.failures()}
        found = []
        for kind, number in run.store.index.counts().seen_failed.items():
            group = groups.get(kind.value)
            example = FailureGroup(kind.value, number, "(in an earlier run; `batchchat show --failed` tells)")
            found.append(replace(group, count=number) if group else example)
        return tuple(sorted(found, key=lambda group: -group.count))


def correction_event(forecast: Forecast, currency: str | None) -> Event:
    """Return the event that tells how far off the guess by size was."""
    now, guess = f"{short(forecast.tokens)} tokens", f"{short(forecast.guessed_tokens)} tokens"
    if forecast.cost is not None:
        now, guess = (
            f"{money(forecast.cost, currency)} and {now}",
            f"{money(forecast.guessed_cost, currency)} and {guess}",
        )
    message = f"after {forecast.answers} answers: about {now} at the end, where {guess} were estimated by size"
    return Event("estimate_corrected", message, "info", {**plain(forecast), "currency": currency})


_REMEDIES = {
    "input": "Look at the rows of the input.",
    "template": "Test for null in the template: `{% if column %}…{% endif %}`.",
    "truncated": "`response: {truncated: {retry_with_max_tokens: N}}` asks such rows once more.",
    "invalid_output": "Make the schema simpler, or name the fields and their values in the prompt.",
    "refusal": "Change the prompt: the model refuses to answer it.",
    "content_filter": "A filter of the provider stops these rows: look at some of them.",
    "invalid_request": "The provider refuses these requests: its message says why.",
    "timeout": "Raise retry.request_timeout, or lower limits.concurrency.",
    "rate_limit": "Set limits that the provider grants.",
}
"""What helps against failures in masses, by their kind; what is not here goes away by itself, or stops the run."""


def remedy_of(kind: str) -> str:
    """Return what helps against many failures of a kind."""
    return _REMEDIES.get(kind, "Look at the provider, and at the address in the job.")


def alike_event(group: FailureGroup, settled: int) -> Event:
    """Return the event that tells early of rows that fail alike."""
    remedy = remedy_of(group.kind)
    message = (
        f"{group.count} of the first {settled} rows failed alike ({group.kind}): row {group.row_index}: "
        f"{_beginning(group.example)}. {remedy} The run goes on; Ctrl-C stops it"
    )
    fields = {"error_kind": group.kind, "failed": group.count, "settled": settled, "remedy": remedy}
    return Event("failing_alike", message, "warning", fields)


def _beginning(text: str) -> str:
    """Return the beginning of a message, without a full stop at its end."""
    return one_line(text, 160).rstrip(".")


def plain(view: Any) -> dict[str, Any]:
    """Return a frozen view as JSON values; named tuples by their fields' names."""
    value: dict[str, Any] = _plain(view)
    return value


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(each) for name, each in value._asdict().items()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value
