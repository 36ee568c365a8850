"""Workers as actors on a Ray cluster. Nothing else of the package imports Ray.

Ray places the actors, carries messages, and says which node died. It holds no row and no answer, tries no call again,
and starts no actor again: a dead worker is the coordinator's matter, which starts another one. All actors end with the
process that started them.

Secrets go to a worker in its first call. In a `runtime_env`, or among the arguments of a constructor, Ray would keep
them, and show them in its dashboard.
"""

from __future__ import annotations

import io
import logging
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext, redirect_stdout, suppress
from functools import partial
from typing import Any, TextIO

# Set before Ray is imported: it tells nobody of this use, and does not warn of what a later version will do.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import anyio
import anyio.to_thread
import orjson
import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from batchchat import __version__
from batchchat.endpoints.registry import needs_demo
from batchchat.errors import BatchchatError, ProviderUnavailable, UsageError
from batchchat.job import Job
from batchchat.workers.messages import Message
from batchchat.workers.port import WorkerEnd
from batchchat.workers.ray_actor import WorkerActor, look_around
from batchchat.workers.ray_setting import Probe, passed_environment, probing

_CONNECT_S = 30.0
"""Seconds for a cluster to answer; Ray by itself tries for minutes, and ends the process if that fails."""
_LOOK_S = 60.0
"""Seconds for all nodes to say what they see. A node that is later is asked again when a worker is started on it."""
_PLACE_S = 300.0
"""Seconds without any worker after which a run gives up: a cluster that grows by itself needs minutes for a node."""
_AGAIN_S = 2.0
"""Seconds between tries to start a worker."""
_DEATH_S = 5.0
"""Seconds that a node or the head has for a call at the end of a worker."""
_START_REMEDY = "Start one with `ray start --head`, or give its address, such as `--ray 10.0.0.5:6379`."


@asynccontextmanager
async def open_cluster(job: Job, address: str, environ: Mapping[str, str]) -> AsyncIterator[RayActors]:
    """Connect to a Ray cluster, check that its nodes can run the job, and yield a launcher of workers there.

    Arguments:
        job: what is going to run.
        address: HOST:PORT of the cluster's head, or `auto` for the one that runs on this machine.
        environ: the environment, of which workers get the keys of the job and the credentials of object storage.

    Raises UsageError if the nodes cannot run the job, ProviderUnavailable if the cluster does not answer.
    """
    # A process that uses Ray itself, such as a notebook, keeps its connection.
    ours = not ray.is_initialized()
    if ours:
        await _connect(address)
    try:
        nodes = await anyio.to_thread.run_sync(_nodes)
        _check_job(job, nodes)
        with probing(job) as probe:
            await _check_nodes(nodes, probe)
        # Standard output is for results: a summary as JSON must stay one.
        with redirect_stdout(_WithoutRay(sys.stdout)) if ours else nullcontext():
            yield RayActors(job, passed_environment(job, environ))
    finally:
        if ours:
            # At its end Ray prints what it had kept back, from the thread that ends it.
            quiet = redirect_stdout(io.StringIO())
            with quiet, anyio.CancelScope(shield=True), anyio.move_on_after(_CONNECT_S):
                await anyio.to_thread.run_sync(ray.shutdown, abandon_on_cancel=True)


class _WithoutRay(io.TextIOBase):
    """A stream that leaves out what threads of Ray print, such as the log of a node that died."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, unless a thread of Ray prints it."""
        return len(text) if threading.current_thread().name.startswith("ray_") else self._stream.write(text)

    def flush(self) -> None:
        """Flush the stream behind it."""
        self._stream.flush()


async def _connect(address: str) -> None:
    """Connect this process to a cluster, within a bounded time. Raises UsageError or ProviderUnavailable."""
    if "://" in address:
        raise UsageError(
            f"--ray {address}: a process outside of the cluster cannot lead workers, which connect to it",
            remedy="Start it on a node of the cluster with --ray auto, such as by `ray job submit -- batchchat run …`.",
        )
    if address != "auto":
        await _knock(address)
    # What Ray says of itself would stand in our display; what matters comes as an error.
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    connect = partial(ray.init, address=address, log_to_driver=False, logging_level="CRITICAL", configure_logging=False)
    unreachable = f"the Ray cluster at {address} does not answer"
    try:
        with anyio.fail_after(_CONNECT_S):
            await anyio.to_thread.run_sync(connect, abandon_on_cancel=True)
    except TimeoutError:
        raise ProviderUnavailable(f"{unreachable} within {_CONNECT_S:g} s", remedy=_START_REMEDY) from None
    except (ConnectionError, ValueError) as error:
        if address == "auto" and isinstance(error, ConnectionError):
            raise ProviderUnavailable("--ray auto: no Ray cluster runs here", remedy=_START_REMEDY) from None
        raise ProviderUnavailable(f"{unreachable}: {_first_line(error)}", remedy=_START_REMEDY) from None
    except RuntimeError as error:
        # So Ray says that the cluster has another version of Ray or Python.
        raise UsageError(
            f"the Ray cluster at {address} does not fit: {' '.join(str(error).split())[:400]}",
            remedy="Install the same versions of Python and Ray here and on all nodes.",
        ) from None


