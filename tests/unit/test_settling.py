"""Evaluations that stop when they are settled: what is asked, what is decided, and that a resume changes neither."""

from __future__ import annotations

import html
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from batchchat.errors import JobError, UsageError
from batchchat.evaluation.evaluate import Evaluation
from batchchat.evaluation.results.looks import draw_rows, kept_plan
from batchchat.evaluation.results.scoring import score_suite
from batchchat.evaluation.results.summary import SequentialSummary, SuiteSummary, from_json, read_summary
from batchchat.report import write_suite_report
from batchchat.report.looks import LookLine, looks_of
from batchchat.report.suite_folder import read_suite
from tests.integration.suites import Bench, Provider

ROWS = 150
MODELS = ("good", "fair", "bad")
# So many of a hundred rows are wrong. Rows are wrong together, as easy and hard rows of real inputs are.
WRONG = {"good": 10, "fair": 11, "bad": 50}


def answers(model: str, text: str) -> str | int:
    number = int(text.rsplit(" ", 1)[1])
    return "no" if number * 37 % 100 < WRONG[model] else "yes"


def rows_of(count: int = ROWS, **more: Any) -> list[dict[str, Any]]:
    return [{"id": f"r{at}", "text": f"row {at}", "gold": "yes", "group": f"g{at // 3}", **more} for at in range(count)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path, Provider(answers))
    made.rows(rows_of())
    return made


def settle(bench: Bench, **fields: Any) -> Evaluation:
    options = fields.pop("options", {})
    fields = {"variants": {"matrix": {"model": list(MODELS)}}, "until": "settled", "looks": 3, **fields}
    return bench.evaluate(bench.suite(**fields), **options)


def told(done: Evaluation) -> tuple[SuiteSummary, SequentialSummary]:
    assert done.summary is not None
    assert done.summary.sequential is not None
    return done.summary, done.summary.sequential


def test_what_is_surely_worse_is_dropped_and_the_rest_goes_on(bench: Bench) -> None:
    done = settle(bench)
    summary, found = told(done)
    assert (done.exit_code, found.score, found.looks, found.settled, found.ended) == (0, "accuracy", 3, False, True)
    assert found.plan == (50, 100, 150)
    asked = Counter(model for model, _ in bench.provider.asked)
    assert asked == {"good": 150, "fair": 150, "bad": found.dropped["bad"]}
    assert list(found.dropped) == ["bad"]
    assert found.dropped["bad"] < 150
    assert (found.asked, found.fixed) == (asked.total(), 450)
    by_name = {variant.name: variant for variant in summary.variants}
    # What a dropped variant has is kept, counted and scored, and nothing of it is open.
    assert (by_name["bad"].rows, by_name["bad"].open) == (found.dropped["bad"], 0)
    verdicts = {(one.a, one.b): (one.verdict, one.n) for one in summary.comparisons}
    assert verdicts["good", "bad"][0] == verdicts["fair", "bad"][0] == "better"
    assert verdicts["good", "fair"] == ("open", 150)
    assert read_summary(bench.out) == summary
    assert from_json(orjson.loads(orjson.dumps(summary.as_json(), default=str))) == summary


@pytest.mark.thorough
def test_a_page_tells_the_looks(bench: Bench, tmp_path: Path) -> None:
    def page() -> tuple[str, list[LookLine]]:
        write_suite_report(bench.out, tmp_path / "report.html")
        found = looks_of(read_suite(bench.out))
        assert found is not None
        assert found.told in html.unescape((tmp_path / "report.html").read_text(encoding="utf-8"))
        return found.told, found.lines

    settle(bench, options={"limit": 149}, budget={"max_requests": 170})
    told_, lines = page()
    assert told_.startswith("Not settled after 1 look, at 50 of 149 rows: ")
    assert [line[2] for line in lines] == ["went on", "to come", "to come"]
    _, found = told(settle(bench, options={"limit": 149}))
    told_, lines = page()
    assert told_ == (
        f"Not settled after 3 looks, at 149 of 149 rows: {found.asked} of 447 answers were asked, "
        f"{found.saved:.0%} fewer than for all rows."
    )
    assert lines == [
        (1, 50, "went on", ["bad"]),
        (2, 100, "went on", []),
        (3, 149, "not settled", []),
    ]
    settle(bench, margin=0.15, options={"fresh": True})
    told_, lines = page()
    assert told_.startswith("Settled after 2 looks, at 100 of 150 rows: ")
    assert [line[2] for line in lines] == ["went on", "settled", "not needed"]


@pytest.mark.thorough
def test_all_variants_are_asked_the_same_rows_of_a_random_order(bench: Bench) -> None:
    _, found = told(settle(bench))
    by_model: dict[str, list[int]] = {model: [] for model in MODELS}
    for model, text in bench.provider.asked:
        by_model[model].append(int(text.split()[1]))
    first = {model: set(numbers[: found.plan[0]]) for model, numbers in by_model.items()}
    assert first["good"] == first["fair"] == first["bad"]
    assert first["good"] != set(range(found.plan[0]))


