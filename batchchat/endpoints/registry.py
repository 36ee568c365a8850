"""The registry: makes the endpoints of a job, with their clients and limiters, and closes them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import httpx

from batchchat.client import ChatClient
from batchchat.credentials import Credential
from batchchat.endpoints.body import BodyFor
from batchchat.endpoints.endpoint import Endpoint
from batchchat.endpoints.models import ask_models, lacking
from batchchat.endpoints.route import EndpointRoute
from batchchat.endpoints.target import Target
from batchchat.errors import JobError
from batchchat.events import Event, Listener
from batchchat.job import Job, api_key, key_source
from batchchat.job.pool_fields import LimitFields
from batchchat.job.targets import EndpointPlan, TargetPlan, endpoint_error, has_several, targets_of
from batchchat.limits import MAX_CONCURRENCY, Advertised, LimitCeilings, Limiter
from batchchat.money import Tariff
from batchchat.providers import DEMO, Provider
from batchchat.records import Answerer

if TYPE_CHECKING:
    from batchchat.sharing.opening import Sharing

Keys = Sequence[Sequence[Credential]]
"""The key of each endpoint of each target, in the job's order."""
Limiters = dict[tuple[object, ...], Limiter]
"""Limiters that several runs share, by what they are about."""


class ProviderAccess(NamedTuple):
    """How a run reaches its providers, as far as its caller decides that, and not its job.

    `environ` is the environment, with keys and the place of limits that processes share. `transport` takes the place of
    the network for all endpoints. `limiter` takes the place of the job's own limits; `limiters` are those of endpoints
    that other runs share. `demo_url` is the address of a demo server that runs already.
    """

    environ: Mapping[str, str] = {}
    transport: httpx.AsyncBaseTransport | None = None
    limiter: Limiter | None = None
    limiters: Limiters | None = None
    demo_url: str | None = None


def needs_demo(job: Job) -> bool:
    """Return true if the job asks a provider `demo` without an address: a server is started for it."""
    providers = (
        [target.provider for target in targets_of(job)] if job.fallback or job.cascade else [job.resolved_provider()]
    )
    return any(provider.base_url is None and provider.name == DEMO for provider in providers)


def read_keys(
    job: Job,
    environ: Mapping[str, str],
    *,
    warn: Callable[[str], object] | None = None,
    tell: Callable[[str, str | None], object] | None = None,
) -> Keys:
    """Read the keys of all endpoints of a job. Blocking code.

    Arguments:
        job: whose endpoints they are.
        environ: the environment.
        warn: hears what is odd about a key, without the key.
        tell: hears of each key that is read again later, with its place.

    Raises JobError at the line of the endpoint whose key cannot be had.
    """
    return [[_credential(job, plan, environ, warn, tell) for plan in target.endpoints] for target in targets_of(job)]


def _credential(
    job: Job,
    plan: EndpointPlan,
    environ: Mapping[str, str],
    warn: Callable[[str], object] | None,
    tell: Callable[[str, str | None], object] | None,
) -> Credential:
    source = key_source(job, plan.provider, environ)
    try:
        key = api_key(job, plan.provider, environ, warn=warn)
    except JobError as error:
        raise endpoint_error(job, plan, error) from None
    place = source.place if source is not None else None
    return Credential(key, source, tell=None if tell is None else lambda message: tell(message, place))


def make_limiter(job: Job, provider: Provider, listener: Listener, rng: random.Random | None = None) -> Limiter:
    """Return a limiter under a job's limits, and if it sets none those of its provider; runs may share it.

    It lets no more be under way at once than this process may have open files, and tells if that is less. If the job
    has several endpoints these are its limits over all of them: each endpoint's own limits come from the provider.
    """
    ceilings, advertised = limit_numbers(job, provider, listener)
    # One over several endpoints learns nothing, and so has nothing to tell.
    return Limiter(ceilings, advertised, listener=None if has_several(job) else listener, rng=rng)


