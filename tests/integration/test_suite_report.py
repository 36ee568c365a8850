"""The report of an evaluation: real runs of several variants, really scored, looked at in a real browser."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from batchchat.errors import UsageError
from batchchat.report import write_suite_report
from tests.integration.browser import Browser, Page
from tests.integration.suites import Answer, Bench, Provider
from tests.integration.test_report import HOSTILE, command
from tests.thorough import one_in

LABELS = ("billing", "bug", "other")
ROWS = [
    {
        "id": f"T-{number}",
        "text": f"the {LABELS[number % 3]} case\nnumber {number}",
        "label": LABELS[number % 3],
        "hint": None if number == 7 else LABELS[number % 3][0],
    }
    for number in range(60)
]
PROMPT = [{"role": "system", "content": "Sort it."}, {"role": "user", "content": "{{ id }}\n{{ text }}"}]
VARIANTS = [
    {"name": "short", "model": "small"},
    {"name": "long", "model": "large", "params.max_tokens": 50},
    {"name": "other prompt", "model": "third", "messages": [{"role": "user", "content": "{{ id }}\nSort: {{ text }}"}]},
]
SCORERS = [
    {"name": "sorted", "kind": "classes", "expected": "label"},
    {"name": "length", "kind": "length"},
    {"name": "hinted", "kind": "contains", "expected": "hint"},
]
WRONG = {"small": 3, "large": 20, "third": 30}


def sorts(model: str, text: str) -> str | int:
    """Each model gets every so-manieth row wrong, and all fail at row 11."""
    name, _, rest = text.partition("\n")
    number = int(name.removeprefix("T-"))
    if number == 11:
        return 400
    return "nonsense" if number % WRONG[model] == 0 else next(label for label in LABELS if label in rest)


def scored(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    answer: Answer,
    *,
    job: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Path:
    """Evaluate a suite of these rows; returns its folder."""
    bench = Bench(folder, Provider(answer))
    bench.rows(rows)
    suite = bench.suite(job={"messages": PROMPT, **(job or {})}, **{"variants": VARIANTS, "scorers": SCORERS, **fields})
    assert bench.evaluate(suite).summary is not None
    return bench.out


@pytest.fixture(scope="module")
def suite_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page over 60 rows and three variants."""
    directory = scored(tmp_path_factory.mktemp("suite"), ROWS, sorts)
    target = directory / "report.html"
    write_suite_report(directory, target)
    return target


def ready(page: Page) -> None:
    page.wait("html[data-charts=drawn][data-rows=shown]")


def names(page: Page) -> list[str]:
    return page.texts("#rows button.open")


def test_an_evaluation_is_told_in_one_page(suite_page: Path, browser: Browser) -> None:
    with browser.open(suite_page) as page:
        ready(page)
        assert page.text("h1") == "suite"
        assert "3 variants · 60 rows" in page.text("header")
        assert "rows.jsonl" in page.text("header")
        lines = page.texts(".variants tbody tr")
        assert [line.partition("\t")[0].strip() for line in lines] == ["1 other prompt", "2 long", "3 short"]
        assert "65.0%" in lines[2]
        assert page.count(".plot .main-svg:first-child") == 2
        verdict = "other prompt leads by sorted.accuracy, with 95.0% (95% interval 86.3% to 98.3%), but long may be"
        assert page.text(".verdict .first").startswith(verdict)
        assert "1,000 rows cost" in page.text(".verdict")
        # Compared with the leader, which stands first.
        assert page.texts("#pairs tbody th") == ["1 other prompt less 3 short", "1 other prompt less 2 long"]
        assert "other prompt is better" in page.text("#pairs")
        page.choose("#baseline", "all")
        assert page.count("#pairs tbody tr") == 3
        assert page.texts(".variants thead th")[1:4] == ["model", "params.max_tokens", "messages"]
        assert page.texts("#rows tbody tr:first-child td")[1] == "billing"
        assert page.texts(".matrix tbody th") == ["billing", "bug", "other"]
        assert page.count("#rows > tbody > tr") == 25
        assert page.text("#found") == "60 rows"
        page.choose("#score", "2")
        assert page.text("#differences") == "Differences by length"
        page.wait_until("document.querySelector('#rows .mark').textContent === '8'")


