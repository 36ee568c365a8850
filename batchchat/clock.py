"""The clock of a run: the event loop's, which anyio reads, and tests make virtual."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import anyio


def running_clock() -> Callable[[], float]:
    """Return what reads the clock of the event loop that is running: `anyio.current_time`, found once and for all.

    Looking for the loop is most of the time that reading its clock takes.
    """
    try:
        return asyncio.get_running_loop().time
    except RuntimeError:  # another kind of loop
        return anyio.current_time
