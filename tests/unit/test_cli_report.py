from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from batchchat.cli.json_output import as_json, summary_json
from batchchat.cli.message_text import content_text
from batchchat.cli.plan_page import render_plan
from batchchat.cli.record_page import render_record
from batchchat.cli.status_page import render_status
from batchchat.cli.summary_page import render_summary
from batchchat.cli.terminal import Terminal, mask
from batchchat.events import FailureGroup, InFlight, RunSummary, Snapshot
from batchchat.records import ErrorKind, Spend
from batchchat.views import LastRun, PlanView, RecordView, RequestPreview, Running, StatusView
from tests.thorough import examples

NASTY = "[red]text[/red] :smile: \x1b[2J\x9b31m\u202e end"
NASTY_SHOWN = r"[red]text[/red] :smile: \x1b[2J\x9b31m\u202e end"

SUMMARY = RunSummary(
    run_id="r1",
    job="label-tickets",
    output="out/label-tickets",
    provider="demo",
    model="llama-3.1-8b-instruct",
    exit_code=1,
    reason=None,
    remedy=None,
    elapsed_s=6.23,
    rows=12_300,
    ok=12_297,
    failed=3,
    open=0,
    kept=12,
    new_ok=177,
    new_failed=3,
    revived=0,
    sent=185,
    retries=5,
    rate_limited=1,
    spend=Spend(180, 41_234, 1_234, 42_468, 0, 0, 0.0085),
    spend_total=Spend(300, 68_000, 2_100, 70_100, 0, 0, 0.014),
    currency="EUR",
    rows_per_s=30.2,
    failures=(
        FailureGroup("input", 1, "tickets.jsonl:30: not a JSON object", 29),
        FailureGroup("rate_limit", 2, NASTY, 17),
    ),
    resume="batchchat run jobs/label-tickets.yaml --retry-failed",
)

PLAN = PlanView(
    job="label-tickets",
    input="tickets.jsonl",
    output="out/label-tickets",
    provider="scaleway",
    model="mistral-small",
    previews=(RequestPreview("ab" * 16, 0, "T-1", ({"role": "system", "content": "Sort."},)),),
    new=290,
    changed=1_240,
    done=12_000,
    failed=12,
    retried=2,
    archived=0,
    unreadable=0,
    kept=0,
    requests=1_532,
    prompt_tokens=412_340,
    completion_tokens=41_230,
    cost=0.0765,
    currency="EUR",
    prices_as_of="2026-09-29",
    duration_s=311.2,
    binding="requests per minute",
    method="4 characters a token",
    command="batchchat run jobs/label-tickets.yaml",
)

STATUS = StatusView(
    job="label-tickets",
    output="out/label-tickets",
    running=None,
    last=LastRun("r1", 130, "stopped by SIGINT", "2026-03-01 12:03:04"),
    ok=181,
    failed=2,
    open=117,
    failures=(FailureGroup("server", 2, "503", 5),),
    spent=Spend(300, 68_000, 2_100, 70_100, 0, 0, 0.014),
    currency="EUR",
    command="batchchat run jobs/label-tickets.yaml",
)

RECORD: dict[str, Any] = {
    "custom_id": "ab" * 16,
    "key": "T-1",
    "source": "tickets.jsonl",
    "row_index": 17,
    "sample_index": 0,
    "status": "ok",
    "completion": "billing",
    "finish_reason": "stop",
    "error_kind": None,
    "latency_s": 0.31,
}


def shown(renderable: Any, width: int = 80) -> str:
    stream = io.StringIO()
    Terminal(stream, tty=False, width=width).print(renderable)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_summary_tells_rows_requests_tokens_cost_and_time() -> None:
    text = shown(render_summary(SUMMARY))
    assert text.splitlines()[0] == "label-tickets · 12,297 of 12,300 rows have a completion, 3 failed"
    figures = [words(line) for line in text.splitlines()]
    for line in (
        "rows ok 177 12,297",
        "rows failed 3 3",
        "rows open 0",
        "records of rows not in this run 12",
        "requests sent 185",
        "of them retries 5",
        "of them rate limited 1",
        "answers paid for 180 300",
        "prompt tokens 41,234 68,000",
        "completion tokens 1,234 2,100",
        "cost 0.0085 EUR 0.0140 EUR",
        "time 6.2 s",
        "rows/s 30.2",
    ):
        assert line in figures


