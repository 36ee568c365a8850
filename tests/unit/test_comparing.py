"""Two outputs side by side: which rows match, how often answers agree, whose expected values count."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from batchchat.errors import UsageError
from batchchat.evaluation.results.comparing import OutputComparison, compare_outputs, read_scorer_text
from tests.integration.suites import Bench, Provider

ROWS = [{"id": f"r{at}", "name": f"n{at}", "text": f"row {at}", "gold": "yes"} for at in range(10)]


def answers(model: str, text: str) -> str | int:
    """The good model says yes; the bad one says no to rows 0 to 2, and fails at row 9."""
    number = int(text.rsplit(" ", 1)[1])
    if model == "good":
        return "yes"
    return 400 if number == 9 else "no" if number < 3 else "yes"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path, Provider(answers))
    made.rows(ROWS)
    return made


def run(bench: Bench, name: str, model: str, rows: Iterable[dict[str, Any]] = ROWS, **fields: Any) -> Path:
    """Run one model over rows into an output of its own."""
    bench.rows(rows)
    suite = bench.suite(variants=[{"name": "one", "model": model}], output=f"out/{name}", **fields)
    bench.evaluate(suite)
    return Path(suite.variants[0].job.output.path)


def compare(a: Path, b: Path, *scorers: str, **options: Any) -> OutputComparison:
    return compare_outputs(a, b, scorers=[read_scorer_text(text) for text in scorers], **options)


def test_agreement_and_what_every_record_has(bench: Bench) -> None:
    found = compare(run(bench, "a", "good"), run(bench, "b", "bad"))
    assert (found.on, found.rows, found.only_a, found.only_b) == ("key", 10, 0, 0)
    agreement = found.agreement
    assert (agreement.same, agreement.different, agreement.share.n, agreement.share.nulls) == (6, 3, 9, 1)
    assert agreement.share.mean == pytest.approx(6 / 9)
    assert [(one.row, one.a, one.b) for one in agreement.examples] == [(f"r{at}", "yes", "no") for at in range(3)]
    by = {one.scorer: one for one in found.summary.comparisons}
    assert list(by) == ["answered", "length", "tokens", "cost", "latency"]
    assert by["answered"].difference == pytest.approx(0.1)
    assert (by["answered"].wins_a, by["answered"].wins_b, by["answered"].n) == (1, 0, 10)
    # A failed row has no length.
    assert (by["length"].n, by["length"].wins_a, by["length"].higher_is_better) == (9, 3, None)
    assert [(one.name, one.model, one.failed) for one in found.summary.variants] == [("a", "good", 0), ("b", "bad", 1)]


def test_scorers_say_which_is_better(bench: Bench) -> None:
    a, b = run(bench, "a", "good"), run(bench, "b", "bad")
    found = compare(a, b, "exact:gold", "{name: says_yes, kind: contains, value: y}")
    by = {one.scorer: one for one in found.summary.comparisons}
    assert by["exact"].difference == pytest.approx(0.4)
    assert (by["exact"].wins_a, by["exact"].wins_b, by["exact"].test) == (4, 0, "mcnemar_exact")
    assert by["says_yes"].wins_a == 4
    mirrored = {one.scorer: one for one in compare(b, a, "exact:gold").summary.comparisons}
    assert mirrored["exact"].difference == pytest.approx(-0.4)


def test_only_rows_that_both_have_count_in_whatever_order(bench: Bench) -> None:
    a = run(bench, "a", "good", ROWS[:6])
    b = run(bench, "b", "bad", reversed([*ROWS[2:5], *ROWS[7:]]))
    found = compare(a, b, "exact:gold")
    assert (found.rows, found.only_a, found.only_b) == (3, 3, 3)
    assert [variant.rows for variant in found.summary.variants] == [3, 3]
    assert (found.agreement.same, found.agreement.different) == (2, 1)


def test_rows_are_matched_by_a_column_or_their_number(bench: Bench) -> None:
    a = run(bench, "a", "good", job={"input": {"path": "rows.jsonl"}})
    b = run(bench, "b", "bad", reversed(ROWS))
    with pytest.raises(UsageError, match=r"have no keys to be matched by\nName a column that tells rows apart: --on"):
        compare(a, b)
    assert compare(a, b, on="name").agreement.same == 6
    assert compare(a, b, on="row_index").rows == 10
    assert compare(a, b, on="id").agreement.examples[0].row == "r2"
    with pytest.raises(UsageError, match=r"has no such column \(did you mean 'name'\?\)"):
        compare(a, b, on="nam")


def test_what_does_not_tell_rows_apart_is_left_out_and_said(bench: Bench) -> None:
    rows = [{**row, "name": name} for row, name in zip(ROWS, ["x", "x", None, *"cdefghi"], strict=True)]
    found = compare(run(bench, "a", "good", rows), run(bench, "b", "bad"), on="id")
    assert found.rows == 10
    a, b = run(bench, "c", "good", rows), run(bench, "d", "good", rows)
    found = compare(a, b, on="name")
    assert found.rows == 7
    assert "2 values of name are the same in several rows, or empty: those rows are left out" in found.summary.notes[0]
    with pytest.raises(UsageError, match=r"no row in common, matched by gold\n.*1 value of gold is the same"):
        compare(a, b, on="gold")


def test_the_expected_values_of_the_second_output_count_for_both(bench: Bench) -> None:
    a = run(bench, "a", "good")
    b = run(bench, "b", "good", [{**ROWS[0], "gold": "no"}, *ROWS[1:]])
    found = compare(a, b, "exact:gold")
    assert [variant.scores["exact"].mean for variant in found.summary.variants] == [0.9, 0.9]
    assert found.summary.notes == (f"gold differs in 1 row: that of {b} counts for both",)
    with pytest.raises(UsageError, match=r"no column 'gld' in .*, which a scorer reads \(did you mean 'gold'\?\)"):
        compare(a, b, "exact:gld")


def test_samples_are_compared_one_by_one_and_rows_stay_clusters(bench: Bench) -> None:
    a, b = run(bench, "a", "good", samples=3), run(bench, "b", "bad", samples=2)
    found = compare(a, b, "exact:gold")
    assert found.rows == 10
    assert (found.agreement.same, found.agreement.different, found.agreement.share.n) == (12, 6, 9)
    exact = found.summary.comparisons[0]
    assert exact.n == 10
    assert exact.difference == pytest.approx(0.4)


def test_a_function_sees_the_row_as_the_second_output_carries_it(bench: Bench) -> None:
    a, b = run(bench, "a", "good"), run(bench, "b", "good", [{**row, "gold": row["name"]} for row in ROWS])
    code = "def seen(row):\n    return row['gold'] == row['name'], row['completion']\n"
    (bench.folder / "own_scorer_of_outputs.py").write_text(code, encoding="utf-8")
    suite = bench.suite(scorers=[{"name": "own", "python": "own_scorer_of_outputs:seen", "unit": "yes/no"}])
    found = compare_outputs(a, b, scorers=suite.scorers)
    assert [variant.scores["own"].mean for variant in found.summary.variants] == [1.0, 1.0]


def test_folders_that_cannot_be_compared(bench: Bench, tmp_path: Path) -> None:
    a = run(bench, "a", "good")
    with pytest.raises(UsageError, match="is an evaluation, not the output of one job"):
        compare(a.parent.parent, a)
    with pytest.raises(UsageError, match="is no output of batchchat"):
        compare(a, tmp_path / "nope")
    with pytest.raises(UsageError, match="is neither KIND:COLUMN nor a mapping"):
        read_scorer_text("exact")
    with pytest.raises(UsageError, match=r"did you mean 'exact'"):
        read_scorer_text("exat:gold")
    with pytest.raises(UsageError, match=r"--field parsed.label: .* has no column 'parsed'"):
        compare(a, a, field="parsed.label")


def test_each_output_may_have_its_answers_at_a_place_of_its_own(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Provider(lambda model, _text: "yes" if model == "good" else '{"label": "yes"}'))
    a, b = run(bench, "a", "good"), run(bench, "b", "bad")
    assert compare(a, b, "exact:gold").agreement.same == 0
    found = compare(a, b, "exact:gold", field="completion=completion.label")
    assert (found.agreement.same, found.agreement.different) == (10, 0)
    # A scorer that names no field judges the same answers.
    assert [one.scores["exact"].mean for one in found.summary.variants] == [1, 1]
    own = "{name: own, kind: exact, expected: gold, field: completion}"
    found = compare(b, a, own, field="completion.label=completion")
    assert [one.scores["own"].mean for one in found.summary.variants] == [0, 1]
    with pytest.raises(UsageError, match=r"--field completion=parsd.label: .*b.* has no column 'parsd'") as told:
        compare(a, b, field="completion=parsd.label")
    assert "--field completion=parsed.label" in str(told.value.remedy)
    assert "completion, finish_reason" in str(told.value.remedy)


def test_rows_of_a_cluster_are_one_piece_of_evidence(bench: Bench) -> None:
    rows = [{**row, "document": at // 5} for at, row in enumerate(ROWS)]
    a, b = run(bench, "a", "good", rows), run(bench, "b", "bad")
    with pytest.raises(UsageError, match="which --cluster names"):
        compare(a, b, cluster="document")
    b = run(bench, "c", "bad", rows)
    plain, found = compare(a, b, "exact:gold"), compare(a, b, "exact:gold", cluster="document")
    assert (found.agreement.share.clusters, found.summary.cluster) == (2, "document")
    by = {one.scorer: one for one in found.summary.comparisons}
    assert (by["exact"].difference, by["exact"].clusters) == (plain.summary.of("exact")[0].difference, 2)
    assert (by["exact"].p_value, by["exact"].test) == (0.5, "sign_flip_exact_clusters")
