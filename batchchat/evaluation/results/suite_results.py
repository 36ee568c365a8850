"""What scores mean: means with intervals of every variant, and comparisons of every pair of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from batchchat.errors import UsageError
from batchchat.evaluation.results.summary import ScorerSummary, VariantSummary
from batchchat.evaluation.results.variant_scores import Grid, ScoreColumn, VariantScores, row_metric
from batchchat.evaluation.scorers.answer_scorers import Classes
from batchchat.evaluation.scorers.judging import Judge, Pairwise
from batchchat.evaluation.scorers.scorer import Scorer
from batchchat.evaluation.statistics.classification import (
    LabelledAnswers,
    classes_of,
    classification_report,
    compare_macro_f1,
    summarize_macro_f1,
)
from batchchat.evaluation.statistics.comparison import Comparison, compare, compare_outcomes, summarize
from batchchat.evaluation.statistics.samples import SampleMetric
from batchchat.evaluation.statistics.unit import SHARE
from batchchat.format import plural


class SuiteResults:
    """Adds up what the sheets of variants hold, one scorer after another.

    `variants` are the variants' summaries, to which their scores are added. All sheets have the same rows, and with
    `cluster`, a column that is kept of them, those of equal value are one piece of evidence.
    """

    def __init__(
        self, sheets: Sequence[VariantScores], variants: Sequence[VariantSummary], *, seed: int, cluster: str | None
    ) -> None:
        self.variants = list(variants)
        self.comparisons: list[Comparison] = []
        self.scorers: list[ScorerSummary] = []
        self._sheets = sheets
        self._seed = seed
        self._clusters = None if cluster is None else sheets[0].rows.clusters(cluster)

    def add(self, scorer: Scorer | Judge) -> None:
        """Add the values that a scorer gave each answer.

        Raises UsageError if it is a function of the user's, and gave no answer at all a value.
        """
        self._check_function(scorer)
        name = scorer.name if isinstance(scorer, Judge) else row_metric(scorer)
        grids = {sheet.name: sheet.grid(name) for sheet in self._sheets}
        for at, sheet in enumerate(self._sheets):
            summary = summarize(grids[sheet.name], scorer.scale, seed=self._seed, clusters=self._clusters)
            self.variants[at] = replace(self.variants[at], scores={**self.variants[at].scores, name: summary})
        self.comparisons += compare(
            grids, scorer.scale, scorer=name, seed=self._seed, clusters=self._clusters, margin=scorer.margin
        )
        self.scorers.append(_scorer(scorer, name))
        for metric in scorer.sample_metrics:
            self._add_samples(scorer, metric, grids)
        if isinstance(scorer, Classes):
            self._add_classes(scorer)

    def _check_function(self, scorer: Scorer | Judge) -> None:
        """Raise UsageError if a function broke on every answer: the fault is in the function, not in the answers."""
        called = sum(sheet.calls.get(scorer.name, (0, 0))[0] for sheet in self._sheets)
        broken = sum(sheet.calls.get(scorer.name, (0, 0))[1] for sheet in self._sheets)
        if not called or broken < called:
            return
        _, reason = next(told for sheet in self._sheets if (told := sheet.unscored(scorer.name))[0])
        raise UsageError(
            f"scorer {scorer.name} gave none of {plural(called, 'answer')} a value: {reason}",
            remedy="Mend the function and score again: the answers are kept, and nothing is sent for them.",
        )

    def _add_samples(self, scorer: Scorer | Judge, metric: SampleMetric, grids: Mapping[str, Grid]) -> None:
        """Add what the samples of a row tell together."""
        name = f"{scorer.name}.{metric.name}"
        values = {variant: metric.values(grid) for variant, grid in grids.items()}
        for at, sheet in enumerate(self._sheets):
            summary = summarize(values[sheet.name], SHARE, seed=self._seed, clusters=self._clusters)
            self.variants[at] = replace(self.variants[at], scores={**self.variants[at].scores, name: summary})
        self.comparisons += compare(
            values, SHARE, scorer=name, seed=self._seed, clusters=self._clusters, margin=scorer.margin
        )
        self.scorers.append(replace(_scorer(scorer, name), unit=SHARE.unit))

    def _add_classes(self, scorer: Classes) -> None:
        """Add a scorer's reports over classes; its classes are the same for all variants."""
        name = f"{scorer.name}.macro_f1"
        answers: dict[str, LabelledAnswers] = {
            sheet.name: sheet.labels[scorer.name].answers(sheet.rows.samples) for sheet in self._sheets
        }
        # Over all variants, so that macro-F1 is a mean of the same classes for each.
        labels = classes_of(list(answers.values()), scorer.labels)
        for at, variant in enumerate(self.variants):
            own = answers[variant.name]
            summary = summarize_macro_f1(own, labels, seed=self._seed, clusters=self._clusters)
            report = classification_report(own, labels)
            scores, classes = {**variant.scores, name: summary}, {**variant.classes, scorer.name: report}
            self.variants[at] = replace(variant, scores=scores, classes=classes)
        self.comparisons += compare_macro_f1(
            answers, labels, scorer=name, seed=self._seed, clusters=self._clusters, margin=scorer.margin
        )
        self.scorers.append(replace(self.scorers[-1], name=name, unit=SHARE.unit))

    def add_pairs(self, scorer: Pairwise, pairs: Mapping[tuple[str, str], ScoreColumn]) -> None:
        """Add what a pairwise judge said: each variant's share of wins, and the comparison of each pair."""
        samples = self._sheets[0].rows.samples
        grids = {pair: column.values.reshape(-1, samples) for pair, column in pairs.items()}
        for at, variant in enumerate(self.variants):
            shares = wins_of(variant.name, grids)
            if shares is not None:
                summary = summarize(shares, SHARE, seed=self._seed, clusters=self._clusters)
                self.variants[at] = replace(variant, scores={**variant.scores, scorer.name: summary})
        self.comparisons += compare_outcomes(
            grids,
            scorer.scale,
            scorer=scorer.name,
            seed=self._seed,
            clusters=self._clusters,
            margin=scorer.margin,
        )
        self.scorers.append(_scorer(scorer, scorer.name))


def wins_of(name: str, pairs: Mapping[tuple[str, str], Grid]) -> Grid | None:
    """Return for each answer of a variant the share of its pairs that it wins, a tie counted as half a win.

    NaN if no pair of it was judged; None if the variant is in no pair.
    """
    # A pair has 1 if its first variant wins, and -1 if the second one does.
    own = [grid if name == a else -grid for (a, b), grid in pairs.items() if name in {a, b}]
    if not own:
        return None
    balances = np.stack(own)
    judged = np.isfinite(balances)
    counts = judged.sum(axis=0)
    sums = np.where(judged, balances, 0.0).sum(axis=0)
    # From a balance of -1 to 1 to a share of 0 to 1.
    made: Grid = np.where(counts > 0, (1 + sums / np.maximum(counts, 1)) / 2, np.nan)
    return made


def _scorer(scorer: Any, name: str) -> ScorerSummary:
    scale = scorer.scale
    return ScorerSummary(
        name=name,
        kind=str(getattr(scorer, "kind", "")),
        unit=scale.unit,
        higher_is_better=scale.higher_is_better,
        field=getattr(scorer, "field", None),
        expected=getattr(scorer, "expected", None),
    )
