"""Each dialect of the Batch API through one whole batch: the requests exactly, and what is read from the answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from trio.testing import MockClock

from batchchat.engines.batch.service import BatchProblem, BatchStatus, RemoteBatch, ResultLine
from batchchat.engines.batch.services import batch_terms, open_service, service_name
from batchchat.engines.batch.services.dialects import DIALECTS
from batchchat.errors import UsageError
from batchchat.providers import BATCH_TERMS, DEMO, PROFILES, Provider
from tests.batch_play import Options, Play, Turns
from tests.docs import table

KEY = "sk-0123456789abcdef"
LABELS = {"batchchat_job": "j", "nonce": "n1"}
NAME = "job-ab12.jsonl"
BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
COMPLETION = {"id": "c", "object": "chat.completion", "choices": [{"message": {"content": "yes"}}]}


def dump(value: object) -> bytes:
    return orjson.dumps(value) + b"\n"


def openai_batch(name: str = "b1", **fields: Any) -> dict[str, Any]:
    batch = {
        "id": name,
        "object": "batch",
        "endpoint": "/v1/chat/completions",
        "errors": None,
        "input_file_id": "file-1",
        "completion_window": "24h",
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": 1_700_000_000,
        "expires_at": 1_700_086_400,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": LABELS,
    }
    return batch | fields


ANSWER_LINE = {
    "id": "batch_req_1",
    "custom_id": "1",
    "response": {"status_code": 200, "request_id": "r1", "body": COMPLETION},
    "error": None,
}
REFUSED_LINE = {
    "id": "batch_req_2",
    "custom_id": "2",
    "response": {"status_code": 400, "request_id": "r2", "body": {"error": {"message": "too long"}}},
    "error": None,
}
ANSWERED = ResultLine("1", 200, orjson.dumps(COMPLETION), request_id="r1")
REFUSED = ResultLine("2", 400, b'{"error":{"message":"too long"}}', request_id="r2")


@dataclass
class Case:
    """One dialect: the provider, what it answers, and what is expected of requests and readings.

    `created` and `ended` are the batch right after create and at its end, as the service should read them (without
    `raw`).
    """

    provider: Provider
    script: dict[str, Any]
    requests: list[str]
    form: dict[str, Any]
    body: dict[str, Any]
    line: bytes
    created: RemoteBatch
    ended: RemoteBatch
    results: list[ResultLine]
    header: tuple[str, str] = ("authorization", f"Bearer {KEY}")
    options: Options = field(default_factory=Options)
    media_type: str = "application/jsonl"
    jobs: str = "/batches"


def custom(url: str) -> Provider:
    return Provider(name="custom", base_url=url, identity=url, api_key_env="MY_KEY")


LINE = (
    b'{"custom_id":"1","method":"POST","url":"/v1/chat/completions","body":'
    b'{"model":"m","messages":[{"role":"user","content":"hi"}]}}\n'
)
FILE = {"id": "file-1", "object": "file", "bytes": 5, "filename": NAME, "purpose": "batch", "status": "processed"}
WAITING = RemoteBatch(
    "b1",
    BatchStatus.VALIDATING,
    total=0,
    completed=0,
    failed=0,
    input_ref="file-1",
    labels=LABELS,
    created_at=1_700_000_000.0,
    expires_at=1_700_086_400.0,
)
DONE = RemoteBatch(
    "b1",
    BatchStatus.COMPLETED,
    total=2,
    completed=1,
    failed=1,
    result_refs=("out", "err"),
    input_ref="file-1",
    labels=LABELS,
    created_at=1_700_000_000.0,
    expires_at=1_700_086_400.0,
)
ENDED = openai_batch(
    status="completed",
    output_file_id="out",
    error_file_id="err",
    request_counts={"total": 2, "completed": 1, "failed": 1},
)
BODY_SENT = {
    "input_file_id": "file-1",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
    "metadata": LABELS,
}


def like_openai(root: str, **changes: Any) -> dict[str, Any]:
    """What a provider answers that speaks as OpenAI does."""
    script: dict[str, Any] = {
        f"GET {root}/batches?limit=1": {"object": "list", "data": [], "has_more": False},
        f"POST {root}/files": FILE,
        f"POST {root}/batches": openai_batch(),
        f"GET {root}/batches/b1": ENDED,
        f"GET {root}/batches?limit=100": {"object": "list", "data": [openai_batch()], "has_more": False},
        f"GET {root}/files/out": {"id": "out", "bytes": len(dump(ANSWER_LINE))},
        f"GET {root}/files/out/content": (200, dump(ANSWER_LINE)),
        f"GET {root}/files/err": {"id": "err", "bytes": len(dump(REFUSED_LINE))},
        f"GET {root}/files/err/content": (200, dump(REFUSED_LINE)),
        f"POST {root}/batches/b1/cancel": openai_batch(status="cancelling"),
        f"DELETE {root}/files/file-1": {"id": "file-1", "object": "file", "deleted": True},
    }
    return script | changes


def steps(
    root: str, *, upload: str = "/files", jobs: str = "/batches", check: str = "?limit=1", many: str
) -> list[str]:
    """The requests of a whole batch, in their order."""
    return [
        f"GET {root}{jobs}{check}",
        f"POST {root}{upload}",
        f"POST {root}{jobs}",
        f"GET {root}{jobs}{many}",
        f"GET {root}{jobs}/b1",
        f"GET {root}/files/out",
        f"GET {root}/files/out/content",
        f"GET {root}/files/err",
        f"GET {root}/files/err/content",
        f"POST {root}{jobs}/b1/cancel",
        f"DELETE {root}/files/file-1",
    ]


MISTRAL_JOB = {
    "id": "b1",
    "object": "batch",
    "input_files": ["file-1"],
    "metadata": LABELS,
    "endpoint": "/v1/chat/completions",
    "model": "m",
    "output_file": None,
    "error_file": None,
    "errors": [],
    "status": "QUEUED",
    "created_at": 1_700_000_000,
    "total_requests": 0,
    "completed_requests": 0,
    "succeeded_requests": 0,
    "failed_requests": 0,
}
MISTRAL_ERROR = {
    "id": "batch-1-2",
    "custom_id": "2",
    "response": {"status_code": 400, "body": '{"object":"error","message":"too long","code":"3310"}'},
    "error": None,
}
TOGETHER_JOB = {
    "id": "b1",
    "input_file_id": "file-1",
    "file_size_bytes": 5,
    "status": "VALIDATING",
    "job_deadline": "2023-11-15T22:13:20Z",
    "created_at": "2023-11-14T22:13:20Z",
    "endpoint": "/v1/chat/completions",
    "progress": 0,
}
TOGETHER_ERROR = {"id": "br_2", "custom_id": "2", "error": {"code": "batch_client_error", "message": "stop: too many"}}
TOGETHER_WAITING = RemoteBatch(
    "b1",
    BatchStatus.VALIDATING,
    input_ref="file-1",
    created_at=1_700_000_000.0,
    expires_at=1_700_086_400.0,
)
AZURE_JOB = openai_batch(
    status="Validating",
    created_at="2023-11-14T22:13:20.000Z",
    endpoint=None,
    output_file_id="",
    error_file_id="",
    request_counts={"total": None, "completed": None, "failed": None},
)
DOUBLEWORD_JOB = {
    "id": "b1",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "input_file_id": "file-1",
    "completion_window": "1h",
    "status": "in_progress",
    "created_at": 1_700_000_000,
    "request_counts": {"total": 2, "completed": 0, "failed": 0},
}


def _with(batch: RemoteBatch, **changes: Any) -> RemoteBatch:
    fields = {name: getattr(batch, name) for name in batch.__slots__}
    return RemoteBatch(**{**fields, **changes})


CASES: dict[str, Case] = {
    "openai": Case(
        PROFILES["openai"],
        like_openai("/v1"),
        steps("/v1", many="?limit=100"),
        {"purpose": "batch"},
        BODY_SENT,
        LINE,
        WAITING,
        DONE,
        [ANSWERED, REFUSED],
    ),
    "an address of one's own": Case(
        custom("http://llm.example:8000/v1"),
        like_openai("/v1"),
        steps("/v1", many="?limit=100"),
        {"purpose": "batch"},
        {**BODY_SENT, "completion_window": "48h"},
        LINE,
        WAITING,
        DONE,
        [ANSWERED, REFUSED],
        options=Options(window="48h"),
    ),
    "azure": Case(
        custom("https://res.openai.azure.com/openai/v1"),
        like_openai(
            "/openai/v1",
            **{
                "POST /openai/v1/files": {**FILE, "status": "pending"},
                "GET /openai/v1/files/file-1": Turns([{**FILE, "status": "uploaded"}, FILE]),
                "POST /openai/v1/batches": AZURE_JOB,
                "GET /openai/v1/batches?limit=100": {"data": [AZURE_JOB], "has_more": False},
                "GET /openai/v1/files/err": {"id": "err", "bytes": 0},
                "GET /openai/v1/files/err/content": (200, b""),
            },
        ),
        [
            *steps("/openai/v1", many="?limit=100")[:2],
            "GET /openai/v1/files/file-1",
            "GET /openai/v1/files/file-1",
            *steps("/openai/v1", many="?limit=100")[2:],
        ],
        {"purpose": "batch"},
        {**BODY_SENT, "endpoint": "/chat/completions"},
        LINE.replace(b"/v1/chat/completions", b"/chat/completions"),
        _with(WAITING, total=None, completed=None, failed=None, expires_at=None),
        _with(DONE, expires_at=None),
        [ANSWERED],
        header=("api-key", KEY),
        media_type="application/json",
    ),
    "groq": Case(
        PROFILES["groq"],
        like_openai(
            "/openai/v1",
            **{
                "GET /openai/v1/batches?id=b1&id=b2&id=b3": {"object": "list", "data": [openai_batch()]},
                "GET /openai/v1/batches/b1": {
                    **ENDED,
                    "errors": [{"code": "invalid_method", "message": "Invalid method at line 3", "param": "method"}],
                },
            },
        ),
        steps("/openai/v1", many="?id=b1&id=b2&id=b3"),
        {"purpose": "batch"},
        {**BODY_SENT, "completion_window": "7d"},
        LINE,
        WAITING,
        _with(DONE, problems=(BatchProblem("invalid_method", "Invalid method at line 3", 3),)),
        [ANSWERED, REFUSED],
        options=Options(window="7d"),
    ),
    "mistral": Case(
        PROFILES["mistral"],
        {
            "GET /v1/batch/jobs?page_size=1": {"object": "list", "data": [], "total": 0},
            "POST /v1/files": {**FILE, "num_lines": 1, "sample_type": "batch_request", "expires_at": None},
            "POST /v1/batch/jobs": MISTRAL_JOB,
            "GET /v1/batch/jobs?page_size=100": {"object": "list", "data": [MISTRAL_JOB], "total": 1},
            "GET /v1/batch/jobs/b1": {
                **MISTRAL_JOB,
                "status": "SUCCESS",
                "output_file": "out",
                "error_file": "err",
                "errors": [{"message": "HTTP Error, status code: 400", "count": 1}],
                "total_requests": 2,
                "completed_requests": 2,
                "succeeded_requests": 1,
                "failed_requests": 1,
            },
            "GET /v1/files/out": {"id": "out", "bytes": len(dump(ANSWER_LINE))},
            "GET /v1/files/out/content": (200, dump(ANSWER_LINE)),
            "GET /v1/files/err": {"id": "err", "bytes": len(dump(MISTRAL_ERROR))},
            "GET /v1/files/err/content": (200, dump(MISTRAL_ERROR)),
            "POST /v1/batch/jobs/b1/cancel": {**MISTRAL_JOB, "status": "CANCELLATION_REQUESTED"},
            "DELETE /v1/files/file-1": {"deleted": True},
        },
        steps("/v1", jobs="/batch/jobs", check="?page_size=1", many="?page_size=100"),
        {"purpose": "batch"},
        {
            "input_files": ["file-1"],
            "model": "m",
            "endpoint": "/v1/chat/completions",
            "timeout_hours": 72,
            "metadata": LABELS,
        },
        b'{"custom_id":"1","body":' + BODY + b"}\n",
        _with(WAITING, expires_at=None),
        _with(DONE, expires_at=None, problems=(BatchProblem(None, "HTTP Error, status code: 400"),)),
        [ANSWERED, ResultLine("2", 400, b'{"object":"error","message":"too long","code":"3310"}')],
        options=Options(window="3d"),
        jobs="/batch/jobs",
    ),
    "together": Case(
        PROFILES["together"],
        {
            "GET /v1/batches": [TOGETHER_JOB],
            "POST /v1/files/upload": {"id": "file-1", "processing_status": "", "LineCount": 0, "Processed": False},
            "POST /v1/batches": (201, {"job": TOGETHER_JOB, "warning": "no discount"}),
            "GET /v1/batches/b1": {
                **TOGETHER_JOB,
                "status": "COMPLETED",
                "output_file_id": "out",
                "error_file_id": "err",
            },
            "GET /v1/files/out": {"id": "out", "bytes": len(dump(ANSWER_LINE))},
            "GET /v1/files/out/content": (200, dump(ANSWER_LINE)),
            "GET /v1/files/err": {"id": "err", "bytes": len(dump(TOGETHER_ERROR))},
            "GET /v1/files/err/content": (200, dump(TOGETHER_ERROR)),
            "POST /v1/batches/b1/cancel": {**TOGETHER_JOB, "status": "CANCELING"},
            "DELETE /v1/files/file-1": {"id": "file-1", "deleted": True},
        },
        steps("/v1", upload="/files/upload", check="", many=""),
        {"purpose": "batch-api", "file_name": NAME},
        {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
        b'{"custom_id":"1","body":' + BODY + b"}\n",
        TOGETHER_WAITING,
        _with(TOGETHER_WAITING, status=BatchStatus.COMPLETED, result_refs=("out", "err")),
        [
            ANSWERED,
            ResultLine(
                "2",
                400,
                b'{"error":{"message":"stop: too many","code":"batch_client_error"}}',
                "batch_client_error",
                "stop: too many",
            ),
        ],
    ),
    "deepinfra": Case(
        custom("https://api.deepinfra.com/v1/openai"),
        like_openai(
            "/v1/openai",
            **{
                "GET /v1/openai/files/err": {"id": "err"},
                "GET /v1/openai/files/err/content": (
                    200,
                    b'{"custom_id":"2","response":null,"error":{"code":"invalid_request","message":"no"}}\n',
                ),
            },
        ),
        steps("/v1/openai", many="?limit=100"),
        {"purpose": "batch"},
        BODY_SENT,
        LINE,
        WAITING,
        DONE,
        [
            ANSWERED,
            ResultLine("2", 400, b'{"error":{"message":"no","code":"invalid_request"}}', "invalid_request", "no"),
        ],
    ),
    "doubleword": Case(
        custom("https://api.doubleword.ai/v1"),
        like_openai(
            "/v1",
            **{
                "POST /v1/files": (
                    201,
                    {name: FILE[name] for name in ("id", "object", "bytes", "filename", "purpose")},
                ),
                "POST /v1/batches": (201, DOUBLEWORD_JOB),
                "GET /v1/batches?limit=100": {"object": "list", "data": [DOUBLEWORD_JOB], "has_more": False},
                # All requests failed, so the batch has failed: with its file.
                "GET /v1/batches/b1": {**DOUBLEWORD_JOB, "status": "failed", "error_file_id": "err", "failed_at": 1},
            },
        ),
        [each for each in steps("/v1", many="?limit=100") if "/out" not in each],
        {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "2592000"},
        {**BODY_SENT, "completion_window": "1h"},
        LINE,
        RemoteBatch(
            "b1",
            BatchStatus.IN_PROGRESS,
            total=2,
            completed=0,
            failed=0,
            input_ref="file-1",
            created_at=1_700_000_000.0,
        ),
        RemoteBatch(
            "b1",
            BatchStatus.FAILED,
            total=2,
            completed=0,
            failed=0,
            result_refs=("err",),
            input_ref="file-1",
            created_at=1_700_000_000.0,
        ),
        [REFUSED],
        options=Options(window="1h"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_whole_batch_in_each_dialect(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    place = case.requests[-1].removeprefix("DELETE ").partition("/files")[0] + case.jobs
    play = Play({**case.script, f"GET {place}/b2": (404, {}), f"GET {place}/b3": (404, {})})
    path = tmp_path / "chunk"
    path.write_bytes(case.line)

    async def whole() -> None:
        service = open_service(case.provider, case.options, api_key=KEY, environ={}, model="m", transport=play)
        async with service:
            await service.preflight()
            assert service.encode("1", BODY) == case.line
            assert service.refuses(BODY) is None
            ref = await service.upload(NAME, path)
            assert ref == "file-1"
            created = await service.create(ref, LABELS)
            assert _with(created, raw=None) == case.created
            many = await service.poll(["b1", "b2", "b3"])
            assert set(many) == {"b1"}
            assert many["b1"].status is not BatchStatus.UNKNOWN
            ended = (await service.poll(["b1"]))["b1"]
            assert _with(ended, raw=None) == case.ended
            assert [line async for line in service.results(ended, tmp_path)] == case.results
            await service.cancel("b1")
            await service.delete([ref])

    anyio.run(whole, backend="trio", backend_options={"clock": MockClock(autojump_threshold=0)})
    asked = [line for line in play.lines if not line.endswith(("/b2", "/b3"))]
    assert asked == case.requests
    upload = play.seen[1]
    assert upload.body == {**case.form, "file": (NAME, case.media_type, case.line)}
    create = next(each for each in play.seen if each.method == "POST" and each.body and "endpoint" in each.body)
    assert create.body == case.body
    assert all(each.headers[case.header[0]] == case.header[1] for each in play.seen)
    assert all(each.headers["user-agent"].startswith("batchchat/") for each in play.seen)
    assert not [each for each in tmp_path.iterdir() if each != path], "nothing is left of downloads"


SERVICES = {
    "the provider's own": (PROFILES["groq"], Options(), "groq"),
    "the demo's": (PROFILES[DEMO], Options(), "openai"),
    "by address": (custom("https://res.openai.azure.com/openai/v1"), Options(), "azure"),
    "by another address": (custom("https://res.services.ai.azure.com/openai/v1"), Options(), "azure"),
    "by a part of an address": (custom("https://not-api.deepinfra.com.example/v1"), Options(), "openai"),
    "a gateway": (custom("https://llm.example/v1"), Options(), "openai"),
    "a gateway that speaks another dialect": (custom("https://llm.example/v1"), Options(service="mistral"), "mistral"),
    "a folder": (PROFILES["groq"], Options(folder="/tmp/x"), "files"),
    "a folder by name": (PROFILES["groq"], Options(folder="/tmp/x", service="files"), "files"),
}


@pytest.mark.parametrize("name", SERVICES)
def test_which_service_a_job_uses(name: str) -> None:
    provider, options, expected = SERVICES[name]
    assert service_name(provider, options) == expected


BAD_OPTIONS = {
    "an unknown service": (Options(service="aws"), "no service is called 'aws'", "Known are azure, deepinfra"),
    "files without a folder": (Options(service="files"), "needs a folder", "folder: PATH"),
    "a folder and a service": (Options(service="groq", folder="/x"), "engine.folder", "Keep one"),
    "a window that is none": (Options(window="tomorrow"), "'tomorrow' is no window", "24h, 7d"),
    "a window too long": (Options(window="8d"), "groq takes no window of 8d", "24h to 168h"),
    "a bucket": (Options(bucket="s3://b"), "engine.bucket", "Only scaleway"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_options_that_cannot_be(name: str) -> None:
    options, message, remedy = BAD_OPTIONS[name]
    with pytest.raises(UsageError) as caught:
        open_service(PROFILES["groq"], options, api_key=KEY, environ={}, transport=Play({}))
    assert message in caught.value.message
    assert remedy in (caught.value.remedy or "")


def test_windows_of_choice_and_of_one_length() -> None:
    doubleword, openai = custom("https://api.doubleword.ai/v1"), PROFILES["openai"]
    for provider, window, remedy in ((doubleword, "12h", "takes 1h or 24h"), (openai, "48h", "takes 24h")):
        with pytest.raises(UsageError) as caught:
            open_service(provider, Options(window=window), api_key=KEY, environ={}, transport=Play({}))
        assert remedy in (caught.value.remedy or "")
    service = open_service(openai, Options(window="1d"), api_key=KEY, environ={}, transport=Play({}))
    assert service.limits.window == "1d"


def test_terms_are_those_of_the_service_that_answers() -> None:
    assert batch_terms(PROFILES["openai"], Options()) == BATCH_TERMS["openai"]
    assert batch_terms(PROFILES[DEMO], Options()) == BATCH_TERMS[DEMO]
    assert batch_terms(custom("https://api.deepinfra.com/v1/openai"), Options()) == BATCH_TERMS["deepinfra"]
    # Nobody knows what a server of one's own, or a file that is handed over, costs.
    assert batch_terms(custom("https://llm.example/v1"), Options()) is None
    assert batch_terms(PROFILES["openai"], Options(folder="/tmp/x")) is None
    assert all(0 < terms.factor <= 1 and terms.as_of for terms in BATCH_TERMS.values())


def test_a_request_that_would_sink_the_file_is_refused_alone() -> None:
    mistral = open_service(PROFILES["mistral"], Options(), api_key=KEY, environ={}, transport=Play({}))
    openai = open_service(PROFILES["openai"], Options(), api_key=KEY, environ={}, transport=Play({}))
    hot = b'{"model":"m","temperature":1.8}'
    assert "no temperature above 1.5" in (mistral.refuses(hot) or "")
    assert mistral.refuses(b'{"model":"m","temperature":1.5}') is None
    assert openai.refuses(hot) is None


def test_the_guide_tells_the_limits_and_terms_of_each_provider() -> None:
    rows = table("batch-providers", "In one table")
    assert set(rows) == set(DIALECTS)
    for name, (_, lines, file, window, price, read_on) in rows.items():
        limits, terms = DIALECTS[name].limits, BATCH_TERMS[name]
        assert lines == f"{limits.lines:,}"
        assert file.startswith(f"{limits.file_bytes / 1_000_000:.0f} MB")
        assert (limits.line_bytes is not None) == ("a line" in file)
        assert window.startswith(terms.window) or name == "mistral"
        assert (price, read_on) == (f"{terms.factor}", terms.as_of)
