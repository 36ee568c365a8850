"""Judges and pairwise judges: what they are shown, what is asked only once, how verdicts become scores."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from batchchat import read_output
from batchchat.cli.evaluation_tables import render_evaluation
from batchchat.errors import JobError
from batchchat.evaluation.checking import check_suite
from batchchat.evaluation.planning import plan_suite
from batchchat.evaluation.results.scoring import score_suite
from batchchat.evaluation.results.summary import SuiteSummary, read_summary
from batchchat.runner.options import RunOptions
from batchchat.store import write_review_lines
from tests.integration.suites import Bench, Provider

ROWS = [{"id": f"r{at}", "text": f"question {at}", "gold": f"gold {at}", "private": "hidden"} for at in range(8)]
POLITE = {"name": "polite", "kind": "judge", "model": "judge", "rubric": "Is the answer polite?"}
BETTER = {"name": "better", "kind": "pairwise", "model": "judge", "rubric": "Which answer is more polite?"}


def section(text: str, heading: str) -> str:
    """What stands below a heading of a judge's message."""
    return text.partition(f"{heading}:\n")[2].partition("\n\n")[0]


def answers(model: str, text: str) -> str | int:
    """The good model is polite; the bad one only to every second question. The judge finds `please` polite."""
    if model != "judge":
        number = int(text.rsplit(" ", 1)[1])
        return f"please {number}" if model == "good" or number % 2 else f"no {number}"
    if "Answer A:" in text:
        one, other = ("please" in section(text, f"Answer {name}") for name in "AB")
        verdict = "tie" if one == other else "A" if one else "B"
    else:
        verdict = "yes" if "please" in section(text, "Answer") else "no"
    return json.dumps({"reason": f"because of {verdict}", "verdict": verdict})


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path, Provider(answers))
    made.rows(ROWS)
    return made


def asked(bench: Bench) -> list[str]:
    """What the judge was asked, in order."""
    return [text for model, text in bench.provider.asked if model == "judge"]


def summary_of(bench: Bench, **fields: Any) -> SuiteSummary:
    done = bench.evaluate(bench.suite(**fields))
    assert done.exit_code == 0, done.reason
    assert done.summary is not None
    return done.summary


def printed(summary: SuiteSummary, output: Path) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(render_evaluation(summary, [], output))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_judge_gives_every_answer_a_value_with_its_reason(bench: Bench) -> None:
    summary = summary_of(bench, scorers=[POLITE])
    good, bad = summary.variants
    assert (good.scores["polite"].mean, bad.scores["polite"].mean) == (1.0, 0.5)
    assert (good.scores["polite"].unit, good.scores["polite"].ci_method) == ("yes/no", "wilson")
    (compared,) = summary.comparisons
    assert (compared.scorer, compared.test, compared.wins_a, compared.wins_b) == ("polite", "mcnemar_exact", 4, 0)
    lines = [line for line in bench.scores() if line["variant"] == "bad"]
    assert (lines[0]["value"], lines[0]["reason"]) == (0.0, "because of no")
    assert (lines[1]["value"], lines[1]["reason"]) == (1.0, "because of yes")


def test_equal_answers_to_a_row_are_judged_once_and_never_again(bench: Bench) -> None:
    summary = summary_of(bench, scorers=[POLITE])
    # Both variants give the same answer to four of the eight questions.
    assert len(asked(bench)) == 12
    (judge,) = summary.judges
    assert (judge.name, judge.model, judge.requests, judge.failed, judge.cost) == ("polite", "judge", 12, 0, None)
    more = summary_of(bench, scorers=[POLITE], variants={"matrix": {"model": ["good", "bad", "other"]}})
    assert len(asked(bench)) == 12
    assert more.variants[2].scores["polite"].mean == 0.5


def test_an_edited_rubric_is_asked_anew_and_old_verdicts_do_not_count(bench: Bench) -> None:
    summary_of(bench, scorers=[POLITE])
    edited = bench.suite(scorers=[{**POLITE, "rubric": "Is it kind?"}])
    before = score_suite(edited)
    assert before.notes == ("polite: 12 cases of 12 not judged yet",)
    assert before.variants[0].scores["polite"].mean is None
    assert bench.scores()[0]["reason"] == "not judged yet"
    assert bench.evaluate(edited).exit_code == 0
    assert len(asked(bench)) == 24
    assert score_suite(edited).variants[0].scores["polite"].mean == 1.0