def test_counts_are_of_samples_where_a_row_is_asked_several_times() -> None:
    summary = replace(SUMMARY, rows=4_100, samples=3)
    text = shown(render_summary(summary))
    assert text.splitlines()[0] == "label-tickets · 12,297 of 12,300 samples have a completion, 3 failed"
    figures = [words(line) for line in text.splitlines()]
    assert {"rows, of 3 samples each 4,100", "samples ok 177 12,297", "samples open 0", "samples/s 30.2"} <= set(
        figures
    )
    assert "failed because of samples for example" in figures
    plan = words(shown(render_plan(replace(PLAN, samples=3))))
    assert "samples new 290 3 for each row" in plan
    assert "rows" not in plan.replace("3 for each row", "")
    assert "samples ok 181" in words(shown(render_status(replace(STATUS, samples=3))))


def test_failures_are_grouped_the_most_frequent_first_with_one_example_each() -> None:
    text = shown(render_summary(SUMMARY), 120)
    assert text.index("rate_limit") < text.index("tickets.jsonl:30: not a JSON object")
    assert f"rate_limit             2   row 17: {NASTY_SHOWN}" in text


@pytest.mark.parametrize("width", [40, 60, 80])
def test_the_command_to_go_on_is_never_broken(width: int) -> None:
    last = shown(render_summary(SUMMARY), width).splitlines()[-1]
    assert last == "go on with   batchchat run jobs/label-tickets.yaml --retry-failed"


def test_the_commands_that_look_at_failed_rows_and_try_them_again_stand_in_the_summary() -> None:
    command = "batchchat run jobs/label-tickets.yaml --retry-failed=refusal,truncated"
    lines = shown(render_summary(replace(SUMMARY, output="out/t", resume=None, retry=command))).splitlines()
    assert lines[-2:] == ["failed rows  batchchat show out/t --failed", f"try again    {command}"]
    assert "try again" not in shown(render_summary(replace(SUMMARY, failed=0, exit_code=0)))


def test_a_perfect_run_says_so_and_where_to_look() -> None:
    text = shown(
        render_summary(
            replace(SUMMARY, exit_code=0, ok=12_300, failed=0, failures=(), resume=None, output="out/my tickets")
        )
    )
    assert text.splitlines()[0] == "label-tickets · all 12,300 rows have a completion"
    assert text.endswith("look at it   batchchat show 'out/my tickets'")
    assert "failed because of" not in text


def test_a_run_that_ended_early_says_why_and_what_to_do() -> None:
    ended = replace(SUMMARY, exit_code=3, reason="the key was refused", remedy="Set SCW_SECRET_KEY.", open=7)
    text = shown(render_summary(ended))
    assert "ended early: 12,297 of 12,300 rows" in text.splitlines()[0]
    assert "reason       the key was refused\nremedy       Set SCW_SECRET_KEY.\n" in text
    assert "ended early" not in shown(render_summary(replace(ended, exit_code=5, reason="accuracy 0.81 < 0.90")))


def test_notes_and_warnings_are_shown() -> None:
    text = shown(render_summary(replace(SUMMARY, note="A demo model.", warnings=("3 odd values", NASTY))))
    assert "warning: 3 odd values\n" in text
    assert f"warning: {NASTY_SHOWN}\n" in text
    assert "note: A demo model." in text


def test_what_is_zero_takes_no_line_and_no_explanation() -> None:
    quiet = replace(SUMMARY, sent=0, retries=0, rate_limited=0, corrections=0, new_ok=0, new_failed=0, revived=0)
    text = shown(render_summary(replace(quiet, exit_code=0, failed=0, ok=SUMMARY.rows, failures=(), reason=None)))
    assert text.splitlines()[0] == "label-tickets · all 12,300 rows have a completion: nothing to do"
    for word in ("retries", "rate limited", "corrections"):
        assert word not in text
    text = shown(render_plan(replace(PLAN, changed=0, failed=0, retried=0, done=0, cache=None)))
    lines = [words(line) for line in text.splitlines()]
    for line in ("rows changed 0", "rows failed 0", "rows done 0", "cache off"):
        assert line in lines


def test_a_price_that_is_not_known_is_not_shown_as_free() -> None:
    summary = replace(SUMMARY, currency=None, spend=Spend(1), spend_total=Spend(1))
    assert "cost \N{EN DASH} \N{EN DASH}" in [words(line) for line in shown(render_summary(summary)).splitlines()]


def test_a_summary_as_json_has_every_field_by_name() -> None:
    told = json.loads(json.dumps(summary_json(SUMMARY)))
    assert set(told) == set(RunSummary.__slots__)
    assert told["spend"]["prompt_tokens"] == 41_234
    assert told["failures"][1] == {"kind": "rate_limit", "count": 2, "example": NASTY, "row_index": 17}


