"""Looking at an output: how far it is, and single records with what went in. Blocking code.

It needs no lock and works while a run is going.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from batchchat.addresses import absolute, address_of
from batchchat.attachments import attachment_placeholders
from batchchat.choosing import RecordFilter, chosen
from batchchat.errors import BatchchatError, UsageError
from batchchat.events import AnsweredBy, BudgetUse, FailureGroup, Forecast, InFlight, Pace, Setting, Snapshot, Steering
from batchchat.examples import Examples, open_examples
from batchchat.images import placeholders
from batchchat.job import Job, job_of, load_job
from batchchat.job.sections import EXAMPLES
from batchchat.records import Spend
from batchchat.runner.questions import compile_questions
from batchchat.runner.step_shares import STEP_COLUMNS, StepShares, count_steps
from batchchat.runner.tally import StreamPace
from batchchat.sources import SeenRows, python_rows
from batchchat.store import Output, batches_folder, read_state
from batchchat.template import RowTemplateError, Template
from batchchat.views import BatchView, LastRun, RecordView, Running, StatusView

_STREAMED = ("ttft_s", "output_tokens_per_s")
_ANSWERER = ("provider", "endpoint")


def status_of(directory: Path | str) -> StatusView:
    """Tell what an output holds, and about the run that is going on or the one that ended last."""
    output = read_state(directory)
    live = snapshot_of(output.live) if output.live and output.holder is not None else None
    found = _StatusCounts(output, live)
    for batch in output.records(found.columns):
        found.add(batch)
    if live is not None:
        # The file of the run's progress is up to a second old; the records are newer, and all counts are theirs.
        live = replace(live, ok=max(live.ok, found.new[0]), failed=max(live.failed, found.new[1]))
    running, last = _running(output), _last_run(output)
    samples = output.job.get("samples")
    skipped = _skipped_rows(output, live)
    unfinished = running is None and (last is None or last.exit_code != 0 or found.earlier > 0)
    return StatusView(
        job=str(output.job.get("name", "")),
        output=str(directory),
        running=running,
        last=last,
        ok=found.ok,
        failed=found.failed,
        open=_open_rows(output, found.ok + found.failed + skipped, live),
        skipped=skipped,
        failures=found.failures(),
        spent=output.spend,
        currency=_text(output.state.get("currency")) or _text((output.live or {}).get("currency")),
        live=live,
        command=_command(output.job, directory) if unfinished else None,
        samples=samples if isinstance(samples, int) else 1,
        streamed=found.pace.streamed,
        earlier_prompt=found.earlier,
        batches=_batches(directory),
        answered_by=_answered_by(found.answerers),
        steps=found.shares.shares(),
    )


class _StatusCounts:
    """What the records of an output tell, batch by batch. `live` is the run that goes on, None if none does."""

    def __init__(self, output: Output, live: Snapshot | None) -> None:
        self.pace = StreamPace()
        self.shares = StepShares([str(step.get("model")) for step in output.job.get("cascade") or ()])
        self.answerers: dict[tuple[str, str | None], list[float]] = {}
        self.earlier = 0
        self.new = [0, 0]
        self._live = live
        self._prompt_id = latest_prompt(output)
        self._counts: dict[str | None, int] = {}
        self._examples: dict[str, tuple[str, int]] = {}
        # An output of an earlier version may lack the later ones of these: its input may have columns of their names.
        names = ("prompt_id", *_STREAMED, *_ANSWERER, *STEP_COLUMNS)
        self._later = [name for name in names if name in output.own_columns]
        self.columns = ["status", "error_kind", "error_message", "row_index", "run_id", "cost", *self._later]

    def add(self, batch: pa.RecordBatch) -> None:
        """Count a batch of records."""
        later = set(self._later)
        _count(batch, self._counts, self._examples)
        if set(_STREAMED) <= later:
            _time(batch, self.pace)
        if set(_ANSWERER) <= later:
            _count_answerers(batch, self.answerers)
        if set(STEP_COLUMNS) <= later:
            count_steps(batch, self.shares)
        if self._prompt_id is not None and "prompt_id" in later:
            self.earlier += _earlier(batch, self._prompt_id)
        if self._live is not None:
            mine = batch.filter(pc.equal(batch.column("run_id"), self._live.run_id)).column("status")
            failed = pc.equal(mine, "failed").true_count
            self.new = [self.new[0] + len(mine) - failed, self.new[1] + failed]

    @property
    def ok(self) -> int:
        """How many completions there are."""
        return self._counts.get(None, 0)

    @property
    def failed(self) -> int:
        """How many failed records there are."""
        return sum(self._counts.values()) - self.ok

    def failures(self) -> list[FailureGroup]:
        """Return the failed records by kind, the most frequent one first, each with an example."""
        kinds = [(kind, number) for kind, number in self._counts.items() if kind is not None]
        kinds.sort(key=lambda item: -item[1])
        return [FailureGroup(kind, number, *self._examples.get(kind, ("", 0))) for kind, number in kinds]


def _running(output: Output) -> Running | None:
    """Return who holds the output, None if nobody does."""
    holder = output.holder
    if holder is None:
        return None
    pid = holder.get("pid")
    started = _utc(holder.get("started_at")) or ""
    return Running(pid if type(pid) is int else 0, str(holder.get("host", "")), started)


def _last_run(output: Output) -> LastRun | None:
    """Return how the last run ended, None if there was none or the first one goes on."""
    last = None
    if output.last_run is not None:
        ended = output.last_run
        code = ended.get("exit_code")
        last = LastRun(
            _text(ended.get("run_id")) or "",
            code if type(code) is int else None,
            _text(ended.get("reason")),
            _utc(ended.get("ended_at")),
            _utc(ended.get("resets_at")),
        )
    # Progress without a line at its end, and nobody there: that run was killed.
    if output.holder is None and output.live and (last is None or output.live.get("run_id") != last.run_id):
        last = LastRun(
            str(output.live.get("run_id")), None, "it ended without a word: killed, or the machine went down", None
        )
    return last


def _count_answerers(batch: pa.RecordBatch, found: dict[tuple[str, str | None], list[float]]) -> None:
    """Count ok and failed records, and what they cost, by who was asked last for them."""
    named = batch.filter(pc.is_valid(batch.column("provider")))
    sums = (
        pa.table({name: named.column(name) for name in (*_ANSWERER, "status", "cost")})
        .group_by([*_ANSWERER, "status"])
        .aggregate([("cost", "sum"), ("status", "count")])
    )
    for row in sums.to_pylist():
        share = found.setdefault((row["provider"], row["endpoint"]), [0, 0, 0.0])
        share[0 if row["status"] == "ok" else 1] += row["status_count"]
        share[2] += row["cost_sum"] or 0.0


def _answered_by(found: Mapping[tuple[str, str | None], list[float]]) -> list[AnsweredBy]:
    """Return the counts by who was asked last, whoever had most records first."""
    ordered = sorted(found.items(), key=lambda item: -(item[1][0] + item[1][1]))
    return [
        AnsweredBy(provider, endpoint, None, False, int(ok), int(failed), cost)
        for (provider, endpoint), (ok, failed, cost) in ordered
    ]


def _batches(directory: Path | str) -> list[BatchView]:
    """Return the batches of an output; nothing is imported for one that has none."""
    if not batches_folder(directory).is_dir():
        return []
    from batchchat.engines.batch.status import batches_of

    return batches_of(directory, now=time.time())


def latest_prompt(output: Output) -> str | None:
    """Return the prompt of the job as the latest run had it; None if no run told it."""
    told: list[Mapping[str, Any]] = [
        *([output.last_run] if output.last_run else []),
        *([output.live] if output.live else []),
    ]
    newest = max(told, key=lambda run: str(run.get("run_id")), default=None)
    return None if newest is None else _text(newest.get("prompt_id"))


def _earlier(batch: pa.RecordBatch, prompt_id: str) -> int:
    """Return how many completions of a batch answer another prompt."""
    others = pc.not_equal(batch.column("prompt_id"), prompt_id)
    return int(pc.and_(others, pc.equal(batch.column("status"), "ok")).true_count)


def _command(snapshot: Mapping[str, Any], directory: Path | str) -> str | None:
    """The command that goes on with this output; None where its job was made in Python."""
    suite, file = _text(snapshot.get("suite")), _text(snapshot.get("file"))
    words = [str(word) for word in snapshot.get("options") or ()]
    if suite:
        return shlex.join(["batchchat", "eval", suite, *words])
    if not file:
        return None
    try:
        job = load_job(
            file, overrides=[text for word, text in zip(words[::2], words[1::2], strict=True) if word == "--set"]
        )
        usual = absolute(address_of(job.output.path)) == absolute(directory)
        if _is_batch(snapshot) and not job.engine.batch:
            words += ["--set", "engine=batch"]
    except (BatchchatError, OSError):
        usual = True  # the command itself will say what is wrong with the job
    # The run was given another output than the one that its job names.
    return shlex.join(["batchchat", "run", file, *words, *([] if usual else ["--output", str(directory)])])


def _is_batch(snapshot: Mapping[str, Any]) -> bool:
    """Return true if a job was run through a Batch API."""
    engine = snapshot.get("engine")
    return isinstance(engine, dict) and engine.get("kind") == "batch"


def _count(batch: pa.RecordBatch, counts: dict[str | None, int], examples: dict[str, tuple[str, int]]) -> None:
    failed = pc.equal(batch.column("status"), "failed")
    bad = batch.filter(failed)
    counts[None] = counts.get(None, 0) + batch.num_rows - bad.num_rows
    for kind, message, row in zip(
        bad.column("error_kind").to_pylist(),
        bad.column("error_message").to_pylist(),
        bad.column("row_index").to_pylist(),
        strict=True,
    ):
        counts[kind] = counts.get(kind, 0) + 1
        examples.setdefault(kind, (message or "", row))


def _time(batch: pa.RecordBatch, pace: StreamPace) -> None:
    if batch.column("ttft_s").null_count < batch.num_rows:
        answered = batch.filter(pc.equal(batch.column("status"), "ok"))
        ttft_s, tokens_per_s = (answered.column(name).drop_null().to_pylist() for name in _STREAMED)
        pace.add(ttft_s, tokens_per_s)


def _skipped_rows(output: Output, live: Snapshot | None) -> int:
    if live is not None:
        return live.skipped
    number = output.last_run.get("skipped") if output.last_run else 0
    return number if type(number) is int else 0


def _open_rows(output: Output, settled: int, live: Snapshot | None) -> int | None:
    if live is not None:
        return max(0, live.total - settled) if live.total is not None else None
    if output.last_run:
        left = output.last_run.get("open")
        return left if isinstance(left, int) else None
    return None


def _utc(stamp: object) -> str | None:
    """A moment as ISO 8601 in UTC with its offset; None of what is none."""
    try:
        return datetime.fromisoformat(str(stamp)).astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def snapshot_of(data: Mapping[str, Any]) -> Snapshot | None:
    """A snapshot as it was written to the live file; None where another version wrote it."""
    try:
        fields = dict(data)
        fields["spend"] = Spend(**fields["spend"]) if isinstance(fields["spend"], dict) else Spend(*fields["spend"])
        fields["failures"] = tuple(FailureGroup(**group) for group in fields["failures"])
        fields["pace"] = Pace(**fields["pace"])
        fields["budget"] = BudgetUse(**fields["budget"]) if fields.get("budget") else None
        fields["forecast"] = Forecast(**fields["forecast"]) if fields.get("forecast") else None
        fields["oldest"] = tuple(InFlight(**request) for request in fields["oldest"])
        if "steering" in fields:
            steering = dict(fields["steering"])
            steering["settings"] = tuple(Setting(**each) for each in steering["settings"])
            fields["steering"] = Steering(**steering)
        return Snapshot(**fields)
    except (TypeError, KeyError, ValueError, AttributeError):
        return None


def find_records(
    directory: Path | str,
    *,
    row: int | None = None,
    key: str | None = None,
    failed: bool = False,
    where: str | None = None,
    limit: int | None = None,
) -> Iterator[RecordView]:
    """Yield records of an output, with the messages as their run's own job renders them.

    They come in the order of its parts, those of one `row` or `key` in the order of their samples. `where` is an
    expression over the columns (see `choosing`). Raises UsageError if it cannot be read.
    """
    output = read_state(directory)
    templates = Templates(output)
    wanted = RecordFilter(row, key, failed, where)
    records: Iterator[dict[str, Any]] = (record for batch in chosen(output, wanted) for record in python_rows(batch))
    if row is not None or key is not None:
        records = iter(sorted(records, key=lambda record: record["sample_index"]))
    for record in islice(records, limit):
        yield record_view(output, templates, record)


def record_view(output: Output, templates: Templates, record: dict[str, Any]) -> RecordView:
    """Return a record of an output, by column, as it is looked at: with its messages rendered again."""
    own = {name: record.pop(name) for name in output.own_columns if name in record}
    messages, note = templates.messages(own["run_id"], record, own["sample_index"])
    return RecordView(record, own, messages, note)


class Templates:
    """The template of each run of an output, from its own snapshot of the job: messages as they were sent."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._seen = SeenRows(output.input_schema or pa.schema([]))
        self._compiled: dict[str, tuple[Template, Examples | None] | str] = {}

    def messages(
        self, run_id: str, columns: dict[str, Any], sample_index: int
    ) -> tuple[list[dict[str, Any]] | None, str]:
        """The messages that a record's row rendered to, or why they cannot be told."""
        found = self._template(run_id)
        if isinstance(found, str):
            return None, found
        template, examples = found
        try:
            values = self._seen(columns)
            if examples is not None:
                values[EXAMPLES] = examples.choose(values)
            shown = placeholders(template.image_columns, values)
            shown |= attachment_placeholders(template.attachments, values)
            body = orjson.loads(template.render(values, sample_index, shown).body)
        except RowTemplateError as error:
            return None, f"its messages cannot be rendered: {error}"
        messages: list[dict[str, Any]] = body["messages"]
        return messages, ""

    def _template(self, run_id: str) -> tuple[Template, Examples | None] | str:
        if run_id not in self._compiled:
            self._compiled[run_id] = self._compile(run_id)
        return self._compiled[run_id]

    def _compile(self, run_id: str) -> tuple[Template, Examples | None] | str:
        snapshot = self._output.snapshot(run_id)
        if snapshot is None:
            return f"the job of run {run_id} is not there any more"
        try:
            job = job_of(snapshot)
            return compile_questions(job).template, open_examples(job)
        except BatchchatError as error:
            return f"the job of run {run_id} cannot be read: {error.message}"


def job_with_batches(directory: Path | str) -> Job:
    """Return the job of an output whose batches are to be cancelled. Raises UsageError if it has none under way."""
    from batchchat.engines.batch.status import under_way

    output = read_state(directory)
    if not under_way(directory):
        raise UsageError(
            f"{directory} has no batches under way", remedy="`batchchat status` shows an output's batches."
        )
    job = job_of(output.job)
    if job.engine.batch:
        return job
    return job_of({**output.job, "engine": "batch"})  # the latest run was one of single requests