def test_rows_are_filtered_ordered_and_counted(suite_page: Path, browser: Browser) -> None:
    with browser.open(suite_page) as page:
        ready(page)
        page.choose("#show", "failed")
        page.wait_until("document.querySelector('#found').textContent === '1 of 60 rows'")
        assert names(page) == ["T-11"]
        assert page.text("#rows tbody").count("failed: invalid_request") == 3
        page.choose("#show", "answers")
        page.wait_until("document.querySelector('#found').textContent === '21 of 60 rows'")
        page.choose("#show", "wrong")
        page.wait_until("document.querySelector('#found').textContent === '2 of 60 rows'")
        assert names(page) == ["T-0", "T-11"]
        page.choose("#show", "all")
        page.click("#rows button.sort:has-text('short')")
        page.wait_until("document.querySelector('#rows th[aria-sort=ascending]') !== null")
        assert names(page)[:3] == ["T-0", "T-3", "T-6"]
        page.click("#rows button.sort:has-text('short')")
        page.wait_until("document.querySelector('#rows th[aria-sort=descending]') !== null")
        assert names(page)[:3] == ["T-1", "T-2", "T-4"]
        page.choose("#order", "spread")
        page.wait_until("document.querySelector('#rows th[aria-sort=descending]') === null")
        assert names(page)[:3] == ["T-3", "T-6", "T-9"]


def test_a_count_of_flips_leads_to_its_rows(suite_page: Path, browser: Browser) -> None:
    with browser.open(suite_page) as page:
        ready(page)
        page.choose("#baseline", "1")
        page.click("#pairs tbody tr:first-child button.link:text('19')")
        page.wait_until("document.querySelector('#found').textContent === '19 of 60 rows'")
        assert page.text("#chips").startswith("right in 2 long, wrong in 3 short, by sorted.accuracy")
        marks = page.evaluate(
            "[...document.querySelectorAll('#rows > tbody > tr')].map(row => "
            "[...row.querySelectorAll('.mark')].map(mark => mark.ariaLabel).join())"
        )
        assert {mark.partition(",")[2] for mark in marks} == {"right,wrong"}
        page.click("#chips button")
        page.wait_until("document.querySelector('#found').textContent === '60 rows'")


def test_a_cell_of_the_confusion_matrix_leads_to_its_rows(suite_page: Path, browser: Browser) -> None:
    with browser.open(suite_page) as page:
        ready(page)
        page.choose("#matrix-choice", "2")
        for cell, found in (("bug were told as bug", 20), ("billing were told as (other)", 20)):
            page.click(f".matrix button[title='{found} that should be {cell}']")
            page.wait_until(f"document.querySelector('#found').textContent === '{found} of 60 rows'")
        assert page.text("#chips").startswith("billing told as (other) by 3 short")
        page.choose("#matrix-choice", "0")
        page.click(".matrix button[title='1 that should be other were told as (no answer)']")
        page.wait_until("document.querySelector('#found').textContent === '1 of 60 rows'")
        assert names(page) == ["T-11"]
        page.click("#rows button.open")
        page.wait("#detail")
        assert page.text("#detail .expected") == "expected other"


def test_scores_stand_beside_their_answers_also_where_rows_have_moved(tmp_path: Path, browser: Browser) -> None:
    """A record keeps the place that its row had when it was asked; without a key, only its identity leads to it."""
    rows = [
        {"id": f"T-{number}", "text": f"the {LABELS[number % 3]} case", "label": LABELS[number % 3]}
        for number in range(6)
    ]
    bench = Bench(tmp_path, Provider(sorts))
    job = {"messages": PROMPT, "input": {"path": "rows.jsonl"}}
    suite = bench.suite(job=job, variants=VARIANTS[:2], scorers=SCORERS[:1])
    bench.rows(rows)
    bench.evaluate(suite)
    bench.rows([{"id": "T-42", "text": "the billing case", "label": "billing"}, *reversed(rows)])
    assert bench.evaluate(suite).summary is not None
    assert len(bench.provider.asked) == 2 * 7
    target = tmp_path / "report.html"
    write_suite_report(bench.out, target)
    with browser.open(target) as page:
        ready(page)
        asked = page.texts("#rows .prompt .clamp")
        assert [text.partition(" ")[0] for text in asked] == ["T-42", "T-5", "T-4", "T-3", "T-2", "T-1", "T-0"]
        marks = page.evaluate(
            "[...document.querySelectorAll('#rows > tbody > tr')].map(row => "
            "['.mark', '.clamp'].map(part => row.querySelector(`td:last-child ${part}`).textContent).join(' '))"
        )
        wrong, right = "✗ nonsense", "✓ "
        assert marks == [wrong, f"{right}other", f"{right}bug", wrong, f"{right}other", f"{right}bug", wrong]


