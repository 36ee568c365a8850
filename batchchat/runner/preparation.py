"""Everything that is checked before a run sends or writes anything. `plan` stands on it too. Blocking code."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from batchchat.acceptance import Acceptance
from batchchat.addresses import address_of, same_address
from batchchat.attachments import attachment_loader
from batchchat.errors import JobError, UsageError
from batchchat.examples import EXAMPLES, Examples, open_examples
from batchchat.format import plural
from batchchat.identity import Identity
from batchchat.images import ImageReader
from batchchat.intake import Intake, Selection, read_key
from batchchat.job import BatchFileJob, Job
from batchchat.job.param_checks import check_params
from batchchat.job.targets import check_targets, has_several
from batchchat.providers import Provider
from batchchat.records import ErrorKind, RowBatch
from batchchat.runner.questions import Questions, compile_questions, schema_warnings
from batchchat.runner.shard_choice import ShardedRows
from batchchat.sources import STDIN, GivenRows, Source, open_rows, open_source
from batchchat.store import Completions, Frozen, KeyIndex, RecordIndex, Shards, is_output_folder, joined_parsed
from batchchat.template import RowTemplateError, Template
from batchchat.template.lines import COLUMNS, model_of

if TYPE_CHECKING:
    import pyarrow as pa

_KEYS_CHECKED = 1_000
_HEAD_BYTES = 32 * 2**20
_NOT_FROZEN = Frozen()
_ROWS_TRIED = 100
_SINGLE_BRACES = re.compile(r"(?<!\{)\{ *([^{}%#\n]{1,200}?) *\}(?!\})")
_COMMENT = re.compile(r"\{#(.*?)#\}", re.DOTALL)
_KEYS_DIFFER = "A key must be there and different in every row: name another column, or leave input.key out."
_LINES_DIFFER = "Each line of a batch file needs a custom_id of its own."


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
        return Intake(
            self.template,
            self.identity,
            index=RecordIndex() if index is None else index,
            keys=KeyIndex() if keys is None and key is not None else keys,
            key_column=key,
            reopens=reopens,
            selection=self.selection,
            samples=self.job.samples,
            answer_ids=answer_ids,
        )

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

    `frozen` are the types that the output was made with. `rows` take the place of the job's input. `chosen` are the
    indexes of the rows that make the pass, in place of a sample. `shards` are those that the run takes of its output.
    """
    provider, questions, parsed = _compiled(job, frozen)
    if rows is not None:
        job = _with_rows(job)
    source, notes = _open_input(job, frozen, rows)
    _check_key_column(job, source)
    images = _image_reader(job, questions.template, source)
    batches = source.batches()
    head = _read_head(batches)
    first = list(islice(_rows(head), _KEYS_CHECKED))
    if job.input.key is not None:
        _check_keys(job, job.input.key, first, questions.template)
    # Only the lines of a batch file can name the model: until they are read, nothing about it can be checked.
    if isinstance(job, BatchFileJob) and not job.model:
        job = _with_model(job, first)
        provider, questions = job.resolved_provider(), compile_questions(job)
        job.check_budget(provider)
    template = questions.template
    _check_cut(job, template, source.columns)
    examples = _open_examples(job, template, source)
    _try_template(job, template, first, source.columns, images=images, examples=examples)
    _check_columns_used(job, template, source.columns)
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
        _empty_at_start(empty, template, first),
        [*notes, *_text_warnings(job), *_sample_warnings(job, template), *schema_warnings(job, questions, provider)],
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


def _empty_at_start(empty: EmptyTexts, template: Template, first: list[tuple[RowBatch, int]]) -> list[str]:
    """Warn if the messages of the first rows would show nothing. Rows that `skip` leaves out are not asked about."""
    read = [
        values
        for batch, offset in first
        if (values := batch.values[offset]) is not None and not _left_out(template, values)
    ]
    return empty.warning(sum(map(empty.finds, read)), f"the first {len(read):,}")