def test_a_judge_sees_the_columns_of_the_prompts_and_what_it_names(bench: Bench) -> None:
    summary_of(bench, scorers=[POLITE], variants=[{"name": "one"}])
    assert asked(bench)[0] == "Input:\nquestion 0\n\nAnswer:\nplease 0"
    named = {**POLITE, "name": "told", "show": ["id", "text"], "expected": "gold"}
    summary_of(bench, scorers=[named], variants=[{"name": "one"}])
    assert asked(bench)[-1] == "Input:\nid: r7\ntext: question 7\n\nReference:\ngold 7\n\nAnswer:\nplease 7"


def test_a_corrected_reference_is_judged_anew(bench: Bench) -> None:
    suite = bench.suite(scorers=[{**POLITE, "expected": "gold"}], variants=[{"name": "one"}])
    bench.evaluate(suite)
    bench.rows([{**ROWS[0], "gold": "corrected"}, {**ROWS[1], "gold": None}, *ROWS[2:]])
    done = bench.evaluate(suite)
    assert len(asked(bench)) == 9
    assert done.summary is not None
    assert (done.summary.variants[0].scores["polite"].n, done.summary.variants[0].scores["polite"].nulls) == (7, 1)
    assert bench.scores()[1]["reason"] == "the input has no gold here"


@pytest.mark.parametrize(
    ("fields", "verdict", "value", "unit"),
    [
        ({"points": [1, 5]}, 4, 4.0, "points"),
        ({"labels": {"wrong": 0, "partly": 0.5, "right": 1}}, "partly", 0.5, "score"),
        ({"labels": {"bad": 0, "fine": 1}}, "fine", 1.0, "yes/no"),
    ],
)
def test_verdicts_of_other_types(tmp_path: Path, fields: dict[str, Any], verdict: Any, value: float, unit: str) -> None:
    def judge(model: str, text: str) -> str:
        return json.dumps({"reason": "so", "verdict": verdict}) if model == "judge" else text

    bench = Bench(tmp_path, Provider(judge))
    bench.rows(ROWS)
    summary = summary_of(bench, scorers=[{**POLITE, **fields}], variants=[{"name": "one"}])
    score = summary.variants[0].scores["polite"]
    assert (score.mean, score.unit) == (value, unit)


def test_a_verdict_outside_of_its_type_is_a_null_with_a_reason(tmp_path: Path) -> None:
    def judge(model: str, text: str) -> str:
        return json.dumps({"reason": "so", "verdict": "perhaps"}) if model == "judge" else text

    bench = Bench(tmp_path, Provider(judge))
    bench.rows(ROWS[:2])
    done = bench.evaluate(bench.suite(scorers=[POLITE], variants=[{"name": "one"}]))
    assert done.exit_code == 1
    assert done.summary is not None
    score = done.summary.variants[0].scores["polite"]
    assert (score.mean, score.nulls, done.summary.judges[0].failed) == (None, 2, 2)
    assert bench.scores()[0]["reason"].startswith("the judge failed: invalid_output")


@pytest.mark.parametrize(("policy", "means"), [("wrong", (1.0, 0.5)), ("skip", (1.0, 1.0))])
def test_failed_rows_are_not_shown_to_a_judge(tmp_path: Path, policy: str, means: tuple[float, float]) -> None:
    def half(model: str, text: str) -> str | int:
        return 400 if model == "bad" and not int(text.rsplit(" ", 1)[1]) % 2 else answers(model, text)

    bench = Bench(tmp_path, Provider(half))
    bench.rows(ROWS)
    done = bench.evaluate(bench.suite(failed=policy, scorers=[POLITE, BETTER]))
    assert done.summary is not None
    assert tuple(variant.scores["polite"].mean for variant in done.summary.variants) == means
    better = done.summary.of("better")[0]
    assert (better.wins_a, better.wins_b, better.ties) == ((4, 0, 4) if policy == "wrong" else (0, 0, 4))
    # Equal answers tie without being asked about, and a failed one has lost.
    assert not [text for text in asked(bench) if "Answer A:" in text]


