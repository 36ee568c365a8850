"""Who may open what, and what a disk that refuses leads to."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import pytest

from batchchat.errors import OutputLocked, StorageError, UsageError
from batchchat.store import Entry, Store, is_output, lock_holder, read_output, read_state, verify
from batchchat.store.location.disk import storage_error
from batchchat.store.location.folder import FolderLocation
from batchchat.store.location.folder_files import FolderParts
from batchchat.store.location.port import PartNames
from tests.store_cases import commit, live, open_store, seal, settled

HOLD = """
import sys
from pathlib import Path
from tests.store_cases import open_store
store = open_store(Path(sys.argv[1]), "first")
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_elsewhere(directory: Path) -> Iterator[int]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process.pid
        finally:
            process.kill()


def listing(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_a_second_run_is_refused_and_told_who_is_first(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path / "out") as pid:
        for fresh in (False, True):
            with pytest.raises(OutputLocked, match=rf"pid {pid} on ") as refused:
                open_store(tmp_path / "out", "second", fresh=fresh)
            assert refused.value.exit_code == 75
        holder = lock_holder(tmp_path / "out")
        assert holder is not None
        assert (holder["pid"], holder["run_id"]) == (pid, "first")
        assert read_state(tmp_path / "out").holder == holder
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert lock_holder(tmp_path / "out") is None
    open_store(tmp_path / "out", "second").close()
    assert lock_holder(tmp_path / "nowhere") is None


def test_two_stores_in_one_process_exclude_each_other(tmp_path: Path) -> None:
    with open_store(tmp_path), pytest.raises(OutputLocked, match=f"pid {os.getpid()}"):
        open_store(tmp_path, "run-2")
    open_store(tmp_path, "run-2").close()


def test_a_folder_that_is_something_else_is_left_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(UsageError, match="holds something else"):
            open_store(tmp_path, fresh=fresh)
    assert listing(tmp_path) == ["thesis.txt"]
    with pytest.raises(UsageError, match="is a file"):
        open_store(tmp_path / "thesis.txt")
    with pytest.raises(UsageError, match="cannot be written"):
        open_store(tmp_path / "thesis.txt" / "out")
    for reader in (read_state, read_output, verify):
        with pytest.raises(UsageError):
            reader(tmp_path)
    with pytest.raises(UsageError, match="is no output"):
        read_state(tmp_path / "nowhere")


@pytest.mark.parametrize("gone", [False, True], ids=["created", "set aside"])
def test_an_output_that_another_run_creates_or_moves_meanwhile_is_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    """The folder is looked at in steps, and between two of them it becomes an output, or is gone."""
    output = tmp_path / "out"
    output.mkdir()
    listed = Path.iterdir

    def meanwhile(path: Path) -> Iterator[Path]:
        monkeypatch.setattr(Path, "iterdir", listed)
        if gone:
            output.rename(tmp_path / "out.old")
        else:
            open_store(output).close()
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", meanwhile)
    assert is_output(output) is not gone


def test_a_creation_that_was_cut_short_is_finished(tmp_path: Path) -> None:
    (tmp_path / "out" / "_batchchat" / "tmp").mkdir(parents=True)
    (tmp_path / "out" / "_batchchat" / "lock").touch()
    (tmp_path / "out" / "_batchchat" / "tmp" / "format.json.1").touch()
    with open_store(tmp_path / "out") as store:
        commit(store, settled(0, 1))
        seal(store)
    assert len(live(tmp_path / "out")) == 1
    assert listing(tmp_path / "out" / "_batchchat" / "tmp") == []


def test_another_job_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    with open_store(tmp_path / "out") as store:
        commit(store, settled(0, 1))
        seal(store)
    before = listing(tmp_path)
    with pytest.raises(UsageError, match="belongs to the job 'job'") as refused:
        open_store(tmp_path / "out", "run-2", job_name="other", snapshot={"name": "other"})
    assert "--fresh" in str(refused.value)
    assert listing(tmp_path) == before
    (tmp_path / "out" / "_batchchat" / "format.json").write_text('{"format": 7}')
    with pytest.raises(UsageError, match="format 7"):
        open_store(tmp_path / "out")
    with pytest.raises(UsageError, match="format 7"):
        read_state(tmp_path / "out")


def test_fresh_sets_the_old_output_aside_whole(tmp_path: Path) -> None:
    for run in ("run-1", "run-2", "run-3"):
        with open_store(tmp_path / "out", run, fresh=True) as store:
            assert store.counts().live == 0
            assert store.ledger_total().requests == 0
            renamed = store.recovery.renamed
            commit(store, settled(0, 3, run_id=run))
            seal(store)
        assert (renamed is None) == (run == "run-1")
        if renamed is not None:
            assert Path(renamed).name.startswith("out.old-")
            assert len(live(Path(renamed))) == 3
    assert len(list(tmp_path.iterdir())) == 3


@contextmanager
def as_nobody() -> Iterator[None]:
    """Act without the rights of root, where the tests have them."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder that others may enter, unlike those of `tmp_path`."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_an_output_that_cannot_be_written_is_refused_and_nothing_is_created(open_to_all: Path) -> None:
    tmp_path = open_to_all
    with open_store(tmp_path / "out"):
        pass
    (tmp_path / "out" / "_batchchat" / "format.json").chmod(0o644)
    for folder in (tmp_path / "out" / "_batchchat", tmp_path / "out" / "_batchchat" / "tmp"):
        folder.chmod(0o555)
    (tmp_path / "closed").mkdir(mode=0o555)
    before = listing(tmp_path)
    for output in ("out", "closed/a/b", "closed"):
        with as_nobody(), pytest.raises(UsageError, match=r"(?i)permission denied"):
            open_store(tmp_path / output, "run-2")
    assert listing(tmp_path) == before
    for folder in (tmp_path / "out" / "_batchchat", tmp_path / "out" / "_batchchat" / "tmp"):
        folder.chmod(0o700)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_journal_that_cannot_grow_stops_the_run_and_loses_nothing_counted(tmp_path: Path) -> None:
    counted = 0

    def run() -> None:
        nonlocal counted
        for first in range(0, 10_000, 20):
            commit(store, settled(first, 20))
            counted = first + 20

    with open_store(tmp_path) as store:
        with file_size_limit(60_000), pytest.raises(StorageError, match=r"journal-.*allowed file size") as refused:
            run()
        assert refused.value.exit_code == 74
        assert "run the same command again" in str(refused.value)
        with pytest.raises(StorageError, match="takes nothing more"):
            store.commit(settled(0, 1))
    assert counted > 0
    with open_store(tmp_path, "run-2") as store:
        assert counted <= store.counts().ok < counted + 20
        assert store.ledger_total().requests == store.counts().ok
    assert verify(tmp_path).problems == []


def test_a_part_that_cannot_be_written_leaves_the_journal_to_the_next_run(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        commit(store, settled(0, 300))
        with file_size_limit(8_000), pytest.raises(StorageError, match=r"part-00000\.parquet: the file would grow"):
            store.finish()
    assert listing(tmp_path / "data") == []
    assert listing(tmp_path / "_batchchat" / "tmp") == []
    with file_size_limit(8_000), pytest.raises(StorageError, match=r"part-00000\.parquet"):
        open_store(tmp_path, "run-2")
    with open_store(tmp_path, "run-3") as store:
        assert store.counts().ok == 300


def test_a_disk_that_fills_up_in_any_publication_is_told_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(tmp_path, part_rows=4) as store:
        commit(store, settled(0, 8))
        seal(store)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for failing in ("write_all", "synchronize", "synchronize_folder"):
        with monkeypatch.context() as patch, open_store(tmp_path, "run-2", part_rows=4) as store:
            patch.setattr("batchchat.store.location.disk." + failing, full)
            patch.setattr("batchchat.store.location.folder_files." + failing, full)
            with pytest.raises(StorageError, match="the disk is full") as refused:
                seal_after(store, settled(1, 1, prompt=failing))
            assert "Free some space" in str(refused.value)
    assert [row["row_index"] for row in live(tmp_path)] == list(range(8))
    with open_store(tmp_path, "run-3", part_rows=4):
        pass
    assert [row["row_index"] for row in live(tmp_path)] == list(range(8))
    assert verify(tmp_path).problems == []


def seal_after(store: Store, entries: list[Entry]) -> None:
    commit(store, entries)
    seal(store)


class FullParts(FolderParts):
    """Parts in a place that refuses every publication."""

    def publish(self, name: str, write: Callable[[BinaryIO], None], before: Callable[[], None] | None = None) -> None:
        raise storage_error(name, OSError(errno.EDQUOT, "quota"))


class FullLocation(FolderLocation):
    """A folder whose parts are kept in another place."""

    @property
    def parts(self) -> FolderParts:
        places = {"temporary": self.scratch("tmp"), "damaged": self.scratch("damaged")}
        return FullParts(self.root / "data", PartNames("part", ".parquet"), **places, mode=0o600)


def test_another_location_may_fail_in_its_own_way(tmp_path: Path) -> None:
    with open_store(FullLocation(tmp_path)) as store:
        commit(store, settled(0, 3))
        with pytest.raises(StorageError, match=r"part-00000\.parquet: the disk quota is used up"):
            store.finish()
    assert len(live(tmp_path)) == 3


@pytest.mark.parametrize("free", range(4))
def test_too_many_open_files_is_no_damage(tmp_path: Path, free: int) -> None:
    with open_store(tmp_path) as store:
        commit(store, settled(0, 3))
        seal(store)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers: list[int] = []
    outcome = "opened"
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        with suppress(OSError):
            while True:
                fillers.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(free):
            os.close(fillers.pop())
        try:
            open_store(tmp_path, "run-2").close()
        except StorageError as error:
            outcome = error.message
    finally:
        for descriptor in fillers:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert outcome.endswith("too many open files") or (free > 1 and outcome == "opened")
    assert len(live(tmp_path)) == 3
    assert listing(tmp_path / "_batchchat" / "damaged") == []


def test_a_damaged_state_file_is_told_and_written_anew(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    for name in ("schema.json", "job.json"):
        path = tmp_path / "_batchchat" / name
        good = path.read_bytes()
        path.write_bytes(good[: len(good) // 2])
        assert any(name in problem for problem in verify(tmp_path).problems)
        with open_store(tmp_path, "run-2") as store:
            assert [message for message in store.recovery.messages if name in message]
        assert path.read_bytes() == good
        assert (tmp_path / "_batchchat" / "damaged" / name).read_bytes() == good[: len(good) // 2]
    open_store(tmp_path, "run-3").close()
