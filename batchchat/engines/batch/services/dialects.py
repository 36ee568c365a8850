"""The dialects of the Batch API as data. What a table cannot say stands in `shapes.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Final

from batchchat.dataclass import dataclass
from batchchat.engines.batch.service import ServiceLimits

CHAT: Final = "/v1/chat/completions"
_DAY: Final = 24


@dataclass(frozen=True, slots=True)
class BatchDialect:
    """How one provider's Batch API differs from OpenAI's, which the defaults describe.

    Paths follow the provider's base URL. `windows` are the hours that may be asked for, lowest and highest, None if any
    may; `window_choices` are the only ones if it is not empty. `input_list` sends the input's id in a list.
    `window_hours` sends the window as a number of hours. `page_numbers` tells that lists are read by number of page.
    `ids_at_once` is how many batches one call can ask for by id, 0 if a list is the only way. `checks_files` tells that
    an upload is refused for what stands in it, `waits_processed` that a batch is refused until its file is processed.
    `line_numbers` tells whether the line that an error names can be relied on, `expires` whether a batch ends by itself
    at the end of its window.
    """

    name: str
    auth: str = "Authorization"
    upload_path: str = "/files"
    upload_purpose: str = "batch"
    upload_type: str = "application/jsonl"
    upload_name_field: str | None = None
    upload_extra: Mapping[str, str] = field(default_factory=dict)
    jobs_path: str = "/batches"
    jobs_query: Mapping[str, str] = field(default_factory=lambda: {"limit": "100"})
    page_numbers: bool = False
    ids_at_once: int = 0
    line_url: str | None = CHAT
    endpoint: str = CHAT
    input_field: str = "input_file_id"
    input_list: bool = False
    model_on_job: bool = False
    window_field: str = "completion_window"
    window_hours: bool = False
    windows: tuple[int, int] | None = (_DAY, _DAY)
    window_choices: frozenset[int] = frozenset()
    checks_files: bool = False
    waits_processed: bool = False
    line_numbers: bool = True
    expires: bool = True
    max_temperature: float = 2.0
    limits: ServiceLimits = field(default_factory=ServiceLimits)


OPENAI: Final = BatchDialect("openai")

_MONTH: Final = 30 * 24 * 3600
"""The longest time that files are kept for."""

DIALECTS: Final[Mapping[str, BatchDialect]] = {
    dialect.name: dialect
    for dialect in (
        OPENAI,
        BatchDialect(
            "azure",
            auth="api-key",
            upload_type="application/json",
            line_url="/chat/completions",
            endpoint="/chat/completions",
            waits_processed=True,
            expires=False,
            limits=ServiceLimits(lines=100_000),
        ),
        # One page of Groq's names 200 MB, another 100 MB. The lower bound is safe.
        BatchDialect("groq", ids_at_once=200, windows=(_DAY, 7 * _DAY), limits=ServiceLimits(file_bytes=100_000_000)),
        BatchDialect(
            "mistral",
            jobs_path="/batch/jobs",
            jobs_query={"page_size": "100"},
            page_numbers=True,
            line_url=None,
            input_field="input_files",
            input_list=True,
            model_on_job=True,
            window_field="timeout_hours",
            window_hours=True,
            windows=(1, 7 * _DAY),
            checks_files=True,
            max_temperature=1.5,
            # Its guide names a million lines, others met a bound of 100,000.
            limits=ServiceLimits(lines=100_000, file_bytes=500_000_000),
        ),
        BatchDialect(
            "together",
            upload_path="/files/upload",
            upload_purpose="batch-api",
            upload_name_field="file_name",
            jobs_query={},
            line_url=None,
            line_numbers=False,  # they count within a part of the file
            limits=ServiceLimits(
                file_bytes=100_000_000,
                line_bytes=10_000_000,
                queued_tokens=30_000_000_000,
                finds_by_labels=False,
            ),
        ),
        BatchDialect("deepinfra"),
        BatchDialect(
            "doubleword",
            # Files are kept for a day only unless more is asked for.
            upload_extra={"expires_after[anchor]": "created_at", "expires_after[seconds]": str(_MONTH)},
            windows=(1, _DAY),
            window_choices=frozenset({1, _DAY}),
            checks_files=True,
            limits=ServiceLimits(file_bytes=100_000_000),
        ),
        BatchDialect(
            "scaleway",
            limits=ServiceLimits(finds_by_labels=False),
        ),
    )
}
"""The dialects by name."""

OTHER: Final = replace(OPENAI, name="other", windows=None)
"""A server that is no provider of the table: OpenAI's dialect, with any window."""

HOSTS: Final = (
    ("api.openai.com", "openai"),
    (".openai.azure.com", "azure"),
    (".services.ai.azure.com", "azure"),
    (".cognitiveservices.azure.com", "azure"),
    ("api.groq.com", "groq"),
    (".mistral.ai", "mistral"),
    ("api.together.ai", "together"),
    ("api.together.xyz", "together"),
    ("api.deepinfra.com", "deepinfra"),
    ("api.doubleword.ai", "doubleword"),
    ("api.scaleway.ai", "scaleway"),
)
"""Hosts, or how they end, and the dialect that is spoken there."""
