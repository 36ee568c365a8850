"""Looking for the batches of a chunk: those of every try are found, in dialects with labels and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from batchchat.engines.batch.building import Asker
from batchchat.engines.batch.carried import Carried
from batchchat.engines.batch.creation import Creation, Patience, labels_of
from batchchat.engines.batch.harvest import Terms
from batchchat.engines.batch.ledger import ChunkState, Ledger
from batchchat.engines.batch.service import RemoteBatch
from batchchat.engines.batch.services import open_service
from batchchat.engines.batch.setting import BatchSetting, Means
from batchchat.providers import PROFILES
from batchchat.store.index import RecordIndex
from tests.batch_play import Options, Play

PLANNED = 1_700_000_000.0
CHUNK: dict[str, Any] = {
    "name": "job-000001-n-d",
    "nonce": "n",
    "digest": "d",
    "run_id": "r",
    "ref": "f1",
    "planned_at": PLANNED,
}


def find(name: str, listed: Any, state: ChunkState, tmp_path: Path) -> list[RemoteBatch]:
    """What is found of a chunk if the provider's list of batches is this."""
    query = {"openai": "?limit=100", "together": ""}[name]
    play = Play({f"GET /v1/batches{query}": listed})
    service = open_service(PROFILES[name], Options(), api_key="sk-0123456789", environ={}, transport=play)

    async def use() -> list[RemoteBatch]:
        setting = BatchSetting(tmp_path, Asker("job", "r", "p", "m"), Terms(None, attempts=1), poll=1.0)
        known = Carried(RecordIndex(), None, {}, tmp_path)
        means = Means(service, setting, known, print, wall_clock=lambda: PLANNED)
        creation = Creation(means, Ledger(tmp_path), Patience(1.0, print, anyio.sleep))
        async with service:
            return await creation.find(state)

    return anyio.run(use)


@pytest.mark.parametrize("name", ["openai", "together"])
def test_a_batch_of_an_earlier_try_is_found_however_late_the_list_shows_it(name: str, tmp_path: Path) -> None:
    first = ChunkState(1, tries=1, **CHUNK)
    # The provider was looked at for a quarter of an hour before it was asked again.
    second = ChunkState(1, tries=2, **CHUNK)
    listed: list[dict[str, Any]] = [
        {"id": "b2", "input_file_id": "f1", "status": "in_progress", "created_at": PLANNED + 961},
        {"id": "b1", "input_file_id": "f1", "status": "in_progress", "created_at": PLANNED + 61},
        {"id": "b0", "input_file_id": "f0", "status": "in_progress", "created_at": PLANNED + 50},
    ]
    if name == "openai":
        for each, state in zip(listed, (second, first), strict=False):
            each["metadata"] = labels_of(state)
        listed[2]["metadata"] = {**labels_of(first), "batchchat_nonce": "another"}
    page = {"data": listed, "has_more": False} if name == "openai" else listed
    assert [batch.id for batch in find(name, page, second, tmp_path)] == ["b1", "b2"]


def test_the_tries_of_a_chunk_differ_at_the_provider() -> None:
    first, second = (labels_of(ChunkState(1, tries=tries, **CHUNK)) for tries in (1, 2))
    assert first != second
    assert all(len(value) <= 512 and len(key) <= 64 for key, value in second.items())