@pytest.mark.thorough
def test_verdicts_of_pairwise_judges_are_told_row_by_row(tmp_path: Path, browser: Browser) -> None:
    def answer(model: str, text: str) -> str:
        if model != "judge":
            return "a long answer" if model == "large" else "short"
        longer_first = text.find("a long answer") < text.rfind("short")
        return json.dumps({"reason": "the longer one says more", "verdict": "A" if longer_first else "B"})

    judge = {"name": "liked", "kind": "pairwise", "rubric": "Which is better?", "model": "judge", "gold": "best"}
    rows = [{**row, "best": "short" if at == 3 else "long"} for at, row in enumerate(ROWS[:8])]
    directory = scored(tmp_path, rows, answer, variants=VARIANTS[:2], scorers=[*SCORERS[1:2], judge])
    target = tmp_path / "report.html"
    write_suite_report(directory, target)
    with browser.open(target) as page:
        ready(page)
        # The judge has its column in the table, and is held against the right verdicts.
        assert page.texts(".variants tbody td[data-label=liked] .mean") == ["100.0%", "0.0%"]
        (agreement,) = page.texts("#judge-agreement tbody tr")
        assert agreement.startswith("liked\tcolumn best\t8\t0.875 ")
        page.choose("#score", "1")
        assert page.text("#differences") == "Differences by liked"
        page.click("#pairs tbody button.link:text('8')")
        page.wait_until("document.querySelector('#chips').textContent.includes('1 long preferred to 2 short')")
        assert page.text("#found") == "8 rows"
        page.click("#rows button.open >> nth=0")
        page.wait("#detail .verdicts")
        assert page.text("#detail .verdicts") == "liked\n1 long preferred to 2 short the longer one says more"


def test_a_text_is_found_in_prompts_answers_reasons_and_keys(suite_page: Path, browser: Browser) -> None:
    cases = {
        "number 5": 11,
        "NUMBER 5": 11,
        "nonsense": 22,
        'not found: "B': 21,
        "has no hint here": 1,
        "t-42": 1,
        "sort: the bug": 20,
        "sort it.": 0,  # a line that the prompt of every row has
        '"t":': 0,
        "": 60,
    }
    with browser.open(suite_page) as page:
        ready(page)
        for text, expected in cases.items():
            page.fill("#query", text)
            total = "60 rows" if expected == 60 else f"{expected} of 60 rows"
            page.wait_until(f"document.querySelector('#found').textContent === '{total}'")


def test_a_row_shows_messages_answers_side_by_side_and_scores_with_reasons(suite_page: Path, browser: Browser) -> None:
    with browser.open(suite_page) as page:
        ready(page)
        page.click("#rows button.open:text-is('T-3')")
        page.wait("#detail .variant")
        assert page.evaluate("document.activeElement.textContent") == "T-3"
        assert page.texts("#detail .messages summary") == ["Messages of 1 other prompt", "Messages of 2 long, 3 short"]
        assert page.texts("#detail .messages h3")[0] == "user"
        assert page.texts("#detail .messages pre")[0] == "T-3\nSort: the billing case\nnumber 3"
        cards = page.texts("#detail .variant")
        assert [card.partition("\n")[0] for card in cards] == ["1 other prompt reference", "2 long", "3 short"]
        assert "nonsense" in cards[2]
        assert "wrong" in cards[2]
        assert 'not found: "b"' in cards[2]
        assert page.texts("#detail mark") == ["nonsense"]
        page.choose("#reference", "2")
        page.wait_until("document.querySelectorAll('#detail mark').length === 2")
        assert page.texts("#detail mark") == ["billing", "billing"]
        page.choose("#reference", "")
        page.wait_until("document.querySelectorAll('#detail mark').length === 0")


def test_everything_is_reached_by_keys_and_has_a_name(suite_page: Path, browser: Browser) -> None:
    with browser.open(suite_page) as page:
        ready(page)
        page.press("/")
        assert page.evaluate("document.activeElement.id") == "query"
        page.evaluate("document.querySelector('#rows button.open').focus()")
        page.press("ArrowDown", "ArrowDown", "ArrowUp", "Enter")
        page.wait("#detail")
        assert page.evaluate("document.querySelector('tr.opened button').textContent") == "T-1"
        page.press("Escape")
        page.wait_until("document.querySelector('#detail') === null")
        page.press("ArrowRight")
        page.wait_until("document.querySelector('#page').textContent === 'Page 2 of 3'")
        assert page.evaluate("document.activeElement.textContent") == "T-25"
        page.press("ArrowUp")
        page.wait_until("document.querySelector('#page').textContent === 'Page 1 of 3'")
        assert page.evaluate("document.activeElement.textContent") == "T-24"
        unnamed = (
            "[...document.querySelectorAll('input, select, button, summary')].filter(it => it.checkVisibility())"
            ".filter(it => !(it.ariaLabel || it.labels?.length || it.textContent.trim()))"
        )
        assert page.evaluate(f"{unnamed}.length") == 0
        page.click("#columns summary")
        page.click("#columns label:has-text('long') input")
        page.wait_until("document.querySelectorAll('#rows thead th').length === 5")


