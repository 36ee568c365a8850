"""Budgets: what may be launched, what is counted, and who waits for whom."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.budget import Account, Budget, Hold
from batchchat.errors import StoppedEarly, UsageError
from batchchat.money import Tariff, as_float
from batchchat.providers import Price
from batchchat.records import ErrorKind, Failure, Reply, Usage, Verdict

TARIFF = Tariff(150_000, 350_000, 150_000)


def answered(
    prompt: int | None,
    completion: int | None,
    *,
    total: int | None = None,
    cached: int = 0,
    tariff: Tariff | None = TARIFF,
) -> Reply:
    if total is None and prompt is not None and completion is not None:
        total = prompt + completion
    usage = Usage(prompt, completion, total, cached)
    return Reply(Verdict.OK, usage=usage, cost=None if tariff is None else tariff.cost(usage))


def lost(*, sent: bool = True) -> Reply:
    return Reply(Verdict.TRANSIENT, failure=Failure(ErrorKind.CONNECTION, "reset"), sent=sent)


def go(work: Callable[[], Awaitable[None]]) -> None:
    anyio.run(work)


# --- what is promised, for all orders of events


amounts = st.tuples(st.integers(0, 400), st.integers(0, 400))
steps = st.lists(st.one_of(st.tuples(st.just("reserve"), amounts), st.tuples(st.just("settle"), amounts)), max_size=60)
caps = st.tuples(
    st.none() | st.integers(1, 3000),
    st.none() | st.integers(1, 12),
    st.none() | st.floats(1e-6, 1e-3, allow_nan=False),
)


@given(steps, caps, st.booleans())
def test_a_launch_never_passes_a_cap_and_spending_only_by_what_reservations_missed(
    plan: list[tuple[str, tuple[int, int]]], limits: tuple[int | None, int | None, float | None], truthful: bool
) -> None:
    """`truthful`: no attempt takes more than was reserved for it; then no cap is ever passed at all."""
    max_tokens, max_requests, max_cost = limits
    budget = Budget(max_cost=max_cost, max_tokens=max_tokens, max_requests=max_requests)
    budget.account(TARIFF, "EUR")
    held: list[tuple[int, int]] = []
    missed_tokens = missed_money = 0

    def within(extra_tokens: int = 0, extra_money: float = 0) -> bool:
        use = budget.use()
        return (
            (max_tokens is None or use.tokens + use.reserved_tokens <= max_tokens + extra_tokens)
            and (max_requests is None or use.requests + use.in_flight <= max_requests)
            and (max_cost is None or use.cost + use.reserved_cost <= max_cost + extra_money + 1e-15)
        )

    for action, (tokens, money) in plan:
        if action == "reserve":
            before = budget.use()
            try:
                taken = budget.try_reserve(tokens, money * 10**6)
            except StoppedEarly:
                assert budget.use() == before
                assert budget.closed is not None
                continue
            if taken:
                held.append((tokens, money))
                assert within()
            else:
                assert held, "a request that fits alone waits for others only"
        elif held:
            reserved_tokens, reserved_money = held.pop(0)
            used_tokens = min(tokens, reserved_tokens) if truthful else tokens
            used_money = min(money, reserved_money) if truthful else money
            missed_tokens += max(0, used_tokens - reserved_tokens)
            missed_money += max(0, used_money - reserved_money)
            budget.settle(
                reserved_tokens,
                reserved_money * 10**6,
                used_tokens=used_tokens,
                used_money=used_money * 10**6,
                counts=True,
            )
        assert within(missed_tokens, missed_money * 1e-6)
        assert budget.use().in_flight == len(held)


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500)), max_size=40))
def test_an_account_charges_what_the_price_says(uses: list[tuple[int, int, int]]) -> None:
    tariff = Tariff.of(Price(0.15, 0.35, cached_input=0.05))
    assert tariff is not None
    budget = Budget(max_cost=1.0)
    account = budget.account(tariff, "EUR")

    async def work() -> None:
        for prompt, completion, cached in uses:
            hold = await account.reserve(prompt, completion)
            hold.settle(answered(prompt, completion, cached=cached, tariff=tariff))

    go(work)
    ledger = sum(tariff.cost(Usage(prompt, completion, cached_tokens=cached)) for prompt, completion, cached in uses)
    assert budget.use().cost == as_float(ledger)
    assert budget.use().tokens == sum(prompt + completion for prompt, completion, _ in uses)
    assert budget.use().requests == len(uses)


# --- what is counted


def test_an_answer_without_usage_is_charged_its_reservation_and_told() -> None:
    budget = Budget(max_cost=1.0, max_tokens=1000)
    account = budget.account(TARIFF, "EUR")

    async def work() -> None:
        (await account.reserve(100, 50)).settle(answered(None, None))
        (await account.reserve(100, 50)).settle(answered(None, None, total=70))
        (await account.reserve(100, 50)).settle(answered(10, 5))

    go(work)
    use = budget.use()
    assert (use.tokens, use.unmetered) == (150 + 70 + 15, 2)
    assert use.cost == pytest.approx(as_float(2 * TARIFF.cost(Usage(100, 50)) + TARIFF.cost(Usage(10, 5))))


@pytest.mark.parametrize(
    ("reply", "launched", "requests"),
    [(lost(), True, 1), (lost(sent=False), True, 0), (None, True, 1), (None, False, 0)],
)
def test_what_was_never_answered_counts_as_a_request_only(reply: Reply | None, launched: bool, requests: int) -> None:
    budget = Budget(max_requests=5, max_tokens=1000)
    account = budget.account(None, None)

    async def work() -> None:
        hold = await account.reserve(100, 50)
        hold.launched = launched
        hold.settle(reply)
        with pytest.raises(RuntimeError):
            hold.settle(reply)

    go(work)
    use = budget.use()
    assert (use.requests, use.tokens, use.in_flight, use.reserved_tokens) == (requests, 0, 0, 0)


def test_a_failure_that_was_billed_is_spent() -> None:
    budget = Budget(max_tokens=100)
    account = budget.account(None, None)

    async def work() -> None:
        hold = await account.reserve(40, 20)
        hold.settle(Reply(Verdict.NO, failure=Failure(ErrorKind.TRUNCATED, "cut", 200), usage=Usage(40, 20, 60)))
        with pytest.raises(StoppedEarly, match="60 is spent, and the next request may take 60 more"):
            await account.reserve(40, 20)

    go(work)


# --- waiting and ending


async def _launch(account: Account, tokens: int, order: list[int]) -> Hold:
    hold = await account.reserve(tokens, 0)
    hold.launched = True
    order.append(tokens)
    return hold


def test_a_request_that_fits_alone_waits_its_turn_and_no_smaller_one_overtakes_it() -> None:
    budget = Budget(max_tokens=100)
    account = budget.account(None, None)
    order: list[int] = []

    async def work() -> None:
        first = await _launch(account, 60, order)
        async with anyio.create_task_group() as group:
            group.start_soon(_launch, account, 50, order)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(_launch, account, 5, order)
            await anyio.wait_all_tasks_blocked()
            assert order == [60]
            first.settle(answered(20, 0))
        assert order == [60, 50, 5]

    go(work)


def test_the_first_request_that_does_not_fit_alone_closes_the_budget_for_everybody() -> None:
    budget = Budget(max_tokens=100)
    one, other = budget.account(None, None), budget.account(None, None)
    stopped: list[str] = []

    async def ask(account: Account, tokens: int) -> None:
        try:
            await account.reserve(tokens, 0)
        except StoppedEarly as error:
            stopped.append(error.message)

    async def work() -> None:
        first = await one.reserve(90, 0)
        async with anyio.create_task_group() as group:
            group.start_soon(ask, one, 40)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(ask, other, 1)
            await anyio.wait_all_tasks_blocked()
            assert not stopped
            first.settle(answered(80, 0))
        await ask(other, 1)

    go(work)
    assert len(stopped) == 3
    assert StoppedEarly.exit_code == 4
    assert set(stopped) == {"budget.max_tokens of 100 is used up: 80 is spent, and the next request may take 40 more"}


def test_a_wait_that_is_given_up_leaves_the_line_to_the_next() -> None:
    budget = Budget(max_tokens=100)
    account = budget.account(None, None)
    order: list[int] = []

    async def impatient(scope: anyio.CancelScope) -> None:
        with scope:
            await account.reserve(90, 0)

    async def work() -> None:
        scope = anyio.CancelScope()
        first = await _launch(account, 60, order)
        async with anyio.create_task_group() as group:
            group.start_soon(impatient, scope)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(_launch, account, 30, order)
            await anyio.wait_all_tasks_blocked()
            assert order == [60]
            scope.cancel()
        assert order == [60, 30]
        first.settle(None)

    go(work)
    assert budget.use().in_flight == 1


def test_several_runs_share_one_budget_with_prices_of_their_own() -> None:
    budget = Budget(max_cost=1.0)
    low, high = Tariff.of(Price(1, 1)), Tariff.of(Price(10, 10))
    cheap, dear = budget.account(low, "EUR"), budget.account(high, "EUR")

    async def work() -> None:
        (await cheap.reserve(100_000, 0)).settle(answered(100_000, 0, tariff=low))
        (await dear.reserve(80_000, 0)).settle(answered(80_000, 0, tariff=high))
        with pytest.raises(StoppedEarly, match=r"0\.9 EUR is spent, and the next request may take 0\.2 EUR more"):
            await dear.reserve(20_000, 0)
        with pytest.raises(StoppedEarly):
            await cheap.reserve(1, 0)

    go(work)


def test_money_needs_a_price_and_one_currency() -> None:
    budget = Budget(max_cost=1.0)
    with pytest.raises(UsageError, match="price"):
        budget.account(None, None)
    budget.account(TARIFF, "EUR")
    with pytest.raises(UsageError, match="currencies are never added"):
        budget.account(TARIFF, "USD")
    Budget(max_tokens=1).account(None, None)


@pytest.mark.parametrize("cap", [0, -1, float("nan"), float("inf")])
def test_a_cap_is_more_than_nothing(cap: float) -> None:
    with pytest.raises(UsageError, match="max_cost must be more than 0"):
        Budget(max_cost=cap)


def test_a_single_request_that_is_too_big_says_so() -> None:
    account = Budget(max_tokens=100).account(None, None)

    async def work() -> None:
        with pytest.raises(StoppedEarly, match="too small: a single request may take 150") as caught:
            await account.reserve(100, 50)
        assert "max_tokens" in (caught.value.remedy or "")

    go(work)


@pytest.mark.parametrize(
    ("money", "shown"),
    [(0.001979, "0.001979"), (0.0000444, "0.0000444"), (12.3456, "12.35"), (0.2, "0.2"), (1234.5, "1,234.5"), (0, "0")],
)
def test_amounts_are_written_without_powers_of_ten(money: float, shown: str) -> None:
    from batchchat.budget import _digits

    assert _digits(money) == shown
