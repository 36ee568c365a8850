"""The report of a run: from the command line to a page in a real browser."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import batchchat
from batchchat.cli import cli, running
from batchchat.cli.process import guarded
from batchchat.report import charting, run_answers, write_run_report
from batchchat.runner.options import RunOptions
from tests.integration.browser import Browser, Page
from tests.integration.jobs import make_job, write_rows
from tests.integration.processes import batchchat as batchchat_process

HOSTILE = (
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 1</script>",
    "<!-- <img src=x onerror='window.hacked = 1'>",
    "<b>bold</b> &amp; &lt;",
    "line\u2028separator\u2029here",
    "right\u202eto left",
    "{{ 7 * 7 }} {% raw %} ${7 * 7} %{y}",
    "\x1b[31mred\x07",
)
Answer = Callable[[int, dict[str, Any]], httpx.Response]


def completion(text: str, *, finish_reason: str = "stop", **usage: int) -> httpx.Response:
    counts = {"prompt_tokens": 50, "completion_tokens": 3, **usage}
    choice = {"message": {"content": text}, "finish_reason": finish_reason}
    return httpx.Response(200, json={"choices": [choice], "usage": counts, "model": "m"})


def refusal(message: str, status: int = 400) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message, "type": "invalid_request_error"}})


def run(folder: Path, texts: list[str], answer: Answer, **fields: Any) -> batchchat.RunSummary:
    """Run a job over these texts, answered in this process by (row number, body) -> response."""
    write_rows(folder / "rows.jsonl", ({"id": f"{number}", "text": text} for number, text in enumerate(texts)))
    fields = {"messages": [{"role": "user", "content": "{{ id }}\n{{ text }}"}], **fields}

    def handle(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        return answer(int(body["messages"][0]["content"].partition("\n")[0]), body)

    job = make_job(folder, None, **fields)
    return batchchat.run(job, options=RunOptions(), transport=httpx.MockTransport(handle), environ={})


def mixed(number: int, _body: dict[str, Any]) -> httpx.Response:
    if number % 10 == 9:
        return refusal(f"row {number % 3} is too long")
    return completion(["billing", "bug", "other"][number % 3], finish_reason="eos" if number % 7 == 0 else "stop")


def ready(page: Page) -> None:
    page.wait("html[data-charts=drawn]")


def test_a_report_tells_how_a_run_went(tmp_path: Path, browser: Browser) -> None:
    summary = run(tmp_path, ["text"] * 100, mixed, prices={"input": 1, "output": 2, "currency": "EUR"})
    target = tmp_path / "pages" / "report.html"
    write_run_report(tmp_path / "out", target)
    with browser.open(target) as page:
        ready(page)
        assert page.text("h1") == "test"
        assert page.text(".pill") == "10 rows failed"
        tiles = dict(zip(page.texts(".tile dt"), page.texts(".tile .value"), strict=True))
        assert (tiles["Answers"], tiles["Failed"]) == ("90", "10")
        assert tiles["Cost of these answers"] == f"{summary.spend.cost:.4f} EUR"
        assert page.count(".plot") == page.count(".plot .main-svg:first-child") >= 5
        failures = page.text("section:has(h2:text('Failures')) tbody")
        assert "invalid_request" in failures
        assert "row 9" in failures
        assert "is too long" in failures
        labels = page.text("section:has(h2:text('Labels'))")
        assert re.search(r"billing\s+30\s+33\.3%", labels)
        assert "eos" in page.text("section:has(h2:text('How they were answered'))")
        assert page.count("section:has(h2:text('Runs')) tbody tr") == 1
        assert page.evaluate("[...document.querySelectorAll('[role=img]')].every(it => it.ariaLabel.length > 20)")


def test_a_report_shows_answers_to_filter_and_search(
    tmp_path: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, [f"text {number}" for number in range(100)], mixed)
    # A large output shows a part of its rows: failed ones, and an even choice of the others.
    monkeypatch.setattr(run_answers, "MOST_ROWS", 40)
    target = tmp_path / "report.html"
    write_run_report(tmp_path / "out", target)
    with browser.open(target, width=420) as page:
        page.wait("html[data-charts=drawn][data-rows=shown]")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        headings = page.texts("h2")
        assert headings[:3] == ["Failures", "Labels", "Answers"]
        assert headings[-3:] == ["Over time", "Runs", "The job"]
        assert "30 of 100 rows are in this page" in page.text("section.answers .note")
        assert not page.evaluate("document.querySelector('#reference').checkVisibility()")
        page.choose("#show", "failed")
        page.wait_until("document.querySelector('#found').textContent === '10 of 30 rows'")
        assert page.texts("#rows button.open")[:2] == ["9", "19"]
        page.choose("#show", "all")
        page.fill("#query", "text 55")
        page.wait_until("document.querySelector('#found').textContent === '1 of 30 rows'")
        page.click("#rows button.open")
        page.wait("#detail")
        assert page.text("#detail .messages pre") == "55\ntext 55"
        assert page.download("#download").splitlines()[0] == "row_index,key,asked,answer: answer"


def test_what_the_data_says_stays_text(tmp_path: Path, browser: Browser) -> None:
    def answer(number: int, _body: dict[str, Any]) -> httpx.Response:
        text = HOSTILE[number % len(HOSTILE)]
        return refusal(text) if number < len(HOSTILE) else completion(text, finish_reason=text)

    # One of these texts holds "error": as a finish reason it is an attempt that failed.
    run(tmp_path, list(HOSTILE) * 8, answer, model=HOSTILE[0], retry={"attempts": 1})
    target = tmp_path / "report.html"
    write_run_report(tmp_path / "out", target)
    with browser.open(target) as page:
        ready(page)
        assert HOSTILE[0] in page.text("header")
        text = page.text("main")
        for hostile in HOSTILE[:4]:
            assert hostile in text
        assert "right\\u202eto left" in text
        assert "line\\u2028separator\\u2029here" in text
        assert "{{ 7 * 7 }}" in text
        assert page.evaluate("window.hacked === undefined")
        assert page.count("main script, main img, main b") == 0
        # A script that got in all the same could not tell anybody.
        asked = "fetch('https://example.com/').then(() => 'sent', () => 'refused')"
        assert page.evaluate(asked) == "refused"
        assert [problem for problem in page.problems if not problem.startswith("request: ")]
        page.problems.clear()


@pytest.mark.thorough
def test_light_dark_paper_and_narrow_screens(tmp_path: Path, browser: Browser) -> None:
    run(tmp_path, ["text"] * 30, mixed)
    target = tmp_path / "report.html"
    write_run_report(tmp_path / "out", target)
    with browser.open(target, scheme="dark", width=360) as page:
        ready(page)
        tick = ".plot .xtick text"
        dark = (page.style("body", "backgroundColor"), page.style("body", "color"), page.style(tick, "fill"))
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.prefer(color_scheme="light")
        page.wait_until(f"getComputedStyle(document.querySelector('{tick}')).fill !== '{dark[2]}'")
        assert page.style("body", "backgroundColor") != dark[0]
        assert page.style("body", "color") != dark[1]
        page.prefer(color_scheme="dark")
        page.wait_until(f"getComputedStyle(document.querySelector('{tick}')).fill === '{dark[2]}'")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        page.wait_until(f"getComputedStyle(document.querySelector('{tick}')).fill !== '{dark[2]}'")
        page.prefer(media="print")
        assert page.style("body", "backgroundColor") == "rgb(255, 255, 255)"
        page.prefer(media="screen")
        page.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"


@pytest.mark.parametrize("how", ["no key", "all failed", "one row"])
@pytest.mark.thorough
def test_odd_outputs_have_a_page_too(tmp_path: Path, browser: Browser, how: str) -> None:
    answers: dict[str, Answer] = {
        "no key": lambda *_: refusal("Incorrect key", 401),
        "all failed": lambda number, _: refusal(f"no {number}"),
        "one row": lambda *_: completion("yes", prompt_tokens=0),
    }
    run(tmp_path, ["text"] * (1 if how == "one row" else 3), answers[how])
    target = tmp_path / "report.html"
    write_run_report(tmp_path / "out", target)
    expected = {
        "no key": "3 rows open: HTTP 401: Incorrect key",
        "all failed": "3 rows failed",
        "one row": "every row has an answer",
    }
    with browser.open(target) as page:
        ready(page)
        assert page.text(".pill").startswith(expected[how])


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    write_rows(tmp_path / "rows.jsonl", ({"id": number, "text": f"row {number}"} for number in range(20)))
    job = tmp_path / "job.yaml"
    job.write_text(
        "name: test\ninput: {path: rows.jsonl, key: id}\noutput: out\nprovider: demo\nmodel: llama-3.1-8b-instruct\n"
        'messages: [{role: user, content: "Labels: yes, no\\n{{ text }}"}]\n'
    )
    return job


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Run a command in this process."""
    for name in [name for name in os.environ if name.endswith(("_KEY", "_PROXY", "_proxy"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "argv", ["batchchat", *map(str, arguments)])
    return guarded(cli)


def test_run_writes_its_report_and_writes_over_its_own(
    job_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    target = job_file.parent / "out" / "report.html"
    assert command(monkeypatch, "run", job_file, "--html", target) == 0
    assert f"report written to {target}" in capfd.readouterr().err
    first = target.read_text()
    assert "every row has an answer" in first
    with (job_file.parent / "rows.jsonl").open("a") as rows:
        rows.write('{"id": 20, "text": "one more"}\n')
    assert command(monkeypatch, "run", job_file, "--html", target) == 0
    assert "21 rows" in target.read_text()
    assert not list(target.parent.glob(".*.draft"))


def test_what_keeps_a_report_from_being_written_is_found_before_anything_is_sent(
    job_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = job_file.parent
    foreign = folder / "thesis.html"
    foreign.write_text("<!doctype html><p>ten years of work")
    (folder / "folder.html").mkdir()
    cases = {foreign: "is no report of batchchat", job_file: "is an .html file", folder / "folder.html": "is a folder"}
    for target, message in cases.items():
        assert command(monkeypatch, "run", job_file, "--html", target) == 2
        assert message in capfd.readouterr().err
    monkeypatch.setattr(charting, "find_spec", lambda _name: None)
    assert command(monkeypatch, "run", job_file, "--html", folder / "report.html") == 2
    assert "pip install plotly" in capfd.readouterr().err
    assert foreign.read_text() == "<!doctype html><p>ten years of work"
    assert not (folder / "out").exists()


def test_a_report_that_fails_after_the_run_is_told_by_the_exit_code(
    job_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    target = job_file.parent / "reports" / "report.html"
    write = running._write_page

    def meanwhile(*arguments: Any) -> None:
        target.parent.write_text("a file where the folder was to be")
        write(*arguments)

    monkeypatch.setattr(running, "_write_page", meanwhile)
    assert command(monkeypatch, "run", job_file, "--html", target) == 74
    told = capfd.readouterr().err
    assert "all 20 rows have a completion" in told
    assert f"{target}: {target.parent} is no folder" in told


def test_a_report_of_an_existing_output(
    job_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = job_file.parent
    assert command(monkeypatch, "run", job_file, "-q") == 0
    # As its user runs it, away from the sources: templates, styles and scripts are part of the package.
    made = batchchat_process("report", "out", "-o", "report.html", cwd=folder)
    assert (made.returncode, made.stderr) == (0, "report written to report.html\n")
    assert "every row has an answer" in (folder / "report.html").read_text()
    assert command(monkeypatch, "report", folder / "nowhere", "-o", folder / "report.html") == 2
    assert "is no output of batchchat" in capfd.readouterr().err