def test_what_is_shown_is_downloaded_and_a_row_has_an_address(suite_page: Path, browser: Browser) -> None:
    with browser.open(suite_page) as page:
        ready(page)
        page.choose("#show", "wrong")
        page.wait_until("document.querySelector('#found').textContent === '2 of 60 rows'")
        lines = list(csv.DictReader(io.StringIO(page.download("#download"), newline="")))
        assert [line["key"] for line in lines] == ["T-0", "T-11"]
        assert lines[0]["asked"] == "T-0\nSort: the billing case\nnumber 0"
        assert (lines[0]["expected"], lines[0]["short: answer"], lines[0]["short: sorted.accuracy"]) == (
            "billing",
            "nonsense",
            "0",
        )
        assert lines[1]["long: answer"] == "failed: invalid_request"
        # The address of a row opens it, and takes away a filter that hides it.
        page.evaluate("location.hash = '#row=T-42'")
        page.wait("#detail")
        assert page.text("tr.opened button") == "T-42"
        assert page.text("#page") == "Page 2 of 3"
        assert page.evaluate("document.querySelector('#detail a').hash") == "#row=T-42"
        page.evaluate("location.hash = '#row=T-99'")
        page.wait_until("document.querySelector('#found').textContent === 'There is no row T-99 in this page.'")


