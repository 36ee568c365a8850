"""The side of a worker: it claims shards, runs the job over them, and tells how that goes."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from batchchat.errors import BatchchatError
from batchchat.events import Event, RunSummary, Snapshot
from batchchat.records import Record
from batchchat.runner.control import Ceilings, Control
from batchchat.runner.options import RunOptions
from batchchat.runner.run import run_job
from batchchat.runner.run_summary import plain
from batchchat.workers.limits import Connected, connect_limits
from batchchat.workers.messages import Message, ordered_job, ordered_options

Receive = Callable[[], Awaitable[Message | None]]
"""Waits for the next message of the coordinator; None if it has died."""
Send = Callable[[Message], Awaitable[None]]
"""Sends a message to the coordinator, and returns when it may have the next one."""

_GONE = "the coordinator of the run has ended: what is in flight may end, and the same command goes on"
_GONE_CODE = 70
_LATE_S = 5.0
"""Seconds beyond the grace that a run has to write down what it has, once the coordinator is gone."""
_MOST_ANSWERS = 10_000
"""Figures of answers that wait for a coordinator which does not read, at most: later ones are left out of metrics."""


async def work(
    receive: Receive, send: Send, *, control: Control | None = None, run: Callable[..., Awaitable[RunSummary]] = run_job
) -> int:
    """Be a worker until the coordinator says that nothing is left; return the exit code of the process.

    `control` can stop the worker, as a signal does. `run` takes the place of `run_job`.
    """
    order = await receive()
    if order is None or order.get("do") != "begin":
        return 70
    messages = MessageQueue(send)
    worker = _Worker(order, messages, control or Control(), run)
    async with anyio.create_task_group() as group, worker.claims_in, worker.claims:
        group.start_soon(messages.run)
        group.start_soon(worker.listen, receive)
        with worker.scope:
            await worker.run()
            # A coordinator that has died reads nothing: then this is cancelled.
            await messages.flush()
        group.cancel_scope.cancel()
    return 70 if worker.scope.cancelled_caught else 0


class MessageQueue:
    """What waits to be sent. Of snapshots only the newest waits, so that a slow reader delays none of the rest."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: deque[Message] = deque()
        self._snapshot: Message | None = None
        self._answers: list[Any] = []
        self._wake = anyio.Event()
        self._idle = anyio.Event()

    def put(self, message: Message) -> None:
        """Take a message over; on the event loop. A snapshot that waits goes before it: it tells of the time before."""
        if self._snapshot is not None:
            self._waiting.append(self._snapshot)
            self._snapshot = None
        self._waiting.append(message)
        self._rouse()

    def put_from_anywhere(self, message: Message) -> None:
        """Take a message over from any thread; it goes with the next snapshot, a quarter of a second later at most."""
        self._waiting.append(message)

    def put_snapshot(self, snapshot: Message) -> None:
        """Take a snapshot over, in place of one that was not sent yet."""
        self._snapshot = {"is": "snapshot", "snapshot": snapshot}
        self._rouse()

    def put_answer(self, record: Record) -> None:
        """Take the figures of an answer over; they go with the next snapshot."""
        if len(self._answers) < _MOST_ANSWERS and record.attempts and not record.cache_hit:
            figures = (record.latency_s, record.prompt_tokens, record.completion_tokens)
            self._answers.append((record.model, record.error_kind, *figures))

    def _rouse(self) -> None:
        self._idle = anyio.Event() if self._idle.is_set() else self._idle
        self._wake.set()

    async def run(self) -> None:
        """Send what is put, in order, until it is cancelled."""
        while True:
            while self._waiting or self._snapshot is not None:
                if self._waiting:
                    await self._send(self._waiting.popleft())
                    continue
                snapshot, self._snapshot = self._snapshot, None
                if snapshot is not None:
                    await self._send(snapshot)
            answers, self._answers = self._answers, []
            if answers:
                await self._send({"is": "answers", "answers": answers})
                continue
            self._idle.set()
            self._wake = anyio.Event()
            await self._wake.wait()

    async def flush(self) -> None:
        """Wait until everything that was put is sent."""
        self._wake.set()
        while self._waiting or self._snapshot is not None or not self._idle.is_set():
            await self._idle.wait()


class _Worker:
    """A worker that knows its job."""

    def __init__(
        self, order: Message, messages: MessageQueue, control: Control, run: Callable[..., Awaitable[RunSummary]]
    ) -> None:
        self._order = order
        self._messages = messages
        self._control = control
        self.scope = anyio.CancelScope()
        self._sends = False
        self._run_job = run
        self.claims_in: MemoryObjectSendStream[Message | None]
        self.claims: MemoryObjectReceiveStream[Message | None]
        self.claims_in, self.claims = anyio.create_memory_object_stream(8)

    async def listen(self, receive: Receive) -> None:
        """Take what the coordinator tells, for as long as there is one."""
        while True:
            message = await receive()
            if message is None:
                # Nobody waits for an answer: end in order, so that the next run finds everything sealed.
                self._control.stop(reason=_GONE, exit_code=_GONE_CODE)
                if self._sends:
                    await anyio.sleep(self._order["options"]["grace"] + _LATE_S)
                # It may be waiting for the coordinator's broker, which will not come back.
                self.scope.cancel()
                return
            await self._take(message)

    async def _take(self, message: Message) -> None:
        control, what = self._control, message["do"]
        if what == "work":
            await self.claims_in.send(message)
        elif what == "end":
            await self.claims_in.send(None)
        elif what == "stop":
            control.set({"grace": message["grace"]})
            while control.asked < message["times"]:
                control.stop(reason=message["reason"], exit_code=message["exit_code"])
        elif what == "pause":
            control.pause(since=message.get("since"), by=message.get("by"))
        elif what == "resume":
            control.resume()
        elif what == "retune":
            control.retune(Ceilings(**message["ceilings"]))

    async def run(self) -> None:
        """Claim and run shards until nothing is left."""
        order = self._order
        job, options = ordered_job(order), ordered_options(order["options"])
        # The coordinator keeps these two over all workers.
        job = job.model_copy(update={"deadline": None, "limits": job.limits.model_copy(update={"max_failed": None})})
        async with connect_limits(job, order) as limits:
            while not self._control.asked:
                self._messages.put({"is": "claim"})
                claim = await self.claims.receive()
                if claim is None:
                    return
                take_over = options.take_over or bool(claim.get("take_over"))
                await self._run_shards(replace(options, shards=tuple(claim["shards"]), take_over=take_over), limits)

    async def _run_shards(self, options: RunOptions, limits: Connected) -> None:
        shards = list(options.shards or ())
        try:
            summary = await self._run_job(
                limits.job,
                options=options,
                budget=limits.budget,
                **({} if limits.environ is None else {"environ": limits.environ}),
                listener=self._tell,
                on_snapshot=self._show,
                on_record=self._messages.put_answer if self._order.get("answers") else None,
                stop=self._control,
                demo_url=self._order.get("demo_url"),
            )
        except BatchchatError as error:
            told = {"message": error.message, "remedy": error.remedy, "exit_code": error.exit_code}
            self._messages.put({"is": "lost", "shards": shards, **told})
        else:
            self._messages.put({"is": "done", "shards": shards, "summary": plain(summary)})
        finally:
            self._sends = False

    def _tell(self, event: Event) -> None:
        told = {"name": event.name, "message": event.message, "level": event.level, "fields": dict(event.fields)}
        self._messages.put_from_anywhere({"is": "event", "event": told})

    def _show(self, snapshot: Snapshot) -> None:
        self._sends = True
        self._messages.put_snapshot(plain(snapshot))
