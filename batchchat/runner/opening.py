"""Opening what a run needs: output, answer cache, provider, engine, writer."""

from __future__ import annotations

import functools
import secrets
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from batchchat.addresses import address_of
from batchchat.budget import Budget
from batchchat.dataclass import dataclass
from batchchat.endpoints.endpoint import Endpoint
from batchchat.endpoints.registry import Keys, ProviderAccess, Registry, needs_demo
from batchchat.endpoints.route import EndpointRoute
from batchchat.engines.local import LocalEngine
from batchchat.engines.port import Engine
from batchchat.engines.refusals import Refusals
from batchchat.engines.state import Surroundings
from batchchat.events import Event, Snapshot
from batchchat.intake import Intake
from batchchat.job import Job
from batchchat.job.sections import BATCH_FORMAT
from batchchat.job.targets import has_several, targets_of
from batchchat.money import Tariff
from batchchat.records import Answerer, Record
from batchchat.retry import RetryPolicy
from batchchat.runner.control import Control
from batchchat.runner.ending import SHARED_ANSWERS
from batchchat.runner.forecast import Forecaster
from batchchat.runner.options import RunOptions
from batchchat.runner.preparation import Prepared
from batchchat.runner.record_maker import CommonFields
from batchchat.runner.rows import pass_of, prompt_id_of
from batchchat.runner.state import RunState
from batchchat.runner.tally import Tally
from batchchat.runner.wording import Wording
from batchchat.runner.writer import Writer
from batchchat.sources import GivenRows
from batchchat.store import HeldOutput, Store

if TYPE_CHECKING:
    from batchchat.cache import AnswerCache
    from batchchat.runner.batches import OpenService
    from batchchat.runner.reuse import Reuse


@dataclass(frozen=True, slots=True)
class RunSetting:
    """What a run is given: its options, who steers and hears it, and what takes the place of the usual in tests.

    `run_job` says what each of them is. The environment of `access` has the keys that it found.
    """

    options: RunOptions
    rows: GivenRows | None
    control: Control
    surroundings: Surroundings
    access: ProviderAccess
    on_snapshot: Callable[[Snapshot], None] | None
    on_record: Callable[[Record], None] | None
    open_store: Callable[..., Store]
    open_service: OpenService | None
    tick_s: float


