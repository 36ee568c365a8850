"""The part of a Batch API that is about batches: create, find, look, cancel."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final
from urllib.parse import quote

import orjson

from batchchat.client.problems import read_problem
from batchchat.engines.batch.service import Gone, OutcomeUnknown, RemoteBatch, Unavailable
from batchchat.engines.batch.services.dialects import BatchDialect
from batchchat.engines.batch.services.http import Http, HttpAnswer
from batchchat.engines.batch.services.problems import Call, refusal
from batchchat.engines.batch.services.shapes import batches_in, creation, next_page, read_batch
from batchchat.errors import NeedsHuman

_FEW: Final = 2
"""Up to so many batches are asked for one by one: a list of 100 is the larger answer."""
_POLL_PAGES: Final = 5
"""Pages of a list that one look reads. What stands further behind is asked for one by one."""
_FIND_PAGES: Final = 100
SKEW_S: Final = 300.0
"""How far the provider's clock may be from ours."""


class BatchCalls:
    """The batches of one account at one provider."""

    def __init__(self, http: Http, dialect: BatchDialect, *, window: str) -> None:
        self._http = http
        self._dialect = dialect
        self._window = window

    async def preflight(self) -> None:
        """Ask for one batch of the list: it tells whether the address, the key and its permissions are right."""
        query = dict.fromkeys(self._dialect.jobs_query, "1")
        answer = await self._http.ask(Call.CHECK, "GET", self._dialect.jobs_path, query=query)
        data = answer.data
        if not isinstance(data, list) and not (isinstance(data, dict) and isinstance(data.get("data", []), list)):
            raise refusal(Call.CHECK, 404, answer.body, party=self._http.party, mask=self._http.mask)

    async def create(self, input_ref: str, labels: Mapping[str, str], *, model: str | None) -> RemoteBatch:
        """Create a batch with one request. Raises what `BatchService.create` says."""
        body = creation(self._dialect, input_ref, labels, window=self._window, model=model)
        answer = await self._http.ask(Call.CREATE, "POST", self._dialect.jobs_path, json=orjson.dumps(body))
        batch = read_batch(self._dialect, answer.data)
        if batch is None:
            raise OutcomeUnknown(f"{self._http.party.name} answered a create with HTTP {answer.status} and no batch")
        return batch

    async def find(self, input_ref: str, labels: Mapping[str, str], since: float) -> list[RemoteBatch]:
        """Return the batches of this input or with these labels that were created after `since`, oldest first."""
        found: dict[str, RemoteBatch] = {}
        oldest: float | None = None
        async with aclosing(self._pages(_FIND_PAGES)) as pages:
            async for page in pages:
                for batch in page:
                    if _is_ours(batch, input_ref, labels, since):
                        found[batch.id] = batch
                times = [batch.created_at for batch in page]
                known = [time for time in times if time is not None]
                falling = len(known) == len(times) and known == sorted(known, reverse=True)
                falling = falling and bool(known) and (oldest is None or known[0] <= oldest)
                # Only a list with the newest first tells that nothing newer follows.
                if falling and known[-1] < since - SKEW_S:
                    break
                oldest = known[-1] if falling else float("-inf")
        return sorted(found.values(), key=lambda batch: batch.created_at or 0.0)

    async def poll(self, ids: Sequence[str]) -> dict[str, RemoteBatch]:
        """Return the batches with these ids, with as few requests as the dialect allows."""
        wanted = set(ids)
        found: dict[str, RemoteBatch] = {}
        at_once = self._dialect.ids_at_once
        # One id is asked for by itself, which every provider can.
        if len(wanted) > 1 and at_once:
            ordered = sorted(wanted)
            for start in range(0, len(ordered), at_once):
                query = [("id", each) for each in ordered[start : start + at_once]]
                _note(found, wanted, batches_in(self._dialect, await self._list(query)))
        elif len(wanted) > _FEW:
            async with aclosing(self._pages(max(_POLL_PAGES, len(wanted) // 50))) as pages:
                async for page in pages:
                    _note(found, wanted, page)
                    if len(found) == len(wanted):
                        break
        for each in sorted(wanted - found.keys()):
            batch = await self._one(each)
            if batch is not None:
                found[each] = batch
        return found

    async def cancel(self, batch_id: str) -> None:
        """Ask to cancel a batch. If it has ended, or is being cancelled, that is no error. Raises Gone."""
        try:
            await self._http.ask(Call.CHANGE, "POST", f"{self._place(batch_id)}/cancel")
        except (Gone, Unavailable) as error:
            # A refusal may mean that it has ended. What the batch itself says is surer than words.
            batch = await self._one(batch_id)
            if batch is None:
                raise Gone(f"{self._http.party.name} knows no batch {batch_id}") from None
            if batch.ended or batch.status == "cancelling":
                return
            if isinstance(error, Gone):
                raise NeedsHuman(
                    f"{self._http.party.name} offers no way to cancel a batch through its API",
                    remedy=f"Cancel the batch {batch_id} in the provider's console, or let it end.",
                ) from None
            raise

    def _place(self, batch_id: str) -> str:
        return f"{self._dialect.jobs_path}/{quote(batch_id, safe='')}"

    async def _one(self, batch_id: str) -> RemoteBatch | None:
        """Return one batch, None if the provider does not know it."""
        try:
            answer = await self._http.ask(Call.LOOK, "GET", self._place(batch_id))
        except Gone:
            return None
        batch = read_batch(self._dialect, answer.data)
        if batch is None:
            # Some tell HTTP 200 and an error inside.
            problem = read_problem(answer.data, answer.body, self._http.mask, bare=True)
            if problem.status == 404:
                return None
            raise Unavailable(f"{self._http.party.name} told nothing of the batch {batch_id}: {problem.message}")
        return batch

    async def _pages(self, most: int) -> AsyncGenerator[list[RemoteBatch], None]:
        """Yield the pages of the list of batches, `most` of them at most."""
        query: dict[str, str] = {}
        for number in range(most):
            data = await self._list({**self._dialect.jobs_query, **query})
            yield batches_in(self._dialect, data)
            following = next_page(self._dialect, data, number)
            # Some lists name the same page as the next one, without an end.
            if following is None or following == query:
                return
            query = following

    async def _list(self, query: Mapping[str, str] | list[tuple[str, str]]) -> Any:
        try:
            answer: HttpAnswer = await self._http.ask(Call.LOOK, "GET", self._dialect.jobs_path, query=query)
        except Gone as error:
            # There was a list when the run began.
            raise Unavailable(str(error)) from None
        data = answer.data
        if not isinstance(data, list | dict) or (isinstance(data, dict) and not isinstance(data.get("data", []), list)):
            raise Unavailable(f"{self._http.party.name} answered with something else than a list of batches")
        return data


def _note(found: dict[str, RemoteBatch], wanted: set[str], page: Iterable[RemoteBatch]) -> None:
    found.update({batch.id: batch for batch in page if batch.id in wanted})


def _is_ours(batch: RemoteBatch, input_ref: str, labels: Mapping[str, str], since: float) -> bool:
    """Return whether a batch was created by one certain create.

    Its labels tell if they came back. The input alone may have been used by an earlier create, so then the time counts.
    """
    told = batch.labels or {}
    shared = labels.keys() & told.keys()
    if shared:
        return all(told[name] == labels[name] for name in shared)
    return batch.input_ref == input_ref and (batch.created_at is None or batch.created_at >= since - SKEW_S)