def test_a_pair_is_asked_in_both_orders(bench: Bench) -> None:
    summary = summary_of(bench, scorers=[BETTER])
    questions = asked(bench)
    assert len(questions) == 8
    assert {(section(text, "Answer A"), section(text, "Answer B")) for text in questions} == {
        pair for at in (0, 2, 4, 6) for pair in ((f"please {at}", f"no {at}"), (f"no {at}", f"please {at}"))
    }
    (compared,) = summary.comparisons
    assert (compared.a, compared.b, compared.scorer, compared.test) == ("good", "bad", "better", "sign_exact")
    assert (compared.difference, compared.wins_a, compared.wins_b, compared.ties) == (0.5, 4, 0, 4)
    assert compared.p_value == pytest.approx(2 / 16)
    assert compared.unit == "net wins"
    # Four wins, and four answers that are the same, which are half a win for each.
    shares = [variant.scores["better"] for variant in summary.variants]
    assert [(share.mean, share.unit, share.n) for share in shares] == [(0.75, "share", 8), (0.25, "share", 8)]
    assert shares[0].ci_low is not None
    assert shares[0].ci_low < 0.75
    lines = pq.read_table(bench.out / "pairwise.parquet").to_pylist()
    assert lines[0] == {
        "a": "good",
        "b": "bad",
        "row_index": 0,
        "key": "r0",
        "sample_index": 0,
        "scorer": "better",
        "value": 1.0,
        "reason": "because of A",
    }
    assert lines[1]["reason"] == "the same answer"


def test_a_judge_is_held_against_the_right_verdicts(bench: Bench) -> None:
    # The judge finds every second answer of the bad model impolite; the column agrees but for row 1.
    right = [("yes", "no")[at % 2 == 0 or at == 1] for at in range(8)]
    best = ["good" if at % 2 == 0 and at < 6 else "tie" for at in range(8)]
    bench.rows({**row, "right": right[at], "best": best[at]} for at, row in enumerate(ROWS))
    only = [{"name": "one", "model": "bad"}]
    (judge,) = summary_of(bench, scorers=[{**POLITE, "gold": "right"}], variants=only).judges
    (found,) = judge.agreement
    assert (found.among, found.n, found.rows) == ("column right", 8, 8)
    assert found.accuracy.value == 7 / 8
    # Cohen: 7/8 are the same, and 4/8 x 3/8 + 4/8 x 5/8 by chance.
    assert found.kappa.value == pytest.approx((7 / 8 - 1 / 2) / (1 - 1 / 2))
    assert found.alpha.value is not None
    assert found.kappa.ci_low is not None
    assert found.kappa.value is not None
    assert found.kappa.ci_low < found.kappa.value
    # Both variants: verdicts on one row are one piece of evidence. The good model's answers are all polite.
    both = summary_of(bench, scorers=[{**POLITE, "gold": "right"}, {**BETTER, "gold": "best"}])
    polite, better = (one.agreement[0] for one in both.judges)
    assert (polite.n, polite.rows, polite.accuracy.value) == (16, 8, 10 / 16)
    # Four answers are the same, and nobody was asked about them. One of the other four is called a tie by the column.
    assert (better.among, better.n, better.rows, better.accuracy.value) == ("column best", 4, 4, 0.75)
    assert read_summary(bench.out).judges == both.judges
    # It is for the reader alone: no judge sees it, also where the prompt does.
    assert not any("right" in text or "best" in text for text in asked(bench))
    shown = printed(both, bench.out)
    assert "polite agrees with column right in 0.625 [" in shown
    assert "] of 16 verdicts on 8 rows; kappa " in shown
    assert "better (share of wins)" in shown


def test_right_verdicts_are_read_in_several_forms(tmp_path: Path) -> None:
    def judge(model: str, text: str) -> str:
        return json.dumps({"reason": "so", "verdict": int(text[-1]) % 4 + 1}) if model == "judge" else text

    bench = Bench(tmp_path, Provider(judge))
    bench.rows({**row, "points": value} for row, value in zip(ROWS, [1, "2", 3.0, " 4 ", 2, None, "", 4], strict=True))
    scorer = {**POLITE, "points": [1, 5], "gold": "points"}
    (found,) = summary_of(bench, scorers=[scorer], variants=[{"name": "one"}]).judges[0].agreement
    assert (found.n, found.accuracy.value) == (6, 5 / 6)
    assert found.alpha.value is not None
    assert found.alpha.value > 0.9  # 1 in place of 2 is a near miss
    bench.rows({**row, "points": "high"} for row in ROWS)
    summary = score_suite(bench.suite(scorers=[scorer], variants=[{"name": "one"}]))
    assert summary.judges[0].agreement == ()
    assert summary.notes == ("polite: its verdicts cannot be compared with points: 'high' is no number",)


