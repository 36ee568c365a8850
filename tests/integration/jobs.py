"""Jobs for tests: small inputs, the demo provider on a real socket, one call to run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import duckdb

import batchchat
from batchchat.job import Job, validate_job
from batchchat.runner.options import RunOptions

ROOT = Path(__file__).parents[2]
TEMPLATE = [{"role": "user", "content": "Labels: yes, no\n{{ text }}"}]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"id": number, "text": f"row number {number}"} for number in range(start, start + count)]


def make_job(folder: Path, base_url: str | None, **fields: Any) -> Job:
    """A job over `rows.jsonl` in a folder, into its `out`; `fields` take the place of these."""
    data: dict[str, Any] = {
        "name": "test",
        "input": {"path": str(folder / "rows.jsonl"), "key": "id"},
        "output": {"path": str(folder / "out")},
        "provider": {"profile": "demo", "base_url": base_url} if base_url else "demo",
        "model": "llama-3.1-8b-instruct",
        "messages": TEMPLATE,
        "limits": {"concurrency": 8},
        **fields,
    }
    return validate_job(data)


def run(job: Job, **options: Any) -> batchchat.RunSummary:
    return batchchat.run(job, options=RunOptions(**options), environ={})


def query(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    """Ask DuckDB about the dataset; `data` stands for it."""
    with duckdb.connect() as connection:
        return connection.execute(sql.replace("data", f"read_parquet('{folder}/out/data/*.parquet')")).fetchall()
