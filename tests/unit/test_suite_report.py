"""What an evaluation's report is made of: rows that fit on a page, blocks and index, fronts, words for numbers."""

from __future__ import annotations

import gzip
import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.report import answers as module
from batchchat.report import texts as texts_module
from batchchat.report.alignment import choose_rows, row_ids
from batchchat.report.answers import AnswerBrowser
from batchchat.report.suite_figures import Point, pareto, score_text
from batchchat.report.suite_folder import NO_VALUES, ScoreMeaning, SuiteFolder, better, read_suite
from batchchat.report.texts import TextAllowance, cut_text, message_text


def point(cost: float, value: float) -> Point:
    return Point(1, "", cost, "", value, "", None, None)


def test_the_front_holds_what_none_beats() -> None:
    points = [point(1, 0.5), point(2, 0.8), point(2, 0.7), point(3, 0.8), point(4, 0.9)]
    assert pareto(points, higher_is_better=True) == [True, True, False, False, True]
    assert pareto(points, higher_is_better=False) == [True, False, False, False, False]


pairs = st.tuples(st.integers(0, 5), st.integers(0, 5))


@given(st.lists(pairs, min_size=1, max_size=12))
def test_every_variant_off_the_front_is_beaten_by_one_on_it(found: list[tuple[int, int]]) -> None:
    points = [point(*pair) for pair in found]
    best = pareto(points, higher_is_better=True)
    assert any(best)
    front = [one for one, chosen in zip(points, best, strict=True) if chosen]
    for one, chosen in zip(points, best, strict=True):
        over = [
            other
            for other in front
            if other.cost <= one.cost
            and other.value >= one.value
            and (other.cost, other.value) != (one.cost, one.value)
        ]
        assert bool(over) is not chosen


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.8421, "yes/no", "84.2%"),
        (0.5, "share", "50.0%"),
        (0.3724, "seconds", "372 ms"),
        (0.00123, "cost", "0.0012 EUR"),
        (41.267, "characters", "41.3"),
        (12_345.6, "characters", "12,346"),
        (None, "yes/no", "–"),  # noqa: RUF001 - the dash for what is not known
    ],
)
def test_scores_are_written_in_their_unit(value: float | None, unit: str, text: str) -> None:
    assert score_text(value, unit, "EUR") == text


def compared(a: str, b: str, difference: float, p: float | None) -> dict[str, Any]:
    return {"a": a, "b": b, "scorer": "s", "difference": difference, "p_adjusted": p}


def test_best_is_only_what_the_tests_find_better_than_every_other() -> None:
    score = ScoreMeaning("s", "yes/no", True)
    assert better(compared("a", "b", 0.1, 0.01), score) == "a"
    assert better(compared("a", "b", -0.1, 0.01), score) == "b"
    assert better(compared("a", "b", 0.1, 0.01), ScoreMeaning("s", "seconds", False)) == "b"
    assert better(compared("a", "b", 0.1, 0.05), score) is None
    assert better(compared("a", "b", 0.1, None), score) is None
    assert better(compared("a", "b", 0.1, 0.01), ScoreMeaning("s")) is None
    variants = [{"name": name, "scores": {}} for name in "abc"]
    won = [compared("a", "b", 0.1, 0.01), compared("a", "c", 0.1, 0.04), compared("b", "c", 0.1, 0.9)]
    assert SuiteFolder(Path(), {"variants": variants, "comparisons": won}).leader(score) == "a"
    assert SuiteFolder(Path(), {"variants": variants, "comparisons": won[:1]}).leader(score) is None


def scores(*lines: tuple[str, int, str | None, float | None]) -> pa.Table:
    """Lines of one scorer: variant, row, key, value."""
    return pa.Table.from_pylist(
        [
            {
                "variant": v,
                "row_index": row,
                "key": key,
                "sample_index": 0,
                "scorer": "s",
                "value": value,
                "reason": None,
            }
            for v, row, key, value in lines
        ],
        NO_VALUES.schema,
    )


def test_a_row_is_known_by_its_key_or_else_by_its_place() -> None:
    table = scores(("a", 0, "x", 1.0), ("a", 1, None, 1.0), ("a", 2, "i1", 1.0))
    assert row_ids(table).to_pylist() == ["kx", "i1", "ki1"]