def _with_rows(job: Job) -> Job:
    """Return the job with the mark for rows that come from outside; how a file is written does not concern them."""
    files_own = {"format", "encoding", "header", "quoting"} - ({"format"} if isinstance(job, BatchFileJob) else set())
    kept = job.input.model_dump(exclude=files_own, exclude_unset=True)
    return job.model_copy(update={"input": type(job.input)(**{**kept, "path": STDIN})})


def _open_input(job: Job, frozen: Frozen, rows: GivenRows | None) -> tuple[Source, list[str]]:
    """Open the input. Return also what a person should know of it."""
    notes: list[str] = []
    # The completions of another job's output are rows too: that job's own columns, and what it answered.
    if rows is None and _names_output(job):
        return _open_output(job, frozen, notes), notes
    return _open_source(job, frozen, rows), notes


def _open_source(job: Job, frozen: Frozen, rows: GivenRows | None) -> Source:
    given = job.input
    output = address_of(job.output.path)
    if rows is not None:
        types = COLUMNS if isinstance(job, BatchFileJob) else given.types
        return open_rows(rows, types=types, frozen=frozen.input)
    if isinstance(job, BatchFileJob):
        return open_source(
            given.path, format="jsonl", types=COLUMNS, frozen=frozen.input, output=output, encoding=given.encoding
        )
    return open_source(
        given.path,
        format=given.format,
        types=given.types,
        frozen=frozen.input,
        output=output,
        encoding=given.encoding,
        header=given.header if isinstance(given.header, bool) else tuple(given.header),
        quoting=given.quoting,
    )


def _names_output(job: Job) -> bool:
    """Tell whether the input is an output of batchchat. With a `format`, its files are read as they are."""
    given = job.input
    return given.format is None and given.path != STDIN and is_output_folder(address_of(given.path))


def _open_output(job: Job, frozen: Frozen, notes: list[str]) -> Source:
    """Open the completions of another job's output as rows; `notes` takes what a person should know of them."""
    given, folder = job.input, address_of(job.input.path)
    for name in ("encoding", "header", "quoting"):
        if name in given.model_fields_set and getattr(given, name) not in (None, True):
            message = f"is about text files, and the input {folder} is an output of batchchat"
            raise job.error(message, "input", name, remedy="Leave it out.")
    if same_address(folder, address_of(job.output.path)):
        message = f"is the job's own output {folder}: a job never reads what it writes"
        raise job.error(message, "input", "path", remedy="Name the output of another job, or another output.")
    rows = Completions(folder)
    left = [
        *([plural(rows.left_out, "failed row")] if rows.left_out else []),
        *([plural(rows.open, "open row")] if rows.open else []),
    ]
    if left:
        notes.append(f"input: {' and '.join(left)} of {folder} have no completion, and are no rows of this job")
    return open_rows(rows, types=given.types, frozen=frozen.input)


def _with_model(job: BatchFileJob, rows: list[tuple[RowBatch, int]]) -> BatchFileJob:
    """The job with the model of the first line that names one: a batch file is for one model."""
    for batch, offset in rows:
        model = model_of(batch.values[offset] or {})
        if model is not None:
            return job.with_model_of_lines(model)
    raise job.error(
        f"is missing, and none of the first {len(rows):,} lines of the input names one in its body",
        "model",
        remedy="Give the job a model; it goes over those of the lines.",
    )


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


def _check_cut(job: Job, template: Template, columns: tuple[str, ...]) -> None:
    """Refuse to cut a column that is not there or that no message shows: it would make no prompt shorter."""
    column = None if job.max_prompt_tokens is None else job.max_prompt_tokens.column
    if column is None:
        return
    if isinstance(job, BatchFileJob):
        message, remedy = "cannot be: the lines of a batch file hold their own messages", "Write `then: fail`."
    elif column not in columns:
        message, remedy = f"the input has no column {column!r}", f"Its columns are {', '.join(columns)}."
    elif column not in template.names and not template.uses_row:
        message, remedy = f"no message shows the column {column!r}", "Name one that a message shows."
    else:
        return
    raise job.error(message, "max_prompt_tokens", "then", "cut", remedy=remedy)


