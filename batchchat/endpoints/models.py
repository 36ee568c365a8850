"""Which endpoint has the model: asked once before a run, of servers that list their models."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

import anyio

from batchchat.client import ChatClient
from batchchat.errors import BatchchatError
from batchchat.job import Job
from batchchat.job.targets import TargetPlan, targets_of

_SHOWN = 5
"""Names of models that a message lists: enough to see what kind of server it is."""
_WAIT_S = 5.0
"""Seconds for all servers together. One that does not answer is not kept waiting for: it tells nothing."""

Listed = frozenset[str] | None
"""The models that a server lists; None if it does not tell."""


async def ask_models(clients: Sequence[ChatClient]) -> list[Listed]:
    """Ask all servers at once which models they have."""
    found: list[Listed] = [None] * len(clients)

    async def ask(number: int, client: ChatClient) -> None:
        found[number] = await client.models()

    with anyio.move_on_after(_WAIT_S):
        async with anyio.create_task_group() as group:
            for number, client in enumerate(clients):
                group.start_soon(ask, number, client)
    return found


def lacking(job: Job, target: TargetPlan, found: Sequence[Listed]) -> dict[int, str]:
    """Return the endpoints of a target that lack their model, by number, with what is wrong.

    Arguments:
        job: whose target it is.
        target: its endpoints were asked.
        found: what each of them lists.

    Raises JobError if no endpoint has the model.
    """
    wrong = {
        number: f"it does not have the model {plan.model}; it lists {_names(models)}"
        for number, (plan, models) in enumerate(zip(target.endpoints, found, strict=True))
        if models is not None and not _has(models, plan.model)
    }
    if len(wrong) == len(target.endpoints):
        first = next(models for models in found if models is not None)
        where = target.endpoints[0].name if len(wrong) == 1 else f"any of the {len(wrong)} endpoints"
        raise job.error(
            f"{target.model} is not at {where}; there is {_names(first)}",
            *(target.place or ("model",)),
            remedy="Name a model that is there, or name it for each endpoint in `endpoints: [{model: …}]`.",
        )
    return wrong


def models_warnings(job: Job, environ: Mapping[str, str]) -> list[str]:
    """Ask the endpoints of a job before a run. Blocking code, also below a running event loop.

    Returns a warning for each endpoint that lacks the model. Raises JobError if none has it.
    """
    if all(target.provider.base_url is None for target in targets_of(job)):
        return []  # the demo server is not there before the run, and has all its models
    warnings: list[str] = []
    errors: list[BatchchatError] = []

    async def ask() -> None:
        from batchchat.endpoints.registry import ProviderAccess, Registry, read_keys

        async with AsyncExitStack() as stack:
            registry = Registry(
                job,
                stack,
                # A demo server that the run will start cannot be asked now: nobody listens at this port.
                ProviderAccess(demo_url="http://127.0.0.1:9/v1"),
                listener=lambda event: warnings.append(event.message),
                rng=random.Random(),  # noqa: S311
            )
            await registry.open(read_keys(job, environ))

    def work() -> None:
        try:
            anyio.run(ask)
        except BatchchatError as error:
            errors.append(error)

    # A thread of its own: the caller may be a notebook, whose event loop runs already.
    thread = threading.Thread(target=work, name="ask for models")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return warnings


def _has(models: frozenset[str], model: str) -> bool:
    # Some servers list `llama3.1:latest` for llama3.1, or `models/gemini` for gemini, and take both.
    return model in models or f"{model}:latest" in models or any(name.endswith(f"/{model}") for name in models)


def _names(models: frozenset[str]) -> str:
    shown = sorted(models)[:_SHOWN]
    more = len(models) - len(shown)
    return (", ".join(shown) or "no model") + (f" and {more} more" if more else "")
