"""Inputs on a hub of datasets, over real HTTP: what a URL means, what is read, and what a person is told."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from batchchat.cli import cli
from batchchat.errors import JobError, StorageError, StoreError, UsageError
from batchchat.sources import Source, open_source
from batchchat.sources.hub import find_hub_files, parse_hub_url
from batchchat.sources.hub_access import hub_access
from tests.integration.hub_server import FakeHub, Fault, running_hub
from tests.integration.jobs import make_job, run

URL = "hf://datasets/lab/tickets"
TOKEN = "hf_a-token-of-the-tests"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING_FACE"))]:
        monkeypatch.delenv(name)
    with running_hub() as hub:
        hub.token = TOKEN
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-home"))
        yield hub


def lines(start: int, stop: int) -> bytes:
    return b"".join(b'{"id": %d, "text": "row %d"}\n' % (number, number) for number in range(start, stop))


def table(start: int, stop: int, group: int = 100_000) -> bytes:
    sink = pa.BufferOutputStream()
    numbers = list(range(start, stop))
    rows = pa.table({"id": numbers, "text": [f"row {number}" for number in numbers]})
    pq.write_table(rows, sink, row_group_size=group)
    return bytes(sink.getvalue())


def read(source: Source) -> list[int]:
    return [row["id"] for batch in source.batches() for row in batch.values if row is not None]


def test_a_url_names_a_file_a_folder_or_a_glob_of_a_revision(hub: FakeHub) -> None:
    hub.page = 4  # each list has several pages
    main = {
        "README.md": b"# Tickets",
        ".gitattributes": b"*",
        "dataset_infos.json": b"{}",
        "data/b.jsonl": lines(2, 4),
        "data/a.jsonl": lines(0, 2),
        "data/deep/c 100%.jsonl.gz": gzip.compress(lines(4, 60)),
        "data/_hidden/d.jsonl": lines(90, 91),
        "data/out/_batchchat/format.json": b"{}",
        "data/out/data/part.jsonl": lines(91, 92),
    }
    commit = hub.push("lab/tickets", main)
    hub.push("lab/tickets", {"default/train/0000.parquet": table(0, 500)}, "refs/convert/parquet")
    hub.push("lab/tickets", {"data/x.csv": b"id,text\n7,seven\n"}, "v1.0")
    hub.renamed["lab/old-name"] = "lab/tickets"
    deep = [*range(4), *range(4, 60)]
    cases = {
        URL: (deep, ["data/a.jsonl", "data/b.jsonl", "data/deep/c 100%.jsonl.gz"]),
        f"{URL}/data/": (deep, ["a.jsonl", "b.jsonl", "deep/c 100%.jsonl.gz"]),
        f"{URL}/data/a.jsonl": ([0, 1], ["a.jsonl"]),
        f"{URL}/data/*.jsonl": ([0, 1, 2, 3], ["a.jsonl", "b.jsonl"]),
        f"{URL}/**/*.gz": (deep[4:], ["data/deep/c 100%.jsonl.gz"]),
        f"{URL}@{commit}/data/b.jsonl": ([2, 3], ["b.jsonl"]),
        f"{URL}@~parquet": ([*range(500)], ["default/train/0000.parquet"]),
        f"{URL}@refs%2Fconvert%2Fparquet/default/train/*.parquet": ([*range(500)], ["0000.parquet"]),
        f"{URL}@refs/convert/parquet/default": ([*range(500)], ["train/0000.parquet"]),
        "hf://datasets/lab/old-name/data/a.jsonl": ([0, 1], ["a.jsonl"]),
        "HF://datasets/lab/tickets/data/b.jsonl": ([2, 3], ["b.jsonl"]),
    }
    for url, (ids, names) in cases.items():
        source = open_source(url)
        assert (read(source), list(source.files)) == (ids, names), url
    assert open_source(f"{URL}@v1.0").columns == ("id", "text")
    told = open_source(URL).warnings
    assert any("data/out: left out, since it is an output of batchchat" in one for one in told)
    hub.seen.clear()
    open_source(f"{URL}/data/*.jsonl")
    # A star stays in its folder, so that what lies deeper is not listed.
    assert {"recursive=true" in one.path for one in hub.asked("/tree/")} == {False}


def test_parquet_is_read_by_ranges_from_storage_that_never_sees_the_token(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.push("lab/tickets", {"t.parquet": table(0, 3_000, group=500), "small.jsonl": lines(0, 1)})
    home = tmp_path / "hub-home"
    home.mkdir()
    (home / "token").write_text(f"{TOKEN}\n")
    source = open_source(f"{URL}/t.parquet")
    batches = list(source.batches())
    assert [row["id"] for batch in batches for row in batch.values if row is not None] == list(range(3_000))
    assert source.known_rows() == source.count_rows() == 3_000
    place = batches[2].place
    assert place is not None
    rest = open_source(f"{URL}/t.parquet").batches(place, place.offset)
    assert [row["id"] for batch in rest for row in batch.values if row is not None] == list(range(place.offset, 3_000))
    assert {one.token for one in hub.seen if one.place == "hub"} == {f"Bearer {TOKEN}"}
    assert {one.token for one in hub.seen if one.place == "storage"} == {None}
    assert all(one.range for one in hub.asked("/resolve/"))
    hub.seen.clear()
    monkeypatch.setenv("HF_TOKEN", "")
    (home / "token").unlink()
    assert read(open_source(f"{URL}/small.jsonl")) == [0]
    assert {one.token for one in hub.seen} == {None}


def test_a_dataset_with_a_new_commit_is_read_as_it_was(hub: FakeHub) -> None:
    before = {"a.jsonl": lines(0, 30), "b.jsonl": lines(30, 40)}
    hub.push("lab/tickets", before)
    source = open_source(URL)
    passing = source.batches()
    next(passing)
    hub.push("lab/tickets", {"a.jsonl": lines(100, 110), "c.jsonl": lines(1, 2)})
    assert read(source) == list(range(40))
    assert sum(len(batch.values) for batch in passing) == 10
    assert read(open_source(URL)) == [*range(100, 110), 1]
    # What a later run passes over is told by what the files hold, and not by the commit.
    source = open_source(f"{URL}@{hub.push('lab/tickets', before)}")
    places = [batch.place for batch in source.batches() if batch.place is not None]
    hub.push("lab/tickets", before | {"b.jsonl": lines(30, 39)})
    later = open_source(URL)
    held, _ = later.still_holds(source.stamps, places)
    assert 0 < held < len(places)


def test_what_passes_is_repeated_and_waited_for(hub: FakeHub) -> None:
    content = lines(0, 20_000)
    hub.push("lab/tickets", {"a.jsonl": content, "b.jsonl": lines(0, 2)})
    waits: list[float] = []

    def fetch(name: str, *faults: Fault) -> bytes:
        hub.faults = [*faults]
        waits.clear()
        file = find_hub_files(f"{URL}/{name}", None, sleep=waits.append).files[0]
        return file.read_at(10, 2_000_000)

    assert fetch("a.jsonl", Fault(503, "/revision/", 2), Fault(500, "paths-info")) == content[10:]
    assert waits == [0.5, 1.0, 0.5]
    assert fetch("a.jsonl", Fault(429, "resolve", 1, {"Retry-After": "7"})) == content[10:]
    assert waits == [7.5]
    assert fetch("a.jsonl", Fault(429, "resolve", 1, {"RateLimit": '"resolvers";r=0;t=55'})) == content[10:]
    assert waits == [55.5]
    assert fetch("a.jsonl", Fault(429, "resolve", 1, {"Retry-After": "99999"})) == content[10:]
    assert waits == [310.0]
    for kind in ("cut", 403, 404):  # of the storage: an answer that ends early, and an address that is no longer signed
        assert fetch("a.jsonl", Fault(kind, "X-Signature")) == content[10:]
        assert waits == [0.5]
    assert fetch("b.jsonl", Fault("cut", "resolve", 2)) == lines(0, 2)[10:]
    assert fetch("b.jsonl", Fault("whole", "resolve")) == lines(0, 2)[10:]
    assert waits == []
    assert fetch("a.jsonl", Fault("whole", "X-Signature")) == content[10:]


def test_a_hub_that_stays_away_is_no_fault_of_the_input(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push("lab/tickets", {"a.jsonl": lines(0, 20_000)})
    file = find_hub_files(f"{URL}/a.jsonl", None, retries=1, sleep=lambda _: None).files[0]
    cases: list[tuple[Fault, str]] = [
        (Fault(502, "resolve", 9), "a.jsonl: the hub does not answer as it should: HTTP 502"),
        (Fault(429, "resolve", 9), "a.jsonl: the hub answers no more requests for now: HTTP 429.*\nSet HF_TOKEN"),
        (Fault("cut", "X-Signature", 9), "a.jsonl: the hub does not answer as it should"),
        (Fault("size", "X-Signature", 9), "a.jsonl: the input changed while it was read"),
        (Fault(404, "resolve", 9, {"X-Error-Code": "EntryNotFound"}), "there is no such file or folder"),
    ]
    for fault, words in cases:
        hub.faults = [fault]
        with pytest.raises(StorageError, match=words) as told:
            file.read_at(0, 10)
        assert "secret" not in str(told.value)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="does not answer as it should"):
        find_hub_files(URL, None, retries=0)


def test_a_server_that_gives_another_commit_is_not_believed(hub: FakeHub) -> None:
    hub.push("lab/tickets", {"b.jsonl": lines(0, 2)})
    source = open_source(f"{URL}/b.jsonl")
    hub.faults = [Fault("commit", "resolve")]
    with pytest.raises(StorageError, match="the input changed while it was read"):
        list(source.batches())


def test_refusals_are_told_in_words(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push("lab/tickets", {"in/a.jsonl": lines(0, 1), "in/b.csv": b"id\n1\n", "x.txt": b"", "only/x.txt": b""})
    hub.push("lab/gated", {"a.jsonl": lines(0, 1)})
    hub.gated.add("lab/gated")
    plain = {
        "hf://lab/a-model": "names a model, and rows come from datasets\nWrite hf://datasets/OWNER/NAME/PATH",
        "hf://spaces/lab/x": "names a space",
        "hf://datasets/lab": "names no dataset",
        "hf://datasets/lab/t@/x.jsonl": "names no revision",
        "hf://": "names no dataset",
        "hf://datasets/lab/nothing": "there is no such dataset, or it is private\n.*set HF_TOKEN",
        "hf://datasets/lab/gated": "and there is no token\nAccept its terms at .*/lab/gated, then set HF_TOKEN",
        f"{URL}@v9/x": "the dataset has no such revision",
        f"{URL}/in/none.jsonl": "no such file or folder\nIn hf://datasets/lab/tickets/in there is a.jsonl, b.csv",
        f"{URL}/none": "no such file or folder\nIn hf://datasets/lab/tickets there is in/, only/",
        f"{URL}/none/*.jsonl": "no file matches\nLooked in hf://datasets/lab/tickets/none",
        f"{URL}/in": "mixes csv and jsonl",
        f"{URL}/only": "the folder holds no input file",
        "s4://x/y": "Known are s3://.*hf://",
    }
    for url, words in plain.items():
        with pytest.raises(UsageError, match=words):
            open_source(url)
    for kind, words in {
        "text": "does not answer as a hub does",
        "loop": "without an end",
        "plain": "encrypted",
    }.items():
        hub.faults = [Fault(kind, "revision", 9)]
        with pytest.raises(UsageError, match=words):
            open_source(URL)
    hub.faults = []
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    held = {
        "hf://datasets/lab/nothing": "there is no such dataset, or the token of HF_TOKEN may not read it",
        "hf://datasets/lab/gated": "the token of HF_TOKEN may not read it",
    }
    for url, words in held.items():
        with pytest.raises(UsageError, match=words) as told:
            open_source(url)
        assert TOKEN not in str(told.value)
    monkeypatch.setenv("HF_TOKEN", "hf_another-token")
    with pytest.raises(UsageError, match="the hub does not accept the token of HF_TOKEN") as told:
        open_source(URL)
    assert "another" not in str(told.value)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"HF_ENDPOINT": "hub.example.org"}, "HF_ENDPOINT is no address"),
        ({"HF_ENDPOINT": "https://me:secret@hub.example.org"}, "HF_ENDPOINT holds credentials"),
        ({"HF_ENDPOINT": "http://hub.example.org", "HF_TOKEN": "a-secret"}, "is not encrypted"),
        ({"HF_TOKEN": "a secret"}, "HF_TOKEN holds no token"),
    ],
)
def test_an_endpoint_or_a_token_that_cannot_be_used_is_told(
    environ: dict[str, str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words) as told:
        hub_access(URL, {"HOME": str(tmp_path), **environ})
    assert "secret" not in str(told.value)


def test_the_token_is_found_where_the_tools_of_the_hub_keep_it(tmp_path: Path) -> None:
    for name in ("home/.cache/huggingface", "own", "cache/huggingface"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "token").write_text(f"token-{name.partition('/')[0]}\n")
    home = {"HOME": str(tmp_path / "home")}
    cases: list[tuple[dict[str, str], str | None]] = [
        ({}, "token-home"),
        ({"XDG_CACHE_HOME": str(tmp_path / "cache")}, "token-cache"),
        ({"HF_HOME": str(tmp_path / "own")}, "token-own"),
        ({"HF_HOME": str(tmp_path / "none")}, None),
        ({"HF_HOME": str(tmp_path / "none"), "HF_TOKEN_PATH": str(tmp_path / "own/token")}, "token-own"),
        ({"HF_TOKEN": " told\n"}, "told"),
        ({"HUGGING_FACE_HUB_TOKEN": "older"}, "older"),
    ]
    for environ, token in cases:
        access = hub_access(URL, {**home, **environ})
        assert access.token == token, environ
        assert access.address == "https://huggingface.co"
        assert token is None or token not in repr(access)


def test_a_url_is_taken_apart() -> None:
    cases = {
        URL: ("lab/tickets", None, "", URL),
        f"{URL}/a/b@c.jsonl": ("lab/tickets", None, "a/b@c.jsonl", URL),
        f"{URL}@v1/a": ("lab/tickets", "v1", "a", f"{URL}@v1"),
        f"{URL}@feature%2Fx/a/": ("lab/tickets", "feature/x", "a/", f"{URL}@feature%2Fx"),
        f"{URL}@refs/pr/3": ("lab/tickets", "refs/pr/3", "", f"{URL}@refs/pr/3"),
        f"{URL}@~parquet/d": ("lab/tickets", "refs/convert/parquet", "d", f"{URL}@~parquet"),
    }
    for url, parts in cases.items():
        assert parse_hub_url(url) == parts


def test_a_job_reads_from_a_hub_and_goes_on_where_it_stopped(hub: FakeHub, tmp_path: Path) -> None:
    from batchchat.demo import DemoServer

    hub.push("lab/tickets", {"in/a.jsonl": lines(0, 30), "in/b.jsonl": lines(30, 40)})
    with DemoServer() as demo:
        job = make_job(tmp_path, demo.base_url, input={"path": f"{URL}/in", "key": "id"})
        assert run(job, limit=15).ok == 15
        summary = run(job)
        assert (summary.ok, summary.exit_code) == (40, 0)
        # A new commit asks only about what is new in it.
        hub.push("lab/tickets", {"in/a.jsonl": lines(0, 30), "in/b.jsonl": lines(30, 45)})
        again = run(job)
        assert (again.ok, again.exit_code, again.sent) == (45, 0, 5)
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert {row["id"] for row in rows} == set(range(45))


def test_a_hub_is_never_an_output(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"output\.path: a hub is only read: name a folder of this machine, or a bucket"):
        make_job(tmp_path, None, output={"path": "hf://datasets/lab/out"})
    for command in ("status", "show", "verify"):
        told = CliRunner().invoke(cli, [command, URL])
        assert "hf://datasets/lab/tickets cannot be an output" in str(told.exception), command
