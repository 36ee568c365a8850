"""How sure the models `demo-small` and `demo-large` are of a label, and the log probabilities that say so.

The rule: for each label a model draws a number u from 0 to 1, and from it how sure it is,

    demo-small: 1 - 0.5 * (1 - u)^2      at least 0.5, 0.83 in the mean
    demo-large: 1 - 0.06 * (1 - u)^2     at least 0.94, 0.98 in the mean

With that probability it takes the label that fits best, otherwise the one that fits second. So among all labels of
which it is 80 % sure, 80 % are the best ones: its log probabilities are calibrated by construction.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

_DOUBTS = {"demo-small": 0.5, "demo-large": 0.06}
"""By how much a model may be unsure. With these, a cascade of the two has something to gain in the guide's examples."""
_NEVER = -20.0
"""The log probability of what the model would not write."""


class LabelChoice(NamedTuple):
    """A label that was chosen, how sure the model is of it, and the labels that it did not choose."""

    name: str
    sure: float
    others: tuple[str, ...]


def sureness(model: str, drawn: float) -> float | None:
    """Return how sure a model is, by a number that was drawn from 0 to 1; None for a model without the rule."""
    doubt = _DOUBTS.get(model)
    return None if doubt is None else 1 - doubt * (1 - drawn) ** 2


def place_choices(content: str, choices: Sequence[LabelChoice]) -> dict[int, LabelChoice]:
    """Return the choices by where their first character stands in an answer, read from its beginning."""
    found: dict[int, LabelChoice] = {}
    position = 0
    quoted = content.lstrip().startswith(("{", "[", '"'))
    for choice in choices:
        text = json.dumps(choice.name, ensure_ascii=False) if quoted else choice.name
        at = content.find(text, position)
        if at >= 0:
            position = at + len(text)
            found[at + quoted] = choice
    return found


def token_entry(token: str, start: int, placed: dict[int, LabelChoice], top: int) -> dict[str, Any]:
    """Return a token with its log probability and the likeliest tokens in its place.

    A choice is made where its first character is written. All other tokens follow from what is there.
    """
    at = next((at for at in range(start, start + len(token)) if at in placed), None)
    if at is None:
        return _entry(token, 0.0) | {"top_logprobs": [_entry(token, 0.0)][:top]}
    choice, lead = placed[at], token[: at - start]
    chances = {token: choice.sure}
    room = len(token) - len(lead)
    for name in choice.others:
        # Labels that begin alike share the token.
        other = lead + name[:room]
        chances[other] = chances.get(other, 0.0) + (1 - choice.sure) / len(choice.others)
    ordered = sorted(chances.items(), key=lambda item: -item[1])[:top]
    tops = [_entry(text, _log(chance)) for text, chance in ordered]
    return _entry(token, _log(chances[token])) | {"top_logprobs": tops}


def _log(chance: float) -> float:
    return round(math.log(chance), 6) if chance > 0 else _NEVER


def _entry(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode("utf-8", "surrogatepass"))}
