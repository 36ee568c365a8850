"""Files that are handed over in a folder: when a batch has ended, and what is read from whatever lies there."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from batchchat.engines.batch.service import BatchStatus, Gone, RemoteBatch, TornLine
from batchchat.engines.batch.services.folder import FolderService
from batchchat.errors import UsageError

NAME = "job-1.jsonl"
BODY = b'{"model":"m","messages":[]}'
NOW = 1_700_000_000.0


def answer(name: str) -> str:
    return json.dumps({"custom_id": name, "response": {"status_code": 200, "body": {}}, "error": None}) + "\n"


def error(name: str) -> str:
    return (
        json.dumps({"custom_id": name, "response": None, "error": {"code": "batch_expired", "message": "late"}}) + "\n"
    )


def run(folder: Path, use: Callable[[FolderService], Awaitable[Any]], *, now: float = NOW) -> Any:
    async def whole() -> Any:
        async with FolderService(folder, still=900, wall_clock=lambda: now) as service:
            return await use(service)

    return anyio.run(whole)


async def _hand_over(service: FolderService, tmp_path: Path, *ids: str) -> None:
    path = tmp_path / "chunk"
    path.write_bytes(b"".join(service.encode(name, BODY) for name in ids))
    await service.preflight()
    assert await service.upload(NAME, path) == NAME


def look(tmp_path: Path, files: dict[str, str], *, age: float = 1.0, asked: str = "123") -> RemoteBatch:
    """The batch of a file with these requests, once these files lie beside it and have been still for `age` seconds."""
    folder = tmp_path / "handover"

    async def use(service: FolderService) -> RemoteBatch:
        await _hand_over(service, tmp_path, *asked)
        for name, content in files.items():
            (folder / name).write_text(content)
            os.utime(folder / name, (NOW - age, NOW - age))
        found = await service.poll([NAME])
        return found[NAME]

    batch: RemoteBatch = run(folder, use)
    return batch


WHOLE = answer("1") + answer("2") + error("3")
STATES: dict[str, tuple[dict[str, str], float, BatchStatus, int]] = {
    "nothing yet": ({}, 1, BatchStatus.IN_PROGRESS, 0),
    "nothing for long": ({}, 10_000, BatchStatus.IN_PROGRESS, 0),
    "as a provider names it": ({"job-1_output.jsonl": WHOLE}, 1, BatchStatus.COMPLETED, 3),
    "as one would name it": ({"job-1.out.jsonl": WHOLE}, 1, BatchStatus.COMPLETED, 3),
    "without a final line break": ({"job-1_output.jsonl": WHOLE.rstrip()}, 1, BatchStatus.COMPLETED, 3),
    "in two files": (
        {"job-1_output.jsonl": answer("1") + answer("2"), "job-1_error.jsonl": error("3")},
        1,
        BatchStatus.COMPLETED,
        3,
    ),
    "with others between": ({"job-1_output.jsonl": WHOLE + answer("9") + "\n"}, 1, BatchStatus.COMPLETED, 3),
    "twice the same": ({"job-1_output.jsonl": answer("1") * 3}, 1, BatchStatus.IN_PROGRESS, 1),
    "a part": ({"job-1_output.jsonl": answer("1")}, 1, BatchStatus.IN_PROGRESS, 1),
    "a part that grows": ({"job-1_output.jsonl": answer("1") + answer("2")[:30]}, 1, BatchStatus.IN_PROGRESS, 1),
    "a part that is all": ({"job-1_output.jsonl": answer("1"), "job-1.done": ""}, 1, BatchStatus.COMPLETED, 1),
    "said to be all and not whole": (
        {"job-1_output.jsonl": answer("1")[:30], "job-1.done": ""},
        1,
        BatchStatus.IN_PROGRESS,
        0,
    ),
    "a part that has been still for long": ({"job-1_output.jsonl": answer("1")}, 900, BatchStatus.COMPLETED, 1),
    "of another batch": ({"job-10_output.jsonl": WHOLE, "output.jsonl": WHOLE}, 1, BatchStatus.IN_PROGRESS, 0),
    "an empty file": ({"job-1_output.jsonl": ""}, 1, BatchStatus.IN_PROGRESS, 0),
}


@pytest.mark.parametrize("name", STATES)
def test_when_a_batch_has_ended(name: str, tmp_path: Path) -> None:
    files, age, status, answered = STATES[name]
    batch = look(tmp_path, files, age=age)
    assert (batch.status, batch.total, batch.completed) == (status, 3, answered)


def test_a_file_that_grows_is_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "handover"

    async def use(service: FolderService) -> list[tuple[BatchStatus, int | None]]:
        await _hand_over(service, tmp_path, "1", "2")
        seen = []
        with (folder / "job-1_output.jsonl").open("w") as file:
            for piece in (answer("1"), answer("2")[:20], answer("2")[20:]):
                file.write(piece)
                file.flush()
                batch = (await service.poll([NAME]))[NAME]
                seen.append((batch.status, batch.completed))
        return seen

    busy, done = BatchStatus.IN_PROGRESS, BatchStatus.COMPLETED
    assert run(folder, use, now=0) == [(busy, 1), (busy, 1), (done, 2)]


def test_lines_of_every_file_are_read_and_damage_is_told_last(tmp_path: Path) -> None:
    files = {"job-1_output.jsonl": answer("1") + "{oops", "job-1_error.jsonl": error("3")}
    batch = look(tmp_path, files, age=10_000)
    found: list[tuple[str | None, int | None, str | None]] = []

    async def use(service: FolderService) -> None:
        async for line in service.results(batch, tmp_path):
            found.append((line.custom_id, line.status, line.code))  # noqa: PERF401 - what came before counts

    with pytest.raises(TornLine, match="job-1_output"):
        run(tmp_path / "handover", use)
    assert found == [("1", 200, None), ("3", None, "batch_expired")]


def test_a_file_is_written_whole_and_for_this_user_alone(tmp_path: Path) -> None:
    look(tmp_path, {})
    (written,) = (tmp_path / "handover").iterdir()
    assert written.name == NAME
    assert written.read_bytes() == (tmp_path / "chunk").read_bytes()
    assert stat.S_IMODE(written.stat().st_mode) == 0o600


def test_a_file_is_found_again_and_never_created_twice(tmp_path: Path) -> None:
    folder = tmp_path / "handover"

    async def use(service: FolderService) -> None:
        assert await service.find(NAME, {}, 0.0) == []
        with pytest.raises(Gone):
            await service.create(NAME, {})
        await _hand_over(service, tmp_path, "1")
        created = await service.create(NAME, {"nonce": "n"})
        assert await service.create(NAME, {"nonce": "n"}) == created
        assert await service.find(NAME, {"nonce": "n"}, 0.0) == [created]
        assert await service.poll(["other.jsonl"]) == {}

    run(folder, use)


def test_a_cancelled_file_is_taken_away_and_what_was_answered_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "handover"

    async def use(service: FolderService) -> list[str | None]:
        await _hand_over(service, tmp_path, "1", "2")
        await service.cancel(NAME)
        await service.cancel(NAME)
        assert not (folder / NAME).exists()
        (folder / "job-1_output.jsonl").write_text(answer("1"))
        batch = (await service.poll([NAME]))[NAME]
        assert batch.status is BatchStatus.CANCELLED
        return [line.custom_id async for line in service.results(batch, tmp_path)]

    assert run(folder, use, now=0) == ["1"]


def test_only_what_is_named_is_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "handover"

    async def use(service: FolderService) -> None:
        await _hand_over(service, tmp_path, "1")
        (folder / "job-1_output.jsonl").write_text(answer("1"))
        batch = (await service.poll([NAME]))[NAME]
        await service.delete([NAME, NAME])
        assert [path.name for path in folder.iterdir()] == ["job-1_output.jsonl"]
        await service.delete(batch.result_refs)
        with pytest.raises(ValueError, match="no path"):
            await service.delete(["../chunk"])

    run(folder, use)
    assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        run(tmp_path / "file", lambda service: service.preflight())
