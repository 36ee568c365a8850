"""The scoring of an evaluation: an output for each of four variants, made without a network, then scored.

`python -m tests.benchmarks.scoring make FOLDER ROWS` makes the suite and its outputs, `… score FOLDER` scores them and
prints the seconds and the memory that it took.
"""

from __future__ import annotations

import random
import resource
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import anyio
import httpx
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

LABELS = ("billing", "bug", "feature_request", "account", "shipping", "other")
VARIANTS = 4
_WORDS = ("order", "refund", "late", "box", "ticket", "please", "broken", "delivery", "address", "invoice")
_SUITE = """\
name: scoring
job: job.yaml
variants: {matrix: {params.seed: [0, 1, 2, 3]}}
scorers:
  - {name: accuracy, kind: exact, expected: label}
  - {name: one_word, kind: regex, pattern: "[a-z_]+", full: true}
  - {name: classes, kind: classes, expected: label}
output: out
"""
_JOB = """\
name: scoring
input: {path: rows.jsonl, key: id}
output: out/job
provider: {base_url: "http://none.invalid/v1"}
model: m
messages:
  - {role: system, content: "Sort this ticket. Labels: billing, bug, feature_request, account, shipping, other"}
  - {role: user, content: "{{ subject }}\\n\\n{{ body }}"}
limits: {concurrency: 64}
"""


class _Instant(httpx.AsyncBaseTransport):
    """Answers at once."""

    def __init__(self) -> None:
        choice = {"message": {"content": LABELS[0]}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 90, "completion_tokens": 2, "total_tokens": 92}
        self._body = orjson.dumps({"choices": [choice], "usage": usage, "model": "m"})

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=self._body, request=request)


def make(folder: Path, rows: int) -> None:
    """Write rows, job and suite, run every variant, and give each one's answers mistakes of its own."""
    from batchchat.evaluation.suite.reading import load_suite
    from batchchat.runner.run import run_job

    draw = random.Random(rows)
    with (folder / "rows.jsonl").open("wb") as file:
        for number in range(rows):
            subject, body = (" ".join(draw.choices(_WORDS, k=k)) for k in (5, 36))
            row = {"id": number, "subject": subject, "body": body, "label": draw.choice(LABELS)}
            file.write(orjson.dumps(row) + b"\n")
    (folder / "job.yaml").write_text(_JOB, encoding="utf-8")
    (folder / "suite.yaml").write_text(_SUITE, encoding="utf-8")
    shutil.rmtree(folder / "out", ignore_errors=True)
    for number, variant in enumerate(load_suite(folder / "suite.yaml").variants):
        anyio.run(partial(run_job, variant.job, transport=_Instant(), environ={}))
        for part in Path(variant.job.output.path).glob("data/*.parquet"):
            _answer(part, right=0.8 + number / 50, draw=draw)


def _answer(part: Path, *, right: float, draw: random.Random) -> None:
    """Put answers into a part: the label with this probability, else any."""
    table = pq.read_table(part)
    labels = table.column("label").to_pylist()
    answers = [label if draw.random() < right else draw.choice(LABELS) for label in labels]
    at = table.schema.get_field_index("completion")
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(answers, pa.string())), part)


def score(folder: Path) -> dict[str, float]:
    """Score the suite of a folder; seconds of processor time, and the peak memory in bytes."""
    from batchchat.evaluation.results.scoring import score_suite
    from batchchat.evaluation.suite.reading import load_suite

    suite = load_suite(folder / "suite.yaml")
    started = time.process_time()
    summary = score_suite(suite)
    seconds = time.process_time() - started
    rows = min(variant.rows for variant in summary.variants)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"rows": rows, "seconds": seconds, "peak": peak}


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        print(orjson.dumps(score(Path(sys.argv[2]))).decode())
