"""Refusals: are they about their own rows, or about every request?

A provider that refuses the key, the model or the job's params says so at every request. One row that it cannot take
gets the same status. So a refusal is held back until something that was sent later tells more: an answer shows that
the held ones are about their rows; enough refusals in a row show that no request can succeed. There are two kinds.

- 403, 404, 405 and 422 are mostly about every request. Three rows in a row stop a run whose model has never answered,
  ten one whose model has.
- 400 and other statuses of a request that cannot be served are mostly about the row. They are held only while this job
  as it is has never been answered, and ten with the same message (numbers aside) are needed. Rows that stand together
  in the input may be bad together: at the start of a sorted file all prompts may be too long. So from the first of
  these on only *trial requests* are sent: in turn the smallest row of the supply, one from anywhere, and the last. A
  refusal comes back sooner than an answer, so nothing is decided before every trial request, and all that was under
  way before, has come back. Half of the trial requests are taken from the supply as it is. If all of these are
  refused, the feed is read much further ahead, and the other half is taken from what the supply holds then. One answer
  makes every held refusal a failed record of its own row.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable

from batchchat.engines.causes import NUMBERED
from batchchat.records import ErrorKind, Reply, Request, Verdict

_NEVER_ANSWERED = 3
"""Rows that are refused in a row before a model that never answered is given up. One or two may be bad themselves."""
_ONCE_ANSWERED = 10
"""The same for a model that has answered: a key was revoked, or a block of rows is bad. Chosen, not measured."""
_ALIKE = 10
"""Refusals with the same message that are needed to stop for a status that is mostly about the row."""
TRIAL_REQUESTS = 24
"""Rows that are tried before such a refusal is taken for everybody's.

If half of all rows are good, 24 tries at random miss all of them once in 16 million. Chosen, not measured.
"""
_NEAR = TRIAL_REQUESTS // 2

Refusal = tuple[Request, Reply]


def is_by_status(reply: Reply) -> bool:
    """Return true if a request was refused by its status alone: no answer, and no reason that only its row can have."""
    failure = reply.failure
    return (
        failure is not None
        and reply.verdict is Verdict.NO
        and failure.kind is ErrorKind.INVALID_REQUEST
        and reply.completion is None
    )


class Refusals:
    """The refusals of a run that are held back, all of one kind; see the module.

    `model_answered` says that the model has answered this output's requests before, `job_answered` that it has answered
    this job as it is now.
    """

    def __init__(self, *, model_answered: bool = False, job_answered: bool = False) -> None:
        self.model_answered = model_answered
        self._job_answered = job_answered
        self._since = 0.0
        self._forget()

    def _forget(self) -> None:
        """Begin anew, with nothing held and no trial.

        `_rows` are the rows that were refused or tried. `_out` are trial requests that have yet to come back, `_before`
        requests that were under way when the first refusal came.
        """
        self._held: list[Refusal] = []
        self._about: tuple[int | None, str] | None = None
        self._rows: set[int] = set()
        self._out: set[Request] = set()
        self._before: set[Request] = set()
        self._allowed, self._drawn = _NEAR, 0
        self._read = self._dry = False

    def __len__(self) -> int:
        """Return how many are held."""
        return len(self._held)

    def may_concern_all(self, reply: Reply) -> bool:
        """Return true if a refusal that ends its row by its status alone may still be about every request."""
        return not self._job_answered and is_by_status(reply)

    def add(self, request: Request, reply: Reply, *, now: float, under_way: Iterable[Request] = ()) -> list[Refusal]:
        """Hold a refusal back. Return those that are about their own rows, since this one is of another kind."""
        failure = reply.failure
        assert failure is not None  # noqa: S101 - what a refusal is
        said = NUMBERED.sub("0", failure.message) if reply.verdict is Verdict.NO else ""
        about = (failure.http_status, said)
        # Refusals with different words are about different things, so they are about their rows.
        others = self.let_go() if about != self._about else []
        if not self._held:
            self._since, self._about = now, about
            self._before.update(under_way)
        self._held.append((request, reply))
        self._rows.add(request.row_index)
        self._out.discard(request)
        self._before.discard(request)
        return others

    def answered(self, sent_at: float) -> list[Refusal]:
        """Note that a request was answered; return the refusals that are about their own rows then."""
        self.model_answered = self._job_answered = True
        # What was sent before a key was revoked tells nothing of it.
        return self.let_go() if self._held and (self.trying or sent_at >= self._since) else []

    def let_go(self) -> list[Refusal]:
        """Give back all that are held."""
        held = self._held
        self._forget()
        return held

    @property
    def trying(self) -> bool:
        """Return true if only trial requests should be sent, since the held rows may be bad together."""
        return bool(self._held) and self._held[0][1].verdict is Verdict.NO

    @property
    def reading(self) -> bool:
        """Return true if the trial waits for the feed to be read further ahead, until `read_on` says that it is."""
        return self.trying and not self._read and (self._dry or (self._drawn >= _NEAR and not self._out))

    def read_on(self) -> None:
        """Say that the supply reaches as far as it can, for now: the other trial requests are taken from it."""
        self._read = True
        self._allowed += TRIAL_REQUESTS - _NEAR

    def pick(self, ready: deque[Request], rng: random.Random) -> Request | None:
        """Take a row out of the supply to try. Return None to wait for those under way, or for a larger supply.

        Samples of one row are refused together, so a row is tried once. If the supply holds no other
        rows, its requests go on.
        """
        # All trial requests are out: wait for what they tell.
        if self._drawn >= self._allowed:
            return None
        fresh = [(len(each.body), place) for place, each in enumerate(ready) if each.row_index not in self._rows]
        if not fresh:
            self._dry = True
            return ready.popleft() if self._read else None
        # The smallest is least likely to be too long; the last stands far from the refused rows.
        turn = self._drawn % 3
        place = min(fresh)[1] if turn == 0 else rng.choice(fresh)[1] if turn == 1 else fresh[-1][1]
        request = ready[place]
        del ready[place]
        self._drawn += 1
        self._rows.add(request.row_index)
        self._out.add(request)
        return request

    def excused(self, request: Request) -> None:
        """Note that a request failed of something else: a trial request that tells nothing is replaced."""
        if request in self._out:
            self._out.remove(request)
            self._allowed += 1
        self._before.discard(request)

    def verdict(self, *, ended: bool = False) -> str | None:
        """Return why no request can succeed, None if the held refusals do not show that.

        `ended` says that nothing is left to try.
        """
        if not self._held:
            return None
        number = len({request.row_index for request, _ in self._held})  # samples of one row are refused together
        if self.trying:
            complete = self._read and self._drawn >= self._allowed and not (self._out or self._before)
            decided = number >= _ALIKE and (complete or ended)
        else:
            decided = number >= (_ONCE_ANSWERED if self.model_answered else _NEVER_ANSWERED)
        failure = self._held[-1][1].failure
        assert failure is not None  # noqa: S101 - what a refusal is
        which = "rows, and no other was answered," if self.trying else "rows in a row"
        return f"{number} {which} were refused the same way: {failure.message}" if decided else None

    @property
    def remedy(self) -> str:
        """What a person can do about it."""
        if self.trying:
            return (
                "Check the job's params, schema and messages against what the provider takes (`batchchat plan` shows "
                "the requests), then run the same command again: these rows are open. Where only a block of rows is "
                "bad, such as the longest of a sorted input, run it once with `--sample 100`, which takes rows from "
                "everywhere: once one of them is answered, a refused row is a failed record and stops nothing."
            )
        return "Check model, provider and the key's permissions, then run the same command again."
