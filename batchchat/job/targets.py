"""Whom a job asks: its own provider and model, then those that are asked in their place, each with its endpoints."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

from batchchat.errors import JobError
from batchchat.job.keys import key_problem
from batchchat.job.model import Job, key_place
from batchchat.job.origin import combined
from batchchat.job.pool_fields import EndpointFields, LimitFields, PoolFields
from batchchat.providers import PROFILES, Provider, normalize_url


@dataclass(frozen=True, slots=True)
class EndpointPlan:
    """One endpoint of a target, before it is opened.

    `provider` is the target's, with this endpoint's own address, key and headers. `model` is the name there. `place` is
    where the job names it. `name` tells it to people: its address, with what tells it from others at the same address.
    """

    name: str
    provider: Provider
    model: str
    weight: float
    limits: LimitFields
    place: tuple[Hashable, ...]


@dataclass(frozen=True, slots=True)
class TargetPlan:
    """One model at one provider, before it is opened. `on` is why it is asked; empty for the job's own."""

    provider: Provider
    model: str
    endpoints: tuple[EndpointPlan, ...]
    on: frozenset[str]
    place: tuple[Hashable, ...]


def has_several(job: Job) -> bool:
    """Return true if the job may ask more than one endpoint."""
    return bool(job.fallback) or (isinstance(job.provider, PoolFields) and bool(job.provider.endpoints))


def targets_of(job: Job) -> tuple[TargetPlan, ...]:
    """Return whom the job asks, its own provider first. Checks nothing: see `check_targets`."""
    own = TargetPlan(
        job.resolved_provider(),
        job.model,
        _endpoints(job, job.provider, job.resolved_provider(), job.model, ("provider",)),
        frozenset(),
        (),
    )
    return own, *(_fallback(job, number) for number in range(len(job.fallback)))


def _fallback(job: Job, number: int) -> TargetPlan:
    fallback = job.fallback[number]
    spec = job.provider if fallback.provider is None else fallback.provider
    provider = job.resolve(spec, fallback.model, fallback.prices)
    # The endpoints of a fallback that names no provider of its own stand at the job's provider.
    place = ("provider",) if fallback.provider is None else ("fallback", number, "provider")
    endpoints = _endpoints(job, spec, provider, fallback.model, place)
    if len(endpoints) == 1:
        endpoints = (replace(endpoints[0], limits=fallback.limits or LimitFields()),)
    return TargetPlan(provider, fallback.model, endpoints, frozenset(fallback.on), ("fallback", number))


def _endpoints(
    job: Job, spec: str | PoolFields, provider: Provider, model: str, place: tuple[Hashable, ...]
) -> tuple[EndpointPlan, ...]:
    fields = spec.endpoints if isinstance(spec, PoolFields) else None
    if not fields:
        return (EndpointPlan(_address(provider), provider, model, 1.0, LimitFields(), place),)
    # The provider's own address is that of all endpoints that name none; in `provider` it may be the first one's.
    usual = PROFILES[spec.profile].base_url if isinstance(spec, PoolFields) and spec.profile else None
    shared = replace(provider, base_url=(spec.base_url if isinstance(spec, PoolFields) else None) or usual)
    found = [_endpoint(job, one, shared, model, (*place, "endpoints", number)) for number, one in enumerate(fields)]
    return tuple(_told_apart(found))


def _endpoint(
    job: Job, fields: EndpointFields, provider: Provider, model: str, place: tuple[Hashable, ...]
) -> EndpointPlan:
    own = job.resolve(fields, model, None)
    changed = replace(
        provider,
        base_url=own.base_url or provider.base_url,
        **key_place(fields, provider),
        headers={**provider.headers, **own.headers},
        extra_query={**provider.extra_query, **own.extra_query},
        ca_file=own.ca_file or provider.ca_file,
        transport=own.transport if fields.transport else provider.transport,
    )
    return EndpointPlan(
        _address(changed), changed, fields.model or model, fields.weight, fields.limits or LimitFields(), place
    )


def _address(provider: Provider) -> str:
    return (provider.base_url or provider.name).partition("?")[0]


def _told_apart(endpoints: list[EndpointPlan]) -> list[EndpointPlan]:
    """Add to the names of endpoints with one address what differs: the variable of the key, else the number."""
    names = [endpoint.name for endpoint in endpoints]
    found = []
    for number, endpoint in enumerate(endpoints):
        if names.count(endpoint.name) > 1:
            others = [one.provider.api_key_env for one in endpoints if one.name == endpoint.name]
            variable = endpoint.provider.api_key_env
            by = variable if variable is not None and others.count(variable) == 1 else f"endpoint {number + 1}"
            endpoint = replace(endpoint, name=f"{endpoint.name} ({by})")  # noqa: PLW2901 - the same one, told apart
        found.append(endpoint)
    return found