def limit_numbers(job: Job, provider: Provider, listener: Listener) -> tuple[LimitCeilings, Advertised]:
    """Return what the limiter of a job begins with; see `make_limiter`."""
    limits, room = job.limits, _room(job)
    concurrency = limits.concurrency
    if concurrency is not None and concurrency > room:
        message = f"limits.concurrency is {concurrency}, and the open files of this process allow {room} (ulimit -n)"
        listener(Event("concurrency_lowered", message, "warning"))
        concurrency = room
    rates = limits.requests_per_minute, limits.tokens_per_minute
    if has_several(job):
        # It learns nothing, and so has no window to try: its ceilings are those of the job alone.
        return LimitCeilings(*rates, concurrency or room), Advertised()
    return LimitCeilings(*rates, concurrency), _known_of(provider, room)


def _known_of(provider: Provider, room: int) -> Advertised:
    """Return what a provider allows as far as is known, and no more at once than there is room for."""
    at_once = min(provider.concurrency or MAX_CONCURRENCY, room)
    return Advertised(provider.requests_per_minute, provider.tokens_per_minute, at_once)


def _room(job: Job) -> int:
    """Return how many connections the open files of this process allow."""
    from batchchat.transport import connection_room

    return connection_room(files_each=2 if job.resolved_provider().base_url is None else 1)


class Registry:
    """Opens what a job asks; all of it is closed when `stack` is left.

    Arguments:
        job: whose provider and fallbacks are opened.
        stack: holds the clients.
        access: how providers are reached.
        listener: takes what limiters and route tell.
        rng: spreads waits.
    """

    def __init__(
        self, job: Job, stack: AsyncExitStack, access: ProviderAccess, *, listener: Listener, rng: random.Random
    ) -> None:
        self._job = job
        self._stack = stack
        self._access = access
        self._listener = listener
        self._rng = rng
        self._entered = False
        self._limiters: Limiters = {} if access.limiters is None else access.limiters
        self._sharing: Sharing | None = None

    async def open(self, keys: Keys) -> Endpoint | EndpointRoute:
        """Return the job's endpoint, or the route to its endpoints if it has several. `read_keys` returns `keys`."""
        job, limiter = self._job, self._access.limiter
        targets = [_at(self._access.demo_url, target) for target in targets_of(job)]
        if not has_several(job):
            plan = targets[0].endpoints[0]
            own = limiter or await self._job_limiter(targets[0], plan.provider, keys[0][0])
            return await self._endpoint(targets[0], plan, keys[0][0], own)
        found = []
        for target, own_keys in zip(targets, keys, strict=True):
            endpoints = [
                await self._endpoint(target, plan, key, await self._limiter(plan, key))
                for plan, key in zip(target.endpoints, own_keys, strict=True)
            ]
            found.append(
                Target(
                    endpoints, provider=target.provider.name, model=target.model, on=target.on, step=target.step or 1
                )
            )
        over = limiter or await self._job_limiter(targets[0], targets[0].provider, None)
        route = EndpointRoute(found, over=over, listener=self._listener)
        await self._check_models(route, targets)
        return route

    async def _check_models(self, route: EndpointRoute, plans: Sequence[TargetPlan]) -> None:
        """Take out the endpoints that lack the model. Raises JobError if no endpoint of a target has it."""
        endpoints = [endpoint for target in route.targets for endpoint in target.endpoints]
        listed = iter(await ask_models([endpoint.client for endpoint in endpoints]))
        for target, plan in zip(route.targets, plans, strict=True):
            wrong = lacking(self._job, plan, [next(listed) for _ in target.endpoints])
            for number, why in wrong.items():
                route.take_out(target.endpoints[number], why)

    async def _endpoint(self, target: TargetPlan, plan: EndpointPlan, key: Credential, limiter: Limiter) -> Endpoint:
        job, provider = self._job, plan.provider
        transport = self._access.transport
        if transport is None:
            from batchchat.transport import choose_transport

            transport = choose_transport(provider.base_url or "", ca_file=provider.ca_file, kind=provider.transport)
        elif self._entered:
            # A transport that a caller gave stands for the network: all endpoints go through it, and it is closed once.
            transport = _Shared(transport)
        self._entered = True
        client = ChatClient(
            provider,
            transport,
            api_key=key,
            request_timeout=job.retry.request_timeout,
            tariff=Tariff.of(target.provider.prices.get(target.model)),
            stream=bool(job.params.stream),
            by=Answerer(_name(target.provider), plan.name, target.model, bool(target.on)),
        )
        await self._stack.enter_async_context(client)
        return Endpoint(client, limiter, plan.name, plan.weight, body=self._body(target, plan), limits=plan.limits)

    def _body(self, target: TargetPlan, plan: EndpointPlan) -> BodyFor | None:
        """Return what rewrites requests for an endpoint; None if they go as they are."""
        job = self._job
        first = job.resolved_provider()
        # A provider that refuses `stream_options` is not sent any, and others need them.
        differ = bool(job.params.stream) and target.provider.stream_options != first.stream_options
        options = {"include_usage": True} if target.provider.stream_options else None
        if plan.model == job.model and not differ:
            return None
        return BodyFor(job.model, plan.model, {"stream_options": options} if differ else None)

    async def _job_limiter(self, target: TargetPlan, provider: Provider, key: Credential | None) -> Limiter:
        """Return the limiter under the job's own limits. `key` is None if these are over several endpoints."""
        job = self._job
        if not job.limits.shared:
            return make_limiter(job, provider, self._listener, self._rng)
        from batchchat.sharing.naming import limit_name

        if key is None:
            name = limit_name("", job.model, None, about=f"over all endpoints of {target.provider.identity}")
        else:
            name = limit_name(provider.base_url, target.endpoints[0].model, key.key)
        return await self._shared(name, limit_numbers(job, provider, self._listener), self._listener)

    async def _shared(self, name: str, numbers: tuple[LimitCeilings, Advertised], listener: Listener) -> Limiter:
        """Return a limiter whose limit other processes share."""
        from batchchat.sharing.opening import Sharing

        job = self._job
        if self._sharing is None:
            assert job.limits.shared  # noqa: S101 - asked by the callers
            self._sharing = await Sharing.open(job.limits.shared, self._access.environ, job.retry.outage, self._stack)
        return await self._sharing.limiter(name, *numbers, listener, self._rng)

    async def _limiter(self, plan: EndpointPlan, credential: Credential) -> Limiter:
        provider, limits = plan.provider, plan.limits
        if self._job.limits.shared:
            from batchchat.sharing.naming import limit_name

            name = limit_name(provider.base_url, plan.model, credential.key)
            return await self._shared(name, _own_numbers(self._job, provider, limits), self._tells(plan))
        key = (provider.api_key_env, provider.api_key_file, provider.api_key_command)
        about = (provider.base_url, *key, plan.model, limits.model_dump_json())
        if about not in self._limiters:
            numbers = _own_numbers(self._job, provider, limits)
            self._limiters[about] = Limiter(*numbers, listener=self._tells(plan), rng=self._rng)
        return self._limiters[about]

    def _tells(self, plan: EndpointPlan) -> Listener:
        """Return what tells the events of an endpoint's limiter, with its name."""

        def tell(event: Event) -> None:
            self._listener(
                replace(event, message=f"{plan.name}: {event.message}", fields={**event.fields, "endpoint": plan.name})
            )

        return tell


