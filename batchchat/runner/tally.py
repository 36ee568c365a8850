"""The counts of a run: fed as records become durable, read as frozen snapshots."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence

from batchchat.client.finish import Finish, judge_finish
from batchchat.dataclass import dataclass
from batchchat.events import AnsweredBy, FailureGroup, Streamed
from batchchat.records import Answerer, ErrorKind, Record, Spend
from batchchat.runner.answerers import Answerers
from batchchat.runner.step_shares import StepShares

_WINDOW_S = 20.0
"""Seconds over which the shown rate is measured: it is smooth then, and follows a change within half a minute.
Chosen."""
_FIRST_ROWS = 50
_ALIKE = 20
"""So many of the first rows that failed for one reason are told of at once. Chosen: a row here and there fails of every
real job, and twenty of fifty are no accident."""
_MAX_WORDS = 20
"""How many unknown words are told apart; a server that gives a new one each time is told of by these."""


class MovingRate:
    """Amounts per second over the last twenty seconds, sampled about once a second."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque()

    def sample(self, now: float, total: float) -> None:
        """Note the total so far."""
        samples = self._samples
        samples.append((now, total))
        # The oldest sample stays until the next one is as old as the window, so that the rate always covers all of it.
        while len(samples) > 2 and now - samples[1][0] >= _WINDOW_S:
            samples.popleft()

    @property
    def per_s(self) -> float:
        """Growth per second between the oldest and the newest sample, 0 while there is only one."""
        if len(self._samples) < 2:
            return 0.0
        (start, low), (end, high) = self._samples[0], self._samples[-1]
        # Two samples of one moment have no rate between them.
        return (high - low) / (end - start) if end > start else 0.0


class Median:
    """The median of positive numbers, to within one per cent, in memory that does not grow with them.

    Counts numbers by their logarithm, in steps of two per cent.
    """

    _STEP = math.log(1.02)
    _LEAST = 1e-9

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._total = 0

    def add(self, values: Iterable[float | None]) -> None:
        """Take numbers; None is passed over."""
        counts = self._counts
        for value in values:
            if value is not None and value < math.inf:
                place = round(math.log(max(value, self._LEAST)) / self._STEP)
                counts[place] = counts.get(place, 0) + 1
                self._total += 1

    @property
    def value(self) -> float | None:
        """The median so far, None of nothing; of an even number the lower of the two in the middle."""
        left = (self._total + 1) // 2
        for place in sorted(self._counts):
            left -= self._counts[place]
            if left <= 0:
                return math.exp(place * self._STEP)
        return None


def _by_fallback(one: AnsweredBy) -> str:
    which = f"{one.ok:,} row{'s were' if one.ok != 1 else ' was'} answered by a fallback"
    return f"{which}: {one.model or 'another model'} at {one.endpoint or one.provider}, not by the job's own model"


class StreamPace:
    """How streamed completions came."""

    def __init__(self) -> None:
        self._ttft_s = Median()
        self._tokens_per_s = Median()

    def add(self, ttft_s: Iterable[float | None], tokens_per_s: Iterable[float | None]) -> None:
        """Take what completions were measured at."""
        self._ttft_s.add(ttft_s)
        self._tokens_per_s.add(tokens_per_s)

    @property
    def streamed(self) -> Streamed | None:
        """The medians, None where nothing was streamed."""
        ttft_s = self._ttft_s.value
        return None if ttft_s is None else Streamed(ttft_s, self._tokens_per_s.value)


@dataclass(slots=True)
class _Group:
    count: int
    example: str
    row_index: int


@dataclass(slots=True)
class _Share:
    ok: int = 0
    failed: int = 0
    cost: float = 0.0


