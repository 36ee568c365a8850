"""Jobs that send images: from paths, bytes and addresses, over real sockets."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchchat
from batchchat.cli.json_output import as_json
from batchchat.cli.plan_page import render_plan
from batchchat.cli.record_page import render_record
from batchchat.cli.terminal import Terminal
from batchchat.demo import DemoOptions, DemoServer
from batchchat.errors import JobError
from batchchat.export import export
from batchchat.inspection import find_records
from batchchat.job import Job
from batchchat.planning import plan_job
from batchchat.runner.options import RunOptions
from tests.integration.jobs import make_job, query, run, write_rows
from tests.pictures import GIF, png

ASK: list[dict[str, Any]] = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is on {{ photo | default('it') }}?"},
            {"type": "image", "from": "photo", "detail": "low"},
        ],
    }
]


def shows(part: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [part]}]


@pytest.fixture
def demo() -> Iterator[DemoServer]:
    with DemoServer(DemoOptions(latency_s=0)) as server:
        yield server


def picture(number: int) -> bytes:
    return png(4, 4, (number, 0, 0))


def with_files(folder: Path, count: int) -> list[dict[str, Any]]:
    (folder / "photos").mkdir(exist_ok=True)
    rows = []
    for number in range(count):
        (folder / "photos" / f"{number}.png").write_bytes(picture(number))
        rows.append({"id": number, "photo": f"photos/{number}.png"})
    write_rows(folder / "rows.jsonl", rows)
    return rows


def parquet_job(folder: Path, base_url: str | None, table: pa.Table, **fields: Any) -> Job:
    pq.write_table(table, folder / "rows.parquet")
    spec = {"path": str(folder / "rows.parquet"), "key": "id"}
    return make_job(folder, base_url, input=spec, messages=ASK, **fields)


def bodies_of(job: Job, **options: Any) -> tuple[batchchat.RunSummary, list[dict[str, Any]]]:
    """Run a job against a transport that keeps what it is sent."""
    bodies: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return httpx.Response(200, json={"choices": [{"message": {"content": "red"}, "finish_reason": "stop"}]})

    transport = httpx.MockTransport(answer)
    return batchchat.run(job, transport=transport, options=RunOptions(**options), environ={}), bodies


def images_in(body: dict[str, Any]) -> list[Any]:
    return [part["image_url"] for part in body["messages"][0]["content"] if part["type"] == "image_url"]


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def test_files_named_by_a_column_are_sent_as_data_urls_in_the_shape_of_the_api(tmp_path: Path) -> None:
    with_files(tmp_path, 3)
    summary, bodies = bodies_of(make_job(tmp_path, None, messages=ASK))
    assert (summary.exit_code, summary.ok) == (0, 3)
    bodies.sort(key=lambda body: str(body["messages"][0]["content"][0]["text"]))
    for number, body in enumerate(bodies):
        assert body["messages"] == [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": f"What is on photos/{number}.png?"},
                    {"type": "image_url", "image_url": {"url": data_url(picture(number)), "detail": "low"}},
                ],
            }
        ]
    assert query(tmp_path, "select photo, completion from data order by id limit 1") == [("photos/0.png", "red")]


def test_a_changed_picture_is_asked_again_and_an_equal_one_elsewhere_is_not(tmp_path: Path, demo: DemoServer) -> None:
    with_files(tmp_path, 5)
    ask = [{"role": "user", "content": ASK[0]["content"][1:]}]
    job = make_job(tmp_path, demo.base_url, messages=ask)
    assert run(job).sent == 5
    assert run(job).sent == 0
    (tmp_path / "photos" / "2.png").write_bytes(picture(99))
    changed = run(job)
    assert (changed.sent, changed.ok, changed.kept) == (1, 5, 0)
    # The same pixels as bytes in Parquet are the same requests.
    pictures = pa.array([picture(99 if number == 2 else number) for number in range(5)])
    table = pa.table({"id": list(range(5)), "photo": pictures})
    pq.write_table(table, tmp_path / "rows.parquet")
    spec = {"path": str(tmp_path / "rows.parquet"), "key": "id"}
    moved, bodies = bodies_of(make_job(tmp_path, None, messages=ask, input=spec, output=str(tmp_path / "o2")))
    assert (moved.ok, len(bodies)) == (5, 5)
    ids = batchchat.read_output(tmp_path / "out", columns=["custom_id"])
    assert batchchat.read_output(tmp_path / "o2", columns=["custom_id"]) == ids


def test_bytes_and_structs_of_parquet_are_images(tmp_path: Path, demo: DemoServer) -> None:
    hugging_face = pa.array(
        [{"bytes": picture(1), "path": "anything.png"}, {"bytes": None, "path": "here.png"}],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    (tmp_path / "here.png").write_bytes(picture(2))
    ask = [{"role": "user", "content": [{"type": "image", "from": "photo"}]}]
    job = parquet_job(tmp_path, demo.base_url, pa.table({"id": [1, 2], "photo": hugging_face}))
    job = job.model_copy(update={"messages": ask})
    summary, bodies = bodies_of(job)
    assert (summary.ok, summary.failed) == (2, 0)
    sent = sorted(image["url"] for body in bodies for image in images_in(body))
    assert sent == sorted([data_url(picture(1)), data_url(picture(2))])
    assert query(tmp_path, "select photo.bytes from data where id = 1") == [(picture(1),)]
    assert export(tmp_path / "out", tmp_path / "all.jsonl").missing == 0


def test_a_list_of_images_and_an_address(tmp_path: Path, demo: DemoServer) -> None:
    with_files(tmp_path, 3)
    pages = ["photos/0.png", "photos/1.png", "https://images.example/2.png"]
    write_rows(tmp_path / "rows.jsonl", [{"id": 1, "photo": pages}])
    _, bodies = bodies_of(make_job(tmp_path, None, messages=ASK))
    told = [data_url(picture(0)), data_url(picture(1)), pages[2]]
    assert images_in(bodies[0]) == [{"url": url, "detail": "low"} for url in told]
    assert run(make_job(tmp_path, demo.base_url, messages=ASK, output=str(tmp_path / "o2"))).exit_code == 0


def test_a_bad_image_fails_its_row_alone(tmp_path: Path, demo: DemoServer) -> None:
    rows = with_files(tmp_path, 6)
    (tmp_path / "photos" / "1.png").write_text("no image", encoding="utf-8")
    (tmp_path / "photos" / "2.png").unlink()
    rows[3]["photo"] = "../outside.png"
    rows[4]["photo"] = None
    write_rows(tmp_path / "rows.jsonl", rows)
    summary = run(make_job(tmp_path, demo.base_url, messages=ASK))
    assert (summary.exit_code, summary.ok, summary.failed) == (1, 2, 4)
    found = query(tmp_path, "select id, error_kind, error_message from data where status = 'failed' order by id")
    assert [(row, kind) for row, kind, _ in found] == [(row, "input") for row in (1, 2, 3, 4)]
    for (_, _, message), told in zip(found, ("not an image", "No such file", "lies outside", "is null"), strict=True):
        assert told in message
        assert message.startswith("messages.0.content.1 from 'photo': the column ")
    (tmp_path / "photos" / "1.png").write_bytes(GIF)
    mended = run(make_job(tmp_path, demo.base_url, messages=ASK))
    assert (mended.sent, mended.ok, mended.failed, mended.kept) == (1, 3, 3, 0)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("text, no image", "not an image: PNG, JPEG, GIF or WebP can be sent"),
        (None, "cannot be read"),
    ],
)
def test_if_no_row_has_an_image_nothing_is_sent(
    tmp_path: Path, demo: DemoServer, content: str | None, told: str
) -> None:
    rows = with_files(tmp_path, 3)
    for row in rows:
        path = tmp_path / row["photo"]
        path.unlink()
        if content is not None:
            path.write_text(content, encoding="utf-8")
    with pytest.raises(JobError, match=told) as caught:
        run(make_job(tmp_path, demo.base_url, messages=ASK))
    assert caught.value.exit_code == 2
    assert demo.stats().requests == 0
    assert not (tmp_path / "out").exists()


def test_more_images_than_the_provider_takes_fail_before_they_are_sent(tmp_path: Path, demo: DemoServer) -> None:
    with_files(tmp_path, 1)
    rows = [{"id": number, "photo": ["photos/0.png"] * number} for number in (12, 13)]
    write_rows(tmp_path / "rows.jsonl", rows)
    summary = run(make_job(tmp_path, demo.base_url, messages=ASK))
    assert (summary.ok, summary.failed, summary.sent) == (1, 1, 1)
    found = query(tmp_path, "select error_message from data where status = 'failed'")
    assert found == [("messages: 13 images, and the provider takes at most 12 in one request",)]
    given = {"type": "image_url", "image_url": {"url": "https://x.example/1"}}
    one_more = [{"role": "user", "content": [*ASK[0]["content"], *[given] * 12]}]
    with pytest.raises(JobError, match="none of the first rows renders; row 0: messages: 24 images"):
        run(make_job(tmp_path, demo.base_url, messages=one_more))
    conversations = [{"id": 1, "turns": [{"role": "user", "content": [given] * 24}]}]
    write_rows(tmp_path / "rows.jsonl", conversations)
    with pytest.raises(JobError, match="messages: 24 images"):
        run(make_job(tmp_path, demo.base_url, messages={"from": "turns"}))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"messages": shows({"type": "image"})}, "is not of the form {type: image, from: column}"),
        ({"messages": shows({"type": "image", "from": "a", "url": "b"})}, "is not of the form"),
        ({"messages": shows({"type": "image", "from": "a", "detail": "{{ a }}"})}, "must be a plain text, such as low"),
        ({"messages": shows({"type": "image", "from": "phto"})}, "did you mean 'photo'"),
        ({"messages": ASK, "images": {"root": "/nowhere/at/all"}}, "there is no folder /nowhere/at/all"),
        ({"images": {"max_bytes": "5MB"}}, "no message shows the image of a column"),
        ({"messages": ASK, "images": {"max_bytes": "60 B"}}, "images.max_bytes is 60"),
    ],
)
def test_a_job_that_cannot_send_images_is_refused_with_the_place(
    tmp_path: Path, demo: DemoServer, fields: dict[str, Any], told: str
) -> None:
    with_files(tmp_path, 1)
    job: dict[str, Any] = {"messages": [{"role": "user", "content": "{{ photo }}"}], **fields}
    with pytest.raises(JobError) as caught:
        run(make_job(tmp_path, demo.base_url, **job))
    assert told in caught.value.message
    assert caught.value.field is not None


def test_images_root_names_another_folder(tmp_path: Path, demo: DemoServer) -> None:
    rows = with_files(tmp_path, 2)
    (tmp_path / "elsewhere").mkdir()
    write_rows(tmp_path / "elsewhere" / "rows.jsonl", rows)
    spec = {"path": str(tmp_path / "elsewhere"), "key": "id"}
    with pytest.raises(JobError, match="No such file"):
        run(make_job(tmp_path, demo.base_url, input=spec, messages=ASK))
    summary = run(make_job(tmp_path, demo.base_url, input=spec, messages=ASK, images={"root": str(tmp_path)}))
    assert (summary.exit_code, summary.ok) == (0, 2)


@pytest.mark.thorough
def test_images_larger_than_any_text_may_be_are_sent(tmp_path: Path, demo: DemoServer) -> None:
    (tmp_path / "big.png").write_bytes(picture(1) + bytes(6_000_000))
    write_rows(tmp_path / "rows.jsonl", [{"id": number, "photo": "big.png"} for number in range(5)])
    summary = run(make_job(tmp_path, demo.base_url, messages=ASK))
    assert (summary.exit_code, summary.ok, summary.sent) == (0, 5, 5)
    write_rows(tmp_path / "rows.jsonl", [{"id": 1, "photo": ["big.png"] * 9}])
    with pytest.raises(JobError, match="over the limit of 67,108,864"):
        run(make_job(tmp_path, demo.base_url, messages=ASK))


def test_plan_and_show_tell_of_pictures_in_a_few_characters(tmp_path: Path, demo: DemoServer) -> None:
    big = [picture(1) + bytes(50_000), picture(2) + bytes(50_000)]
    photos = pa.array(big)
    ask = [{"role": "user", "content": [{"type": "image", "from": "photo"}, {"type": "text", "text": "What is it?"}]}]
    job = parquet_job(tmp_path, demo.base_url, pa.table({"id": [1, 2], "photo": photos}))
    job = job.model_copy(update={"messages": ask})
    plan = plan_job(job)
    assert plan.requests == 2
    assert 2_000 <= (plan.prompt_tokens or 0) < 2_100  # flat, whatever their size
    assert run(job).ok == 2
    records = list(find_records(tmp_path / "out"))
    for view in (plan, *records):
        assert len(json.dumps(as_json(view))) < 5_000
    told = f"({len(big[0]):,} bytes)"
    assert records[0].messages is not None
    assert records[0].messages[0]["content"][0]["image_url"]["url"] == told
    assert as_json(records[0])["input"]["photo"] == told
    for shown in (render_plan(plan), render_record(records[0])):
        text = drawn(shown)
        assert "[image_url]" in text
        assert len(text) < 5_000


def drawn(renderable: Any) -> str:
    stream = io.StringIO()
    Terminal(stream, tty=False, width=80).print(renderable)
    return stream.getvalue()


def test_samples_of_a_row_with_an_image_share_it(tmp_path: Path) -> None:
    with_files(tmp_path, 2)
    params = {"seed": "{{ sample_index }}"}
    summary, bodies = bodies_of(make_job(tmp_path, None, messages=ASK, samples=3, params=params))
    assert (summary.ok, sorted(body["seed"] for body in bodies)) == (6, [0, 0, 1, 1, 2, 2])
    assert len({images_in(body)[0]["url"] for body in bodies}) == 2


def test_limit_reads_only_the_images_of_its_rows(tmp_path: Path, demo: DemoServer) -> None:
    with_files(tmp_path, 4)
    for number in (2, 3):
        (tmp_path / "photos" / f"{number}.png").unlink()
    summary = run(make_job(tmp_path, demo.base_url, messages=ASK), limit=2)
    assert (summary.exit_code, summary.ok) == (0, 2)
