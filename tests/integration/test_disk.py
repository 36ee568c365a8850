"""Disks that fail and files that rot: a clean stop with a plain message and exit 74, and nothing is lost."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from batchchat.demo import DemoOptions, DemoServer
from batchchat.errors import StorageError
from batchchat.export import export
from batchchat.store import read_state, verify
from tests.integration.jobs import make_job, query, run, texts, write_rows
from tests.integration.processes import batchchat, start, wait_for
from tests.thorough import one_in

ROWS = 300


def write_job(folder: Path, demo: DemoServer) -> Path:
    write_rows(folder / "rows.jsonl", texts(ROWS))
    data = {
        "name": "disk",
        "input": {"path": "rows.jsonl", "key": "id"},
        "output": {"path": "out", "part_rows": 50},
        "provider": {"profile": "demo", "base_url": demo.base_url},
        "model": "llama-3.1-8b-instruct",
        "messages": [{"role": "user", "content": "Labels: yes, no\n{{ text }}"}],
        "limits": {"concurrency": 16},
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def goes_on(job: Path, demo: DemoServer) -> None:
    """The same command ends well, and only what was in flight is asked for again."""
    again = batchchat("run", job, "--json", cwd=job.parent)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["ok"] == ROWS
    assert query(job.parent, "select count(*), count(distinct key) from data") == [(ROWS, ROWS)]
    again_paid = demo.stats().answered_again
    assert again_paid is not None
    assert again_paid <= 64
    assert batchchat("verify", "out", cwd=job.parent).returncode == 0


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    one_in(
        3,
        [
            (resource.RLIMIT_FSIZE, 12_000, "file size"),
            (resource.RLIMIT_NOFILE, 8, "ulimit -n"),
            (resource.RLIMIT_NOFILE, 15, "ulimit -n"),
        ],
    ),
    ids=["file size", "few open files", "too few open files"],
)
def test_a_limit_of_the_system_stops_the_run_cleanly(tmp_path: Path, kind: int, value: int, said: str) -> None:
    with DemoServer(DemoOptions(latency_s=0.02)) as demo:
        job = write_job(tmp_path, demo)
        done = batchchat("run", job, cwd=tmp_path, limits=[(kind, value)])
        assert done.returncode == 74, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr
        goes_on(job, demo)


@pytest.mark.thorough
def test_a_concurrency_beyond_the_open_files_is_lowered_and_said(tmp_path: Path) -> None:
    with DemoServer(DemoOptions(latency_s=0.02)) as demo:
        job = write_job(tmp_path, demo)
        done = batchchat("run", job, cwd=tmp_path, limits=[(resource.RLIMIT_NOFILE, 55)])
        assert done.returncode == 0, done.stderr
        assert "limits.concurrency is 16, and the open files of this process allow" in done.stderr
        assert demo.stats().max_in_flight < 16


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """A disk of its own under `tmp_path / "out"`; call it with another size, as `mount` takes it."""
    disk = tmp_path / "out"
    disk.mkdir()

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")

    mount("size=4m")
    try:
        yield lambda size: mount(f"remount,size={size}")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it mounts a tmpfs")
@pytest.mark.parametrize("kilobytes", one_in(4, [32, 64, 100, 160]))
def test_a_full_disk_stops_the_run_cleanly(tmp_path: Path, small_disk: Callable[[str], None], kilobytes: int) -> None:
    with DemoServer(DemoOptions(latency_s=0.02)) as demo:
        job = write_job(tmp_path, demo)
        small_disk(f"{kilobytes}k")
        done = batchchat("run", job, cwd=tmp_path)
        assert done.returncode == 74, done.stderr
        assert "the disk is full" in done.stderr
        assert "Free some space" in done.stderr
        assert "Traceback" not in done.stderr
        small_disk("4m")
        goes_on(job, demo)


@pytest.mark.thorough
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it mounts a tmpfs")
def test_a_disk_that_is_full_when_a_killed_run_is_recovered_loses_nothing(
    tmp_path: Path, small_disk: Callable[[str], None]
) -> None:
    def counted() -> dict[str, str]:
        batches = read_state(tmp_path / "out").records(["custom_id", "completion"])
        return {row["custom_id"]: row["completion"] for batch in batches for row in batch.to_pylist()}

    with DemoServer(DemoOptions(latency_s=0.02)) as demo:
        job = write_job(tmp_path, demo)
        process = start("run", job, cwd=tmp_path)
        wait_for(lambda: demo.stats().answered >= 120)
        process.kill()
        process.communicate()
        before = counted()
        assert len(before) >= 60
        for room in (0, 4, 16):
            disk = os.statvfs(tmp_path / "out")
            used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize // 1024
            small_disk(f"{used + room}k")
            done = batchchat("run", job, "--limit", "1", cwd=tmp_path)
            assert done.returncode in {0, 74}, done.stderr
            assert room or done.returncode == 74
            assert "the disk is full" in done.stderr or not done.returncode
            assert "Traceback" not in done.stderr
            assert counted().items() >= before.items()
            assert verify(tmp_path / "out").problems == []
        small_disk("4m")
        goes_on(job, demo)


@pytest.mark.thorough
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it takes capabilities away")
def test_an_output_that_becomes_read_only_stops_the_run_cleanly(tmp_path: Path) -> None:
    with DemoServer(DemoOptions(latency_s=0.05)) as demo:
        job = write_job(tmp_path, demo)
        process = start("run", job, cwd=tmp_path, powerless=True)
        wait_for(lambda: demo.stats().answered >= 30)
        folders = [path for path in (tmp_path / "out", *(tmp_path / "out").rglob("*")) if path.is_dir()]
        modes = {folder: folder.stat().st_mode for folder in folders}
        for folder in folders:
            folder.chmod(0o500)
        _, told = process.communicate()
        assert process.returncode == 74, told
        assert "permission denied" in told
        assert "Traceback" not in told
        for folder, mode in modes.items():
            folder.chmod(mode)
        goes_on(job, demo)


def test_an_output_that_is_deleted_in_mid_run_stops_it_cleanly(tmp_path: Path) -> None:
    with DemoServer(DemoOptions(latency_s=0.2)) as demo:
        job = write_job(tmp_path, demo)
        process = start("run", job, cwd=tmp_path)
        wait_for(lambda: demo.stats().answered >= 30)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 74, told
    assert "Traceback" not in told


@pytest.mark.thorough
def test_damaged_parts_are_found_and_their_rows_run_again(tmp_path: Path) -> None:
    with DemoServer(DemoOptions(latency_s=0)) as demo:
        job = write_job(tmp_path, demo)
        assert batchchat("run", job, cwd=tmp_path).returncode == 0
        parts = sorted((tmp_path / "out" / "data").glob("*.parquet"))
        whole = parts[0].read_bytes()
        flipped = bytearray(whole)
        for place in range(100, 400):
            flipped[place] ^= 0x55
        parts[0].write_bytes(flipped)
        found = batchchat("verify", "out", cwd=tmp_path)
        assert found.returncode == 74
        assert parts[0].name in found.stdout + found.stderr
        parts[0].write_bytes(whole)
        assert "is damaged" not in batchchat("run", job, cwd=tmp_path).stderr  # it was mended by other means
        parts[0].write_bytes(whole[:-20])  # a torn footer is found at the start
        again = batchchat("run", job, cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        assert parts[0].name in again.stderr
        assert "run again" in again.stderr
        assert any((tmp_path / "out" / "_batchchat" / "damaged").iterdir())
        assert query(tmp_path, "select count(*), count(distinct key) from data") == [(ROWS, ROWS)]
        assert batchchat("verify", "out", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("finder", "column"),
    one_in(
        3,
        [
            ("verify", "completion"),
            ("verify", "text"),
            ("export", "completion"),
            ("run", "custom_id"),
            ("run", "status"),
        ],
    ),
)
def test_flipped_bytes_are_found_by_who_reads_them_and_mended_by_the_next_run(
    tmp_path: Path, column: str, finder: str
) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(60))
    with DemoServer(DemoOptions(latency_s=0)) as demo:
        job = make_job(tmp_path, demo.base_url, output={"path": str(tmp_path / "out"), "part_rows": 20})
        assert run(job).ok == 60
        part = tmp_path / "out" / "data" / "part-00001.parquet"
        flip(part, column)
        if finder != "run":
            with suppress(StorageError):
                if finder == "verify":
                    assert [problem for problem in verify(tmp_path / "out").problems if part.name in problem]
                else:
                    export(tmp_path / "out", tmp_path / "x.jsonl")
                    raise AssertionError("damaged records were exported")
            assert part.exists()
        again = run(job)
        assert (again.exit_code, again.ok, again.new_ok) == (0, 60, 20)
        assert any(part.name in warning and "run again" in warning for warning in again.warnings)
    assert [path.name for path in (tmp_path / "out" / "_batchchat" / "damaged").iterdir()] == [part.name]
    assert query(tmp_path, "select count(*), count(distinct key) from data") == [(60, 60)]
    assert verify(tmp_path / "out").problems == []


def flip(part: Path, column: str) -> None:
    """Change some bytes of one column, and none of any other."""
    group = pq.read_metadata(part).row_group(0)
    chunk = next(group.column(n) for n in range(group.num_columns) if group.column(n).path_in_schema == column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data = bytearray(part.read_bytes())
    for place in range(start + chunk.total_compressed_size - 8, start + chunk.total_compressed_size):
        data[place] ^= 0x55
    part.write_bytes(data)
