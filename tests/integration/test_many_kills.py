"""Runs with workers of which everything is killed in turn: workers, the coordinator, the broker, the object storage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.kill_series import MINISTACK, BucketPlace, FolderPlace, KillSeries, NumberingServer

pytestmark = [pytest.mark.long, pytest.mark.timeout(7_200)]
KILLS = 60
PLACES = [
    "folder",
    pytest.param("bucket", marks=pytest.mark.skipif(MINISTACK is None, reason="ministack plays the object storage")),
]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("place", PLACES)
def test_many_kills_lose_nothing_and_ask_nothing_twice(
    tmp_path: Path, place: str, seed: int, record_property: Callable[[str, object], None]
) -> None:
    server = NumberingServer(latency_s=0.03)
    where = FolderPlace(tmp_path) if place == "folder" else BucketPlace(tmp_path)
    series = KillSeries(tmp_path, where, server, seed)
    try:
        series.run(KILLS)
    finally:
        record_property("kills", series.told())
        print(series.told())
        where.kill()
        server.stop()
    assert series.problems == []
    # All that can be killed was.
    assert {"worker", "stopped", "coordinator", "broker"} <= set(series.by_target)
