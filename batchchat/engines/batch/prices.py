"""What a batch costs: the price of single requests times a factor, by provider or by the job."""

from __future__ import annotations

from typing import Protocol

from batchchat.engines.batch.service import ServiceOptions
from batchchat.engines.batch.services import batch_terms
from batchchat.money import Tariff
from batchchat.providers import BatchTerms, Provider


class PriceOptions(ServiceOptions, Protocol):
    """What the price of a batch depends on in a job's `engine` block."""

    @property
    def price_factor(self) -> float | None:
        """The share of the usual price that the job states; None: the provider's."""


def terms_of(provider: Provider, options: PriceOptions) -> BatchTerms | None:
    """Return the terms of a provider's batches, with the job's own factor over them; None if none are known."""
    found = batch_terms(provider, options)
    if options.price_factor is not None:
        window = found.window if found is not None else "24h"
        return BatchTerms(options.price_factor, "the job file", window)
    return found


def batch_tariff(provider: Provider, model: str, options: PriceOptions) -> Tariff | None:
    """Return what a model's tokens cost in a batch, None if the price of single requests is not known.

    Where no factor is known, a batch is taken to cost as much as single requests.
    """
    terms = terms_of(provider, options)
    return Tariff.of(provider.prices.get(model), 1.0 if terms is None else terms.factor)