def test_reviews_of_a_judge_are_told_by_its_evaluation(bench: Bench) -> None:
    suite = bench.suite(scorers=[POLITE, BETTER])
    bench.evaluate(suite)
    for name, wrong in (("polite", 2), ("better", 0)):
        output = bench.out / "judges" / name
        records = read_output(output).to_pylist()
        lines = [
            {
                "custom_id": one["custom_id"],
                "row_index": one["row_index"],
                "values": {"verdict": "no" if at < wrong else one["parsed"]["verdict"]},
                "reviewer": "first",
                "reviewed_at": "2030-01-01T00:00:00+00:00",
            }
            for at, one in enumerate(records)
        ]
        write_review_lines(output, "first.jsonl", lines)
    polite, better = score_suite(suite).judges
    assert [(one.agreement[0].among, one.agreement[0].n) for one in (polite, better)] == [("people", 12), ("people", 8)]
    assert better.agreement[0].kappa.value == 1
    value = polite.agreement[0].accuracy.value
    assert value is not None
    assert 10 / 12 <= value < 1


def test_orders_that_disagree_are_a_tie(tmp_path: Path) -> None:
    def first(model: str, text: str) -> str:
        return json.dumps({"reason": "the first", "verdict": "A"}) if model == "judge" else f"{model} {text}"

    bench = Bench(tmp_path, Provider(first))
    bench.rows(ROWS)
    (compared,) = summary_of(bench, scorers=[BETTER]).comparisons
    assert (compared.difference, compared.wins_a, compared.wins_b, compared.ties) == (0.0, 0, 0, 8)
    assert compared.p_value == 1.0
    line = pq.read_table(bench.out / "pairwise.parquet").to_pylist()[0]
    assert line["reason"] == "the orders disagree: a where a stands first (the first), b where b does (the first)"


def test_all_pairs_are_compared_or_those_with_one_variant(bench: Bench) -> None:
    three = {"matrix": {"model": ["good", "bad", "other"]}}
    every = summary_of(bench, scorers=[BETTER], variants=three)
    assert [(one.a, one.b) for one in every.comparisons] == [("good", "bad"), ("good", "other"), ("bad", "other")]
    assert every.comparisons[0].p_adjusted == pytest.approx(3 * (every.comparisons[0].p_value or 0))
    # The other model answers as the bad one does: its cases are the same.
    assert len(asked(bench)) == 8
    one = summary_of(bench, scorers=[{**BETTER, "against": "bad"}], variants=three)
    assert [(each.a, each.b) for each in one.comparisons] == [("good", "bad"), ("bad", "other")]


def test_the_plan_counts_what_judges_may_cost_and_is_exact_once_the_answers_are_there(bench: Bench) -> None:
    prices = {"input": 1, "output": 2, "currency": "EUR"}
    scorers = [{**POLITE, "prices": prices}, {**BETTER, "prices": prices}]
    suite = bench.suite(scorers=scorers)
    plan = plan_suite(suite, RunOptions())
    assert [(run.name, run.plan.requests, run.at_most) for run in plan.judges] == [
        ("polite", 16, True),
        ("better", 16, True),
    ]
    assert plan.requests == 48
    assert plan.cost is not None
    assert plan.cost > sum(run.plan.cost or 0 for run in plan.runs)
    assert not bench.out.exists()
    bench.evaluate(suite)
    after = plan_suite(suite, RunOptions())
    assert [(run.plan.requests, run.plan.done, run.at_most) for run in after.judges] == [(0, 12, False), (0, 8, False)]


def test_one_budget_holds_for_judges_too_and_they_go_on_later(bench: Bench) -> None:
    done = bench.evaluate(bench.suite(scorers=[POLITE], budget={"max_requests": 20}))
    assert (done.exit_code, len(bench.provider.asked)) == (4, 20)
    assert done.summary is not None
    assert done.summary.notes == ("polite: 8 cases of 12 not judged yet",)
    assert bench.evaluate(bench.suite(scorers=[POLITE])).exit_code == 0
    assert len(bench.provider.asked) == 28


