"""Inputs on object storage, over real HTTP: what a URL means, what is read, and what a person is told."""

from __future__ import annotations

import bz2
import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchchat.errors import StorageError, StoreError, UsageError
from batchchat.objects import open_store
from batchchat.sources import Source, open_source
from batchchat.sources.remote import find_objects
from tests.integration.buckets import client_of, moto_server
from tests.integration.jobs import make_job, run

KEYS = {"AWS_ACCESS_KEY_ID": "an-access-key", "AWS_SECRET_ACCESS_KEY": "a-secret-key-0123"}


class Bucket:
    """A bucket of a running S3 server, with its client."""

    def __init__(self, s3: Any, name: str) -> None:
        self.s3 = s3
        self.name = name

    def put(self, key: str, content: bytes) -> str:
        self.s3.put_object(Bucket=self.name, Key=key, Body=content)
        return f"s3://{self.name}/{key}"

    def url(self, key: str = "") -> str:
        return f"s3://{self.name}/{key}"


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with moto_server() as url:
        s3 = client_of(url)
        try:
            yield s3
        finally:
            s3.close()


@pytest.fixture
def bucket(server: Any, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": server.meta.endpoint_url}.items():
        monkeypatch.setenv(name, value)
    name = f"rows-{uuid4().hex[:8]}"
    server.create_bucket(Bucket=name)
    return Bucket(server, name)


def lines(start: int, stop: int) -> bytes:
    return b"".join(b'{"id": %d, "text": "row %d"}\n' % (number, number) for number in range(start, stop))


def table(start: int, stop: int, group: int = 100_000) -> bytes:
    sink = pa.BufferOutputStream()
    numbers = list(range(start, stop))
    pq.write_table(
        pa.table({"id": numbers, "text": [f"row {number}" for number in numbers]}), sink, row_group_size=group
    )
    return bytes(sink.getvalue())


def read(source: Source) -> list[int]:
    return [row["id"] for batch in source.batches() for row in batch.values if row is not None]


def test_a_url_names_an_object_a_folder_or_a_glob(bucket: Bucket) -> None:
    bucket.put("in/b.jsonl", lines(2, 4))
    bucket.put("in/a.jsonl", lines(0, 2))
    bucket.put("in/deep/c.jsonl.gz", gzip.compress(lines(4, 6)))
    bucket.put("in/_hidden/d.jsonl", lines(90, 91))
    bucket.put("in/.e.jsonl", lines(91, 92))
    bucket.put("in/notes.txt", b"no rows")
    bucket.put("in/sheet.xlsx", b"no rows")
    bucket.put("in/", b"")
    bucket.put("in/out/data/part-00000.jsonl", lines(92, 93))
    bucket.put("in/out/_batchchat/format.json", b"{}")
    bucket.put("other/x.bz2.jsonl.bz2", bz2.compress(lines(6, 7)))
    bucket.put("other/day=2026-11-28/y.jsonl", lines(7, 8))
    cases = {
        "in/a.jsonl": ([0, 1], ["a.jsonl"]),
        "in": ([0, 1, 2, 3, 4, 5], ["a.jsonl", "b.jsonl", "deep/c.jsonl.gz"]),
        "in/": ([0, 1, 2, 3, 4, 5], ["a.jsonl", "b.jsonl", "deep/c.jsonl.gz"]),
        "in/*.jsonl": ([0, 1, 2, 3], ["a.jsonl", "b.jsonl"]),
        "in/[!a].jsonl": ([2, 3], ["b.jsonl"]),
        "in/**/*.gz": ([4, 5], ["deep/c.jsonl.gz"]),
        "in/?.jsonl": ([0, 1, 2, 3], ["a.jsonl", "b.jsonl"]),
        "i*/d*/*": ([4, 5], ["in/deep/c.jsonl.gz"]),
        "other": ([7, 6], ["day=2026-11-28/y.jsonl", "x.bz2.jsonl.bz2"]),
    }
    for key, (ids, names) in cases.items():
        source = open_source(bucket.url(key))
        assert (read(source), list(source.files)) == (ids, names), key
    told = open_source(bucket.url("in")).warnings
    assert any("in/out: left out, since it is an output of batchchat" in one for one in told)
    assert any("sheet.xlsx" in one for one in told)
    assert "day" in open_source(bucket.url("other")).columns


def test_parquet_is_read_by_ranges_and_from_any_row(bucket: Bucket) -> None:
    url = bucket.put("t.parquet", table(0, 3_000, group=500))
    source = open_source(url)
    batches = list(source.batches())
    assert [row["id"] for batch in batches for row in batch.values if row is not None] == list(range(3_000))
    assert source.known_rows() == source.count_rows() == 3_000
    place = batches[2].place
    assert place is not None
    again = open_source(url)
    rest = [row["id"] for batch in again.batches(place, place.offset) for row in batch.values if row is not None]
    assert rest == list(range(place.offset, 3_000))


@pytest.mark.thorough
def test_a_large_text_is_read_in_ranges_and_begun_again_behind_a_place(bucket: Bucket) -> None:
    content = b"".join(b'{"id": %d, "text": "%s"}\n' % (number, b"x" * 500) for number in range(14_000))
    url = bucket.put("large.jsonl", content)  # four ranges
    source = open_source(url)
    batches = list(source.batches())
    assert [row["id"] for batch in batches for row in batch.values if row is not None] == list(range(14_000))
    place = batches[-5].place
    assert place is not None
    rest = [row["id"] for batch in open_source(url).batches(place) for row in batch.values if row is not None]
    assert rest[-1] == 13_999
    assert len(rest) == 14_000 - batches[-4].first_index
    places = [batch.place for batch in batches if batch.place is not None]
    held, _ = open_source(url).still_holds(source.stamps, places)
    assert held == len(places)
    bucket.put("large.jsonl", content.replace(b"13000", b"13001"))
    held, _ = open_source(url).still_holds(source.stamps, places)
    assert 0 < held < len(places)


def test_an_object_that_changes_is_never_mixed(bucket: Bucket) -> None:
    small, large = lines(0, 10), b" " * 5_000_000 + b"\n" + lines(0, 10)
    for key, before, after in (
        ("small.jsonl", small, small.replace(b"row 1", b"ROW 1")),
        ("large.jsonl", lines(0, 5) + large, lines(0, 5) + large.replace(b"row 9", b"ROW 9")),
        ("t.parquet", table(0, 100), table(1, 101)),
    ):
        source = open_source(bucket.put(key, before))
        passing = source.batches()
        next(passing)
        bucket.put(key, after)
        with pytest.raises(StorageError, match="the input changed while it was read"):
            list(passing)
    source = open_source(bucket.url("*.jsonl"))
    passing = source.batches()
    next(passing)
    bucket.put("new.jsonl", small)
    with pytest.raises(StorageError, match=r"the files of the input changed while it was read: new\.jsonl"):
        list(passing)


def test_bad_input_is_told_in_words(bucket: Bucket) -> None:
    bucket.put("in/a.jsonl", lines(0, 1) + b"{oops\n")
    bucket.put("in/b.csv", b"id\n1\n")
    bucket.put("array.json", b'[{"id": 1}, {"id": 2}]\n')
    bucket.put("empty/x.txt", b"")
    bucket.put("broken.jsonl.gz", gzip.compress(lines(0, 100))[:-20])
    bucket.put("broken.parquet", b"PAR1")
    cases = {
        bucket.url("in/none.jsonl"): "no such object or folder\nIn .*/in there is a.jsonl, b.csv",
        bucket.url("in"): "mixes csv and jsonl",
        bucket.url("in/*.tsv"): "no object matches",
        bucket.url("empty"): "the folder holds no input file",
        bucket.url("array.json"): r"holds a JSON array.*\n.*< array.json > array.jsonl",
        bucket.url("broken.parquet"): "not a readable Parquet file",
        bucket.url("broken.jsonl.gz"): "cannot be read on",
        "s3:///x": "names no bucket",
        "s3://no-such-bucket-here/x.jsonl": "no such",
        "s3://name:secret@bucket/x.jsonl": "a URL holds no credentials",
        "ftp://host/x.jsonl": "no object storage that is known",
    }
    for url, words in cases.items():
        with pytest.raises(UsageError, match=words) as told:
            list(open_source(url).batches())
        assert "secret" not in str(told.value)
    batch = next(iter(open_source(bucket.url("in/a.jsonl")).batches()))
    assert "a.jsonl:2" in batch.failures[1].message


def test_a_store_that_does_not_answer_is_no_fault_of_the_input(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="does not answer as it should"):
        find_objects(bucket.url("in"), None, retries=0)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"AWS_EC2_METADATA_DISABLED": "true"}, "no credentials for this store"),
        ({"AWS_ACCESS_KEY_ID": "x"}, "only one half of the key"),
        ({**KEYS, "AWS_ENDPOINT_URL": "http://10.1.2.3"}, "is not encrypted"),
        ({"AWS_PROFILE": "nobody"}, "no profile 'nobody'"),
    ],
)
def test_credentials_that_cannot_be_used_are_told_at_once(environ: dict[str, str], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        open_store("s3://bucket/x", environ={"HOME": str(tmp_path), **environ})


def test_the_profiles_of_amazons_tools_are_read(tmp_path: Path) -> None:
    folder = tmp_path / ".aws"
    folder.mkdir()
    (folder / "credentials").write_text("[lab]\naws_access_key_id = one\naws_secret_access_key = two\n")
    (folder / "config").write_text(
        "[profile lab]\nregion = eu-west-3\nendpoint_url = https://s3.example.org/\n[profile sso]\nsso_session = x\n"
    )
    store: Any = open_store("s3://bucket/a/b", environ={"HOME": str(tmp_path), "AWS_PROFILE": "lab"})[0]
    config = store.config
    assert (config["access_key_id"], config["region"]) == ("one", "eu-west-3")
    assert config["endpoint"] == "https://s3.example.org"
    with pytest.raises(UsageError, match="sso_session"):
        open_store("s3://bucket/a", environ={"HOME": str(tmp_path), "AWS_PROFILE": "sso"})


def test_google_and_azure_are_opened_by_the_names_of_their_tools() -> None:
    google = open_store("gs://bucket/x/y", environ={"STORAGE_EMULATOR_HOST": "127.0.0.1:4443"})
    assert google[1] == "x/y"
    text = "AccountName=lab;AccountKey=a2V5;EndpointSuffix=core.windows.net"
    azure: Any = open_store("az://container/x", environ={"AZURE_STORAGE_CONNECTION_STRING": text})[0]
    assert azure.config["account_name"] == "lab"
    named: Any = open_store("abfss://c@lab.dfs.core.windows.net/x", environ={"AZURE_STORAGE_KEY": "a2V5"})[0]
    assert named.config["account_name"] == "lab"
    with pytest.raises(UsageError, match="account of the store"):
        open_store("az://container/x", environ={})


def test_a_job_reads_from_a_bucket_and_goes_on_where_it_stopped(bucket: Bucket, tmp_path: Path) -> None:
    from batchchat.demo import DemoServer

    bucket.put("in/a.jsonl", lines(0, 30))
    bucket.put("in/b.jsonl", lines(30, 40))
    with DemoServer() as demo:
        job = make_job(tmp_path, demo.base_url, input={"path": bucket.url("in"), "key": "id"})
        assert run(job, limit=15).ok == 15
        summary = run(job)
        assert (summary.ok, summary.exit_code) == (40, 0)
        again = run(job)
        assert (again.ok, again.exit_code) == (40, 0)
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert {row["id"] for row in rows} == set(range(40))
