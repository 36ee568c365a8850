"""What `agreement` and `calibrate` print: measures with intervals, tables of labels, bars of confidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchchat.cli.blocks import blank, line, pair, plain_text, remarks, styled, title
from batchchat.format import UNKNOWN, count, money, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType
    from rich.table import Table

    from batchchat.labelling.agreement import AgreementView, FieldAgreement, GroupAgreement, RaterAgreement
    from batchchat.labelling.calibrating import CalibrationView, ModelOnGold
    from batchchat.labelling.coefficients import ConfidenceCheck, Estimate, PairAgreement
    from batchchat.labelling.judges import PositionBias

_LABELS_SHOWN = 20
"""Labels of one field in a table, those expected most often first: as many as fit a screen. `--json` has all."""
_CONFUSION_SHOWN = 8
"""Labels up to which the confusion matrix is shown: with more, its columns do not fit 100 columns."""
_BAR = 20
"""Columns of a bar that is full: each stands for five per cent."""
_WORDS = (
    (0.0, "poor"),
    (0.2, "slight"),
    (0.4, "fair"),
    (0.6, "moderate"),
    (0.8, "substantial"),
    (1.01, "almost perfect"),
)
"""How Landis and Koch 1977, Biometrics 33:159-174, call values of kappa up to each of these."""


def render_agreement(view: AgreementView) -> RenderableType:
    """Show how far labels agree."""
    from rich.console import Group

    parts: list[RenderableType] = [title(view.output, plural(view.rows, "row"))]
    for one in view.fields:
        parts += [blank(), *_field(one)]
    for group in view.raters:
        parts += [blank(), *_raters(group)]
    if view.places is not None:
        parts += [blank(), *_places(view.places)]
    return Group(*parts, *remarks(view.notes, ""))


def _places(found: PositionBias) -> list[RenderableType]:
    told = f"Places: {plural(found.verdicts, 'verdict')}, {plural(found.pairs, 'pair')} in both orders"
    table = _table("", "share", "95 % interval", "")
    for name, estimate, remark in (
        ("for the answer that stands first", found.first, "ties left out; 0.5 is no preference"),
        ("the same verdict in both orders", found.consistent, ""),
        ("the same place in both orders", found.by_place, "such verdicts say nothing of the answers"),
        ("ties", found.ties, ""),
    ):
        table.add_row(name, _value(estimate), _interval(estimate), estimate.reason or remark)
    return [plain_text(told, "bold"), table]


def _field(one: FieldAgreement) -> list[RenderableType]:
    found = one.measures
    told = f"{one.field}: {one.given} against {one.expected}, {plural(found.n, 'row')}"
    if one.weighted:
        told += f" (weighted by their chance of being chosen; they tell as much as {found.effective_n:,.0f})"
    if one.left_out:
        told += f"; {plural(one.left_out, 'row')} without one of the two"
    parts: list[RenderableType] = [plain_text(told, "bold"), _measures(found), blank(), _by_label(found)]
    if 1 < len(found.labels) <= _CONFUSION_SHOWN:
        parts += [blank(), _confusion(found)]
    if one.groups:
        parts += [blank(), _by_group(one.groups)]
    if one.check is not None and one.check.n:
        parts += [blank(), *_confidence(one.check)]
    return parts


def _measures(found: PairAgreement) -> Table:
    table = _table("", "value", "95 % interval", "")
    for name, estimate in (
        ("accuracy", found.accuracy),
        ("macro-F1", found.macro_f1),
        ("Cohen's kappa", found.kappa),
        ("Krippendorff's alpha", found.alpha),
    ):
        remark = _word(estimate) if name == "Cohen's kappa" else ""
        table.add_row(name, _value(estimate), _interval(estimate), estimate.reason or remark)
    return table


def _word(estimate: Estimate) -> str:
    if estimate.value is None:
        return ""
    # The last limit is above 1, so that a kappa of 1 has a word too.
    return next(word for limit, word in _WORDS if estimate.value <= limit)


def _by_label(found: PairAgreement) -> Table:
    table = _table("label", "expected", "given", "precision", "recall", "F1")
    shown = sorted(found.by_label, key=lambda one: -one.expected)[:_LABELS_SHOWN]
    for one in shown:
        figures = (UNKNOWN if value is None else f"{value:.3f}" for value in (one.precision, one.recall, one.f1))
        table.add_row(line(one.label, 40), f"{one.expected:,.0f}", f"{one.given:,.0f}", *figures)
    if len(found.by_label) > len(shown):
        table.add_row(f"and {len(found.by_label) - len(shown)} more: --json has all")
    return table


def _by_group(groups: Sequence[GroupAgreement]) -> Table:
    table = _table("group", "rows", "accuracy", "95 % interval", "kappa", "95 % interval", "alpha")
    for group in groups:
        found = group.measures
        table.add_row(
            "(none)" if group.value is None else line(group.value, 40),
            count(found.n),
            _value(found.accuracy),
            _interval(found.accuracy),
            _value(found.kappa),
            _interval(found.kappa),
            _value(found.alpha),
        )
    return table


def _confusion(found: PairAgreement) -> Table:
    """Return a line for each label as expected, a column for each as given."""
    table = _table("expected \\ given", *(line(label, 16) for label in found.labels))
    for label, cells in zip(found.labels, found.confusion, strict=True):
        # Rows that are weighted give fractions: a cell is empty if it would read 0.
        table.add_row(line(label, 16), *(f"{cell:,.0f}" if round(cell) else "·" for cell in cells))
    return table


def _confidence(check: ConfidenceCheck) -> list[RenderableType]:
    table = _table("confidence", "rows", "mean", "right", "")
    for one in check.bins:
        # A bin without rows has no share of right answers, and would be a line of nothing.
        if one.n:
            right = one.accuracy.value or 0.0
            bar = "█" * round(right * _BAR)
            # Where the bar should end if confidence were how often answers are right.
            at = min(_BAR - 1, round((one.confidence or 0.0) * _BAR))
            marked = bar.ljust(_BAR)
            marked = marked[:at] + "|" + marked[at + 1 :]
            table.add_row(
                f"{one.low:.1f}-{one.high:.1f}", count(one.n), f"{one.confidence:.3f}", _value(one.accuracy), marked
            )
    above = _table("at least", "rows", "share", "right", "95 % interval")
    for limit in check.above:
        if limit.n:
            above.add_row(
                f"{limit.threshold:.2f}", count(limit.n), f"{limit.share:.1%}", _value(limit.accuracy),
                _interval(limit.accuracy),
            )  # fmt: skip
    error = f"expected calibration error {_value(check.error)} {_interval(check.error)}"
    return [
        styled(f"Confidence of {plural(check.n, 'row')}: {error}. | is where the bar should end."),
        table,
        blank(),
        above,
    ]


def _raters(group: RaterAgreement) -> list[RenderableType]:
    who = plural(group.raters, "person", "people") if group.among == "people" else plural(group.raters, "sample")
    told = f"{group.field}: {who} on {plural(group.rows, 'row')}"
    table = _table("", "value", "95 % interval", "")
    table.add_row("Krippendorff's alpha", _value(group.alpha), _interval(group.alpha), group.alpha.reason or "")
    for one in group.pairs:
        kappa = one.measures.kappa
        name = f"kappa of {line(one.expected, 20)}, {line(one.given, 20)}"
        remark = kappa.reason or f"{_word(kappa)}; the same on {one.measures.accuracy.value:.1%} of {one.measures.n}"
        table.add_row(name, _value(kappa), _interval(kappa), remark)
    return [plain_text(told, "bold"), table]


def render_calibration(view: CalibrationView) -> RenderableType:
    """Show the threshold of a cascade, what it promises, and what it costs."""
    from rich.console import Group

    found, chosen = view.promise, view.promise.chosen
    told = f"{view.field} against {view.expected}, {plural(view.rows, 'row')} with the right label"
    if view.left_out:
        told += f"; {plural(view.left_out, 'reviewed row')} left out, so that each row had the same chance to be here"
    table = _table("", "right", "95 % interval", "cost per 1,000 rows")
    for name, model in (("alone", view.small), ("alone", view.large)):
        table.add_row(f"{line(model.model, 40)} {name}", *_model(model, view.currency))
    if chosen is not None:
        bound = f"at least {view.promise.bound:.3f}, with probability {1 - found.risk:g}"
        table.add_row("cascade", f"{chosen.accuracy:.3f}", bound, _money(view.cost_per_1000, view.currency))
    parts: list[RenderableType] = [title("calibrate", told), blank(), table, blank(), *_verdict(view)]
    parts += [blank(), pair("small", view.small.output), pair("large", view.large.output)]
    missing = f"{plural(view.without_gold, 'row')} without a right label" if view.without_gold else ""
    return Group(*parts, *remarks([missing] if missing else [], ""))


def _model(model: ModelOnGold, currency: str | None) -> tuple[str, str, str]:
    return _value(model.accuracy), _interval(model.accuracy), _money(model.cost_per_1000, currency)


def _money(amount: float | None, currency: str | None) -> str:
    return UNKNOWN if amount is None else money(amount, currency)


def _verdict(view: CalibrationView) -> list[RenderableType]:
    found, chosen = view.promise, view.promise.chosen
    goal = f"{found.target:.1%} right, with probability {1 - found.risk:g}"
    if chosen is None:
        told = f"No threshold reaches the target: {goal}."
        if found.failed is not None:
            told += f" With all rows asked of {view.large.model}, {found.failed.accuracy:.1%} are right."
        return [plain_text(told, "bold"), plain_text(_more(view))]
    if view.escalates:
        told = (
            f"Threshold {chosen.threshold:g}: {goal}. {chosen.escalated:.1%} of the rows go on to {view.large.model}."
        )
        lines = (
            "cascade:",
            f"  - {{model: {view.small.model}, accept: {{confidence: {chosen.threshold:g}}}}}",
            f"  - {{model: {view.large.model}}}",
        )
        return [plain_text(told, "bold"), plain_text(_more(view)), blank(), *(plain_text(text) for text in lines)]
    # The threshold divides no rows: all go on to the large model, or none does.
    alone = view.large.model if chosen.escalated >= 1 else view.small.model
    return [plain_text(f"{alone} alone reaches the target: {goal}.", "bold"), plain_text(_more(view))]


def _more(view: CalibrationView) -> str:
    found = view.promise
    if found.failed is None:
        return ""
    name = "a lower threshold" if found.chosen is not None else "it"
    # A threshold above 1 stands for asking the large model of every row: no number to show.
    at = "" if found.failed.threshold > 1 else f" ({found.failed.threshold:g})"
    if found.more_rows is None:
        return (
            f"More gold rows would hardly help {name}{at}: {found.failed.accuracy:.1%} are right there, "
            f"which is not above the target."
        )
    return f"About {plural(found.more_rows, 'more gold row')} would let {name} pass{at}, if as many are right."


def _value(estimate: Estimate) -> str:
    return UNKNOWN if estimate.value is None else f"{estimate.value:.3f}"


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{estimate.low:.3f} to {estimate.high:.3f}"


def _table(*names: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for at, name in enumerate(names):
        # Names and remarks to the left, figures to the right.
        figure = bool(name) and at > 0
        table.add_column(name, justify="right" if figure else "left", no_wrap=figure)
    return table
