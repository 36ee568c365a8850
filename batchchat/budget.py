"""Budgets: caps on money, tokens and requests that are looked at before anything is launched.

    budget = Budget(max_cost=5.0, max_tokens=None, max_requests=2000)
    account = budget.account(tariff, "EUR")             # one run's hold on it: it knows what a token costs there
    hold = await account.reserve(prompt, completion)    # waits, or raises StoppedEarly: the budget is used up
    hold.settle(reply)                                  # what it really took; the rest is free again

A budget may stand above several runs on one event loop. What is promised:

- Nothing is launched unless what is spent, what is reserved for the requests under way and its own reservation fit
  under each cap together. So `spent + reserved <= cap` holds at each launch, and `spent` can pass a cap only by as much
  as the requests under way take more than was reserved for them: an answer longer than its reservation (there is none
  if the request has `max_tokens`) or a prompt of more tokens than its size lets expect. When nothing is under way,
  nothing is owed.
- Requests are counted exactly: never one more than `max_requests` is sent, retries and refusals included. One that
  certainly never reached the server does not count.
- Tokens and money are those of the ledger: every answered attempt, also one that failed and was billed. An answer
  without usage is charged what was reserved for it (`unmetered` counts these). An attempt that was never answered (a
  timeout, a lost connection) counts as a request only: nobody knows whether it is billed.
- A request that does not fit beside those under way waits for them, and nobody overtakes it. The first one that does
  not fit even alone closes the budget for everybody, also for smaller ones: a run's end does not depend on chance.

Money is counted in whole millionths of a millionth of the currency, rounded up, so that sums are exact.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import anyio

from batchchat.errors import StoppedEarly, UsageError
from batchchat.events import BudgetUse
from batchchat.money import UNITS

if TYPE_CHECKING:
    from batchchat.money import Tariff
    from batchchat.records import Reply

_REMEDY = "The same command goes on where it stopped, with a new budget; a larger one goes on further."
_TOO_SMALL = "Raise it, or lower params.max_tokens: what a request may take is its prompt and max_tokens."


class _Waiter:
    __slots__ = ("event",)

    def __init__(self) -> None:
        self.event = anyio.Event()


class CapValues(NamedTuple):
    """The three caps of a budget; None is no cap."""

    max_cost: float | None = None
    max_tokens: int | None = None
    max_requests: int | None = None


class Budget:
    """Caps that one run, or several at once, are kept under; None is no cap. See the module for what is promised.

    Raises UsageError for a cap that is not positive.
    """

    def __init__(
        self, *, max_cost: float | None = None, max_tokens: int | None = None, max_requests: int | None = None
    ) -> None:
        for name, cap in (("max_cost", max_cost), ("max_tokens", max_tokens), ("max_requests", max_requests)):
            if cap is not None and not (math.isfinite(cap) and cap > 0):
                raise UsageError(f"budget.{name} must be more than 0, not {cap:g}")
        self.max_cost = max_cost
        self.max_tokens = max_tokens
        self.max_requests = max_requests
        self.currency: str | None = None
        # What the accounts' costs are in, None of one whose price is not known: what a cap on money may be in later.
        self._currencies: set[str | None] = set()
        self.closed: StoppedEarly | None = None
        self.unmetered = 0
        self._cap_money = None if max_cost is None else math.floor(max_cost * UNITS)
        self._requests = self._tokens = self._money = 0
        self._held_requests = self._held_tokens = self._held_money = 0
        self._waiters: deque[_Waiter] = deque()

    def account(self, tariff: Tariff | None, currency: str | None) -> Account:
        """Return one run's hold on this budget. `tariff` and `currency` are those of its model, None if not known.

        Raises UsageError if money is capped and the price is not known, or is in another currency than the rest.
        """
        self._currencies.add(None if tariff is None else currency)
        # Without a cap on money no price is needed. The currency is kept all the same, as a person may set a cap later.
        if self.max_cost is None:
            return Account(self, tariff)
        if tariff is None or currency is None:
            raise UsageError(
                "budget.max_cost cannot be kept: the price of the model is not known",
                remedy="Give `prices: {input, output, currency}` (per million tokens), or cap tokens or requests.",
            )
        if self.currency not in {None, currency}:
            raise UsageError(
                f"budget.max_cost is in {self.currency} for one model and in {currency} for another: "
                "currencies are never added",
                remedy="Give `prices` in one currency for both.",
            )
        self.currency = currency
        return Account(self, tariff)

    def check_money(self) -> str:
        """Return the currency that a cap on money has. Raises UsageError if a price is not known, or there are two."""
        known = self._currencies
        if len(known) == 1 and (currency := next(iter(known))) is not None:
            return currency
        raise UsageError(
            "budget.max_cost cannot be kept: the price of the model is not known"
            if None in known or not known
            else "budget.max_cost cannot be kept: the models cost different currencies, which are never added",
            remedy="Cap budget.max_tokens or budget.max_requests.",
        )

    def change(self, caps: CapValues) -> None:
        """Take other caps from now on. What is spent and reserved counts under them.

        Raises UsageError if money is to be capped and cannot be.
        """
        if caps.max_cost is not None:
            self.currency = self.check_money()
        self.max_cost, self.max_tokens, self.max_requests = caps.max_cost, caps.max_tokens, caps.max_requests
        self._cap_money = None if caps.max_cost is None else math.floor(caps.max_cost * UNITS)
        # The first who waits looks again: there may be room now, or nothing left to wait for.
        if self._waiters:
            self._waiters[0].event.set()

    def use(self) -> BudgetUse:
        """Return the caps, what is spent, and what is reserved for the requests under way."""
        return BudgetUse(
            max_cost=self.max_cost,
            max_tokens=self.max_tokens,
            max_requests=self.max_requests,
            cost=self._money / UNITS,
            tokens=self._tokens,
            requests=self._requests,
            reserved_cost=self._held_money / UNITS,
            reserved_tokens=self._held_tokens,
            in_flight=self._held_requests,
            unmetered=self.unmetered,
            currency=self.currency,
        )

    # ---- reserving --------------------------------------------------------------------------------------------------

    def try_reserve(self, tokens: int, money: int = 0) -> bool:
        """Take one request with so many tokens and so much money (in a million-millionth) under the caps, if it fits.

        False if it has to wait for requests under way, or for its turn. Raises StoppedEarly if the budget is used
        up: the request would not fit even if all the others took nothing.
        """
        # Small requests would else overtake a large one without an end.
        if self._waiters and self.closed is None:
            return False
        return self._judge(tokens, money)

    async def reserve(self, tokens: int, money: int = 0) -> None:
        """Wait in turn until the request fits. Raises StoppedEarly; a cancelled wait takes nothing with it."""
        if self.try_reserve(tokens, money):
            return
        waiter = _Waiter()
        self._waiters.append(waiter)
        try:
            while not (self._waiters[0] is waiter or self.closed is not None) or not self._judge(tokens, money):
                waiter.event = anyio.Event()
                await waiter.event.wait()
        finally:
            self._waiters.remove(waiter)
            if self._waiters:
                self._waiters[0].event.set()

    def _judge(self, tokens: int, money: int) -> bool:
        """Take the request if it fits beside all others; raise StoppedEarly if it would not even fit alone."""
        if self.closed is None:
            self.closed = self._used_up(tokens, money)
        if self.closed is not None:
            # They wait for room that will never come.
            for waiter in self._waiters:
                waiter.event.set()
            raise StoppedEarly(self.closed.message, remedy=self.closed.remedy)
        if not self._fits(tokens, money):
            return False
        self._held_requests += 1
        self._held_tokens += tokens
        self._held_money += money
        return True

    def take_over(self, tokens: int, money: int, requests: int) -> None:
        """Reserve requests that an earlier run launched: nothing can stop them any more."""
        self._held_requests += requests
        self._held_tokens += tokens
        self._held_money += money

    def settle(
        self, tokens: int, money: int, *, used_tokens: int, used_money: int, counts: bool, requests: int = 1
    ) -> None:
        """Give a reservation back, and count what the requests really took. `counts`: they may have been sent."""
        self._held_requests -= requests
        self._held_tokens -= tokens
        self._held_money -= money
        self._requests += requests if counts else 0
        # Also of an attempt that does not count as a request: what was billed is billed.
        self._tokens += used_tokens
        self._money += used_money
        if self._waiters:
            self._waiters[0].event.set()

    def _fits(self, tokens: int, money: int) -> bool:
        """Return whether the request fits beside what is spent and what is under way."""
        return (
            (self.max_requests is None or self._requests + self._held_requests + 1 <= self.max_requests)
            and (self.max_tokens is None or self._tokens + self._held_tokens + tokens <= self.max_tokens)
            and (self._cap_money is None or self._money + self._held_money + money <= self._cap_money)
        )

    def _amount(self, money: int) -> str:
        return f"{_digits(money / UNITS)} {self.currency}"

    def _used_up(self, tokens: int, money: int) -> StoppedEarly | None:
        """Return why a request does not fit even with nothing under way; None if it does."""
        if self.max_requests is not None and self._requests + 1 > self.max_requests:
            message = f"budget.max_requests of {self.max_requests:,} is used up: that many requests were sent"
            return StoppedEarly(message, remedy=_REMEDY)
        if self.max_tokens is not None and self._tokens + tokens > self.max_tokens:
            spent = f"{self._tokens:,}" if self._tokens else ""
            return _stopped(f"max_tokens of {self.max_tokens:,}", spent, f"{tokens:,}")
        if self._cap_money is not None and self._money + money > self._cap_money:
            cap, next_one = f"max_cost of {self.max_cost:.15g} {self.currency}", self._amount(money)
            return _stopped(cap, self._amount(self._money) if self._money else "", next_one)
        return None


def _stopped(cap: str, spent: str, next_one: str) -> StoppedEarly:
    if not spent:
        message = f"budget.{cap} is too small: a single request may take {next_one}"
        return StoppedEarly(message, remedy=_TOO_SMALL)
    message = f"budget.{cap} is used up: {spent} is spent, and the next request may take {next_one} more"
    return StoppedEarly(message, remedy=_REMEDY)


def _digits(amount: float) -> str:
    """Write an amount with four digits that mean something, and never as a power of ten."""
    places = 2 if amount >= 10 or amount <= 0 else 3 - math.floor(math.log10(amount))
    return f"{amount:,.{places}f}".rstrip("0").rstrip(".")


class Account:
    """One run's hold on a budget: what tokens cost there. Made by `Budget.account`."""

    __slots__ = ("_budget", "_tariff")

    def __init__(self, budget: Budget, tariff: Tariff | None) -> None:
        self._budget = budget
        self._tariff = tariff

    def try_reserve(self, prompt: int, completion: int) -> Hold | None:
        """Reserve an attempt at once; None if it has to wait. Raises StoppedEarly: see `Budget`."""
        money = self.money(prompt, completion)
        taken = self._budget.try_reserve(prompt + completion, money)
        return Hold(self, prompt + completion, money) if taken else None

    async def reserve(self, prompt: int, completion: int) -> Hold:
        """Reserve an attempt with so many tokens at most; wait if it has to. Raises StoppedEarly: see `Budget`."""
        money = self.money(prompt, completion)
        await self._budget.reserve(prompt + completion, money)
        return Hold(self, prompt + completion, money)

    def bulk(self) -> Bulk:
        """Return a reservation that is still empty, for requests that are launched together."""
        return Bulk(self, self._budget)

    def money(self, prompt: int, completion: int) -> int:
        """Return the most that so many tokens can cost, in `money.UNITS`."""
        return 0 if self._tariff is None else self._tariff.at_most(prompt, completion)

    def settle(self, hold: Hold, reply: Reply | None) -> None:
        """Count what came of a reservation; see `Hold.settle`."""
        tokens, money = 0, 0
        if reply is not None and reply.usage is not None:
            usage = reply.usage
            prompt, completion, total = usage.prompt_tokens, usage.completion_tokens, usage.total_tokens
            tokens = hold.tokens if total is None else total
            metered = total is not None
            if prompt is not None and completion is not None:
                money = hold.money if reply.cost is None else reply.cost
            else:
                # What cannot be counted is taken to cost what was reserved for it.
                money, metered = hold.money, metered and self._tariff is None
            self._budget.unmetered += not metered
        self._budget.settle(
            hold.tokens,
            hold.money,
            used_tokens=tokens,
            used_money=money,
            counts=hold.launched if reply is None else reply.sent,
        )