def test_a_judge_that_is_refused_leaves_the_other_scores(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Provider(lambda model, text: 401 if model == "judge" else answers(model, text)))
    bench.rows(ROWS)
    done = bench.evaluate(bench.suite(scorers=[{"name": "length", "kind": "length"}, POLITE]))
    assert done.exit_code == 3
    assert done.summary is not None
    assert done.summary.variants[0].scores["length"].n == 8
    assert done.summary.variants[0].scores["polite"].mean is None


def test_settings_of_the_suite_hold_for_all_judges_unless_they_say_otherwise(bench: Bench) -> None:
    bare = {name: value for name, value in POLITE.items() if name != "model"}
    settings = {"model": "judge", "params": {"max_tokens": 50}, "limits": {"concurrency": 2}}
    suite = bench.suite(judge=settings, scorers=[bare, {**BETTER, "model": "other", "params": {"temperature": 1}}])
    first, second = suite.judges
    assert (first.job.model, first.job.params.as_body()) == ("judge", {"temperature": 0.0, "max_tokens": 50})
    assert (second.job.model, second.job.params.as_body()) == ("other", {"temperature": 1.0})
    assert second.job.limits.concurrency == 2
    assert first.job.provider == suite.variants[0].job.provider


@pytest.mark.parametrize(
    ("scorer", "told"),
    [
        ({"name": "p", "kind": "judge", "model": "m"}, "scorers.0.rubric: is missing; for example `rubric: Does"),
        ({**POLITE, "model": None}, "scorers.0: needs a model that judges\nSet `model` here, or `judge: {model: …}`"),
        ({**POLITE, "points": [5, 1]}, "scorers.0.points: must be the lowest and the highest number of points"),
        ({**POLITE, "points": [1, 5], "labels": {"a": 1, "b": 0}}, "has either `points` or `labels`"),
        ({**POLITE, "params": {"temperature": 3}}, "suite.yaml:14: params.temperature: must be between 0 and 2"),
        ({**POLITE, "show": ["txt"]}, "there is no column 'txt' in the input, which scorer polite reads (did you mean"),
        ({**POLITE, "gold": "gld"}, "there is no column 'gld' in the input, which scorer polite reads (did you mean"),
        ({**POLITE, "gold": "gold", "show": ["gold"]}, "`gold` is gold, which the judge would be shown"),
        ({**POLITE, "expected": "gld"}, "there is no column 'gld' in the input, which scorer polite reads"),
        ({**POLITE, "field": "parsed.x"}, "there is no column 'parsed' in the output, which scorer polite reads"),
        ({**POLITE, "rubric": "{{ nope"}, "suite.yaml:12: messages.0.content"),
        ({**POLITE, "provider": {"base_url": "http://j.invalid/v1", "api_key_env": "NO_KEY"}}, "NO_KEY is not set"),
        ({**BETTER, "against": "goood"}, "scorers.0.against: no variant is called 'goood' (did you mean 'good'?)"),
    ],
)  # fmt: skip
def test_what_a_judge_cannot_be_is_told_before_anything_is_sent(
    bench: Bench, scorer: dict[str, Any], told: str
) -> None:
    kept = {name: value for name, value in scorer.items() if value is not None}
    with pytest.raises(JobError) as raised:
        bench.evaluate(bench.suite(scorers=[kept]))
    assert told in str(raised.value)
    assert bench.provider.asked == []


def test_a_pairwise_judge_needs_two_variants(bench: Bench) -> None:
    with pytest.raises(JobError, match=r"scorers.0: compares variants, and there is one only"):
        bench.suite(scorers=[BETTER], variants=[{"name": "one"}])


def test_a_judge_of_its_own_answers_is_told_before_anything_is_sent(bench: Bench) -> None:
    (told,) = check_suite(bench.suite(scorers=[{**POLITE, "model": "bad"}]))
    assert told.startswith("judge polite: bad judges its own answers, those of bad, ")
    assert check_suite(bench.suite(scorers=[POLITE, BETTER])) == []
    # The same name at another provider is another model.
    other = {**POLITE, "model": "bad", "provider": {"base_url": "http://other.invalid/v1"}}
    assert check_suite(bench.suite(scorers=[other])) == []
