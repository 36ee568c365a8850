"""Lines of batch files: what is written, and what is read from every shape of a result."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import anyio
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.engines.batch.service import ResultLine, TornLine
from batchchat.engines.batch.services.dialects import DIALECTS, OPENAI
from batchchat.engines.batch.services.lines import NoResult, encode_line, read_result, read_results
from batchchat.engines.batch.services.shapes import batches_in, next_page, read_batch
from tests.thorough import examples

URL = "/v1/chat/completions"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@examples(40)
@given(st.text(min_size=1), st.dictionaries(st.text(), JSON, max_size=5), st.sampled_from([URL, None]))
def test_a_line_holds_its_request_and_ends_with_its_only_line_break(
    custom_id: str, body: dict[str, object], url: str | None
) -> None:
    line = encode_line(custom_id, orjson.dumps(body), url=url)
    read = json.loads(line)
    expected = {name: value for name, value in body.items() if name not in {"stream", "stream_options"}}
    assert read["body"] == expected
    assert read["custom_id"] == custom_id
    assert read.get("url") == url
    # Readers that split text at every kind of line break see one line, too.
    assert line.endswith(b"}\n")
    assert len(line.decode().splitlines()) == 1


def test_stream_is_taken_out() -> None:
    body = (
        b'{"model":"m","stream":true,"stream_options":{"include_usage":true},'
        b'"messages":[{"content":"\\"stream\\": 1"}]}'
    )
    read = json.loads(encode_line("1", body, url=URL))["body"]
    assert read == {"model": "m", "messages": [{"content": '"stream": 1'}]}


def test_halves_of_pairs_and_line_breaks_never_reach_a_file() -> None:
    line = encode_line("1", b'{"a":"\\ud800 \\ud83d\\ude00",\r\n "b":1}', url=URL)
    assert json.loads(line)["body"] == {"a": "? 😀", "b": 1}
    assert line.count(b"\n") == 1


COMPLETION = b'{"id":"c","choices":[{"message":{"content":"yes"}}]}'
RESULTS: dict[str, tuple[bytes, ResultLine]] = {
    "an answer": (
        b'{"id":"x","custom_id":"1","response":{"status_code":200,"request_id":"r","body":%s},"error":null}'
        % COMPLETION,
        ResultLine("1", 200, COMPLETION, request_id="r"),
    ),
    "a body that is text": (
        orjson.dumps({"custom_id": "1", "response": {"status_code": 400, "body": '{"message":"no"}'}}),
        ResultLine("1", 400, b'{"message":"no"}'),
    ),
    "a response that is text": (
        orjson.dumps({"custom_id": "1", "response": '{"status_code":200,"body":{}}'}),
        ResultLine("1", 200, b"{}"),
    ),
    "a bare completion": (b'{"custom_id":"1","response":%s}' % COMPLETION, ResultLine("1", 200, COMPLETION)),
    "a status as text": (
        b'{"custom_id":"1","response":{"status_code":"429","body":{}}}',
        ResultLine("1", 429, b"{}"),
    ),
    "no id": (b'{"response":{"status_code":200,"body":{}}}', ResultLine(None, 200, b"{}")),
    "a null id": (b'{"custom_id":null,"response":{"status_code":200,"body":{}}}', ResultLine(None, 200, b"{}")),
    "an id that is a number": (
        b'{"custom_id":7,"response":{"status_code":200,"body":{}}}',
        ResultLine("7", 200, b"{}"),
    ),
    "expired": (
        b'{"custom_id":"1","response":null,"error":{"code":"batch_expired","message":"late"}}',
        ResultLine("1", None, b"", "batch_expired", "late"),
    ),
    "cancelled": (
        b'{"custom_id":"1","error":{"code":"batch_cancelled","message":"stop"}}',
        ResultLine("1", None, b"", "batch_cancelled", "stop"),
    ),
    "timed out": (
        b'{"custom_id":"1","response":{},"error":{"code":"request_timeout","message":"t"}}',
        ResultLine("1", None, b"", "request_timeout", "t"),
    ),
    "refused without a response": (
        b'{"custom_id":"1","response":null,"error":{"code":"invalid_request","message":"no"}}',
        ResultLine("1", 400, b'{"error":{"message":"no","code":"invalid_request"}}', "invalid_request", "no"),
    ),
    "a code that is a status": (
        b'{"custom_id":"1","response":null,"error":{"code":503,"message":"busy"}}',
        ResultLine("1", 503, b'{"error":{"message":"busy","code":"503"}}', "503", "busy"),
    ),
    "an error that is text": (
        b'{"custom_id":"1","response":null,"error":"boom"}',
        ResultLine("1", None, b"", None, "boom"),
    ),
    "nothing at all": (b'{"custom_id":"1","response":null,"error":null}', ResultLine("1", None, b"")),
    "an error beside a status": (
        b'{"custom_id":"1","response":{"status_code":404,"request_id":"r","body":null},"error":{"message":"gone"}}',
        ResultLine("1", 404, b'{"error":{"message":"gone"}}', request_id="r"),
    ),
    "an answer without a body": (
        b'{"custom_id":"1","response":{"status_code":200,"request_id":"r","body":null},"error":null}',
        ResultLine("1", None, b"", request_id="r"),
    ),
    "a failure without a body": (
        b'{"custom_id":"1","response":{"status_code":500,"request_id":"r"},"error":null}',
        ResultLine("1", 500, b"", request_id="r"),
    ),
    "a status of 0": (
        b'{"custom_id":"1","response":{"status_code":0,"body":{"error":{"code":"x","message":"cut"}}}}',
        ResultLine("1", None, b"", "x", "cut"),
    ),
    "a status of 0 and nothing else": (
        b'{"custom_id":"1","response":{"status_code":0,"body":{}}}',
        ResultLine("1", None, b"", "no_status", "{}"),
    ),
    "half a pair": (
        b'{"custom_id":"1","response":{"status_code":200,"body":{"a":"\\ud800"}}}',
        ResultLine("1", 200, b'{"a": "?"}'),
    ),
    "a number that is none": (
        b'{"custom_id":"1","response":{"status_code":200,"body":{"a":NaN}}}',
        ResultLine("1", 200, b'{"a":null}'),
    ),
}


@pytest.mark.parametrize("name", RESULTS)
def test_each_shape_of_a_result(name: str) -> None:
    line, expected = RESULTS[name]
    assert read_result(line) == expected


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b'"x"', b"<html>", b'{"error":{"message":"no"}}', b"\xff\xfe"])
def test_what_is_no_result(line: bytes) -> None:
    with pytest.raises(NoResult):
        read_result(line)


def read(path: Path) -> tuple[list[ResultLine], TornLine | None]:
    async def run() -> tuple[list[ResultLine], TornLine | None]:
        found = []
        try:
            async for line in read_results(path):
                found.append(line)  # noqa: PERF401 - what came before the exception counts
        except TornLine as error:
            return found, error
        return found, None

    return anyio.run(run)


def result(name: str, text: str = "yes") -> bytes:
    body = {"choices": [{"message": {"content": text}}]}
    line = {"custom_id": name, "response": {"status_code": 200, "body": body}, "error": None}
    return json.dumps(line, ensure_ascii=False).encode()


FILES: dict[str, tuple[bytes, list[str], str | None]] = {
    "none": (b"", [], None),
    "LF": (result("1") + b"\n" + result("2") + b"\n", ["1", "2"], None),
    "CRLF": (result("1") + b"\r\n" + result("2") + b"\r\n", ["1", "2"], None),
    "no final line break": (result("1") + b"\n" + result("2"), ["1", "2"], None),
    "a mark of byte order": (b"\xef\xbb\xbf" + result("1") + b"\n", ["1"], None),
    "blank lines": (b"\n" + result("1") + b"\n\n  \n", ["1"], None),
    "other line breaks in a text": (result("1", "a\u2028b\u2029c\x85d\x0be\x0cf 😀") + b"\n", ["1"], None),
    "a torn last line": (result("1") + b"\n" + result("2")[:20], ["1"], "1 of 2 lines"),
    "a damaged line in the middle": (result("1") + b"\n{oops\n" + result("3") + b"\n", ["1", "3"], "line 2"),
    "two results on a line": (result("1") + result("2") + b"\n" + result("3") + b"\n", ["3"], "line 1"),
    "a line of a megabyte": (result("1", "x" * 2**20) + b"\n" + result("2") + b"\n", ["1", "2"], None),
}


@pytest.mark.parametrize("name", FILES)
def test_result_files(name: str, tmp_path: Path) -> None:
    content, ids, message = FILES[name]
    path = tmp_path / "results"
    path.write_bytes(content)
    found, error = read(path)
    assert [line.custom_id for line in found] == ids
    assert (message is None) == (error is None)
    assert message is None or message in str(error)


def test_texts_with_line_breaks_come_back_whole(tmp_path: Path) -> None:
    text = "a\u2028b\u2029c\x85d"
    path = tmp_path / "results"
    path.write_bytes(result("1", text) + b"\n")
    (line,), _ = read(path)
    assert json.loads(line.body)["choices"][0]["message"]["content"] == text


FIELDS = st.sampled_from(
    (
        *("id", "custom_id", "response", "error", "errors", "data", "code", "message", "line", "status", "status_code"),
        *("body", "metadata", "created_at", "request_counts", "total", "output_file_id", "input_files", "paging"),
        *("next_cursor", "has_more", "last_id", "job", "request_id", "choices"),
    )
)
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(["completed", "200"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=6),
    max_leaves=20,
)


@examples(200)
@given(ANYTHING)
def test_whatever_a_provider_tells_is_read_or_refused(data: object) -> None:
    for dialect in (OPENAI, DIALECTS["mistral"], DIALECTS["together"]):
        read_batch(dialect, data)
        batches_in(dialect, data)
        next_page(dialect, data, 0)
    with contextlib.suppress(NoResult):
        line = read_result(json.dumps(data).encode())
        assert line.status is None or 100 <= line.status < 600
        assert isinstance(line.body, bytes)


@pytest.mark.parametrize("depth", [300, 1_000, 1_020, 2_000, 100_000])
def test_a_result_that_is_nested_without_end_is_damaged(depth: int) -> None:
    nested = b"[" * depth + b"]" * depth
    with contextlib.suppress(NoResult):
        read_result(b'{"custom_id":"1","response":{"status_code":200,"body":%s}}' % nested)
