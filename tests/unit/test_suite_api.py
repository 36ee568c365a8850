"""Evaluations from Python: functions as scorers, results as tables, what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

import batchchat
from batchchat.errors import JobError, UsageError
from tests.integration.suites import Bench, Provider, on_virtual_clock
from tests.thorough import one_in

Record = dict[str, Any]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Six rows; the model `good` repeats the text, `bad` knows one answer."""
    made = Bench(tmp_path, Provider(lambda model, text: text if model == "good" else "a"))
    made.rows({"id": str(number), "text": "abcdef"[number], "gold": "abcdef"[number]} for number in range(6))
    made.suite()
    return made


def run(bench: Bench, scorers: list[Any], *, alone: bool = False) -> batchchat.EvaluationResult:
    """Evaluate by these scorers, behind those of the file or alone."""
    if alone:
        file = bench.folder / "suite.yaml"
        fields = yaml.safe_load(file.read_text())
        file.write_text(yaml.safe_dump({name: value for name, value in fields.items() if name != "scorers"}))
    suite = batchchat.load_suite(bench.folder / "suite.yaml", scorers=scorers)
    found: batchchat.EvaluationResult = on_virtual_clock(
        lambda: batchchat.evaluate(suite, progress=False, transport=bench.provider.transport, environ={})
    )
    return found


def test_functions_score_records_beside_rows(bench: Bench) -> None:
    def same(record: Record, row: Record) -> bool:
        # The record carries what the row was, and the row is what it is now.
        assert record["gold"] == row["gold"]
        assert set(row) == {"id", "text", "gold"}
        return bool(record["completion"] == row["gold"])

    def kind(record: Record, row: Record) -> tuple[str, str] | str | None:
        if row["gold"] == "b":
            return None
        return ("right", "as expected") if record["completion"] == row["gold"] else "wrong"

    def merged(record: Record) -> float:
        return len(record["completion"] + record["gold"]) / 4

    labels = {"name": "kind", "python": kind, "unit": "share", "labels": {"right": 1, "wrong": 0.25}}
    result = run(bench, [same, labels, merged], alone=True)
    assert result.exit_code == 0
    assert result.mean("bad", "same").mean == pytest.approx(1 / 6)
    assert (result.mean("bad", "same").unit, result.mean("bad", "merged").unit) == ("yes/no", "score")
    assert result.mean("bad", "kind").mean == pytest.approx((1 + 4 * 0.25) / 5)
    assert result.mean("bad", "kind").nulls == 1
    reasons = result.scores().filter(pa.compute.equal(result.scores()["scorer"], "kind"))["reason"].to_pylist()
    assert reasons[:3] == ["right: as expected", "kind gave None", "right: as expected"]
    assert reasons[-1] == "wrong"
    # The same call again asks nothing, and finds the same.
    asked = len(bench.provider.asked)
    assert run(bench, [same, labels, merged], alone=True).means() == result.means()
    assert len(bench.provider.asked) == asked == 12


def test_results_are_tables_with_types(bench: Bench) -> None:
    result = run(bench, [])
    assert result.variants().column("name").to_pylist() == ["good", "bad"]
    (good, bad) = result.means().to_pylist()
    assert (good["variant"], good["score"], good["mean"], good["n"]) == ("good", "accuracy", 1.0, 6)
    assert bad["ci_low"] < bad["mean"] < bad["ci_high"]
    (pair,) = result.comparisons().to_pylist()
    assert (pair["a"], pair["b"], pair["verdict"]) == ("good", "bad", "open")
    assert result.comparisons().schema.field("p_value").type == pa.float64()
    assert result.scores().num_rows == 12
    assert result.verdicts().num_rows == 0
    assert result.answers("good", ["key", "completion"]).to_pylist()[1] == {"key": "1", "completion": "b"}
    assert "good" in str(result)
    with pytest.raises(UsageError, match="no variant 'god' \\(did you mean 'good'"):
        result.mean("god", "accuracy")
    with pytest.raises(UsageError, match="no score 'acuracy'"):
        result.mean("good", "acuracy")


