"""Limits of a whole day: which refusals are about one, until when, and when a run ends for it."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

import batchchat
from batchchat.cli import cli
from batchchat.client.wire import read_reply
from batchchat.demo import DemoOptions, DemoServer
from batchchat.engines.quota import DayQuota, DayUsedUp, day_used_up
from batchchat.records import DayLimit, ErrorKind, Failure, Reply, Verdict
from tests.integration.jobs import make_job, texts, write_rows

NOW = datetime(2026, 11, 28, 13, 0, tzinfo=UTC).timestamp()
HOUR = 3600.0
PACIFIC_MIDNIGHT = datetime(2026, 11, 29, 8, 0, tzinfo=UTC).timestamp() - NOW


def openai(message: str, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "requests", "param": None, "code": "rate_limit_exceeded", **fields}}


def google(quota: str, delay: str = "38s") -> list[dict[str, Any]]:
    violation = {"quotaMetric": "generativelanguage.googleapis.com/generate_content_free_tier_requests"}
    details = [
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{**violation, "quotaId": quota}]},
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay},
    ]
    message = f"You exceeded your current quota, please check your plan. Please retry in {delay}."
    return [{"error": {"code": 429, "message": message, "status": "RESOURCE_EXHAUSTED", "details": details}}]


# Body, headers, and in how many seconds the day ends. None: it does not say when. False: it is no limit of a day.
BODIES: dict[str, tuple[Any, dict[str, str], float | bool | None]] = {
    "OpenAI, requests": (
        openai(
            "Rate limit reached for m in organization org-1 on requests per day (RPD): Limit 200, Used 200, "
            "Requested 1. Please try again in 7m12s."
        ),
        {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "23h59m50s"},
        86390.0,
    ),
    "OpenAI, rolling": (
        openai("Rate limit reached for m on requests per day (RPD): Limit 10000. Please try again in 8.64s."),
        {},
        8.64,
    ),
    "Groq, tokens": (
        openai(
            "Rate limit reached for model `m` in organization `org_1` service tier `on_demand` on tokens per day "
            "(TPD): Limit 100000, Used 99826, Requested 1247. Please try again in 15m27.072s. Need more tokens? "
            "Upgrade to Dev Tier today",
            type="tokens",
        ),
        {"retry-after": "927"},
        927.072,
    ),
    "Gemini": (google("GenerateRequestsPerDayPerProjectPerModel-FreeTier"), {}, PACIFIC_MIDNIGHT),
    "Azure": (
        {
            "error": {
                "code": "429",
                "message": "Requests to the ChatCompletions_Create Operation under Azure OpenAI API "
                "version 2024-10-21 have exceeded token rate limit of your current OpenAI S0 pricing tier. Please "
                "retry after 86400 seconds.",
            }
        },
        {"retry-after": "86400"},
        86400.0,
    ),
    "Mistral": ({"object": "error", "message": "Requests per day limit exceeded", "type": "rate_limited"}, {}, None),
    "Scaleway": (
        {"error": "TooManyRequests", "status": 429, "message": "You have exceeded your tokens per day quota"},
        {},
        None,
    ),
    "GitHub": (
        openai("Rate limit of 50 per 86400s exceeded for UserByModelByDay. Please wait 41234 seconds before retrying."),
        {},
        41234.0,
    ),
    "OpenRouter": (
        {
            "error": {
                "message": "Rate limit exceeded: free-models-per-day. Add 10 credits to unlock 1000 free model "
                "requests per day",
                "code": 429,
            }
        },
        {"x-ratelimit-reset": str(int((NOW + 11 * HOUR) * 1000))},
        11 * HOUR,
    ),
    "Cloudflare": (
        {"errors": [{"message": "you used up your daily free allocation of 10,000 neurons"}]},
        {},
        None,
    ),
    "code alone": (openai("Slow down.", code="requests_per_day_exceeded"), {}, None),
    "words of a gateway": ({"detail": "Daily request limit reached. Try again in 3 hours"}, {}, 3 * HOUR),
    "hours alone": (openai("Too many requests"), {"retry-after": "40000"}, 40000.0),
    "a date": (openai("Too many requests"), {"retry-after": "Sun, 29 Nov 2026 00:00:00 GMT"}, 11 * HOUR),
    "not to be tried again": (openai("Limit of requests per day"), {"x-should-retry": "false"}, None),
    "inside of 200": (openai("Rate limit reached on tokens per day (TPD). Try again in 2h3m"), {}, 2 * HOUR + 180),
    # False friends.
    "90 s": (openai("Too many requests"), {"retry-after": "90"}, False),
    "a minute": (openai("Rate limit reached on requests per min (RPM): Limit 3. Try again in 20s"), {}, False),
    "a nice day": (openai("Too many requests. Slow down, and have a nice day"), {}, False),
    "days of a trial": (openai("Too many requests. Your trial ends in 3 days"), {"retry-after": "5"}, False),
    "a minute, and a day beside it": (
        openai("Rate limit exceeded: free-models-per-min. Add credits to unlock 1000 free model requests per day"),
        {"retry-after": "30"},
        False,
    ),
    "usage of the day": (openai("Limit of tokens per minute. See your daily usage on the dashboard"), {}, False),
    "Gemini, a minute": (google("GenerateRequestsPerMinutePerProjectPerModel-FreeTier"), {}, False),
    "concurrency": (openai("Too many concurrent requests; your limit per day is not affected"), {}, False),
    "seconds since 1970": (openai("Too many requests"), {"retry-after": "1795867200"}, False),
    "a whole day of requests that remain": (
        openai("Too many requests"),
        {"x-ratelimit-remaining-requests": "5", "x-ratelimit-reset-requests": "23h"},
        False,
    ),
    "credit": (openai("You exceeded your current quota per day", code="insufficient_quota"), {}, False),
}


@pytest.mark.parametrize("case", BODIES)
def test_which_refusals_are_about_a_day(case: str) -> None:
    body, headers, seconds = BODIES[case]
    status = 200 if case == "inside of 200" else 429
    wire = {name.encode(): value.encode() for name, value in headers.items()}
    reply = read_reply(status, wire, json.dumps(body).encode(), now=NOW)
    assert reply.completion is None
    if seconds is False:
        assert reply.day is None
        return
    assert reply.verdict is Verdict.RATE_LIMIT
    assert reply.day is not None
    told = reply.day.resets_at
    assert told == pytest.approx(NOW + seconds) if seconds is not None else told is None


def test_other_failures_are_never_about_a_day() -> None:
    body = json.dumps(openai("There is a limit of requests per day. Please try again in 5h")).encode()
    for status in (400, 401, 403, 500, 503):
        assert read_reply(status, {}, body, now=NOW).day is None


FAILURE = Failure(ErrorKind.RATE_LIMIT, "HTTP 429: requests per day", 429)


def refusal(resets_at: float | None = None) -> Reply:
    return Reply(Verdict.RATE_LIMIT, failure=FAILURE, day=DayLimit(resets_at))


def test_three_refusals_in_a_row_end_a_run_and_the_latest_moment_counts() -> None:
    quota = DayQuota()
    assert quota.refused(refusal(NOW + 100), 1.0, NOW) is None
    assert quota.refused(Reply(Verdict.RATE_LIMIT, failure=FAILURE), 1.5, NOW) is None
    assert quota.refused(refusal(), 2.0, NOW) is None
    quota.answered(0.5)  # it was sent before the first refusal
    ended = quota.refused(refusal(NOW + 50), 2.5, NOW)
    assert isinstance(ended, DayUsedUp)
    assert ended.exit_code == 69
    assert ended.resets_at == datetime(2026, 11, 28, 13, 2, tzinfo=UTC)


def test_an_answer_in_between_shows_that_something_is_left() -> None:
    quota = DayQuota()
    for turn in range(5):
        assert quota.refused(refusal(), float(turn), NOW) is None
        quota.answered(turn + 0.5)


def test_the_reason_names_the_moment_in_local_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        error = day_used_up(DayLimit(NOW + 11 * HOUR - 20), FAILURE, NOW)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert "used up until 2026-11-29 01:00 CET (in 11 h 00 min): HTTP 429: requests per day" in error.message
    assert "does not say until when" in day_used_up(DayLimit(None), FAILURE, NOW).message


def test_a_run_ends_soon_and_says_until_when(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(60))
    with DemoServer(DemoOptions(latency_s=0, faults={"day_after": 20})) as server:
        summary = batchchat.run(make_job(tmp_path, server.base_url, limits={"concurrency": 2}), environ={})
        asked = server.stats().requests
    assert (summary.exit_code, summary.ok, summary.failed, summary.open) == (69, 20, 0, 40)
    assert 23 <= asked <= 26
    assert "the provider's limit of this day is used up until " in (summary.reason or "")
    assert summary.resets_at is not None
    told = datetime.fromisoformat(summary.resets_at)
    assert 39_000 < (told - datetime.now(UTC)).total_seconds() <= 40_060
    status = CliRunner().invoke(cli, ["status", str(tmp_path / "out"), "--json"])
    assert json.loads(status.stdout)["last"]["resets_at"] == summary.resets_at


def test_one_request_alone_is_tried_three_times(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(1))
    asked: list[None] = []

    def answer(_: httpx.Request) -> httpx.Response:
        asked.append(None)
        return httpx.Response(429, json=openai("Limit of requests per day"), headers={"retry-after": "0"})

    job = make_job(tmp_path, None, provider={"base_url": "http://host.invalid/v1"}, model="m")
    summary = batchchat.run(job, transport=httpx.MockTransport(answer), environ={})
    assert (summary.exit_code, summary.open, len(asked), summary.resets_at) == (69, 1, 3, None)