def test_of_too_many_rows_those_that_differ_are_shown_first() -> None:
    lines = [(variant, row, None, float(variant == "b" and row % 10 == 0)) for variant in "ab" for row in range(100)]
    values = scores(*lines)
    values = values.append_column("id", row_ids(values))
    rows = values.select(["id", "row_index", "key"]).slice(0, 100)
    chosen = choose_rows(rows, values, 30).column("row_index").to_pylist()
    assert len(chosen) == 30
    assert chosen == sorted(set(chosen))
    assert set(range(0, 100, 10)) <= set(chosen)
    assert max(chosen) > 90
    assert choose_rows(rows, values, 100) is rows
    few = choose_rows(rows, values, 8).column("row_index").to_pylist()
    assert sum(row % 10 == 0 for row in few) == 4


def test_messages_are_told_as_text_and_images_by_what_they_are() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 4_000}}
    content = [{"type": "text", "text": "What is this?"}, image]
    assert message_text({"content": content}) == "What is this?\n[image/png, 3k bytes]"
    linked = {"type": "image_url", "image_url": "https://example.com/x.png"}
    assert message_text({"content": [linked]}) == "[image https://example.com/x.png]"
    assert message_text({"content": None, "tool_calls": [{"id": "1"}]}) == '{"id":"1"}'


def test_a_text_is_cut_once() -> None:
    assert cut_text("abcdef", 6) == "abcdef"
    cut = cut_text("abcdef", 3)
    assert cut == "abc … [the rest is left out]"
    assert cut_text(cut, 3) == cut
    assert cut_text(cut, 2) == "ab … [the rest is left out]"


def test_texts_grow_shorter_where_all_of_them_would_be_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "MOST_LETTERS", 1_000_000)
    small, large = TextAllowance(1_000), TextAllowance(1_000)
    kept = []
    for number in range(1_000):
        small.take("a" * 100)
        large.take("a" * 5_000)
        kept.append(large.keep([{"role": "user", "content": f"{number} " + "b" * 9_000}]))
    assert small.longest == 20_000
    assert 400 <= large.longest < 1_000
    ((role, text),) = large.messages(kept[0])
    assert role == "user"
    assert len(text) == large.longest + len(" … [the rest is left out]")
    assert large.keep([{"role": "user", "content": "same"}]) is large.keep([{"role": "user", "content": "same"}])


def unpacked(text: str) -> Any:
    return json.loads(gzip.decompress(b64decode(text)))


def suite_of(folder: Path, values: pa.Table, names: str = "ab") -> SuiteFolder:
    folder.mkdir(exist_ok=True)
    pq.write_table(values, folder / "scores.parquet")
    (folder / "summary.json").write_text(json.dumps({"variants": [{"name": name} for name in names]}))
    return read_suite(folder)


def test_blocks_hold_every_row_once_and_the_index_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_LETTERS", 200)
    lines = [(variant, row, f"key {row}", row / 7 if row % 3 else None) for variant in "ab" for row in range(50)]
    answers = AnswerBrowser(suite_of(tmp_path, scores(*lines)))
    blocks = [unpacked(block) for block in answers.blocks()]
    index = unpacked(answers.index())
    assert sum(len(block) for block in blocks) == 50
    assert len(blocks) > 5
    starts = [sum(len(block) for block in blocks[:at]) for at in range(len(blocks))]
    assert index["starts"] == starts
    assert index["key"] == [f"key {row}" for row in range(50)]
    assert index["value"][1][0][:4] == [None, 0.142857, 0.285714, None]
    assert blocks[0][1] == {"m": [], "u": [None, None], "a": [[{"s": [[1 / 7]]}], [{"s": [[1 / 7]]}]]}
    assert blocks[0][0]["a"] == [[None], [None]]


def test_many_variants_leave_room_for_fewer_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CELLS", 300)
    lines = [(variant, row, None, 1.0) for variant in "ab" for row in range(500)]
    answers = AnswerBrowser(suite_of(tmp_path, scores(*lines)))
    assert (len(answers), answers.total) == (150, 500)
