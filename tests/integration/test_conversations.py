"""Conversations from a column of Parquet: what Arrow adds is taken away, what was said stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchchat
from tests.integration.jobs import make_job, query

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": null}'}}
PICTURE = {"type": "image_url", "image_url": {"url": "https://x.example/1.png", "detail": "low"}}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is the weather?"}],
    [
        {"role": "system", "content": "You know the weather."},
        {"role": "user", "content": "What is the weather?"},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "assistant", "content": "It rains. {{ not a template }}"},
        {"role": "user", "content": "And tomorrow?", "name": "ada"},
    ],
]
PARTS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, PICTURE]}],
    [{"role": "user", "content": [{"type": "text", "text": "Nothing here."}]}],
]


def sent(folder: Path, turns: pa.Array) -> list[dict[str, Any]]:
    """Run a table of conversations and return the bodies in the order of the rows."""
    pq.write_table(pa.table({"id": list(range(len(turns))), "turns": turns}), folder / "rows.parquet")
    bodies: dict[int, dict[str, Any]] = {}

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        bodies[body["seed"]] = body
        return httpx.Response(200, json={"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]})

    spec = {"path": str(folder / "rows.parquet"), "key": "id"}
    job = make_job(folder, None, input=spec, messages={"from": "turns"}, params={"seed": "{{ id }}"})
    summary = batchchat.run(job, transport=httpx.MockTransport(answer), environ={})
    assert (summary.exit_code, summary.ok) == (0, len(turns))
    return [bodies[number] for number in range(len(turns))]


@pytest.mark.parametrize("conversations", [CONVERSATIONS, PARTS], ids=["tools", "parts"])
def test_messages_arrive_as_they_were_although_arrow_gives_each_all_fields(
    tmp_path: Path, conversations: list[list[dict[str, Any]]]
) -> None:
    turns = pa.array(conversations)
    assert None in turns[0][0].as_py().values() or conversations is PARTS
    bodies = sent(tmp_path, turns)
    assert [body["messages"] for body in bodies] == conversations
    # They are carried with their types, and read as such.
    assert query(tmp_path, "select turns[1].role from data order by id") == [
        (turn[0]["role"],) for turn in conversations
    ]


def test_messages_as_json_text_are_the_same_requests(tmp_path: Path) -> None:
    texts = pa.array([json.dumps(conversation) for conversation in CONVERSATIONS])
    assert [body["messages"] for body in sent(tmp_path, texts)] == CONVERSATIONS
    ids = query(tmp_path, "select custom_id from data order by id")
    (tmp_path / "typed").mkdir()
    sent(tmp_path / "typed", pa.array(CONVERSATIONS))
    assert query(tmp_path / "typed", "select custom_id from data order by id") == ids
