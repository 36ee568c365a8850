"""The verdict of an evaluation in a sentence or two: who leads by a score, whether that is sure, and at what price."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchchat.format import count, money
from batchchat.report.suite_figures import score_text
from batchchat.report.suite_folder import ScoreMeaning, SuiteFolder, better

_MOST_NAMED = 4
"""Names in one sentence: more are counted."""


def verdict_of(suite: SuiteFolder, score: ScoreMeaning) -> str:
    """Say by one score which variant is best, or which may be; empty if no direction is better or nothing is scored."""
    ranked = suite.ranked(score) if score.higher_is_better is not None else []
    if not ranked:
        return ""
    best, others = ranked[0], ranked[1:]
    name = str(best.get("name"))
    if not others:
        return f"{name} is the only variant{_told(best, score)}, by {score.name}."
    pairs = [(other, suite.comparison(name, str(other.get("name")), score.name) or {}) for other in others]
    open_ = [(other, pair) for other, pair in pairs if better(pair, score) != name]
    # Every test against another variant says that this one is better.
    if not open_:
        return f"{name} is the best by {score.name}{_told(best, score)}; next is {_second(others[0], score)}."
    alike = [other for other, pair in open_ if pair.get("equivalent")]
    rivals = [other for other, pair in open_ if not pair.get("equivalent")]
    needed = max((pair.get("needed_n") or 0 for _, pair in open_), default=0) if rivals else 0
    parts = []
    if alike:
        parts.append(f"{_names(alike)} {'is' if len(alike) == 1 else 'are'} equivalent to it")
    if rivals:
        parts.append(f"{_names(rivals)} may be as good or better")
    if needed:
        parts.append(f"about {count(needed)} rows would settle it")
    return f"{name} leads by {score.name}{_told(best, score)}{', but' if rivals else ';'} {'; '.join(parts)}."


def cost_of(suite: SuiteFolder) -> str:
    """Say what 1,000 rows cost of the cheapest and of the dearest variant; empty if prices are not known or differ."""
    priced = []
    for variant in suite.variants:
        rows, cost = variant.get("rows"), variant.get("cost")
        if rows and cost is not None:
            priced.append((1_000 * cost / rows, str(variant.get("name")), variant.get("currency")))
    if not priced or len({currency for _, _, currency in priced}) > 1:
        return ""
    low, high = min(priced), max(priced)
    if len(priced) == 1:
        return f"1,000 rows cost {money(low[0], low[2])}."
    if low[0] == high[0]:
        return f"1,000 rows cost {money(low[0], low[2])} with each variant."
    return f"1,000 rows cost from {money(low[0], low[2])} ({low[1]}) to {money(high[0], high[2])} ({high[1]})."


def _told(variant: Mapping[str, Any], score: ScoreMeaning) -> str:
    """Say the mean with its interval; nothing for a score without means."""
    one = (variant.get("scores") or {}).get(score.name) or {}
    if one.get("mean") is None:
        return ""
    currency, low, high = variant.get("currency"), one.get("ci_low"), one.get("ci_high")
    interval = ""
    if low is not None and high is not None:
        ends = (score_text(value, score.unit, currency) for value in (low, high))
        interval = f" (95% interval {' to '.join(ends)})"
    return f", with {score_text(one['mean'], score.unit, currency)}{interval}"


def _second(variant: Mapping[str, Any], score: ScoreMeaning) -> str:
    mean = ((variant.get("scores") or {}).get(score.name) or {}).get("mean")
    told = "" if mean is None else f" with {score_text(mean, score.unit, variant.get('currency'))}"
    return f"{variant.get('name')}{told}"


def _names(variants: list[Mapping[str, Any]]) -> str:
    names = [str(variant.get("name")) for variant in variants]
    if len(names) > _MOST_NAMED:
        return f"{len(names)} other variants"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
