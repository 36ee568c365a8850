"""Files and sound as parts of messages: what a column may hold, what is sent, and what a person is told."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchchat.attachments import attachment_loader, attachment_placeholders, sound_format
from batchchat.demo import DemoServer
from batchchat.errors import JobError
from batchchat.images import ImageError
from batchchat.inspection import find_records
from batchchat.planning import plan_job
from batchchat.runner.options import RunOptions
from tests.integration.jobs import make_job, run, write_rows

PDF = (
    b"%PDF-1.7\n1 0 obj<</Type /Pages/Kids[]>>endobj 2 0 obj<</Type/Page>>endobj 3 0 obj<</Type /Page >>endobj\n%%EOF\n"
)
WAV = b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x40\x1f\x00\x00\x40\x1f\x00\x00\x01\x00\x08\x00"
WAV += b"data" + (16_000).to_bytes(4, "little") + b"\x80" * 16_000  # two seconds
MP3 = b"ID3\x04\x00\x00\x00\x00\x00\x00" + b"\x00" * 2_000


def ask(kind: str, column: str = "doc") -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "Read {{ id }}"}, {"type": kind, "from": column}]}]


def plan(folder: Path, messages: Any, **fields: Any) -> Any:
    return plan_job(make_job(folder, None, messages=messages, **fields), RunOptions(), previews=50)


def parts(found: Any) -> list[dict[str, Any]]:
    return [part for shown in found.previews for part in shown.messages[0]["content"][1:]]


def test_a_file_is_sent_as_the_api_takes_it(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a b.pdf").write_bytes(PDF)
    text = base64.b64encode(PDF).decode()
    rows = [
        {"id": 0, "doc": {"path": "docs/a b.pdf", "bytes": None}},
        {"id": 1, "doc": {"path": "elsewhere/c.pdf", "bytes": PDF}},
        {"id": 2, "doc": {"path": None, "bytes": PDF}},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "structs.parquet")
    found = parts(plan(tmp_path, ask("file"), input={"path": str(tmp_path / "structs.parquet"), "key": "id"}))
    assert [part["type"] for part in found] == ["file"] * 3
    assert [part["file"]["filename"] for part in found] == ["a b.pdf", "c.pdf", "document.pdf"]
    assert {part["file"]["file_data"] for part in found} == {
        f"data:application/pdf;base64,{text[:12]}… ({len(text) + 28:,} characters)"
    }
    write_rows(
        tmp_path / "rows.jsonl",
        [
            {"id": 0, "doc": "docs/a b.pdf"},
            {"id": 1, "doc": text},
            {"id": 2, "doc": f"data:application/pdf;base64,{text}"},
            {"id": 3, "doc": ["docs/a b.pdf", text[:40] + "\n" + text[40:]]},
        ],
    )
    assert len(parts(plan(tmp_path, ask("file")))) == 5


def test_sound_is_sent_as_the_api_takes_it(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [0, 1], "doc": [WAV, MP3]}), tmp_path / "rows.parquet")
    found = parts(plan(tmp_path, ask("input_audio"), input={"path": str(tmp_path / "rows.parquet"), "key": "id"}))
    assert [part["type"] for part in found] == ["input_audio"] * 2
    assert [part["input_audio"]["format"] for part in found] == ["wav", "mp3"]
    start = base64.b64encode(WAV).decode()
    assert found[0]["input_audio"]["data"] == f"{start[:40]}… ({len(start):,} characters)"


def test_the_server_gets_the_whole_content_and_a_replaced_file_is_asked_again(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(PDF)
    (tmp_path / "b.pdf").write_bytes(PDF)
    (tmp_path / "s.wav").write_bytes(WAV)
    write_rows(
        tmp_path / "rows.jsonl", [{"id": 0, "doc": "a.pdf", "say": "s.wav"}, {"id": 1, "doc": "b.pdf", "say": "s.wav"}]
    )
    messages = ask("file")
    messages[0]["content"].append({"type": "input_audio", "from": "say"})
    with DemoServer() as demo:
        job = make_job(tmp_path, demo.base_url, messages=messages)
        assert run(job).ok == 2
        before = _answers(tmp_path)
        assert all("I received 1 file(s). I received 1 sound(s)." in text for text in before.values())
        assert run(job).ok == 2
        assert _answers(tmp_path).keys() == before.keys()
        (tmp_path / "b.pdf").write_bytes(PDF + b"% changed\n")
        assert run(job).ok == 2
        after = _answers(tmp_path)
    assert len(after.keys() & before.keys()) == 1
    stored = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert base64.b64encode(PDF)[:60] not in stored


def _answers(folder: Path) -> dict[str, str]:
    found = pq.read_table(folder / "out" / "data", columns=["custom_id", "completion"]).to_pylist()
    return {row["custom_id"]: row["completion"] for row in found}


def test_a_row_whose_file_cannot_be_sent_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "secret.pdf").write_bytes(PDF)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "page.pdf").write_bytes(b"<html>" + b"x" * 2_000)
    (folder / "late.pdf").write_bytes(b"\n" * 500 + PDF)
    (folder / "large.pdf").write_bytes(PDF + b"x" * 10_000)
    (folder / "none.pdf").write_bytes(b"")
    cases: dict[Any, str | None] = {
        "late.pdf": None,
        "page.pdf": "names 'page.pdf', which holds no PDF: a PDF can be sent",
        "large.pdf": "files.max_bytes is 5,000",
        "none.pdf": "which holds nothing",
        "gone.pdf": "cannot be read",
        "../secret.pdf": "files.root names another folder",
        "https://example.org/a.pdf": "is an address",
        "data:application/pdf,xx": "is a data URL that is not base64",
        "data:application/pdf;base64,JVBER": "base64 that is damaged",
        "": "is empty",
        None: "is null",
        17: "is int",
    }
    rows = [{"id": number, "doc": value} for number, value in enumerate(cases)]
    write_rows(folder / "rows.jsonl", rows)
    with DemoServer() as demo:
        job = make_job(folder, demo.base_url, messages=ask("file"), files={"max_bytes": 5_000})
        summary = run(job)
    assert (summary.ok, summary.exit_code) == (1, 1)
    found = pq.read_table(folder / "out" / "data", columns=["row_index", "error_kind", "error_message"]).to_pylist()
    told = {row["row_index"]: row for row in found}
    for number, words in enumerate(cases.values()):
        if words is not None:
            assert told[number]["error_kind"] == "input"
            assert words in told[number]["error_message"]


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "file", "from": "doc", "detail": "low"}, "is not of the form {type: file, from: column}"),
        ({"type": "input_audio", "from": 3}, "is not of the form {type: input_audio, from: column}"),
    ],
)
def test_a_part_of_another_form_is_told(part: dict[str, Any], words: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"id": 0, "doc": "x"}])
    with pytest.raises(JobError) as told:
        plan(tmp_path, [{"role": "user", "content": [part]}])
    assert words in told.value.message


def test_a_column_is_of_one_kind_and_files_needs_a_part(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"id": 0, "doc": "x"}])
    both = [{"role": "user", "content": [{"type": "image", "from": "doc"}, {"type": "file", "from": "doc"}]}]
    with pytest.raises(JobError, match="another part takes it otherwise"):
        plan(tmp_path, both)
    with pytest.raises(JobError, match="no message shows the file or sound"):
        plan(tmp_path, [{"role": "user", "content": "{{ doc }}"}], files={"max_bytes": "1MB"})
    with pytest.raises(JobError, match="there is no folder"):
        plan(tmp_path, ask("file"), files={"root": "/nowhere/at/all"})


def test_parts_that_are_written_out_go_on_as_they_are(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"id": 0, "doc": "file-17"}])
    written = [{"role": "user", "content": [{"type": "file", "file": {"file_id": "{{ doc }}"}}]}]
    shown = plan(tmp_path, written).previews[0].messages[0]["content"][0]
    assert shown == {"type": "file", "file": {"file_id": "file-17"}}


def test_tokens_are_guessed_by_pages_and_seconds() -> None:
    load = attachment_loader("file", root=None, max_bytes=1_000_000)
    assert load(PDF, None)[0].tokens == 3_000
    assert load(b"%PDF-1.7" + b"\x01" * 160_000, None)[0].tokens == 4_500
    sound = attachment_loader("input_audio", root=None, max_bytes=1_000_000)
    assert sound(WAV, None)[0].tokens == 20
    assert sound(MP3, None)[0].tokens == 1
    with pytest.raises(ImageError, match=r"lies in no folder of this machine|files\.root"):
        load("a.pdf", None)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        *((WAV, "wav"), (MP3, "mp3"), (b"\xff\xfb\x90\x00", "mp3"), (b"\xff\xf3\x44\xc4", "mp3"), (b"", None)),
        *((b"\xff\xf1\x50\x80", None), (b"OggS\x00", None), (b"fLaC", None), (b"RIFF....WEBP", None), (PDF, None)),
    ],
)
def test_sound_is_known_by_its_first_bytes(data: bytes, kind: str | None) -> None:
    assert sound_format(data) == kind


def test_what_is_only_shown_is_not_read() -> None:
    values = {"doc": "gone/a.pdf", "say": b"123", "more": ["x" * 1_000, {"path": "q.pdf", "bytes": b"12"}]}
    shown = attachment_placeholders({"doc": "file", "say": "input_audio", "more": "file", "not": "file"}, values)
    assert set(shown) == {"doc", "say", "more"}
    loaded = [one for found in shown.values() if not isinstance(found, str) for one in found]
    told = json.loads(b"[" + b",".join(one.url for one in loaded) + b"]")
    assert told == ["gone/a.pdf", "(3 bytes)", "(1,000 characters)", "(2 bytes)"]


def test_show_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(PDF)
    write_rows(tmp_path / "rows.jsonl", [{"id": 0, "doc": "a.pdf"}])
    with DemoServer() as demo:
        run(make_job(tmp_path, demo.base_url, messages=ask("file")))
    (record,) = find_records(tmp_path / "out")
    assert "a.pdf" in json.dumps(record.messages)
