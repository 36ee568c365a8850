"""Make the list of prices that the package brings along: `python -m tests.prices`, with `genai-prices` installed.

genai-prices (MIT) is kept up to date from the providers' pages. It is no dependency: it imports an HTTP client and
takes longer to load than a plan of a small job. What is taken from it is, for each provider that batchchat knows by
name, the price of the models that answer chats, under each of their exact names. After a new list, set `PRICES_READ` in
`batchchat/providers.py` to its day; a test compares the two.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime
from importlib import import_module
from importlib.metadata import version
from typing import Any

from batchchat.prices import LIST

PROVIDERS = ("openai", "mistral", "groq", "together")
_TEXT = {"input_mtok", "output_mtok"}
_OTHER = ("audio", "image", "video", "document")
"""Words in the names of prices that a model has if it does more than to answer texts and pictures with text."""
_NO_CHAT = re.compile(
    r"^(text-|ada$|curie$|davinci|babbage|ft:)|embed|audio|image|-tts|ocr|voxtral|instruct-0914|[:.]ft-|:"
)
"""Names of models that answer something else than chats, or by another API."""


def main() -> None:
    """Write the list."""
    today = datetime.now(UTC).date()
    known = {provider.id: provider for provider in import_module("genai_prices.data").providers}
    listed = {name: dict(sorted(_models(known[name], today))) for name in PROVIDERS}
    about = {"source": f"genai-prices {version('genai-prices')}", "read": today.isoformat(), "currency": "USD"}
    LIST.write_text(_lines({**about, "providers": listed}), encoding="utf-8")


def _lines(listed: dict[str, Any]) -> str:
    """Write one model a line, so that changes are easy to see."""
    text = json.dumps(listed, indent=1)
    for old, new in (("{\n    ", "{"), (",\n    ", ", "), ("\n   }", "}")):
        text = text.replace(old, new)
    return text + "\n"


def _models(provider: Any, today: date) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for model in provider.models:
        price = _price(model.prices, today)
        if price is None or model.deprecated or model.id.startswith("ft:"):
            continue
        given = {name for name, value in vars(price).items() if value is not None}
        if not given >= _TEXT or any(word in name for name in given for word in _OTHER):
            continue
        entry: dict[str, Any] = {"input": _base(price.input_mtok), "output": _base(price.output_mtok)}
        if "cache_read_mtok" in given:
            entry["cached_input"] = _base(price.cache_read_mtok)
        tiers = getattr(price.input_mtok, "tiers", ())
        if tiers:
            entry["higher_from"] = min(tier.start for tier in tiers)
        found += [(name, entry) for name in {model.id, *_names(model.match)} if not _NO_CHAT.search(name)]
    return found


def _price(prices: Any, today: date) -> Any:
    """The price of today; None if it depends on the time of the day."""
    if not isinstance(prices, list):
        return prices
    current = None
    for price in prices:
        begin = getattr(price.constraint, "start_date", None)
        if price.constraint is not None and begin is None:
            return None
        if begin is None or begin <= today:
            current = price.prices
    return current


def _base(amount: Any) -> float:
    return float(getattr(amount, "base", amount))


def _names(clause: Any) -> list[str]:
    """The exact names in a rule; a rule about beginnings would guess the prices of models to come."""
    if hasattr(clause, "equals"):
        return [clause.equals]
    return [name for part in getattr(clause, "or_", ()) for name in _names(part)]


if __name__ == "__main__":
    main()
