"""Rows that an earlier pass knew are passed over: with the same records and counts as when every row is rendered."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchchat.errors import StorageError
from batchchat.events import RunSummary
from batchchat.planning import plan_job
from batchchat.records import ErrorKind
from batchchat.runner import inputs, preparation
from batchchat.runner.options import RunOptions
from batchchat.runner.run import run_job
from batchchat.sources import open_source
from batchchat.store import Store, read_output
from batchchat.template import Template
from tests.integration.jobs import make_job, texts, write_rows
from tests.thorough import one_in

TEMPLATES = [[{"role": "user", "content": text}] for text in ("Sort: {{ text }}", "Other: {{ text }}")]
EVERYTHING = RunOptions()
COLUMNS = ["custom_id", "key", "sample_index", "source", "status", "completion", "error_kind", "error_message"]


async def inline(function: Callable[..., Any], *args: Any, abandon: bool = False) -> Any:
    del abandon
    return function(*args)


class Provider(httpx.AsyncBaseTransport):
    """Answers by what the text says; after `halt_after` requests the key is no good any more."""

    def __init__(self, halt_after: int | None = None) -> None:
        self.asked: list[str] = []
        self._left = halt_after

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await anyio.sleep(1)  # meanwhile all rows are read: what a halted run knows does not depend on chance
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                return httpx.Response(401, json={"error": {"message": "no"}})
        text = json.loads(request.content)["messages"][0]["content"]
        self.asked.append(text)
        reason = "length" if "long" in text else "error" if "flaky" in text else "stop"
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choice = {"message": {"content": text.upper()}, "finish_reason": reason}
        return httpx.Response(200, json={"choices": [choice], "usage": usage, "model": "m"})


@dataclass
class Outcome:
    """What a run said and left."""

    summary: RunSummary
    asked: list[str]
    records: list[dict[str, Any]]
    counts: tuple[Any, ...] = field(init=False)

    def __post_init__(self) -> None:
        told = self.summary
        self.counts = (told.exit_code, told.reason, told.rows, told.ok, told.failed, told.open, told.kept)
        self.counts += (told.new_ok, told.new_failed, told.revived, told.sent, told.failures)


def once(
    folder: Path,
    *,
    options: RunOptions = EVERYTHING,
    halt_after: int | None = None,
    open_store: Callable[..., Store] = Store.open,
    **fields: Any,
) -> Outcome:
    """Run the job of a folder once, on a virtual clock, one request at a time."""
    fields = {"messages": TEMPLATES[0], "limits": {"concurrency": 1}, "retry": {"attempts": 1}, **fields}
    provider = Provider(halt_after)
    main = functools.partial(
        run_job, make_job(folder, None, **fields), transport=provider, offload=inline, environ={}, seed=1,
        options=options, open_store=open_store,
    )  # fmt: skip
    clock = trio.testing.MockClock(autojump_threshold=0)
    summary = anyio.run(main, backend="trio", backend_options={"clock": clock})
    records = read_output(folder / "out").select(COLUMNS).to_pylist() if (folder / "out/data").exists() else []
    return Outcome(summary, provider.asked, sorted(records, key=lambda record: record["custom_id"]))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of three rows, so that a few rows are many batches; a repeated key is no error at the start."""
    small = functools.partial(open_source, batch_rows=3, batch_bytes=64)
    monkeypatch.setattr(inputs, "open_source", small)
    monkeypatch.setattr(preparation, "_KEYS_CHECKED", 1)


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts of the rows that were rendered, save by the check before a run."""
    found: list[str] = []
    render = Template.render

    def noted(self: Template, values: Any, *args: Any) -> Any:
        found.append(values["text"])
        return render(self, values, *args)

    monkeypatch.setattr(Template, "render", noted)
    monkeypatch.setattr(preparation, "try_template", lambda *_, **__: None)
    return found


def all_texts(count: int, start: int = 0) -> list[str]:
    return [f"row number {number}" for number in range(start, start + count)]


KEYED = pytest.mark.parametrize("key", ["id", None])


def without(key: str | None, folder: Path) -> dict[str, Any]:
    return {"input": {"path": str(folder / "rows.jsonl"), "key": key}}


@KEYED
def test_what_is_done_is_neither_read_nor_rendered(tmp_path: Path, rendered: list[str], key: str | None) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(20))
    once(tmp_path, **without(key, tmp_path))
    assert rendered == all_texts(20)
    rendered.clear()
    again = once(tmp_path, **without(key, tmp_path))
    assert (rendered, again.asked) == ([], [])
    assert (again.summary.exit_code, again.summary.rows, again.summary.ok) == (0, 20, 20)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"id": 20, "text": "row number 20"}\n')
    grown = once(tmp_path, **without(key, tmp_path))
    assert (rendered, grown.asked) == (all_texts(1, 20), ["Sort: row number 20"])
    assert (grown.summary.rows, grown.summary.ok) == (21, 21)


@KEYED
def test_what_was_stopped_half_way_goes_on_where_it_was(tmp_path: Path, rendered: list[str], key: str | None) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(30))
    first = once(tmp_path, halt_after=17, **without(key, tmp_path))
    assert (first.summary.exit_code, first.summary.ok, first.summary.open) == (3, 17, 13)
    rendered.clear()
    second = once(tmp_path, **without(key, tmp_path))
    # The batch in which it stopped is read again, but only what is open in it is rendered.
    assert rendered == all_texts(13, 17)
    assert (second.summary.ok, second.summary.sent) == (30, 13)


def test_failed_rows_are_found_again_among_many(tmp_path: Path, rendered: list[str]) -> None:
    rows = texts(40)
    for number in (3, 20, 21):
        rows[number]["text"] = f"long {number}"
    write_rows(tmp_path / "rows.jsonl", rows)
    assert once(tmp_path).summary.failed == 3
    rendered.clear()
    assert once(tmp_path).summary.failed == 3
    assert rendered == []
    again = once(tmp_path, options=RunOptions(retry_failed=frozenset({ErrorKind.TRUNCATED})))
    assert rendered == ["long 3", "long 20", "long 21"]
    assert (again.summary.sent, again.summary.failed, again.summary.ok) == (3, 3, 37)


@pytest.mark.thorough
def test_another_text_renders_all_rows(tmp_path: Path, rendered: list[str]) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(10))
    once(tmp_path)
    for fields in ({"messages": TEMPLATES[1]}, {"params": {"temperature": 1}}, {"model": "other"}, {"samples": 2}):
        rendered.clear()
        assert once(tmp_path, **fields).summary.exit_code == 0
        assert rendered == all_texts(10)
    rendered.clear()
    once(tmp_path, samples=2, retry={"attempts": 3}, limits={"concurrency": 2})  # none of this makes another request
    assert rendered == []


def test_a_part_that_is_gone_opens_its_rows(tmp_path: Path, rendered: list[str]) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(20))
    once(tmp_path, output={"path": str(tmp_path / "out"), "part_rows": 5})
    (tmp_path / "out/data/part-00001.parquet").unlink()
    data = (tmp_path / "out/data/part-00003.parquet").read_bytes()
    (tmp_path / "out/data/part-00003.parquet").write_bytes(data[: len(data) // 2])
    rendered.clear()
    mended = once(tmp_path)
    assert rendered == [*all_texts(5, 5), *all_texts(5, 15)]
    assert (mended.summary.exit_code, mended.summary.ok, mended.summary.sent) == (0, 20, 10)
    assert len(mended.records) == 20


@pytest.mark.parametrize("suffix", one_in(2, ["log", "ids", "keys"]))
@pytest.mark.parametrize("damage", one_in(2, ["gone", "cut", "changed"]))
def test_a_damaged_trail_costs_only_rendering(tmp_path: Path, rendered: list[str], suffix: str, damage: str) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(30))
    once(tmp_path)
    path = tmp_path / "out/_batchchat" / f"trail.{suffix}"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    rendered.clear()
    again = once(tmp_path)
    assert (again.summary.exit_code, again.summary.ok, again.summary.sent) == (0, 30, 0)
    assert rendered == all_texts(len(rendered), 30 - len(rendered))
    assert 0 < len(rendered) <= 30
    rendered.clear()
    assert once(tmp_path).summary.ok == 30
    assert rendered == []  # it was made good


def test_a_crash_between_commit_and_part_is_recovered_behind_a_trail(tmp_path: Path, rendered: list[str]) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(12))
    once(tmp_path, halt_after=5)

    def stop(name: str) -> None:
        if name == "seal.archived":
            raise StorageError("the disk is gone")

    assert once(tmp_path, open_store=functools.partial(Store.open, point=stop)).summary.exit_code == 74
    assert list((tmp_path / "out/_batchchat").glob("journal-*.log"))
    rendered.clear()
    recovered = once(tmp_path)
    assert (recovered.summary.exit_code, recovered.summary.ok, recovered.summary.sent) == (0, 12, 0)
    assert rendered == []


def test_what_comes_through_a_pipe_leaves_the_trail_of_the_file_alone(
    tmp_path: Path, rendered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(10))
    once(tmp_path)
    with (tmp_path / "rows.jsonl").open("rb") as file:
        monkeypatch.setattr("sys.stdin", type("Piped", (), {"buffer": file}))
        piped = once(tmp_path, input={"path": "-", "key": "id"})
    assert (piped.summary.ok, piped.summary.sent) == (10, 0)
    sampled = once(tmp_path, options=RunOptions(sample=4))
    assert (sampled.summary.rows, sampled.summary.sent) == (4, 0)
    rendered.clear()
    assert once(tmp_path).summary.ok == 10
    assert rendered == []


@KEYED
def test_a_plan_passes_over_the_same_rows_and_leaves_the_trail_alone(
    tmp_path: Path, rendered: list[str], key: str | None
) -> None:
    rows = texts(20)
    rows[4]["text"] = "long 4"
    write_rows(tmp_path / "rows.jsonl", rows)
    job = make_job(tmp_path, None, messages=TEMPLATES[0], **without(key, tmp_path))
    assert plan_job(job).new == 20  # where there is no output yet
    once(tmp_path, halt_after=13, **without(key, tmp_path))
    state = sorted((path.name, path.read_bytes()) for path in (tmp_path / "out/_batchchat").glob("trail.*"))
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"id": 20, "text": "row number 20"}\n')
    rendered.clear()
    view = plan_job(job)
    assert (view.done, view.failed, view.new, view.requests) == (12, 1, 8, 8)
    assert rendered == [*all_texts(7, 13), "row number 20"]
    assert sorted((path.name, path.read_bytes()) for path in (tmp_path / "out/_batchchat").glob("trail.*")) == state
    for path in (tmp_path / "out/_batchchat").glob("trail.*"):
        path.unlink()
    rendered.clear()
    assert plan_job(job) == view
    assert len(rendered) == 21


# ---- any history ----------------------------------------------------------------------------------------------------

LINES = st.sampled_from(
    [
        '{"id": 1, "text": "a"}',
        '{"id": 2, "text": "a"}',
        '{"id": 3, "text": "a"}',
        '{"id": 4, "text": "long"}',
        '{"id": 5, "text": "flaky"}',
        '{"id": 6, "text": "b", "more": [1]}',
        '{"id": 7, "other": "no text"}',
        '{"text": "no key"}',
        "no json",
        "",
    ]
)
EDITS = st.one_of(
    st.just(("keep",)),
    st.just(("keep",)),
    st.just(("touch",)),
    st.tuples(st.just("append"), st.lists(LINES, min_size=1, max_size=4)),
    st.tuples(st.just("replace"), st.integers(0, 30), LINES),
    st.tuples(st.just("insert"), st.integers(0, 30), LINES),
    st.tuples(st.just("delete"), st.integers(0, 30)),
    st.just(("unended",)),
)
STEPS = st.fixed_dictionaries(
    {"edit": EDITS},
    optional={
        "template": st.just(1),
        "samples": st.integers(2, 3),
        "limit": st.integers(1, 14),
        "retry": st.sampled_from([frozenset(ErrorKind), frozenset({ErrorKind.TRUNCATED})]),
        "prune": st.just(True),
        "halt_after": st.integers(0, 12),
        "lost": st.integers(0, 3),
    },
)


def edited(lines: list[str], edit: tuple[Any, ...]) -> list[str]:
    kind, *about = edit
    if kind == "append":
        return [*lines, *about[0]]
    if kind in {"replace", "insert", "delete"} and len(lines) > 1:
        place = 1 + about[0] % (len(lines) - 1)
        return [*lines[:place], *about[1:], *lines[place + (kind != "insert") :]]
    return lines


@dataclass
class Twin:
    """One of two outputs of the same input; the one `forgetful` of its trail renders every row in every run."""

    folder: Path
    keyed: bool
    forgetful: bool

    def step(self, lines: list[str], step: dict[str, Any]) -> Outcome:
        rows = self.folder / "rows.jsonl"
        data = "\n".join(lines) + "\n" * (step["edit"][0] != "unended")
        if not rows.exists() or rows.read_text() != data or step["edit"][0] == "touch":
            rows.write_text(data)
        state = self.folder / "out/_batchchat"
        if self.forgetful:
            for path in state.glob("trail.*"):
                path.unlink()
        for part in (self.folder / "out/data").glob("*.parquet"):
            if "lost" in step:
                table = pq.read_table(part)
                rest = [n for n, row in enumerate(table.column("row_index").to_pylist()) if row % 4 != step["lost"]]
                pq.write_table(table.take(pa.array(rest, pa.int64())), part)
        return once(
            self.folder,
            options=RunOptions(limit=step.get("limit"), retry_failed=step.get("retry"), prune=step.get("prune", False)),
            halt_after=step.get("halt_after"),
            input={"path": str(rows), "key": "id" if self.keyed else None},
            output={"path": str(self.folder / "out"), "part_rows": 4},
            messages=TEMPLATES[step.get("template", 0)],
            samples=step.get("samples", 1),
        )


def compare_twins(folder: Path, keyed: bool, lines: list[str], steps: list[dict[str, Any]]) -> None:
    twins = [Twin(folder / name, keyed, name == "forgetful") for name in ("following", "forgetful")]
    for twin in twins:
        twin.folder.mkdir()
    lines = ['{"id": 0, "text": "first"}', *lines]
    for step in steps:
        lines = edited(lines, step["edit"])
        following, forgetful = (twin.step(lines, step) for twin in twins)
        assert following.counts == forgetful.counts
        assert following.asked == forgetful.asked
        assert following.records == forgetful.records


def check_any_history(examples: int) -> Callable[..., None]:
    @settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(st.booleans(), st.lists(LINES, max_size=12), st.lists(STEPS, min_size=2, max_size=5))
    def test(tmp_path: Path, keyed: bool, lines: list[str], steps: list[dict[str, Any]]) -> None:
        folder = tmp_path / os.urandom(6).hex()
        folder.mkdir()
        compare_twins(folder, keyed, lines, steps)
        shutil.rmtree(folder)

    return test


test_any_history_has_the_same_records_and_counts = check_any_history(2)
test_more_histories_have_the_same_records_and_counts = pytest.mark.thorough(check_any_history(10))
test_any_long_history_has_the_same_records_and_counts = pytest.mark.long(check_any_history(150))
