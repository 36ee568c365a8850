"""What a client of the demo provider's Batch API sees of each fault."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import httpx
import openai
import pytest

from batchchat.demo import BATCH_FAULTS
from tests.integration.batch_driver import Driver, driving, input_file, request_line
from tests.thorough import one_in

Case = Callable[[], None]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    """Add a case, whose name is the fault's; `__` parts names of faults that are looked at together."""
    for name in function.__name__.split("__"):
        CASES[name] = function
    return function


def status_of(call: Callable[[], Any]) -> int | str:
    """Return the HTTP status of a call, or `cut` if the connection was closed."""
    try:
        call()
    except openai.APIStatusError as error:
        return error.status_code
    except openai.APIConnectionError:
        return "cut"
    return 200


def ids(lines: list[dict[str, Any]]) -> Counter[str | None]:
    return Counter(line["custom_id"] for line in lines)


def rows(number: int) -> Counter[str | None]:
    return Counter(f"row-{index}" for index in range(number))


def errors(lines: list[dict[str, Any]]) -> set[str]:
    return {line["error"]["code"] for line in lines}


# Limits


@case
def max_lines() -> None:
    with driving(max_lines=3) as demo:
        assert demo.run(3).status == "completed"
        assert demo.run(4).errors.data[0].code == "too_many_tasks"


@case
def max_bytes__too_large_status() -> None:
    for faults, status in (({"max_bytes": 500}, 413), ({"max_bytes": 500, "too_large_status": 400}, 400)):
        with driving(**faults) as demo:
            assert demo.upload(b"x" * 500).bytes == 500
            with pytest.raises(openai.APIStatusError, match="too large") as caught:
                demo.upload(b"x" * 501)
            assert caught.value.status_code == status
            assert status_of(lambda: demo.upload(b"x" * 100_000)) == status


@case
def queue_tokens() -> None:
    lines = [request_line(number) for number in range(3)]
    tokens = len(input_file(lines)) // 4
    with driving(seconds=0.4, queue_tokens=2 * tokens) as demo:
        first, second, third = (demo.create(lines) for _ in range(3))
        assert [batch.status for batch in (first, second, third)] == ["validating"] * 3
        third = demo.ended(third)
        assert third.errors.data[0].code == "token_limit_exceeded"
        assert f"Limit: {2 * tokens} enqueued tokens" in third.errors.data[0].message
        demo.ended(first)
        assert demo.run(lines).status == "completed"


@case
def queue_status() -> None:
    for status in (400, 429):
        with driving(seconds=60, queue_tokens=100, queue_status=status) as demo:
            demo.create(1)
            with pytest.raises(openai.APIStatusError, match="enqueued tokens") as caught:
                demo.create(2)
            assert (caught.value.status_code, caught.value.code) == (status, "token_limit_exceeded")
            assert demo.server.stats().batch.created == 1


# Files


@case
def upload_lost() -> None:
    with driving(upload_lost=1) as demo:
        assert status_of(lambda: demo.upload(b"{}\n", "a.jsonl")) == "cut"
        assert [file.filename for file in demo.client.files.list()] == ["a.jsonl"]
        assert status_of(lambda: demo.upload(b"{}\n")) == 200


@case
def upload_500() -> None:
    with driving(upload_500=1) as demo:
        assert status_of(lambda: demo.upload(b"{}\n")) == 500
        assert list(demo.client.files.list()) == []
        assert status_of(lambda: demo.upload(b"{}\n")) == 200


@case
def file_late() -> None:
    with driving(file_late=0.3) as demo:
        file = demo.upload(b"{}\n")
        assert status_of(lambda: demo.client.files.retrieve(file.id)) == 404
        eventually(lambda: status_of(lambda: demo.client.files.retrieve(file.id)) == 200)


@case
def file_slow() -> None:
    with driving(file_slow=0.3) as demo:
        file = demo.upload(input_file([request_line(1)]))
        assert file.status == "uploaded"
        with pytest.raises(openai.BadRequestError, match="not processed"):
            demo.create_of(file.id)
        eventually(lambda: demo.client.files.retrieve(file.id).status == "processed")
        assert demo.ended(demo.create_of(file.id)).status == "completed"


def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


# Create


@case
def create_lost__create_500() -> None:
    for fault, seen in (("create_lost", "cut"), ("create_500", 500)):
        with driving(**{fault: 1}) as demo:
            assert status_of(lambda: demo.create(2, metadata={"chunk": "a"})) == seen
            (batch,) = demo.client.batches.list()
            assert batch.metadata == {"chunk": "a"}
            assert len(demo.results(demo.ended(batch))) == 2
            assert status_of(lambda: demo.create(2)) == 200
            assert demo.server.stats().batch.faults == {fault: 1}


