"""How a run with workers ended: what its workers told, added up, and what went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from batchchat.errors import BatchchatError
from batchchat.events import RunSummary
from batchchat.runner.run_summary import plain
from batchchat.store.joined_runs import joined_summaries, worst_code
from batchchat.workers.reports import LOOK, Loss
from batchchat.workers.setting import TeamSetting
from batchchat.workers.sums import summary_of, summary_of_nothing
from batchchat.workers.team import GOES_ON, Team


def team_summary(setting: TeamSetting, team: Team, elapsed_s: float) -> RunSummary:
    """Return how a run ended, as one run. Blocking code: it may have to count the rows of the input."""
    found = team.reports.summaries
    joined = joined_summaries(found) if found else plain(summary_of_nothing(setting.job, setting.run_id))
    summary = replace(summary_of(joined), run_id=setting.run_id, elapsed_s=elapsed_s, output=setting.job.output.path)
    ended = {number for one in found for number in one["shards"]}
    # A claim that a worker ran to the end has told all of its rows. If one has not, the input says how many are open.
    if len(ended) < len(setting.shards.chosen) or any(one["exit_code"] not in GOES_ON for one in found):
        summary = _with_rows(summary, setting)
    summary = _with_end(summary, setting, team)
    settled, counts = summary.new_ok + summary.new_failed, team.progress()
    return replace(
        summary,
        # Workers that died left no summary; what they had told last is a quarter of a second old.
        sent=max(summary.sent, counts.attempts),
        retries=max(summary.retries, counts.retries),
        rate_limited=max(summary.rate_limited, counts.rate_limited),
        rows_per_s=settled / summary.elapsed_s if summary.elapsed_s > 0 else 0.0,
        budget=setting.budget_use() or summary.budget,
        resume=setting.options.command if summary.open or summary.resume else None,
    )


def _with_rows(summary: RunSummary, setting: TeamSetting) -> RunSummary:
    """Count the rows of the pass, of which some were not read: so that the number of open ones is exact."""
    try:
        rows = setting.source.known_rows()
        rows = setting.source.count_rows() if rows is None else rows
    except BatchchatError:
        # The input has gone meanwhile. Why the run ended is worth more than this number.
        return summary
    rows = setting.rows_of_pass(rows)
    left = rows * setting.job.samples - summary.ok - summary.failed - summary.skipped
    return replace(summary, rows=rows, open=max(0, left))


def _with_end(summary: RunSummary, setting: TeamSetting, team: Team) -> RunSummary:
    """Add why the run ended: of all that went wrong, what a person must know first."""
    ends = [(summary.exit_code, summary.reason, summary.remedy)]
    ends += [(loss.exit_code, loss.message, loss.remedy) for loss in (*team.reports.losses, *_given_up(team))]
    if setting.control.asked:
        ends.append((setting.control.exit_code or 1, setting.control.reason, None))
    if team.halt is not None:
        ends.append((team.halt.exit_code, team.halt.message, team.halt.remedy))
    code = worst_code(end[0] for end in ends)
    # The newest of equal ends is the coordinator's own word.
    _, reason, remedy = next(end for end in reversed(ends) if end[0] == code)
    return replace(summary, exit_code=code, reason=reason, remedy=remedy)


def _given_up(team: Team) -> Sequence[Loss]:
    return [
        Loss(f"shards {', '.join(map(str, claim))} killed every worker that took them", LOOK, 70)
        for claim in team.claims.given_up
    ]