def test_every_view_is_json() -> None:
    for view in (PLAN, STATUS, RecordView({"a": b"x", "kind": ErrorKind.INPUT}, RECORD, None)):
        assert json.loads(json.dumps(as_json(view)))
    assert as_json(RecordView({"a": {1: (2,)}}, {}, None))["input"] == {"a": {"1": [2]}}


def test_a_plan_shows_requests_counts_and_what_it_would_cost() -> None:
    text = shown(render_plan(PLAN))
    assert text.splitlines()[:2] == [f"row 0 · key T-1 · {'ab' * 16}", "system      Sort."]
    lines = [words(line) for line in text.splitlines()]
    for line in (
        "label-tickets · 1,532 requests to send to mistral-small at scaleway",
        "rows new 290",
        "rows failed 12 2 of them to be tried again",
        "rows done 12,000 nothing to send",
        "requests 1,532",
        "prompt tokens ~412,340",
        "completion tokens ~41,230",
        "cost ~0.0765 EUR prices as of 2026-09-29",
        "time ~5 min 11 s decided by requests per minute",
        "Estimates: 4 characters a token",
    ):
        assert line in lines
    assert text.endswith("run it with  batchchat run jobs/label-tickets.yaml")
    assert "already spent" not in text


def test_a_plan_tells_what_is_archived_kept_unreadable_or_already_spent() -> None:
    text = words(shown(render_plan(replace(PLAN, archived=3, unreadable=1, kept=7, spent=Spend(100, cost=0.5)))))
    assert "rows archived 3 answered before" in text
    assert "rows that would fail 1" in text
    assert "records kept 7" in text
    assert "already spent 0.5000 EUR 100 answers so far" in text


def test_a_plan_says_why_rows_would_fail_the_commonest_reasons_first() -> None:
    failures = tuple(FailureGroup("template", 20 - number, f"reason {number}", number) for number in range(8))
    text = words(shown(render_plan(replace(PLAN, unreadable=100, failures=failures))))
    assert "would fail because of rows for example" in text
    assert "template 20 row 0: reason 0 template 19" in text
    assert "others 42 row 5: reason 5" in text
    assert "reason 6" not in text


def test_a_plan_without_prices_makes_none_up() -> None:
    text = words(shown(render_plan(replace(PLAN, cost=None, duration_s=None, binding=None))))
    assert "cost \N{EN DASH} no price known: set `prices` in the job time \N{EN DASH}" in text


def test_a_long_message_is_shown_from_its_beginning() -> None:
    message = {"role": "user", "content": "word " * 4_000}
    preview = RequestPreview("cd" * 16, 3, None, (message,), sample_index=2)
    text = shown(render_plan(replace(PLAN, previews=(preview,))))
    assert "row 3 · sample 2 · cdcd" in text
    assert "… 18,800 more characters" in text


def test_a_running_status_shows_who_runs_it_and_what_takes_long() -> None:
    live = Snapshot(
        "r2", "label-tickets", "running", 9, 300, True, 181, 2, oldest=(InFlight(17, "x", 2, 31, "waiting"),)
    )
    text = shown(render_status(replace(STATUS, running=Running(12, "box", "12:03:04"), live=live)))
    assert text.startswith("label-tickets · running since 12:03:04 (process 12 on box)\n")
    assert "183 of 300 · 181 done · 2 failed" in text
    assert "row 17              31 s   waiting, attempt 2" in text


@pytest.mark.parametrize(
    ("last", "told"),
    [
        (STATUS.last, "last run ended 2026-03-01 12:03:04 with exit code 130: stopped by SIGINT"),
        (LastRun("r1", None, None, None), "the last run was killed"),
        (None, "never run"),
    ],
)
def test_a_status_tells_how_the_last_run_ended(last: LastRun | None, told: str) -> None:
    text = shown(render_status(replace(STATUS, last=last)), 120)
    assert text.splitlines()[0] == f"label-tickets · {told}"
    assert "rows ok                    181   60%" in text
    assert text.endswith("go on with   batchchat run jobs/label-tickets.yaml")


def test_a_record_shows_what_went_in_and_what_came_out() -> None:
    view = RecordView({"subject": "Hi", "tags": ["a"], "none": None}, RECORD, ({"role": "user", "content": "Hi\nyou"},))
    lines = shown(render_record(view)).splitlines()
    assert lines[0] == f"row 17 · key T-1 · {'ab' * 16} · ok"
    assert lines[2:4] == ["user        Hi", "            you"]
    assert "completion  billing" in lines
    assert "finish_reason  stop" in lines
    assert 'tags     ["a"]' in lines
    assert "none     \N{EN DASH}" in lines
    assert not any("error_kind" in line for line in lines)


