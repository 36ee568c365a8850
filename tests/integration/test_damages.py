"""Every file of an output is deleted, emptied, cut and replaced: every command says what is so, and a run goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import anyio
import duckdb
import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchchat.errors import BatchchatError, StorageError
from batchchat.events import RunSummary
from batchchat.export import export
from batchchat.history import history_of
from batchchat.inspection import find_records, status_of
from batchchat.job import Job
from batchchat.planning import plan_job
from batchchat.report import write_report
from batchchat.runner.options import RunOptions
from batchchat.runner.run import run_job
from batchchat.store import Store, read_output, verify
from tests.integration.jobs import make_job, texts, write_rows
from tests.store_cases import commit, open_store, seal, settled

ROWS = 60
STATE = "_batchchat"


def provider(_request: httpx.Request) -> httpx.Response:
    choice = {"message": {"content": "yes"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
    return httpx.Response(200, json={"choices": [choice], "usage": usage, "model": "m"})


def go(job: Job, **more: Any) -> RunSummary:
    return anyio.run(partial(run_job, job, transport=httpx.MockTransport(provider), environ={}, **more))


def job_in(folder: Path, prompt: str = "second {{ text }}") -> Job:
    # By name, so that a copy of the folder is the same job.
    return make_job(folder, None, messages=[{"role": "user", "content": prompt}], name="damages")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output with a part, an archive file and a journal that a crash left."""
    folder = tmp_path_factory.mktemp("good")
    write_rows(folder / "rows.jsonl", texts(ROWS))
    assert go(job_in(folder, "first {{ text }}")).exit_code == 0
    assert go(job_in(folder), options=RunOptions(limit=ROWS // 2)).exit_code == 0

    def crash(point: str) -> None:
        if point == "seal.archived":
            raise StorageError("the power is gone")

    ended = go(job_in(folder), open_store=partial(Store.open, point=crash), options=RunOptions(limit=ROWS - 5))
    assert ended.exit_code == 74
    assert verify(folder / "out").problems == []
    return folder


def files(good: Path) -> list[str]:
    found = {path.relative_to(good / "out").as_posix() for path in (good / "out").rglob("*") if path.is_file()}
    snapshots = sorted(name for name in found if "snapshots/" in name)
    return sorted(found - set(snapshots[1:]) - {".huggingface.yaml"})


def absent(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def foreign(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4)


def other_json(path: Path) -> None:
    path.write_text('["a", 1, {"b": null}]\n', encoding="utf-8")


def other_object(path: Path) -> None:
    """The right form with every value of the wrong type."""
    first = path.read_bytes().splitlines()[0] if path.suffix == ".jsonl" else path.read_bytes()
    value = {name: [{"x": "y"}] if not isinstance(old, list) else "z" for name, old in json.loads(first).items()}
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "absent": absent,
    "empty": empty,
    "cut": cut,
    "foreign": foreign,
    "other_json": other_json,
    "other_object": other_object,
}
NOTICED = ("format.json", "job.json", "schema.json", "state.json", "ledger.jsonl", "runs.jsonl", ".arc", ".parquet")
"""Files whose loss `verify` has to call a problem, whatever the damage; also a journal that is absent."""
UNNOTICED = {
    ("absent", "state.json"),
    ("absent", "job.json"),
    ("other_object", "job.json"),
    ("other_object", "state.json"),
}
"""What cannot be told from an output that never had it."""


def look(folder: Path, job: Job) -> dict[str, str]:
    """Run every command that only looks; return what those that refuse say."""
    out = folder / "out"
    commands: dict[str, Callable[[], Any]] = {
        "status": lambda: status_of(out),
        "history": lambda: history_of(out),
        "show": lambda: list(find_records(out, limit=2)),
        "export": lambda: export(out, folder / "export.jsonl", format="jsonl", force=True),
        "plan": lambda: plan_job(job),
        "report": lambda: write_report(out, folder / "report.html"),
    }
    said = {}
    for name, command in commands.items():
        try:
            command()
        except BatchchatError as error:
            said[name] = f"{error.exit_code}: {error}"
    return said


@pytest.mark.parametrize(
    "every", [35, pytest.param(7, marks=pytest.mark.thorough), pytest.param(1, marks=pytest.mark.long)]
)
def test_no_damaged_file_stops_an_output_that_is_whole_without_it(good: Path, tmp_path: Path, every: int) -> None:
    """Each damage of each file; in short only some of them."""
    wrong = []
    pairs = [
        (name, damage)
        for name in files(good)
        for damage in DAMAGES
        if not damage.startswith("other") or name.endswith((".json", ".jsonl"))
    ]
    for name, damage in pairs[::every]:
        folder = tmp_path / damage / name.replace("/", "+")
        shutil.copytree(good, folder)
        path = folder / "out" / name
        DAMAGES[damage](path)
        job = job_in(folder)
        said = look(folder, job)
        # Only what holds records may be missing to those who look, and the remedy is never to begin anew.
        if said and not name.endswith(".parquet"):
            wrong.append(f"{name} {damage}: {said}")
        problems = verify(folder / "out").problems
        noticed = name.endswith(NOTICED) or ("journal" in name and damage == "absent")
        exempt = any((damage, short) in UNNOTICED and name.endswith(short) for short in NOTICED)
        if noticed and not exempt and not problems:
            wrong.append(f"{name} {damage}: verify finds nothing")
        ended = go(job)
        told = " ".join([*problems, *ended.warnings, *said.values()])
        if "--fresh" in told:
            wrong.append(f"{name} {damage}: tells to begin anew: {told}")
        if ended.exit_code != 0 or ended.ok != ROWS or (problems and not ended.warnings):
            wrong.append(
                f"{name} {damage}: {ended.exit_code} {ended.reason} ok {ended.ok}, {problems}, {ended.warnings}"
            )
        data = read_output(folder / "out", columns=["key", "status"])
        if data.num_rows != ROWS or len(data.column("key").unique()) != ROWS:
            wrong.append(f"{name} {damage}: {data.num_rows} records")
        left = verify(folder / "out").problems
        if left and not any(" damaged" in problem and ".jsonl: " in problem for problem in left):
            wrong.append(f"{name} {damage}: after the run: {left}")
    assert not wrong, "\n".join(wrong)


def test_a_deleted_file_is_told_by_name(good: Path, tmp_path: Path) -> None:
    for pattern, word in (
        ("data/*.parquet", "their rows run again"),
        (f"{STATE}/archive/*", "asked for again"),
        (f"{STATE}/journal-*", "costs are told too low"),
        (f"{STATE}/ledger.jsonl", "costs are told too low"),
        (f"{STATE}/runs.jsonl", "how earlier runs ended"),
    ):
        folder = tmp_path / word.replace(" ", "-") / pattern.replace("/", "+").replace("*", "")
        shutil.copytree(good, folder)
        for path in (folder / "out").glob(pattern):
            path.unlink()
        (problem,) = verify(folder / "out").problems
        assert word in problem
        assert path.name in problem
        ended = go(job_in(folder))
        assert [warning for warning in ended.warnings if word in warning and path.name in warning]
        assert verify(folder / "out").problems == []
        assert go(job_in(folder)).warnings == ()


def test_the_types_come_back_from_the_records(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "a")
    schema = tmp_path / "a" / "out" / STATE / "schema.json"
    before = schema.read_bytes()
    schema.unlink()
    go(job_in(tmp_path / "a"))
    assert schema.read_bytes() == before
    (part,) = (tmp_path / "a" / "out" / "data").glob("*.parquet")
    assert pq.read_table(part).num_rows == ROWS


@pytest.mark.parametrize("flips", [60, pytest.param(1500, marks=pytest.mark.long)])
def test_a_flipped_bit_of_a_part_is_found_or_changes_nothing_for_any_reader(tmp_path: Path, flips: int) -> None:
    out = tmp_path / "out"
    with open_store(out, part_rows=1000) as store:
        commit(store, settled(0, 200))
        seal(store)
    (part,) = (out / "data").glob("*.parquet")
    query = f"SELECT * FROM read_parquet('{part}')"
    before, table, rows = part.read_bytes(), pq.read_table(part), duckdb.execute(query).fetchall()
    random = Random(flips)
    wrong, found = [], 0
    for place in random.sample(range(len(before) * 8), flips):
        data = bytearray(before)
        data[place // 8] ^= 1 << place % 8
        part.write_bytes(data)
        if verify(out).problems:
            found += 1
            continue
        try:
            with duckdb.connect() as connection:
                same = pq.read_table(part).equals(table) and connection.execute(query).fetchall() == rows
        except (pa.ArrowException, OSError, duckdb.Error):
            same = False
        if not same:
            wrong.append(place)
    assert not wrong
    assert found > flips // 2


@pytest.mark.thorough
def test_an_output_with_sums_beyond_64_bits_goes_on(good: Path, tmp_path: Path) -> None:
    """Earlier versions believed any number of tokens."""
    shutil.copytree(good, tmp_path / "a")
    ledger = tmp_path / "a" / "out" / STATE / "ledger.jsonl"
    line = json.loads(ledger.read_bytes().splitlines()[0])
    with ledger.open("a", encoding="utf-8") as sink:
        for generation in (90, 91):
            sink.write(json.dumps({**line, "generation": generation, "total_tokens": 2**64}) + "\n")
    job = job_in(tmp_path / "a")
    for _ in range(2):
        ended = go(job)
        assert (ended.exit_code, ended.ok) == (0, ROWS)
        assert ended.spend_total.total_tokens >= 2**65
    assert look(tmp_path / "a", job) == {}
    assert status_of(tmp_path / "a" / "out").spent.total_tokens >= 2**65
    assert verify(tmp_path / "a" / "out").problems == []
