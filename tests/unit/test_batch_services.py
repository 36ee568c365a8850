"""Finding batches again, looking at many, uploads that wait, downloads that break: over a scripted provider."""

from __future__ import annotations

import gzip
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from trio.testing import MockClock

from batchchat.engines.batch.service import (
    BadLine,
    BatchService,
    BatchStatus,
    Gone,
    RemoteBatch,
    TornLine,
    Unavailable,
)
from batchchat.engines.batch.services import open_service
from batchchat.engines.batch.services.dialects import DIALECTS, OPENAI
from batchchat.engines.batch.services.shapes import read_batch, read_status, read_time
from batchchat.errors import NeedsHuman
from batchchat.providers import PROFILES, Provider
from tests.batch_play import Cut, Options, Play, Turns

KEY = "sk-0123456789abcdef"
START = 1_700_000_000.0


def run(play: Play, use: Callable[[BatchService], Awaitable[Any]], *, provider: Provider = PROFILES["openai"]) -> Any:
    """What a use of the service returns, on a virtual clock."""
    service = open_service(provider, Options(), api_key=KEY, environ={}, model="m", transport=play)

    async def whole() -> Any:
        async with service:
            return await use(service)

    return anyio.run(whole, backend="trio", backend_options={"clock": MockClock(autojump_threshold=0)})


def batch(name: str, *, at: float = START, ref: str = "f1", labels: dict[str, str] | None = None) -> dict[str, Any]:
    return {
        "id": name,
        "object": "batch",
        "endpoint": "/v1/chat/completions",
        "input_file_id": ref,
        "completion_window": "24h",
        "status": "in_progress",
        "created_at": int(at),
        "metadata": labels,
    }


OURS = {"batchchat_job": "j", "nonce": "n1"}


# --- statuses, times, problems


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("validating", BatchStatus.VALIDATING),
        ("Validating", BatchStatus.VALIDATING),
        ("in_queue", BatchStatus.VALIDATING),
        ("QUEUED", BatchStatus.VALIDATING),
        ("PROGRESS", BatchStatus.IN_PROGRESS),
        ("RUNNING", BatchStatus.IN_PROGRESS),
        ("in-progress", BatchStatus.IN_PROGRESS),
        ("InProgress", BatchStatus.IN_PROGRESS),
        ("In Progress", BatchStatus.IN_PROGRESS),
        ("SUCCESS", BatchStatus.COMPLETED),
        ("JOB_STATE_SUCCEEDED", BatchStatus.COMPLETED),
        ("TIMEOUT_EXCEEDED", BatchStatus.EXPIRED),
        ("CANCELING", BatchStatus.CANCELLING),
        ("CANCELLATION_REQUESTED", BatchStatus.CANCELLING),
        ("canceled", BatchStatus.CANCELLED),
        ("resting", BatchStatus.UNKNOWN),
        ("unknown", BatchStatus.UNKNOWN),
        ("", BatchStatus.UNKNOWN),
        (None, BatchStatus.UNKNOWN),
        (7, BatchStatus.UNKNOWN),
    ],
)
def test_words_for_where_a_batch_stands(word: Any, status: BatchStatus) -> None:
    assert read_status(word) is status


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (1_700_000_000, START),
        (1_700_000_000_000, START),
        ("1700000000", START),
        ("2023-11-14T22:13:20Z", START),
        ("2023-11-14T22:13:20", START),
        ("2023-11-14T23:13:20+01:00", START),
        (0, None),
        (None, None),
        (True, None),
        ("", None),
        ("soon", None),
        (float("nan"), None),
    ],
)
def test_times(value: Any, seconds: float | None) -> None:
    assert read_time(value) == seconds