@case
def create_slow() -> None:
    with driving(create_slow=30) as demo:
        impatient = demo.client.with_options(timeout=0.5)
        file = demo.upload(input_file([request_line(1)]))
        with pytest.raises(openai.APITimeoutError):
            Driver(demo.server, impatient).create_of(file.id)
        assert [batch.input_file_id for batch in demo.client.batches.list()] == [file.id]


@case
def create_dropped__create_503__create_429__create_400__create_402() -> None:
    for fault, seen in (
        ("create_dropped", "cut"),
        ("create_503", 503),
        ("create_429", 429),
        ("create_400", 400),
        ("create_402", 402),
    ):
        with driving(**{fault: 2}) as demo:
            assert [status_of(lambda: demo.create(1)) for _ in range(3)] == [seen, seen, 200]
            assert demo.server.stats().batch.created == 1


# Looking for batches


@case
def batch_late() -> None:
    with driving(batch_late=2) as demo:
        batch = demo.create(1)
        assert [status_of(lambda: demo.client.batches.retrieve(batch.id)) for _ in range(3)] == [404, 404, 200]


@case
def list_late() -> None:
    with driving(list_late=0.5) as demo:
        batch = demo.create(1)
        assert list(demo.client.batches.list()) == []
        eventually(lambda: [one.id for one in demo.client.batches.list()] == [batch.id])


@case
def batch_gone() -> None:
    with driving(seconds=0.2, batch_gone=1) as demo:
        batch = demo.create(1)
        eventually(lambda: status_of(lambda: demo.client.batches.retrieve(batch.id)) == 404)
        assert list(demo.client.batches.list()) == []
        assert demo.run(1).status == "completed"


@case
def poll_500__poll_401__poll_429() -> None:
    for status in (500, 401, 429):
        with driving(**{f"poll_{status}": 2}) as demo:
            batch = demo.create(1)
            assert status_of(partial(demo.client.batches.retrieve, batch.id)) == status
            assert status_of(demo.client.batches.list) == status
            assert demo.ended(batch).status == "completed"


# Running


@case
def queue_full() -> None:
    with driving(queue_full=1) as demo:
        (error,) = demo.run(2).errors.data
        assert (error.code, error.line) == ("token_limit_exceeded", None)
        assert demo.run(2).status == "completed"


@case
def bad_text__no_line_number() -> None:
    with driving(bad_text="charged 2 times") as demo:
        (error,) = demo.run(4).errors.data
        assert (error.code, error.line) == ("invalid_request", 3)
    with driving(bad_text="charged 2 times", no_line_number=1) as demo:
        assert demo.run(4).errors.data[0].line is None
        assert demo.run(2).status == "completed"


@case
def stuck_running__stuck_finalizing() -> None:
    for fault, status, done in (("stuck_running", "in_progress", 4), ("stuck_finalizing", "finalizing", 8)):
        with driving(**{fault: 1, "window": 0.5}) as demo:
            batch = demo.create(8)
            while batch.request_counts.completed < done:
                batch = demo.look(batch)
            assert batch.status == status
            batch = demo.ended(batch)
            assert (batch.status, batch.request_counts.completed) == ("expired", done)
            assert demo.run(8).status == "completed"


@case
def finalizing() -> None:
    with driving(finalizing=0.4) as demo:
        batch = demo.create(4)
        eventually(lambda: demo.look(batch).status == "finalizing")
        counts = demo.look(batch).request_counts
        assert counts.completed == counts.total == 4
        assert demo.ended(batch).status == "completed"


@case
def expire() -> None:
    with driving(expire=1) as demo:
        batch = demo.run(8)
        assert batch.status == "expired"
        assert batch.expired_at is not None
        assert batch.request_counts.model_dump() == {"total": 8, "completed": 4, "failed": 0}
        assert len(demo.lines(batch.output_file_id)) == 4
        assert errors(demo.lines(batch.error_file_id)) == {"batch_expired"}
        assert ids(demo.results(batch)) == rows(8)
        assert demo.run(8).status == "completed"
        assert demo.server.stats().batch.lines == 12


@case
def expire_empty() -> None:
    with driving(expire_empty=1) as demo:
        batch = demo.run(8)
        assert (batch.status, batch.output_file_id) == ("expired", None)
        assert ids(demo.lines(batch.error_file_id)) == rows(8)
        assert demo.server.stats().batch.lines == 0