async def _knock(address: str) -> None:
    """See that something listens at an address: Ray ends the process if nothing does."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(
            f"--ray {address[:80]!r} is neither auto nor of the form HOST:PORT",
            remedy="Such as `--ray 10.0.0.5:6379`: the address that `ray start --head` tells.",
        )
    try:
        with anyio.fail_after(_CONNECT_S / 3):
            await (await anyio.connect_tcp(host.strip("[]"), int(port))).aclose()
    except (OSError, TimeoutError, socket.gaierror) as error:
        reason = "no answer" if isinstance(error, TimeoutError) else _first_line(error)
        raise ProviderUnavailable(
            f"the Ray cluster at {address} cannot be reached: {reason}", remedy=_START_REMEDY
        ) from None


def _nodes() -> list[dict[str, Any]]:
    """Return the nodes that can run a worker."""
    return [node for node in ray.nodes() if node["Alive"] and node.get("Resources", {}).get("CPU", 0) > 0]


def _check_job(job: Job, nodes: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what is about one machine if the workers are on several. Raises UsageError."""
    here = ray.util.get_node_ip_address()
    if needs_demo(job) and any(node["NodeManagerAddress"] != here for node in nodes):
        raise job.error(
            "`demo` starts a server that answers on this machine alone, and the Ray cluster has other ones",
            "provider",
            remedy="Start `batchchat demo-server --host 0.0.0.0`, and give its address as provider.base_url.",
        )
    if job.limits.shared is True and len(nodes) > 1:
        raise job.error(
            "true shares limits on one machine, and the Ray cluster has several nodes",
            "limits",
            "shared",
            remedy="Leave it out: the workers of one run share its limits anyway. With other runs, name a broker.",
        )


async def _check_nodes(nodes: Sequence[Mapping[str, Any]], probe: Probe) -> None:
    """Ask each node whether it sees what a worker needs. Raises UsageError if one does not."""
    look = ray.remote(look_around)
    places = {}
    for node in nodes:
        where = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        places[node["NodeID"]] = look.options(num_cpus=0, max_retries=0, scheduling_strategy=where).remote(
            probe.told(), __version__
        )
    with anyio.move_on_after(_LOOK_S):
        for node in nodes:
            try:
                problem = await places[node["NodeID"]]
            except ray.exceptions.RayError as error:
                problem = _problem_of(error)
            if problem is not None:
                raise _unfit(node["NodeManagerAddress"], problem)


def _unfit(place: str, problem: Sequence[str]) -> UsageError:
    return UsageError(f"a worker cannot run on the Ray node {place}: {problem[0]}", remedy=problem[1])


def _problem_of(error: Exception) -> tuple[str, str] | None:
    """Return what an error of Ray says about a node, and its remedy; None if the node is only gone."""
    if "No module named" in str(error):
        return (
            "it has no batchchat",
            f"Install batchchat[ray]=={__version__} on every node, such as in the cluster's container image.",
        )
    dead = (ray.exceptions.ActorDiedError, ray.exceptions.ActorUnavailableError, ray.exceptions.WorkerCrashedError)
    gone = (*dead, ray.exceptions.NodeDiedError, ray.exceptions.TaskUnschedulableError)
    return None if isinstance(error, gone) else (_first_line(error), "Look into Ray's own logs of that node.")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


class PlacedActor(WorkerActor):
    """A worker's process that knows on which node of Ray it is."""

    def begin(self, probe: Mapping[str, Any], version: str, environ: Mapping[str, str]) -> dict[str, Any]:
        """Begin as any worker, and tell the node too."""
        node = {"node": ray.get_runtime_context().get_node_id(), "ip": ray.util.get_node_ip_address()}
        return {**super().begin(probe, version, environ), **node}


