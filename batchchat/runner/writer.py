"""The one writer: takes outcomes from the engine, commits them to the journal in groups, seals parts.

A group is whatever has arrived while the last commit was under way: a lone record never waits for a timer, and a
thousand records share one fdatasync. An outcome counts from its commit on: only then are index and tally told.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from batchchat.engines.port import Answered, Billed, Outcome, Settled
from batchchat.errors import StorageError
from batchchat.events import Event, Listener
from batchchat.intake import Invalid
from batchchat.money import as_float
from batchchat.records import Completion, Record, Request, Spend, Usage, answer_bytes
from batchchat.runner.record_maker import CommonFields, RecordMaker
from batchchat.runner.tally import Tally
from batchchat.store import AnswerEntry, Entry, HeldOutput, SettledEntry, SpendOnly, StoreChange

_FULL_BYTES = 16 * 2**20
"""Bytes of outcomes that may wait for their commit. With more the commit is hastened, and the input waits."""
_NOTHING = Spend()


def _no_watcher() -> None:
    pass


class Offload(Protocol):
    """Runs blocking code off the event loop (or, in tests on a virtual clock, in line)."""

    def __call__(self, function: Callable[..., Any], *args: Any, abandon: bool = False) -> Awaitable[Any]:
        """Await the function's result. With `abandon`, a cancelled wait leaves the function to itself."""


async def in_thread(function: Callable[..., Any], *args: Any, abandon: bool = False) -> Any:
    """Run blocking code in a worker thread."""
    return await anyio.to_thread.run_sync(function, *args, abandon_on_cancel=abandon)


class Shelf(Protocol):
    """Where answers lie that equal requests share. They are kept before the records that they came with count."""

    def take(self) -> dict[bytes, Completion]:
        """Return the answers of the records that are committed next."""

    def keep(self, answers: dict[bytes, Completion]) -> None:
        """Make answers durable. Blocking code. Raises nothing: a shelf that fails does not end the run."""

    def kept(self) -> None:
        """Take note, on the event loop, that they are kept."""


