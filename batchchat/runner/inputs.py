"""Opening the input of a run: files, rows that a caller gives, or the completions of another job's output."""

from __future__ import annotations

from batchchat.addresses import address_of, same_address
from batchchat.format import plural
from batchchat.job import Job, has_lines
from batchchat.sources import STDIN, GivenRows, Source, open_rows, open_source
from batchchat.store import Completions, Frozen, is_output_folder
from batchchat.template.lines import COLUMNS


def with_given_rows(job: Job) -> Job:
    """Return the job with the mark for rows that come from outside; how a file is written does not concern them."""
    files_own = {"format", "encoding", "header", "quoting"} - ({"format"} if has_lines(job) else set())
    kept = job.input.model_dump(exclude=files_own, exclude_unset=True)
    return job.model_copy(update={"input": type(job.input)(**{**kept, "path": STDIN})})


def open_input(job: Job, frozen: Frozen, rows: GivenRows | None) -> tuple[Source, list[str]]:
    """Open the input. Return also what a person should know of it."""
    notes: list[str] = []
    # The completions of another job's output are rows too: that job's own columns, and what it answered.
    if rows is None and _names_output(job):
        return _open_output(job, frozen, notes), notes
    return _open_source(job, frozen, rows), notes


def _open_source(job: Job, frozen: Frozen, rows: GivenRows | None) -> Source:
    given = job.input
    output = address_of(job.output.path)
    # A program gives the rows: nothing of `input` but its types is about them.
    if rows is not None:
        types = COLUMNS if has_lines(job) else given.types
        return open_rows(rows, types=types, frozen=frozen.input)
    if has_lines(job):
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
