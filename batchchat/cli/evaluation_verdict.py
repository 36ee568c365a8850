"""The variants of an evaluation, a line each and the best first, their pairs with the leader, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from batchchat.cli.blocks import alarm, blank, line, plain_text, styled
from batchchat.cli.evaluation_numbers import mean_unit_of, number_of, signed, unit_of
from batchchat.dataclass import dataclass
from batchchat.evaluation.results.summary import ScorerSummary, SuiteSummary, VariantSummary
from batchchat.evaluation.statistics.comparison import Comparison, ScoreSummary, leader
from batchchat.format import UNKNOWN, count, duration, money, plural

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table
    from rich.text import Text

_NAME_LEAST = 24
"""Columns that a name has at least: shortened to fewer, names of variants look alike. Chosen."""
_PAIR_WIDTH = 41
"""Columns of a difference with its interval and verdict: `+0.031 [+0.012, +0.050] open, ~1,200 rows`."""
_GAP = 3
"""Columns between two columns of a table, as rich draws them without lines, and one to tell them apart."""
_MOST_LINES = 40
"""Lines of a page before scores are left to the report. Chosen, not measured."""
_OTHER_LINES = 16
"""Lines of a page beside those of variants: headings, legends, notes, files and the verdict."""


@dataclass(frozen=True, slots=True)
class VariantOrder:
    """The variants of an evaluation in the order of its leading score, and what is shown of it.

    `lead` is the score that decides or, without one, the first that has a better direction. `scorers` leaves out those
    that say the same as an earlier one, which `same` tells. `numbers` are the places of variants by name.
    """

    summary: SuiteSummary
    variants: tuple[VariantSummary, ...]
    scorers: tuple[ScorerSummary, ...]
    same: dict[str, str]
    lead: ScorerSummary | None
    numbers: dict[str, str]


def ranked(summary: SuiteSummary) -> VariantOrder:
    """Put variants into their order; those without a mean come last."""
    shown: list[ScorerSummary] = []
    same: dict[str, str] = {}
    told: dict[object, str] = {}
    for scorer in summary.scorers:
        scores = [variant.scores.get(scorer.name) for variant in summary.variants]
        # Scores of all variants that are equal to the last digit measure the same: they are shown once.
        facts = tuple(None if one is None else (one.mean, one.ci_low, one.ci_high, one.n, one.unit) for one in scores)
        # Two scores without any value look the same, and are not.
        known = any(one is not None and one.mean is not None for one in scores)
        first = told.setdefault(facts, scorer.name) if known else scorer.name
        if first == scorer.name:
            shown.append(scorer)
        else:
            same[scorer.name] = first
    decided = None if summary.sequential is None else summary.sequential.score
    # Looked for among all: it may be left out of `shown`, as the same as an earlier one.
    lead = next((one for one in summary.scorers if one.name == decided), None)
    lead = lead or next((one for one in shown if one.higher_is_better is not None), None)
    if lead is not None:
        # The score that decides stands first.
        shown = [lead, *(one for one in shown if one.name not in {lead.name, same.get(lead.name)})]
    # What was dropped was asked fewer rows: its mean says nothing against those of the others.
    dropped = () if summary.sequential is None else summary.sequential.dropped
    variants = sorted(summary.variants, key=lambda variant: (variant.name in dropped, *_place(variant, lead)))
    numbers = {variant.name: str(number) for number, variant in enumerate(variants, 1)}
    return VariantOrder(summary, tuple(variants), tuple(shown), same, lead, numbers)


def _place(variant: VariantSummary, lead: ScorerSummary | None) -> tuple[bool, float]:
    mean = None if lead is None or lead.name not in variant.scores else variant.scores[lead.name].mean
    if mean is None or lead is None:
        # True sorts behind False: without a mean, a variant comes last whichever direction is better.
        return True, 0.0
    return False, mean if lead.higher_is_better is False else -mean


class _Column(NamedTuple):
    """A column of a table before it is known whether there is room for it."""

    header: str
    cells: list[Text]

    @property
    def width(self) -> int:
        """Return the characters that it takes, with the gap before it."""
        return max(len(self.header), *(len(cell.plain) for cell in self.cells)) + _GAP


class VariantTable:
    """A line for each variant: the leading score with its interval, other means, and what 1,000 rows cost and take.

    Scores that have no room beside each other get tables of their own, as long as the whole page stays short.
    """

    def __init__(self, ranking: VariantOrder) -> None:
        self._ranking = ranking
        self._best = {one.name: leader(ranking.summary.of(one.name)) for one in ranking.scorers}
        self._shown = [one for one in ranking.scorers if any(one.name in each.scores for each in ranking.variants)]

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yield the tables, and what they show."""
        facts = self._facts()
        scores = [self._score_column(scorer, interval=at == 0) for at, scorer in enumerate(self._shown)]
        lines = _OTHER_LINES + len(self._ranking.variants)
        names = [scorer.name for scorer in self._shown]
        while scores or facts:
            lines += len(self._ranking.variants) + 3
            # The report has all scores. A terminal that scrolls hides the verdict above.
            if not facts and lines > _MOST_LINES:
                break
            room = options.max_width - 1 - _GAP - _NAME_LEAST - sum(column.width for column in facts)
            taken = 0
            # One column at least, however narrow the terminal is: else this would never end.
            while scores[taken:] and (taken == 0 or room >= scores[taken].width):
                room -= scores[taken].width
                taken += 1
            if not facts:
                yield blank()
            yield self._table([*scores[:taken], *facts], _NAME_LEAST + max(0, room))
            scores, names, facts = scores[taken:], names[taken:], []
        yield from self._legend(names)

    def _table(self, columns: Sequence[_Column], name_width: int) -> Table:
        table = _plain_table()
        table.add_column("", style="dim", no_wrap=True)
        table.add_column("", no_wrap=True)
        for column in columns:
            table.add_column(column.header, justify="right", no_wrap=True)
        for at, variant in enumerate(self._ranking.variants):
            name = shortened(line(variant.name), name_width)
            table.add_row(str(at + 1), name, *(column.cells[at] for column in columns))
        return table

    def _score_column(self, scorer: ScorerSummary, *, interval: bool) -> _Column:
        best = self._best[scorer.name]
        return _Column(
            f"{scorer.name}{mean_unit_of(scorer)}",
            [
                score_text(variant.scores.get(scorer.name), best=best == variant.name, interval=interval)
                for variant in self._ranking.variants
            ],
        )

    def _facts(self) -> list[_Column]:
        """Return the columns that are no scores; those of failures and open answers only if there are any."""
        variants = self._ranking.variants
        found = [
            _Column(name, [alarm(getattr(variant, name), style) for variant in variants])
            for name, style in (("failed", "bold red"), ("open", "yellow"))
            if self._any(name)
        ]
        costs = [
            None if variant.cost is None or not variant.rows else 1000 * variant.cost / variant.rows
            for variant in variants
        ]
        told = [styled(money(cost, one.currency)) for cost, one in zip(costs, variants, strict=True)]
        found.append(_Column("1,000 rows", told))
        found.append(_Column("p50", [styled(duration(variant.latency_p50_s)) for variant in variants]))
        found.append(_Column("p95", [styled(duration(variant.latency_p95_s)) for variant in variants]))
        return found

    def _any(self, name: str) -> bool:
        return any(getattr(variant, name) for variant in self._ranking.variants)

    def _legend(self, left: Sequence[str]) -> Iterator[RenderableType]:
        if not self._shown:
            return
        told = "mean [95 % interval]; cost of 1,000 rows; latency"
        if any(self._best.values()):
            told += "; best: surely better than every other variant"
        if self._ranking.same:
            told += f"; {', '.join(f'{new} is the same as {old}' for new, old in self._ranking.same.items())}"
        if left:
            told += f"; in the report: {', '.join(left)}"
        yield plain_text(told, "dim")