PROBLEMS: dict[str, tuple[dict[str, Any], tuple[Any, ...], bool]] = {
    "OpenAI's": (
        {"errors": {"data": [{"code": "duplicate_custom_id", "message": "twice", "line": 7}]}},
        ("duplicate_custom_id", "twice", 7),
        False,
    ),
    "a list": ({"errors": [{"code": "", "message": "Line 3 is bad"}]}, (None, "Line 3 is bad", 3), False),
    "a text": ({"error": "Failed to download input file"}, (None, "Failed to download input file", None), False),
    "a model": (
        {"errors": {"data": [{"code": "model_not_found", "message": "x"}]}},
        ("model_not_found", "x", None),
        True,
    ),
    "a full queue in words": (
        {"error": "Limit: 5 enqueued tokens"},
        ("token_limit_exceeded", "Limit: 5 enqueued tokens", None),
        False,
    ),
    "credit": ({"error": {"code": "billing_hard_limit", "message": "x"}}, ("billing_hard_limit", "x", None), True),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems_of_a_whole_batch(name: str) -> None:
    fields, expected, remedy = PROBLEMS[name]
    read = read_batch(OPENAI, {**batch("b1"), "status": "failed", **fields})
    assert read is not None
    (problem,) = read.problems
    assert (problem.code, problem.message, problem.line) == expected
    assert (problem.remedy is not None) is remedy


@pytest.mark.parametrize("errors", [None, {}, [], {"data": None}, {"object": "list", "data": []}, "", [None], 7])
def test_no_problems(errors: Any) -> None:
    read = read_batch(OPENAI, {**batch("b1"), "errors": errors})
    assert read is not None
    assert read.problems == ()


def test_a_line_that_counts_within_a_part_is_not_believed() -> None:
    read = read_batch(DIALECTS["together"], {"id": "b", "status": "FAILED", "error": "Line 2: Invalid JSON"})
    assert read is not None
    assert read.problems[0].line is None


# --- finding


FINDS: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "nothing": ([], []),
    "by labels": ([batch("b1", ref="f9", labels=OURS), batch("b2", ref="f8")], ["b1"]),
    "by input, without labels": ([batch("b1"), batch("b2", ref="f2")], ["b1"]),
    "another create of the same input": ([batch("b1", labels={**OURS, "nonce": "n0"})], []),
    "labels that were cut down": ([batch("b1", labels={"nonce": "n1"})], ["b1"]),
    "labels of somebody else": ([batch("b1", labels={"team": "x"})], ["b1"]),
    "long before": ([batch("b1", at=START - 1000)], []),
    "a clock that is slow": ([batch("b1", at=START - 200)], ["b1"]),
    "surplus, oldest first": ([batch("b2", at=START + 5), batch("b1", at=START + 1)], ["b1", "b2"]),
}


@pytest.mark.parametrize("name", FINDS)
def test_which_batches_are_ours(name: str) -> None:
    listed, expected = FINDS[name]
    play = Play({"GET /v1/batches?limit=100": {"data": listed, "has_more": False}})
    found = run(play, lambda service: service.find("f1", OURS, START))
    assert [each.id for each in found] == expected


def pages(*listed: list[dict[str, Any]]) -> dict[str, Any]:
    """The pages of a list as OpenAI has them."""
    script: dict[str, Any] = {}
    after = ""
    for number, page in enumerate(listed):
        last = page[-1]["id"]
        more = number < len(listed) - 1
        script[f"GET /v1/batches?limit=100{after}"] = {"data": page, "last_id": last, "has_more": more}
        after = f"&after={last}"
    return script


def test_finding_ends_once_a_list_with_the_newest_first_is_older() -> None:
    new, old, older = [batch("a", ref="x", at=START + 50)], [batch("b", ref="x", at=START - 5000)], [batch("c")]
    play = Play(pages(new, old, older))
    assert run(play, lambda service: service.find("f1", OURS, START)) == []
    assert len(play.seen) == 2


def test_finding_reads_every_page_of_a_list_without_order() -> None:
    listed = [[batch("a", ref="x", at=START - 5000)], [batch("b", ref="x", at=START - 9000)], [batch("c", labels=OURS)]]
    mixed = [[*listed[0], batch("d", ref="x", at=START + 9)], listed[1], listed[2]]
    play = Play(pages(*mixed))
    assert [each.id for each in run(play, lambda service: service.find("f1", OURS, START))] == ["c"]


def test_a_page_that_names_itself_ends_the_list() -> None:
    page = {"data": [batch("b1", ref="x")], "last_id": "b1", "has_more": True}
    play = Play({"GET /v1/batches?limit=100": page, "GET /v1/batches?limit=100&after=b1": page})
    assert run(play, lambda service: service.find("f1", OURS, START)) == []
    assert len(play.seen) == 2


