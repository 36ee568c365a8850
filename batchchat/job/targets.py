"""Whom a job asks: its own provider and model, then those that are asked in their place, each with its endpoints."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import field, replace
from typing import Any

from batchchat.cascade import Cascade, StepRule
from batchchat.dataclass import dataclass
from batchchat.errors import JobError
from batchchat.job.keys import key_problem
from batchchat.job.model import Job, key_place
from batchchat.job.origin import combined
from batchchat.job.pool_fields import EndpointFields, LimitFields, PoolFields
from batchchat.job.sections import BATCH_FORMAT
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
    """One model at one provider, before it is opened. `on` is why it is asked; empty for the job's own.

    `step` is that of the job's cascade to which it belongs, from 1; None without a cascade. `params` are sent there in
    place of the job's, None takes one away.
    """

    provider: Provider
    model: str
    endpoints: tuple[EndpointPlan, ...]
    on: frozenset[str]
    place: tuple[Hashable, ...]
    step: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict)


def has_several(job: Job) -> bool:
    """Return true if the job may ask more than one endpoint."""
    return bool(job.fallback or job.cascade) or (isinstance(job.provider, PoolFields) and bool(job.provider.endpoints))


def targets_of(job: Job) -> tuple[TargetPlan, ...]:
    """Return whom the job asks, its own provider first. Checks nothing: see `check_targets`."""
    own = TargetPlan(
        job.resolved_provider(),
        job.model,
        _endpoints(job, job.provider, job.resolved_provider(), job.model, ("provider",)),
        frozenset(),
        (),
    )
    others = [_fallback(job, number) for number in range(len(job.fallback))]
    if not job.cascade:
        return own, *others
    if len(own.endpoints) == 1:
        own = replace(own, endpoints=(replace(own.endpoints[0], limits=job.cascade[0].limits or LimitFields()),))
    # Who is asked in place of the job's own model belongs to the first step.
    first = [replace(target, step=1) for target in (own, *others)]
    return *first, *(_further_step(job, number) for number in range(1, len(job.cascade)))


def _further_step(job: Job, number: int) -> TargetPlan:
    fields = job.cascade[number]
    spec = job.provider if fields.provider is None else fields.provider
    provider = job.resolve(spec, fields.model, fields.prices)
    place = ("provider",) if fields.provider is None else ("cascade", number, "provider")
    endpoints = _endpoints(job, spec, provider, fields.model, place)
    if len(endpoints) == 1:
        endpoints = (replace(endpoints[0], limits=fields.limits or LimitFields()),)
    params = dict(fields.params)
    if job.response.confidence == "logprobs" and "logprobs" in provider.unsupported and fields.accept is None:
        # The last answer is taken however sure it is: a provider that tells no log probabilities can give it.
        params |= {"logprobs": None, "top_logprobs": None}
    return TargetPlan(provider, fields.model, endpoints, frozenset(), ("cascade", number), number + 1, params)


def cascade_of(job: Job) -> Cascade | None:
    """Return the rules of the job's cascade, None if it has none."""
    if not job.cascade:
        return None
    targets = targets_of(job)
    rules = []
    for target in targets:
        step = target.step or 1
        accept = job.cascade[step - 1].accept
        following = next((place for place, other in enumerate(targets) if (other.step or 1) > step), None)
        threshold = None if accept is None else accept.confidence
        asked = json.dumps([target.provider.identity, target.model, target.params], sort_keys=True)
        identity = b"" if step == 1 else asked.encode()
        rules.append(StepRule(step, target.provider.name, target.model, threshold, following, target.params, identity))
    return Cascade(rules)


def _fallback(job: Job, number: int) -> TargetPlan:
    fallback = job.fallback[number]
    spec = job.provider if fallback.provider is None else fallback.provider
    provider = job.resolve(spec, fallback.model, fallback.prices)
    # The endpoints of a fallback that names no provider of its own stand at the job's provider.
    place = ("provider",) if fallback.provider is None else ("fallback", number, "provider")
    endpoints = _endpoints(job, spec, provider, fallback.model, place)
    if len(endpoints) == 1:
        endpoints = (replace(endpoints[0], limits=fallback.limits or LimitFields.model_construct()),)
    return TargetPlan(provider, fallback.model, endpoints, frozenset(fallback.on), ("fallback", number))


