"""The routes of batches: create, look, list, cancel."""

from __future__ import annotations

from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import Response

from batchchat.demo.batches.batch import Batch, BatchOrder, Stand
from batchchat.demo.batches.batches import queue_problem
from batchchat.demo.batches.checking import Checked, FileProblem, check_file
from batchchat.demo.batches.context import Context
from batchchat.demo.batches.dialects import ToldBatch
from batchchat.demo.batches.http import Cut, error_answer, json_answer, json_object, server_error
from batchchat.demo.request import ApiError

_PATIENCE_S = 0.25
"""How long a poll waits for a batch whose time is over and whose lines are not answered yet: most are within it."""

UNKNOWN_STATUS = "warming_up"


class BatchRoutes:
    """Handlers of the routes under /batches."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._faults = context.faults

    async def create(self, request: Request) -> Response:
        """Make a batch, or do what a fault says."""
        context, faults = self._context, self._faults
        asked = context.dialect.asked(await json_object(request), context.options.models)
        if faults.call("create_dropped"):
            return Cut(context.abort)
        if faults.call("create_503"):
            raise ApiError(503, "The service is overloaded, slow down.", type="server_error")
        if faults.call("create_402"):
            raise ApiError(402, "There is no credit left.", type="insufficient_quota", code="insufficient_credit")
        for status in (429, 400):
            if faults.call(f"create_{status}"):
                raise self._queue_error(status, None)
        batch = await anyio.to_thread.run_sync(self._make, asked)
        # Behind the making of the batch: it is there, and the client does not know it.
        if faults.batch("create_lost", batch.number):
            faults.befallen["create_lost"] += 1
            return Cut(context.abort)
        if faults.batch("create_500", batch.number):
            faults.befallen["create_500"] += 1
            raise server_error()
        await anyio.sleep(faults.seconds("create_slow"))
        told = self._tell(batch, Stand("validating"))
        return json_answer(context.dialect.created(told), context.dialect.created_status)

    def _make(self, asked: BatchOrder) -> Batch:
        context, faults = self._context, self._faults
        now = context.clock.now()
        record = context.files.find(asked.input_ref, now)
        # A file in a bucket has no record here: it is never in the making.
        if record is not None and now < record.usable:
            raise ApiError(400, "The file is not processed yet.", param="input_file_id", code="file_not_processed")
        scratch = context.scratch / "fetched.jsonl"
        found = context.place.fetch(asked.input_ref, scratch, now)
        if isinstance(found, FileProblem):
            checked, source = Checked.bad(found), None
        else:
            source = found
            checked = check_file(
                source,
                context.dialect.line_check(context.options.models),
                max_lines=faults.limit("max_lines"),
                bad_text=faults.text("bad_text"),
                alone=context.dialect.bad_lines_alone,
            )
        status = faults.number("queue_status") or context.dialect.queue_status
        full = context.batches.queue_problem(checked) if status else None
        if status and full is not None:
            raise self._queue_error(int(status), full)
        batch = context.batches.create(asked, source, checked)
        # The batch has a link of its own to what was fetched from a bucket.
        scratch.unlink(missing_ok=True)
        return batch

    def _queue_error(self, status: int, problem: FileProblem | None) -> ApiError:
        problem = problem or queue_problem(self._context.options.models[0], self._faults.number("queue_tokens"))
        return ApiError(status, problem.message, type="tokens", code=problem.code)

    def _visible(self, batch: Batch | None) -> bool:
        """Tell whether a batch is still kept."""
        if batch is None:
            return False
        return not (self._faults.batch("batch_gone", batch.number) and batch.outcome is not None)

    def _found(self, request: Request) -> Batch:
        """Return the batch that a path names. Raises ApiError (404)."""
        batch_id = request.path_params["id"]
        batch = self._context.batches.find(batch_id)
        if batch is None or not self._visible(batch):
            raise _no_batch(batch_id)
        return batch

    def _tell(self, batch: Batch, stand: Stand) -> dict[str, Any]:
        """Return a batch as the dialect writes it."""
        faults, dialect, batches = self._faults, self._context.dialect, self._context.batches
        counts = None if faults.flag("counts_null") else batches.counts(batch, stand)
        outcome = batch.outcome
        refs: tuple[str | None, str | None] = (None, None)
        late = faults.number("ids_late") or 0
        if outcome is None:
            refs = batches.unfinished_refs(batch) if dialect.partial_results else refs
        # A provider may say that a batch has ended before it names the files.
        elif not late or batches.looked_at_ended[batch.id] > late:
            refs = outcome.output_ref, outcome.error_ref
        status = stand.status
        if status == "in_progress" and faults.flag("unknown_status"):
            status = UNKNOWN_STATUS
        numbers = not faults.flag("no_line_number")
        told = dialect.batch(ToldBatch(batch, stand, status, counts, *refs, line_numbers=numbers))
        if faults.flag("ids_empty") or dialect.empty_ids:
            told.update({name: "" for name in ("output_file_id", "error_file_id") if told.get(name, "") is None})
        if faults.flag("ids_absent"):
            told = {name: value for name, value in told.items() if value is not None}
        return told

    def _looked(self, batches: list[Batch]) -> list[dict[str, Any]]:
        """Move batches on and tell them."""
        all_batches = self._context.batches
        all_batches.wait_for_work(batches, _PATIENCE_S)
        told = []
        for batch in batches:
            stand = all_batches.look(batch)
            # The look itself may have ended the batch, and a fault then hides it.
            if not self._visible(batch):
                continue
            all_batches.looked_at[batch.id] += 1
            all_batches.looked_at_ended[batch.id] += stand.ended
            told.append(self._tell(batch, stand))
        return told

    def _fail_poll(self) -> None:
        faults = self._faults
        if faults.call("poll_500"):
            raise server_error()
        if faults.call("poll_429"):
            raise ApiError(429, "Too many requests.", type="requests", code="rate_limit_exceeded")
        if faults.call("poll_401"):
            raise ApiError(401, "Incorrect API key provided.", code="invalid_api_key")

    async def look(self, request: Request) -> Response:
        """Tell about one batch."""
        self._fail_poll()
        batch = self._found(request)
        looked_at = self._context.batches.looked_at
        # A provider may not find a batch for some looks after it was created.
        if looked_at[batch.id] < (self._faults.number("batch_late") or 0):
            looked_at[batch.id] += 1
            raise _no_batch(batch.id)
        told = await anyio.to_thread.run_sync(self._looked, [batch])
        return json_answer(told[0]) if told else error_answer(_no_batch(batch.id))

    async def list(self, request: Request) -> Response:
        """List batches, newest first."""
        self._fail_poll()
        context = self._context
        youngest = context.clock.now() - self._faults.seconds("list_late")
        batches = [batch for batch in context.batches.all() if batch.created <= youngest and self._visible(batch)]
        ids = request.query_params.getlist("id")
        # Only some providers know this parameter; others pass over it.
        if ids and context.dialect.lists_by_id:
            page, beside = [batch for batch in batches if batch.id in ids], dict[str, Any]()
        else:
            page, beside = context.dialect.select(request.query_params, batches)
        told = await anyio.to_thread.run_sync(self._looked, page)
        return json_answer(context.dialect.page(told, beside))

    async def cancel(self, request: Request) -> Response:
        """Cancel a batch."""
        batch = self._found(request)
        if not await anyio.to_thread.run_sync(self._context.batches.cancel, batch):
            status = self._context.batches.look(batch).status
            raise ApiError(409, f"Cannot cancel a batch with status '{status}'.")
        return json_answer((await anyio.to_thread.run_sync(self._looked, [batch]))[0])


def _no_batch(batch_id: str) -> ApiError:
    return ApiError(404, f"No batch found with id '{batch_id}'.", param="id")