def _open_examples(job: Job, template: Template, source: Source) -> Examples | None:
    """Read the rows that examples are chosen from. Raises JobError if no template can or does show them."""
    if job.examples is None:
        return None
    if isinstance(job, BatchFileJob):
        message = "cannot be shown: the lines of a batch file hold their own messages"
        raise job.error(message, EXAMPLES, remedy="Leave it out.")
    if EXAMPLES in source.columns:
        message = "has the name of a column of the input, so that templates could not tell the two apart"
        raise job.error(message, EXAMPLES, remedy="Rename the column.")
    if EXAMPLES not in template.names:
        message = "is shown by no message: no template names `examples`"
        loop = "{% for example in examples %}{{ example.text }}: {{ example.label }}\n{% endfor %}"
        raise job.error(message, EXAMPLES, remedy=f"Write into a message, for instance, {loop}")
    return open_examples(job)


def _check_columns_used(job: Job, template: Template, columns: tuple[str, ...]) -> None:
    """Refuse a job that asks every row the same, unless it says that this is meant."""
    if template.skip is not None and template.skip.names.isdisjoint({*columns, "row"}):
        raise job.error(
            "names no column of the input, so that it is the same for every row",
            "skip",
            remedy=f"Write a condition on a column, such as {{{{ not {columns[0]} }}}}. "
            f"The input's columns are {', '.join(columns)}.",
        )
    if job.constant or isinstance(job, BatchFileJob) or template.uses(columns):
        return
    written = [text for text in _texts_of(job.messages) for text in _SINGLE_BRACES.findall(text)]
    name = next((text for text in written if text in columns), None)
    hint = (
        f"Write {{{{ {name} }}}} for {{{name}}}" if name else f"Put a column into a message, such as {_hole(columns)}"
    )
    raise job.error(
        "no message and no param uses a column of the input, so every row would ask the same",
        "messages",
        remedy=f"{hint}; or write `constant: true` into the job if this is meant. "
        f"The input's columns are {', '.join(columns)}.",
    )


def _hole(columns: tuple[str, ...]) -> str:
    """Write how a template shows one of the columns."""
    plain = next((name for name in columns if name.isidentifier()), None)
    return f"{{{{ {plain or 'text'} }}}}"