class RunOpening:
    """Opens what a run needs: output, answer cache, provider, engine, writer. `stack` holds them until it is left."""

    def __init__(self, job: Job, prepared: Prepared, budget: Budget | None, setting: RunSetting) -> None:
        self._job = job
        self._prepared = prepared
        self._provider = prepared.provider
        self._tariff = Tariff.of(prepared.provider.prices.get(job.model))
        self._tier = prepared.provider.tiers.get(job.params.service_tier or "", 1.0)
        self._budget = budget
        self._setting = setting
        self._access = setting.access
        self._tell = setting.surroundings.listener
        self._offload = setting.surroundings.offload
        self._warnings: list[str] = []
        self._run_id = setting.options.run_id or new_run_id()
        reopens = setting.options.retry_failed
        self._reopens = job.retry.reopens() if reopens is None else reopens

    def open_store(self) -> HeldOutput:
        """Open the output, and say what had to be recovered. Blocking code; raises as `Store.open` does."""
        job, setting, shards = self._job, self._setting, self._prepared.shards
        open_store: Callable[..., HeldOutput] = setting.open_store
        if shards is not None:
            from batchchat.store.sharded import ShardedStore

            open_store = functools.partial(ShardedStore.open, shards=shards, open_shard=setting.open_store)
        store = open_store(
            address_of(job.output.path),
            job_name=job.name,
            snapshot=job.snapshot(),
            run_id=self._run_id,
            input_schema=self._prepared.source.schema,
            parsed=self._prepared.parsed,
            with_keys=job.input.key is not None,
            part_rows=job.output.part_rows,
            part_bytes=job.output.part_bytes,
            part_seconds=job.output.part_seconds,
            currency=self._provider.currency,
            fresh=setting.options.fresh,
            take_over=setting.options.take_over,
            outage=job.retry.outage,
            tell=lambda message: self._tell(Event("output_away", message, "warning")),
            following=pass_of(self._prepared, self._reopens),
        )
        if store.known is not None:
            # Which of them are done is asked once for all, and not again for each batch that is passed over.
            store.known.look_up(store.index, store.keys)
        renamed = store.recovery.renamed
        # Paid answers lie there: a person must know where, and how they go.
        if renamed is not None:
            message = f"the old output is kept as {renamed}; `batchchat clean {job.output.path}` removes old ones"
            self._tell(Event("set_aside", message, "info", {"path": renamed}))
        for message in store.recovery.messages:
            self._warnings.append(message)
            self._tell(Event("recovered", message, "warning"))
        return store

    async def open_cache(self, stack: AsyncExitStack, folder: Path) -> AnswerCache:
        """Open the answers that equal requests share."""
        from batchchat.cache import AnswerCache

        cache: AnswerCache = await self._offload(AnswerCache.open, folder)
        stack.push_async_callback(self._offload, cache.close)
        return cache

    async def connect(
        self, stack: AsyncExitStack, store: HeldOutput, wording: Wording, cache: AnswerCache | None, keys: Keys
    ) -> RunState:
        """Connect to the provider and join the parts of the run. `keys` are those of its endpoints."""
        job, setting, prepared = self._job, self._setting, self._prepared
        await self._find_provider(stack, store)
        # Without a cache that outputs share, equal requests of this one share their answers through a file of its own.
        if cache is None and job.dedupe:
            cache = await self.open_cache(stack, store.location.scratch(SHARED_ANSWERS))
        prompt_id = prompt_id_of(prepared)
        # Each line of a batch file names a model of its own, and endpoints have their own names for one.
        tally = Tally(
            one_model=job.input.format != BATCH_FORMAT and not has_several(job),
            steps=[step.model for step in job.cascade],
        )
        # The tier is one of single requests: batches have prices of their own.
        if job.engine.batch:
            engine, tariff = await self._make_batch_engine(stack, store, wording, prompt_id, keys)
        else:
            engine = self._make_engine(await self._open_endpoints(stack, keys), store, wording)
            tariff = self._tariff.times(self._tier) if self._tariff is not None else None
        by, cascaded = Answerer(self._provider.name), bool(job.cascade)
        common = CommonFields(self._run_id, prompt_id, job.engine.kind, by, cascaded, _now_us)
        writer = Writer(store, tally, common, offload=self._offload, listener=self._tell, on_error=engine.cancel)
        writer.on_record = setting.on_record
        return RunState(
            job=job,
            options=setting.options,
            control=setting.control,
            run_id=self._run_id,
            prompt_id=prompt_id,
            # Set by who executes the run: it began before its output was opened.
            started=0.0,
            tell=self._tell,
            offload=self._offload,
            prepared=prepared,
            provider=self._provider,
            budget=self._budget,
            store=store,
            wording=wording,
            tally=tally,
            forecaster=Forecaster(tariff),
            intake=self._make_intake(store),
            writer=writer,
            engine=engine,
            reuse=self._make_reuse(cache, writer) if cache is not None else None,
            warnings=self._warnings,
            open_answers=store.open_answers(),
        )

    async def _find_provider(self, stack: AsyncExitStack, store: HeldOutput) -> None:
        """Give a provider `demo` without an address a demo server in this process."""
        access, provider = self._access, self._provider
        if not needs_demo(self._job):
            return
        # The transport of a test answers by itself: no server is started.
        base_url = "http://demo.invalid/v1" if access.transport is not None else access.demo_url
        base_url = base_url or await self._start_demo(stack, store)
        self._access = access._replace(demo_url=base_url)
        if provider.base_url is None:
            self._provider = provider.with_base_url(base_url)

    async def _open_endpoints(self, stack: AsyncExitStack, keys: Keys) -> Endpoint | EndpointRoute:
        """Open the clients for single requests."""
        registry = Registry(self._job, stack, self._access, listener=self._tell, rng=self._setting.surroundings.rng)
        return await registry.open(keys)

    async def _start_demo(self, stack: AsyncExitStack, store: HeldOutput) -> str:
        from batchchat.demo import BatchOptions, DemoOptions, DemoServer

        offload = self._offload
        # The batches of a demo server that ends with this process go on in the next one.
        folder = store.location.batches() / "demo" if self._job.engine.batch else None
        server = DemoServer(DemoOptions(track_bodies=False, batch=BatchOptions(folder=folder)))
        await offload(server.start)
        stack.push_async_callback(offload, server.stop)
        return server.base_url

    async def _make_batch_engine(
        self, stack: AsyncExitStack, store: HeldOutput, wording: Wording, prompt_id: str, keys: Keys
    ) -> tuple[Engine, Tariff | None]:
        """Return the engine that sends batches, and what tokens cost there."""
        from batchchat.runner.batches import BatchParts

        job, setting = self._job, self._setting
        # Clients for single requests are opened only if the job sends what batches leave over.
        single: Callable[[], Engine] | None = None
        if job.engine.then == "local":
            single = functools.partial(self._make_engine, await self._open_endpoints(stack, keys), store, wording)
        parts = BatchParts(
            job=job,
            prepared=self._prepared,
            provider=self._provider,
            options=setting.options,
            run_id=self._run_id,
            prompt_id=prompt_id,
            store=store,
            job_answered=store.index.counts().ok > 0 and wording.known,
            budget=self._budget,
            api_key=keys[0][0],
            access=self._access,
            surroundings=setting.surroundings,
            single=single,
            connect=setting.open_service,
        )
        return parts.engine(), parts.tariff()

    def _make_engine(self, to: Endpoint | EndpointRoute, store: HeldOutput, wording: Wording) -> Engine:
        """Return the engine that sends single requests."""
        job, setting, provider = self._job, self._setting, self._provider
        retry, counts = job.retry, store.index.counts()
        account = self._budget.account(self._dearest(), provider.currency) if self._budget else None
        return LocalEngine(
            to,
            RetryPolicy(retry.attempts, retry.request_timeout, retry.row_deadline, retry.outage),
            setting.surroundings,
            account=account,
            refusals=Refusals(model_answered=counts.ok > 0, job_answered=counts.ok > 0 and wording.known),
            acceptance=None if self._prepared.acceptance.idle else self._prepared.acceptance,
        )

    def _dearest(self) -> Tariff | None:
        """Return the most that a token may cost, whoever of the job's targets answers; None if a price is not known.

        It covers the tier that is asked for, and the usual one, in which an answer may come.
        """
        tier = self._job.params.service_tier or ""
        found = []
        for target in targets_of(self._job):
            tariff = Tariff.of(target.provider.prices.get(target.model))
            found.append(tariff and tariff.times(max(1.0, target.provider.tiers.get(tier, 1.0))))
        return Tariff.dearest(found)

    def _make_intake(self, store: HeldOutput) -> Intake:
        job, prepared = self._job, self._prepared
        # Only answers that are shared need to know which requests are equal: it takes another digest of each.
        shares = job.cache is not None or job.dedupe
        intake = prepared.intake(store.index, store.keys, reopens=self._reopens, answer_ids=shares)
        if store.known is not None:
            intake.pass_over(store.known)
        return intake

    def _make_reuse(self, cache: AnswerCache, writer: Writer) -> Reuse:
        from batchchat.runner.reuse import Reuse

        return Reuse(
            cache,
            writer,
            self._prepared.acceptance,
            own=self._job.cache is None,
            offload=self._offload,
            listener=self._tell,
        )


def new_run_id() -> str:
    """Return an identity for a run: when it begins, in UTC, and six digits that no other run has."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def _now_us() -> int:
    return time.time_ns() // 1000
