"""The order of writes, synchronizations and renames: what no killed process can show, and a loss of power would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchchat.errors import StorageError
from batchchat.store.json_files import append_json, read_lines
from batchchat.store.location import disk as files
from batchchat.store.location.folder_files import FolderParts, FolderState
from batchchat.store.location.port import PartNames
from tests.store_cases import answer, commit, open_store, seal, settled


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done to files, in order, by the names of the files."""
    done: list[str] = []
    synchronize, synchronize_folder, write_all = files.synchronize, files.synchronize_folder, files.write_all
    replace, unlink = Path.replace, Path.unlink

    def name_of(descriptor: int) -> str:
        return Path(f"/proc/self/fd/{descriptor}").readlink().name.split(".")[0]

    def noted_synchronize(descriptor: int) -> None:
        done.append(f"sync {name_of(descriptor)}")
        synchronize(descriptor)

    def noted_folder(folder: Path) -> None:
        done.append(f"sync folder {folder.name}")
        synchronize_folder(folder)

    def noted_write(descriptor: int, data: bytes) -> None:
        done.append(f"write {name_of(descriptor)}")
        write_all(descriptor, data)

    def noted_replace(path: Path, target: Any) -> Path:
        done.append(f"rename {Path(target).name.split('.')[0]}")
        return replace(path, target)

    def noted_unlink(path: Path, missing_ok: bool = False) -> None:
        if path.exists():
            done.append(f"delete {path.name.split('.')[0]}")
        unlink(path, missing_ok)

    for module in ("disk", "folder", "folder_files"):
        for name, noted in (
            ("synchronize", noted_synchronize),
            ("synchronize_folder", noted_folder),
            ("write_all", noted_write),
        ):
            monkeypatch.setattr(f"batchchat.store.location.{module}.{name}", noted, raising=False)
    monkeypatch.setattr(Path, "replace", noted_replace)
    monkeypatch.setattr(Path, "unlink", noted_unlink)
    return done


pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files come from /proc")


def test_a_commit_returns_when_it_is_on_the_disk_and_a_journal_before_its_first_use(
    tmp_path: Path, steps: list[str]
) -> None:
    with open_store(tmp_path) as store:
        steps.clear()
        commit(store, settled(0, 3))
        journal = "journal-0000000001"
        first = [f"write {journal}", f"sync {journal}", "sync folder _batchchat"]
        noted = ["sync manifest", "rename manifest", "sync folder _batchchat"]
        assert steps == [*first, *noted, f"write {journal}", f"sync {journal}"]
        steps.clear()
        commit(store, [*settled(3, 3), answer(9, 0)])
        assert steps == [f"write {journal}", f"sync {journal}"]


def test_a_seal_publishes_and_counts_before_it_deletes(tmp_path: Path, steps: list[str]) -> None:
    with open_store(tmp_path, part_rows=2) as store:
        commit(store, settled(0, 4))
        seal(store)
    with open_store(tmp_path, "run-2", part_rows=2) as store:
        commit(store, [*settled(0, 1, prompt="new"), answer(9, 0)])
        steps.clear()
        seal(store)
    assert [step for step in steps if "folder" not in step] == [
        "write journal-0000000003",  # the open answer is in the next generation first
        "sync journal-0000000003",
        "sync manifest",  # which names a journal that is there
        "rename manifest",
        "sync archive-00000",
        "rename archive-00000",
        "sync part-00000",
        "rename part-00000",
        "sync part-00002",
        "rename part-00002",
        "sync ledger",
        "sync manifest",  # which names the journal no more before it goes
        "rename manifest",
        "delete journal-0000000002",
    ]
    for name, folder in (("archive-00000", "archive"), ("part-00000", "data"), ("part-00002", "data")):
        assert steps[steps.index(f"rename {name}") + 1] == f"sync folder {folder}"


def test_what_is_published_is_whole_or_not_there(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    files.publish_bytes(tmp_path / "file", b"old", temporary=temporary)

    def fail(sink: Any) -> None:
        sink.write(b"half of the n")
        raise OSError(28, "no space")

    with pytest.raises(StorageError, match="file: the disk is full"):
        files.publish(tmp_path / "file", fail, temporary=temporary)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert list(temporary.iterdir()) == []
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_lines_that_are_not_whole_are_cut_and_those_that_are_no_json_are_counted(tmp_path: Path) -> None:
    state = FolderState(tmp_path, temporary=tmp_path, damaged=tmp_path)
    assert read_lines(state, "lines") == ([], 0)
    assert state.cut_torn_line("lines") == 0
    append_json(state, "lines", {"n": 1})
    with (tmp_path / "lines").open("ab") as sink:
        sink.write(b'not json\n[1]\n{"n": 2')
    assert read_lines(state, "lines") == ([{"n": 1}], 2)
    assert state.cut_torn_line("lines") == 7
    append_json(state, "lines", {"n": 3})
    assert read_lines(state, "lines") == ([{"n": 1}, {"n": 3}], 2)


def test_the_parts_of_two_shards_lie_in_one_folder_and_neither_shard_sees_the_other_one(tmp_path: Path) -> None:
    places = {"temporary": tmp_path / "tmp", "damaged": tmp_path / "damaged"}
    data = tmp_path / "data"
    for folder in (data, *places.values()):
        folder.mkdir()
    shards = (None, 0, 3, 1000)
    kinds = [PartNames("part", ".parquet", shard) for shard in shards]
    parts = [FolderParts(data, kind, **places, mode=0o600) for kind in kinds]
    for each, kind in zip(parts, kinds, strict=True):
        for number in (100_000, 0, 99_999):
            each.publish(kind.name(number), lambda sink: None)
    (data / "notes.txt").touch()
    for each, kind in zip(parts, kinds, strict=True):
        assert [kind.number(name) for name in each.names()] == [0, 99_999, 100_000]
        assert each.others() == ["notes.txt"]
    assert kinds[0].name(7) == "part-00007.parquet"
    assert kinds[2].name(7) == "part-003-00007.parquet"
    assert kinds[0].number("part-7.parquet") is None
