"""A real server that is only full: it has two slots, and says so to the rest, or lets them wait for too long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import batchchat
from batchchat.events import Event
from tests.integration.jobs import make_job, texts, write_rows
from tests.integration.raw_server import Peer, RawServer, response
from tests.thorough import one_in

SLOTS = 2
FULL = response(b'{"error":{"message":"no free slot"}}', status="503 Service Unavailable")


def slots(how: str) -> Callable[[Peer], Awaitable[None]]:
    """Answer two requests at a time, each in 20 ms; what happens to the others is said by `how`."""
    busy = 0

    async def script(peer: Peer) -> None:
        nonlocal busy
        while True:
            await peer.request()
            if busy >= SLOTS:
                if how == "waits too long":
                    await peer.gone()
                    return
                await peer.send(FULL)
                if how == "503 and closed":
                    return
                continue
            busy += 1
            try:
                await asyncio.sleep(0.02)
            finally:
                busy -= 1
            await peer.send(response())

    return script


@pytest.mark.parametrize("how", one_in(3, ["503", "503 and closed", "waits too long"]))
def test_a_full_server_gets_fewer_at_once_and_every_row_its_answer(tmp_path: Path, how: str) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(100))
    events: list[Event] = []
    with RawServer(slots(how)) as server:
        retry = {"request_timeout": "1s"} if how == "waits too long" else {}
        job = make_job(tmp_path, f"{server.url}/v1", limits={"concurrency": 64}, retry=retry)
        summary = batchchat.run(job, environ={}, listener=events.append)
    assert (summary.exit_code, summary.ok) == (0, 100)
    assert "breaker_opened" not in {event.name for event in events}