class Hold:
    """A reservation for one attempt. Settle it exactly once; `launched` is to be set when the attempt begins."""

    __slots__ = ("_account", "launched", "money", "tokens")

    def __init__(self, account: Account, tokens: int, money: int) -> None:
        self._account: Account | None = account
        self.tokens = tokens
        self.money = money
        self.launched = False

    @property
    def open(self) -> bool:
        """Whether it is still to be settled."""
        return self._account is not None

    def settle(self, reply: Reply | None) -> None:
        """Give the reservation back and count what the attempt took: its usage if it was answered.

        None if no answer came: it counts as a request if it was `launched`. Raises RuntimeError when settled before.
        """
        account = self._account
        if account is None:
            raise RuntimeError("a reservation is settled once")
        self._account = None
        account.settle(self, reply)


class Bulk:
    """The reservation of many requests that are launched together: it grows one by one, and is settled one by one.

    It knows its sums alone, so that it takes the same memory for a million requests. The caller names the same tokens
    for a request when it adds and when it settles it.
    """

    __slots__ = ("_account", "_budget", "_money", "_requests", "_tokens")

    def __init__(self, account: Account, budget: Budget) -> None:
        self._account = account
        self._budget = budget
        self._requests = self._tokens = self._money = 0

    def try_add(self, prompt: int, completion: int) -> bool:
        """Add a request if it fits under the caps beside all others; False if it has to wait. Raises StoppedEarly."""
        money = self._account.money(prompt, completion)
        if not self._budget.try_reserve(prompt + completion, money):
            return False
        self._note(1, prompt + completion, money)
        return True

    def take_over(self, prompt: int, completion: int, requests: int) -> None:
        """Add requests that an earlier run launched, also if they pass the caps: nothing can stop them any more."""
        money = self._account.money(prompt, completion)
        self._budget.take_over(prompt + completion, money, requests)
        self._note(requests, prompt + completion, money)

    def settle(self, prompt: int, completion: int, reply: Reply) -> None:
        """Give one request's reservation back, and count what its reply tells; unknown usage is charged in full."""
        money = self._account.money(prompt, completion)
        if not self._requests:
            return  # a second answer to the same request: its reservation is gone
        self._note(-1, -(prompt + completion), -money)
        hold = Hold(self._account, prompt + completion, money)
        hold.launched = True
        hold.settle(reply)

    def release(self) -> None:
        """Give the rest back: those requests never ran."""
        if self._requests:
            self._budget.settle(
                self._tokens, self._money, used_tokens=0, used_money=0, counts=False, requests=self._requests
            )
        self._requests = self._tokens = self._money = 0

    def _note(self, requests: int, tokens: int, money: int) -> None:
        self._requests += requests
        self._tokens += tokens
        self._money += money
