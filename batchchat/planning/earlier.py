"""What the records of an output teach of the next run into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from batchchat.events import StepShare
from batchchat.job import Job
from batchchat.limits import FIRST_COMPLETION
from batchchat.records import Spend
from batchchat.runner.step_shares import STEP_COLUMNS, StepShares, count_steps, taken_below
from batchchat.store import Output, read_state
from batchchat.store.index import KeyIndex, RecordIndex
from batchchat.store.known import KnownRows, Pass

_EXPECTED_LATENCY_S = 2.0
"""Seconds of an answer before any is there. Chosen; the plan says that it is a guess."""


class EarlierRuns:
    """What an earlier run into the same output teaches: what is done, how long answers are, how long they take.

    `known` are the rows that it knew, if they may be passed over. `others` counts the records of another prompt.
    """

    def __init__(self, directory: Path | str, *, fresh: bool, job: Job, following: Pass | None, prompt_id: str) -> None:
        self.known: KnownRows | None = None
        self.index, self.keys = RecordIndex(), KeyIndex() if job.input.key is not None else None
        self.prompt_ratio, self.completion, self.latency_s = 1.0, FIRST_COMPLETION, _EXPECTED_LATENCY_S
        self.method = (
            "prompt tokens by size (4 characters a token in Latin script, 3 bytes otherwise), "
            f"{FIRST_COMPLETION:g} tokens an answer or max_tokens if less, {_EXPECTED_LATENCY_S:g} s an answer; "
            "corrected by what was really used once there are answers"
        )
        self.spent = Spend()
        self.surplus = self.others = self.below = 0
        self.shares: tuple[StepShare, ...] = ()
        # A fresh run begins an empty output: what is there teaches nothing of it.
        if fresh:
            return
        output = read_state(directory)
        self.known = None if following is None else output.known(following)
        self.index, self.keys = output.load_index(with_keys=job.input.key is not None, known=self.known)
        if self.known is not None:
            self.known.look_up(self.index, self.keys)
        self.spent = output.spend
        answered, completion, latency = 0, 0, 0.0
        # An output of an earlier version has no such column.
        by_prompt = ["prompt_id"] if "prompt_id" in output.own_columns else []
        for batch in output.records(["status", "completion_tokens", "latency_s", "sample_index", *by_prompt]):
            if by_prompt:
                self.others += pc.not_equal(batch.column("prompt_id"), prompt_id).true_count
            self.surplus += pc.sum(pc.greater_equal(batch.column("sample_index"), job.samples)).as_py() or 0
            status, tokens, seconds = (batch.column(name) for name in ("status", "completion_tokens", "latency_s"))
            told = pc.and_(pc.equal(status, "ok"), pc.and_(pc.is_valid(tokens), pc.is_valid(seconds)))
            answered += pc.sum(told).as_py() or 0
            completion += pc.sum(tokens.filter(told)).as_py() or 0
            latency += pc.sum(seconds.filter(told)).as_py() or 0.0
        if job.cascade:
            self._look_at_steps(output, job)
        # Without one answer the guesses stay, and the plan says that they are guesses.
        if answered:
            self.completion, self.latency_s = completion / answered, latency / answered
            size = "prompt tokens by size (4 characters a token in Latin script, 3 bytes otherwise)"
            ratio = _prompt_ratio(output.runs)
            if ratio is not None:
                self.prompt_ratio = ratio
                size += f" times {ratio:.2f}, which they were in the last run"
            self.method = f"{size}; length and time of an answer from the {answered:,} answers that are here"

    def _look_at_steps(self, output: Output, job: Job) -> None:
        """Count how far the records here went in a cascade, and what today's thresholds would not have taken."""
        # An output that was made before the job had a cascade.
        if not set(STEP_COLUMNS) <= set(output.own_columns):
            return
        shares = StepShares([step.model for step in job.cascade])
        for batch in output.records(["status", "cost", *STEP_COLUMNS]):
            count_steps(batch, shares)
        self.shares = shares.shares()
        self.below = taken_below(
            output, [None if step.accept is None else step.accept.confidence for step in job.cascade]
        )

    def close(self) -> None:
        """Let go of the output's files."""
        if self.known is not None:
            self.known.trail.close()


def _prompt_ratio(runs: Sequence[Mapping[str, Any]]) -> float | None:
    """How many prompt tokens were billed for each one that was guessed, in the last run that had enough answers."""
    for run in reversed(runs):
        forecast = run.get("forecast")
        if isinstance(forecast, dict) and forecast.get("corrected"):
            ratio = forecast.get("prompt_ratio")
            # A ratio out of reason, from another version or by hand, would spoil every figure of the plan.
            return ratio if isinstance(ratio, float) and 0.01 < ratio < 100 else None
    return None
