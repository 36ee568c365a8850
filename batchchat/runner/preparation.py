"""Everything that is checked before a run sends or writes anything. `plan` stands on it too. Blocking code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import field
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from batchchat.acceptance import Acceptance
from batchchat.attachments import attachment_loader
from batchchat.dataclass import dataclass
from batchchat.errors import UsageError
from batchchat.identity import Identity
from batchchat.images import ImageReader
from batchchat.intake import DoneBefore, Intake, RowRequests, Selection
from batchchat.job import Job, has_lines
from batchchat.job.param_checks import check_params
from batchchat.job.targets import check_targets, has_several
from batchchat.providers import Provider
from batchchat.records import ErrorKind, RowBatch
from batchchat.runner.first_rows import (
    EmptyTexts,
    check_key_column,
    check_keys,
    empty_at_start,
    rows_of,
    try_template,
    with_model,
)
from batchchat.runner.inputs import open_input, with_given_rows
from batchchat.runner.questions import Questions, compile_questions, schema_warnings
from batchchat.runner.shard_choice import ShardedRows
from batchchat.runner.template_checks import check_columns_used, check_cut, examples_of, sample_warnings, text_warnings
from batchchat.sources import GivenRows, Source
from batchchat.store import Frozen, KeyIndex, RecordIndex, Shards, joined_parsed
from batchchat.template import Template

if TYPE_CHECKING:
    import pyarrow as pa

    from batchchat.examples import Examples

_KEYS_CHECKED = 1_000
"""Rows whose keys are looked at before the run: a column that is no key repeats within few rows. Chosen, not measured.
"""
_HEAD_BYTES = 32 * 2**20
"""Bytes of first rows that may wait in memory until the run takes them: rows of a megabyte are few then."""
_NOT_FROZEN = Frozen()


@dataclass(slots=True)
class Prepared:
    """A job whose input, template and provider are known to fit together.

    `parsed` is the typed column of its answers, if they have a schema. `warnings` are what a person should know;
    `first_empty` warns of the first rows that `empty` finds.
    """

    job: Job
    provider: Provider
    source: Source
    template: Template
    acceptance: Acceptance
    parsed: pa.Field | None
    identity: Identity
    selection: Selection
    empty: EmptyTexts
    first_empty: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _head: list[RowBatch] = field(default_factory=list)
    _rest: Iterator[RowBatch] | None = None
    _images: ImageReader | None = None
    examples: Examples | None = None
    shards: Shards | None = None

    def batches(self) -> Iterator[RowBatch]:
        """Yield the rows of the input, from the first one, with the images of those that are selected.

        The rows that were looked at come again; this works once.
        """
        for batch in map(self.complete, self._rows()):
            if self._images is None:
                yield batch
            else:
                yield from self._images.batches(batch, self._takes_of(batch))

    def complete(self, batch: RowBatch, look: bytes | None = None) -> RowBatch:
        """Return a batch whose selected rows have their examples, if the job chooses any.

        `look` has a byte for each of the first rows, 0 for one that needs none. Blocking code.
        """
        if self.shards is not None and self.job.input.key is not None:
            ShardedRows(self.shards, self.job.input.key).mark(batch)
        if self.examples is None:
            return batch
        first, takes = batch.first_index, self._takes_of(batch)

        def wanted(row: int) -> bool:
            return takes(row) if look is None else row - first < len(look) and look[row - first] == 1

        return self.examples.complete(batch, self.template, wanted)

    def _takes_of(self, batch: RowBatch) -> Callable[[int], bool]:
        """Return what tells of a row of this batch whether it must be rendered."""
        shards, first = batch.shards, batch.first_index
        if shards is None:
            return self._takes
        return lambda row_index: shards[row_index - first] >= 0 and self._takes(row_index)

    def _takes(self, row_index: int) -> bool:
        """Tell whether a row must be rendered: equal requests are numbered by all rows, unless rows have a key."""
        if self.selection.numbered and self.job.input.key is None:
            return True
        return self.selection.takes(row_index)

    def intake(
        self,
        index: RecordIndex | None = None,
        keys: KeyIndex | None = None,
        *,
        reopens: frozenset[ErrorKind] = frozenset(),
        answer_ids: bool = False,
    ) -> Intake:
        """Return what makes requests of the rows, and leaves out those that `index` and `keys` know as done.

        Without an index, every row becomes a request. `reopens` are the failures to try again. With `answer_ids`,
        requests tell which of them are equal.
        """
        key = self.job.input.key
        done = DoneBefore(
            RecordIndex() if index is None else index,
            KeyIndex() if keys is None and key is not None else keys,
            reopens,
        )
        asking = RowRequests(self.template, self.identity, key, self.job.samples)
        return Intake(asking, done, selection=self.selection, answer_ids=answer_ids)

    def _rows(self) -> Iterator[RowBatch]:
        head, self._head = self._head, []
        rest = self._rest if self._rest is not None else iter(())
        # The head's batches are let go one by one, so that they do not stay in memory for the whole run.
        while head:
            yield head.pop(0)
        yield from rest


def prepare(
    job: Job,
    *,
    frozen: Frozen = _NOT_FROZEN,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    rows: GivenRows | None = None,
    chosen: frozenset[int] | None = None,
    shards: Shards | None = None,
) -> Prepared:
    """Open the input, compile the template and try both on the first rows. Raises UsageError; writes nothing.

    `frozen` are the types that the output was made with. `limit` and `sample` take some of the rows, `seed` chooses
    those of a sample. `rows` take the place of the job's input. `chosen` are the indexes of the rows that make the
    pass, in place of a sample. `shards` are those that the run takes of its output.
    """
    provider, questions, parsed = _compiled(job, frozen)
    if rows is not None:
        job = with_given_rows(job)
    source, notes = open_input(job, frozen, rows)
    check_key_column(job, source)
    images = _image_reader(job, questions.template, source)
    batches = source.batches()
    head = _read_head(batches)
    first = list(islice(rows_of(head), _KEYS_CHECKED))
    if job.input.key is not None:
        check_keys(job, job.input.key, first, questions.template)
    # Only the lines of a batch file can name the model: until they are read, nothing about it can be checked.
    if has_lines(job) and not job.model:
        job = with_model(job, first)
        provider, questions = job.resolved_provider(), compile_questions(job)
        job.check_budget(provider)
    template = questions.template
    check_cut(job, template, source.columns)
    examples = examples_of(job, template, source)
    try_template(job, template, first, source.columns, images=images, examples=examples)
    check_columns_used(job, template, source.columns)
    empty = EmptyTexts(template, source.columns)
    numbered = chosen is not None
    if sample is not None and chosen is None:
        chosen = _sampled(source, sample, seed)
    return Prepared(
        job,
        provider,
        source,
        template,
        questions.acceptance,
        parsed,
        Identity(provider.identity),
        Selection(limit, chosen, numbered),
        empty,
        empty_at_start(empty, template, first),
        [*notes, *text_warnings(job), *sample_warnings(job, template), *schema_warnings(job, questions, provider)],
        head,
        batches,
        images,
        examples,
        shards,
    )


def _compiled(job: Job, frozen: Frozen) -> tuple[Provider, Questions, pa.Field | None]:
    """Check what needs no row, and compile the questions. Return also the column `parsed`, if the job has one."""
    provider = job.resolved_provider()
    check_params(job, provider)
    # One provider alone is checked by the line above.
    if has_several(job):
        check_targets(job)
    if job.model:
        job.check_budget(provider)
    questions = compile_questions(job)
    parsed = questions.schema.field if questions.schema is not None else None
    try:
        # Found before anything is sent: records of another type would fail to be kept after they were paid for.
        joined_parsed(frozen.parsed, parsed)
    except UsageError as error:
        raise job.error(error.message, "response", "schema", remedy=error.remedy) from None
    return provider, questions, parsed


def _read_head(batches: Iterator[RowBatch]) -> list[RowBatch]:
    """Read the first batches: as many rows as are checked before the run, or as many bytes as may wait in memory."""
    head: list[RowBatch] = []
    size = 0
    for batch in batches:
        head.append(batch)
        size += batch.nbytes
        if batch.first_index + len(batch.values) >= _KEYS_CHECKED or size >= _HEAD_BYTES:
            break
    return head


def _sampled(source: Source, sample: int, seed: int) -> frozenset[int]:
    """Choose so many rows of the input at random: the same ones for the same seed and number of rows."""
    total = source.known_rows()
    # Counting is a pass of its own over the input. It is read twice then, and nothing of it stays in memory.
    total = source.count_rows() if total is None else total
    return frozenset(Random(seed).sample(range(total), min(sample, total)))  # noqa: S311 - a choice of rows


def _image_reader(job: Job, template: Template, source: Source) -> ImageReader | None:
    if not template.attachments and job.files.model_fields_set:
        remedy = "Add a part {type: file, from: column} to a message's content, or remove files from the job."
        raise job.error("no message shows the file or sound of a column", "files", remedy=remedy)
    if not template.image_columns and job.images.model_fields_set:
        remedy = "Add a part {type: image, from: column} to a message's content, or remove images from the job."
        raise job.error("no message shows the image of a column", "images", remedy=remedy)
    if not template.image_columns and not template.attachments:
        return None
    roots = {}
    for name, given in (("images", job.images.root), ("files", job.files.root)):
        roots[name] = root = Path(given) if given is not None else None
        if root is not None and not root.is_dir():
            raise job.error(f"there is no folder {root}", name, "root")
    others = {
        column: attachment_loader(kind, root=roots["files"], max_bytes=job.files.max_bytes)
        for column, kind in template.attachments.items()
    }
    return ImageReader(
        template.image_columns,
        source.folder_of,
        root=roots["images"],
        max_bytes=job.images.max_bytes,
        others=others,
    )