def score_text(score: ScoreSummary | None, *, best: bool, interval: bool) -> Text:
    """Write a mean, with its interval if that is wanted."""
    if score is None or score.mean is None:
        return styled(UNKNOWN, "dim")
    text = styled(number_of(score.mean, score.unit), "bold green" if best else "bold")
    if interval and score.ci_low is not None and score.ci_high is not None:
        low, high = number_of(score.ci_low, score.unit), number_of(score.ci_high, score.unit)
        text.append(f" [{low}, {high}]", style="not bold dim")
    return text.append(" best", style="bold green") if best else text


def shortened(text: str, width: int) -> str:
    """Shorten a text to a width by cutting the middles of its longest words, so that a trace of each word is left."""
    words = text.split(" ")
    # A shorter word has no middle to cut.
    while len(" ".join(words)) > width and max(map(len, words)) > 5:
        at = max(range(len(words)), key=lambda number: len(words[number]))
        word = words[at].replace("…", "")
        half = len(words[at]) // 2 - 1
        words[at] = f"{word[:half]}…{word[-(len(words[at]) - half - 2) :]}"
    shown = " ".join(words)
    return shown if len(shown) <= width else f"{shown[: width - 1]}…"


class LeaderTable:
    """The differences of all other variants from the leader, as many scores beside each other as there is room for."""

    def __init__(self, ranking: VariantOrder) -> None:
        self._ranking = ranking
        compared = {one.scorer for one in ranking.summary.comparisons}
        self._scorers = [one for one in ranking.scorers if one.name in compared]

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yield the table, and what its intervals are."""
        fit = max(1, (options.max_width - 8) // _PAIR_WIDTH)
        shown = self._scorers[:fit]
        first, *others = self._ranking.variants
        table = _plain_table()
        table.add_column("", no_wrap=True)
        for scorer in shown:
            table.add_column(f"{scorer.name}{unit_of(scorer)}", overflow="fold")
        pairs = {(one.scorer, one.a, one.b): one for one in self._ranking.summary.comparisons}
        for other in others:
            cells = [
                self._cell(pairs.get((one.name, first.name, other.name)), pairs.get((one.name, other.name, first.name)))
                for one in shown
            ]
            table.add_row(f"1 less {self._ranking.numbers[other.name]}", *cells)
        yield table
        told = "intervals are those of one pair, verdicts are adjusted for all pairs"
        if self._ranking.summary.sequential is not None and shown:
            told = f"those of {shown[0].name} are adjusted for all looks and pairs; other {told}"
        yield plain_text(f"{told}; more in the report", "dim")

    def _cell(self, straight: Comparison | None, turned: Comparison | None) -> Text:
        one = straight or turned
        if one is None or one.difference is None:
            return styled(UNKNOWN if one is None else one.reason or UNKNOWN, "dim")
        difference, low, high = one.difference, one.ci_low, one.ci_high
        # The pair was compared the other way round: its ends change places with their signs.
        if straight is None:
            difference, low, high = -difference, *(None if end is None else -end for end in (high, low))
        text = styled(signed(difference, one.unit), "bold" if one.settled else "")
        if low is not None and high is not None:
            text.append(f" [{signed(low, one.unit)}, {signed(high, one.unit)}]", style="not bold dim")
        words, style = self._verdict(one)
        return text.append(f" {words}", style=style)

    def _verdict(self, one: Comparison) -> tuple[str, str]:
        if one.equivalent:
            return f"within {number_of(one.margin or 0.0, one.unit)}", "not bold green"
        if one.better is not None:
            return ("better" if one.better == self._ranking.variants[0].name else "worse"), "not bold green"
        if one.settled:
            return "differs", "not bold"
        needed = f", ~{count(one.needed_n)} rows" if one.needed_n is not None and one.needed_n > one.n else ""
        return f"open{needed}", "not bold dim"


def verdict(ranking: VariantOrder) -> list[str]:
    """Return the verdict in a sentence or two: who leads and how surely, and what that took."""
    told = []
    if ranking.lead is not None and len(ranking.variants) > 1:
        sentence = _leads(ranking, ranking.lead)
        if sentence:
            told.append(sentence)
    looks = _looks(ranking)
    if looks:
        told.append(looks)
    others = []
    for scorer in ranking.scorers:
        if scorer.higher_is_better is None or scorer is ranking.lead:
            continue
        best = best_mean(ranking.summary, scorer)
        groups = standings(ranking.summary, scorer, ranking.numbers, best)
        # Of variants that are all level with each other, none is the best one.
        if best is not None and groups.keys() - {"level with"}:
            # The best mean alone is no evidence: only tests against all others are.
            sure = "" if groups.keys() == {"better than"} else " (not sure)"
            others.append(f"{scorer.name} {ranking.numbers[best]}{sure}")
    # Alone they would read as the verdict.
    if others and told:
        told.append(f"Best by other scores: {', '.join(others)}.")
    return told


def _leads(ranking: VariantOrder, scorer: ScorerSummary) -> str:
    """Return who leads by a score, against which variants that is sure, and by how much it leads the next one."""
    first = ranking.variants[0]
    score = first.scores.get(scorer.name)
    groups = standings(ranking.summary, scorer, ranking.numbers, first.name)
    if score is None or score.mean is None or not groups:
        return ""
    against = "; ".join(f"{words} {listed(others)}" for words, others in groups.items())
    mean = number_of(score.mean, score.unit)
    text = f"{line(first.name)} (1) leads in {scorer.name}{mean_unit_of(scorer)} with {mean}: {against}."
    following = ranking.variants[1].name
    pair = next((one for one in ranking.summary.of(scorer.name) if {one.a, one.b} == {first.name, following}), None)
    if pair is None or pair.difference is None or pair.ci_low is None or pair.ci_high is None:
        return text
    ends = (pair.difference, pair.ci_low, pair.ci_high)
    if pair.a != first.name:
        # Turned round, the ends of the interval change places with their signs.
        ends = (-pair.difference, -pair.ci_high, -pair.ci_low)
    difference, low, high = (signed(end, pair.unit) for end in ends)
    looked = ranking.summary.sequential is not None
    adjusted = f" on {plural(pair.n, 'row')}, adjusted for looks and pairs" if looked else ""
    return f"{text[:-1]}. Against 2 it is {difference} [{low}, {high}]{adjusted}."


def _looks(ranking: VariantOrder) -> str:
    """Return what the looks of an evaluation came to, nothing if every row was asked."""
    found = ranking.summary.sequential
    if found is None:
        return ""
    fewer = f"{count(found.asked)} of {count(found.fixed)} answers were asked"
    if found.asked < found.fixed:
        fewer += f", {found.saved:.0%} fewer than for all rows"
    after = f"after {count(found.rows)} of {count(found.plan[-1])} rows"
    text = f"Settled {after}: {fewer}" if found.settled else f"Not settled {after}: {fewer}"
    if not found.ended:
        text += f"; look {found.looks + 1} of {len(found.plan)} comes next"
    if found.dropped:
        gone = [f"{ranking.numbers[name]} after {plural(rows, 'row')}" for name, rows in found.dropped.items()]
        text += f". Surely worse and dropped: {', '.join(gone)}"
    return f"{text}."


def standings(
    summary: SuiteSummary, scorer: ScorerSummary, numbers: Mapping[str, str], best: str | None
) -> dict[str, list[str]]:
    """Return the other variants by what is known of the best one against them."""
    groups: dict[str, list[str]] = {"better than": [], "level with": [], "equivalent to": [], "open against": []}
    for one in summary.of(scorer.name):
        # How the others stand among themselves does not touch the first place.
        if best is None or best not in {one.a, one.b}:
            continue
        other = numbers.get(one.b if one.a == best else one.a, UNKNOWN)
        if one.equivalent:
            group = "equivalent to"
        elif one.better == best:
            group = "better than"
        else:
            group = "open against" if one.difference else "level with"
        groups[group].append(other)
    return {words: sorted(others, key=_by_number) for words, others in groups.items() if others}


def _by_number(name: str) -> tuple[int, str]:
    # As texts, 10 would come before 2.
    return (int(name), "") if name.isdecimal() else (0, name)


def listed(names: Sequence[str]) -> str:
    """Write names as a list in words."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def best_mean(summary: SuiteSummary, scorer: ScorerSummary) -> str | None:
    """Return the variant with the best mean, None if none has a mean."""
    means = {
        variant.name: score.mean
        for variant in summary.variants
        if (score := variant.scores.get(scorer.name)) is not None and score.mean is not None
    }
    best = min if scorer.higher_is_better is False else max
    return best(means, key=means.__getitem__) if means else None


def _plain_table() -> Table:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
