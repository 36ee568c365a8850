"""`batchchat providers`: the services that are known by name, and what is known of one of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from batchchat.cli.blocks import blank, line, pair, plain_text, title
from batchchat.cli.process import print_json, results
from batchchat.errors import UsageError
from batchchat.format import UNKNOWN, count
from batchchat.prices import PriceList
from batchchat.providers import PROFILES, Provider

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def providers_command(name: str | None, *, as_json: bool) -> int:
    """Print all providers, or what is known of one; return the exit code."""
    if name is None:
        if as_json:
            print_json([_as_json(provider, prices=False) for provider in PROFILES.values()])
        else:
            results().print(_all(PROFILES))
        return 0
    if name not in PROFILES:
        # For this mistake alone: the list itself needs no models of job fields.
        from batchchat.job.values import nearest

        raise UsageError(
            f"no provider is called {name!r}{nearest(name, PROFILES)}",
            remedy=f"Known are {', '.join(PROFILES)}. Any other service is given by its address: "
            "`provider: {base_url: …, api_key_env: …}`.",
        )
    if as_json:
        print_json(_as_json(PROFILES[name], prices=True))
    else:
        results().print(_one(PROFILES[name]))
    return 0


def _as_json(provider: Provider, *, prices: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": provider.name,
        "base_url": provider.base_url,
        "api_key_env": provider.api_key_env,
        "api_key_is_set": _key_is_set(provider),
        "requests_per_minute": provider.requests_per_minute,
        "tokens_per_minute": provider.tokens_per_minute,
        "concurrency": provider.concurrency,
        "max_images": provider.max_images,
        "unsupported": sorted(provider.unsupported),
        "models_with_prices": len(provider.prices),
        "currency": provider.currency,
        "prices_as_of": provider.prices_as_of,
        "note": provider.note,
    }
    if prices:
        found["prices"] = {
            model: {
                "input": price.input,
                "output": price.output,
                "cached_input": price.cached_input,
                "higher_from": _higher_from(provider, model),
            }
            for model, price in sorted(provider.prices.items())
        }
    return found


def _key_is_set(provider: Provider) -> bool | None:
    """Tell whether the key's variable is in the environment; None if the provider needs no key."""
    return bool(os.environ.get(provider.api_key_env)) if provider.api_key_env else None


def _higher_from(provider: Provider, model: str) -> int | None:
    return provider.prices.higher_from(model) if isinstance(provider.prices, PriceList) else None


def _all(providers: Mapping[str, Provider]) -> RenderableType:
    from rich.console import Group

    table = _table("provider", "key in", "address", "prices")
    for provider in providers.values():
        key = provider.api_key_env or UNKNOWN
        table.add_row(
            provider.name,
            f"{key} (set)" if _key_is_set(provider) else key,
            line(provider.base_url or "on this machine"),
            count(len(provider.prices)) if provider.prices else UNKNOWN,
        )
    return Group(
        table,
        blank(),
        plain_text("Limits, prices and params of one: batchchat providers NAME"),
        plain_text("Any other service: `provider: {base_url: …, api_key_env: …}` in the job"),
    )


def _one(provider: Provider) -> RenderableType:
    from rich.console import Group

    key = provider.api_key_env
    state = {None: "no key is needed", True: f"{key}, which is set", False: f"{key}, which is not set here"}
    limits = {
        "requests/min": provider.requests_per_minute,
        "tokens/min": provider.tokens_per_minute,
        "at once": provider.concurrency,
    }
    told = ", ".join(f"{count(number)} {name}" for name, number in limits.items() if number is not None)
    parts: list[RenderableType] = [
        title(provider.name, provider.base_url or "a server on this machine, started when needed"),
        blank(),
        pair("key", state[_key_is_set(provider)]),
        pair("limits", told or "found while a job runs; set your own with `limits` in the job"),
    ]
    if provider.max_images is not None:
        parts.append(pair("images", f"{provider.max_images} a request"))
    if provider.unsupported:
        parts.append(pair("no params", ", ".join(sorted(provider.unsupported))))
    if provider.note:
        parts.append(pair("note", provider.note))
    if provider.prices:
        parts += [blank(), _prices(provider)]
    parts += [blank(), plain_text("A price of your own in the job: `prices: {input: …, output: …, currency: USD}`")]
    return Group(*parts)


def _prices(provider: Provider) -> RenderableType:
    """Show what a million tokens cost, model by model."""
    from rich.console import Group

    table = _table("model", "input", "cached", "output", "")
    for column in table.columns[1:4]:
        column.justify = "right"
    for model, price in sorted(provider.prices.items()):
        long = _higher_from(provider, model)
        table.add_row(
            line(model),
            f"{price.input:g}",
            UNKNOWN if price.cached_input is None else f"{price.cached_input:g}",
            f"{price.output:g}",
            f"more from {count(long)} prompt tokens" if long is not None else "",
        )
    heading = f"{provider.currency} per million tokens, as of {provider.prices_as_of}"
    return Group(plain_text(heading, "dim"), blank(), table)


def _table(*names: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")
    return table