class Tally:
    """What this run has settled durably. `one_model`: all requests name the same model, so that a change is told.

    `steps` are the models of a cascade.
    """

    def __init__(self, *, one_model: bool = True, steps: Sequence[str] = ()) -> None:
        self._one_model = one_model
        self.steps = StepShares(steps)
        self.ok = 0
        self.failed = 0
        self.revived = 0
        self.asked = 0
        self.shared = 0
        self.early = 0
        self.spend = Spend()
        self.rows = MovingRate()
        self.tokens = MovingRate()
        self._pace = StreamPace()
        self._groups: dict[str, _Group] = {}
        self._alike: FailureGroup | None = None
        self._told = False
        self._unknown: dict[str, int] = {}
        self.answerers = Answerers()
        self._shares: dict[Answerer, _Share] = {}

    def add_answerer(self, by: Answerer, ok: bool, cost: float) -> None:
        """Count a record by who was asked last for it; `cost` is the record's."""
        share = self._shares.get(by)
        if share is None:
            share = self._shares[by] = _Share()
        if ok:
            share.ok += 1
        else:
            share.failed += 1
        share.cost += cost

    def answered_by(self) -> tuple[AnsweredBy, ...]:
        """Return who was asked last for this run's records, whoever had most of them first."""
        found = [
            AnsweredBy(by.provider, by.endpoint, by.model, by.fallback, share.ok, share.failed, share.cost)
            for by, share in self._shares.items()
        ]
        return tuple(sorted(found, key=lambda one: -(one.ok + one.failed)))

    def add_record(self, record: Record, *, revived: bool = False, early: bool = False) -> None:
        """Count one record. An `early` one was settled before the pass asked for it: it will find it done."""
        self.early += early
        # It was paid for in an earlier run: counted with what was done before, and in no rate of this one.
        if revived:
            self.revived += 1
            return
        self.shared += record.cache_hit is True
        if record.step is not None:
            self.steps.add(record.step, record.earlier_steps, ok=record.status == "ok", cost=record.cost)
        self.asked += record.attempts > 0
        if record.status == "ok":
            self.ok += 1
            # A shared answer tells who answered then, maybe weeks ago, and nothing of who answers now.
            if self._one_model and not record.cache_hit:
                self.answerers.add(record.model, record.system_fingerprint)
            if record.ttft_s is not None:
                self._pace.add((record.ttft_s,), (record.output_tokens_per_s,))
            if judge_finish(record.finish_reason) is Finish.UNKNOWN:
                self._meet(record.finish_reason or "")
        else:
            self.failed += 1
            self._group(record.error_kind or ErrorKind.PROTOCOL.value, record.error_message or "", record.row_index)

    def _meet(self, word: str) -> None:
        """Count an answer that ended with a word that nobody knows."""
        word = word[:60]
        if word in self._unknown or len(self._unknown) < _MAX_WORDS:
            self._unknown[word] = self._unknown.get(word, 0) + 1

    def remarks(self) -> list[str]:
        """Return what a person should know of this run's answers."""
        unknown = [
            f"{count} answer{'s' * (count != 1)} ended with finish_reason {word!r}, which is not known: each was taken "
            "for a whole answer. Look at some of them."
            for word, count in self._unknown.items()
        ]
        return [
            *self.answerers.remarks(),
            *unknown,
            *(_by_fallback(one) for one in self.answered_by() if one.fallback and one.ok),
        ]

    @property
    def streamed(self) -> Streamed | None:
        """How this run's streamed completions came."""
        return self._pace.streamed

    def add_spend(self, spend: Spend) -> None:
        """Count what answered attempts cost."""
        self.spend = self.spend.plus(spend)

    def sample(self, now: float) -> None:
        """Take the moment's totals for the rates."""
        self.rows.sample(now, self.ok + self.failed)
        self.tokens.sample(now, self.spend.total_tokens)

    def _group(self, kind: str, message: str, row_index: int) -> None:
        group = self._groups.get(kind)
        if group is None:
            self._groups[kind] = _Group(1, message, row_index)
        else:
            group.count += 1
            if group.count == _ALIKE and not self._told and self.ok + self.failed <= _FIRST_ROWS:
                self._told = True
                self._alike = FailureGroup(kind, group.count, group.example, group.row_index)

    def take_alike(self) -> FailureGroup | None:
        """Return what many of the first rows failed of; once, then None."""
        alike, self._alike = self._alike, None
        return alike

    def failures(self) -> tuple[FailureGroup, ...]:
        """Failed rows by kind, the most frequent first, each with its first message."""
        groups = sorted(self._groups.items(), key=lambda item: -item[1].count)
        return tuple(FailureGroup(kind, group.count, group.example, group.row_index) for kind, group in groups)
