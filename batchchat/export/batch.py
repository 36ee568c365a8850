"""Records as the two files of a batch API: the lines of its output, and those of its errors.

    {"id": …, "custom_id": …, "response": {"status_code": 200, "request_id": …, "body": {…}}, "error": null}
    {"id": …, "custom_id": …, "response": {"status_code": 400, "request_id": …, "body": {"error": …}}, "error": null}
    {"id": …, "custom_id": …, "response": null, "error": {"code": …, "message": …}}

The body of an answer, a chat completion, is not stored: it is built anew from the record's columns. Its usage is the
record's: all answers that the request took, corrections included. A failure with an HTTP status of an error is told as
that response, any other under `error` with batchchat's own kind as its code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import orjson
import pyarrow as pa

from batchchat.sources import python_rows

COLUMNS = (
    *("custom_id", "key", "status", "completion", "finish_reason", "tool_calls", "refusal", "reasoning", "model"),
    *("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens"),
    *("error_kind", "error_message", "http_status", "finished_at", "request_id", "logprobs"),
    *("system_fingerprint", "service_tier"),
)
"""What a line is made of."""
_ERROR_STATUS = 400
_ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

Row = Mapping[str, Any]


def errors_file(target: Path) -> Path:
    """Return the file of the errors that belongs to an output file: `results.jsonl` → `results.errors.jsonl`."""
    return target.with_name(f"{target.stem}.errors{target.suffix}")


def write_batch_lines(output: IO[bytes], errors: IO[bytes], batch: pa.RecordBatch) -> None:
    """Write one line a record to the output, or to the errors if it failed."""
    here = batch.select([name for name in COLUMNS if name in batch.schema.names])
    for row in python_rows(here):
        file = output if row["status"] == "ok" else errors
        file.write(orjson.dumps(line(row), option=orjson.OPT_APPEND_NEWLINE))


def line(row: Row) -> dict[str, Any]:
    """Return a record as the line of a batch's output or errors. Its `custom_id` is the row's key, where it has one."""
    custom_id, status = row["custom_id"], row["http_status"]
    made = {"id": f"batch_req_{custom_id}", "custom_id": custom_id if row["key"] is None else row["key"]}
    if row["status"] == "ok":
        return {**made, "response": _response(row, 200, _completion(row)), "error": None}
    if status is not None and status >= _ERROR_STATUS:
        return {**made, "response": _response(row, status, {"error": _http_error(row, status)}), "error": None}
    return {**made, "response": None, "error": {"code": row["error_kind"], "message": row["error_message"] or ""}}


def _response(row: Row, status: int, body: dict[str, Any]) -> dict[str, Any]:
    return {"status_code": status, "request_id": row["request_id"] or f"req_{row['custom_id']}", "body": body}


def _http_error(row: Row, status: int) -> dict[str, Any]:
    kind = _ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"message": row["error_message"] or "", "type": kind, "param": None, "code": row["error_kind"]}


def _completion(row: Row) -> dict[str, Any]:
    finished = row["finished_at"]
    choice = {
        "index": 0,
        "message": _message(row),
        "logprobs": _logprobs(row.get("logprobs")),
        "finish_reason": row["finish_reason"] or "stop",
    }
    body = {
        "id": f"chatcmpl-{row['custom_id']}",
        "object": "chat.completion",
        "created": int(finished.timestamp()) if isinstance(finished, datetime) else 0,
        "model": row["model"] or "",
        "choices": [choice],
    }
    # Outputs of earlier versions have neither column.
    body |= {name: row[name] for name in ("system_fingerprint", "service_tier") if row.get(name) is not None}
    usage = _usage(row)
    return body if usage is None else {**body, "usage": usage}


def _message(row: Row) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": row["completion"], "refusal": row["refusal"]}
    if row["tool_calls"]:
        message["tool_calls"] = list(_calls(row["tool_calls"]))
    if row["reasoning"] is not None:
        message["reasoning_content"] = row["reasoning"]
    return message


def _calls(calls: list[Row]) -> Iterator[dict[str, Any]]:
    for number, call in enumerate(calls):
        function = {"name": call["name"] or "", "arguments": call["arguments"] or ""}
        yield {"id": call["id"] or f"call_{number}", "type": call["type"] or "function", "function": function}


def _usage(row: Row) -> dict[str, Any] | None:
    prompt, completion, total = row["prompt_tokens"], row["completion_tokens"], row["total_tokens"]
    if prompt is None and completion is None:
        return None
    usage = {"prompt_tokens": prompt or 0, "completion_tokens": completion or 0}
    usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"] if total is None else total
    details: dict[str, Any] = {}
    if row["cached_tokens"] is not None:
        details["prompt_tokens_details"] = {"cached_tokens": row["cached_tokens"]}
    if row["reasoning_tokens"] is not None:
        details["completion_tokens_details"] = {"reasoning_tokens": row["reasoning_tokens"]}
    return usage | details


def _logprobs(tokens: list[Row] | None) -> dict[str, Any] | None:
    if tokens is None:
        return None
    content = [{**_token(each), "top_logprobs": [_token(top) for top in each["top"] or ()]} for each in tokens]
    return {"content": content, "refusal": None}


def _token(told: Row) -> dict[str, Any]:
    token = told["token"] or ""
    return {"token": token, "logprob": told["logprob"], "bytes": list(token.encode("utf-8", "replace"))}
