"""Column types from the first rows of a JSON input.

Each column has a `Shape`: which kinds of value were seen, and the shapes inside its lists and objects. Shapes only
grow; at the end each becomes an Arrow type, or JSON text where no one type holds what was seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

_MAX_DEPTH = 16
"""What is nested deeper is carried as JSON text."""
_MAX_FIELDS = 200
"""An object with more fields than this is a mapping with data in its keys, not a struct."""


class Shape:
    """The kinds of value seen in one place of the input; None says nothing."""

    __slots__ = ("_depth", "fields", "high", "item", "kinds", "low")

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self.kinds: set[type] = set()
        self.low = self.high = 0
        self.item: Shape | None = None
        self.fields: dict[str, Shape] = {}

    def see(self, seen: Iterable[Any]) -> None:
        """Take in values of this place."""
        values = [value for value in seen if value is not None]
        kinds = set(map(type, values))
        self.kinds |= kinds if self._depth < _MAX_DEPTH else {object}
        if int in kinds:
            numbers = [value for value in values if type(value) is int]
            self.low, self.high = min(self.low, *numbers), max(self.high, *numbers)
        if self._depth == _MAX_DEPTH:
            return
        if list in kinds:
            self.item = self.item or Shape(self._depth + 1)
            self.item.see(item for value in values if type(value) is list for item in value)
        if dict in kinds:
            self._see_fields([value for value in values if type(value) is dict])

    def _see_fields(self, rows: list[dict[str, Any]]) -> None:
        for name in dict.fromkeys(name for row in rows for name in row):
            # One more than the bound is kept, so that `_struct_type` sees that there are too many.
            if len(self.fields) > _MAX_FIELDS:
                return
            self.fields.setdefault(name, Shape(self._depth + 1)).see([row[name] for row in rows if name in row])

    def column_type(self) -> tuple[pa.DataType, str]:
        """Return the type of a whole column and how it is written: as it is (empty), or as `json` text.

        Texts mixed with values of other kinds make a column of text, which holds the texts alone.
        """
        found = self.arrow_type()
        if found is not None:
            return found, ""
        return pa.string(), "" if str in self.kinds else "json"

    def arrow_type(self) -> pa.DataType | None:
        """Return the type that holds all that was seen, None if there is none. A place of nulls is text."""
        kinds = self.kinds
        if not kinds or kinds == {str}:
            return pa.string()
        if kinds == {bool}:
            return pa.bool_()
        if kinds == {int}:
            return pa.int64() if self.low >= -(2**63) and self.high < 2**63 else None
        # Integers beside floats become floats, if each of them is one exactly.
        if kinds == {float} or (kinds == {int, float} and max(-self.low, self.high) <= 2**53):
            return pa.float64()
        if kinds == {list} and self.item is not None and self.item.kinds:
            item = self.item.arrow_type()
            return None if item is None else pa.list_(item)
        return self._struct_type() if kinds == {dict} else None

    def _struct_type(self) -> pa.DataType | None:
        names = list(self.fields)
        distinct = {name.lower() for name in names} - {""}
        # Names that differ only in case are one name to many readers of Parquet, such as Spark.
        if not names or len(names) > _MAX_FIELDS or len(distinct) < len(names):
            return None
        types = [field.arrow_type() for field in self.fields.values()]
        return None if None in types else pa.struct(list(zip(names, types, strict=True)))
