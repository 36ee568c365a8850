"""The looks of an evaluation that stops when it is settled, for its page: what each one decided, and what was saved."""

from __future__ import annotations

from typing import NamedTuple

from batchchat.format import count, plural
from batchchat.report.suite_folder import SuiteFolder


class LookLine(NamedTuple):
    """One look: after how many rows of each variant it comes, whether it was taken, and which variants it dropped."""

    number: int
    rows: int
    state: str
    dropped: list[str]


class ReportedLooks(NamedTuple):
    """What the looks came to in a sentence, the score that decides, and a line for each look."""

    told: str
    score: str
    lines: list[LookLine]


def looks_of(suite: SuiteFolder) -> ReportedLooks | None:
    """Return the looks of an evaluation, None if it asks every row."""
    found = suite.sequential
    if found is None:
        return None
    plan = [int(rows) for rows in found.get("plan") or ()]
    taken, settled = int(found.get("looks") or 0), bool(found.get("settled"))
    dropped = {str(name): int(rows) for name, rows in (found.get("dropped") or {}).items()}
    lines = []
    for number, rows in enumerate(plan, 1):
        if number < taken:
            state = "went on"
        elif number == taken:
            # The latest look that was taken: only the last one of the plan ends without a verdict.
            state = "settled" if settled else "not settled" if number == len(plan) else "went on"
        else:
            state = "not needed" if settled else "to come"
        lines.append(LookLine(number, rows, state, [name for name, at in dropped.items() if at == rows]))
    return ReportedLooks(_told(suite, plan, taken, settled=settled), str(found.get("score") or ""), lines)


def _told(suite: SuiteFolder, plan: list[int], taken: int, *, settled: bool) -> str:
    found = suite.sequential or {}
    asked, fixed = int(found.get("asked") or 0), int(found.get("fixed") or 0)
    rows = int(found.get("rows") or 0)
    ended = "Settled" if settled else "Not settled"
    text = f"{ended} after {plural(taken, 'look')}, at {count(rows)} of {count(plan[-1] if plan else 0)} rows: "
    text += f"{count(asked)} of {count(fixed)} answers were asked"
    if 0 < asked < fixed:
        text += f", {1 - asked / fixed:.0%} fewer than for all rows"
    return f"{text}."