def endpoint_error(job: Job, endpoint: EndpointPlan, error: JobError) -> JobError:
    """Return an error about the key of an endpoint as one that names the endpoint's own line."""
    if endpoint.place == ("provider",):
        return error
    # The message begins with the place of the job's own provider.
    text = error.message.partition(f"{error.field}: ")[2] or error.message
    return job.error(text, *endpoint.place, remedy=error.remedy)


def endpoint_key_problem(job: Job, environ: Mapping[str, str]) -> JobError | None:
    """Return why the key of an endpoint cannot be had, None if nothing is known against any. Runs no command."""
    for target in targets_of(job):
        for endpoint in target.endpoints:
            problem = key_problem(job, endpoint.provider, environ)
            if problem is not None:
                return endpoint_error(job, endpoint, problem)
    return None


def check_targets(job: Job) -> None:
    """Refuse targets that cannot work together. Raises JobError, with the line of each."""
    targets = targets_of(job)
    errors = [*_alike(job, targets), *_not_with_batches(job, targets), *_of_fallbacks(job, targets)]
    if errors:
        raise combined(errors)


def _alike(job: Job, targets: tuple[TargetPlan, ...]) -> list[JobError]:
    """Return an error for each endpoint that is there twice, or has no address."""
    errors = []
    for target in targets:
        if target.place and target.endpoints[0].place[0] == "provider":
            continue  # a fallback at the job's own provider
        seen: dict[tuple[object, ...], EndpointPlan] = {}
        for endpoint in target.endpoints if len(target.endpoints) > 1 else ():
            provider = endpoint.provider
            if provider.base_url is None:
                remedy = "Name the address of each endpoint, or one for all in provider.base_url."
                errors.append(job.error("needs a base_url", *endpoint.place, remedy=remedy))
                continue
            query, headers = sorted(provider.extra_query.items()), sorted(provider.headers.items())
            key = (provider.api_key_env, provider.api_key_file, provider.api_key_command)
            what = (normalize_url(provider.base_url), *key, endpoint.model, *query, *headers)
            other = seen.setdefault(what, endpoint)
            if other is not endpoint:
                errors.append(
                    job.error(
                        f"is the same as endpoint {target.endpoints.index(other) + 1}: same address, key and model",
                        *endpoint.place,
                        remedy="Remove one of the two. `weight` gives an endpoint a larger share.",
                    )
                )
    return errors


def _not_with_batches(job: Job, targets: tuple[TargetPlan, ...]) -> list[JobError]:
    if not job.engine.batch:
        return []
    errors = []
    if len(targets[0].endpoints) > 1:
        message = "a batch goes to one endpoint, and the provider has several"
        remedy = "Name one base_url for `engine: batch`, or use `engine: local` for all endpoints."
        errors.append(job.error(message, "engine", remedy=remedy))
    if job.fallback:
        message = "is not for `engine: batch`: the provider answers its batches itself"
        errors.append(job.error(message, "fallback", remedy="Remove fallback, or use `engine: local`."))
    return errors


def _of_fallbacks(job: Job, targets: tuple[TargetPlan, ...]) -> list[JobError]:
    """Return an error for each fallback that asks the same again, or cannot be asked what the job asks."""
    errors = []
    first = targets[0]
    for number, target in enumerate(targets[1:], start=1):
        place = target.place
        asked = {(endpoint.name, endpoint.model) for before in targets[:number] for endpoint in before.endpoints}
        if any((endpoint.name, endpoint.model) in asked for endpoint in target.endpoints):
            message = f"loops: {target.model} at {target.endpoints[0].name} is asked before it already"
            errors.append(job.error(message, *place, remedy="Name another model or another provider."))
        errors += [
            job.error(
                f"{target.provider.name} does not support {name}, which the job sends",
                *place,
                remedy=f"Remove params.{name} from the job, or name another provider here.",
            )
            for name in job.params.as_body()
            if name in target.provider.unsupported
        ]
        price = target.provider.prices.get(target.model)
        currency = target.provider.currency if price is not None else None
        if job.budget.max_cost is not None and price is None:
            message = f"budget.max_cost cannot be kept: no price is known for {target.model} at {target.provider.name}"
            remedy = "Give `prices: {input: …, output: …, currency: …}` here."
            errors.append(job.error(message, *place, remedy=remedy))
        usual = first.provider.currency if job.model in first.provider.prices else None
        if currency is not None and usual is not None and currency != usual:
            message = f"costs {currency}, and the job's own model {usual}: currencies are never added"
            errors.append(job.error(message, *place, remedy=f"Give `prices` in {usual} here."))
    return errors