def _endpoints(
    job: Job, spec: str | PoolFields, provider: Provider, model: str, place: tuple[Hashable, ...]
) -> tuple[EndpointPlan, ...]:
    fields = spec.endpoints if isinstance(spec, PoolFields) else None
    if not fields:
        return (EndpointPlan(_address(provider), provider, model, 1.0, LimitFields.model_construct(), place),)
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
    limits = fields.limits or LimitFields.model_construct()
    return EndpointPlan(_address(changed), changed, fields.model or model, fields.weight, limits, place)


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
    errors = _of_cascade(job)
    # What is wrong with the steps themselves comes first: the rest may only follow from it.
    errors = errors or [*_alike(job, targets), *_not_with_batches(job, targets), *_of_others(job, targets)]
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
    if job.cascade:
        message = "is not for `engine: batch`: an answer would have to come back before the next step can be asked"
        errors.append(job.error(message, "cascade", remedy="Remove cascade, or use `engine: local`."))
    if job.fallback:
        message = "is not for `engine: batch`: the provider answers its batches itself"
        errors.append(job.error(message, "fallback", remedy="Remove fallback, or use `engine: local`."))
    return errors


def _of_cascade(job: Job) -> list[JobError]:
    """Return what is wrong with the steps of a cascade."""
    steps = job.cascade
    if not steps:
        return []
    errors = []
    if job.model != steps[0].model:
        message = f"is {job.model}, and the first step of the cascade asks {steps[0].model}"
        errors.append(job.error(message, "model", remedy="Remove model: the first step of the cascade names it."))
    if len(steps) < 2:
        message = "has one step, so there is nobody to pass a row on to"
        remedy = "Add a second step, such as {model: larger-model}, or name the model in `model` and remove cascade."
        errors.append(job.error(message, "cascade", remedy=remedy))
    if job.input.format == BATCH_FORMAT:
        message = "is not for `format: openai-batch`: each line of such a file is a whole request of its own"
        errors.append(job.error(message, "cascade", remedy="Give the rows as JSON Lines, and the prompt in messages."))
    own = [name for name in ("provider", "params", "prices") if name in steps[0].model_fields_set]
    errors += [
        job.error(
            "is set for the first step, which is the job itself", "cascade", 0, name, remedy=f"Set the job's {name}."
        )
        for name in own
    ]
    if steps[0].limits is not None and isinstance(job.provider, PoolFields) and job.provider.endpoints:
        message = "are set for a provider with several endpoints"
        errors.append(job.error(message, "cascade", 0, "limits", remedy="Set the limits of each endpoint."))
    for number, step in enumerate(steps):
        errors += _of_accept(job, number, step.accept is not None)
    return errors


def _of_accept(job: Job, number: int, accepts: bool) -> list[JobError]:
    """Return what is wrong with the threshold of a step, or with its lack."""
    place, last = ("cascade", number), number == len(job.cascade) - 1
    if last and accepts and number:
        message = "is set for the last step, whose valid answers are all taken"
        return [job.error(message, *place, "accept", remedy="Remove accept, or add a further step.")]
    if last:
        return []
    if not accepts:
        message = "has no threshold, so no row would ever reach the next step for being unsure"
        return [
            job.error(
                message, *place, remedy="Add `accept: {confidence: 0.9}`; `batchchat calibrate` finds the number."
            )
        ]
    if job.response.confidence is None:
        message = "is a threshold of the confidence, and the job measures none"
        remedy = "Add `confidence: logprobs` to response, or `confidence: {field: NAME}`."
        return [job.error(message, *place, "accept", "confidence", remedy=remedy)]
    if job.response.confidence == "samples":
        message = "needs the confidence of each answer, and `confidence: samples` is told by all samples of a row"
        remedy = "Take `confidence: logprobs` in response, or `confidence: {field: NAME}`."
        return [job.error(message, *place, "accept", "confidence", remedy=remedy)]
    return []


def _of_others(job: Job, targets: tuple[TargetPlan, ...]) -> list[JobError]:
    """Return an error for each fallback or step that asks the same again, or cannot be asked what the job asks."""
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
            for name in _sent(job, target)
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


def _sent(job: Job, target: TargetPlan) -> list[str]:
    """Return the names of the params that are sent to a target."""
    sent = {**job.params.as_body(), **target.params}
    step = job.cascade[target.step - 1] if target.step else None
    # A step with a threshold needs the log probabilities that its confidence is measured by.
    if step is not None and step.accept is not None and job.response.confidence == "logprobs":
        sent |= {"logprobs": True}
    return [name for name, value in sent.items() if value is not None]
