"""What `status`, `show`, `history`, `verify` and `export` make of an evaluation's folder, also while it is going on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from batchchat.cli import cli
from batchchat.errors import UsageError
from batchchat.evaluation.evaluate import evaluate
from tests.integration.suites import Bench, Provider, on_virtual_clock

JUDGE = {"name": "fine", "kind": "judge", "rubric": "Is it fine?", "model": "judge"}
VARIANTS = [{"name": "Long, warm", "params.temperature": 0.7}, {"name": "short", "model": "bad"}]


def _answer(model: str, text: str) -> str | int:
    if model == "judge":
        return json.dumps({"reason": "so it is", "verdict": "yes"})
    return 400 if (model, text) == ("bad", "c") else text


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path, Provider(_answer))
    made.rows({"id": f"k{number}", "text": "abc"[number], "gold": "abc"[number]} for number in range(3))
    return made


def invoke(*words: str) -> Result:
    return CliRunner().invoke(cli, [*words])


def told(*words: str) -> Any:
    done = invoke(*words, "--json")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return json.loads(done.stdout)


def refused(*words: str) -> UsageError:
    error = invoke(*words).exception
    assert isinstance(error, UsageError)
    return error


def test_every_command_takes_the_folder(bench: Bench, tmp_path: Path) -> None:
    scorers = [{"name": "accuracy", "kind": "exact", "expected": "gold"}, JUDGE]
    suite = bench.suite(variants=VARIANTS, scorers=scorers)
    assert bench.evaluate(suite).exit_code == 1
    folder = str(bench.out)

    status = told("status", folder)
    assert [(one["name"], one["ok"], one["failed"]) for one in status["variants"]] == [
        ("Long, warm", 3, 0),
        ("short", 2, 1),
    ]
    assert [(one["name"], one["ok"]) for one in status["judges"]] == [("fine", 3)]
    page = invoke("status", folder).stdout
    assert "an evaluation of 2 variants" in page
    assert [name for name in ("Long, warm", "short", "judge fine") if name in page] == [
        "Long, warm",
        "short",
        "judge fine",
    ]

    history = told("history", folder)
    assert [(one["name"], len(one["runs"])) for one in (*history["variants"], *history["judges"])] == [
        ("Long, warm", 1),
        ("short", 1),
        ("fine", 1),
    ]
    assert invoke("history", folder).stdout.count("variant  ") == 2

    # A certain row is shown as every variant answered it; the rest is about one variant.
    documents = invoke("show", folder, "--key", "k1", "--json").stdout.replace("\n}\n", "\n}\0").split("\0")
    lines = [json.loads(document) for document in documents if document]
    assert [(line["variant"], line["record"]["completion"]) for line in lines] == [("Long, warm", "b"), ("short", "b")]
    assert invoke("show", folder, "--row", "2").stdout.count("variant  ") == 2
    assert "no variant has a record of row 9" in refused("show", folder, "--row", "9").message
    assert (
        json.loads(invoke("show", folder, "--variant", "short", "--failed", "--json").stdout)["record"]["key"] == "k2"
    )
    assert told("show", folder, "--variant", "fine", "--count", "status")["values"] == [{"value": "ok", "records": 3}]
    error = refused("show", folder)
    assert error.remedy == "Say which output is meant, with --variant NAME: 'Long, warm', 'short', 'fine'."
    assert "is none of them (did you mean 'short'?)" in refused("show", folder, "--variant", "shrt").message

    target = tmp_path / "short.csv"
    assert "with --variant NAME" in (refused("export", folder, "-o", str(target)).remedy or "")
    assert invoke("export", folder, "--variant", "short", "-o", str(target), "--columns", "key,status").exit_code == 0
    assert target.read_text().splitlines() == ["key,status", "k0,ok", "k1,ok", "k2,failed"]
    one = suite.variants[1].job.output.path
    assert "is no evaluation that has begun" in refused("show", one, "--variant", "short").message
    assert invoke("show", one, "--table").exit_code == 0

    found = told("verify", folder)
    assert (found["problems"], [one["records"] for one in found["variants"]]) == ([], [3, 3])
    assert invoke("verify", folder).stdout.splitlines()[2].startswith("fine: 3 records in 1 part")


def test_verify_finds_what_is_damaged_anywhere(bench: Bench) -> None:
    suite = bench.suite(variants=VARIANTS)
    bench.evaluate(suite)
    assert invoke("verify", str(bench.out)).exit_code == 0
    scores = bench.out / "scores.parquet"
    whole = scores.read_bytes()
    scores.write_bytes(whole[:40] + bytes(8) + whole[48:])
    (part,) = Path(suite.variants[1].job.output.path).glob("data/*.parquet")
    part.write_bytes(part.read_bytes()[:-4])
    done = invoke("verify", str(bench.out))
    assert done.exit_code == 74
    assert "short: 0 records" in done.stdout
    assert f"{scores}: " in done.stdout
    scores.unlink()
    assert f"{scores}: missing" in invoke("verify", str(bench.out)).stdout


def test_an_evaluation_is_looked_at_while_it_is_going_on(bench: Bench) -> None:
    bench.suite(variants=VARIANTS)
    suite = bench.suite(variants=VARIANTS, job={"limits": {"concurrency": 1}})
    setting = bench.setting(suite)
    seen: list[Any] = []

    async def look() -> None:
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                await anyio.sleep(2.5)
                folder = str(bench.out)
                # Nothing was scored yet: a variant is known by its name as the folder has it.
                seen.append(told("status", folder))
                seen.append(invoke("show", folder, "--variant", "Long, warm", "--table").exit_code)
                seen.append(told("history", folder)["variants"][0]["runs"][0]["state"])
                seen.append(invoke("verify", folder).exit_code)
                seen.append(refused("export", folder, "-o", "x.csv").remedy)

            group.start_soon(watch)
            await evaluate(suite, setting)

    on_virtual_clock(look)
    status, shown, state, verified, remedy = seen
    assert [one["running"] is not None for one in status["variants"]] == [True, True]
    assert (shown, state, verified) == (0, "running", 0)
    assert "'long-warm-" in remedy
    assert pq.read_table(bench.out / "scores.parquet").num_rows == 6
