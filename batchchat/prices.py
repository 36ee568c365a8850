"""Prices of models: money per million tokens, and the dated list that batchchat brings along."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from batchchat.dataclass import dataclass

LIST = Path(__file__).with_name("prices.json")


@dataclass(frozen=True, slots=True)
class Price:
    """Money per million tokens, in the provider's currency. `money.Tariff` counts with it."""

    input: float
    output: float
    cached_input: float | None = None


class PriceList(Mapping[str, Price]):
    """The listed prices of one provider's models by name. The list is read when it is first needed."""

    def __init__(self, provider: str) -> None:
        self._provider = provider

    def __getitem__(self, model: str) -> Price:
        found = self._models[model]
        return Price(found["input"], found["output"], found.get("cached_input"))

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def __contains__(self, model: object) -> bool:
        return model in self._models

    def higher_from(self, model: str) -> int | None:
        """Return the number of prompt tokens from which a request costs more than the listed price, if there is one."""
        number: int | None = self._models[model].get("higher_from")
        return number

    @property
    def _models(self) -> dict[str, dict[str, Any]]:
        models: dict[str, dict[str, Any]] = _listed()["providers"][self._provider]
        return models


@cache
def _listed() -> dict[str, Any]:
    listed: dict[str, Any] = json.loads(LIST.read_text(encoding="utf-8"))
    return listed
