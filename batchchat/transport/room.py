"""How many connections this process may hold: each is an open file, and the system bounds those."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

RESERVED = 32
"""Open files for everything else: journal, parts, input, event loop, whatever an imported library opens."""
_WANTED = (65_536, 10_240)
"""Open files to ask for, the first that the system grants. 10,240 is what macOS allows at most (`OPEN_MAX`)."""


def allow_many_files() -> None:
    """Raise the soft limit of open files towards the hard one, as far as the system lets us.

    Shells start programs with few (1024, or 256 on macOS) for the sake of programs that use `select`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for most in _WANTED:
        wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
        if soft == resource.RLIM_INFINITY or wanted <= soft:
            return
        with suppress(ValueError, OSError):  # macOS has a bound of its own below the hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return


def connection_room(files_each: int = 1) -> int:
    """Return how many connections of so many open files each can be opened; at least 1."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        soft = _WANTED[0]
    try:
        used = sum(1 for _ in Path("/dev/fd").iterdir())
    except OSError:
        used = RESERVED
    return max(1, (soft - used - RESERVED) // files_each)