def test_a_list_by_cursor_is_read_to_its_end() -> None:
    root = "GET /openai/v1/batches?limit=100"
    play = Play(
        {
            root: {"data": [batch("b1", ref="x")], "paging": {"next_cursor": "c/2"}},
            f"{root}&cursor=c%2F2": {"data": [batch("b2", labels=OURS)], "paging": {"next_cursor": None}},
        }
    )
    found = run(play, lambda service: service.find("f1", OURS, START), provider=PROFILES["groq"])
    assert [each.id for each in found] == ["b2"]


def test_a_list_by_numbers_of_pages_is_read_to_its_end() -> None:
    root = "GET /v1/batch/jobs?page_size=100"
    many = [{**batch(f"x{number}"), "input_files": ["x"], "input_file_id": None} for number in range(100)]
    ours = {**batch("b2"), "input_files": ["f1"], "input_file_id": None}
    play = Play({root: {"data": many, "total": 101}, f"{root}&page=1": {"data": [ours], "total": 101}})
    found = run(play, lambda service: service.find("f1", OURS, START), provider=PROFILES["mistral"])
    assert [each.id for each in found] == ["b2"]


# --- looking at many


def test_one_list_tells_of_many_batches() -> None:
    listed = [batch(f"b{number}") for number in range(50)]
    play = Play({"GET /v1/batches?limit=100": {"data": listed, "has_more": True, "last_id": "b49"}})
    found = run(play, lambda service: service.poll([f"b{number}" for number in range(40)]))
    assert len(found) == 40
    assert play.lines == ["GET /v1/batches?limit=100"]


def test_groq_is_asked_by_ids_200_at_a_time() -> None:
    names = sorted(f"b{number:03}" for number in range(201))
    first = "&".join(f"id={name}" for name in names[:200])
    root = "GET /openai/v1/batches?"
    play = Play(
        {
            f"{root}{first}": {"data": [batch(name) for name in names[:200]]},
            f"{root}id={names[200]}": {"data": [batch(names[200])]},
        }
    )
    assert len(run(play, lambda service: service.poll(names), provider=PROFILES["groq"])) == 201


def test_ids_are_quoted_in_paths() -> None:
    play = Play({"GET /v1/batches/a%2Fb%3Fc": batch("a/b?c")})
    assert set(run(play, lambda service: service.poll(["a/b?c"]))) == {"a/b?c"}


# --- cancelling


CANCELS: dict[str, tuple[Any, Any, type[Exception] | None]] = {
    "accepted": ({"id": "b1", "status": "cancelling"}, None, None),
    "ended already": ((409, {"error": "already in terminal state"}), {**batch("b1"), "status": "completed"}, None),
    "is being cancelled": ((400, {"error": "no"}), {**batch("b1"), "status": "CANCELING"}, None),
    "refused": ((400, {"error": "not now"}), batch("b1"), Unavailable),
    "down": ((503, {}), batch("b1"), Unavailable),
    "unknown": ((404, {"error": "not found"}), (404, {}), Gone),
    "no such route": ((404, b"404 page not found"), batch("b1"), NeedsHuman),
}


@pytest.mark.parametrize("name", CANCELS)
def test_cancelling(name: str) -> None:
    answer, look, kind = CANCELS[name]
    play = Play({"POST /v1/batches/b1/cancel": answer, "GET /v1/batches/b1": look})
    if kind is None:
        run(play, lambda service: service.cancel("b1"))
        return
    with pytest.raises(kind):
        run(play, lambda service: service.cancel("b1"))


# --- uploads


def upload(play: Play, tmp_path: Path, *, provider: Provider = PROFILES["openai"]) -> Any:
    path = tmp_path / "lines"
    path.write_bytes(b"{}\n")
    return run(play, lambda service: service.upload("a.jsonl", path), provider=provider)


AZURE = Provider(name="custom", base_url="https://r.openai.azure.com/openai/v1", identity="azure")


def test_an_upload_waits_until_the_file_can_be_used(tmp_path: Path) -> None:
    looks = Turns([(404, {}), {"status": "pending"}, {"status": "uploaded"}, {"status": "processed"}])
    play = Play({"POST /openai/v1/files": {"id": "f1", "status": "pending"}, "GET /openai/v1/files/f1": looks})
    assert upload(play, tmp_path, provider=AZURE) == "f1"
    assert len(play.seen) == 5


