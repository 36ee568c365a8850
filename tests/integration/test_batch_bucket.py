"""Scaleway's batches over a real S3 server, which checks every signature, permission and policy."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import anyio
import httpx
import obstore
import pytest

from batchchat.demo import BatchOptions, DemoOptions, DemoServer
from batchchat.engines.batch.service import BatchService, BatchStatus, Gone, RemoteBatch, Unavailable
from batchchat.engines.batch.services import open_service
from batchchat.engines.batch.services.bucket import open_bucket, read_place
from batchchat.errors import NeedsHuman, UsageError
from batchchat.providers import PROFILES
from batchchat.runner.run import run_job
from tests.batch_play import Options, Play
from tests.integration.buckets import client_of, moto_server
from tests.integration.jobs import make_job, texts, write_rows
from tests.integration.raw_server import Peer, RawServer

SECRET_NAMES = ("SCW_SECRET_KEY", "AWS_SECRET_ACCESS_KEY")
KEY = "scw-secret-0123456789"
LINE = b'{"custom_id":"%d","response":{"status_code":200,"body":{"n":%d}},"error":null}\n'
ERROR = b'{"custom_id":"%d","response":{"status_code":400,"body":{"error":{"message":"no"}}},"error":null}\n'


class Storage(NamedTuple):
    """A running S3 server: its address, its client with all rights, and the environment of each user."""

    url: str
    s3: Any
    users: dict[str, dict[str, str]]

    def names(self, bucket: str) -> list[str]:
        return sorted(each["Key"] for each in self.s3.list_objects_v2(Bucket=bucket).get("Contents", ()))

    def put(self, bucket: str, key: str, content: bytes) -> None:
        self.s3.put_object(Bucket=bucket, Key=key, Body=content)


RIGHTS: dict[str, list[str]] = {
    "owner": ["s3:*"],
    "reader": ["s3:GetObject", "s3:ListBucket", "s3:HeadObject"],
    "no-delete": ["s3:GetObject", "s3:PutObject", "s3:HeadObject", "s3:ListBucket"],
    "nobody": [],
}


@pytest.fixture(scope="module")
def storage() -> Iterator[Storage]:
    import boto3

    with moto_server() as url:
        # Until the rights are enforced, any key may do anything.
        root: dict[str, Any] = {"endpoint_url": url, "aws_access_key_id": "root", "aws_secret_access_key": "root"}
        iam = boto3.client("iam", region_name="us-east-1", **root)
        users = {}
        for name, actions in RIGHTS.items():
            iam.create_user(UserName=name)
            key = iam.create_access_key(UserName=name)["AccessKey"]
            statement = {"Effect": "Allow", "Action": actions or ["s3:None"], "Resource": "*"}
            policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
            iam.put_user_policy(UserName=name, PolicyName="rights", PolicyDocument=policy)
            users[name] = {
                "SCW_ACCESS_KEY": key["AccessKeyId"],
                "SCW_SECRET_KEY": key["SecretAccessKey"],
                "AWS_ENDPOINT_URL": url,
            }
        httpx.post(f"{url}/moto-api/reset-auth", content=b"0").raise_for_status()
        owner = users["owner"]
        s3 = client_of(url, access_key=owner["SCW_ACCESS_KEY"], secret_key=owner["SCW_SECRET_KEY"], region="fr-par")
        yield Storage(url, s3, users)


@pytest.fixture
def bucket(storage: Storage, request: pytest.FixtureRequest) -> str:
    """A bucket of the test's own."""
    name = f"b{abs(hash(request.node.name)) % 10**12}"
    storage.s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "fr-par"})
    return name


def run(
    use: Callable[[BatchService], Awaitable[Any]], environ: dict[str, str], bucket: str, play: Play | None = None
) -> Any:
    play = play or Play({"GET /v1/batches?limit=1": {"data": []}})
    service = open_service(
        PROFILES["scaleway"],
        Options(bucket=bucket),
        api_key=KEY,
        environ=environ,
        transport=play,
    )

    told: list[str] = []

    async def whole() -> Any:
        async with service:
            try:
                return await use(service)
            except Exception as error:
                told.append(f"{error!r} {error} {getattr(error, 'remedy', '')}")
                raise
            finally:
                told.append(repr(service))

    try:
        return anyio.run(whole)
    finally:
        secrets = [KEY, *(environ[name] for name in SECRET_NAMES if name in environ)]
        assert not [secret for secret in secrets if secret in "".join(told)]


