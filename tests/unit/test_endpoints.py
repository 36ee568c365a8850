"""Endpoints: the pick among them, what a failure of one says, heads of prompts, bodies."""

from __future__ import annotations

import json
import random
from typing import Any, cast

import anyio
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.client import ChatClient
from batchchat.endpoints.affinity import HEAD_BYTES, LOOKED_AT, Heads, Ring
from batchchat.endpoints.body import BodyFor
from batchchat.endpoints.endpoint import Endpoint
from batchchat.endpoints.route import EndpointRoute
from batchchat.endpoints.target import Target
from batchchat.job.pool_fields import LimitFields
from batchchat.records import Completion, ErrorKind, Failure, Reply, Request, RowBatch, Usage, Verdict
from tests.limiters import make_limiter
from tests.thorough import examples
from tests.unit.test_engine_supply import on_virtual_clock

BATCH = RowBatch("rows.jsonl", 0, pa.RecordBatch.from_pydict({}), [])
OK = Reply(Verdict.OK, completion=Completion("yes", "stop", "m", Usage(1, 1, 2)), usage=Usage(1, 1, 2))


def endpoint(name: str = "", *, concurrency: int = 4, weight: float = 1.0) -> Endpoint:
    limiter = make_limiter(concurrency=concurrency, rng=random.Random(1))
    return Endpoint(cast("ChatClient", None), limiter, name, weight)


def request(number: int = 0, body: bytes = b"{}") -> Request:
    return Request(f"{number:032x}", body, 10, None, BATCH, number)


def failure(status: int | None, kind: ErrorKind = ErrorKind.SERVER, verdict: Verdict = Verdict.TRANSIENT) -> Reply:
    return Reply(verdict, failure=Failure(kind, "it failed", status), sent=status is not None)


@examples(60)
@given(
    slots=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=6, max_size=6),
    steps=st.lists(st.booleans(), max_size=80),
    out=st.sets(st.integers(0, 5), max_size=3),
)
def test_the_pick_is_an_endpoint_with_room_and_the_least_load(
    slots: list[int], weights: list[float], steps: list[bool], out: set[int]
) -> None:
    endpoints = [endpoint(f"e{place}", concurrency=n, weight=weights[place]) for place, n in enumerate(slots)]
    for place in out:
        if place < len(endpoints):
            endpoints[place].out = "refused"

    async def main() -> None:
        target = Target(endpoints)
        taken: list[Any] = []
        for take in steps:
            if not take and taken:
                taken.pop(0).settle(OK)
                continue
            now = anyio.current_time()
            chosen, wait = target.pick(1, now)
            free = [one for one in endpoints if one.out is None and one.limiter.in_use < one.limiter.window]
            if chosen is None:
                assert not free
                assert wait > 0
                continue
            assert chosen in free
            assert (chosen.limiter.in_use + 1) / chosen.weight == min((e.limiter.in_use + 1) / e.weight for e in free)
            permit = chosen.limiter.try_acquire(1, now=now)
            assert permit is not None
            taken.append(permit)

    on_virtual_clock(main)


def test_ties_rotate() -> None:
    endpoints = [endpoint(str(place)) for place in range(3)]

    async def main() -> None:
        target = Target(endpoints)
        assert [target.pick(1, anyio.current_time())[0] for _ in range(4)] == [*endpoints, endpoints[0]]

    on_virtual_clock(main)


@examples(60)
@given(
    statuses=st.lists(st.sampled_from([None, 500, 502, 503]), min_size=1, max_size=40),
    count=st.integers(2, 5),
)
def test_a_request_that_fails_everywhere_is_free_at_most_once_for_each_endpoint(
    statuses: list[int | None], count: int
) -> None:
    async def main() -> None:
        endpoints = [endpoint(str(place)) for place in range(count)]
        route = EndpointRoute([Target(endpoints)])
        one, free = request(), 0
        for status in statuses:
            now = anyio.current_time()
            permit = route.try_acquire(one, 1, now)
            assert permit is not None
            kind = ErrorKind.CONNECTION if status is None else ErrorKind.SERVER
            reply = failure(status, kind)
            permit.settle(reply, now)
            free += route.goes_on(one, reply, permit)
        assert free <= count - 1

    on_virtual_clock(main)


def test_a_request_avoids_the_endpoint_at_which_it_failed() -> None:
    async def main() -> None:
        endpoints = [endpoint("a", concurrency=1), endpoint("b", concurrency=1)]
        route = EndpointRoute([Target(endpoints)])
        one = request()
        permit = route.try_acquire(one, 1, anyio.current_time())
        assert permit is not None
        reply = failure(500)
        permit.settle(reply)
        assert route.goes_on(one, reply, permit)
        other = route.try_acquire(one, 1, anyio.current_time())
        assert other is not None
        assert other.endpoint is not permit.endpoint
        # Only the one at which it failed is free: it waits rather than go there again.
        assert route.try_acquire(request(1), 1, anyio.current_time()) is not None
        second = request(2)
        second.broke = permit.endpoint.bit
        assert route.try_acquire(second, 1, anyio.current_time()) is None

    on_virtual_clock(main)