class RayActors:
    """Starts workers as actors of the Ray cluster to which this process is connected. Made by `open_cluster`."""

    def __init__(self, job: Job, environ: Mapping[str, str]) -> None:
        self.host: str | None = ray.util.get_node_ip_address()
        self._job = job
        self._environ = environ
        self._living: set[str] = set()

    async def start(self, name: str) -> RayActor:
        """Start a worker on a node that has a free CPU, and wait for one as long as other workers live.

        Raises UsageError if the node cannot run the job, ProviderUnavailable if no node has a place.
        """
        ends = anyio.current_time() + _LOOK_S
        while True:
            try:
                return await self._try_to_start(name)
            except ray.exceptions.RayError as error:
                # Ray places workers on a node that died until it has missed it. This one has no order yet.
                problem = _problem_of(error)
                if problem is not None or anyio.current_time() > ends:
                    said = problem or (_first_line(error), "The same command goes on.")
                    message = f"worker {name} cannot be started on Ray: {said[0]}"
                    raise BatchchatError(message, remedy=said[1]) from None
            await anyio.sleep(_AGAIN_S)

    async def _try_to_start(self, name: str) -> RayActor:
        """Start a worker. Raises RayError if it dies before it has begun."""
        # Ray starts no actor again and makes no call twice: both could pay twice. Two calls overlap: tell and hear.
        options = {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0, "max_concurrency": 4}
        handle = ray.remote(PlacedActor).options(**options).remote()
        began = False
        try:
            with probing(self._job) as probe:
                seen = await self._placed(handle.begin.remote(probe.told(), __version__, dict(self._environ)))
            if seen["problem"] is not None:
                raise _unfit(seen["ip"], seen["problem"])
            began = True
        finally:
            if not began:
                ray.kill(handle)
        self._living.add(name)
        return RayActor(handle, seen, partial(self._living.discard, name))

    async def _placed(self, call: Any) -> dict[str, Any]:
        """Wait until a worker has a place and has begun."""
        future = call.future()
        waited = 0.0
        while not future.done():
            await anyio.sleep(0.1)
            waited = 0.0 if self._living else waited + 0.1
            if waited > _PLACE_S:
                raise ProviderUnavailable(
                    f"no node of the Ray cluster has had a free CPU for {_PLACE_S:g} s",
                    remedy="Add nodes, or end other work on the cluster; `ray status` shows what is in use.",
                )
        result: dict[str, Any] = future.result()
        return result


class RayActor:
    """A worker in an actor. `seen` is what it said of its place; `gone` is called when it has ended."""

    def __init__(self, handle: Any, seen: Mapping[str, Any], gone: Any) -> None:
        self._handle = handle
        self._seen = seen
        self._gone = gone
        self._telling = anyio.Lock()
        self._end: WorkerEnd | None = None
        self._ended = anyio.Event()

    @property
    def place(self) -> str:
        """Which process of which node it is."""
        return f"node {self._seen['node'][:8]} at {self._seen['ip']}, pid {self._seen['pid']}"

    async def tell(self, message: Message) -> None:
        """Call the actor, and wait until it has the message, so that the next one cannot overtake it."""
        with suppress(ray.exceptions.RayError):
            async with self._telling:
                if self._end is None:
                    await self._handle.tell.remote(orjson.dumps(message))

    async def messages(self) -> AsyncIterator[Message]:
        """Ask the actor for what it has to tell, again and again, until it ends."""
        while self._end is None:
            try:
                said, code, reason = await self._handle.hear.remote()
            except ray.exceptions.RayError as error:
                self._finish(WorkerEnd(clean=False, reason=await self._why(error)))
                return
            for message in said:
                yield orjson.loads(message)
            if code is not None:
                self._finish(WorkerEnd(clean=code == 0, reason=reason))

    def _finish(self, end: WorkerEnd) -> None:
        self._end = self._end or end
        self._gone()
        self._ended.set()

    async def _why(self, error: Exception) -> str:
        """Say why the actor died: its node, or its process alone."""
        if "node has died" in str(error) or await self._node_died():
            return f"its Ray node {self._seen['node'][:8]} at {self._seen['ip']} died"
        cause = "out of memory" if isinstance(error, ray.exceptions.OutOfMemoryError) else "killed, or crashed"
        return f"its process ended ({cause}), and its Ray node lives"

    async def _node_died(self) -> bool:
        """Knock at the node: Ray itself needs ten seconds and more to miss one."""
        with anyio.move_on_after(_DEATH_S):
            nodes = await anyio.to_thread.run_sync(ray.nodes, abandon_on_cancel=True)
            node = next((node for node in nodes if node["NodeID"] == self._seen["node"] and node["Alive"]), None)
            if node is None:
                return True
            try:
                await (await anyio.connect_tcp(node["NodeManagerAddress"], node["NodeManagerPort"])).aclose()
            except OSError:
                return True
            return False
        return True

    async def wait(self) -> WorkerEnd:
        """Wait until it has ended, which `messages` learns."""
        await self._ended.wait()
        return self._end or WorkerEnd(clean=False)

    async def kill(self) -> None:
        """Have Ray end the process of the actor."""
        self._finish(WorkerEnd(clean=False, reason="killed"))
        # A head that does not answer must not hold the end of the run up; the actor ends with this process anyway.
        with anyio.move_on_after(_DEATH_S), suppress(Exception):
            await anyio.to_thread.run_sync(partial(ray.kill, self._handle), abandon_on_cancel=True)
