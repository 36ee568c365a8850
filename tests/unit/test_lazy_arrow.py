"""Arrow's kernels, called without `pyarrow.compute`."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import pyarrow as pa
import pytest

from batchchat import lazy_arrow


@pytest.mark.parametrize("private", [True, False])
def test_kernels_are_found_also_if_arrow_renames_its_own_module(monkeypatch: pytest.MonkeyPatch, private: bool) -> None:
    def importing(name: str) -> ModuleType:
        if name == "pyarrow._compute" and not private:
            raise ImportError(name)
        return import_module(name)

    monkeypatch.setattr(lazy_arrow, "import_module", importing)
    lazy_arrow._kernels.cache_clear()
    try:
        table = pa.table({"a": [3, 1, 2], "b": [1, 1, 1]})
        order = lazy_arrow.sort_indices(table, ["b", "a"])
        assert lazy_arrow.take(table, order).column("a").to_pylist() == [1, 2, 3]
        assert lazy_arrow.call("count_distinct", table.column("b")).as_py() == 1
    finally:
        lazy_arrow._kernels.cache_clear()
