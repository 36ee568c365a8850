"""Whole runs over several endpoints on a virtual clock: balance, failover, recovery, fallback."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from batchchat.events import RunSummary
from batchchat.runner.control import StopRequest
from batchchat.runner.options import RunOptions
from tests.integration.jobs import query
from tests.thorough import one_in
from tests.unit.test_run_clock import Provider, answer, row_of, simulate

Behaviour = Callable[[httpx.Request, float], Awaitable[httpx.Response]]
"""What a server does with a request that came so many seconds after the first."""
FILTERED = {"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}], "model": "m"}
USAGE = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}


class Servers(Provider):
    """Servers of one name each, which a test makes behave. It counts the chat requests of each."""

    def __init__(self, **behaviours: Behaviour) -> None:
        self.asked: Counter[str] = Counter()
        self.log: list[tuple[str, float]] = []
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self._behaviours = behaviours
        super().__init__(self._serve)

    async def _serve(self, request: httpx.Request) -> httpx.Response:
        name = request.url.host
        if request.method == "GET":
            return httpx.Response(404)  # it lists no models
        self.asked[name] += 1
        at = anyio.current_time() - self.times[0]
        self.log.append((name, at))
        self.bodies.append((name, json.loads(request.content)))
        return await self._behaviours[name](request, at)


def steady(latency_s: float = 0.1) -> Behaviour:
    async def serve(_request: httpx.Request, _at: float) -> httpx.Response:
        await anyio.sleep(latency_s)
        return answer()

    return serve


def failing(
    response: Callable[[], httpx.Response], *, start: float = 0.0, end: float = 1e9, latency_s: float = 0.1
) -> Behaviour:
    """Fail so from `start` to `end`, else answer."""

    async def serve(_request: httpx.Request, at: float) -> httpx.Response:
        await anyio.sleep(latency_s)
        return response() if start <= at < end else answer()

    return serve


def refused() -> httpx.Response:
    raise httpx.ConnectError("refused")


def status(code: int) -> Callable[[], httpx.Response]:
    return lambda: httpx.Response(code, json={"error": {"message": f"no {code}"}})


def pool(*names: str, **more: Any) -> dict[str, Any]:
    return {"name": "test-pool", "endpoints": [{"base_url": f"http://{name}/v1", **more} for name in names]}


def totals(summary: RunSummary) -> tuple[int, int, int]:
    return summary.exit_code, summary.ok, summary.failed


@pytest.mark.thorough
def test_a_slow_server_gets_fewer_rows(tmp_path: Path) -> None:
    servers = Servers(a=steady(), b=steady(), c=steady(), d=steady(0.3))
    summary, elapsed, _ = simulate(
        tmp_path, servers, 800, provider=pool("a", "b", "c", "d"), limits={"concurrency": 40}
    )
    assert totals(summary) == (0, 800, 0)
    # Ten at once each: 100 rows/s from each quick one, 33 from the slow one.
    assert elapsed < 800 / 333 * 1.15 + 0.3
    assert servers.asked["d"] < servers.asked["a"] / 2


def test_weights_share_the_requests_out(tmp_path: Path) -> None:
    servers = Servers(a=steady(), b=steady())
    provider = pool("a", "b")
    provider["endpoints"][0]["weight"] = 3
    summary, _, _ = simulate(tmp_path, servers, 800, provider=provider, limits={"concurrency": 16})
    assert totals(summary) == (0, 800, 0)
    assert 2.5 < servers.asked["a"] / servers.asked["b"] < 3.5


def test_the_limits_of_the_job_hold_over_all_endpoints(tmp_path: Path) -> None:
    servers = Servers(a=steady(), b=steady(), c=steady())
    limits = {"requests_per_minute": 120, "concurrency": 30}
    summary, elapsed, _ = simulate(tmp_path, servers, 240, provider=pool("a", "b", "c"), limits=limits)
    assert totals(summary) == (0, 240, 0)
    assert 115 < elapsed < 130


def test_the_limits_of_an_endpoint_are_its_own(tmp_path: Path) -> None:
    servers = Servers(a=steady(), b=steady())
    provider = pool("a", "b")
    provider["endpoints"][0]["limits"] = {"requests_per_minute": 60}
    summary, elapsed, _ = simulate(tmp_path, servers, 600, provider=provider, limits={"concurrency": 8})
    assert totals(summary) == (0, 600, 0)
    assert elapsed < 15
    assert servers.asked["a"] <= 60 * elapsed / 60 + 2


@pytest.mark.parametrize("how", one_in(2, [refused, status(500)]), ids=["refused", "500"])
def test_one_server_that_dies_costs_no_row_an_attempt(tmp_path: Path, how: Callable[[], httpx.Response]) -> None:
    servers = Servers(a=steady(0.5), b=failing(how, start=2, end=12, latency_s=0.5), c=steady(0.5))
    # With one attempt for each row, an attempt that counted would be a failed row.
    summary, _, events = simulate(
        tmp_path, servers, 650, provider=pool("a", "b", "c"), limits={"concurrency": 12}, retry={"attempts": 1}
    )
    assert totals(summary) == (0, 650, 0)
    told = [event for event in events if event.name == "breaker_opened"]
    assert len(told) == 1
    assert "http://b/v1" in told[0].message
    during = [at for name, at in servers.log if name == "b" and 4 <= at < 12]
    assert 0 < len(during) <= 10  # probes
    assert any(name == "b" and at > 14 for name, at in servers.log)  # it is back


@pytest.mark.thorough
def test_a_recovered_server_begins_with_few_requests(tmp_path: Path) -> None:
    servers = Servers(a=steady(0.5), b=failing(refused, start=1, end=3, latency_s=0.5))
    simulate(tmp_path, servers, 1200, provider=pool("a", "b"), limits={"concurrency": 40})
    back = [at for name, at in servers.log if name == "b" and at >= 3]
    first = back[0]
    assert sum(at < first + 0.9 for at in back) <= 10  # the probe, and eight after it
    assert sum(12 <= at < 14 for at in back) > 30


@pytest.mark.thorough
def test_all_servers_down_is_a_provider_that_is_down(tmp_path: Path) -> None:
    servers = Servers(a=failing(status(503), start=2, latency_s=0.5), b=failing(refused, start=2, latency_s=0.5))
    summary, elapsed, _ = simulate(tmp_path, servers, 900, provider=pool("a", "b"), retry={"outage": "5m"})
    assert (summary.exit_code, summary.failed) == (69, 0)
    assert 0 < summary.ok < 900
    assert 290 < elapsed < 345


@pytest.mark.thorough
def test_all_servers_down_for_a_minute_fail_no_row(tmp_path: Path) -> None:
    servers = Servers(a=failing(status(503), start=2, end=62), b=failing(refused, start=2, end=62))
    summary, elapsed, _ = simulate(tmp_path, servers, 1000, provider=pool("a", "b"))
    assert totals(summary) == (0, 1000, 0)
    assert elapsed < 62 + 40


@pytest.mark.parametrize("code", one_in(3, [401, 403, 404]))
def test_a_server_that_refuses_us_is_taken_out(tmp_path: Path, code: int) -> None:
    servers = Servers(a=steady(), b=failing(status(code)), c=steady())
    summary, _, events = simulate(tmp_path, servers, 500, provider=pool("a", "b", "c"), retry={"attempts": 1})
    assert totals(summary) == (0, 500, 0)
    assert servers.asked["b"] < 15
    out = [event for event in events if event.name == "endpoint_out"]
    assert [event.fields["endpoint"] for event in out] == ["http://b/v1"]
    assert out[0].level == "warning"


def test_a_server_whose_day_is_used_up_is_taken_out(tmp_path: Path) -> None:
    def used_up() -> httpx.Response:
        text = "Rate limit reached on requests per day (RPD): Limit 500, Used 500"
        return httpx.Response(429, json={"error": {"message": text}}, headers={"retry-after": "40000"})

    servers = Servers(a=steady(), b=failing(used_up, start=1))
    summary, elapsed, events = simulate(tmp_path, servers, 300, provider=pool("a", "b"))
    assert totals(summary) == (0, 300, 0)
    assert elapsed < 20
    assert [event.fields["endpoint"] for event in events if event.name == "endpoint_out"] == ["http://b/v1"]


@pytest.mark.parametrize("code", [401, 404])
def test_servers_that_all_refuse_us_stop_the_run(tmp_path: Path, code: int) -> None:
    servers = Servers(a=failing(status(code)), b=failing(status(code)))
    summary, _, _ = simulate(tmp_path, servers, 500, provider=pool("a", "b"))
    assert (summary.exit_code, summary.ok, summary.failed) == (3, 0, 0)
    assert sum(servers.asked.values()) < 60


@pytest.mark.thorough
def test_a_row_that_breaks_every_server_pays_its_own_attempts(tmp_path: Path) -> None:
    async def serve(request: httpx.Request, _at: float) -> httpx.Response:
        await anyio.sleep(0.1)
        return httpx.Response(500) if row_of(request) in {5, 50, 500} else answer()

    servers = Servers(a=serve, b=serve, c=serve)
    summary, elapsed, events = simulate(tmp_path, servers, 1000, provider=pool("a", "b", "c"), retry={"attempts": 3})
    assert totals(summary) == (1, 997, 3)
    assert elapsed < 200
    assert not [event for event in events if event.name == "endpoint_out"]
    sent = query(tmp_path, "select distinct attempts from data where status = 'failed'")
    assert sent == [(5,)]  # once at each of three servers, where the third counts, and two more


def test_records_say_who_answered_and_a_server_more_asks_nothing_again(tmp_path: Path) -> None:
    servers = Servers(a=steady(), b=steady())
    simulate(tmp_path, servers, 50, provider=pool("a"))
    summary, _, _ = simulate(tmp_path, servers, 80, provider=pool("b", "a"))
    assert (summary.ok, summary.new_ok) == (80, 30)
    found = query(tmp_path, "select provider, endpoint, count(*) from data group by all order by all")
    assert [row[:2] for row in found] == [("test-pool", "http://a/v1"), ("test-pool", "http://b/v1")]
    assert sum(one.ok for one in summary.answered_by) == 30


def test_the_identity_of_an_address_is_carried_over(tmp_path: Path) -> None:
    servers = Servers(a=steady(), b=steady())
    simulate(tmp_path, servers, 50, provider={"base_url": "http://a/v1"})
    provider = {**pool("a", "b"), "identity": "http://a/v1"}
    summary, _, _ = simulate(tmp_path, servers, 50, provider=provider)
    assert (summary.ok, summary.new_ok, summary.sent) == (50, 0, 0)


def test_each_endpoint_is_asked_for_its_own_name_of_the_model(tmp_path: Path) -> None:
    servers = Servers(a=steady(), b=steady())
    provider = pool("a", "b")
    provider["endpoints"][1]["model"] = "other/llama"
    simulate(tmp_path, servers, 40, provider=provider)
    assert {(name, body["model"]) for name, body in servers.bodies} == {
        ("a", "llama-3.1-8b-instruct"),
        ("b", "other/llama"),
    }


def fallback(*on: str, **more: Any) -> list[dict[str, Any]]:
    return [{"provider": {"base_url": "http://f/v1"}, "model": "large", "on": list(on), **more}]


def test_an_outage_is_answered_by_the_fallback_until_the_first_is_back(tmp_path: Path) -> None:
    servers = Servers(a=failing(status(503), start=2, end=12, latency_s=0.5), f=steady(0.5))
    summary, _, _ = simulate(
        tmp_path, servers, 1300, provider=pool("a"), fallback=fallback("outage"), limits={"concurrency": 16}
    )
    assert totals(summary) == (0, 1300, 0)
    during = Counter(name for name, at in servers.log if 5 <= at < 12)
    assert during["f"] > 100
    assert during["a"] <= 5  # probes
    assert {name for name, at in servers.log if at > 32} == {"a"}
    models = {body["model"] for name, body in servers.bodies if name == "f"}
    assert models == {"large"}
    assert any("answered by a fallback" in warning for warning in summary.warnings)
    assert {one.endpoint: one.fallback for one in summary.answered_by} == {"http://a/v1": False, "http://f/v1": True}


@pytest.mark.parametrize("how", [refused, status(401)], ids=["refused", "401"])
def test_a_run_that_only_the_fallback_answers_ends_well(tmp_path: Path, how: Callable[[], httpx.Response]) -> None:
    servers = Servers(a=failing(how), f=steady())
    summary, elapsed, _ = simulate(tmp_path, servers, 200, provider=pool("a"), fallback=fallback("outage"))
    assert totals(summary) == (0, 200, 0)
    assert elapsed < 60
    assert query(tmp_path, "select distinct provider, endpoint from data") == [("http://f/v1", "http://f/v1")]


def test_an_answer_that_failed_for_good_goes_to_the_fallback_that_takes_its_kind(tmp_path: Path) -> None:
    async def serve(request: httpx.Request, _at: float) -> httpx.Response:
        await anyio.sleep(0.1)
        return httpx.Response(200, json={**FILTERED, "usage": USAGE}) if row_of(request) % 10 == 0 else answer()

    servers = Servers(a=serve, f=steady())
    prices = {"input": 1, "output": 1, "currency": "EUR"}
    dear = {"input": 10, "output": 10, "currency": "EUR"}
    summary, _, _ = simulate(
        tmp_path, servers, 100, provider=pool("a"), prices=prices, fallback=fallback("content_filter", prices=dear)
    )
    assert totals(summary) == (0, 100, 0)
    assert servers.asked["f"] == 10
    # A row that the fallback answered costs both answers, each at its own price.
    costs = query(tmp_path, "select endpoint, round(sum(cost) * 1e6, 3), count(*) from data group by 1 order by 1")
    assert costs == [("http://a/v1", 990.0, 90), ("http://f/v1", 10 * (11 + 110.0), 10)]
    assert round(summary.spend_total.cost * 1e6, 3) == 990.0 + 1210.0


def test_a_fallback_that_does_not_take_the_kind_is_not_asked(tmp_path: Path) -> None:
    async def serve(_request: httpx.Request, _at: float) -> httpx.Response:
        return httpx.Response(200, json={**FILTERED, "usage": USAGE})

    servers = Servers(a=serve, f=steady())
    summary, _, _ = simulate(tmp_path, servers, 20, provider=pool("a"), fallback=fallback("refusal", "outage"))
    assert totals(summary) == (1, 0, 20)
    assert servers.asked["f"] == 0


def test_a_row_whose_fallback_is_down_too_keeps_its_first_failure(tmp_path: Path) -> None:
    async def serve(request: httpx.Request, _at: float) -> httpx.Response:
        await anyio.sleep(0.1)
        return httpx.Response(200, json={**FILTERED, "usage": USAGE}) if row_of(request) % 2 else answer()

    servers = Servers(a=serve, f=failing(refused))
    summary, elapsed, _ = simulate(tmp_path, servers, 200, provider=pool("a"), fallback=fallback("content_filter"))
    assert (summary.ok, summary.failed) == (100, 100)
    assert elapsed < 300
    kinds = dict(query(tmp_path, "select error_kind, count(*) from data where status = 'failed' group by 1"))
    assert kinds.get("content_filter", 0) > 80


def test_a_rate_limit_hands_over_to_the_fallback(tmp_path: Path) -> None:
    servers = Servers(a=failing(status(429), start=1, end=40, latency_s=0.5), f=steady(0.5))
    summary, elapsed, _ = simulate(
        tmp_path, servers, 400, provider=pool("a"), fallback=fallback("rate_limit"), limits={"concurrency": 8}
    )
    assert totals(summary) == (0, 400, 0)
    assert elapsed < 35
    assert servers.asked["f"] > 200


def test_fallbacks_are_tried_in_order(tmp_path: Path) -> None:
    servers = Servers(a=failing(refused), f=failing(refused), g=steady())
    chain = [*fallback("outage"), {"provider": {"base_url": "http://g/v1"}, "model": "third", "on": "outage"}]
    summary, _, _ = simulate(tmp_path, servers, 100, provider=pool("a"), fallback=chain)
    assert totals(summary) == (0, 100, 0)
    assert [one.model for one in summary.answered_by] == ["third"]


def test_a_budget_reserves_what_the_dearest_target_costs(tmp_path: Path) -> None:
    servers = Servers(a=failing(refused), f=steady())
    prices = {"input": 1, "output": 1, "currency": "EUR"}
    dear = {"input": 100, "output": 100, "currency": "EUR"}
    summary, _, _ = simulate(
        tmp_path, servers, 500, provider=pool("a"), prices=prices, fallback=fallback("outage", prices=dear),
        budget={"max_cost": 0.1}, params={"max_tokens": 10},
    )  # fmt: skip
    assert summary.exit_code == 4
    assert 0 < summary.spend_total.cost <= 0.1


def test_a_kill_between_two_targets_does_not_ask_the_first_one_again(tmp_path: Path) -> None:
    async def serve(_request: httpx.Request, _at: float) -> httpx.Response:
        await anyio.sleep(0.1)
        return httpx.Response(200, json={**FILTERED, "usage": USAGE})

    async def hang(_request: httpx.Request, _at: float) -> httpx.Response:
        stop.stop(reason="the test ends it", exit_code=130)
        await anyio.sleep(60)
        return answer()

    fields: dict[str, Any] = {
        "provider": pool("a"),
        "fallback": fallback("content_filter"),
        "limits": {"concurrency": 4},
    }
    stop = StopRequest()
    first = Servers(a=serve, f=hang)
    summary, _, _ = simulate(tmp_path, first, 4, stop=stop, options=RunOptions(grace=1), **fields)
    assert (summary.ok, summary.failed, summary.open) == (0, 0, 4)
    again = Servers(a=serve, f=steady())
    summary, _, _ = simulate(tmp_path, again, 4, **fields)
    assert totals(summary) == (0, 4, 0)
    # What the first server has answered is kept; the rest of its rows are asked there once.
    assert first.asked["a"] + again.asked["a"] == 4
    assert again.asked["f"] == 4
    assert summary.spend_total.requests == 8