def test_a_failed_record_shows_the_failure_and_any_text_received() -> None:
    record = {**RECORD, "status": "failed", "error_kind": "truncated", "error_message": "cut at max_tokens"}
    record |= {"reasoning": "hmm", "refusal": "no", "tool_calls": [{"name": "look", "arguments": '{"a": 1}'}]}
    text = shown(render_record(RecordView({}, record, None, note="The input is no longer there.")))
    assert "The input is no longer there." in text
    assert "failure     truncated: cut at max_tokens" in text
    assert 'tool calls  look({"a": 1})' in text
    for name, value in (("reasoning", "hmm"), ("refusal", "no"), ("completion", "billing")):
        assert f"{name:<12}{value}" in text


def test_an_empty_answer_is_seen_to_be_empty() -> None:
    assert "completion  (empty)" in shown(render_record(RecordView({}, {**RECORD, "completion": ""}, None)))


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "plain"}, "plain"),
        ({"content": None}, ""),
        ({"content": [{"type": "text", "text": "a"}, "b", 3]}, "a\nb\n3"),
        ({"content": [{"type": "image_url", "image_url": {"url": "http://h/x.png"}}]}, "[image_url] http://h/x.png"),
        ({"content": [{"type": "other", "x": 1}]}, '[other] {"x": 1}'),
        ({"content": {"odd": 1}}, '{"odd": 1}'),
        ({"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}, "calls f({})"),
    ],
)
def test_content_of_every_shape_is_shown(message: dict[str, object], text: str) -> None:
    assert content_text(message) == text


def test_an_image_inside_a_message_is_shortened() -> None:
    url = "data:image/png;base64," + "A" * 400
    shortened = content_text({"content": [{"type": "image_url", "image_url": {"url": url}}]})
    assert shortened.endswith("A… (422 characters)")
    assert len(shortened) < 80


def everywhere(text: str) -> list[Any]:
    """Return each report with `text` in every place that data, an answer or a server can fill."""
    message = {"role": text, "content": text, "tool_calls": [{"function": {"name": text, "arguments": text}}]}
    parts = {"role": "user", "content": [{"type": text, text: text}, {"type": "text", "text": text}]}
    failures = (FailureGroup(text, 1, text, 0),)
    record = dict.fromkeys(RECORD, text) | {"error_kind": text, "error_message": text, "refusal": text}
    return [
        render_summary(
            replace(
                SUMMARY, job=text, output=text, reason=text, remedy=text, failures=failures, warnings=(text,), note=text
            )
        ),
        render_plan(
            replace(
                PLAN,
                job=text,
                input=text,
                output=text,
                provider=text,
                model=text,
                binding=text,
                prices_as_of=text,
                method=text,
                warnings=(text,),
                note=text,
                previews=(RequestPreview(text, 0, text, (message, parts)),),
            )
        ),
        render_status(
            replace(
                STATUS, job=text, output=text, failures=failures, warnings=(text,), last=LastRun(text, 1, text, text)
            )
        ),
        render_record(RecordView({text: text, "list": [text], "map": {text: text}}, record, (message, parts), text)),
    ]


@examples(30)
@given(st.text(alphabet=st.sampled_from("a[]/:\\ \n\t\r\x00\x07\x1b\x9b\u202e\u2066\u2028\ud800é日👩\u200d")))
def test_no_text_of_any_kind_acts_on_the_terminal(text: str) -> None:
    for renderable in everywhere(text):
        printed = shown(renderable, 60)
        printed.encode()
        assert not set(printed) & set("\x00\x07\x1b\x9b\r\u202e\u2066\u2028")


def test_markup_in_data_stays_text_on_any_console() -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    for renderable in everywhere("[bold]x[/bold]"):
        with console.capture() as capture:
            console.print(renderable)
        assert capture.get().count("[bold]x[/bold]") >= 6


def test_a_secret_is_masked_even_where_a_table_would_break_it() -> None:
    secret = "canary-" + "0123456789" * 12
    mask.register(secret)
    for renderable in everywhere(f"key {secret} here"):
        printed = "".join(shown(renderable, 60).split())
        assert "***" in printed
        assert "0123456789" not in printed


def test_numbers_that_json_lacks_become_text() -> None:
    view = RecordView({"share": float("nan"), "far": float("-inf")}, {"status": "ok"}, None)
    assert json.loads(json.dumps(as_json(view), allow_nan=False))["input"] == {"share": "nan", "far": "-inf"}