def test_dark_paper_and_narrow(suite_page: Path, browser: Browser) -> None:
    with browser.open(suite_page, scheme="dark", width=380) as page:
        ready(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        dark = page.style("body", "backgroundColor")
        page.prefer(media="print", color_scheme="dark")
        assert page.style("body", "backgroundColor") == "rgb(255, 255, 255)"
        assert page.style("#filters", "display") == "none"
        page.prefer(media="screen", color_scheme="light")
        assert page.style("body", "backgroundColor") != dark


def test_hostile_answers_stay_text(tmp_path: Path, browser: Browser) -> None:
    rows = [{"id": f"{number}", "text": text, "label": text, "hint": text} for number, text in enumerate(HOSTILE)]
    variants = [{"name": HOSTILE[0], "model": "echo"}, {"name": 'it\'s "b"', "model": HOSTILE[1]}]

    def answer(model: str, text: str) -> str:
        return text.partition("\n")[2] if model == "echo" else HOSTILE[2]

    directory = scored(tmp_path, rows, answer, variants=variants)
    summary = json.loads((directory / "summary.json").read_text())
    summary["notes"] = list(HOSTILE)
    (directory / "summary.json").write_text(json.dumps(summary))
    target = tmp_path / "report.html"
    write_suite_report(directory, target)
    with browser.open(target) as page:
        ready(page)
        assert HOSTILE[0] in page.text(".variants")
        for number, hostile in enumerate(HOSTILE):
            page.click(f"#rows button.open:text-is('{number}')")
            page.wait("#detail")
            assert page.evaluate("document.querySelector('#detail .variant pre').textContent") == hostile
        page.fill("#query", "</script><script>")
        page.wait_until("document.querySelector('#found').textContent === '1 of 8 rows'")
        assert page.evaluate("window.hacked === undefined")
        assert page.count("main script, main img, main b") == 0


def _by_turns() -> Answer:
    """A model that is right the first time it sees a row, and wrong the second."""
    seen: set[str] = set()

    def answer(model: str, text: str) -> str | int:
        if model != "small":
            return sorts(model, text)
        first = text not in seen
        seen.add(text)
        return sorts("third", text) if first else "nonsense"

    return answer


def _stripped(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary that holds no more than names and scores, and a comparison without a test."""
    variants = [{name: one[name] for name in ("name", "scores", "folder")} for one in summary["variants"]]
    pair = {"a": "short", "b": "long", "scorer": "liked", "difference": -0.25, "wins_a": 1, "wins_b": 3}
    return {"variants": variants, "comparisons": [pair]}


def _unanswered(_summary: dict[str, Any]) -> dict[str, Any]:
    return {"version": 1, "variants": [{"name": "a", "folder": "a-0"}]}


@pytest.mark.parametrize(
    ("answer", "fields", "change"),
    one_in(
        3,
        [
            pytest.param(sorts, {"variants": VARIANTS[:1]}, None, id="one variant"),
            pytest.param(lambda *_: 400, {}, None, id="all failed"),
            pytest.param(_by_turns(), {"samples": 2}, None, id="two samples"),
            pytest.param(sorts, {}, _stripped, id="bare summary"),
            pytest.param(sorts, {}, _unanswered, id="no answers"),
        ],
    ),
)
@pytest.mark.thorough
def test_odd_suites_have_a_page_too(
    tmp_path: Path,
    browser: Browser,
    answer: Answer,
    fields: Mapping[str, Any],
    change: Callable[[dict[str, Any]], dict[str, Any]] | None,
) -> None:
    directory = scored(tmp_path, ROWS[:6], answer, **fields)
    if change is not None:
        summary = directory / "summary.json"
        summary.write_text(json.dumps(change(json.loads(summary.read_text()))))
        (directory / "scores.parquet").unlink()
    target = tmp_path / "report.html"
    write_suite_report(directory, target)
    with browser.open(target) as page:
        ready(page)
        if change is _unanswered:
            assert page.text("#found") == "0 rows"
            assert page.text("#rows tbody") == "There are no answers yet."
            return
        assert page.text("#found") == "6 rows"
        page.click("#rows button.open:text-is('T-1')")
        page.wait("#detail .variant")
        if "samples" in fields:
            assert sorted(page.texts("#detail .variant:last-child .sample pre")) == ["bug", "nonsense"]
            assert page.texts("#rows tr.opened .mark") == ["✓", "✓", "50%"]
        if change is _stripped:
            page.choose("#score", "4")
            assert page.text("#pairs tbody td:nth-child(5)") == "3 to 1"
            assert "not tested" in page.text("#pairs")


def test_scoring_writes_the_page_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = scored(tmp_path, ROWS[:6], sorts)
    target = directory / "report.html"
    target.write_text("not a page of ours")
    assert command(monkeypatch, "score", tmp_path / "suite.yaml") == 2
    assert "is no report of batchchat" in capfd.readouterr().err
    target.unlink()
    assert command(monkeypatch, "score", tmp_path / "suite.yaml") == 0
    assert str(target) in capfd.readouterr().out.replace("\n", "")
    assert "<h1" in target.read_text()
    other = tmp_path / "other.html"
    assert command(monkeypatch, "report", directory, "-o", other) == 0
    assert "3 variants" in other.read_text()


def test_what_is_no_scored_suite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no scored suite"):
        write_suite_report(tmp_path, tmp_path / "report.html")
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(UsageError, match=r"no summary of a suite"):
        write_suite_report(tmp_path, tmp_path / "report.html")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_twenty_thousand_rows_and_four_variants_do_not_freeze(tmp_path: Path, browser: Browser) -> None:
    draw = random.Random(1)
    words = [f"word{number}" for number in range(2_000)]
    rows = [
        {**ROWS[number % 60], "id": f"T-{number}", "text": " ".join(draw.choices(words, k=120))}
        for number in range(20_000)
    ]

    def answer(model: str, text: str) -> str:
        number = int(text.partition("\n")[0].removeprefix("T-"))
        label = "nonsense" if number % int(model) == 0 else LABELS[number % 3]
        return f"{label} {' '.join(draw.choices(words, k=60))}"

    variants = [{"name": f"variant {number}", "model": str(number)} for number in (3, 4, 5, 6)]
    directory = scored(tmp_path, rows, answer, variants=variants, job={"limits": {"concurrency": 500}})
    target = tmp_path / "report.html"
    write_suite_report(directory, target)
    assert target.stat().st_size < 60e6
    watch = (
        "window.longest = 0; new PerformanceObserver(list => { for (const task of list.getEntries()) "
        "window.longest = Math.max(window.longest, task.duration); }).observe({entryTypes: ['longtask']})"
    )
    with browser.open(target) as page:
        ready(page)
        page.evaluate(watch)
        for query, found in (("T-19999", "1 of"), ("T-1234", "11 of"), ("word77 ", "")):
            page.fill("#query", query)
            page.wait_until(f"document.querySelector('#found').textContent.startsWith('{found}')")
        page.fill("#query", "")
        page.choose("#score", "3")
        page.choose("#show", "scores")
        page.choose("#order", "spread")
        page.wait_until("document.querySelector('#found').textContent.includes(' of 20,000 rows')")
        # Nothing holds the page up for as long as a person would call a freeze.
        assert page.evaluate("window.longest") < 1_000
