"""The rows of a pass that need a look, and the trail that the pass leaves behind for the next one.

Rows that an earlier pass knew, and whose records are final, are not even read (see `store.known`). What is left are
stretches of the known rows in which something is still to be done, and everything behind them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import cache
from hashlib import blake2b
from importlib.metadata import version

from batchchat import __version__
from batchchat.intake import Sorted
from batchchat.records import ErrorKind, Request, RowBatch
from batchchat.runner.preparation import Prepared
from batchchat.store import OK
from batchchat.store.index import state_of
from batchchat.store.known import KnownBatch, KnownRows, Pass
from batchchat.store.trail import Subject

_SHAPES_NO_REQUEST = (
    *(
        "name",
        "output",
        "limits",
        "retry",
        "prices",
        "budget",
        "deadline",
        "fallback",
        "cascade",
        "constant",
        "cache",
        "dedupe",
        "file",
        "suite",
        "options",
    ),
)
"""Sections of a job that may change without any row becoming another request; all others make a new trail."""
_RENDERERS = ("jinja2", "orjson", "pyarrow")
_REVIVE_MAX = 4096
_REVIVE_BYTES = 32 * 2**20
"""Requests, and bytes of them, whose archived answers are looked for at once: each look reads the archive."""


def pass_of(prepared: Prepared, reopens: frozenset[ErrorKind]) -> Pass | None:
    """Say what a pass is about; None where an earlier one can tell nothing of it.

    That is so for a random choice of rows, for what comes through a pipe, and where requests hold more than the rows
    and the job say: images are files of their own.
    """
    job = prepared.job
    # A trail is of one whole output: each shard sees some rows alone.
    if prepared.shards is not None:
        return None
    names_files = prepared.template.image_columns or prepared.template.attachments
    if prepared.selection.sample is not None or not prepared.source.lasting or names_files:
        return None
    final = frozenset({OK, *(state_of("failed", kind.value) for kind in ErrorKind if kind not in reopens)})
    subject = Subject(_text(prepared), job.samples, job.input.key is not None)
    return Pass(prepared.source, subject, final, prepared.selection.limit)


def _text(prepared: Prepared) -> str:
    """A digest of all that turns rows into requests, save the rows: the job's own text, and the code that reads it."""
    shaping = {name: value for name, value in prepared.job.snapshot().items() if name not in _SHAPES_NO_REQUEST}
    # Whether the rows are the same is told by stamps and digests of the files, not by their place.
    shaping["input"] = {name: value for name, value in shaping["input"].items() if name != "path"}
    if isinstance(shaping["provider"], dict):  # which endpoints there are shapes no request
        shaping["provider"] = {name: value for name, value in shaping["provider"].items() if name != "endpoints"}
    code = [__version__, *_renderers()]
    gold = [] if prepared.examples is None else [prepared.examples.digest]
    text = json.dumps([shaping, prepared.template.text_digest, prepared.provider.identity, code, *gold], sort_keys=True)
    return blake2b(text.encode(), digest_size=16).hexdigest()


@cache
def _renderers() -> tuple[str, ...]:
    """Return the versions of the packages that shape requests: to look them up takes 4 ms."""
    return tuple(map(version, _RENDERERS))


def prompt_id_of(prepared: Prepared) -> str:
    """Return the short digest of all in a job that shapes requests, as 12 hexadecimal digits.

    Messages, params, model, the schema of answers and the provider go in. Rows, limits and the version of the code do
    not: two records with one `prompt_id` were asked the same question of different rows.
    """
    text = json.dumps([prepared.template.text_digest, prepared.provider.identity, *_choice(prepared)])
    return blake2b(text.encode(), digest_size=6).hexdigest()


def _choice(prepared: Prepared) -> list[object]:
    """Return how a job chooses examples, without the place of its file; nothing if it does not."""
    fields = prepared.job.examples
    return [] if fields is None else [fields.model_dump(mode="json", exclude={"source"})]


class Rows:
    """Gives a pass its rows, batch by batch with what is known of each, and continues the trail.

    Iterating is blocking code. For each batch the caller says `begin`, then `add` for all that it was sorted into, then
    `end`; and `finish` when there are no more. `flush` is blocking code too, to be called when `full`.
    """

    def __init__(self, prepared: Prepared, known: KnownRows | None) -> None:
        self._prepared = prepared
        self._source = prepared.source
        self._known = known
        self._trail = None if known is None else known.trail
        self._known_rows = 0 if self._trail is None else self._trail.rows
        self._at_end = self._trail is not None and not self._known_rows
        self._new = False
        self._added = 0

    def __iter__(self) -> Iterator[tuple[RowBatch, KnownBatch | None]]:
        known, trail = self._known, self._trail
        if known is None or trail is None or not self._known_rows:
            for batch in self._prepared.batches():
                yield batch, None
            return
        end = trail.end
        for stretch in known.stretches(apart=self._source.seekable):
            with closing(self._source.batches(stretch.after, stretch.start)) as batches:
                for batch in batches:
                    room = stretch.stop - batch.first_index
                    # The source gives whole batches. What lies behind the stretch belongs to the next one.
                    if room <= 0:
                        break
                    told = known.batch(batch.first_index, batch.first_index + min(room, len(batch.values)))
                    if told is not None and 1 in told.look:
                        whole = self._prepared.complete(batch, told.look)
                        yield whole if room >= len(batch.values) else replace(whole, values=whole.values[:room]), told
        if not self._prepared.selection.past(self._known_rows):
            self._at_end = True
            for batch in self._source.batches(end, self._known_rows):
                yield self._prepared.complete(batch), None

    def begin(self, batch: RowBatch) -> None:
        """Note that a batch is about to be sorted."""
        self._added = 0
        self._new = batch.first_index >= self._known_rows
        if self._trail is not None and self._new:
            self._trail.begin_batch(self._source)

    def add(self, found: Sorted) -> None:
        """Some rows of the batch were sorted."""
        self._added += len(found.custom_ids)
        if self._trail is not None and self._new:
            self._trail.add(found.custom_ids, found.keys)

    def end(self, batch: RowBatch) -> None:
        """Note that the batch was sorted. If the pass takes only some of its rows, the trail ends before it."""
        if self._trail is not None and self._new:
            # Rows that were not sorted have no identity in the trail, and it may not have a hole.
            whole = self._added == len(batch.values) * self._prepared.job.samples
            self._trail.end_batch(batch.place, self._source, whole=whole)

    def finish(self) -> None:
        """Note that all rows were sorted."""
        if self._trail is not None and self._at_end:
            self._trail.begin_batch(self._source)

    @property
    def full(self) -> bool:
        """Whether it is time to `flush`."""
        return self._trail is not None and self._trail.full

    def flush(self) -> None:
        """Write the trail as far as it goes."""
        if self._trail is not None:
            self._trail.flush()


class Archived:
    """Requests whose answers are in the archive, collected since they are looked for together."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._nbytes = 0

    def add(self, requests: list[Request]) -> None:
        """Take some more. What each keeps in memory is its body, and the batch of its row."""
        for request in requests:
            alone = not self.requests or self.requests[-1].batch is not request.batch
            self._nbytes += len(request.body) + (request.batch.nbytes if alone else 0)
            self.requests.append(request)

    @property
    def full(self) -> bool:
        """Whether they are many enough, or large enough, to be looked for."""
        return len(self.requests) >= _REVIVE_MAX or self._nbytes >= _REVIVE_BYTES
