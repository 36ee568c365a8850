"""The commented jobs with typed answers and tools, run as they are on a demo provider that makes mistakes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

import batchchat
from batchchat.cli.plan_page import render_plan
from batchchat.cli.record_page import render_record
from batchchat.demo import DemoOptions, DemoServer
from batchchat.inspection import find_records
from batchchat.planning import plan_job
from batchchat.runner.options import RunOptions
from batchchat.store import verify
from tests.integration.jobs import ROOT

ROWS = 80
FAULTS = {"misfit_once": 0.25, "invalid_output": 0.05, "fenced": 0.1, "cut_off": 0.05}


@pytest.fixture(scope="module")
def demo() -> Iterator[DemoServer]:
    with DemoServer(DemoOptions(latency_s=0, faults=FAULTS)) as server:
        yield server


def shown(renderable: Any) -> str:
    from rich.console import Console

    console = Console(width=100, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def run(name: str, folder: Path, demo: DemoServer, *overrides: str) -> batchchat.RunSummary:
    job = batchchat.load_job(
        ROOT / "jobs" / f"{name}.yaml",
        overrides=[f"provider.base_url={demo.base_url}", "limits.concurrency=32", *overrides],
        output=str(folder / "out"),
    )
    return batchchat.run(job, options=RunOptions(limit=ROWS), environ={})


def ask(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    with duckdb.connect() as connection:
        return connection.execute(sql.replace("DATA", f"read_parquet('{folder}/out/data/*.parquet')")).fetchall()


def test_typed_labels(tmp_path: Path, demo: DemoServer) -> None:
    summary = run("typed-labels", tmp_path, demo)
    assert summary.ok + summary.failed == ROWS
    assert summary.ok > 0.9 * ROWS
    assert summary.corrections > 5
    labels = ask(tmp_path, "select parsed.label, count(*) from DATA where status = 'ok' group by all order by 2 desc")
    assert sum(count for _, count in labels) == summary.ok
    assert {label for label, _ in labels} == {"billing", "bug", "feature_request", "account", "shipping", "other"}
    right, wrong = ask(tmp_path, "select count(*) filter (parsed.label = label), count(*) from DATA")[0]
    assert right > 0.7 * wrong
    types = ask(tmp_path, "select typeof(parsed), sum(corrections), count(*) filter (tolerated) from DATA group by 1")
    ((kind, corrections, tolerated),) = types
    assert kind == 'STRUCT("label" VARCHAR, urgent BOOLEAN, confidence DOUBLE, "order" VARCHAR)'
    assert (corrections > 5, tolerated > 3) == (True, True)
    sums = "select sum(attempts), sum(total_tokens), sum(cost) from DATA"
    attempts, tokens, cost = ask(tmp_path, sums)[0]
    assert (attempts, tokens) == (summary.sent, summary.spend.total_tokens)
    assert cost == pytest.approx(summary.spend.cost)
    assert verify(tmp_path / "out").problems == []


def test_a_corrected_answer_tells_how_it_came_about(tmp_path: Path, demo: DemoServer) -> None:
    run("typed-labels", tmp_path, demo)
    views = [view for view in find_records(tmp_path / "out") if view.record["corrections"] == 1]
    view = next(view for view in views if view.record["status"] == "ok" and "label" in view.record["error_message"])
    text = shown(render_record(view))
    assert "corrected   asked again 1 time with what was wrong; the last time: $" in text
    assert 'parsed      {"label": ' in text
    failed = list(find_records(tmp_path / "out", failed=True))
    assert all(view.record["error_kind"] in {"invalid_output", "truncated"} for view in failed)


def test_extract_entities(tmp_path: Path, demo: DemoServer) -> None:
    summary = run("extract-entities", tmp_path, demo)
    assert summary.ok > 0.9 * ROWS
    sums = "select count(*) filter (parsed.money.amount > 0), count(distinct parsed.money.currency) from DATA"
    assert ask(tmp_path, sums)[0][0] > 3
    products = ask(tmp_path, "select key, unnest(parsed.products, recursive := true) from DATA where status = 'ok'")
    assert len(products) >= summary.ok
    # A second try with more room is the rule here: what was cut off did not fail at once.
    assert ask(tmp_path, "select count(*) from DATA where attempts > 1 + corrections and status = 'ok'")[0][0] > 0
    again = run("extract-entities", tmp_path, demo)
    assert again.sent == 0


def test_call_tools(tmp_path: Path, demo: DemoServer) -> None:
    summary = run("call-tools", tmp_path, demo)
    assert summary.ok > 0.9 * ROWS
    assert summary.corrections > 3
    found = ask(
        tmp_path, "select tool_calls[1].name, tool_calls[1].arguments, corrections from DATA where status = 'ok'"
    )
    required = {"track_parcel": {"order", "reason"}, "refund": {"amount", "summary"}, "hand_over": {"team", "urgent"}}
    for name, arguments, _ in found:
        assert set(json.loads(arguments)) == required[name]
    assert any(corrections for _, _, corrections in found)
    assert "parsed" not in batchchat.read_output(tmp_path / "out").schema.names


def test_the_schema_can_go_into_the_prompt_instead(tmp_path: Path, demo: DemoServer) -> None:
    summary = run("typed-labels", tmp_path, demo, "response.mode=prompt")
    assert summary.ok > 0.9 * ROWS
    assert ask(tmp_path, "select count(*) from DATA where parsed.label is null and status = 'ok'") == [(0,)]


def test_plan_shows_the_whole_request_and_warns_of_what_is_known_to_fail(tmp_path: Path) -> None:
    path = ROOT / "jobs" / "typed-labels.yaml"
    view = plan_job(batchchat.load_job(path, output=str(tmp_path / "out")))
    assert view.warnings == []
    wanted = view.previews[0].params["response_format"]["json_schema"]
    assert (wanted["name"], wanted["strict"]) == ("answer", True)
    text = shown(render_plan(view))
    assert 'response_format: {"type": "json_schema", "json_schema": {"name": "answer"' in text.replace(
        "\n            ", " "
    )
    bad = batchchat.load_job(
        path,
        output=str(tmp_path / "out"),
        overrides=["params.max_tokens=16", "response.schema.additionalProperties=true", "response.schema.required=[]"],
    )
    warnings = plan_job(bad).warnings
    assert [text.split(":")[0].split(" at ")[0] for text in warnings] == [
        "additionalProperties is not false",
        "not required",
        "max_tokens 16 is low",
    ]
    slow = batchchat.load_job(
        path, output=str(tmp_path / "out"), overrides=["provider=scaleway", "params.max_tokens=4000"]
    )
    assert any("endless white space" in text for text in plan_job(slow).warnings)
