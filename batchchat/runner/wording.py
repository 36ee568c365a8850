"""Which text of a job an output holds records of, and which one the model has answered.

An edit that no key tells apart leaves records behind that the job no longer yields, and a text that was answered once
makes a refusal a matter of its row. Both are noted in the state that an output keeps from run to run, so that they are
known also where the run before, or this one, never came to its end.
"""

from __future__ import annotations

import hashlib
import json

from batchchat.runner.preparation import Prepared
from batchchat.store import HeldOutput

_HELD = "text_digest"
_ANSWERED = "answered_text"
_SEVERAL = "several"
"""Stands for the digest of a job's text where an output may hold records of more than one."""


class Wording:
    """The text of this run's job beside those of the output's records. Blocking code. Raises StorageError."""

    def __init__(self, store: HeldOutput, prepared: Prepared) -> None:
        more: list[object] = [] if prepared.examples is None else [prepared.examples.digest]
        if prepared.job.max_prompt_tokens is not None:
            more.append(prepared.job.max_prompt_tokens.model_dump(mode="json"))
        text = json.dumps([prepared.template.text_digest, prepared.provider.identity, *more])
        self._digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        self._store = store
        self.known = False

    def begin(self) -> None:
        """Note that records of this text may come into the output; `known` is whether only they, or answers, did."""
        state = self._store.runs.read_state()
        held = state.get(_HELD)
        self.known = self._digest in (held, state.get(_ANSWERED))
        if held not in (self._digest, _SEVERAL):
            self._store.runs.save_state({**state, _HELD: self._digest if held is None else _SEVERAL})

    def answered(self) -> None:
        """Note that the model has answered this text, also where the output holds records of others."""
        state = self._store.runs.read_state()
        if state.get(_ANSWERED) != self._digest:
            self._store.runs.save_state({**state, _ANSWERED: self._digest})

    @property
    def mixed(self) -> bool:
        """Whether the output may hold records of another text."""
        return bool(self._store.runs.read_state().get(_HELD) != self._digest)

    def settle(self) -> None:
        """Note that all records are of this text: after a complete pass."""
        self._store.runs.save_state({**self._store.runs.read_state(), _HELD: self._digest})
