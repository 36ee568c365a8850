"""Which rows people should look at, and the probability with which each was chosen.

The rows that can be chosen (N of them) are ordered by confidence. The choice has two parts:

1. The least sure. Of `rows - random` rows the least sure ones are taken for certain: their probability is 1. With
   strata, each stratum has an equal share, so that one label cannot fill the list.
2. The random part, drawn from all other rows. They are divided into strata h of N_h rows, and n_h of each are drawn
   without replacement, every set of n_h rows alike. So each row of a stratum has the probability n_h / N_h.

The n_h are fixed before anything is drawn, and none is 0 as long as there are as many draws as strata. Therefore every
row of the N has a known probability p above 0, and the sum of y / p over the chosen rows is an unbiased estimate of the
sum of y over the N rows (Horvitz and Thompson, 1952), whatever y is.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

from batchchat.dataclass import dataclass

Part = Literal["least sure", "random"]


class Candidate(NamedTuple):
    """A row that can be chosen: its place among the records, its confidence if it has one, and its stratum."""

    place: int
    confidence: float | None
    stratum: str


class ChosenRow(NamedTuple):
    """A row that was chosen, by which part, and with what probability (above 0, at most 1)."""

    place: int
    part: Part
    probability: float
    stratum: str


@dataclass(frozen=True, slots=True)
class Design:
    """How many rows are chosen, and how.

    Of `rows` rows, `random` are drawn at random at least. `below` is the confidence from which on no row counts as
    unsure, None if there is no such bound. With `stratified` the candidates' strata count. `seed` decides the draw.
    """

    rows: int
    random: int
    below: float | None = None
    stratified: bool = False
    seed: int = 0


def choose(candidates: Sequence[Candidate], design: Design) -> list[ChosenRow]:
    """Choose rows. The least sure come first, in their order, then those drawn at random, in an order by chance.

    Rows that the least sure part cannot fill (no confidence, or all are sure enough) are drawn at random instead.
    """
    wanted = min(design.rows, len(candidates))
    certain = _least_sure(candidates, max(0, wanted - design.random), design)
    chosen = [ChosenRow(row.place, "least sure", 1.0, row.stratum) for row in certain]
    taken = {row.place for row in certain}
    rest = [row for row in candidates if row.place not in taken]
    return chosen + _drawn(rest, wanted - len(chosen), design)


def _least_sure(candidates: Sequence[Candidate], number: int, design: Design) -> list[Candidate]:
    """Return the least sure rows. Nothing is drawn here: of equal ones the earlier row is taken."""
    unsure: dict[str, list[tuple[float, int, Candidate]]] = {}
    for row in candidates:
        if row.confidence is None or (design.below is not None and row.confidence >= design.below):
            continue
        unsure.setdefault(row.stratum if design.stratified else "", []).append((row.confidence, row.place, row))
    sizes = {name: len(rows) for name, rows in unsure.items()}
    shares = _equal_shares(sizes, min(number, sum(sizes.values())))
    found = [entry for name, rows in unsure.items() for entry in sorted(rows)[: shares[name]]]
    return [row for _, _, row in sorted(found)]


def _drawn(rest: Sequence[Candidate], number: int, design: Design) -> list[ChosenRow]:
    """Draw rows at random within strata."""
    number = min(number, len(rest))
    if not number:
        return []
    strata = _strata(rest, number, stratified=design.stratified)
    sizes = {name: len(rows) for name, rows in strata.items()}
    # In equal shares up to those that `random` adds to the least sure, so that rare labels are seen, too.
    even = max(0, number - design.random) if design.stratified else 0
    shares = _shares(sizes, number, even)
    draw = random.Random(f"batchchat review {design.seed}")  # noqa: S311 - a sample that can be drawn again
    found = []
    for name in sorted(strata):
        probability = shares[name] / sizes[name]
        found += [
            ChosenRow(row.place, "random", probability, row.stratum) for row in draw.sample(strata[name], shares[name])
        ]
    draw.shuffle(found)
    return found


def _strata(rows: Sequence[Candidate], number: int, *, stratified: bool) -> dict[str, list[Candidate]]:
    """Divide rows into at most `number` strata. The smallest are joined: else some rows could not be drawn at all."""
    sizes = Counter(row.stratum if stratified else "" for row in rows)
    own = {name for name, _ in sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[: max(0, number - 1)]}
    own = set(sizes) if len(sizes) <= number else own
    found: dict[str, list[Candidate]] = {}
    for row in rows:
        name = row.stratum if stratified else ""
        found.setdefault(f"={name}" if name in own else "others", []).append(row)
    return found


def _shares(sizes: dict[str, int], number: int, even: int) -> dict[str, int]:
    """Divide `number` draws: one for each stratum, `even` of them in equal shares, the rest in proportion to sizes."""
    equal = _equal_shares(sizes, max(even, len(sizes)))
    shares = {name: max(1, equal[name]) for name in sizes}
    left = number - sum(shares.values())
    if left <= 0:
        return _equal_shares(sizes, number)
    room = {name: sizes[name] - shares[name] for name in sizes}
    whole = sum(room.values())
    exact = {name: left * room[name] / whole if whole else 0.0 for name in sizes}
    for name in sizes:
        shares[name] += int(exact[name])
    # The largest remainders get what is left; the name decides between equal ones.
    order = sorted(sizes, key=lambda name: (int(exact[name]) - exact[name], name))
    left = number - sum(shares.values())
    while left > 0:
        for name in order:
            if left > 0 and shares[name] < sizes[name]:
                shares[name] += 1
                left -= 1
    return shares


def _equal_shares(sizes: dict[str, int], number: int) -> dict[str, int]:
    """Divide `number` among strata in equal shares; what one cannot fill goes to the others."""
    shares = dict.fromkeys(sizes, 0)
    left = min(number, sum(sizes.values()))
    while left > 0:
        open_ = sorted(name for name in sizes if shares[name] < sizes[name])
        each = max(1, left // len(open_))
        for name in open_:
            more = min(each, sizes[name] - shares[name], left)
            shares[name] += more
            left -= more
    return shares