def _texts_of(value: object) -> Iterator[str]:
    """Yield the texts inside of a value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from chain.from_iterable(map(_texts_of, value.values()))
    elif isinstance(value, list | tuple):
        yield from chain.from_iterable(map(_texts_of, value))


def _text_warnings(job: Job) -> list[str]:
    """Say what the model will not see: text inside of comments."""
    lost = [text for source in _texts_of(job.messages) for text in _COMMENT.findall(source)]
    lost = [text.strip() for text in lost if "\n" in text.strip() or "{{" in text]
    if not lost:
        return []
    short = lost[0] if len(lost[0]) <= 60 else lost[0][:59] + "…"
    return [f"messages: {{# … #}} is a comment, so {sum(map(len, lost)):,} characters are not sent: {short!r}"]


class EmptyTexts:
    """Finds rows that have nothing in any column which the messages and params name."""

    def __init__(self, template: Template, columns: tuple[str, ...]) -> None:
        self._names = [] if template.uses_row else [name for name in columns if name in template.names]

    def finds(self, values: Mapping[str, object] | None) -> bool:
        """Tell whether a row is empty in that sense. A row that cannot be read is not."""
        return values is not None and bool(self._names) and all(_is_empty(values.get(name)) for name in self._names)

    def warning(self, number: int, among: str) -> list[str]:
        """Return a warning of so many rows among others, such as `the first 1,000`; nothing of none."""
        if not number:
            return []
        named = ", ".join(self._names[:5]) + (" …" if len(self._names) > 5 else "")
        have = "has" if number == 1 else "have"
        return [f"{number:,} of {among} rows {have} nothing in {named}: each is sent and paid all the same"]


def _left_out(template: Template, values: Mapping[str, object]) -> bool:
    try:
        return template.skips(values)
    except RowTemplateError:
        return False  # `_try_template` says what is wrong


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, list) and not value)


def _sample_warnings(job: Job, template: Template) -> list[str]:
    reasons = alike_samples(job, template)
    if not reasons:
        return []
    return [f"samples: the {job.samples} answers to a row may all be alike, since {' and '.join(reasons)}"]


def alike_samples(job: Job, template: Template) -> list[str]:
    """Return what makes the samples of a row alike, so that more of them tell no more."""
    if job.samples == 1 or template.sampled:
        return []
    reasons = []
    if job.params.temperature == 0:
        reasons.append("params.temperature is 0")
    if job.params.seed is not None:
        reasons.append('params.seed is the same for all of them (`seed: "{{ sample_index }}"` gives each its own)')
    return reasons


def _rows(batches: list[RowBatch]) -> Iterator[tuple[RowBatch, int]]:
    return chain.from_iterable(((batch, offset) for offset in range(len(batch.values))) for batch in batches)


def _check_key_column(job: Job, source: Source) -> None:
    key = job.input.key
    if key is not None and key not in source.columns and key.partition(".")[0] not in source.columns:
        folded = {name.casefold(): name for name in source.columns}
        near = [folded[name] for name in difflib.get_close_matches(key.casefold(), folded, n=1)]
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise job.error(
            f"the input has no column {key!r}{hint}",
            "input",
            "key",
            remedy=f"Its columns are {', '.join(source.columns)}.",
        )


def _check_keys(job: Job, key: str, rows: list[tuple[RowBatch, int]], template: Template) -> None:
    seen: dict[str, int] = {}
    for batch, offset in rows:
        values = batch.values[offset]
        if values is None or _left_out(template, values):
            continue
        row = batch.first_index + offset
        text, problem = read_key(values, key)
        if text is not None and text in seen:
            problem = f"the key {key} is {text!r} in row {seen[text]} and again in row {row}"
        if problem is not None:
            where = "" if "again" in problem else f" in row {row}"
            raise job.error(
                f"{problem}{where} of {batch.source} (rows count from 0)",
                "input",
                "key",
                remedy=_LINES_DIFFER if isinstance(job, BatchFileJob) else _KEYS_DIFFER,
            )
        if text is not None:
            seen[text] = row


def _try_template(
    job: Job,
    template: Template,
    rows: list[tuple[RowBatch, int]],
    columns: tuple[str, ...],
    *,
    images: ImageReader | None,
    examples: Examples | None,
) -> None:
    """Stop before anything is sent if none of the first rows renders: then it is the template, not the rows."""
    first: JobError | UsageError | None = None
    tried = 0
    for batch, offset in rows:
        if tried == _ROWS_TRIED:
            break
        values = batch.values[offset]
        if values is None:
            tried += 1
            if first is None:
                first = UsageError(
                    f"none of the first rows can be read: {batch.failures[offset].message}",
                    remedy="Check input.path and input.format.",
                )
            continue
        place = "skip"
        try:
            if template.skips(values):
                continue  # it is no error if the first rows are all left out
            place = "messages"
            tried += 1
            if examples is not None:
                values = {**values, EXAMPLES: examples.choose(values)}
            template.render(values, images=images.load(values, batch.source) if images is not None else None)
        except RowTemplateError as error:
            if not isinstance(first, JobError):
                first = job.error(
                    f"none of the first rows renders; row {batch.first_index + offset}: {error}",
                    place,
                    remedy=f"The input's columns are {', '.join(columns)}.",
                )
        else:
            return
    if first is not None:
        raise first
