"""The demo provider in the shape of each dialect, driven by the services that speak to the real ones."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from batchchat.demo import BatchOptions, DemoOptions, DemoServer
from batchchat.demo.batches.options import DIALECTS
from batchchat.engines.batch.service import BadLine, BatchService, BatchStatus, QueueFull, RemoteBatch, ResultLine
from batchchat.engines.batch.services import open_service
from batchchat.providers import Provider
from tests.batch_play import Options
from tests.integration.batch_driver import MODEL, NO_TLS, request_line
from tests.integration.buckets import client_of, moto_server
from tests.thorough import one_in

BUCKET = "batches"


@contextmanager
def serving(dialect: str, *, seconds: float = 0.0, **faults: Any) -> Iterator[DemoServer]:
    batch = BatchOptions(seconds=seconds, faults=faults, dialect=dialect)
    with DemoServer(DemoOptions(latency_s=0, api_key="key", batch=batch)) as server:
        yield server


@pytest.fixture(scope="module")
def storage() -> Iterator[dict[str, str]]:
    """An object store with a bucket, and the environment by which it is reached."""
    with moto_server() as url:
        client_of(url).create_bucket(Bucket=BUCKET)
        yield {"SCW_ACCESS_KEY": "access", "SCW_SECRET_KEY": "secret", "AWS_ENDPOINT_URL": url}


class Used:
    """One service in use."""

    def __init__(self, service: BatchService, folder: Path) -> None:
        self.service = service
        self.folder = folder

    async def upload(self, name: str, lines: list[dict[str, Any]]) -> str:
        path = self.folder / name
        encoded = (self.service.encode(line["custom_id"], json.dumps(line["body"]).encode()) for line in lines)
        path.write_bytes(b"".join(encoded))
        return await self.service.upload(name, path)

    async def ended(self, batch: RemoteBatch) -> RemoteBatch:
        with anyio.fail_after(20):
            while not batch.ended:
                await anyio.sleep(0.01)
                batch = (await self.service.poll([batch.id])).get(batch.id, batch)
        return batch

    async def results(self, batch: RemoteBatch) -> dict[str | None, ResultLine]:
        lines = [line async for line in self.service.results(batch, self.folder)]
        found = {line.custom_id: line for line in lines}
        assert len(found) == len(lines)
        return found


def use(
    server: DemoServer, folder: Path, run: Callable[[Used], Awaitable[None]], environ: dict[str, str] | None = None
) -> None:
    dialect = server.options.batch.dialect
    provider = Provider(name="custom", base_url=server.base_url, identity="demo")
    options = Options(service=dialect, bucket=f"s3://{BUCKET}/chunks" if dialect == "scaleway" else None)

    async def work() -> None:
        service = open_service(provider, options, api_key="key", environ=environ or {}, model=MODEL)
        async with service:
            await run(Used(service, folder))

    anyio.run(work)


async def ask(server: DemoServer, method: str, path: str, **more: Any) -> httpx.Response:
    headers = {"authorization": "Bearer key"}
    async with httpx.AsyncClient(base_url=server.base_url, headers=headers, verify=NO_TLS) as client:
        return await client.request(method, path, **more)


def lines_of(number: int) -> list[dict[str, Any]]:
    lines = [request_line(index) for index in range(number)]
    lines[-1]["body"]["max_tokens"] = 10**9
    return lines


@pytest.mark.parametrize("dialect", one_in(3, DIALECTS))
def test_a_batch_goes_from_upload_to_results(
    dialect: str, tmp_path: Path, storage: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in storage.items():
        monkeypatch.setenv(name, value)
    lines = lines_of(12)
    with serving(dialect, seconds=0.2) as server:

        async def run(used: Used) -> None:
            service = used.service
            await service.preflight()
            ref = await used.upload("chunk-1.jsonl", lines)
            labels = {"batchchat_chunk": "1"}
            batch = await service.create(ref, labels)
            assert batch.status in {BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS}
            assert batch.input_ref == ref
            if service.limits.finds_by_labels:
                assert batch.labels == labels
            (found,) = await service.find(ref, labels, (batch.created_at or 0) - 60)
            assert found.id == batch.id
            ended = await used.ended(batch)
            assert ended.status is BatchStatus.COMPLETED
            assert (ended.total, ended.completed, ended.failed) in {(12, 11, 1), (None, None, None)}
            results = await used.results(ended)
            assert results.keys() == {line["custom_id"] for line in lines}
            for line in lines[:-1]:
                told = results[line["custom_id"]]
                online = (await ask(server, "POST", "/chat/completions", json=line["body"])).json()
                assert told.status == 200
                assert {**json.loads(told.body), "created": 0} == {**online, "created": 0}
            failed = results[lines[-1]["custom_id"]]
            assert failed.status is not None
            assert 400 <= failed.status < 500
            assert b"max_tokens" in failed.body
            await service.delete([ref, *ended.result_refs])

        use(server, tmp_path, run, storage)
        stats = server.stats().batch
        assert (stats.created, stats.lines) == (1, 11)


@pytest.mark.parametrize("dialect", one_in(4, DIALECTS))
def test_a_cancelled_batch_keeps_what_was_answered(
    dialect: str, tmp_path: Path, storage: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in storage.items():
        monkeypatch.setenv(name, value)
    with serving(dialect, seconds=2) as server:

        async def run(used: Used) -> None:
            batch = await used.service.create(await used.upload("chunk-2.jsonl", lines_of(20)), {})
            await anyio.sleep(0.8)
            await used.service.cancel(batch.id)
            batch = await used.ended(batch)
            assert batch.status is BatchStatus.CANCELLED
            answered = [line for line in (await used.results(batch)).values() if line.status == 200]
            assert 0 < len(answered) == server.stats().batch.lines < 20
            await used.service.cancel(batch.id)

        use(server, tmp_path, run, storage)


def test_what_each_dialect_does_with_a_bad_line(tmp_path: Path) -> None:
    """Where it is found, and whether it is named: at upload, in a failed batch, or as a line that fails alone."""
    lines = [request_line(number) for number in range(6)]
    expected = {
        "openai": (BatchStatus.FAILED, 4),
        "azure": (BatchStatus.FAILED, 4),
        "groq": (BatchStatus.COMPLETED, 4),
        "mistral": ("upload", 4),
        "together": (BatchStatus.FAILED, None),
        "deepinfra": (BatchStatus.FAILED, 4),
        "doubleword": ("upload", 4),
    }
    seen: dict[str, tuple[Any, int | None]] = {}
    for dialect in expected:
        with serving(dialect, bad_text="charged 3 times") as server:

            async def run(used: Used, dialect: str = dialect) -> None:
                try:
                    ref = await used.upload("bad.jsonl", lines)
                except BadLine as error:
                    seen[dialect] = ("upload", error.line)
                    return
                batch = await used.ended(await used.service.create(ref, {}))
                (problem,) = batch.problems
                seen[dialect] = (batch.status, problem.line)
                if batch.status is BatchStatus.COMPLETED:
                    results = await used.results(batch)
                    assert [line.custom_id for line in results.values() if line.status != 200] == ["row-3"]

            use(server, tmp_path, run)
    assert seen == expected


def test_a_full_queue_of_azure_refuses_the_create_call(tmp_path: Path) -> None:
    with serving("azure", seconds=60, queue_tokens=100) as server:

        async def run(used: Used) -> None:
            ref = await used.upload("a.jsonl", [request_line(1)])
            await used.service.create(ref, {})
            with pytest.raises(QueueFull) as caught:
                await used.service.create(ref, {})
            assert caught.value.queued_tokens == 100

        use(server, tmp_path, run)


def test_lists_go_on_by_cursor_by_number_or_not_at_all(tmp_path: Path) -> None:
    for dialect, size, following in (
        (
            "groq",
            "limit=2",
            lambda told, _: told["paging"]["next_cursor"] and f"cursor={told['paging']['next_cursor']}",
        ),
        ("mistral", "page_size=2", lambda told, number: 2 * number < told["total"] and f"page={number}"),
        ("together", "", lambda *_: None),
    ):
        with serving(dialect) as server:

            async def run(
                used: Used, size: str = size, following: Callable[[Any, int], Any] = following, dialect: str = dialect
            ) -> None:
                path = "/batch/jobs" if dialect == "mistral" else "/batches"
                ref = await used.upload("a.jsonl", [request_line(1)])
                made = [(await used.service.create(ref, {"chunk": str(number)})).id for number in range(5)]
                found: list[str] = []
                number, page = 0, ""
                while page or number == 0:
                    told = (await ask(server, "GET", f"{path}?{size}&{page}")).json()
                    found += [batch["id"] for batch in (told if isinstance(told, list) else told["data"])]
                    number += 1
                    page = following(told, number) or ""
                assert found == made[::-1]
                assert number == (1 if dialect == "together" else 3)
                if dialect == "mistral":
                    only = (await ask(server, "GET", path, params={"metadata": '{"chunk":"1"}'})).json()
                    assert [batch["id"] for batch in only["data"]] == [made[1]]
                    assert (await ask(server, "GET", path, params={"metadata": "x"})).status_code == 400
                if dialect == "groq":
                    assert (await ask(server, "GET", path, params={"cursor": "x"})).status_code == 400
                    told = (await ask(server, "GET", f"{path}?id={made[0]}&id={made[3]}")).json()
                    assert {batch["id"] for batch in told["data"]} == {made[0], made[3]}

            use(server, tmp_path, run)


def test_results_of_doubleword_can_be_read_while_the_batch_runs(tmp_path: Path) -> None:
    with serving("doubleword", seconds=3) as server:

        async def run(used: Used) -> None:
            batch = await used.service.create(await used.upload("a.jsonl", lines_of(20)), {})
            while not batch.result_refs:
                await anyio.sleep(0.05)
                batch = (await used.service.poll([batch.id]))[batch.id]
            told = await ask(server, "GET", f"/files/{batch.result_refs[0]}/content")
            assert told.headers["x-incomplete"] == "true"
            assert 0 < told.content.count(b"\n") < 20

        use(server, tmp_path, run)


def test_a_bucket_that_the_server_cannot_read_fails_the_batch(
    tmp_path: Path, storage: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCW_ACCESS_KEY", "")
    with serving("scaleway") as server:

        async def run(used: Used) -> None:
            batch = await used.ended(await used.service.create(await used.upload("c.jsonl", lines_of(2)), {}))
            assert batch.status is BatchStatus.FAILED
            assert "cannot be read" in batch.problems[0].message

        use(server, tmp_path, run, storage)