class Writer:
    """Makes outcomes durable. It is the engine's sink.

    `common` goes into every record. `on_error` is called once if the disk fails: the run then ends at once, since
    nothing more can be kept.

    These may be set before `run`: `on_counted` is called after each commit, when its records are in the tally.
    `on_record` takes each record of this run that has become durable. `shelf` is where answers are shared, None if the
    job shares none.
    """

    def __init__(
        self,
        store: HeldOutput,
        tally: Tally,
        common: CommonFields,
        *,
        offload: Offload,
        listener: Listener,
        on_error: Callable[[], None],
    ) -> None:
        self.error: StorageError | None = None
        self.shelf: Shelf | None = None
        self.on_counted: Callable[[], None] = _no_watcher
        self.on_record: Callable[[Record], None] | None = None
        self._store = store
        self._tally = tally
        self._records = RecordMaker(common)
        self._prompt_id = common.prompt_id
        self._by = common.by
        self._offload = offload
        self._listener = listener
        self._on_error = on_error
        self._entries: list[Entry] = []
        self._revived: set[str] = set()
        self._bytes = 0
        self._taken = self._committed = 0
        self._waiting_since: float | None = None
        self._wake = anyio.Event()
        self._hasten = anyio.Event()
        self._caught_up = anyio.Event()
        self._finished = False
        self._group: TaskGroup | None = None
        self._sealing: anyio.Event | None = None

    # --- taking outcomes in

    def put(self, outcome: Outcome) -> None:
        """Take an engine's outcome over; see `Sink`."""
        if isinstance(outcome, Billed):
            spend = _spend(outcome.usage, outcome.cost, answers=outcome.answers)
            self._add(SpendOnly(spend, outcome.key), 200)
            return
        request = outcome.request
        if isinstance(outcome, Answered):
            spend = _spend(outcome.usage, outcome.cost)
            # It costs, and nobody asks for its text again.
            if outcome.step is None:
                self._add(SpendOnly(spend), 200)
            else:
                kept = outcome.payload["completion"]
                nbytes = answer_bytes(kept["text"], kept["reasoning"], kept["tool_calls"], kept["logprobs"])
                shards = request.batch.shards
                shard = 0 if shards is None else shards[request.offset]
                self._add(AnswerEntry(request.custom_id, outcome.step, outcome.payload, spend, shard), nbytes)
            return
        usage = outcome.reply.usage
        spend = _NOTHING if usage is None or outcome.billed_apart else _spend(usage, outcome.reply.cost or 0)
        self._add_record(self._record(request, outcome), spend, outcome.of_prompt is None, outcome.late)

    def add_invalid(self, invalid: Invalid) -> None:
        """Record a row that yields no request."""
        self._add_record(self._records.of_invalid(invalid))

    def add_revived(self, request: Request, outcome: dict[str, Any]) -> None:
        """Record a row whose answer the archive holds: the answer as it was, the row as it is now."""
        record = Record(
            **{
                **outcome,
                "batch": request.batch,
                "offset": request.offset,
                "custom_id": request.custom_id,
                "key": request.key,
                "source": request.batch.source,
                "row_index": request.row_index,
                "sample_index": request.sample_index,
                "prompt_id": self._prompt_id,  # the request is that of the job as it is now
            }
        )
        self._revived.add(record.custom_id)
        self._add_record(record)

    def add_shared(self, request: Request, outcome: Settled) -> None:
        """Record what became of an equal request: it was not sent, and costs nothing but what it cost before.

        The tokens are those of the answer, when it was given, and of its own earlier answers that did not fit.
        """
        record = self._record(request, outcome)
        record.cache_hit = True
        record.cost = as_float(request.cost or 0)
        record.http_status = record.latency_s = None
        record.started_at = record.finished_at
        self._add_record(record)

    def _add_record(self, record: Record, spend: Spend = _NOTHING, seen: bool = True, late: bool = False) -> None:
        # The row is kept with its answer: one that holds an image is most of what waits for the disk.
        row_bytes = record.batch.nbytes // (len(record.batch.values) or 1)
        nbytes = answer_bytes(record.completion, record.reasoning, record.tool_calls, record.logprobs)
        self._add(SettledEntry(record, spend, seen, late), nbytes + row_bytes)

    def _add(self, entry: Entry, nbytes: int) -> None:
        # With more than one, it was woken for the first.
        if not self._entries:
            self._wake.set()
        self._entries.append(entry)
        self._taken += 1
        self._bytes += nbytes
        if self._bytes > _FULL_BYTES:
            self._hasten.set()

    @property
    def full(self) -> bool:
        """Whether more is waiting to be committed than should be."""
        return self._bytes > _FULL_BYTES and self.error is None

    async def room(self) -> None:
        """Wait for the next commit to end."""
        while self.full:
            await self._caught_up.wait()

    async def counted(self) -> bool:
        """Wait until all that was put so far is committed, and no part is being sealed: so memory holds one of them.

        Return false if the disk failed.
        """
        wanted = self._taken
        while self._committed < wanted and self.error is None:
            await self._caught_up.wait()
        await self._sealed()
        return self.error is None

    @property
    def uncommitted(self) -> int:
        """Return how many outcomes wait to become durable."""
        return self._taken - self._committed

    def lag_s(self, now: float) -> float:
        """Return for how many seconds the commit that is under way has been going on, 0 if none is."""
        return 0.0 if self._waiting_since is None else max(0.0, now - self._waiting_since)

    def _record(self, request: Request, outcome: Settled) -> Record:
        record = self._records.of_outcome(request, outcome)
        by = outcome.reply.by or self._by
        # A row that was never sent has nobody who answered it.
        if by is not None and request.attempts:
            self._tally.add_answerer(by, outcome.failure is None, record.cost or 0.0)
        return record

    # --- committing and sealing

    async def run(self) -> None:
        """Commit what arrives until `finish`, then seal the rest. A cancelled run is still written down to its end."""
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as self._group:
                try:
                    await self._commit_all()
                except StorageError as error:
                    self.fail(error)

    async def _commit_all(self) -> None:
        while self._entries or not self._finished:
            # Nothing has arrived. A part may be due by time all the same, if `poke` woke this loop.
            if not self._entries:
                self._wake = anyio.Event()
                await self._wake.wait()
                if self._due():
                    await self._begin_seal()
                continue
            entries, self._entries, self._bytes = self._entries, [], 0
            answers = {} if self.shelf is None else self.shelf.take()
            self._waiting_since = anyio.current_time()
            change: StoreChange = await self._offload(self._commit, entries, answers)
            due = self._waiting_since + self._store.commit_s
            self._waiting_since = None
            if self.shelf is not None:
                self.shelf.kept()
            self._store.apply(change)
            self._count(change)
            self._committed += len(entries)
            self._caught_up.set()
            self._caught_up = anyio.Event()
            if self._due():
                await self._begin_seal()
            if self.error is not None:
                return
            await self._gather(due)
        await self._sealed()
        # The last records make a part of their own, however few they are: readers see the dataset whole.
        if self.error is None and self._store.unsealed:
            await self._begin_seal()
            await self._sealed()

    async def _gather(self, due: float) -> None:
        """Let outcomes gather until a moment, if the output wants few commits; not if much waits, or nothing comes."""
        left = due - anyio.current_time()
        if left > 0 and not self._finished and not self.full:
            self._hasten = anyio.Event()
            with anyio.move_on_after(left):
                await self._hasten.wait()

    def _commit(self, entries: list[Entry], answers: dict[bytes, Completion]) -> StoreChange:
        """Keep the answers that are shared, then the records: no kill leaves a counted answer that is not shared."""
        if self.shelf is not None:
            self.shelf.keep(answers)
        return self._store.commit(entries)

    def _count(self, change: StoreChange) -> None:
        """From now on these count."""
        for entry in change.committed:
            if isinstance(entry, SettledEntry) and not entry.late:
                custom_id = entry.record.custom_id
                revived = custom_id in self._revived
                self._tally.add_record(entry.record, revived=revived, early=not entry.seen)
                if self.on_record is not None and not revived:
                    self.on_record(entry.record)
                self._revived.discard(custom_id)
        self._tally.add_spend(change.spend)
        self.on_counted()

    def _due(self) -> bool:
        return self._store.should_seal(anyio.current_time())

    async def _begin_seal(self) -> None:
        """Seal what is pending while commits go on. At most one seal is under way: a second one waits here."""
        await self._sealed()
        sealing: object | None = await self._offload(self._store.rotate)
        # A part is written beside the next commits: waiting for it would stop the rows for as long.
        if sealing is not None and self._group is not None and self.error is None:
            self._sealing = anyio.Event()
            self._group.start_soon(self._seal, sealing)

    async def _seal(self, sealing: object) -> None:
        try:
            self._apply(await self._offload(self._store.seal, sealing))
        except StorageError as error:
            self.fail(error)
        finally:
            if self._sealing is not None:
                self._sealing.set()
            self._sealing = None

    def _apply(self, change: StoreChange) -> None:
        self._store.apply(change)
        for message in change.messages:
            self._listener(Event("store", message, "warning"))

    async def _sealed(self) -> None:
        if self._sealing is not None:
            await self._sealing.wait()

    def poke(self) -> None:
        """Look whether a part is due by time; called about once a second."""
        if self._sealing is None and self._due():
            self._wake.set()

    def finish(self) -> None:
        """Let `run` end once everything is committed and sealed."""
        self._finished = True
        self._wake.set()
        self._hasten.set()

    def fail(self, error: StorageError) -> None:
        """Keep the first error of the disk, and end the run: nothing more can be kept."""
        if self.error is None:
            self.error = error
            self._caught_up.set()
            self._wake.set()
            self._hasten.set()
            self._on_error()


def _spend(usage: Usage, cost: int, *, answers: int = 1) -> Spend:
    """Return the ledger's entry of so many answered attempts; `cost` is in `money.UNITS`."""
    prompt, completion, total, cached, reasoning = usage
    return Spend(
        answers, prompt or 0, completion or 0, total or 0, cached or 0, reasoning or 0, as_float(cost) if cost else 0.0
    )
