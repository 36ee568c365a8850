"""Who answers a run: a provider may put another model, or another build of it, in the place of the first in mid-run."""

from __future__ import annotations

from collections import deque

from batchchat.events import Event

_SETTLING = 100
"""Answers after which a fingerprint that is new counts as a change.

A service of many servers shows all its fingerprints soon. One that a twentieth of the servers has is missed by 100
answers once in 170 runs, and the price of that is one warning. Chosen, not measured.
"""
_MOST_NAMES = 50
"""Names that are kept of each kind: a server that makes up one for each answer tells nothing by them."""
_MOST_TOLD = 3
"""New models of which each has its own warning."""


class Answerers:
    """Watches the model and the fingerprint of each answer of one run.

    Each model that appears beside the first is told once, up to three of them. A change of the fingerprint is told once
    in a run. What answers were like at the start of the run counts: earlier runs do not.
    """

    def __init__(self) -> None:
        self._answers = 0
        self._models: dict[str, None] = {}
        self._fingerprints: dict[tuple[str | None, str], None] = {}
        self._told_fingerprint = False
        self._events: deque[Event] = deque()
        self._messages: list[str] = []

    def add(self, model: str | None, fingerprint: str | None) -> None:
        """Take in the answer of a model."""
        self._answers += 1
        if model and model not in self._models and len(self._models) < _MOST_NAMES:
            self._meet_model(model)
        name = (model, fingerprint or "")
        if fingerprint and name not in self._fingerprints and len(self._fingerprints) < _MOST_NAMES:
            self._meet_fingerprint(name)

    def _meet_model(self, model: str) -> None:
        first = next(iter(self._models), None)
        self._models[model] = None
        if first is not None and len(self._models) <= _MOST_TOLD + 1:
            message = f"another model answers: {model[:100]}, after {self._answers - 1:,} answers of {first[:100]}"
            self._tell(message, "model", first, model)

    def _meet_fingerprint(self, name: tuple[str | None, str]) -> None:
        model, fingerprint = name
        known = [one for of, one in self._fingerprints if of == model]
        self._fingerprints[name] = None
        # A model that has just been told as another one has another fingerprint anyway.
        if not known or self._told_fingerprint or self._answers <= _SETTLING:
            return
        self._told_fingerprint = True
        message = (
            f"the build of the model changed: its system_fingerprint is {fingerprint[:100]} from answer "
            f"{self._answers:,} on, and was {known[-1][:100]}"
        )
        self._tell(message, "system_fingerprint", known[-1], fingerprint)

    def _tell(self, message: str, what: str, before: str, after: str) -> None:
        message += f". Answers before and after it may differ: the column {what} tells them apart"
        self._messages.append(message)
        fields = {"what": what, "before": before[:200], "after": after[:200], "answers": self._answers}
        self._events.append(Event("answerer_changed", message, "warning", fields))

    def take(self) -> list[Event]:
        """Return what has changed since the last call."""
        events = list(self._events)
        self._events.clear()
        return events

    def remarks(self) -> list[str]:
        """Return every warning of the run, for its summary."""
        return list(self._messages)
