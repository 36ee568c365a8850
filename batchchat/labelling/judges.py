"""Whether a judge of pairs looks at the answers or at their places. Pure functions over the judge's own cases.

A pairwise judge sees the two answers to a row in both orders. If it names the answer that stands first more often than
the other, it prefers the place; if it names the same place in both orders, its verdict on that row says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from batchchat.dataclass import dataclass
from batchchat.labelling.coefficients import Estimate, share_estimate

FIRST, SECOND, TIE = "A", "B", "tie"


@dataclass(frozen=True, slots=True)
class PositionBias:
    """The verdicts of a pairwise judge by place.

    `pairs` were judged in both orders. `first` is the share of verdicts, ties left out, for the answer that stands
    first: 0.5 without a preference. `consistent` is the share of pairs with the same verdict in both orders,
    `by_place` the share that names the same place twice, and `ties` the share of all verdicts that are ties.
    """

    pairs: int
    verdicts: int
    first: Estimate
    consistent: Estimate
    by_place: Estimate
    ties: Estimate


def position_bias(cases: Iterable[Mapping[str, Any]], first: str, second: str) -> PositionBias | None:
    """Measure the bias of a judge. `first` and `second` name the columns of the two answers.

    A case has the columns of the judge's input and its `verdict`. Return None if no case has a verdict on a place.
    """
    verdicts: dict[tuple[Any, ...], str] = {}
    for case in cases:
        rest = tuple(case.get(name) for name in ("input", "reference"))
        verdicts[(*rest, case[first], case[second])] = case["verdict"]
    given = list(verdicts.values())
    if not set(given) <= {FIRST, SECOND, TIE} or not given:
        return None
    pairs = [
        (verdict, verdicts[(*rest, two, one)])
        for (*rest, one, two), verdict in verdicts.items()
        # Each pair once; answers that are alike are no pair.
        if str(one) < str(two) and (*rest, two, one) in verdicts
    ]
    decided = sum(verdict != TIE for verdict in given)
    same_place = sum(one == two != TIE for one, two in pairs)
    opposite = {FIRST: SECOND, SECOND: FIRST, TIE: TIE}
    agree = sum(opposite[one] == two for one, two in pairs)
    return PositionBias(
        pairs=len(pairs),
        verdicts=len(given),
        first=_share(given.count(FIRST), decided),
        consistent=_share(agree, len(pairs)),
        by_place=_share(same_place, len(pairs)),
        ties=_share(given.count(TIE), len(given)),
    )


def _share(part: int, whole: int) -> Estimate:
    return share_estimate(part / whole if whole else None, whole)