def test_an_output_is_scored_again_and_compared(bench: Bench) -> None:
    def starts(record: Record, row: Record) -> bool:
        return str(record["completion"]).startswith(row["text"])

    result = run(bench, [])
    suite = batchchat.load_suite(bench.folder / "suite.yaml", scorers=[starts])
    assert batchchat.score(suite, limit=3).mean("bad", "starts").mean == pytest.approx(1 / 3)
    assert batchchat.plan(suite).requests == 0
    assert batchchat.plan(suite.variants[0].job).requests == 0
    assert result.summary is not None
    folders = [bench.out / "variants" / variant.folder for variant in result.summary.variants]
    compared = batchchat.compare(*folders, scorers=["exact:gold", starts])
    assert compared.rows == 6
    (first, second, *_) = compared.comparisons().to_pylist()
    assert [(one["scorer"], one["difference"]) for one in (first, second)] == [
        ("exact", pytest.approx(5 / 6)),
        ("starts", pytest.approx(5 / 6)),
    ]


@pytest.mark.parametrize("give", one_in(4, ["raise", "text", "list", "nan"]))
def test_a_function_that_gives_no_answer_a_value_is_an_error(bench: Bench, give: str) -> None:
    def broken(record: Record, row: Record) -> Any:
        return {"text": "", "list": [], "nan": float("nan")}[give] if give != "raise" else record["complition"]

    result = run(bench, [])
    with pytest.raises(UsageError, match=r"scorer broken gave none of 12 answers a value: broken (raised KeyE|gave)"):
        run(bench, [broken])
    assert result.summary is not None
    folders = [bench.out / "variants" / variant.folder for variant in result.summary.variants]
    with pytest.raises(UsageError, match="scorer broken gave none of 12 answers a value"):
        batchchat.compare(*folders, scorers=[broken])


def test_a_function_that_breaks_on_some_answers_or_gives_none_is_told(bench: Bench) -> None:
    def often(record: Record, row: Record) -> float:
        return 1.0 / int(row["gold"] == "a")

    def never(record: Record, row: Record) -> None:
        return None

    result = run(bench, [often, {"name": "never", "python": never}])
    assert result.mean("good", "often").nulls == 5
    assert result.mean("good", "never").mean is None
    assert result.summary is not None
    assert "'good': often has no value for 5 answers: often raised ZeroDivisionError" in str(result.summary.notes)


async def _later(record: Record, row: Record) -> bool:
    return True


REFUSED = [
    (lambda: True, "is no scorer: it takes (record, row), or (record) alone"),
    (lambda record, row, more: True, "is no scorer"),
    (lambda record, *, limit: True, "is no scorer"),
    (_later, "_later is a coroutine function"),
    ({"name": "x", "python": 5}, "must be a function as module:function"),
    ({"name": "x", "python": lambda record: 1, "unit": "yes/no", "labels": {"a": 0.5}}, "0.5, which is no yes/no"),
    ({"python": lambda record: 1}, "name"),
    ("exact:gold", "must be a mapping"),
]


@pytest.mark.parametrize(("scorer", "told"), REFUSED)
def test_what_is_no_scorer_is_refused_at_once(bench: Bench, scorer: Any, told: str) -> None:
    if callable(scorer) and scorer is not _later:
        scorer = {"name": "mine", "python": scorer}
    with pytest.raises(JobError) as error:
        batchchat.load_suite(bench.folder / "suite.yaml", scorers=[scorer])
    assert told in error.value.message
    assert "scorers" in str(error.value)


def test_two_scorers_with_one_name_are_refused(bench: Bench) -> None:
    def accuracy(record: Record) -> bool:
        return True

    with pytest.raises(JobError, match="two scorers are called 'accuracy'"):
        batchchat.load_suite(bench.folder / "suite.yaml", scorers=[accuracy])


def test_an_evaluation_that_did_not_end_well_is_an_error_if_that_is_wanted(bench: Bench) -> None:
    bench.provider.answer = lambda model, text: 400 if text == "c" else text
    result = run(bench, [])
    assert result.exit_code == 1
    with pytest.raises(batchchat.EvaluationFailed) as error:
        result.raise_for_status()
    assert error.value.exit_code == 1
    stopped = batchchat.Control()
    stopped.stop(reason="enough", exit_code=4)
    suite = batchchat.load_suite(bench.folder / "suite.yaml")
    ended: batchchat.EvaluationResult = on_virtual_clock(
        lambda: batchchat.evaluate(suite, control=stopped, transport=bench.provider.transport, environ={})
    )
    with pytest.raises(UsageError, match="the evaluation suite was not scored: enough"):
        ended.means()


@pytest.mark.thorough
def test_nothing_of_an_evaluation_is_imported_before_it_is_used() -> None:
    code = (
        "import sys, batchchat; batchchat.evaluate, batchchat.load_suite\n"
        "heavy = {'scipy', 'plotly', 'rapidfuzz', 'regex', 'batchchat.evaluation.evaluate'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
