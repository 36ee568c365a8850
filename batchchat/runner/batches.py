"""A run through a provider's Batch API: its service, its price and its engine, made of what the run has."""

from __future__ import annotations

from collections.abc import Callable

from batchchat.budget import Budget
from batchchat.credentials import Credential
from batchchat.dataclass import dataclass
from batchchat.endpoints.registry import ProviderAccess
from batchchat.engines.batch.building import Asker
from batchchat.engines.batch.carried import Carried
from batchchat.engines.batch.engine import BatchEngine
from batchchat.engines.batch.harvest import Terms
from batchchat.engines.batch.prices import batch_tariff
from batchchat.engines.batch.service import BatchService
from batchchat.engines.batch.services import open_service
from batchchat.engines.batch.setting import POLL_FIRST_S, BatchSetting, Means
from batchchat.engines.port import Engine
from batchchat.engines.state import Surroundings
from batchchat.job import Job
from batchchat.money import Tariff
from batchchat.providers import DEMO, Provider
from batchchat.runner.options import RunOptions
from batchchat.runner.preparation import Prepared
from batchchat.store import HeldOutput

OpenService = Callable[..., BatchService]

_DEMO_POLL_S = 1.0
"""Seconds between two looks at batches of the demo provider, which end after about two seconds."""


@dataclass(frozen=True, slots=True)
class BatchParts:
    """What a batch engine is made of.

    `job_answered` says that the model has answered this job as it is. The environment of `access` holds the keys of a
    bucket. `single` makes the engine for what batches did not answer, None if the job asks for none. `connect` takes
    the place of `open_service` in tests.
    """

    job: Job
    prepared: Prepared
    provider: Provider
    options: RunOptions
    run_id: str
    prompt_id: str
    store: HeldOutput
    job_answered: bool
    budget: Budget | None
    api_key: Credential
    access: ProviderAccess
    surroundings: Surroundings
    single: Callable[[], Engine] | None
    connect: OpenService | None

    def tariff(self) -> Tariff | None:
        """Return what the model's tokens cost in a batch, None if it is not known."""
        return batch_tariff(self.provider, self.job.model, self.job.engine)

    def engine(self) -> BatchEngine:
        """Return the engine. Raises UsageError if the provider's batches cannot be used as the job says."""
        job, fields, store = self.job, self.job.engine, self.store
        service = (self.connect or open_service)(
            self.provider,
            fields,
            api_key=self.api_key,
            environ=self.access.environ,
            model=job.model,
            transport=self.access.transport,
        )
        folder = store.location.batches()
        acceptance = None if self.prepared.acceptance.idle else self.prepared.acceptance
        setting = BatchSetting(
            folder=folder,
            asker=Asker(job.name, self.run_id, self.prompt_id, job.model),
            terms=Terms(
                acceptance, job.retry.attempts, fields.rounds, tariff=self.tariff(), job_answered=self.job_answered
            ),
            poll=fields.poll,
            poll_first=_DEMO_POLL_S if self.provider.name == DEMO else POLL_FIRST_S,
            lines=fields.max_lines,
            nbytes=fields.max_bytes,
            queued_tokens=fields.queued_tokens,
            outage=job.retry.outage,
            keep_files=fields.keep_files is not False,
            wait=self.options.wait,
            cancel=self.options.cancel_batches,
            deadline=job.deadline,
        )
        steps = {custom_id: len(answers) for custom_id, answers in store.open_answers().items()}
        account = self.budget.account(self.tariff(), self.provider.currency) if self.budget is not None else None
        means = Means(
            service,
            setting,
            Carried(store.index, store.keys, steps, folder),
            self.surroundings.listener,
            account=account,
            onward=self.single,
            rng=self.surroundings.rng,
            offload=self.surroundings.offload,
        )
        return BatchEngine(means)