@case
def window() -> None:
    with driving(seconds=1, window=0.5) as demo:
        batch = demo.run(20)
        assert batch.status == "expired"
        assert 0 < batch.request_counts.completed == len(demo.lines(batch.output_file_id)) < 20
        assert ids(demo.results(batch)) == rows(20)


@case
def unknown_status__counts_back__counts_null() -> None:
    with driving(seconds=0.4, unknown_status=1, counts_back=1) as demo:
        batch, told = demo.create(40), []
        while batch.status != "completed":
            batch = demo.look(batch)
            told.append((batch.status, batch.request_counts.completed))
    assert "warming_up" in dict(told)
    assert "in_progress" not in dict(told)
    assert any(before > after for (_, before), (_, after) in pairwise(told))
    with driving(counts_null=1) as demo:
        assert demo.run(2).request_counts.model_dump() == {"total": None, "completed": None, "failed": None}


# The end


def cancelled(demo: Driver, lines: int = 12) -> Any:
    batch = demo.create(lines)
    while batch.request_counts.completed < 3:
        batch = demo.look(batch)
    assert demo.client.batches.cancel(batch.id).status == "cancelling"
    batch = demo.ended(batch)
    assert batch.status == "cancelled"
    return batch


@case
def cancel_all() -> None:
    with driving(seconds=2, cancel_all=1) as demo:
        batch = cancelled(demo)
        assert ids(demo.lines(batch.output_file_id)) == rows(12)
        assert batch.error_file_id is None


@case
def cancel_none() -> None:
    with driving(seconds=2, cancel_none=1) as demo:
        batch = cancelled(demo)
        assert batch.output_file_id is None
        assert batch.request_counts.completed == 0
        left = demo.lines(batch.error_file_id)
        assert errors(left) == {"batch_cancelled"}
        assert len(left) == 12 - demo.server.stats().batch.lines < 12


@case
def cancel_missing() -> None:
    with driving(seconds=2, cancel_missing=1) as demo:
        batch = cancelled(demo)
        left = 12 - len(demo.lines(batch.output_file_id))
        assert len(demo.lines(batch.error_file_id)) == left - (left + 2) // 3


@case
def cancel_slow() -> None:
    with driving(seconds=2, cancel_slow=0.5) as demo:
        batch = cancelled(demo)
        assert batch.cancelled_at is not None


@case
def ids_late() -> None:
    with driving(ids_late=2) as demo:
        batch = demo.run(2)
        told = [batch.output_file_id] + [demo.look(batch).output_file_id for _ in range(2)]
        assert told[:2] == [None, None]
        assert told[2] is not None


@case
def all_failed() -> None:
    with driving(all_failed=1) as demo:
        batch = demo.run(4)
        assert (batch.status, batch.output_file_id) == ("completed", None)
        assert batch.request_counts.model_dump() == {"total": 4, "completed": 0, "failed": 4}
        assert [line["response"]["status_code"] for line in demo.lines(batch.error_file_id)] == [500] * 4
        assert demo.server.stats().batch.lines == 0
        assert demo.run(4).request_counts.completed == 4


@case
def error_file_empty() -> None:
    with driving(error_file_empty=1) as demo:
        assert demo.client.files.content(demo.run(2).error_file_id).read() == b""


@case
def error_in_output() -> None:
    with driving(error_in_output=1, line_500=0.5) as demo:
        batch = demo.run(20)
        assert batch.error_file_id is None
        assert batch.request_counts.failed > 0
        assert ids(demo.lines(batch.output_file_id)) == rows(20)


@case
def ids_empty__ids_absent() -> None:
    with driving(ids_empty=1) as demo:
        assert demo.run(2).error_file_id == ""
    with driving(ids_absent=1) as demo:
        batch = demo.run(2).to_dict()
        assert not {"error_file_id", "failed_at", "errors", "metadata"} & batch.keys()
        assert "output_file_id" in batch


# Lines


def lines_with(fault: str, share: float = 0.5, number: int = 30) -> tuple[Any, list[dict[str, Any]], bytes]:
    with driving(**{fault: share}) as demo:
        batch = demo.run(number)
        assert batch.status == "completed"
        content = demo.content(batch.output_file_id)
        again = demo.run(number)
        assert demo.content(again.output_file_id) != content
        return batch, demo.results(batch), content


@case
def line_missing() -> None:
    batch, results, _ = lines_with("line_missing")
    assert 0 < len(results) < 30
    assert batch.request_counts.completed == 30


