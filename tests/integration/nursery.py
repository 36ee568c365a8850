"""A process that has imported batchchat and forks one child for each order: `python -m tests.integration.nursery FD`.

Its children are processes of their own, with their own streams, signals and limits, and end as any process does. They
only save what a start costs, which is a second of imports. An order comes as one datagram on the socket `FD`: JSON, and
four descriptors (standard input, output and error, and a socket that is told the child's pid, then how it ended).
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import resource
import signal
import socket
import struct
import sys
import warnings
from typing import Any

STATUS = struct.Struct("=i")
ORDER_BYTES = 2**18
_IMPORTED = (
    "batchchat.runner.run",
    "batchchat.planning",
    "batchchat.export",
    "batchchat.inspection",
    "batchchat.cli.display",
    "batchchat.cli.reading",
    "batchchat.cli.plan_page",
    "batchchat.cli.record_page",
    "batchchat.cli.status_page",
    "batchchat.cli.summary_page",
    "batchchat.cli.running",
    "batchchat.cli.starting",
    "batchchat.demo",
    "batchchat.transport",
    "anyio._backends._asyncio",
    "rich.console",
    "rich.live",
    "tests.integration.crash_child",
    "uvloop",
)


def main(descriptor: str) -> None:
    """Fork a child for each order, until the other end of the socket is closed."""
    for name in _IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    # Whoever waits for a child is forked too: nobody is left to be waited for here.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(fileno=int(descriptor)) as orders:
        while True:
            data, descriptors, _, _ = socket.recv_fds(orders, ORDER_BYTES, 4)
            if not data:
                return
            if _fork() == 0:
                orders.close()
                _keep(json.loads(data), descriptors)
                return
            for each in descriptors:
                os.close(each)


def _fork() -> int:
    with warnings.catch_warnings():
        # The one thread beside this is jemalloc's, which knows about forks.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        return os.fork()


def _keep(order: dict[str, Any], descriptors: list[int]) -> None:
    """Fork the child itself and report its end. Returns in the child only, after its work, so that it ends normally."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    streams, status = descriptors[:3], descriptors[3]
    child = _fork()
    if child:
        for each in (0, 1, 2, *streams):
            os.close(each)
        os.write(status, STATUS.pack(child))
        _, ended = os.waitpid(child, 0)
        os.write(status, STATUS.pack(os.waitstatus_to_exitcode(ended)))
        os._exit(0)
    os.close(status)
    for number, each in enumerate(streams):
        os.dup2(each, number)
        os.close(each)
    _become(order)
    module, _, function = order["entry"].partition(":")
    sys.argv = [order["name"], *order["arguments"]]
    getattr(importlib.import_module(module), function)()


def _become(order: dict[str, Any]) -> None:
    """Take on what a freshly started process would have: streams, folder, environment, limits."""
    sys.stdin = os.fdopen(0, "r", encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, "utf-8", "backslashreplace", closefd=False)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    for number, usual in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        # Tests that run under nohup, or in the background of a shell, would hand on what they ignore.
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)
    for name in order["ignore"]:
        signal.signal(signal.Signals(name), signal.SIG_IGN)
    for kind, value in order["limits"]:
        resource.setrlimit(kind, (value, value))
    if order["powerless"]:
        _drop_capabilities()


def _drop_capabilities() -> None:
    """Let permissions hold for root too (Linux, capset(2), version 3)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(struct.pack("=Ii", 0x20080522, 0), bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


if __name__ == "__main__":
    main(sys.argv[1])
