"""How far a judge's verdicts agree with the right ones: with a column of the input, and with people's reviews.

Measures and intervals are those of `batchchat agreement`. With a column, a unit is a verdict, and the verdicts on the
answers to one row are one piece of evidence. With reviews, a unit is a case. Blocking code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from batchchat.errors import UsageError
from batchchat.evaluation.results.current_rows import CurrentRows
from batchchat.evaluation.results.judge_cases import Cases, JudgedValue, Verdicts
from batchchat.evaluation.results.summary import AgreementMeasure, JudgeAgreement
from batchchat.evaluation.scorers.judging import Judge, Pairwise
from batchchat.evaluation.scorers.matching import text_of
from batchchat.labelling.agreement import AgreementOptions, agreement_of
from batchchat.labelling.coefficients import Estimate, Level, PairAgreement, Scale, pair_agreement
from batchchat.store import read_review_lines

_TIE = "tie"
_VERDICT = "verdict"
PEOPLE = "people"


class _Unit(NamedTuple):
    """One verdict beside the right one, both as texts; `row` is the position of its row."""

    row: int
    expected: str
    given: str


def judge_agreements(
    cases: Cases, verdicts: Verdicts, pairs: dict[tuple[str, str], dict[int, JudgedValue]], rows: CurrentRows
) -> tuple[list[JudgeAgreement], list[str]]:
    """Measure a judge against its `gold` column and against people's reviews of its cases, as far as there are any.

    Arguments:
        cases: which cases stand for which answers.
        verdicts: of each case.
        pairs: the outcomes of a judge of pairs, by position.
        rows: the current input, with the column of right verdicts.

    Returns the measures, and what cannot be measured, in words.
    """
    found: list[JudgeAgreement] = []
    notes: list[str] = []
    for told in (_against_column(cases, verdicts, pairs, rows), _against_people(cases)):
        if isinstance(told, JudgeAgreement):
            found.append(told)
        elif told:
            notes.append(f"{cases.task.scorer.name}: {told}")
    return found, notes


def _against_column(
    cases: Cases, verdicts: Verdicts, pairs: dict[tuple[str, str], dict[int, JudgedValue]], rows: CurrentRows
) -> JudgeAgreement | str:
    scorer = cases.task.scorer
    if scorer.gold is None:
        return ""
    gold: list[Any] = rows.values(scorer.gold)
    if isinstance(scorer, Judge):
        units = list(_single_units(cases, scorer, verdicts, gold, rows.samples))
    else:
        units = list(_pair_units(cases, pairs, gold, rows.samples))
    if not units:
        return f"no verdict has a right one in {scorer.gold} to be compared with"
    try:
        measures = pair_agreement(
            [unit.expected for unit in units],
            [unit.given for unit in units],
            scale=Scale(_level(scorer)),
            # Verdicts on the answers to one row are likely right or wrong together.
            clusters=[unit.row for unit in units],
        )
    except ValueError as error:
        return f"its verdicts cannot be compared with {scorer.gold}: {error}"
    return _told(f"column {scorer.gold}", measures, rows=len({unit.row for unit in units}))


def _single_units(
    cases: Cases, scorer: Judge, verdicts: Verdicts, gold: Sequence[Any], samples: int
) -> Iterator[_Unit]:
    for asked in cases.of_variants.values():
        for position, (case,) in asked.items():
            row = position // samples
            verdict, expected = verdicts.get(case, (None, None))[0], _right(scorer, gold[row])
            if verdict is not None and expected is not None:
                yield _Unit(row, expected, text_of(verdict))


def _pair_units(
    cases: Cases, pairs: dict[tuple[str, str], dict[int, JudgedValue]], gold: Sequence[Any], samples: int
) -> Iterator[_Unit]:
    """Yield what a judge of pairs was asked about; a right verdict names one of the two variants, or is a tie."""
    for (a, b), asked in cases.of_pairs.items():
        names = {1.0: a, -1.0: b, 0.0: _TIE}
        for position in asked.positions():
            row = position // samples
            value, expected = pairs[a, b].get(position, (None, None))[0], gold[row]
            wanted = text_of(expected).strip() if expected is not None else ""
            # One that names neither is about another pair.
            if value is not None and wanted in names.values():
                yield _Unit(row, _place(wanted, a, b), _place(names[value], a, b))


def _place(name: str, a: str, b: str) -> str:
    """Name the winner of a pair by its place, so that several pairs have the same labels."""
    return {a: "first", b: "second"}.get(name, name)


def _right(scorer: Judge, value: Any) -> str | None:
    """Return a right verdict as the judge would write it; None if the column has none here."""
    # A judge without points says yes or no, and such a column true or false.
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = "" if value is None else text_of(value).strip()
    if scorer.points is not None:
        try:
            number = float(text)
        except ValueError:
            return text or None
        # A column of numbers gives 4.0 if the judge writes 4.
        return f"{number:.0f}" if number.is_integer() else text
    return text or None


def _level(scorer: Judge | Pairwise) -> Level:
    """Points are numbers: a near miss counts less, in alpha."""
    return "interval" if isinstance(scorer, Judge) and scorer.points is not None else "nominal"


def _against_people(cases: Cases) -> JudgeAgreement | str:
    directory = Path(cases.task.job.output.path)
    if not read_review_lines(directory):
        return ""
    try:
        view = agreement_of(directory, AgreementOptions(field=_VERDICT, level=_level(cases.task.scorer)))
    except UsageError as error:
        return f"its reviews cannot be counted: {error.message}"
    people = next((one for one in view.fields if one.expected == PEOPLE), None)
    if people is None:
        return "people's reviews are about none of its cases as they are now"
    return _told(PEOPLE, people.measures, rows=None)


def _told(among: str, measures: PairAgreement, *, rows: int | None) -> JudgeAgreement:
    accuracy, kappa, alpha = map(_measure, (measures.accuracy, measures.kappa, measures.alpha))
    return JudgeAgreement(among, measures.n, rows, accuracy, kappa, alpha)


def _measure(estimate: Estimate) -> AgreementMeasure:
    return AgreementMeasure(estimate.value, estimate.low, estimate.high, estimate.reason)