@case
def line_twice() -> None:
    _, results, _ = lines_with("line_twice")
    assert set(ids(results).values()) == {1, 2}
    assert ids(results).keys() == rows(30).keys()


@case
def line_unknown__line_null() -> None:
    _, results, _ = lines_with("line_unknown")
    extra = ids(results) - rows(30)
    assert extra
    assert all(str(name).startswith("never-sent-") for name in extra)
    _, results, _ = lines_with("line_null")
    assert (ids(results) - rows(30)).keys() == {None}


@case
def line_429__line_500__line_status_0() -> None:
    for status in (429, 500, 0):
        batch, results, _ = lines_with(f"line_{status or 'status_0'}")
        found = Counter(result["response"]["status_code"] for result in results)
        assert found.keys() == {200, status}
        assert batch.request_counts.failed == (found[status] if status else 0)
        assert ids(results) == rows(30)


@case
def line_timeout() -> None:
    _, results, _ = lines_with("line_timeout")
    assert {result["error"]["code"] for result in results if result["response"] is None} == {"request_timeout"}


@case
def line_body_text__line_bare__line_no_usage() -> None:
    _, results, _ = lines_with("line_body_text")
    bodies = [result["response"]["body"] for result in results]
    assert {type(body) for body in bodies} == {str, dict}
    assert all("choices" in json.loads(body) for body in bodies if isinstance(body, str))
    _, results, _ = lines_with("line_bare")
    assert any(result["response"].get("object") == "chat.completion" for result in results)
    _, results, _ = lines_with("line_no_usage")
    assert {"usage" in result["response"]["body"] for result in results} == {True, False}


@case
def line_separators() -> None:
    _, results, content = lines_with("line_separators")
    assert "\u2028\u2029\u0085".encode() in content
    assert ids(results) == rows(30)


@case
def line_long() -> None:
    with driving(line_long=1_000_000) as demo:
        (result,) = demo.results(demo.run(1))
        assert len(result["response"]["body"]["choices"][0]["message"]["content"]) == 1_000_000


# Downloads


@case
def crlf__no_final_newline() -> None:
    with driving(crlf=1) as demo:
        content = demo.content(demo.run(3).output_file_id)
        assert content.count(b"\r\n") == content.count(b"\n") == 3
    for faults in ({"no_final_newline": 1}, {"no_final_newline": 1, "crlf": 1}):
        with driving(**faults) as demo:
            batch = demo.run(3)
            assert demo.content(batch.output_file_id).endswith(b"}")
            assert len(demo.lines(batch.output_file_id)) == 3


def download(demo: Driver, file_id: str, **headers: str) -> httpx.Response:
    found: httpx.Response = demo.http.get(f"{demo.server.base_url}/files/{file_id}/content", headers=headers)
    return found


@case
def download_torn__download_short__download_html__download_500() -> None:
    for fault in ("torn", "short", "html", "500"):
        with driving(**{f"download_{fault}": 1}) as demo:
            file_id = demo.run(20).output_file_id
            if fault == "torn":
                with pytest.raises(httpx.TransportError):
                    download(demo, file_id)
            else:
                spoiled = download(demo, file_id)
            whole = download(demo, file_id).content
            if fault == "short":
                assert spoiled.content == whole[: len(whole) // 2]
            elif fault != "torn":
                assert (spoiled.status_code, spoiled.text[:9]) == (
                    (200, "<!DOCTYPE") if fault == "html" else (500, '{"error":')
                )


@case
def no_range() -> None:
    with driving() as demo:
        file_id = demo.run(3).output_file_id
        whole, part = download(demo, file_id), download(demo, file_id, range="bytes=10-")
        assert (part.status_code, part.content) == (206, whole.content[10:])
    with driving(no_range=1) as demo:
        part = download(demo, demo.run(3).output_file_id, range="bytes=10-")
        assert (part.status_code, part.content[:1]) == (200, b"{")


@case
def file_gone() -> None:
    with driving(file_gone=1, line_500=0.5) as demo:
        batch = demo.run(20)
        assert status_of(lambda: demo.client.files.content(batch.output_file_id)) == 404
        assert demo.lines(batch.error_file_id)
        assert demo.lines(demo.run(20).output_file_id)


@pytest.mark.parametrize("name", one_in(5, [function.__name__ for function in dict.fromkeys(CASES.values())]))
def test_what_a_client_sees_of_a_fault(name: str) -> None:
    CASES[name.split("__", maxsplit=1)[0]]()


def test_every_fault_has_a_case() -> None:
    assert CASES.keys() == BATCH_FAULTS.keys()
