"""What people's reviews say of the labels, for the page about an output."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from batchchat.errors import UsageError
from batchchat.format import UNKNOWN
from batchchat.store import read_review_lines

if TYPE_CHECKING:
    from batchchat.labelling.agreement import AgreementView
    from batchchat.labelling.coefficients import Estimate


class QualityLine(NamedTuple):
    """One measure: of which field, between whom, on how many rows, its value and its 95 % interval as texts."""

    field: str
    between: str
    measure: str
    rows: int
    value: str
    interval: str


def quality_of(directory: Path | str) -> list[QualityLine]:
    """Return how far the labels agree with people's reviews; nothing if nobody reviewed a row."""
    # The statistics need a library that a report does without.
    if find_spec("numpy") is None or not read_review_lines(directory):
        return []
    from batchchat.labelling.agreement import AgreementOptions, agreement_of

    try:
        return _lines(agreement_of(directory, AgreementOptions()))
    except UsageError:
        # Reviews of answers that have no labels say nothing that could be counted.
        return []


def _lines(view: AgreementView) -> list[QualityLine]:
    found = []
    for one in view.fields:
        measures = one.measures
        named = [
            ("accuracy", measures.accuracy),
            ("macro-F1", measures.macro_f1),
            ("Cohen's kappa", measures.kappa),
            ("Krippendorff's alpha", measures.alpha),
        ]
        if one.check is not None:
            named.append(("expected calibration error", one.check.error))
        found += [
            QualityLine(one.field, f"the model and {one.expected}", name, measures.n, *_texts(value))
            for name, value in named
        ]
    for group in view.raters:
        among = "people" if group.among == "people" else f"the {group.raters} samples of a row"
        found.append(QualityLine(group.field, among, "Krippendorff's alpha", group.rows, *_texts(group.alpha)))
    return found


def _texts(estimate: Estimate) -> tuple[str, str]:
    if estimate.value is None:
        return UNKNOWN, estimate.reason or ""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}", estimate.reason or ""
    return f"{estimate.value:.3f}", f"{estimate.low:.3f} to {estimate.high:.3f}"