def test_a_file_that_is_never_processed_ends_in_words(tmp_path: Path) -> None:
    play = Play({"POST /openai/v1/files": {"id": "f1"}, "GET /openai/v1/files/f1": {"status": "pending"}})
    play.script["POST /openai/v1/files"] = {"id": "f1", "status": "pending"}
    with pytest.raises(Unavailable, match="not processed a file for 600 s"):
        upload(play, tmp_path, provider=AZURE)


def test_a_file_that_is_refused_after_its_upload_names_its_line(tmp_path: Path) -> None:
    refused = {"id": "f1", "status": "error", "status_details": f"Invalid JSON on line 4 {KEY}"}
    with pytest.raises(BadLine) as caught:
        upload(Play({"POST /v1/files": refused}), tmp_path)
    assert caught.value.line == 4
    assert KEY not in str(caught.value)


def test_only_one_provider_makes_us_wait_for_processed(tmp_path: Path) -> None:
    play = Play({"POST /v1/files": {"data": {"id": "f1", "status": "uploaded"}}})
    assert upload(play, tmp_path) == "f1"


# --- downloads


LINE = b'{"custom_id":"%d","response":{"status_code":200,"body":{}},"error":null}\n'
CONTENT = b"".join(LINE % number for number in range(100))
PART = 1000


