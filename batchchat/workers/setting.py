"""What the parts of a run with workers share: the job, its options, who steers it, and where its output lies."""

from __future__ import annotations

from batchchat.dataclass import dataclass
from batchchat.events import BudgetUse, Listener
from batchchat.job import Job
from batchchat.runner.control import Control
from batchchat.runner.options import RunOptions
from batchchat.runner.writer import Offload
from batchchat.sources import Source
from batchchat.store import Shards
from batchchat.store.coordinated import CoordinatedOutput
from batchchat.workers.limits import LimitsOfAll


@dataclass(frozen=True, slots=True)
class TeamSetting:
    """What a coordinator, its team and their summary know of one run.

    `source` is the input, asked only how many rows it has. `started` is on the clock of the event loop.
    """

    job: Job
    options: RunOptions
    control: Control
    output: CoordinatedOutput
    shards: Shards
    source: Source
    limits: LimitsOfAll
    started: float
    tell: Listener
    offload: Offload

    @property
    def run_id(self) -> str:
        """The identity of the run, which its workers have too."""
        return self.options.run_id or ""

    def budget_use(self) -> BudgetUse | None:
        """Return what is used of the budget of all workers; None if there is none."""
        budget = self.limits.budget
        return None if budget is None else budget.use()

    def rows_of_pass(self, rows: int) -> int:
        """Return how many of so many rows of the input this run takes up: `--limit` and `--sample` take fewer."""
        most = self.options.most_rows
        return rows if most is None else min(rows, most)
