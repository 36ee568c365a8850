"""What the rooms of a run share: its parts, and how far it has come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchchat.budget import Budget
from batchchat.dataclass import dataclass
from batchchat.engines.port import Engine
from batchchat.errors import BatchchatError
from batchchat.events import Listener, Phase
from batchchat.intake import Intake
from batchchat.job import Job
from batchchat.money import Tariff
from batchchat.providers import Provider
from batchchat.runner.control import Control
from batchchat.runner.forecast import Forecaster
from batchchat.runner.options import RunOptions
from batchchat.runner.preparation import Prepared
from batchchat.runner.tally import Tally
from batchchat.runner.wording import Wording
from batchchat.runner.writer import Offload, Writer
from batchchat.store import AnswerEntry, HeldOutput

if TYPE_CHECKING:
    from batchchat.runner.reuse import Reuse


@dataclass(slots=True)
class RunState:
    """A run that is prepared and connected.

    The parts stay as they are. `prompt_id` tells the job's prompt (see `runner.rows.prompt_id_of`). `open_answers` are
    the answers of an earlier run by `custom_id`; requests go on from them. `reuse` is None if no answers are shared.

    `phase`, `failed`, `read_all`, `counted`, `earlier_prompt` and `warnings` change as the run goes on. `failed` is why
    the input could not be read to its end, `read_all` is true once it was. `counted` is the number of rows of the pass
    if they had to be counted without being read. `earlier_prompt` is the number of records that the pass did not see
    and that answer another prompt, counted at its end.
    """

    job: Job
    options: RunOptions
    control: Control
    run_id: str
    prompt_id: str
    started: float
    tell: Listener
    offload: Offload
    prepared: Prepared
    provider: Provider
    budget: Budget | None
    store: HeldOutput
    wording: Wording
    tally: Tally
    forecaster: Forecaster
    intake: Intake
    writer: Writer
    engine: Engine
    reuse: Reuse | None
    warnings: list[str]
    open_answers: dict[str, list[AnswerEntry]]
    phase: Phase = "starting"
    failed: BatchchatError | None = None
    read_all: bool = False
    counted: int | None = None
    earlier_prompt: int = 0

    @property
    def sink(self) -> Reuse | Writer:
        """Return where outcomes go: to the writer, by way of those who share them if the job shares answers."""
        return self.reuse if self.reuse is not None else self.writer

    @property
    def tariff(self) -> Tariff | None:
        """Return what the job's model costs, None if that is not known."""
        return Tariff.of(self.provider.prices.get(self.job.model))

    @property
    def currency(self) -> str | None:
        """Return the currency of costs, None if no price is known."""
        return self.provider.currency if self.job.model in self.provider.prices else None
