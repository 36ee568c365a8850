"""Examples that are chosen for each row: which they are, and what their changes ask again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.errors import JobError
from batchchat.examples import Examples, open_examples
from batchchat.inspection import find_records
from batchchat.planning import plan_job
from batchchat.runner.options import RunOptions
from tests.integration.jobs import make_job, query, write_rows
from tests.thorough import examples
from tests.unit.test_run_clock import Provider, answer, simulate

GOLD = [
    {"id": "g0", "text": "the parcel is lost in the post", "label": "shipping"},
    {"id": "g1", "text": "the app crashes at the start", "label": "bug"},
    {"id": "g2", "text": "where is my parcel", "label": "shipping"},
    {"id": "g3", "text": "I was charged twice", "label": "billing"},
    {"id": "g4", "text": "the app crashes when I pay", "label": "bug"},
    {"id": "g5", "text": "my card was charged for a parcel", "label": "billing"},
]
SHOWN = "{% for one in examples %}{{ one.text }} is {{ one.label }}\n{% endfor %}"
MESSAGES = [{"role": "user", "content": SHOWN + "{{ text }}"}]


def gold(folder: Path, rows: list[dict[str, Any]] = GOLD, **fields: Any) -> dict[str, Any]:
    path = write_rows(folder / "gold.jsonl", rows)
    return {"from": str(path), "k": 2, "text": "{{ text }}", **fields}


def chooser(folder: Path, rows: list[dict[str, Any]] = GOLD, **fields: Any) -> Examples:
    write_rows(folder / "rows.jsonl", [{"id": 1, "text": "x"}])
    found = open_examples(make_job(folder, None, messages=MESSAGES, examples=gold(folder, rows, **fields)))
    assert found is not None
    return found


def chosen(examples: Examples, text: str, key: str = "") -> list[str]:
    return [row["id"] for row in examples.choose({"id": key, "text": text})]


@pytest.mark.parametrize(
    ("fields", "text", "expected"),
    [
        ({}, "My PARCEL never came", ["g2", "g5"]),
        ({}, "the app crashes", ["g1", "g4"]),
        ({"k": 1}, "charged", ["g3"]),
        ({"k": 1}, "I was charged twice", ["g5"]),  # the row itself is left out by its text
        ({}, "nothing alike", ["g0", "g1"]),  # then the first ones
        ({}, "", ["g0", "g1"]),
        ({"k": 10}, "parcel", ["g2", "g0", "g5", "g1", "g3", "g4"]),
        ({"k": 3, "by": "per_label", "label": "label"}, "parcel", ["g2", "g5", "g1"]),
        ({"k": 5, "by": "per_label", "label": "label"}, "parcel", ["g2", "g5", "g1", "g0", "g3"]),
    ],
)
def test_which_examples_a_row_has(tmp_path: Path, fields: dict[str, Any], text: str, expected: list[str]) -> None:
    assert chosen(chooser(tmp_path, **fields), text) == expected


def test_scripts_without_blanks_are_alike_by_pairs_of_characters(tmp_path: Path) -> None:
    rows = [
        {"id": str(number), "text": text}
        for number, text in enumerate(["支払いが二重です", "アプリが落ちます", "返品したい"])
    ]
    assert chosen(chooser(tmp_path, rows, k=1), "アプリが起動しない") == ["1"]


def test_a_label_with_few_rows_leaves_its_places_to_the_others(tmp_path: Path) -> None:
    rows = [*GOLD[:1], *GOLD[3:4], GOLD[5]]
    assert chosen(chooser(tmp_path, rows, k=3, by="per_label", label="label"), "parcel") == ["g0", "g5", "g3"]


@examples(40)
@given(st.lists(st.text(alphabet="ab 界", max_size=6), min_size=1, max_size=8), st.integers(1, 9), st.sampled_from(
    [{"by": "similarity"}, {"by": "random", "seed": 3}, {"by": "per_label", "label": "label"}]))  # fmt: skip
def test_no_row_is_its_own_example_and_there_are_as_many_as_there_can_be(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], k: int, by: dict[str, Any]
) -> None:
    rows = [{"id": f"g{n}", "text": text, "label": f"l{n % 3}"} for n, text in enumerate(texts)]
    examples = chooser(tmp_path_factory.mktemp("gold"), rows, k=k, **by)
    for row in rows:
        found = examples.choose(row)
        others = [other for other in rows if other["text"].strip() != row["text"].strip()]
        assert all(one in others for one in found)
        assert len(found) == min(k, len(others)) == len({one["id"] for one in found})
        assert found == examples.choose(row)


def test_a_random_choice_differs_by_row_and_seed_and_hardly_by_one_gold_row_more(tmp_path: Path) -> None:
    rows = [{"id": f"g{number}", "text": f"gold {number}"} for number in range(100)]
    texts = [f"row {number}" for number in range(200)]
    before = [chosen(chooser_, text) for chooser_ in [chooser(tmp_path, rows, by="random", k=3)] for text in texts]
    other = [
        chosen(chooser_, text) for chooser_ in [chooser(tmp_path, rows, by="random", k=3, seed=1)] for text in texts
    ]
    assert sum(one == two for one, two in zip(before, other, strict=True)) < 5
    counts = [sum(f"g{number}" in found for found in before) for number in range(100)]
    assert max(counts) < 20  # 6 on the average
    longer = chooser(tmp_path, [{"id": "new", "text": "one more"}, *rows], by="random", k=3)
    changed = sum(one != chosen(longer, text) for one, text in zip(before, texts, strict=True))
    assert 0 < changed < 30  # 6 on the average


async def at_once(_request: httpx.Request) -> httpx.Response:
    await anyio.sleep(0.1)
    return answer()


def test_a_changed_gold_row_asks_only_the_rows_whose_examples_changed(tmp_path: Path) -> None:
    rows = [
        {"id": 0, "text": "a parcel came late"},
        {"id": 1, "text": "it crashes"},
        {"id": 2, "text": "charged wrong"},
    ]

    def run(examples: dict[str, Any], **options: Any) -> tuple[int, Any]:
        provider = Provider(at_once)
        fields: dict[str, Any] = {"messages": MESSAGES, "examples": examples}
        summary, _, _ = simulate(tmp_path, provider, 0, lines=rows, options=RunOptions(**options), **fields)
        assert (summary.exit_code, summary.ok, summary.failed) == (0, 3, 0)
        plan = plan_job(make_job(tmp_path, None, **fields))
        assert (plan.requests, plan.done) == (0, 3)
        return len(provider.times), summary

    assert run(gold(tmp_path, k=1))[0] == 3
    assert run(gold(tmp_path, k=1))[0] == 0
    [(prompt,)] = query(tmp_path, "select distinct prompt_id from data")
    edited = [{**row, "label": "software"} if row["label"] == "bug" else row for row in GOLD]
    assert run(gold(tmp_path, edited, k=1))[0] == 1
    assert query(tmp_path, "select distinct prompt_id from data") == [(prompt,)]
    # Back again costs nothing, and rows behind those that are known have their examples, too.
    rows.append({"id": 3, "text": "the app is slow"})
    provider = Provider(at_once)
    fields: dict[str, Any] = {"messages": MESSAGES, "examples": gold(tmp_path, k=1)}
    summary, _, _ = simulate(tmp_path, provider, 0, lines=rows, **fields)
    assert (summary.ok, summary.revived, len(provider.times)) == (4, 1, 1)
    [record] = find_records(tmp_path / "out", key="3")
    assert record.messages is not None
    assert record.messages[0]["content"].splitlines()[-1] == "the app is slow"
    assert "app crashes" in record.messages[0]["content"]


def test_a_skipped_row_needs_no_examples_and_one_without_text_fails_alone(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"id": 0, "text": None},
        {"id": 1, "text": "x 1", "more": {"a": "b"}},
        {"id": 2, "text": "y 2"},
    ]
    examples = gold(tmp_path, [{**row, "more": {"a": "c"}} for row in GOLD], text="{{ text }} {{ more.a.upper() }}")
    fields: dict[str, Any] = {"messages": MESSAGES, "examples": examples, "skip": "{{ text is none }}"}
    summary, _, _ = simulate(tmp_path, Provider(at_once), 0, lines=lines, **fields)
    assert (summary.exit_code, summary.ok, summary.failed, summary.skipped) == (1, 1, 1, 1)
    [(message,)] = query(tmp_path, "select error_message from data where status = 'failed'")
    assert message.startswith("examples.text: ")


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"from": "nowhere.jsonl"}, "examples.from", "no such file"),
        ({"text": "same"}, "examples.text", "names no column"),
        ({"text": "{{ txt }}"}, "examples.text", "row 0 of"),
        ({"text": "{{ text"}, "examples.text", "line 1 of the template"),
        ({"by": "per_label"}, "examples", "needs `label`"),
        ({"by": "per_label", "label": "lable"}, "examples.label", "has no 'lable'"),
        ({"label": "label"}, "examples", "belongs to by: per_label"),
        ({"seed": 1}, "examples", "seed belongs to by: random"),
        ({"by": "luck"}, "examples.by", "similarity"),
        ({"k": 0}, "examples.k", "at least 1"),
    ],
)
def test_examples_that_cannot_be_are_refused_with_their_place(
    tmp_path: Path, fields: dict[str, Any], field: str, message: str
) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"id": 1, "text": "hello"}])
    with pytest.raises(JobError) as caught:
        plan_job(make_job(tmp_path, None, messages=MESSAGES, examples=gold(tmp_path, **fields)))
    assert (caught.value.field or "").startswith(field)
    assert message in str(caught.value)


def test_examples_that_no_message_shows_or_that_a_column_hides_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"id": 1, "text": "hello"}])
    with pytest.raises(JobError, match="is shown by no message"):
        plan_job(make_job(tmp_path, None, examples=gold(tmp_path)))
    write_rows(tmp_path / "rows.jsonl", [{"id": 1, "text": "hello", "examples": 1}])
    with pytest.raises(JobError, match="name of a column of the input"):
        plan_job(make_job(tmp_path, None, messages=MESSAGES, examples=gold(tmp_path)))
    (tmp_path / "gold.jsonl").write_text('{"text": "a"}\n{"text"\n')
    write_rows(tmp_path / "rows.jsonl", [{"id": 1, "text": "hello"}])
    fields = {"from": str(tmp_path / "gold.jsonl"), "text": "{{ text }}"}
    with pytest.raises(JobError, match=r"gold.jsonl:2: the line is not valid JSON"):
        plan_job(make_job(tmp_path, None, messages=MESSAGES, examples=fields))
