"""What looks wrong in an output: each rule speaks of what it is for, and keeps silent on what is near to it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

import batchchat
from batchchat.cli.process import results
from batchchat.cli.running import looked_at
from batchchat.cli.summary_page import render_summary
from batchchat.labelling.oddities import oddities_of
from tests.integration.jobs import make_job, write_rows
from tests.integration.test_report import command, completion, refusal
from tests.thorough import one_in
from tests.unit.test_cli_report import SUMMARY

LABELS = ["billing", "bug", "other"]
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["label"],
    "properties": {"label": {"enum": LABELS}},
}
ROWS = 200
LONG_TEXT = (
    "The parcel of the customer was left with a neighbour who does not answer the door, and nobody knows where it is."
)
Answer = Callable[[int], "str | None"]


def judged(
    folder: Path, answer: Answer, *, typed: bool, column: Callable[[int], str] = lambda n: f"c{n}", size: int = ROWS
) -> list[Any]:
    """Return what looks wrong after a run of so many rows. An answer of None is a failure."""
    rows = [{"n": n, "text": f"{LONG_TEXT} {n}", "channel": column(n)} for n in range(size)]
    write_rows(folder / "rows.jsonl", rows)

    def handle(request: httpx.Request) -> httpx.Response:
        number = int(json.loads(request.content)["messages"][0]["content"].split("\n")[0])
        text = answer(number)
        if text is None:
            return refusal("no")
        return completion(json.dumps({"label": text}) if typed else text)

    fields: dict[str, Any] = {"response": {"schema": SCHEMA}} if typed else {}
    messages = [{"role": "user", "content": "{{ n }}\n{{ text }}"}]
    # One at a time, so that the records lie in the order of the rows.
    job = make_job(
        folder, None, input={"path": str(folder / "rows.jsonl")}, messages=messages, limits={"concurrency": 1}, **fields
    )
    batchchat.run(job, transport=httpx.MockTransport(handle), environ={})
    found = oddities_of(job.output.path)
    assert all(str(job.output.path) in oddity.command for oddity in found)
    return found


def mixed(number: int) -> str:
    return random.Random(number).choice(LABELS)


def every(step: int, odd: str | None, usual: Answer) -> Answer:
    return lambda number: odd if number % step == 0 else usual(number)


def test_what_only_later_answers_show_is_found(tmp_path: Path) -> None:
    found = judged(tmp_path, lambda n: "short" if n < 1_200 else f"{LONG_TEXT} {n}", typed=False, size=1_600)
    assert "repeated_prompt" in [oddity.kind for oddity in found]


@pytest.mark.parametrize(
    ("answer", "typed", "kinds"),
    one_in(
        3,
        [
            pytest.param(mixed, True, [], id="labels that are well"),
            pytest.param(lambda n: f"A summary of the ticket number {n}.", False, [], id="texts that are well"),
            pytest.param(every(21, "bug", lambda _: "billing"), True, ["one_label", "label_never"], id="one label"),
            pytest.param(every(15, "bug", every(16, "other", lambda _: "billing")), True, [], id="a frequent label"),
            pytest.param(lambda n: LABELS[n % 2], True, ["label_never"], id="a label that never comes"),
            pytest.param(lambda _: "billing", False, [], id="one text, of which nobody says that it is a label"),
            pytest.param(
                every(50, "I\u2019m sorry, but I cannot determine this.", lambda n: f"Fine {n}"),
                False,
                ["refusals"],
                id="refusals",
            ),
            pytest.param(every(120, "I cannot determine this.", lambda n: f"Fine {n}"), False, [], id="two refusals"),
            pytest.param(
                lambda n: f"The customer said {'x' * 300} I cannot help {n}", False, [], id="a quoted refusal"
            ),
            pytest.param(
                every(150, "long " * 300, lambda n: f"Fine {n}"), False, ["long_answers"], id="two long answers"
            ),
            pytest.param(lambda n: "word " * random.Random(n).randint(1, 300), False, [], id="lengths that vary"),
            pytest.param(every(10, f"{LONG_TEXT} 0", lambda n: f"Fine {n}"), False, ["repeated_prompt"], id="repeats"),
            pytest.param(every(60, f"{LONG_TEXT} 0", lambda n: f"Fine {n}"), False, [], id="few repeats"),
            pytest.param(
                lambda n: "bug" if n >= 100 else mixed(n), True, ["sudden_change"], id="a label from the middle on"
            ),
            pytest.param(
                lambda n: None if n >= 120 else f"Fine {n}", False, ["sudden_change"], id="failures from row 120 on"
            ),
            pytest.param(every(8, None, lambda n: f"Fine {n}"), False, [], id="failures here and there"),
        ],
    ),
)
def test_rules_speak_and_keep_silent(tmp_path: Path, answer: Answer, typed: bool, kinds: list[str]) -> None:
    assert [oddity.kind for oddity in judged(tmp_path, answer, typed=typed)] == kinds


def test_a_value_that_is_tied_to_failures_is_named(tmp_path: Path) -> None:
    def channel(number: int) -> str:
        return "fax" if number % 5 == 0 else "web"

    answer = every(10, None, lambda n: f"Fine {n}")
    (found,) = judged(tmp_path, answer, typed=False, column=channel)
    assert found.kind == "tied_failures"
    assert found.message == "20 of 40 rows with channel 'fax' failed, and 0% of the others: row 0."
    assert "--where" in found.command
    # The same failures, spread over the channels, are tied to nothing.
    other = tmp_path / "other"
    other.mkdir()
    assert judged(other, every(9, None, lambda n: f"Fine {n}"), typed=False, column=channel) == []


def test_a_finding_names_rows_to_open(tmp_path: Path) -> None:
    found = judged(tmp_path, every(50, "I cannot help.", lambda n: f"Fine {n}"), typed=False)
    assert found[0].rows == (0, 50, 100, 150)
    assert "4 answers of 200 refuse in words" in found[0].message
    assert str(found[0]).endswith("--row 0")


def test_the_summary_and_the_report_tell_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    judged(tmp_path, lambda n: LABELS[n % 2], typed=True)
    target = tmp_path / "report.html"
    assert command(monkeypatch, "report", tmp_path / "out", "-o", target) == 0
    page = target.read_text()
    assert "What looks wrong" in page
    assert "parsed.label is never &#39;other&#39; in 200 answers" in page
    # A run that has new answers looks at them.
    output = str(tmp_path / "out")
    summary = looked_at(replace(SUMMARY, output=output, new_ok=1))
    assert len(summary.looks_wrong) == 1
    results().print(render_summary(summary))
    assert "looks wrong: parsed.label is never 'other'" in " ".join(capfd.readouterr().out.split())
    assert looked_at(replace(SUMMARY, output=output, new_ok=0, new_failed=0)).looks_wrong == ()
    assert looked_at(replace(SUMMARY, output=str(tmp_path / "gone"), new_ok=1)).looks_wrong == ()
