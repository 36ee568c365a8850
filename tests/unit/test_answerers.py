"""Who answered: columns, one warning for each change, and prices of service tiers."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import batchchat
from batchchat.cli import cli
from batchchat.demo import BatchOptions, DemoOptions, DemoServer
from batchchat.events import Event
from batchchat.money import Tariff
from batchchat.providers import Price
from batchchat.runner.answerers import Answerers
from tests.integration.jobs import make_job, query, texts, write_rows


def told(answers: Sequence[tuple[str | None, str | None]]) -> list[str]:
    watched = Answerers()
    for model, fingerprint in answers:
        watched.add(model, fingerprint)
    events = watched.take()
    assert [event.message for event in events] == watched.remarks()
    assert watched.take() == []
    return [f"{event.fields['what']}: {event.fields['before']} → {event.fields['after']}" for event in events]


CASES: dict[str, tuple[Sequence[tuple[str | None, str | None]], list[str]]] = {
    "nothing told": ([(None, None)] * 500, []),
    "the same": ([("a", "f")] * 500, []),
    "another model": ([("a", "f")] * 500 + [("b", "g")] * 500, ["model: a → b"]),
    "another model soon": ([("a", None), ("b", None), ("a", None), ("b", None)], ["model: a → b"]),
    "to and fro": ([("a", "f"), ("b", "g")] * 500, ["model: a → b"]),
    "another build": ([("a", "f")] * 500 + [("a", "g")] * 500, ["system_fingerprint: f → g"]),
    "several builds at once": ([("a", name) for name in "fghi"] * 200, []),
    "several builds change": (
        [("a", name) for name in "fghi"] * 200 + [("a", "j"), ("a", "k")] * 9,
        ["system_fingerprint: i → j"],
    ),
    "a name for each answer": ([("a", f"f{number}") for number in range(5000)], []),
    "many models": ([(f"m{number}", None) for number in range(99)], [f"model: m0 → m{n}" for n in (1, 2, 3)]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_change_is_told_once(case: str) -> None:
    answers, words = CASES[case]
    if case == "a name for each answer":
        assert len(told(answers)) <= 1
    else:
        assert told(answers) == words


def test_names_in_any_order_cause_few_warnings() -> None:
    rng = random.Random(5)
    for _ in range(20):
        answers = [(rng.choice("abcdefgh"), rng.choice("uvwxyz")) for _ in range(2000)]
        assert len(told(answers)) <= 4


@pytest.mark.parametrize("engine", ["local", "batch", "stream"])
def test_each_record_says_who_answered(tmp_path: Path, engine: str) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(20))
    fields: dict[str, Any] = {"params": {"service_tier": "flex", "stream": engine == "stream"}}
    if engine == "batch":
        fields = {"engine": {"kind": "batch", "poll": 0.1}, "params": {"service_tier": "flex"}}
    options = DemoOptions(latency_s=0, batch=BatchOptions(seconds=0.1))
    with DemoServer(options) as server:
        summary = batchchat.run(make_job(tmp_path, server.base_url, **fields), environ={})
    assert summary.ok == 20
    assert query(tmp_path, "select distinct system_fingerprint, service_tier from data") == [("fp_demo", "flex")]
    for part in (tmp_path / "out" / "data").glob("*.parquet"):
        schema = pq.read_schema(part)
        assert [str(schema.field(name).type) for name in ("system_fingerprint", "service_tier")] == ["string"] * 2
    shown = CliRunner().invoke(cli, ["show", str(tmp_path / "out"), "--row", "3", "--json"])
    assert json.loads(shown.stdout)["record"]["service_tier"] == "flex"
    target = tmp_path / "results.jsonl"
    done = CliRunner().invoke(cli, ["export", str(tmp_path / "out"), "-o", str(target), "--format", "openai-batch"])
    assert done.exit_code == 0, done.output
    body = json.loads(target.read_text().splitlines()[0])["response"]["body"]
    assert (body["system_fingerprint"], body["service_tier"]) == ("fp_demo", "flex")


def test_a_run_tells_once_that_another_model_answers(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(60))
    events: list[Event] = []
    with DemoServer(DemoOptions(latency_s=0, faults={"other_after": 30})) as server:
        summary = batchchat.run(make_job(tmp_path, server.base_url), environ={}, listener=events.append)
    changed = [event for event in events if event.name == "answerer_changed"]
    assert len(changed) == 1
    assert "another model answers: llama-3.1-8b-instruct-2" in changed[0].message
    assert changed[0].message in summary.warnings
    counts = query(tmp_path, "select model, system_fingerprint, count(*) from data group by all order by 1")
    assert [(model, name) for model, name, _ in counts] == [
        ("llama-3.1-8b-instruct", "fp_demo"),
        ("llama-3.1-8b-instruct-2", "fp_demo_2"),
    ]
    page = tmp_path / "report.html"
    done = CliRunner().invoke(cli, ["report", str(tmp_path / "out"), "-o", str(page)])
    assert done.exit_code == 0, done.output
    assert "Builds that answered" in page.read_text(encoding="utf-8")


def test_the_tier_of_an_answer_decides_its_price(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(3))
    costs = {}
    with DemoServer(DemoOptions(latency_s=0)) as server:
        for tier in ("default", "flex", "priority"):
            output = {"path": str(tmp_path / tier)}
            job = make_job(tmp_path, server.base_url, params={"service_tier": tier}, output=output)
            costs[tier] = batchchat.run(job, environ={}).spend.cost
        own = {"input": 0.2, "output": 0.2, "currency": "EUR"}
        job = make_job(tmp_path, server.base_url, params={"service_tier": "flex"}, prices=own)
        given = batchchat.run(job, environ={}).spend.cost
    assert costs["default"] > 0
    assert costs["flex"] == pytest.approx(costs["default"] / 2)
    assert costs["priority"] == pytest.approx(costs["default"] * 2)
    # A price of the job's own is that of the tier that it asks for.
    assert given == pytest.approx(costs["default"])


def test_a_budget_reserves_what_the_dearest_tier_may_cost(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(50))
    with DemoServer(DemoOptions(latency_s=0)) as server:
        params = {"service_tier": "priority", "max_tokens": 8}
        job = make_job(tmp_path, server.base_url, params=params, budget={"max_cost": 0.00005})
        summary = batchchat.run(job, environ={})
    assert summary.exit_code == 4
    assert 0 < summary.spend.cost <= 0.00005


def test_a_tariff_times_a_factor_is_exact() -> None:
    tariff = Tariff.of(Price(0.1, 0.3, 0.05))
    assert tariff is not None
    assert tariff.times(0.5) == Tariff.of(Price(0.05, 0.15, 0.025))
    assert Tariff(1, 3, 0).times(0.5) == Tariff(1, 2, 0)
