"""Refusals: whether they are about their own rows, or about everybody.

A provider that refuses the key, the model or the job's params says so at every request; one row that it cannot take
gets the very same status. So a refusal is held back until something sent later says more: an answer shows that the
held ones were about their rows, and enough of them in a row that no request can succeed. There are two kinds.

- 403, 404, 405 and 422 are mostly about everybody. Three rows in a row are enough while the model has never answered,
  ten once it has.
- 400 and other statuses of a request that cannot be served are mostly about the row. They are held only while this job
  as it is has never been answered, and ten with the same message (digits aside) are needed. What stands together in
  the input may be bad together: at the end of a sorted file all prompts may be too long. So from the first of these on
  other rows of the supply are tried, the smallest and some from anywhere, and three of the ten must be such.
"""

from __future__ import annotations

import random
import re
from collections import deque

from batchchat.records import ErrorKind, Reply, Request, Verdict

_NEVER_ANSWERED = 3
_ONCE_ANSWERED = 10
_ALIKE = 10
_TRIED = 3

Refusal = tuple[Request, Reply]


class Refusals:
    """The refusals of a run that are held back, all of one kind; see the module.

    `model_answered` says that the model has answered this output's requests before, `job_answered` that it has answered
    this job as it is now.
    """

    def __init__(self, *, model_answered: bool = False, job_answered: bool = False) -> None:
        self.model_answered = model_answered
        self._job_answered = job_answered
        self._held: list[Refusal] = []
        self._since = 0.0
        self._tried = self._picked = 0
        self._about: tuple[int | None, str] | None = None

    def __len__(self) -> int:
        """Return how many are held."""
        return len(self._held)

    def may_concern_all(self, reply: Reply) -> bool:
        """Whether a refusal that ends its row, as far as it tells itself, may be everybody's all the same."""
        failure = reply.failure
        return (
            not self._job_answered
            and failure is not None
            and reply.verdict is Verdict.NO
            and failure.kind is ErrorKind.INVALID_REQUEST
            and reply.completion is None
        )

    def add(self, request: Request, reply: Reply, *, sent_at: float, now: float) -> list[Refusal]:
        """Hold a refusal back; return those that turn out to be about their own rows, since this one is another."""
        failure = reply.failure
        assert failure is not None  # noqa: S101 - what a refusal is
        said = re.sub(r"\d+", "0", failure.message) if reply.verdict is Verdict.NO else ""
        about = (failure.http_status, said)
        others = self.let_go() if about != self._about else []
        if not self._held:
            self._since, self._about = now, about
        elif sent_at >= self._since:
            self._tried += 1
        self._held.append((request, reply))
        return others

    def answered(self, sent_at: float) -> list[Refusal]:
        """Note that a request was answered; return the refusals that are about their own rows then."""
        self.model_answered = self._job_answered = True
        # What was sent before a key was revoked tells nothing of it.
        return self.let_go() if self._held and (self.trying or sent_at >= self._since) else []

    def let_go(self) -> list[Refusal]:
        """Give back all that are held."""
        held, self._held, self._about = self._held, [], None
        self._tried = self._picked = 0
        return held

    @property
    def trying(self) -> bool:
        """Whether other rows should be tried, since those that are held may be bad together."""
        return bool(self._held) and self._held[0][1].verdict is Verdict.NO

    def pick(self, ready: deque[Request], rng: random.Random) -> Request:
        """Take a row out of the supply to try: in turn the smallest one, and one from anywhere."""
        self._picked += 1
        places = range(len(ready))
        place = min(places, key=lambda each: len(ready[each].body)) if self._picked % 2 else rng.choice(places)
        request = ready[place]
        del ready[place]
        return request

    def verdict(self, *, ended: bool = False) -> str | None:
        """Why no request can succeed, if that is what the held ones tell. `ended`: there is nothing left to try."""
        if not self._held:
            return None
        number = len({request.row_index for request, _ in self._held})  # samples of one row are refused together
        if self.trying:
            told = number >= _ALIKE and (self._tried >= _TRIED or ended)
        else:
            told = number >= (_ONCE_ANSWERED if self.model_answered else _NEVER_ANSWERED)
        failure = self._held[-1][1].failure
        assert failure is not None  # noqa: S101 - what a refusal is
        return f"{number} rows in a row were refused the same way: {failure.message}" if told else None

    @property
    def remedy(self) -> str:
        """What a person can do about it."""
        if self.trying:
            return (
                "Check the job's params, schema and messages against what the provider takes (`batchchat plan` shows "
                "the requests), then run the same command again: these rows are open."
            )
        return "Check model, provider and the key's permissions, then run the same command again."
