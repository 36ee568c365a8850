"""Whole evaluations in one process: what is asked, what is scored, what a second look costs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from batchchat import read_output
from batchchat.cli.evaluating import Gates
from batchchat.cli.evaluation_tables import render_evaluation
from batchchat.cli.evaluation_verdict import ranked, shortened, verdict
from batchchat.errors import JobError, UsageError
from batchchat.evaluation.checking import check_suite
from batchchat.evaluation.evaluate import Evaluation, evaluate
from batchchat.evaluation.results.current_rows import Choice
from batchchat.evaluation.results.gates import Baseline, GateResult
from batchchat.evaluation.results.scoring import score_suite
from batchchat.evaluation.results.summary import read_summary
from batchchat.evaluation.results.variant_scores import TextColumn
from batchchat.events import Snapshot
from batchchat.inspection import status_of
from batchchat.joining import Identities
from batchchat.template import Rendered, Template
from tests.integration.suites import Bench, Provider, on_virtual_clock
from tests.thorough import one_in

GOLD = ["yes", "no"] * 10


def labels(model: str, text: str) -> str | int:
    """The good model is wrong about row 0, the bad one about every row that 3 divides."""
    number = int(text.rsplit(" ", 1)[1])
    wrong = number == 0 if model == "good" else number % 3 == 0
    return {"yes": "no", "no": "yes"}[GOLD[number]] if wrong else GOLD[number]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path, Provider(labels))
    made.rows({"id": f"r{at}", "text": f"row {at}", "gold": gold} for at, gold in enumerate(GOLD))
    return made


def test_an_evaluation_runs_every_variant_and_says_what_came_of_it(bench: Bench) -> None:
    done = bench.evaluate(bench.suite())
    assert (done.exit_code, done.reason, len(bench.provider.asked)) == (0, None, 40)
    assert done.summary is not None
    good, bad = done.summary.variants
    assert [good.name, bad.name] == ["good", "bad"]
    assert (good.rows, good.open, good.failed, good.overrides) == (20, 0, 0, {"model": "good"})
    assert good.cost == pytest.approx(20 * 14e-6)
    assert (good.currency, good.prompt_tokens, good.completion_tokens) == ("EUR", 200, 40)
    assert (good.latency_p50_s, good.latency_p95_s) == (1.0, 1.0)
    accuracy = good.scores["accuracy"]
    assert (accuracy.mean, accuracy.n, accuracy.unit, accuracy.ci_method) == (0.95, 20, "yes/no", "wilson")
    assert bad.scores["accuracy"].mean == pytest.approx(13 / 20)
    (compared,) = done.summary.comparisons
    assert (compared.a, compared.b, compared.scorer, compared.test) == ("good", "bad", "accuracy", "mcnemar_exact")
    assert compared.difference == pytest.approx(0.3)
    assert (compared.wins_a, compared.wins_b, compared.ties) == (6, 0, 14)
    assert compared.p_value == pytest.approx(2 / 64)


def test_every_score_has_its_line(bench: Bench) -> None:
    classes = {"name": "t", "kind": "classes", "expected": "gold"}
    bench.evaluate(bench.suite(scorers=[{"name": "accuracy", "kind": "exact", "expected": "gold"}, classes]))
    lines = bench.scores()
    assert len(lines) == 80
    (folder,) = bench.out.glob("variants/good-*")
    ids = {record["row_index"]: record["custom_id"] for record in read_output(folder).to_pylist()}
    place = {"variant": "good", "row_index": 0, "key": "r0", "sample_index": 0, "custom_id": ids[0]}
    none = {"reason": None, "expected": None, "given": None, "cluster": None}
    compared = {"expected": lines[20]["expected"], "given": lines[20]["given"]}
    assert lines[0] == {**none, **place, **compared, "scorer": "accuracy", "value": 0.0}
    labels = {"expected": lines[20]["expected"], "given": lines[20]["given"]}
    assert lines[20] == {**none, **place, **labels, "scorer": "t.accuracy", "value": 0.0}
    assert labels["expected"] != labels["given"]
    assert set(labels.values()) <= {"yes", "no"}
    assert [line["row_index"] for line in lines] == [*range(20), *range(20)] * 2
    assert [line["custom_id"] for line in lines[:20]] == [ids[row] for row in range(20)]


def test_a_score_tells_what_was_expected_and_given(tmp_path: Path) -> None:
    answers: list[str | int] = ["yes", "y" * 300, "no", 500]
    bench = Bench(tmp_path, Provider(lambda _model, text: answers[int(text)]))
    bench.rows(
        [
            {"id": "a", "text": "0", "gold": "yes", "number": 3.0, "items": ["a", "b"]},
            {"id": "b", "text": "1", "gold": "x" * 300, "number": None, "items": None},
            {"id": "c", "text": "2", "gold": None, "number": 0.5, "items": []},
            {"id": "d", "text": "3", "gold": "no", "number": 4.0, "items": ["c"]},
        ]
    )
    none: list[str | None] = [None] * 4
    gold, given = ["yes", "x" * 200, None, "no"], ["yes", "y" * 200, "no", None]
    cases: list[tuple[dict[str, Any], list[str | None], list[str | None]]] = [
        ({"kind": "exact", "expected": "gold"}, gold, given),
        ({"kind": "numeric", "expected": "number"}, ["3", None, "0.5", "4"], given),
        ({"kind": "set_f1", "expected": "items"}, ['["a","b"]', None, "[]", '["c"]'], given),
        ({"kind": "contains", "value": "e"}, ["e"] * 4, given),
        ({"kind": "regex", "pattern": "e"}, none, given),
        ({"kind": "exact", "expected": "gold", "field": "completion.label"}, gold, none),
        ({"kind": "length"}, none, none),
    ]
    scorers = [{"name": f"s{at}", **scorer} for at, (scorer, _, _) in enumerate(cases)]
    bench.evaluate(bench.suite(scorers=scorers, variants=[{"name": "one"}]))
    lines = bench.scores()
    for at, (scorer, *wanted) in enumerate(cases):
        told = [line for line in lines if line["scorer"] == f"s{at}"]
        assert [[line[side] for line in told] for side in ("expected", "given")] == wanted, scorer


def test_texts_of_several_parts_find_their_places() -> None:
    column = TextColumn(6)
    assert column.texts(np.arange(2)).to_pylist() == [None, None]
    for positions, texts in (([5, 1], ["a", "b"]), ([0, 3, 2], ["c", None, "a"]), ([], [])):
        column.put(np.array(positions, np.int64), texts)
    assert column.texts(np.arange(6)).to_pylist() == ["c", "b", "a", None, None, "a"]
    assert column.texts(np.array([5, 4])).to_pylist() == ["a", None]


@pytest.mark.parametrize("width", [50, 110])
def test_an_evaluation_ends_with_the_leader_and_no_name_is_lost(bench: Bench, width: int) -> None:
    scorers = [
        {"name": "accuracy", "kind": "exact", "expected": "gold"},
        {"name": "speed", "kind": "latency"},
        {"name": "price", "kind": "cost"},
        {"name": "length", "kind": "length"},
    ]
    done = bench.evaluate(bench.suite(scorers=scorers))
    assert done.summary is not None
    told = verdict(ranked(done.summary))
    assert told[0].startswith("good (1) leads in accuracy with 0.950: better than 2. Against 2 it is +0.300 [")
    assert len(told) == 1
    shown = io.StringIO()
    Console(file=shown, width=width).print(render_evaluation(done.summary, [], bench.out))
    text = shown.getvalue()
    comparisons = text[text.index("1 less 2") :]
    for name in ("accuracy", "speed", "price (per 1,000)", "length"):
        assert f"\n{name} " in comparisons
    assert "e-05" not in text
    for word in ("better", "+0.300"):
        assert word in comparisons
    assert " ".join(text.split()).endswith(" ".join(" ".join(told).split()))


def test_a_long_name_keeps_a_trace_of_each_word() -> None:
    name = "mistral-small-3.2-24b-instruct-2506 short temperature=0.7"
    assert shortened(name, 60) == name
    short = shortened(name, 36)
    assert len(short) == 36
    assert [word[0] + word[-1] for word in short.split()] == ["m6", "st", "t7"]
    assert len(shortened("x" * 80, 24)) <= 24
    assert len(shortened(" ".join("abcdef" * 9), 24)) == 24


@pytest.mark.thorough
def test_eight_variants_fill_a_page_and_no_more(bench: Bench) -> None:
    scorers = [
        {"name": "accuracy", "kind": "exact", "expected": "gold"},
        {"name": "classes", "kind": "classes", "expected": "gold"},
        {"name": "speed", "kind": "latency"},
        {"name": "price", "kind": "cost"},
        {"name": "length", "kind": "length"},
    ]
    names = [f"model-with-a-long-name-{at} and-a-prompt-with-another temperature={at / 10}" for at in range(6)]
    variants = [{"name": name, "params.seed": at} for at, name in enumerate(names)]
    bad = [{"name": f"worse {at}", "model": "bad", "params.seed": at} for at in range(2)]
    done = bench.evaluate(bench.suite(scorers=scorers, variants=[*bad, *variants]))
    assert done.summary is not None
    shown = io.StringIO()
    Console(file=shown, width=100).print(render_evaluation(done.summary, [], bench.out))
    lines = shown.getvalue().splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    # A line for each variant, the best first, then a line for each pair with the leader.
    places = [line.split()[0] for line in lines if line[:1].isdigit() and " less " not in line]
    assert places == [str(at) for at in range(1, 9)]
    assert [line.split()[2] for line in lines if line.startswith("1 less ")] == [str(at) for at in range(2, 9)]
    assert [line.split()[0] for line in lines if "worse" in line[:12]] == ["7", "8"]
    # What says the same is shown once; costs are those of 1,000 rows.
    assert not any("classes.accuracy" in line and "the same as" not in line for line in lines)
    assert sum("0.0140 EUR" in line for line in lines) == 8
    assert "level with 2, 3, 4, 5 and 6; open against 7 and 8" in " ".join(" ".join(lines[-4:]).split())


def test_the_summary_is_what_is_documented_and_reads_back(bench: Bench) -> None:
    done = bench.evaluate(bench.suite(scorers=[{"name": "t", "kind": "classes", "expected": "gold"}]))
    written = json.loads((bench.out / "summary.json").read_text())
    assert written["version"] == 1
    fields = {"mean", "ci_low", "ci_high", "n", "unit", "higher_is_better", "ci_method"}
    assert fields <= written["variants"][0]["scores"]["t.macro_f1"].keys()
    assert [one["scorer"] for one in written["comparisons"]] == ["t.accuracy", "t.macro_f1"]
    assert written["variants"][0]["classes"]["t"]["confusion"] == [[10, 0, 0, 0], [1, 9, 0, 0]]
    assert written["variants"][0]["classes"]["t"]["given"] == ["no", "yes", "(other)", "(no answer)"]
    assert read_summary(bench.out) == done.summary


def test_a_second_evaluation_sends_nothing_and_writes_the_same_bytes(bench: Bench) -> None:
    suite = bench.suite(scorers=[{"name": "a", "kind": "exact", "expected": "gold"}, {"name": "l", "kind": "length"}])
    bench.evaluate(suite)
    before = {name: (bench.out / name).read_bytes() for name in ("summary.json", "scores.parquet")}
    bench.evaluate(suite)
    score_suite(suite)
    assert len(bench.provider.asked) == 40
    assert {name: (bench.out / name).read_bytes() for name in before} == before


def test_a_corrected_gold_label_counts_at_the_next_scoring(bench: Bench) -> None:
    suite = bench.suite()
    bench.evaluate(suite)
    corrected = ["no", *GOLD[1:]]
    bench.rows({"id": f"r{at}", "text": f"row {at}", "gold": gold} for at, gold in enumerate(corrected))
    assert score_suite(suite).variants[0].scores["accuracy"].mean == 1.0
    assert len(bench.provider.asked) == 40


@pytest.mark.thorough
@pytest.mark.parametrize("key", one_in(2, ["id", None]))
def test_rows_whose_requests_a_run_left_behind_are_not_rendered_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    rows: list[dict[str, Any]] = [
        {"id": f"r{at % 1_090}", "text": f"row {at % 7}", "gold": GOLD[at % 20]} for at in range(1_100)
    ]
    rows[5] = {"id": "r5", "text": None, "gold": "yes"}
    bench.rows(rows)
    content = "{{ text | upper if text else missing.value }}"
    job: dict[str, Any] = {
        "input": {"path": "rows.jsonl"} | ({"key": key} if key else {}),
        "skip": "{{ gold == 'no' and id == 'r9' }}",
        "messages": [{"role": "user", "content": content}],
        "samples": 2,
        "limits": {"concurrency": 600},
    }
    bench.provider.answer = lambda model, text: GOLD[int(text[-1])]
    suite = bench.suite(job=job, variants=[{"name": "only"}])
    assert bench.evaluate(suite).exit_code == 1
    rendered = 0
    render = Template.render

    def counting(self: Template, *given: Any, **named: Any) -> Rendered:
        nonlocal rendered
        rendered += 1
        return render(self, *given, **named)

    monkeypatch.setattr(Template, "render", counting)

    def scored(choice: Choice) -> tuple[int, list[bytes]]:
        nonlocal rendered
        rendered = 0
        score_suite(suite, choice=choice)
        return rendered, [(bench.out / name).read_bytes() for name in ("summary.json", "scores.parquet")]

    known = [scored(choice) for choice in (Choice(), Choice(limit=700))]
    for trail in bench.out.glob("variants/*/_batchchat/trail.*"):
        trail.unlink()
    anew = [scored(choice) for choice in (Choice(), Choice(limit=700))]
    assert [files for _, files in known] == [files for _, files in anew]
    # What is tried on the first rows, before anything is scored, is all that is rendered.
    assert [count for count, _ in known] == [1, 1]
    assert [count > 600 for count, _ in anew] == [True, True]
    bench.rows([*rows, {"id": "more", "text": "row 1", "gold": "yes"}])
    assert score_suite(suite).variants[0].open == 2


def test_an_answer_to_an_earlier_prompt_is_never_scored(bench: Bench) -> None:
    bench.evaluate(bench.suite())
    content = "{% if id in ['r1', 'r2'] %}Please: {% endif %}{{ text }}"
    edited = bench.suite(job={"messages": [{"role": "user", "content": content}]})
    found = score_suite(edited)
    assert [(variant.rows, variant.open) for variant in found.variants] == [(18, 2), (18, 2)]
    assert found.notes[0] == "'good': 2 answers of 20 still to come; 2 records of an earlier prompt or input left out"
    assert bench.evaluate(edited).exit_code == 0
    assert len(bench.provider.asked) == 44


def test_only_the_rows_that_were_chosen_count(bench: Bench) -> None:
    suite = bench.suite()
    done = bench.evaluate(suite, limit=5)
    assert done.summary is not None
    assert [(variant.rows, variant.open) for variant in done.summary.variants] == [(5, 0), (5, 0)]
    assert (len(bench.provider.asked), done.summary.notes) == (10, ())
    whole = score_suite(suite)
    assert (whole.variants[0].rows, whole.variants[0].open) == (5, 15)
    sampled = bench.evaluate(suite, sample=6, seed=3).summary
    assert sampled is not None
    assert sampled.variants[0].rows == 6
    assert score_suite(suite, choice=Choice(sample=6, seed=3)) == sampled


def test_adding_a_variant_asks_only_that_one(bench: Bench) -> None:
    bench.evaluate(bench.suite())
    more = bench.suite(variants=[{"name": "new", "model": "other"}, {"matrix": {"model": ["bad", "good"]}}])
    done = bench.evaluate(more)
    assert {model for model, _ in bench.provider.asked[40:]} == {"other"}
    assert done.summary is not None
    assert [variant.name for variant in done.summary.variants] == ["new", "bad", "good"]
    assert len(done.summary.comparisons) == 3


def test_a_renamed_variant_keeps_its_answers(bench: Bench) -> None:
    bench.evaluate(bench.suite(variants=[{"name": "first", "params.temperature": 0}]))
    renamed = bench.suite(variants=[{"name": "cold", "params.temperature": 0}])
    done = bench.evaluate(renamed)
    assert len(bench.provider.asked) == 20
    assert done.summary is not None
    assert (done.summary.variants[0].name, done.summary.variants[0].rows) == ("cold", 20)


@pytest.mark.parametrize(("policy", "mean", "n"), [(None, 9 / 20, 20), ("wrong", 9 / 20, 20), ("skip", 0.9, 10)])
def test_failed_rows_count_as_stated(tmp_path: Path, policy: str | None, mean: float, n: int) -> None:
    def half(model: str, text: str) -> str | int:
        return labels(model, text) if int(text.rsplit(" ", 1)[1]) < 10 else 400

    bench = Bench(tmp_path, Provider(half))
    bench.rows({"id": at, "text": f"row {at}", "gold": gold} for at, gold in enumerate(GOLD))
    done = bench.evaluate(bench.suite(failed=policy, variants=[{"name": "one"}]))
    assert (done.exit_code, done.summary is not None) == (1, True)
    assert done.summary is not None
    (one,) = done.summary.variants
    assert (one.rows, one.failed, one.failures) == (20, 10, {"invalid_request": 10})
    assert one.scores["accuracy"].mean == pytest.approx(mean)
    assert one.scores["accuracy"].n == n
    reasons = [line["reason"] for line in bench.scores()]
    assert reasons[:10] == [None] * 10
    assert all(reason.startswith("failed: invalid_request") for reason in reasons[10:])


def test_several_samples_are_clusters_of_their_row(bench: Bench) -> None:
    done = bench.evaluate(bench.suite(samples=3))
    assert (len(bench.provider.asked), len(bench.scores())) == (120, 120)
    assert done.summary is not None
    accuracy = done.summary.variants[0].scores["accuracy"]
    assert (accuracy.n, accuracy.mean, done.summary.samples) == (20, 0.95, 3)
    assert done.summary.variants[0].rows == 20


def test_rows_without_a_key_are_told_apart_by_their_number(bench: Bench) -> None:
    bench.rows([{"text": "row 1", "gold": "no"}, {"text": "row 1", "gold": "yes"}, {"text": "row 2", "gold": "yes"}])
    done = bench.evaluate(bench.suite(job={"input": {"path": "rows.jsonl"}}))
    assert len(bench.provider.asked) == 6
    assert done.summary is not None
    assert done.summary.variants[0].scores["accuracy"].mean == pytest.approx(2 / 3)
    assert [(line["key"], line["value"]) for line in bench.scores()[:3]] == [(None, 1.0), (None, 0.0), (None, 1.0)]


@pytest.mark.thorough
def test_rows_that_cannot_be_read_or_rendered_are_failed_answers(bench: Bench) -> None:
    good = [json.dumps({"id": at, "text": f"row {at % 20}", "gold": GOLD[at % 20]}) for at in range(1_000)]
    lines = [*good, "{broken", '{"id": 0, "text": "row 1", "gold": "no"}', '{"id": 5000, "gold": "no"}']
    (bench.folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = bench.evaluate(bench.suite(variants=[{"name": "one"}]))
    assert done.summary is not None
    (one,) = done.summary.variants
    assert (one.rows, one.open, one.failed, one.failures) == (1_003, 0, 3, {"input": 2, "template": 1})
    told = {line["row_index"]: (line["value"], line["reason"]) for line in bench.scores()[1_000:]}
    # An unreadable row has no expected value to be held against.
    assert told[1_000] == (None, "the input has no gold here")
    assert told[1_001][0] == told[1_002][0] == 0.0


def test_a_function_sees_the_whole_row_as_it_is_now(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "def right(row):\n    return row['completion'] == row['gold'], row['text']\n"
    (bench.folder / "own_scorer_of_rows.py").write_text(code, encoding="utf-8")
    own = {"name": "own", "python": "own_scorer_of_rows:right", "unit": "yes/no"}
    suite = bench.suite(scorers=[own, {"name": "accuracy", "kind": "exact", "expected": "gold"}])
    done = bench.evaluate(suite)
    assert done.summary is not None
    assert done.summary.variants[0].scores["own"].mean == 0.95
    assert done.summary.variants[0].scores["accuracy"].mean == 0.95
    bench.rows({"id": f"r{at}", "text": f"row {at}", "gold": "maybe"} for at in range(20))
    assert score_suite(suite).variants[0].scores["own"].mean == 0.0
    assert bench.scores()[3]["reason"] == "row 3"


def test_variants_share_limits(bench: Bench) -> None:
    bench.evaluate(bench.suite(variants=[{"name": str(at), "params.seed": at} for at in range(4)]), limit=15)
    provider = bench.provider
    assert len(provider.times) == 60
    at_once = max(sum(start <= time < start + 1 for start in provider.times) for time in provider.times)
    assert at_once == 8


def test_one_budget_holds_for_all_variants_and_what_is_there_is_scored(bench: Bench) -> None:
    done = bench.evaluate(bench.suite(budget={"max_requests": 25}))
    assert (done.exit_code, len(bench.provider.asked)) == (4, 25)
    assert "budget.max_requests of 25 is used up" in (done.reason or "")
    assert done.summary is not None
    assert sum(variant.rows for variant in done.summary.variants) == 25
    assert bench.evaluate(bench.suite()).exit_code == 0
    assert len(bench.provider.asked) == 40


def test_one_deadline_holds_for_all_variants(bench: Bench) -> None:
    done = bench.evaluate(bench.suite(deadline="3s", job={"limits": {"concurrency": 2}}))
    assert done.exit_code == 4
    assert "the deadline of 3s is over" in (done.reason or "")
    assert 6 <= len(bench.provider.asked) < 40


def test_progress_is_that_of_all_variants(bench: Bench) -> None:
    bench.evaluate(bench.suite())
    last = bench.snapshots[-1]
    assert (last.job, last.phase, last.total, last.ok, last.attempts) == ("suite", "ended", 40, 40, 40)
    assert last.spend.requests == 40
    assert max(snapshot.pace.concurrency for snapshot in bench.snapshots) == 16
    oks = [snapshot.ok for snapshot in bench.snapshots]
    assert oks == sorted(oks)


def test_a_model_that_is_refused_leaves_the_others_their_answers(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Provider(lambda model, text: 404 if model == "bad" else labels(model, text)))
    bench.rows({"id": at, "text": f"row {at}", "gold": gold} for at, gold in enumerate(GOLD))
    done = bench.evaluate(bench.suite())
    assert (done.exit_code, done.summary) == (3, None)
    assert score_suite(bench.suite()).variants[0].rows == 20


def test_variants_that_make_the_same_requests_are_said_before_and_after(bench: Bench) -> None:
    variants: list[dict[str, Any]] = [
        {"name": "a"},
        {"name": "b", "limits.concurrency": 2},
        {"name": "c", "model": "x"},
    ]
    done = bench.evaluate(bench.suite(variants=variants))
    told = "'a' and 'b' make the same requests: their answers differ by chance alone"
    assert [event.message for event in bench.events if event.name == "suite"] == [told]
    assert done.summary is not None
    assert done.summary.notes == (told,)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"scorers": [{"name": "a", "kind": "exact", "expected": "gld"}]},
            "suite.yaml:9: scorers.0: there is no column 'gld' in the input, which scorer a reads (did you mean",
        ),
        (
            {"scorers": [{"name": "a", "kind": "exact", "value": "x", "field": "parsed.label"}]},
            "scorers.0: there is no column 'parsed' in the output, which scorer a reads",
        ),
        ({"variants": [{"name": "a", "messages": [{"role": "user", "content": "{{ txt }}"}]}]}, "txt"),
    ],
)
def test_what_does_not_fit_the_input_is_told_before_anything_is_sent(
    bench: Bench, fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(JobError) as raised:
        bench.evaluate(bench.suite(**fields))
    assert told in str(raised.value)
    assert bench.provider.asked == []
    assert not bench.out.exists()


def test_a_field_that_the_schema_does_not_have_is_told(bench: Bench) -> None:
    schema = {"type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]}
    scorers = [{"name": "a", "kind": "exact", "expected": "gold", "field": "parsed.lable"}]
    with pytest.raises(JobError, match=r"no column 'lable' in parsed \(did you mean 'label'\?\)"):
        bench.evaluate(bench.suite(job={"response": {"schema": schema}}, scorers=scorers))


def test_a_stop_leaves_an_evaluation_that_goes_on(bench: Bench) -> None:
    suite = bench.suite(job={"limits": {"concurrency": 2}})

    def stop_at_ten(snapshot: Snapshot) -> None:
        if snapshot.ok >= 10 and not setting.stop.asked:
            setting.stop.stop(reason="enough", exit_code=130)

    setting = bench.setting(suite, on_snapshot=stop_at_ten)
    done: Evaluation = on_virtual_clock(lambda: evaluate(suite, setting))
    assert (done.exit_code, done.reason, done.summary) == (130, "enough", None)
    sent = len(bench.provider.asked)
    assert 10 <= sent < 40
    folder = Path(suite.variants[0].job.output.path)
    assert status_of(folder).command == f"batchchat eval {bench.folder / 'suite.yaml'}"
    assert bench.evaluate(suite).exit_code == 0
    assert len(bench.provider.asked) == 40


def test_warnings_of_the_runs_are_told_once(bench: Bench) -> None:
    done = bench.evaluate(bench.suite(samples=2, job={"params": {"temperature": 0}}))
    assert done.warnings == ("samples: the 2 answers to a row may all be alike, since params.temperature is 0",)
    variants = [{"name": "cold", "params.temperature": 0}, {"name": "warm", "params.temperature": 1}]
    assert bench.evaluate(bench.suite(samples=2, variants=variants)).warnings[0].startswith("cold: samples: the 2")


def test_a_budget_of_money_needs_one_currency(bench: Bench) -> None:
    prices = {"input": 1, "output": 2, "currency": "USD"}
    suite = bench.suite(budget={"max_cost": 1}, variants=[{"name": "a"}, {"name": "b", "prices": prices}])
    with pytest.raises(JobError, match=r"suite.yaml:\d+: budget.max_cost: cannot be kept over prices in EUR and USD"):
        bench.evaluate(suite)
    assert bench.provider.asked == []


def test_what_a_scorer_cannot_tell_is_said(bench: Bench) -> None:
    code = (
        "def odd(row):\n    if row['id'] in ('r3', 'r4'):\n        raise ValueError('odd ' + row['id'])\n    return 1\n"
    )
    (bench.folder / "own_scorer_that_raises.py").write_text(code, encoding="utf-8")
    own = {"name": "own", "python": "own_scorer_that_raises:odd"}
    done = bench.evaluate(bench.suite(scorers=[own], variants=[{"name": "one"}]))
    assert done.exit_code == 0
    assert done.summary is not None
    assert (done.summary.variants[0].scores["own"].n, done.summary.variants[0].scores["own"].nulls) == (18, 2)
    reason = "own_scorer_that_raises:odd raised ValueError: odd r3"
    assert done.summary.notes == (f"'one': own has no value for 2 answers: {reason}",)
    assert bench.scores()[3]["reason"] == reason


@pytest.mark.thorough
def test_an_evaluation_is_held_against_an_earlier_one(bench: Bench) -> None:
    scorers: list[dict[str, Any]] = [
        {"name": "t", "kind": "classes", "expected": "gold"},
        {"name": "words", "kind": "length"},
    ]
    before = bench.folder / "out" / "before"
    bench.evaluate(bench.suite(variants=[{"name": "one"}], scorers=scorers, output="out/before"))

    def check(**fields: Any) -> GateResult:
        suite = bench.suite(scorers=scorers, **fields)
        done = bench.evaluate(suite)
        assert done.summary is not None
        # Macro-F1 has no values row by row, and of words neither more nor fewer are better.
        (result,) = Baseline(before, suite).check(suite.output, done.summary)
        return result

    worse = check(variants=[{"name": "one", "model": "bad"}])
    assert (worse.variant, worse.passed) == ("one", False)
    assert (worse.rule, worse.message) == (
        f"t.accuracy not worse than in {before}",
        "-0.3 against one on 20 rows, p = 0.031",
    )
    # The command ends with 5, unless the runs themselves ended early.
    gates = Gates(bench.suite(variants=[{"name": "one"}], scorers=scorers), (), (), before, None)
    assert [gates.exit_code(code, [worse]) for code in (0, 1, 4)] == [5, 5, 4]
    # Where each side has one variant only, its name does not matter.
    assert check(variants=[{"name": "renamed"}]).passed
    # Twenty rows of two clusters are two pieces of evidence.
    clustered = check(variants=[{"name": "one", "model": "bad"}], cluster="gold")
    assert (clustered.passed, clustered.message) == (True, "-0.3 against one on 20 rows, p = 0.5")
    scorers[0]["margin"] = 0.9
    within = check(variants=[{"name": "one", "model": "bad"}])
    assert (within.passed, within.message.endswith("p = 0.031, equivalent within 0.9")) == (True, True)
    scorers[0].pop("margin")
    bench.rows({"id": f"r{at}", "text": f"row {at}", "gold": gold} for at, gold in enumerate(GOLD[:8]))
    few = check(variants=[{"name": "one", "model": "bad"}])
    assert (few.passed, few.message) == (True, "-0.25 against one on 8 rows, p = 0.5")
    with pytest.raises(UsageError, match="it has no variant in common with the suite\nIt has: one"):
        Baseline(before, bench.suite(scorers=scorers))
    with pytest.raises(UsageError, match=r"it has no score in common with the suite\nIt has: t\.accuracy"):
        Baseline(before, bench.suite(variants=[{"name": "one"}]))


def test_identities_whose_halves_repeat_are_told_apart() -> None:
    ids = ["00" * 8 + f"{at:02x}" * 8 for at in range(5)] + [f"{at:02x}" * 16 for at in range(6, 10)]
    found = Identities(bytes.fromhex("".join(ids)))
    asked = [*reversed(ids), "00" * 8 + "77" * 8, "ff" * 16]
    assert found.find(pa.array(asked)).tolist() == [*range(8, -1, -1), -1, -1]
    assert found.find(pa.array([], pa.string())).tolist() == []
    assert Identities(b"").find(pa.array(ids)).tolist() == [-1] * 9
    assert Identities(b"").digest != found.digest


def test_rows_of_a_cluster_are_one_piece_of_evidence(bench: Bench) -> None:
    rows = [{"id": f"r{at}", "text": f"row {at}", "gold": gold} for at, gold in enumerate(GOLD)]
    documents = [None if at == 19 else at // 4 for at in range(20)]
    bench.rows({**row, "document": document} for row, document in zip(rows, documents, strict=True))
    done = bench.evaluate(bench.suite(cluster="document"))
    assert done.summary is not None
    assert done.summary.cluster == "document"
    accuracy = done.summary.variants[0].scores["accuracy"]
    # A row without a document stands for itself.
    assert (accuracy.mean, accuracy.n, accuracy.clusters, accuracy.ci_method) == (0.95, 20, 6, "student_t_clusters")
    (compared,) = done.summary.comparisons
    assert (compared.clusters, compared.test) == (6, "sign_flip_exact_clusters")
    assert compared.difference == pytest.approx(0.3)
    assert [line["cluster"] for line in bench.scores()[:5]] == ["0", "0", "0", "0", "1"]
    assert read_summary(bench.out) == done.summary
    with pytest.raises(JobError, match=r"documint.*did you mean 'document'"):
        check_suite(bench.suite(cluster="documint"))


def test_a_suite_tells_of_several_samples(bench: Bench) -> None:
    scorer = {"name": "accuracy", "kind": "exact", "expected": "gold", "pass_at": 2, "pass_all": 3, "consistency": True}
    suite = bench.suite(samples=3, scorers=[scorer], job={"params": {"temperature": 0.7}})
    names = ["accuracy", "accuracy.pass_at_2", "accuracy.pass_all_3", "accuracy.consistency"]
    assert list(suite.scores()) == names
    done = bench.evaluate(suite)
    assert done.summary is not None
    assert [one.name for one in done.summary.scorers] == names
    # Equal requests have equal answers here: all samples of a row are right, or none is.
    scores = done.summary.variants[0].scores
    assert {scores[name].mean for name in names[:3]} == {0.95}
    assert (scores["accuracy.consistency"].mean, scores["accuracy.pass_at_2"].n) == (1.0, 20)
    assert [one.scorer for one in done.summary.comparisons] == names


def test_what_samples_cannot_tell_is_refused_with_its_place(bench: Bench) -> None:
    scorer = {"name": "accuracy", "kind": "exact", "expected": "gold", "majority": 5}
    with pytest.raises(JobError, match=r"majority.*needs 5 samples of each row, and there are 3"):
        bench.suite(samples=3, scorers=[scorer])
    length = {"name": "words", "kind": "length", "pass_at": 2}
    with pytest.raises(JobError, match=r"pass_at.*is for yes/no scores"):
        bench.suite(samples=3, scorers=[length])
    alike = bench.suite(samples=5, scorers=[scorer], job={"params": {"temperature": 0}})
    with pytest.raises(JobError, match=r"alike by construction, since params\.temperature is 0"):
        check_suite(alike)


def test_variants_may_be_cascades(tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"label": {"enum": ["yes", "no"]}, "sure": {"type": "number"}},
        "required": ["label", "sure"],
        "additionalProperties": False,
    }

    def answer(model: str, text: str) -> str:
        number = int(text.rsplit(" ", 1)[1])
        wrong = model == "small" and number % 4 == 0
        label = {"yes": "no", "no": "yes"}[GOLD[number]] if wrong else GOLD[number]
        return json.dumps({"label": label, "sure": 0.5 if model == "small" and number % 2 == 0 else 0.95})

    bench = Bench(tmp_path, Provider(answer))
    bench.rows({"id": f"r{at}", "text": f"row {at}", "gold": gold} for at, gold in enumerate(GOLD))
    steps = [{"model": "small", "accept": {"confidence": 0.9}}, {"model": "large"}]
    suite = bench.suite(
        job={
            "model": None,
            "cascade": steps,
            "prices": None,
            "response": {"schema": schema, "confidence": {"field": "sure"}},
        },
        variants=[{"name": "both"}, {"name": "small alone", "cascade": [], "model": "small"}],
        scorers=[{"name": "right", "kind": "exact", "expected": "gold", "field": "parsed.label"}],
    )
    done = bench.evaluate(suite)
    assert (done.exit_code, done.reason) == (0, None)
    assert done.summary is not None
    both, alone = done.summary.variants
    assert (both.name, both.rows, both.scores["right"].mean) == ("both", 20, 1.0)
    assert (alone.name, alone.rows, alone.scores["right"].mean) == ("small alone", 20, 0.75)
    # 20 rows of each variant, and the unsure half of the cascade's once more.
    assert len(bench.provider.asked) == 50
    again = bench.evaluate(suite)
    assert len(bench.provider.asked) == 50
    assert again.summary == done.summary


def test_a_row_that_one_variant_skips_counts_for_none(bench: Bench) -> None:
    """All variants are measured by the same rows, and no answer is said to be still to come."""
    variants = [
        {"name": "all", "model": "good"},
        {"name": "some", "model": "bad", "skip": "{{ text == 'row 3' or id == 'r4' }}"},
    ]
    done = bench.evaluate(bench.suite(variants=variants))
    assert (done.exit_code, len(bench.provider.asked)) == (0, 20 + 18)
    assert done.summary is not None
    every, some = done.summary.variants
    assert [(one.rows, one.open, one.failed) for one in (every, some)] == [(18, 0, 0)] * 2
    assert done.summary.comparisons[0].a == "all"
    assert "2 rows left out of all scores: `skip` is true of them" in done.summary.notes
