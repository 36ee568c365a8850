"""The two large parts of Arrow, which are loaded when they are first used.

To import them takes as long as a fifth of all other work before the first request of a run, which needs neither: the
first part does. So rooms that every run imports take them from here. `load` is for the time when a run waits anyway.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyarrow import compute, parquet
else:

    class _Later(ModuleType):
        """Stands for a module, and imports it when something of it is asked for."""

        def __getattr__(self, name: str) -> Any:
            return getattr(import_module(self.__name__), name)

    compute = _Later("pyarrow.compute")
    parquet = _Later("pyarrow.parquet")

_SHORT_S = 0.0005
"""A tenth of Python's own interval: a request that is under way hardly waits for the import. Chosen, not measured."""

__all__ = ["compute", "load", "parquet"]


def load() -> None:
    """Import both now. Blocking code, which lets other threads run."""
    interval = sys.getswitchinterval()
    # Another thread, such as that of the event loop, waits this long for its turn while a module is executed.
    sys.setswitchinterval(_SHORT_S)
    try:
        import_module("pyarrow.compute")
        import_module("pyarrow.parquet")
    finally:
        sys.setswitchinterval(interval)
