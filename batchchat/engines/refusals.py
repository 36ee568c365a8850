"""Refusals: whether they are about their own rows, or about everybody.

A provider that refuses the key, the model or the job's params says so at every request; one row that it cannot take
gets the very same status. So a refusal is held back until something sent later says more: an answer shows that the
held ones were about their rows, and enough of them in a row that no request can succeed. There are two kinds.

- 403, 404, 405 and 422 are mostly about everybody. Three rows in a row are enough while the model has never answered,
  ten once it has.
- 400 and other statuses of a request that cannot be served are mostly about the row. They are held only while this job
  as it is has never been answered, and ten with the same message (numbers aside) are needed. What stands together in
  the input may be bad together: at the start of a sorted file all prompts may be too long. So from the first of these
  on nothing is sent but a jury: in turn the smallest row of the supply, one from anywhere, and the last. Refusals come
  back sooner than answers do, so nothing is told before each juror, and all that was under way, came back. Half of the
  jury is taken from the supply as it is; where all of these are refused, the feed is read much further ahead, and the
  other half is taken from what it holds then. One answer lets everybody go.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable

from batchchat.engines.causes import NUMBERED
from batchchat.records import ErrorKind, Reply, Request, Verdict

_NEVER_ANSWERED = 3
_ONCE_ANSWERED = 10
_ALIKE = 10
JURY = 24
"""Rows that are tried before a refusal that is mostly about its row is taken for everybody's."""
_NEAR = JURY // 2

Refusal = tuple[Request, Reply]


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
        """Dismiss the jury.

        `_rows` are those that were refused or drawn; `_out` are jurors that have yet to come back, `_before` requests
        that were under way when the first refusal came.
        """
        self._held: list[Refusal] = []
        self._about: tuple[int | None, str] | None = None
        self._rows: set[int] = set()
        self._out: set[Request] = set()
        self._before: set[Request] = set()
        self._seats, self._drawn = _NEAR, 0
        self._read = self._dry = False

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

    def add(self, request: Request, reply: Reply, *, now: float, under_way: Iterable[Request] = ()) -> list[Refusal]:
        """Hold a refusal back; return those that turn out to be about their own rows, since this one is another."""
        failure = reply.failure
        assert failure is not None  # noqa: S101 - what a refusal is
        said = NUMBERED.sub("0", failure.message) if reply.verdict is Verdict.NO else ""
        about = (failure.http_status, said)
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
        """Whether only a jury should be sent, since those that are held may be bad together."""
        return bool(self._held) and self._held[0][1].verdict is Verdict.NO

    @property
    def reading(self) -> bool:
        """Whether the jury waits for the feed to be read further ahead: until `read_on` says that it is."""
        return self.trying and not self._read and (self._dry or (self._drawn >= _NEAR and not self._out))

    def read_on(self) -> None:
        """Say that the supply reaches as far as it can, for now: the rest of the jury is taken from it."""
        self._read = True
        self._seats += JURY - _NEAR

    def pick(self, ready: deque[Request], rng: random.Random) -> Request | None:
        """Take a row out of the supply to try; None while the jury is out, or the supply is to be read further.

        Samples of one row are refused together, so a row is drawn once. Where the supply holds no others, they go on.
        """
        if self._drawn >= self._seats:
            return None
        fresh = [(len(each.body), place) for place, each in enumerate(ready) if each.row_index not in self._rows]
        if not fresh:
            self._dry = True
            return ready.popleft() if self._read else None
        turn = self._drawn % 3
        place = min(fresh)[1] if turn == 0 else rng.choice(fresh)[1] if turn == 1 else fresh[-1][1]
        request = ready[place]
        del ready[place]
        self._drawn += 1
        self._rows.add(request.row_index)
        self._out.add(request)
        return request

    def excused(self, request: Request) -> None:
        """Note that a request failed of something else: a juror that tells nothing is replaced."""
        if request in self._out:
            self._out.remove(request)
            self._seats += 1
        self._before.discard(request)

    def verdict(self, *, ended: bool = False) -> str | None:
        """Why no request can succeed, if that is what the held ones tell. `ended`: there is nothing left to try."""
        if not self._held:
            return None
        number = len({request.row_index for request, _ in self._held})  # samples of one row are refused together
        if self.trying:
            complete = self._read and self._drawn >= self._seats and not (self._out or self._before)
            told = number >= _ALIKE and (complete or ended)
        else:
            told = number >= (_ONCE_ANSWERED if self.model_answered else _NEVER_ANSWERED)
        failure = self._held[-1][1].failure
        assert failure is not None  # noqa: S101 - what a refusal is
        which = "rows, and no other was answered," if self.trying else "rows in a row"
        return f"{number} {which} were refused the same way: {failure.message}" if told else None

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
