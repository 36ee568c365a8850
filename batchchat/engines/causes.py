"""Who causes a failure: the provider, or the request itself. `DESIGN.md` beside this file has the rules."""

from __future__ import annotations

import re

from batchchat.records import ErrorKind, Failure, Reply, Request, Verdict

PATIENCE_S = 120.0
"""How long a provider may fail at every request that is left before these are taken for the cause.

Most outages are over by then. A shorter `retry.outage` makes it half of that, so that the requests can still end.
"""
ANSWERED_PATIENCE_S = 5.0
"""The same if the model has answered each request that is left, though with nothing (an empty answer).

A provider that is down gives no answer of a model. The few seconds let answers that are under way come back first.
"""
NUMBERED = re.compile(r"[\w-]*\d[\w-]*")
"""A number, or a word with one in it: what an error message may tell of its own row or request."""

_FIELDS = (
    (re.compile(r"response_format|json.?schema|json_object|grammar|guided", re.IGNORECASE), "response.mode"),
    (re.compile(r"max_(completion_)?tokens|context.(length|window|size)", re.IGNORECASE), "params.max_tokens"),
    (re.compile(r"logprobs", re.IGNORECASE), "params.logprobs"),
    (re.compile(r"tool_choice|\btools\b", re.IGNORECASE), "params.tools"),
    (re.compile(r"stream_options", re.IGNORECASE), "params.stream"),
)
"""Words of an error about the request, with the job's field that they are about; the first that is found counts."""
_ABOUT_REQUEST = re.compile(
    r"validation|literal_error|extra_forbidden|unsupported|not supported|unexpected keyword|unknown (field|param)",
    re.IGNORECASE,
)


class Causes:
    """The open requests that may have caused their last failure themselves, and what the failures of a run said.

    `suspects` holds those requests, each with whether that failure was an empty answer of the model. `last` is the last
    failure of the run.
    """

    def __init__(self) -> None:
        self.suspects: dict[Request, bool] = {}
        self.last: Failure | None = None
        self._words: str | None = None
        self._alike = True

    def failed(self, request: Request, reply: Reply) -> None:
        """Note an attempt that failed and will be made again.

        A failure that only the provider can have caused clears every suspect: what came before may have been an outage.
        """
        assert reply.failure is not None  # noqa: S101 - what a failed attempt has
        self.last = reply.failure
        words = NUMBERED.sub("0", reply.failure.message)
        # If all failures of a run say the same, the job is as likely their cause as the provider.
        self._alike = self._alike and self._words in {None, words}
        self._words = words
        if reply.may_be_own_fault:
            # The model was reached and gave nothing: this shows sooner than any other failure that the row is the
            # cause.
            empty = reply.completion is not None and reply.failure.kind is ErrorKind.PROTOCOL
            self.suspects[request] = empty
        elif reply.verdict is Verdict.RATE_LIMIT:  # it tells nothing of the request
            self.suspects.pop(request, None)
        else:
            self.suspects.clear()

    def settled(self, request: Request) -> None:
        """Let go of a request that has its record, or an answer of another kind."""
        self.suspects.pop(request, None)

    @property
    def patience(self) -> float:
        """Return for how many seconds the provider may fail at every request that is left."""
        answered = bool(self.suspects) and all(self.suspects.values())
        return ANSWERED_PATIENCE_S if answered else PATIENCE_S

    @property
    def field(self) -> str | None:
        """The job's field that every failure of the run is about, if all had the same words and these name one."""
        if not self._alike or self._words is None:
            return None
        for words, field in _FIELDS:
            if words.search(self._words):
                return field
        return "params, messages or response.mode" if _ABOUT_REQUEST.search(self._words) else None