def job(name: str, url: str, status: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "object": "batch", "input_file_id": url, "status": status, "created_at": 1_700_000_000} | fields


def test_a_whole_batch_with_its_files_in_a_bucket(storage: Storage, bucket: str, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    # Larger than one part: it is uploaded in several.
    path.write_bytes(b'{"custom_id":"1"}\n' + b'{"pad":"%s"}\n' % (b"x" * 1000) * 10_000)
    url = f"{storage.url}/{bucket}/runs/job-ab12.jsonl"
    play = Play({"GET /v1/batches?limit=1": {"data": []}, "POST /v1/batches": job("u-1", url, "validating")})
    play.script["GET /v1/batches/u-1"] = job("u-1", url, "completed", output_file_id=f"{url[:-6]}_output.jsonl")

    async def use(service: BatchService) -> list[tuple[str | None, int | None]]:
        await service.preflight()
        assert storage.names(bucket) == [], "nothing is left of the check"
        ref = await service.upload("job-ab12.jsonl", path)
        assert ref == url
        assert await service.upload("job-ab12.jsonl", path) == url, "what is there already is not sent again"
        created = await service.create(ref, {"nonce": "n"})
        assert (created.id, created.input_ref, created.labels) == ("u-1", url, None)
        storage.put(bucket, "runs/job-ab12_output.jsonl", LINE % (1, 1) + LINE % (2, 2))
        storage.put(bucket, "runs/job-ab12_error.jsonl", ERROR % 3)
        storage.put(bucket, "elsewhere.jsonl", b"not ours")
        ended = (await service.poll(["u-1"]))["u-1"]
        assert ended.status is BatchStatus.COMPLETED
        lines = [(line.custom_id, line.status) async for line in service.results(ended, tmp_path)]
        await service.delete([ref, *ended.result_refs, f"{storage.url}/{bucket}/elsewhere.jsonl", ref])
        return lines

    # A token of another service in the process's environment is not ours.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SESSION_TOKEN", "of-somebody-else")
        found = run(use, storage.users["owner"], f"s3://{bucket}/runs", play)
    assert found == [("1", 200), ("2", 200), ("3", 400)]
    assert play.bodies("POST /v1/batches") == [
        {"input_file_id": url, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    ]
    assert storage.names(bucket) == ["elsewhere.jsonl", "runs/job-ab12_error.jsonl"]


def test_a_name_with_results_is_never_used_again(storage: Storage, bucket: str, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"new\n")
    storage.put(bucket, "a-1.jsonl", b"new\n")
    storage.put(bucket, "a-1_output.jsonl", b"old results\n")
    storage.put(bucket, "a-1-2.jsonl", b"another size\n")

    async def use(service: BatchService) -> str:
        return await service.upload("a-1.jsonl", path)

    third = f"{storage.url}/{bucket}/a-1-3.jsonl"
    assert run(use, storage.users["owner"], bucket) == third
    assert storage.s3.get_object(Bucket=bucket, Key="a-1_output.jsonl")["Body"].read() == b"old results\n"


def test_results_are_found_though_the_list_knows_nothing(storage: Storage, bucket: str, tmp_path: Path) -> None:
    url = f"{storage.url}/{bucket}/a.jsonl"
    play = Play({"GET /v1/batches?limit=100": {"data": [], "has_more": False}})

    async def use(service: BatchService) -> list[str | None]:
        assert await service.find(url, {}, 0.0) == []
        storage.put(bucket, "a_output.jsonl", LINE % (1, 1))
        (found,) = await service.find(url, {}, 0.0)
        assert found.status is BatchStatus.COMPLETED
        assert (await service.poll([found.id]))[found.id] == found
        await service.cancel(found.id)
        return [line.custom_id async for line in service.results(found, tmp_path)]

    assert run(use, storage.users["owner"], bucket, play) == ["1"]


def test_a_result_that_is_named_and_not_there_is_told(storage: Storage, bucket: str, tmp_path: Path) -> None:
    url = f"{storage.url}/{bucket}/a.jsonl"
    play = Play({"GET /v1/batches/u": job("u", url, "completed", output_file_id="s3://other/a_output.jsonl")})
    play.script["GET /v1/batches/v"] = job("v", url, "completed", output_file_id=f"s3://{bucket}/gone.jsonl")

    async def use(service: BatchService, name: str = "u") -> list[str | None]:
        ended = (await service.poll([name]))[name]
        return [line.custom_id async for line in service.results(ended, tmp_path)]

    assert run(use, storage.users["owner"], bucket, play) == []
    with pytest.raises(Gone):
        run(lambda service: use(service, "v"), storage.users["owner"], bucket, play)


REFUSED: dict[str, tuple[dict[str, str], type[Exception], str]] = {
    "a wrong secret": ({"SCW_SECRET_KEY": "wrong-secret-0123456789"}, NeedsHuman, "SignatureDoesNotMatch"),
    "an unknown key": ({"SCW_ACCESS_KEY": "SCWNOBODY"}, NeedsHuman, "InvalidAccessKeyId"),
    "a key that may only read": ({"user": "reader"}, NeedsHuman, "may not write to"),
    "a key that may nothing": ({"user": "nobody"}, NeedsHuman, "may not write to"),
    "a bucket that is missing": ({"bucket": "no-such-bucket"}, UsageError, "another region or project"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bucket_that_cannot_be_used_is_told_before_anything_is_uploaded(
    name: str, storage: Storage, bucket: str
) -> None:
    changes, kind, message = REFUSED[name]
    environ = {**storage.users[changes.get("user", "owner")], **changes}
    with pytest.raises(kind) as caught:
        run(lambda service: service.preflight(), environ, changes.get("bucket", bucket))
    assert message in str(caught.value)
    assert getattr(caught.value, "remedy", None)
    assert storage.names(bucket) == []


def test_a_policy_that_refuses_us_is_told(storage: Storage, bucket: str) -> None:
    deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/*"}
    storage.s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [deny]}))
    with pytest.raises(NeedsHuman, match="may not read from") as caught:
        run(lambda service: service.preflight(), storage.users["owner"], bucket)
    assert "policy" in (caught.value.remedy or "")


def test_a_key_that_may_not_delete_can_run_batches(storage: Storage, bucket: str) -> None:
    run(lambda service: service.preflight(), storage.users["no-delete"], bucket)


def _poll(service: BatchService, name: str) -> Awaitable[dict[str, RemoteBatch]]:
    return service.poll([name])


def test_the_first_batch_of_a_bucket_with_a_policy_says_what_to_do(storage: Storage, bucket: str) -> None:
    url = f"{storage.url}/{bucket}/a.jsonl"
    play = Play(
        {
            "GET /v1/batches/u": job("u", url, "failed", errors={"data": [{"code": "x", "message": "Access denied"}]}),
            "GET /v1/batches/v": job("v", url, "failed", errors=None),
            "GET /v1/batches/w": job("w", url, "failed", errors={"data": [{"message": "bad JSON", "line": 2}]}),
        }
    )
    for name, explained in (("u", True), ("v", True), ("w", False)):
        found = run(partial(_poll, name=name), storage.users["owner"], bucket, play)
        (problem,) = found[name].problems
        assert ("scw-managed-genapi-batch" in (problem.remedy or "")) is explained


def test_storage_that_is_down_is_asked_again_later() -> None:
    environ = {
        "SCW_ACCESS_KEY": "SCWX",
        "SCW_SECRET_KEY": "secret-0123456789",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("batchchat.engines.batch.services.bucket._RETRIES", 0)
        with pytest.raises(Unavailable, match="cannot be reached"):
            run(lambda service: service.preflight(), environ, "bucket")


def test_a_bucket_of_another_region_is_told() -> None:
    page = b"<Error><Code>PermanentRedirect</Code><Message>Use another endpoint.</Message></Error>"

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 301 Moved\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(page), page))

    with RawServer(script) as server:
        environ = {"SCW_ACCESS_KEY": "SCWX", "SCW_SECRET_KEY": "secret-0123456789", "AWS_ENDPOINT_URL": server.url}
        with pytest.raises(UsageError, match="another region") as caught:
            run(lambda service: service.preflight(), environ, "bucket")
    assert "SCW_DEFAULT_REGION" in (caught.value.remedy or "")


def test_a_download_that_breaks_goes_on(tmp_path: Path) -> None:
    content = b"".join(LINE % (number, number) for number in range(2000))

    async def script(peer: Peer) -> None:
        request = (await peer.request()).decode()
        if request.startswith("HEAD"):
            found = "_output.jsonl" in request.split(" ")[1]
            size = len(content) if found else 0
            await peer.send(
                b'HTTP/1.1 %d X\r\nContent-Length: %d\r\nLast-Modified: Tue, 14 Nov 2023 22:13:20 GMT\r\nETag: "a"\r\n'
                b"Connection: close\r\n\r\n" % (200 if found else 404, size)
            )
            return
        head = b'Last-Modified: Tue, 14 Nov 2023 22:13:20 GMT\r\nETag: "a"\r\nConnection: close\r\n'
        fields = dict(line.lower().split(": ", 1) for line in request.split("\r\n")[1:] if ": " in line)
        start = int(fields["range"].removeprefix("bytes=").split("-")[0]) if "range" in fields else 0
        if start:
            told = b"Content-Range: bytes %d-%d/%d\r\n" % (start, len(content) - 1, len(content))
            head = b"HTTP/1.1 206 Partial Content\r\n" + told + head
        else:
            head = b"HTTP/1.1 200 OK\r\n" + head
        await peer.send(head + b"Content-Length: %d\r\n\r\n" % (len(content) - start))
        await peer.send(content[start:] if start else content[:70_000])
        if not start:
            await peer.reset()

    with RawServer(script) as server:
        environ = {"SCW_ACCESS_KEY": "SCWX", "SCW_SECRET_KEY": "secret-0123456789", "AWS_ENDPOINT_URL": server.url}
        url = f"{server.url}/bucket/a.jsonl"
        play = Play({"GET /v1/batches/u": job("u", url, "completed")})

        async def use(service: BatchService) -> list[str | None]:
            ended = (await service.poll(["u"]))["u"]
            return [line.custom_id async for line in service.results(ended, tmp_path)]

        found = run(use, environ, "bucket", play)
    assert found == [str(number) for number in range(2000)]


PLACES: dict[str, tuple[str, dict[str, str], str]] = {
    "by name": ("bucket", {}, "https://bucket.s3.fr-par.scw.cloud/a%20b.jsonl"),
    "as S3 writes it": ("s3://bucket/runs/1/", {}, "https://bucket.s3.fr-par.scw.cloud/runs/1/a%20b.jsonl"),
    "in another region": (
        "s3://bucket",
        {"SCW_DEFAULT_REGION": "nl-ams"},
        "https://bucket.s3.nl-ams.scw.cloud/a%20b.jsonl",
    ),
    "in a region of AWS's variable": (
        "bucket",
        {"AWS_REGION": "pl-waw"},
        "https://bucket.s3.pl-waw.scw.cloud/a%20b.jsonl",
    ),
    "by address": (
        "https://bucket.s3.nl-ams.scw.cloud/runs",
        {"SCW_DEFAULT_REGION": "fr-par", "AWS_ENDPOINT_URL": "http://elsewhere"},
        "https://bucket.s3.nl-ams.scw.cloud/runs/a%20b.jsonl",
    ),
    "by address with the name in the path": (
        "https://s3.nl-ams.scw.cloud/bucket/runs",
        {},
        "https://bucket.s3.nl-ams.scw.cloud/runs/a%20b.jsonl",
    ),
    "at another endpoint": (
        "s3://bucket/runs",
        {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9000/", "AWS_ENDPOINT_URL": "http://other"},
        "http://127.0.0.1:9000/bucket/runs/a%20b.jsonl",
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_places_of_buckets(name: str) -> None:
    bucket, environ, url = PLACES[name]
    place = read_place(bucket, environ)
    key = f"{place.prefix}/a b.jsonl" if place.prefix else "a b.jsonl"
    assert place.url(key) == url
    assert place.key(url) == key
    assert place.key(f"s3://bucket/{key}") == key
    assert place.key(key) == key
    assert place.key("s3://other/x.jsonl") is None
    assert place.key("https://other.s3.fr-par.scw.cloud/x.jsonl") is None
    assert place.key("7c9e6679-7425-40de-944b-e07fc1f90ae7") is None


@pytest.mark.parametrize("bucket", ["mybucket/runs", "my.bucket", "https://mybucket.s3.nl-ams.scw.cloud/runs"])
@pytest.mark.parametrize("endpoint", [None, "http://127.0.0.1:9000"])
def test_objects_are_asked_for_where_the_provider_is_told_that_they_are(bucket: str, endpoint: str | None) -> None:
    environ = {"SCW_ACCESS_KEY": "SCWX", "SCW_SECRET_KEY": "secret-0123456789"}
    files = open_bucket(bucket, environ | ({"AWS_ENDPOINT_URL": endpoint} if endpoint else {}))
    key = files._key("a b.jsonl")
    signed = urlsplit(obstore.sign(files._store, "GET", key, timedelta(minutes=1)))
    told = urlsplit(files._place.url(key))
    if "my.bucket" in bucket and endpoint is None:
        # No certificate is good for a name with a dot: we ask for it by its path.
        assert (signed.netloc, signed.path) == ("s3.fr-par.scw.cloud", f"/my.bucket{told.path}")
    else:
        assert (signed.scheme, signed.netloc, signed.path) == (told.scheme, told.netloc, told.path)
    assert ("nl-ams" in signed.query) is ("nl-ams" in bucket)


@pytest.mark.parametrize(
    ("bucket", "message"),
    [
        (None, "engine.bucket is missing"),
        ("s3://", "is no name of a bucket"),
        ("Bucket_1", "is no name of a bucket"),
        ("https://storage.example/bucket", "none of a bucket at Scaleway"),
        ("bucket/a//b", "the prefix"),
        ("bucket/../b", "the prefix"),
        ("bucket/a?b", "the prefix"),
    ],
)
def test_buckets_that_are_none(bucket: str | None, message: str) -> None:
    environ = {"SCW_ACCESS_KEY": "SCWX", "SCW_SECRET_KEY": "secret-0123456789"}
    with pytest.raises(UsageError, match=message) as caught:
        open_service(PROFILES["scaleway"], Options(bucket=bucket), api_key=KEY, environ=environ, transport=Play({}))
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("environ", "missing"),
    [
        ({}, "SCW_ACCESS_KEY and SCW_SECRET_KEY are not set"),
        ({"SCW_SECRET_KEY": "x"}, "SCW_ACCESS_KEY is not set"),
        ({"SCW_SECRET_KEY": "x", "SCW_ACCESS_KEY": " ", "AWS_ACCESS_KEY_ID": "x"}, "SCW_ACCESS_KEY is not set"),
    ],
)
def test_a_missing_key_of_storage_is_named(environ: dict[str, str], missing: str) -> None:
    with pytest.raises(UsageError, match=missing):
        open_service(PROFILES["scaleway"], Options(bucket="abc"), api_key=KEY, environ=environ, transport=Play({}))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "batchchat.engines.batch.services.bucket")
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(UsageError, match="obstore is missing") as caught:
        open_service(PROFILES["scaleway"], Options(bucket="abc"), api_key=KEY, environ={}, transport=Play({}))
    assert "batchchat[s3]" in (caught.value.remedy or "")


class _Forgotten:
    """A service whose provider has forgotten all batches: neither a look nor the list tells of one."""

    def __init__(self, service: Any) -> None:
        self._service = service

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)

    async def __aenter__(self) -> _Forgotten:
        await self._service.__aenter__()
        return self

    async def __aexit__(self, *args: object) -> None:
        await self._service.__aexit__(*args)

    async def poll(self, ids: Sequence[str]) -> dict[str, RemoteBatch]:
        return {}


def test_a_batch_that_the_provider_has_forgotten_is_taken_from_the_bucket(
    storage: Storage, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = storage.users["owner"]
    for name, value in environ.items():
        monkeypatch.setenv(name, value)  # the server's own bucket is that of the environment
    write_rows(tmp_path / "rows.jsonl", texts(5))

    def forgetful(*args: Any, **options: Any) -> Any:
        options["environ"] = environ
        return _Forgotten(open_service(*args, **options))

    with DemoServer(DemoOptions(batch=BatchOptions(seconds=0.05, dialect="scaleway"))) as demo:
        engine = {"kind": "batch", "service": "scaleway", "bucket": f"s3://{bucket}/runs", "poll": 0.03}
        job = make_job(tmp_path, demo.base_url, engine=engine)
        summary = anyio.run(partial(run_job, job, environ=environ, open_service=forgetful))
        assert demo.stats().batch.lines == 5, "nothing is asked twice"
    assert (summary.ok, summary.failed) == (5, 0)
