"""What is known of the runs of this process: their newest snapshots, and how their answers spread."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from batchchat.dataclass import dataclass
from batchchat.events import Snapshot
from batchchat.records import Record

DURATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
"""The bounds of the buckets that the OpenTelemetry conventions for generative AI recommend."""
_MAX_KINDS = 64
"""How many pairs of answering model and failure are told apart; a server that names a new model in each answer is told
of by these."""


class Buckets:
    """Counts of numbers between bounds. One thread adds, others may read at any time."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.sum = self.lowest = self.highest = 0.0
        self._counts = [0] * (len(bounds) + 1)

    def add(self, value: float) -> None:
        """Count a number; one that is a bound belongs below it."""
        first = not self.sum and not any(self._counts)
        self.lowest = value if first else min(self.lowest, value)
        self.highest = max(self.highest, value)
        self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def counts(self) -> list[int]:
        """Return how many numbers are between each two bounds, the last of them above all bounds."""
        return list(self._counts)


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of one model that ended alike. `error_kind` is empty for completions."""

    model: str
    error_kind: str
    duration_s: Buckets
    input_tokens: Buckets
    output_tokens: Buckets


class RunMeter:
    """What is known of one run. `variant` names it in an evaluation, and is empty otherwise."""

    def __init__(self, job: str, provider: str, model: str, variant: str = "") -> None:
        self.job = job
        self.provider = provider
        self.model = model
        self.variant = variant
        self.snapshot: Snapshot | None = None
        self.exit_code: int | None = None
        self.updated = time.time()
        self._answers: dict[tuple[str, str], Answers] = {}

    def update(self, snapshot: Snapshot) -> None:
        """Take the newest snapshot of the run."""
        self.snapshot = snapshot
        self.updated = time.time()

    def beside(self, other: Callable[[Snapshot], None]) -> Callable[[Snapshot], None]:
        """Return what gives each snapshot to this meter and to somebody else."""

        def both(snapshot: Snapshot) -> None:
            self.update(snapshot)
            other(snapshot)

        return both

    def add(self, record: Record) -> None:
        """Count a record of the run that has become durable."""
        # An answer that was taken over was not given in this run, and a row that was never sent had none.
        if record.cache_hit or not record.attempts:
            return
        self._add(record.model, record.error_kind, record.latency_s, record.prompt_tokens, record.completion_tokens)

    def add_figures(self, figures: Iterable[Sequence[Any]]) -> None:
        """Count answers of another process: of each the model, the failure, seconds, prompt and completion tokens."""
        for model, error_kind, latency_s, prompt_tokens, completion_tokens in figures:
            self._add(model, error_kind, latency_s, prompt_tokens, completion_tokens)

    def _add(
        self,
        model: str | None,
        error_kind: str | None,
        latency_s: float | None,
        prompt_tokens: int | None,
        completion_tokens: int | None,
    ) -> None:
        key = (model or "", error_kind or "")
        answers = self._answers.get(key)
        if answers is None:
            if len(self._answers) >= _MAX_KINDS:
                key = ("other", key[1] and "other")
            answers = self._answers.setdefault(
                key, Answers(*key, Buckets(DURATION_S), Buckets(TOKENS), Buckets(TOKENS))
            )
        # A batch tells no latency, and a failure often no usage.
        if latency_s is not None:
            answers.duration_s.add(latency_s)
        if prompt_tokens is not None:
            answers.input_tokens.add(prompt_tokens)
        if completion_tokens is not None:
            answers.output_tokens.add(completion_tokens)

    def answers(self) -> list[Answers]:
        """Return the answers so far, by model and failure."""
        return list(self._answers.values())


class Recorder:
    """The runs of this process: one, or those of an evaluation."""

    def __init__(self) -> None:
        self.started = time.time()
        self._meters: list[RunMeter] = []

    def meter(self, job: str, provider: str, model: str, variant: str = "") -> RunMeter:
        """Return a meter for a run that begins."""
        meter = RunMeter(job, provider, model, variant)
        self._meters.append(meter)
        return meter

    def end(self, exit_code: int) -> None:
        """Note how it ended: the run, or the evaluation as a whole."""
        for meter in self._meters:
            meter.exit_code = exit_code

    def meters(self) -> list[RunMeter]:
        """Return the meters of all runs."""
        return list(self._meters)
