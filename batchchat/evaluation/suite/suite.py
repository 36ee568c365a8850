"""A suite: a base job, variants of it, and the scorers that judge their answers, as a suite file says.

`reading.load_suite` validates all of it as job files are validated: whatever is wrong is told with file, line and
remedy, all at once. Every variant becomes a `Job` of its own, whose output lies in `DIR/variants`. Nothing here touches
the network or the output.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from batchchat.dataclass import dataclass
from batchchat.errors import JobError
from batchchat.evaluation.scorers.judging import Judge, Pairwise
from batchchat.evaluation.scorers.scorer import Scorer
from batchchat.evaluation.statistics.unit import SHARE, ScoreUnit
from batchchat.job import Job
from batchchat.job.origin import FieldPlace, Origins, job_error
from batchchat.job.sections import BudgetCaps


@dataclass(frozen=True, slots=True)
class Score:
    """A score that the suite has. `of_rows`: it has a value for each answer, not only for all of them together.

    `margin` is the difference that does not matter, None if nobody named one.
    """

    scale: ScoreUnit
    of_rows: bool
    margin: float | None = None

    @property
    def higher_is_better(self) -> bool | None:
        """Which direction is better, None where neither is."""
        return self.scale.higher_is_better


@dataclass(frozen=True, slots=True)
class Variant:
    """One variant: what it changes, by dotted path, and the job that comes of it. `folder` is its name on disk."""

    name: str
    overrides: Mapping[str, Any]
    folder: str
    job: Job


@dataclass(frozen=True, slots=True)
class JudgeTask:
    """A judge, the job that asks it, and its place in the suite file."""

    scorer: Judge | Pairwise
    job: Job
    place: FieldPlace


@dataclass(frozen=True, slots=True)
class Until:
    """When an evaluation may stop early: when the variants are settled by one score.

    `margin` is the difference in it that does not matter, None if nobody named one. `looks` are the equal parts of the
    rows, after each of which the answers are looked at.
    """

    score: str
    margin: float | None
    looks: int


@dataclass(frozen=True, slots=True)
class Suite:
    """A validated suite file. All paths are absolute. `budget` and `deadline` hold for all runs together.

    `scorers` look at records alone, `judges` ask models; `order` has the names of both as the file has them. `cluster`
    is the input's column that tells which rows belong together, None if each is evidence by itself. `until` is None if
    every row is asked.
    """

    name: str
    file: Path
    output: Path
    variants: tuple[Variant, ...]
    scorers: tuple[Scorer, ...]
    judges: tuple[JudgeTask, ...]
    order: tuple[str, ...]
    budget: BudgetCaps
    deadline: float | None
    seed: int
    origins: Origins
    cluster: str | None = None
    until: Until | None = None

    @property
    def jobs(self) -> list[Job]:
        """The jobs of all variants and judges."""
        return [*(variant.job for variant in self.variants), *(task.job for task in self.judges)]

    def scores(self) -> dict[str, Score]:
        """Return every score that variants have, by its full name, in the order of the file."""
        found: dict[str, Score] = {}
        every: dict[str, Scorer | Judge | Pairwise] = {scorer.name: scorer for scorer in self.scorers}
        every |= {task.scorer.name: task.scorer for task in self.judges}
        for scorer in (every[name] for name in self.order if name in every):
            if isinstance(scorer, Pairwise):
                # The share of wins. An answer has none without those of the other variants.
                found[scorer.name] = Score(SHARE, of_rows=False, margin=scorer.margin)
                continue
            scale = scorer.scale
            if not scorer.METRICS:
                found[scorer.name] = Score(scale, of_rows=True, margin=scorer.margin)
            for number, metric in enumerate(scorer.METRICS):
                # The first metric is the value of each answer; the others are of all answers together.
                unit, of_rows = (scale, True) if number == 0 else (SHARE, False)
                found[f"{scorer.name}.{metric}"] = Score(unit, of_rows=of_rows, margin=scorer.margin)
            for over in scorer.sample_metrics:
                found[f"{scorer.name}.{over.name}"] = Score(SHARE, of_rows=False, margin=scorer.margin)
        return found

    def error(self, message: str, *place: Hashable, remedy: str | None = None) -> JobError:
        """Make an error that points to a field of the suite by its place in the file."""
        return job_error(message, place, self.origins, self.file, remedy)