def test_waiting_requests_are_served_in_order_and_a_cancelled_one_takes_nothing() -> None:
    async def main() -> None:
        route = EndpointRoute([Target([endpoint("a", concurrency=1), endpoint("b", concurrency=1)])])
        held = [route.try_acquire(request(number), 1, anyio.current_time()) for number in range(2)]
        got: list[int] = []

        async def wait(number: int, scope: anyio.CancelScope) -> None:
            with scope:
                permit = await route.acquire(request(number), 1)
                assert permit is not None
                got.append(number)
                await anyio.sleep(1)
                permit.settle(OK)

        scopes = [anyio.CancelScope() for _ in range(5)]
        async with anyio.create_task_group() as group:
            for number, scope in enumerate(scopes):
                group.start_soon(wait, number, scope)
                await anyio.sleep(0.01)
            scopes[1].cancel()
            for permit in held:
                assert permit is not None
                permit.settle(OK)
        assert got == [0, 2, 3, 4]
        assert route.traffic.pace().in_use == 0

    on_virtual_clock(main)


def test_other_limits_of_the_job_reach_the_endpoints_that_have_none_of_their_own() -> None:
    async def main() -> None:
        endpoints = [endpoint("a"), endpoint("b")]
        endpoints[1].limits = LimitFields(concurrency=3)
        route = EndpointRoute([Target(endpoints)], over=make_limiter(concurrency=4))
        route.traffic.retune(concurrency=20)
        assert [one.limiter.window for one in endpoints] == [20, 3]
        assert route.traffic.window == 20
        route.traffic.retune(requests_per_minute=60, concurrency=2)
        permits = [route.try_acquire(request(number), 1, anyio.current_time()) for number in range(3)]
        assert [permit is not None for permit in permits] == [True, False, False]

    on_virtual_clock(main)


# --- heads of prompts


@examples(100)
@given(count=st.integers(1, 8), head=st.integers(1, 2**64 - 1), gone=st.integers(0, 7))
def test_a_head_stays_where_it_is_when_another_endpoint_goes(count: int, head: int, gone: int) -> None:
    names = [f"http://server-{place}/v1" for place in range(count)]
    order = [names[place] for place in Ring(names, [1.0] * count).order(head)]
    assert sorted(order) == names
    left = [name for place, name in enumerate(names) if place != gone]
    if left:
        after = [left[place] for place in Ring(left, [1.0] * len(left)).order(head)]
        assert after == [name for name in order if name in left]


@examples(100)
@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=1, max_size=6),
    heads=st.lists(st.integers(1, 5), min_size=1, max_size=120),
)
def test_no_endpoint_gets_more_than_its_bounded_share(weights: list[float], heads: list[int]) -> None:
    ring = Ring([str(place) for place in range(len(weights))], weights)
    loads: list[int | None] = [0] * len(weights)
    for total, head in enumerate(heads, 1):
        place = next(place for place in ring.order(head * 2**60) if ring.room(loads, place))
        loads[place] = load = (loads[place] or 0) + 1
        assert load <= 1.25 * total * weights[place] / sum(weights) + 1


def bodies(heads: list[str], tail: str = "row") -> list[Request]:
    messages = [[{"role": "user", "content": f"{head}{tail} {number}"}] for number, head in enumerate(heads)]
    texts = [json.dumps({"model": "m", "messages": one}, separators=(",", ":")) for one in messages]
    return [request(number, text.encode()) for number, text in enumerate(texts)]


LONG = "a sentence that many prompts begin with. " * (HEAD_BYTES // 20)


@pytest.mark.parametrize(
    ("heads", "on"),
    [
        ([f"document {number // 10}: {LONG}" for number in range(300)], True),
        ([f"document {number % 10}: {LONG}" for number in range(300)], True),
        ([f"{LONG} and then document {number // 10}: {LONG}" for number in range(300)], True),
        ([LONG for _ in range(300)], False),
        ([f"document {number}: {LONG}" for number in range(300)], False),
        ([f"document {number // 10}: short. " for number in range(300)], False),
        ([], None),
    ],
    ids=["neighbours", "interleaved", "below one head for all", "one head for all", "all differ", "short", "nothing"],
)
def test_heads_count_if_some_share_them_and_not_all(heads: list[str], on: bool | None) -> None:
    found, requests = Heads(), bodies(heads)
    for start in range(0, len(requests), 50):
        found.note(requests[start : start + 50])
    assert found.on is on
    numbers = [one.head for one in requests]
    assert all(numbers) if on else not any(numbers)
    if on:
        same = {(heads[place].partition(":")[0][-12:], number) for place, number in enumerate(numbers)}
        assert len(same) == len(set(numbers))


def test_a_few_rows_can_tell_enough() -> None:
    found, requests = Heads(), bodies([f"document {number % 3}: {LONG}" for number in range(60)])
    for start in range(0, len(requests), 20):
        found.note(requests[start : start + 20])
    assert found.on is True
    assert LOOKED_AT > 60
    assert len({one.head for one in requests}) == 3


# --- bodies


@pytest.mark.parametrize(
    ("body", "params", "expected"),
    [
        (b'{"model":"own","messages":[]}', None, {"model": "theirs", "messages": []}),
        (b'{"messages":[],"model":"own"}', None, {"messages": [], "model": "theirs"}),
        (b'{"model":"own","stream_options":{}}', {"stream_options": None}, {"model": "theirs"}),
        (b'{"model":"own","n":1.50}', {"top_p": 1}, {"model": "theirs", "n": 1.5, "top_p": 1}),
    ],
)
def test_a_body_names_the_model_of_its_endpoint(body: bytes, params: Any, expected: dict[str, Any]) -> None:
    assert json.loads(BodyFor("own", "theirs", params).of(body)) == expected


def test_only_the_head_of_a_body_is_changed() -> None:
    body = b'{"model":"own","messages":[{"role":"user","content":"\\"model\\":\\"own\\", 1.000"}]}'
    assert BodyFor("own", "theirs").of(body) == body.replace(b'{"model":"own",', b'{"model":"theirs",', 1)
