"""Batches: they are made, move on with time, and end with their files.

What a batch shows follows from its record and the clock (`batch_timeline.py`): validating, then in_progress while its
lines seem to be answered at an even pace, then finalizing, then an end. Nothing runs in between: whoever looks moves it
on.

    created ── 15 % ── in_progress ── 85 % ── finalizing ── 100 % ── completed        of `BatchOptions.seconds`
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from batchchat.demo.batches.batch import Batch, BatchOrder, BatchOutcome, Stand
from batchchat.demo.batches.batch_timeline import BatchTimeline
from batchchat.demo.batches.checking import Checked, FileProblem, check_file
from batchchat.demo.batches.dialects import DemoDialect
from batchchat.demo.batches.faults import BatchFaults
from batchchat.demo.batches.files import FileStore, write_record
from batchchat.demo.batches.options import BatchOptions
from batchchat.demo.batches.places import FilePlace
from batchchat.demo.batches.results import LineAnswer, LineWriter
from batchchat.demo.batches.work import Lines, Work, Worker


class Batches:
    """All batches of one server, in its folder. Methods block; any thread may call them, unless they say otherwise.

    `files` are the provider's files, `place` is where the input and results of batches lie, and `scratch` a folder for
    what is kept for a moment only.
    """

    def __init__(
        self,
        options: BatchOptions,
        *,
        faults: BatchFaults,
        folder: Path,
        dialect: DemoDialect,
        answer: Callable[[bytes], LineAnswer],
        now: Callable[[], float],
    ) -> None:
        self.files = FileStore(folder / "files")
        self.place: FilePlace = dialect.place(self.files)
        self.scratch = folder / "scratch"
        self._faults = faults
        self._folder = folder / "batches"
        self._dialect = dialect
        self._answer = answer
        self._empty_error_file = dialect.empty_error_file or faults.flag("error_file_empty")
        self._now = now
        self._timeline = BatchTimeline(options.seconds, faults, expires=dialect.expires)
        self._lock = threading.Lock()
        self._batches: dict[str, Batch] = {}
        self._works: dict[str, Work] = {}
        self._worker = Worker(self._finished)
        self.looked_at: Counter[str] = Counter()
        """How often each batch was asked for by its id."""
        self.looked_at_ended: Counter[str] = Counter()
        for path in (self._folder, self.scratch):
            path.mkdir(parents=True, exist_ok=True)
        self._load()

    def _load(self) -> None:
        """Read the batches that an earlier server left, and go on with those that had not ended."""
        loaded = [Batch.read(path) for path in self._folder.glob("*.json")]
        for batch in sorted(loaded, key=lambda batch: batch.number):
            self._batches[batch.id] = batch
            # Its lines are answered anew: the same answers come out, as they follow from seed and body.
            if batch.outcome is None and batch.problem is None:
                self._start(batch)

    def stop(self) -> None:
        """Stop working."""
        self._worker.stop()

    def create(self, asked: BatchOrder, source: Path | None, checked: Checked) -> Batch:
        """Make a batch of a file that was checked. `source` is None if there is no such file."""
        with self._lock:
            now = self._now()
            number = max((batch.number for batch in self._batches.values()), default=0) + 1
            # A fault may set another window than the client has asked for.
            window_s = self._faults.number("window") or asked.window_s
            batch = Batch(
                id=self._dialect.new_batch_id(),
                number=number,
                input_ref=asked.input_ref,
                endpoint=asked.endpoint,
                window=asked.window,
                created=now,
                expires=now + window_s,
                metadata=asked.metadata,
                model=asked.model or checked.model,
                total=checked.total,
                tokens=checked.tokens,
                problem=checked.problem or self._queue_problem(checked, number, now),
                output_kept_s=asked.output_kept_s,
                bad_lines={str(index): problem for index, problem in checked.bad_lines.items()},
            )
            if batch.problem is None and source is not None:
                _link(source, self._input(batch))
            self._save(batch)
            self._batches[batch.id] = batch
            if batch.problem is None:
                self._start(batch, checked)
            return batch

    def queue_problem(self, checked: Checked) -> FileProblem | None:
        """Return what is wrong if a batch of this file does not fit into the queue of tokens now."""
        with self._lock:
            return self._queue_problem(checked, 0, self._now())

    def _queue_problem(self, checked: Checked, number: int, now: float) -> FileProblem | None:
        limit = self._faults.number("queue_tokens")
        full = number > 0 and self._faults.batch("queue_full", number)
        if limit is not None:
            running = (batch for batch in self._batches.values() if not self._stand(batch, now).ended)
            full = full or sum(batch.tokens for batch in running) + checked.tokens > limit
        # A file that is wrong is told of as such, whether there is room or not.
        if not full or checked.problem is not None:
            return None
        return queue_problem(checked.model, limit)

    def _start(self, batch: Batch, checked: Checked | None = None) -> None:
        source = self._input(batch)
        # An earlier server has checked it, and kept only what is wrong: the offsets are found again.
        if checked is None:
            checked = check_file(source, lambda _, __: None, max_lines=batch.total, alone=True)
        bad_lines = {int(index): problem for index, problem in batch.bad_lines.items()}
        writer = LineWriter(batch.id, batch.number, self._faults, self._dialect.line)

        def answer(line: dict[str, Any]) -> LineAnswer:
            return self._answer(orjson.dumps(self._dialect.body(batch, line)))

        lines = Lines(source, checked.offsets, bad_lines)
        work = Work(batch.id, lines, writer=writer, answer=answer, scratch=self.scratch)
        self._works[batch.id] = work
        self._worker.submit(work)

    def _input(self, batch: Batch) -> Path:
        """Return the batch's own link to its input: the file itself may be deleted while the batch runs."""
        return self.scratch / f"{batch.id}.input"

    def _finished(self, work: Work) -> None:
        with self._lock:
            batch = self._batches[work.batch_id]
            batch.worked = batch.worked or self._now()
            if batch.outcome is None:
                self._save(batch)

    def _save(self, batch: Batch) -> None:
        write_record(self._folder / f"{batch.id}.json", asdict(batch))

    def all(self) -> list[Batch]:
        """Return all batches, newest first."""
        return sorted(self._batches.copy().values(), key=lambda batch: -batch.number)

    def find(self, batch_id: str) -> Batch | None:
        """Return a batch, None if there is none."""
        return self._batches.get(batch_id)

    def wait_for_work(self, batches: Iterable[Batch], seconds: float) -> None:
        """Wait for the thread if the clock says that all lines ran, and at most so long."""
        for batch in batches:
            work = self._works.get(batch.id)
            due = self._timeline.all_ran_at(batch)
            # The thread is slower than the clock says that the provider is: a look would see a batch that hangs.
            if work is not None and self._now() >= due and not work.finished.wait(seconds):
                return

    def look(self, batch: Batch) -> Stand:
        """Move a batch on to now, and return where it stands. Files are written when it ends."""
        with self._lock:
            stand = self._stand(batch, self._now())
            if stand.ended and batch.outcome is None:
                self._end(batch, stand)
            return stand if batch.outcome is None else batch.outcome.stand

    def cancel(self, batch: Batch) -> bool:
        """Ask a batch to end. Returns false if it has ended already."""
        if self.look(batch).ended:
            return False
        with self._lock:
            # Asked twice, the first time counts.
            if batch.cancelled is None:
                batch.cancelled = self._now()
                self._save(batch)
        return True

    def counts(self, batch: Batch, stand: Stand) -> tuple[int, int, int]:
        """Return the total, completed and failed lines as the batch tells them."""
        if batch.outcome is not None:
            return (0 if batch.problem else batch.total), batch.outcome.completed, batch.outcome.failed
        work = self._works.get(batch.id)
        if work is None or stand.status == "validating":
            return 0, 0, 0
        done = stand.done
        # Some providers tell fewer lines at a later look.
        if self._faults.flag("counts_back") and self.looked_at[batch.id] % 2:
            done //= 2
        return batch.total, work.oks[done], done - work.oks[done]

    def unfinished_refs(self, batch: Batch) -> tuple[str | None, str | None]:
        """Return the ids by which the results of a running batch can be read: they are not those of its end."""
        work = self._works.get(batch.id)
        done = 0 if work is None else self.look(batch).done
        if work is None or done == 0:
            return None, None
        return (f"{batch.id}-output" if work.output_ends[done] else None), (
            f"{batch.id}-error" if work.error_ends[done] else None
        )

    def unfinished(self, ref: str) -> bytes | None:
        """Return what there is of a result that a running batch writes, None if no running batch has such an id."""
        batch_id, _, kind = ref.rpartition("-")
        batch, work = self._batches.get(batch_id), self._works.get(batch_id)
        if batch is None or work is None:
            return None
        done = self.look(batch).done
        path, ends = (work.output, work.output_ends) if kind == "output" else (work.error, work.error_ends)
        with path.open("rb") as file:
            return file.read(ends[done])

    def lines_run(self, batch: Batch) -> int:
        """Return how many lines of a batch the model ran, as far as the clock says."""
        done = self.look(batch).done
        work = self._works.get(batch.id)
        if batch.outcome is not None:
            return batch.outcome.ran
        return 0 if work is None else work.rans[done]

    def ran(self) -> Counter[str]:
        """Return how often each `custom_id` was run by the model, over all batches, as far as the clock says."""
        found: Counter[str] = Counter()
        for batch in self.all():
            done = self.look(batch).done
            path = self.scratch / f"{batch.id}.ran"
            if done and path.exists():
                with path.open("rb") as file:
                    ids = (orjson.loads(line) for line, _ in zip(file, range(done), strict=False))
                    found.update(custom_id for custom_id in ids if custom_id is not None)
        return found

    def _stand(self, batch: Batch, now: float) -> Stand:
        """Return where a batch stands at a moment."""
        if batch.outcome is not None:
            return batch.outcome.stand
        work = self._works.get(batch.id)
        return self._timeline.stand(batch, now, 0 if work is None else work.done)

    def _end(self, batch: Batch, stand: Stand) -> None:
        """Write the files of a batch that has ended, and its record."""
        work = self._works.pop(batch.id, None)
        if work is None:
            batch.outcome = BatchOutcome(stand, 0, 0)
        else:
            work.abandon()
            completed = work.oks[stand.kept]
            output_ref, error_ref = self._write_files(batch, work, stand)
            batch.outcome = BatchOutcome(
                stand,
                completed=completed,
                failed=batch.total - completed if stand.kept == batch.total else stand.kept - completed,
                ran=work.rans[stand.done],
                prompt_tokens=work.prompt_tokens[stand.kept],
                completion_tokens=work.completion_tokens[stand.kept],
                output_ref=output_ref,
                error_ref=error_ref,
            )
        self._save(batch)
        for path in (self._input(batch), *((work.output, work.error) if work else ())):
            path.unlink(missing_ok=True)

    def _write_files(self, batch: Batch, work: Work, stand: Stand) -> tuple[str | None, str | None]:
        """Cut both files to the lines that are kept, and add the lines that never ran. Returns their ids."""
        if self._faults.batch("batch_gone", batch.number):
            return None, None
        for path, ends in ((work.output, work.output_ends), (work.error, work.error_ends)):
            path.touch()
            os.truncate(path, ends[stand.kept])
        if stand.status != "completed":
            missing = stand.status == "cancelled" and self._faults.batch("cancel_missing", batch.number)
            with work.error.open("ab") as error:
                for index, custom_id in enumerate(work.rest(stand.done)):
                    if not (missing and index % 3 == 0):
                        error.write(work.writer.never_ran(custom_id, stand.status))
        return self._keep(batch, work.output, "output"), self._keep(batch, work.error, "error")

    def _keep(self, batch: Batch, path: Path, kind: str) -> str | None:
        """Make a result file of what was written; an empty one does not exist."""
        if path.stat().st_size == 0 and not (kind == "error" and self._empty_error_file):
            return None
        if self._faults.flag("no_final_newline") and path.stat().st_size:
            os.truncate(path, path.stat().st_size - (2 if self._faults.flag("crlf") else 1))
        name = f"{batch.id}_{kind}.jsonl"
        return self.place.publish(path, batch.input_ref, name, now=self._now(), kept_s=batch.output_kept_s)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; copy it if the file system cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def queue_problem(model: str | None, limit: float | None) -> FileProblem:
    """Return the error of a queue that is full."""
    tokens = "90,000" if limit is None else f"{int(limit):,}"
    return FileProblem(
        "token_limit_exceeded",
        f"Enqueued token limit reached for {model} in organization demo. Limit: {tokens} enqueued tokens."
        " Please try again once some in_progress batches have been completed.",
    )