def part(request: httpx.Request) -> httpx.Response:
    """The rest of the content from where the request asks for it."""
    start = int(request.headers["range"].removeprefix("bytes=").removesuffix("-"))
    headers = {"content-range": f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"}
    return httpx.Response(206, content=CONTENT[start:], headers=headers)


def cut(content: bytes, **headers: str) -> httpx.Response:
    return httpx.Response(200, stream=Cut(content), headers=headers)


def moved(place: str) -> httpx.Response:
    return httpx.Response(302, headers={"location": place})


class Pieces(httpx.AsyncByteStream):
    def __init__(self, content: bytes) -> None:
        self.content = content

    async def __aiter__(self) -> Any:
        for start in range(0, len(self.content), PART):
            yield self.content[start : start + PART]


def unknown_ranges(_: httpx.Request) -> httpx.Response:
    return httpx.Response(200, content=CONTENT)


def wrong_range(_: httpx.Request) -> httpx.Response:
    return httpx.Response(206, content=CONTENT, headers={"content-range": f"bytes 0-{len(CONTENT) - 1}/*"})


DOWNLOADS: dict[str, tuple[Any, int, type[Exception] | None]] = {
    "whole": (Turns([(200, CONTENT)]), 1, None),
    "in pieces": (Turns([httpx.Response(200, stream=Pieces(CONTENT))]), 1, None),
    "cut and gone on with": (Turns([cut(CONTENT[:PART]), part]), 2, None),
    "cut twice": (Turns([cut(CONTENT[:PART], etag='"a"'), httpx.ReadError("reset"), part]), 3, None),
    "no ranges": (Turns([cut(CONTENT[:PART]), unknown_ranges]), 2, None),
    "another range than asked for": (Turns([cut(CONTENT[:PART]), wrong_range, (200, CONTENT)]), 3, None),
    "nothing behind what is there": (Turns([cut(CONTENT), httpx.Response(416), (200, CONTENT)]), 3, None),
    "packed and cut": (
        Turns([cut(b"", **{"content-encoding": "gzip"}), httpx.Response(200, content=CONTENT)]),
        2,
        None,
    ),
    "packed": (
        Turns([httpx.Response(200, content=gzip.compress(CONTENT), headers={"content-encoding": "gzip"})]),
        1,
        None,
    ),
    "too short at first": (Turns([(200, CONTENT[:PART]), (200, CONTENT)]), 2, None),
    "never to be had": (Turns([httpx.ConnectError("refused")]), 5, Unavailable),
    "a web page": (Turns([(200, b"  <!doctype html><html>Sign in</html>")]), 1, Unavailable),
    "down": (Turns([(503, b"")]), 1, Unavailable),
    "gone": (Turns([(404, b"")]), 1, Gone),
    "still growing": (
        Turns([httpx.Response(200, content=CONTENT, headers={"X-Incomplete": "true"})]),
        1,
        TornLine,
    ),
    "in circles": (Turns([moved("/v1/files/out/content")]), 5, Unavailable),
}


def harvest(play: Play, tmp_path: Path, *refs: str) -> tuple[list[str | None], Exception | None]:
    """The ids that the results of a batch tell, and the exception behind them."""

    async def use(service: BatchService) -> tuple[list[str | None], Exception | None]:
        found: list[str | None] = []
        try:
            async for line in service.results(RemoteBatch("b1", BatchStatus.EXPIRED, result_refs=refs), tmp_path):
                found.append(line.custom_id)  # noqa: PERF401 - what came before an exception counts
        except Exception as error:  # noqa: BLE001 - what the test is about
            return found, error
        return found, None

    found: tuple[list[str | None], Exception | None] = run(play, use)
    assert not list(tmp_path.iterdir()), "nothing is left of a download"
    return found


@pytest.mark.parametrize("name", DOWNLOADS)
def test_downloads(name: str, tmp_path: Path) -> None:
    answers, asked, kind = DOWNLOADS[name]
    play = Play({"GET /v1/files/out": {"bytes": len(CONTENT)}, "GET /v1/files/out/content": Turns(answers)})
    found, error = harvest(play, tmp_path, "out")
    assert (type(error) if error else None) is kind, repr(error)
    assert found == ([str(number) for number in range(100)] if kind in {None, TornLine} else [])
    assert len(play.bodies("GET /v1/files/out/content")) == asked


def test_a_part_is_asked_for_with_what_tells_that_the_content_is_the_same(tmp_path: Path) -> None:
    answers = Turns([cut(CONTENT[:PART], etag='"abc"'), part])
    play = Play({"GET /v1/files/out": (500, {}), "GET /v1/files/out/content": answers})
    harvest(play, tmp_path, "out")
    first, second = (each.headers for each in play.seen if each.target.endswith("content"))
    assert "range" not in first
    assert (second["range"], second["if-range"]) == (f"bytes={PART}-", '"abc"')
    assert second["accept-encoding"] == "identity"


def test_a_size_that_the_provider_tells_wrongly_is_not_believed_for_ever(tmp_path: Path) -> None:
    play = Play({"GET /v1/files/out": {"bytes": 5}, "GET /v1/files/out/content": (200, CONTENT)})
    found, error = harvest(play, tmp_path, "out")
    assert (len(found), error) == (100, None)
    assert len(play.bodies("GET /v1/files/out/content")) == 2


def test_another_host_gets_no_key(tmp_path: Path) -> None:
    play = Play(
        {
            "GET /v1/files/out": {"bytes": len(CONTENT)},
            "GET /v1/files/out/content": moved("https://storage.example/x?sig=1"),
            "GET /x?sig=1": (200, CONTENT),
        }
    )
    found, error = harvest(play, tmp_path, "out")
    assert (len(found), error) == (100, None)
    (stored,) = (each for each in play.seen if each.target == "/x?sig=1")
    assert stored.headers["host"] == "storage.example"
    assert KEY not in str(stored.headers)


def test_every_file_is_read_before_damage_is_told(tmp_path: Path) -> None:
    play = Play(
        {
            "GET /v1/files/out": {"bytes": 30},
            "GET /v1/files/out/content": (200, b'{"custom_id":"1","response":nul'),
            "GET /v1/files/gone": (404, {}),
            "GET /v1/files/gone/content": (404, {}),
            "GET /v1/files/err": {},
            "GET /v1/files/err/content": (200, LINE % 7),
        }
    )
    found, error = harvest(play, tmp_path, "out", "gone", "err")
    assert found == ["7"]
    assert isinstance(error, TornLine)
    found, error = harvest(play, tmp_path, "gone", "err")
    assert found == ["7"]
    assert isinstance(error, Gone)


def test_a_key_that_a_result_repeats_is_taken_out(tmp_path: Path) -> None:
    line = b'{"custom_id":"1","response":{"status_code":401,"body":{"error":"bad key %s"}}}\n' % KEY.encode()
    play = Play({"GET /v1/files/out": {}, "GET /v1/files/out/content": (200, line)})

    async def use(service: BatchService) -> list[bytes]:
        ended = RemoteBatch("b1", BatchStatus.COMPLETED, result_refs=("out",))
        return [each.body async for each in service.results(ended, tmp_path)]

    assert run(play, use) == [b'{"error":"bad key ***"}']
