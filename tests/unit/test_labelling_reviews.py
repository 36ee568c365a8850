"""Reviews as they are kept."""

from __future__ import annotations

import json
from pathlib import Path

from batchchat.labelling.reviews import Review, latest_of_reviewers, line_of, read_reviews, review_of


def _review(custom_id: str, reviewer: str, label: str, at: str = "2026-01-01T00:00:00+00:00") -> Review:
    return Review(custom_id, 3, {"label": label}, reviewer, at, probability=0.25)


def test_reviews_are_read_in_the_order_of_their_time_and_damaged_lines_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "_batchchat" / "reviews"
    folder.mkdir(parents=True)
    late = _review("a", "ann", "bug", "2026-01-02T00:00:00+00:00")
    early = _review("a", "ann", "billing")
    lines = [json.dumps(line_of(late)), json.dumps({"custom_id": "b"}), "{torn"]
    (folder / "1.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "2.jsonl").write_text(json.dumps(line_of(early)) + "\n")
    assert read_reviews(tmp_path) == [early, late]
    assert latest_of_reviewers(read_reviews(tmp_path)) == {"a": {"ann": late}}


def test_an_output_without_reviews_has_none(tmp_path: Path) -> None:
    assert read_reviews(tmp_path) == []


def test_a_chance_that_can_be_none_is_not_believed() -> None:
    line = line_of(_review("a", "ann", "bug"))
    assert [review_of({**line, "probability": chance}).probability for chance in (0, 1.5, True, "x", 1)] == [  # type: ignore[union-attr]
        *(None, None, None, None),
        1.0,
    ]


def test_what_is_not_known_is_kept() -> None:
    line = {**line_of(_review("a", "ann", "bug")), "row_id": "x"}
    review = review_of(line)
    assert review is not None
    assert line_of(review) == line
