"""What a run uses of Arrow's large parts, without importing more of them than it needs.

`pyarrow.compute` makes a Python function of each of 300 kernels when it is imported, which takes as long as a tenth of
all else before the first request. The kernels that every run needs are called here without it. Rooms that every run
imports take `compute` and `parquet` from here, too: these are imported when something of them is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import compute, parquet
else:

    class _Later(ModuleType):
        """Stands for a module, and imports it when something of it is used."""

        def __getattr__(self, name: str) -> Any:
            value = getattr(import_module(self.__name__), name)
            # The next one who asks finds it here, without a call.
            setattr(self, name, value)
            return value

    compute = _Later("pyarrow.compute")
    parquet = _Later("pyarrow.parquet")

__all__ = ["call", "compute", "counted", "kept", "load", "options", "parquet", "sort_indices", "take"]


def load() -> None:
    """Import what every run needs to write its first part. Blocking code, for a time when a run waits anyway."""
    _kernels()
    import_module("pyarrow.parquet")


def call(kernel: str, *values: Any, options: Any = None) -> Any:
    """Return what one of Arrow's kernels makes of arrays, tables and scalars, as the function of its name does."""
    return _kernels().call_function(kernel, list(values), options)


@cache
def _kernels() -> ModuleType:
    """Return the module that calls kernels: the compiled one, of which `pyarrow.compute` offers the same functions."""
    try:
        return import_module("pyarrow._compute")
    except ImportError:  # its name is Arrow's own, and may change
        return import_module("pyarrow.compute")


def options(kind: str, *values: Any) -> Any:
    """Return the options of a kernel: those of the class `<kind>Options`."""
    return getattr(_kernels(), f"{kind}Options")(*values)


def kept(rows: Any, mask: pa.Array) -> Any:
    """Return the rows of an array, a batch or a table at which a mask is true."""
    return call("filter", rows, mask, options=options("Filter"))


def counted(values: pa.Array) -> list[tuple[Any, int]]:
    """Return each value of an array, null among them, with how often it is there."""
    counts = call("value_counts", values)
    return list(zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True))


def take(rows: Any, places: pa.Array) -> Any:
    """Return the rows of an array, a batch or a table that stand at these places, in this order."""
    return call("take", rows, places)


def sort_indices(table: pa.Table, names: Sequence[str]) -> pa.Array:
    """Return the places of a table's rows in the ascending order of these columns."""
    options = _kernels().SortOptions(sort_keys=[(name, "ascending") for name in names])
    return call("sort_indices", table, options=options)