class _Shared(httpx.AsyncBaseTransport):
    """A transport that others use too, and that is opened and closed by one of them."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Carry a request through the shared transport."""
        return await self._transport.handle_async_request(request)


def _own_numbers(job: Job, provider: Provider, limits: LimitFields) -> tuple[LimitCeilings, Advertised]:
    """Return what the limiter of one endpoint begins with."""
    # The job's number is for all. Each endpoint begins with it, so that one can do the work of those that fail.
    at_once = limits.concurrency or job.limits.concurrency
    ceilings = LimitCeilings(limits.requests_per_minute, limits.tokens_per_minute, at_once)
    return ceilings, _known_of(provider, _room(job))


def _name(provider: Provider) -> str:
    """Return what records call a provider: one without a name goes by its address."""
    return provider.name if provider.name != "custom" else provider.identity.partition("?")[0]


def _at(demo_url: str | None, target: TargetPlan) -> TargetPlan:
    """Return the target with the address of a server that was started for it."""
    if demo_url is None or all(plan.provider.base_url is not None for plan in target.endpoints):
        return target
    plans = tuple(
        plan
        if plan.provider.base_url is not None
        else replace(plan, provider=plan.provider.with_base_url(demo_url), name=demo_url)
        for plan in target.endpoints
    )
    return replace(target, endpoints=plans)