@pytest.mark.thorough
def test_equivalence_within_the_margin_settles_too(bench: Bench) -> None:
    _, found = told(settle(bench, margin=0.15))
    assert found.settled
    assert found.rows < 150
    assert len(bench.provider.asked) == found.asked < 450
    # Asking again asks nothing.
    asked = len(bench.provider.asked)
    again = settle(bench, margin=0.15)
    assert told(again)[1] == found
    assert len(bench.provider.asked) == asked
    assert score_suite(bench.suite(variants={"matrix": {"model": list(MODELS)}})) == again.summary


@pytest.mark.parametrize("spent", [130])
def test_a_stop_at_any_place_changes_nothing_that_is_decided(bench: Bench, spent: int) -> None:
    whole, sequential = told(settle(bench, margin=0.15, output="out/whole"))
    bench.provider.asked.clear()
    stopped = settle(bench, margin=0.15, budget={"max_requests": spent})
    assert stopped.exit_code == 4
    _, partly = told(stopped)
    assert not partly.settled
    _, resumed = told(settle(bench, margin=0.15))
    assert resumed == sequential
    asked = Counter(bench.provider.asked)
    assert asked.total() == sequential.asked
    assert set(asked.values()) == {1}
    found = read_summary(bench.out)
    assert found.comparisons == whole.comparisons
    assert [one.scores for one in found.variants] == [one.scores for one in whole.variants]


@pytest.mark.thorough
def test_rows_that_are_alike_and_have_no_key_keep_their_answers(bench: Bench) -> None:
    rows = [{"text": f"row {at % 40}", "gold": "yes" if at % 2 else "no"} for at in range(120)]
    bench.rows(rows)
    job = {"input": {"path": "rows.jsonl"}}
    _, found = told(settle(bench, job=job, budget={"max_requests": 90}))
    assert found.looks < 3
    summary, found = told(settle(bench, job=job))
    # Each answer stands at its own row, whatever the pass that asked it.
    assert [variant.open for variant in summary.variants] == [0, 0, 0]
    assert len(bench.provider.asked) == found.asked
    plain = bench.evaluate(bench.suite(job=job, variants={"matrix": {"model": list(MODELS)}}))
    assert plain.summary is not None
    assert plain.summary.sequential is None
    assert len(bench.provider.asked) == 360
    assert kept_plan(bench.out) is None


@pytest.mark.thorough
def test_clusters_are_asked_whole(bench: Bench) -> None:
    suite = bench.suite(until="settled", cluster="group", variants={"matrix": {"model": list(MODELS)}})
    done = bench.evaluate(suite)
    _, found = told(done)
    plan = kept_plan(bench.out)
    assert plan is not None
    looks = draw_rows(suite, plan)
    for look in range(1, len(looks.rows) + 1):
        groups = Counter(row // 3 for row in looks.at(look))
        assert set(groups.values()) == {3}
    assert done.summary is not None
    assert all(one.clusters and one.n == 3 * one.clusters for one in done.summary.comparisons)
    assert "bad" in found.dropped


@pytest.mark.thorough
def test_a_sample_is_the_most_rows_that_are_asked(bench: Bench) -> None:
    _, found = told(settle(bench, options={"sample": 100}))
    assert found.plan == (34, 67, 100)
    assert found.fixed == 300


@pytest.mark.thorough
def test_a_judge_may_decide(bench: Bench) -> None:
    def judged(model: str, text: str) -> str | int:
        if model != "judge":
            return answers(model, text)
        verdict = text.partition("Answer:\n")[2].partition("\n\n")[0]
        return f'{{"reason": "so it is", "verdict": "{verdict}"}}'

    bench.provider.answer = judged
    scorers = [{"name": "right", "kind": "judge", "rubric": "Is the answer right?", "model": "judge"}]
    summary, found = told(settle(bench, scorers=scorers))
    assert (found.score, found.looks, list(found.dropped)) == ("right", 3, ["bad"])
    # The judge is asked about equal answers to a row once, and about nothing that a dropped variant was not asked.
    assert summary.judges[0].requests == len([model for model, _ in bench.provider.asked if model == "judge"])
    assert len(bench.provider.asked) < 150 * 2 + found.dropped["bad"] + 150 * 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"until": None, "looks": 3}, "looks"),
        ({"until": None, "looks": None, "margin": 0.1}, "until: settled"),
        ({"decide_by": "acuracy"}, "did you mean 'accuracy'"),
        ({"looks": 1}, "looks"),
        ({"until": "tired"}, "settled"),
        ({"scorers": [{"name": "long", "kind": "length"}]}, "better direction"),
    ],
)
def test_what_cannot_be_is_told(bench: Bench, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        settle(bench, **fields)


@pytest.mark.thorough
def test_an_evaluation_goes_on_as_it_began(bench: Bench) -> None:
    settle(bench, budget={"max_requests": 100})
    with pytest.raises(UsageError, match="began with looks 3, and now it is 4"):
        settle(bench, looks=4)
    # An earlier version spread the error in another way, and did not say so: its evaluations go on with that.
    path = bench.out / "looks.json"
    data = orjson.loads(path.read_bytes())
    assert data.pop("spending") == "power"
    path.write_bytes(orjson.dumps(data))
    # The order of the rows is that of the first look; the seed of the suite may change.
    _, found = told(settle(bench, seed=7))
    assert found.seed != 7
    kept = kept_plan(bench.out)
    assert kept is not None
    assert kept.spending == "obrien_fleming"
    _, anew = told(settle(bench, looks=4, options={"fresh": True}))
    assert len(anew.plan) == 4
