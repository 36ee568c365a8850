"""The thread that answers the lines of batches, one batch after the other, as fast as it can.

How far a batch *seems* to be follows from the clock (`batch_timeline.py`); the thread only has to be ahead of that. It
answers lines in a shuffled order and writes the results as they come, so that the results of the first k lines are the
first bytes of the two files, whatever k turns out to be when the batch ends.
"""

from __future__ import annotations

import contextlib
import queue
import random
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from batchchat.dataclass import dataclass
from batchchat.demo.batches.checking import FileProblem
from batchchat.demo.batches.results import LineAnswer, LineWriter

_FLUSH_LINES = 200
"""Progress is told only after a flush, since others read the files."""

AnswerLine = Callable[[dict[str, Any]], LineAnswer]
"""Answers the line of an input file."""


@dataclass(frozen=True, slots=True)
class Lines:
    """The lines of an input file, by their offsets, and those that fail without being run, by their index from 0."""

    path: Path
    offsets: array[int]
    bad: Mapping[int, FileProblem]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def read(self, file: BinaryIO, index: int) -> dict[str, Any]:
        """Return a line; an empty object for one that is none."""
        start, end = self.offsets[index], self.offsets[index + 1]
        file.seek(start)
        try:
            line = orjson.loads(file.read(end - start))
        except orjson.JSONDecodeError:
            return {}
        return line if isinstance(line, dict) else {}


class Work:
    """The lines of one batch, and what was written for those that are done.

    The arrays have one entry more than lines are done: entry k tells about the first k lines in the order of work.
    """

    def __init__(
        self,
        batch_id: str,
        lines: Lines,
        *,
        writer: LineWriter,
        answer: AnswerLine,
        scratch: Path,
    ) -> None:
        self.batch_id = batch_id
        self.writer = writer
        self.output = scratch / f"{batch_id}.output"
        self.error = scratch / f"{batch_id}.error"
        self.ran = scratch / f"{batch_id}.ran"
        self.done = 0
        self.complete = False
        self.finished = threading.Event()
        """Set when the batch knows that all lines are done."""
        self._gate = threading.Lock()
        self._abandoned = False
        self._idle = threading.Event()
        self._idle.set()
        self.output_ends, self.error_ends = array("Q", [0]), array("Q", [0])
        self.oks, self.rans = array("I", [0]), array("I", [0])
        self.prompt_tokens, self.completion_tokens = array("Q", [0]), array("Q", [0])
        self._lines = lines
        self._answer = answer
        self._order = array("I", range(len(lines)))
        # Providers answer in no order, so that nobody may rely on one. By the id, it is the same after a restart.
        random.Random(batch_id).shuffle(self._order)  # noqa: S311 (the order is no secret)

    @property
    def total(self) -> int:
        """How many lines there are."""
        return len(self._order)

    def run(self, stopped: threading.Event) -> None:
        """Answer all lines, or leave when the server stops or the batch has ended."""
        with self._gate:
            if self._abandoned:
                return
            self._idle.clear()
        try:
            self._run(stopped)
        finally:
            self._idle.set()

    def abandon(self) -> None:
        """Answer no more lines; on return nothing is written any more."""
        with self._gate:
            self._abandoned = True
        self._idle.wait()

    def _run(self, stopped: threading.Event) -> None:
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(self._lines.path.open("rb"))
            files = [stack.enter_context(path.open("wb")) for path in (self.output, self.error, self.ran)]
            for number, index in enumerate(self._order, 1):
                # A batch that was cancelled needs no more answers, and a server that ends waits for none.
                if stopped.is_set() or self._abandoned:
                    return
                self._one(index, self._lines.read(source, index), *files)
                if number % _FLUSH_LINES == 0 or number == self.total:
                    for file in files:
                        file.flush()
                    self.done = number
        self.complete = True

    def rest(self, done: int) -> Iterator[str | None]:
        """Iterate over the ids of the lines after the first `done` in the order of work."""
        with self._lines.path.open("rb") as source:
            for index in self._order[done:]:
                yield self._lines.read(source, index).get("custom_id")

    def _one(self, index: int, line: dict[str, Any], output: BinaryIO, error: BinaryIO, ran: BinaryIO) -> None:
        custom_id = line.get("custom_id")
        problem = self._lines.bad.get(index)
        if problem is None:
            written = self.writer.answered(custom_id, lambda: self._answer(line))
        else:
            written = self.writer.refused(custom_id, problem)
        output.write(written.output)
        error.write(written.error)
        ran.write(orjson.dumps(custom_id if written.ran else None) + b"\n")
        self.output_ends.append(self.output_ends[-1] + len(written.output))
        self.error_ends.append(self.error_ends[-1] + len(written.error))
        self.oks.append(self.oks[-1] + written.ok)
        self.rans.append(self.rans[-1] + written.ran)
        self.prompt_tokens.append(self.prompt_tokens[-1] + written.prompt_tokens)
        self.completion_tokens.append(self.completion_tokens[-1] + written.completion_tokens)


class Worker:
    """The thread, started with the first batch."""

    def __init__(self, on_finished: Callable[[Work], None]) -> None:
        self._on_finished = on_finished
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def submit(self, work: Work) -> None:
        """Have the lines of a batch answered."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="batchchat-demo-batches", daemon=True)
            self._thread.start()
        self._queue.put(work)

    def stop(self) -> None:
        """Stop after the line that is being answered. A server that starts with the same folder goes on."""
        self._stopped.set()
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while (work := self._queue.get()) is not None and not self._stopped.is_set():
            work.run(self._stopped)
            if work.complete:
                self._on_finished(work)
                work.finished.set()
