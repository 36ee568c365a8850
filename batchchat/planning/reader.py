"""The rows that need a look: what becomes of them, and which of their requests would be sent."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson

from batchchat.events import FailureGroup
from batchchat.images import shortened
from batchchat.intake import Intake, PassCounts, Sorted
from batchchat.job import Job
from batchchat.planning.earlier import EarlierRuns
from batchchat.records import Request, Usage
from batchchat.runner.preparation import Prepared
from batchchat.runner.rows import Rows
from batchchat.store.index import RecordIndex
from batchchat.views import LongPrompt, RequestPreview

if TYPE_CHECKING:
    from batchchat.cache import AnswerCache

_SLICE = 512
"""Samples that are sorted at once. Chosen, not measured: few enough to keep little in memory."""
_LONGEST = 3
"""Rows with long prompts that a plan names."""
_REASONS_TOLD_APART = 50
"""Messages of rows that would fail, of which each has a count of its own; what comes later is counted by its kind."""


class PlanReader:
    """Reads the rows that need a look, and counts what would become of them.

    `shown` are the first requests, `usage` the tokens to expect of those to be sent. `empty` counts those whose request
    would hold nothing of the row, `nbytes` the bytes of what would be sent.
    """

    def __init__(self, prepared: Prepared, intake: Intake, earlier: EarlierRuns, equal_requests: EqualRequests) -> None:
        self._prepared = prepared
        self._intake = intake
        self._earlier = earlier
        self.equal_requests = equal_requests
        self.shown: list[RequestPreview] = []
        self.usage = Usage(0, 0)
        self._failed: dict[tuple[str, str], FailureGroup] = {}
        self._longest: list[tuple[int, int, str | None]] = []
        self.empty = 0
        self.nbytes = 0

    def read(self, previews: int) -> None:
        """Sort the rows, and keep so many of the first requests."""
        earlier, prepared = self._earlier, self._prepared
        if earlier.known is not None:
            self._intake.pass_over(earlier.known)
        prompt_tokens, completion_tokens = 0.0, 0.0
        for batch, known in Rows(prepared, earlier.known):
            if prepared.selection.past(batch.first_index):
                break
            for found in self._intake.slices(batch, _SLICE, known):
                _preview(found, self.shown, previews)
                self._count_failed(found)
                asked = {(request.batch.first_index, request.offset): request for request in found.requests}
                self.empty += sum(prepared.empty.finds(each.batch.values[each.offset]) for each in asked.values())
                for request in self.equal_requests.left(found.requests):
                    self._note_length(request)
                    prompt_tokens += request.prompt_tokens * earlier.prompt_ratio
                    completion_tokens += min(earlier.completion, request.max_tokens or math.inf)
                    self.nbytes += len(request.body)
        self.usage = Usage(round(prompt_tokens), round(completion_tokens))

    @property
    def counts(self) -> PassCounts:
        """What became of the rows."""
        return self._intake.counts

    @property
    def to_send(self) -> int:
        """How many requests would be sent."""
        return self.counts.to_send - self.equal_requests.saved

    def _note_length(self, request: Request) -> None:
        """Keep the longest prompts, one of each row; of equal ones the first."""
        longest = self._longest
        if request.sample_index or (len(longest) == _LONGEST and request.prompt_tokens <= longest[0][0]):
            return
        push = heapq.heappush if len(longest) < _LONGEST else heapq.heappushpop
        push(longest, (request.prompt_tokens, -request.row_index, request.key))

    def longest(self) -> list[LongPrompt]:
        """Return the longest prompts, with the tokens that are expected of them, the longest first."""
        ratio = self._earlier.prompt_ratio
        return [
            LongPrompt(-row, key, round(tokens * ratio)) for tokens, row, key in sorted(self._longest, reverse=True)
        ]

    def _count_failed(self, found: Sorted) -> None:
        for invalid in found.invalid:
            kind, message = invalid.failure.kind.value, invalid.failure.message
            row = invalid.batch.first_index + invalid.offset
            name = kind, message if len(self._failed) < _REASONS_TOLD_APART or (kind, message) in self._failed else ""
            group = self._failed.get(name)
            if group is None:
                self._failed[name] = FailureGroup(kind, 1, message, row)
            else:
                self._failed[name] = replace(group, count=group.count + 1)

    def failures(self) -> list[FailureGroup]:
        """Return why rows would fail, the most frequent reason first."""
        return sorted(self._failed.values(), key=lambda group: -group.count)


class EqualRequests:
    """Counts the requests that need not be sent: their answer is in the cache, or an equal one is sent before them.

    Equal requests are counted also where the job sends them all, so that one can see what `dedupe` would save.
    """

    def __init__(self, job: Job) -> None:
        self._once = job.dedupe or job.cache is not None
        self.cached = 0
        self.equal = 0
        self._job = job
        self._met = RecordIndex()
        self._cache: AnswerCache | None = None
        if job.cache is not None:
            from batchchat.cache import AnswerCache

            self._cache = AnswerCache.existing(job.cache)

    def close(self) -> None:
        """Let go of the cache."""
        if self._cache is not None:
            self._cache.close()

    @property
    def saved(self) -> int:
        """Requests that will not be sent."""
        return self.cached + (self.equal if self._once else 0)

    def left(self, requests: Sequence[Request]) -> list[Request]:
        """The requests that will be sent."""
        known = self._cache.known([request.answer_id for request in requests]) if self._cache is not None else ()
        left = []
        for request in requests:
            # Not marked as met: that an answer is cached says nothing of equal requests of this pass.
            if request.answer_id in known:
                self.cached += 1
                continue
            name = request.answer_id.hex()
            again = self._met.is_seen(name)
            self.equal += again
            if not again:
                self._met.mark_seen(name)
            if not (again and self._once):
                left.append(request)
        return left


def _preview(found: Sorted, shown: list[RequestPreview], previews: int) -> None:
    """Show the first requests, one of each row."""
    for request in found.requests:
        if len(shown) >= previews:
            return
        # The samples of a row would all look the same.
        if shown and shown[-1].row_index == request.row_index:
            continue
        body: dict[str, Any] = orjson.loads(request.body)
        messages = [_without_pictures(message) for message in body.pop("messages")]
        # The page names the model once for all requests.
        body.pop("model", None)
        shown.append(
            RequestPreview(request.custom_id, request.row_index, request.key, messages, request.sample_index, body)
        )


def _without_pictures(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose images, files and sound are told by the beginning of their data."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": [_without_picture(part) for part in content]}


def _without_picture(part: dict[str, Any]) -> dict[str, Any]:
    for name, inside in (("image_url", "url"), ("file", "file_data"), ("input_audio", "data")):
        media = part.get(name)
        if isinstance(media, dict) and isinstance(media.get(inside), str):
            return {**part, name: {**media, inside: shortened(media[inside], content=name == "input_audio")}}
    return part
