"""What can be chosen about the demo provider: pace, limits, faults, models."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from batchchat.dataclass import dataclass
from batchchat.demo.batches.options import BatchOptions

LLAMA = "llama-3.1-8b-instruct"
MISTRAL = "mistral-small-3.2-24b-instruct-2506"
SMALL = "demo-small"
LARGE = "demo-large"

FAULTS: Mapping[str, str] = MappingProxyType(
    {
        "error_400": "400, as for a request that is not understood",
        "error_401": "401, no key",
        "error_403": "403, a key without permission",
        "error_404": "404, no such route",
        "error_416": "416, max_completion_tokens too large",
        "error_422": "422, unknown model",
        "error_429": "429 about requests, tokens or concurrency, whichever the draw says",
        "error_500": "500",
        "error_503": "503, overloaded",
        "error_504": "504, generated for too long",
        "html": "200 with an HTML page",
        "error_200": "200 with an error object",
        "no_choices": "200 with an empty list of choices",
        "null_content": "200 with content null",
        "no_usage": "200 with the answer but without usage, streamed or not",
        "truncated_json": "200 with a complete body that ends in mid-JSON; a stream without its [DONE]",
        "drop": "the connection is closed before any answer",
        "drop_body": "the connection is closed in mid-body",
        "stream_cut": "the connection is closed after the text of a stream, before its usage; else in mid-body",
        "stream_error": "an error object in mid-stream; 500 where the request does not stream",
        "slow": "twenty times the latency",
        "hang": "no answer until the client leaves or ten minutes have passed, then 504",
        "empty_whitespace": "whitespace up to the token limit, finish_reason length",
        "wrong_label": "a well-formed answer that is not the right one",
        "invalid_output": "prose where JSON was asked for, an unlisted label where a label was",
        "misfit": "JSON that is not what was asked for: its first text is another one, its last property is missing",
        "misfit_once": "the same, but only until the answer is asked for again with what was wrong",
        "cut_off": "the first half of the answer, finish_reason length",
        "fenced": "the right answer inside a code fence, with a sentence before it",
        "refusal": "a refusal instead of content",
        "content_filter": "finish_reason content_filter and no content",
        "quota": "429 insufficient_quota",
        "sticky_500": "500 at every attempt of the drawn bodies",
        "sticky_504": "504 at every attempt of the drawn bodies",
        "revoke_after": "not a probability but a count: after so many requests every answer is 401",
        "quota_after": "not a probability but a count: after so many requests every answer is 429 insufficient_quota",
        "day_after": "not a probability but a count: after so many requests every answer is 429 about requests per day",
        "other_after": "not a probability but a count: after so many requests another model answers",
    }
)
"""Every fault by name, with what it does. Values are probabilities per request, save for the counts."""

COUNTS = ("revoke_after", "quota_after", "day_after", "other_after")
"""The faults whose value is a number of requests."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """How the demo provider behaves. Everything it does follows from these and from the requests.

    `latency_s` is the median time to a short answer; a longer one takes longer (twice as long at 100 tokens), and
    each body has its own jitter. A streamed answer begins after `ttft_s` (median, with the same jitter) and goes on at
    `tokens_per_s`; if one is None, that share of it takes as long as it does without streaming. The three limits are
    per `window_s` seconds (a minute, shorter in tests); None is no limit. `faults` maps names of `FAULTS` to
    probabilities. `outage` is (start, length) in seconds, counted from the first chat request: every request inside it
    gets 503. With `api_key` set, a request without a key gets 401, with another key 403. With `key_lifetime_s` the
    valid key lies in `key_file`, and is replaced there once it has expired; all others get 401. `answer_as` is the
    model named in answers, where it differs from the one asked for. `chunk_chars` is the length of one streamed piece,
    about a
    token. `track_bodies` keeps a count per distinct body (about 150 bytes each), which `repeated_bodies` and
    `/demo/bodies` need; switch it off for very long runs. `batch` is about the Batch API.
    """

    seed: int = 0
    latency_s: float = 0.35
    ttft_s: float | None = None
    tokens_per_s: float | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    window_s: float = 60.0
    rate_headers: bool = True
    retry_after: bool = False
    faults: Mapping[str, float] = field(default_factory=dict)
    outage: tuple[float, float] | None = None
    api_key: str | None = field(default=None, repr=False)
    key_lifetime_s: float | None = None
    key_file: Path | None = None
    models: tuple[str, ...] = (LLAMA, MISTRAL, SMALL, LARGE)
    unknown_model_status: Literal[422, 404] = 422
    answer_as: str | None = None
    max_completion_tokens: int = 16_384
    context_tokens: int = 128_000
    chunk_chars: int = 4
    inline_reasoning: bool = False
    keep_alive_s: int = 75
    track_bodies: bool = True
    batch: BatchOptions = BatchOptions()

    def __post_init__(self) -> None:
        _check_faults(self.faults)
        for name in ("requests_per_minute", "tokens_per_minute", "concurrency"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, or None for no limit: {value}")
        for name in ("window_s", "max_completion_tokens", "context_tokens", "chunk_chars", "keep_alive_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0: {getattr(self, name)}")
        for name in ("latency_s", "ttft_s"):
            seconds = getattr(self, name)
            if seconds is not None and not (seconds >= 0 and math.isfinite(seconds)):
                raise ValueError(f"{name} must be 0 or more: {seconds}")
        if self.tokens_per_s is not None and not (self.tokens_per_s > 0 and math.isfinite(self.tokens_per_s)):
            raise ValueError(f"tokens_per_s must be more than 0: {self.tokens_per_s}")
        self._check_keys()
        if self.outage is not None and not all(seconds >= 0 for seconds in self.outage):
            raise ValueError(f"outage must be a start and a length of 0 seconds or more: {self.outage}")
        if self.unknown_model_status not in {404, 422}:
            raise ValueError(f"unknown_model_status must be 404 or 422: {self.unknown_model_status}")
        if not self.models:
            raise ValueError("models must name at least one model")

    def _check_keys(self) -> None:
        if (self.key_lifetime_s is None) != (self.key_file is None):
            raise ValueError("a key that expires needs both: key_lifetime_s, and the key_file that holds the valid one")
        if self.key_lifetime_s is not None and not self.key_lifetime_s > 0:
            raise ValueError(f"key_lifetime_s must be more than 0: {self.key_lifetime_s}")
        if self.key_lifetime_s is not None and self.api_key is not None:
            raise ValueError("a key either stays (api_key) or expires (key_lifetime_s): choose one")


def _check_faults(faults: Mapping[str, float]) -> None:
    for name, value in faults.items():
        if name not in FAULTS:
            near = difflib.get_close_matches(name, FAULTS, n=1, cutoff=0)
            raise ValueError(f"unknown fault {name!r}; did you mean {near[0]!r}? There are: {', '.join(FAULTS)}")
        if name in COUNTS:
            if value < 0 or value != int(value):
                raise ValueError(f"fault {name} takes a whole number of requests, 0 or more: {value}")
        elif not 0 <= value <= 1:
            raise ValueError(f"fault {name} takes a probability from 0 to 1: {value}")
    for sticky in (True, False):
        total = sum(p for name, p in faults.items() if name not in COUNTS and is_sticky(name) is sticky)
        if total > 1 + 1e-9:
            raise ValueError(
                f"the probabilities of {'sticky' if sticky else 'passing'} faults add up to {total:g}, more than 1"
            )


def is_sticky(name: str) -> bool:
    """Tell whether the fault stays with a body at every attempt."""
    return name.startswith("sticky_")
