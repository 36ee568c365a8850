"""How many bytes the rows of a Parquet file take once they are decoded, told before they are.

The footer does not say it. A dictionary holds a value once, however many rows have it, so that a file of a few
kilobytes may hold gigabytes. What bounds a row is the longest text of the dictionary. Arrow would keep four copies of
a dictionary to show it, so the page is read here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import pyarrow as pa

from batchchat.lazy_arrow import parquet as pq

ReadAt = Callable[[int, int], bytes]
"""Reads bytes of a file: from this offset on, so many or fewer at its end."""

_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
_CODECS = {
    "SNAPPY": "snappy",
    "GZIP": "gzip",
    "BROTLI": "brotli",
    "ZSTD": "zstd",
    "LZ4": "lz4_raw",
    "LZ4_RAW": "lz4_raw",
}
_TEXTS = "BYTE_ARRAY"
_OVERHEAD = 4
"""Bytes that a value takes beside its content: an offset, a mark that it is there."""
_HEADER_BYTES = 256
"""More than the header of a dictionary's page has: five or six small numbers."""
_DICTIONARY_PAGE = 2
_LENGTH = struct.Struct("<I")


class DecodedSizes:
    """The decoded size of rows, for each row group of one open Parquet file."""

    def __init__(self, file: pq.ParquetFile, read: ReadAt) -> None:
        self._file = file
        self._metadata = file.metadata
        self._read = read

    def at_once(self, group: int, rows: int, limit: int, columns: Sequence[str] | None = None) -> int:
        """Return how many rows of a row group may be decoded at once: at most `rows`, at least one, of `limit` bytes.

        `columns` are the names of those that are read; None means all. Raises what Arrow says of a damaged row group.
        """
        there = self._metadata.row_group(group)
        rows = max(1, min(rows, there.num_rows))
        # Arrow ends the process when it is asked for the columns of a damaged footer, and raises when it reads them.
        for _ in self._file.iter_batches(batch_size=1, row_groups=[group], columns=columns, use_threads=False):
            break
        leaves = [number for number in range(there.num_columns) if self._is_read(number, columns)]
        # A dictionary's longest text is at most all that the column holds.
        longest = {number: there.column(number).total_uncompressed_size for number in leaves}
        if self._row_bytes(group, longest) * rows <= limit:
            return rows
        share = limit // (8 * rows)
        for number in leaves:
            if self._is_text(number) and longest[number] > share:
                longest[number] = min(longest[number], self._longest_text(group, number))
        return max(1, min(rows, limit // max(1, self._row_bytes(group, longest))))

    def _is_read(self, number: int, columns: Sequence[str] | None) -> bool:
        if columns is None:
            return True
        path = self._metadata.schema.column(number).path
        return any(path == name or path.startswith(f"{name}.") for name in columns)

    def _is_text(self, number: int) -> bool:
        return bool(self._metadata.schema.column(number).physical_type == _TEXTS)

    def _row_bytes(self, group: int, longest: dict[int, int]) -> int:
        """Return the size of a row, if no text in the dictionary of a column is longer than `longest` says."""
        there = self._metadata.row_group(group)
        total = 0
        for number, length in longest.items():
            column = there.column(number)
            if self._is_text(number):
                # Texts that stand in no dictionary are counted in full by the footer.
                total += max(column.num_values * (length + _OVERHEAD), column.total_uncompressed_size)
            else:
                leaf = self._metadata.schema.column(number)
                total += column.num_values * (_WIDTHS.get(leaf.physical_type, leaf.length) + 1)
        return int(-(-total // max(1, there.num_rows)))

    def _longest_text(self, group: int, number: int) -> int:
        """Return the length of the longest text in the dictionary of a column; 0 if it has none."""
        column = self._metadata.row_group(group).column(number)
        # Some writers do not say where the dictionary is: it is the first page then.
        start = min(filter(None, (column.dictionary_page_offset, column.data_page_offset)), default=0)
        try:
            kind, plain, packed, texts, size = _page_header(self._read(start, _HEADER_BYTES))
            if kind != _DICTIONARY_PAGE:
                return 0
            if plain <= _LENGTH.size * texts:
                return 0
            body: pa.Buffer | bytes = self._read(start + size, packed)
            if column.compression != "UNCOMPRESSED":
                body = pa.Codec(_CODECS[column.compression]).decompress(body, plain)
            return _longest(memoryview(body), texts)
        except (pa.ArrowException, OSError, ValueError, LookupError, struct.error):
            # Whoever reads the rows meets the damage, and says so.
            return int(column.total_uncompressed_size)


def _longest(page: memoryview, texts: int) -> int:
    """Return the length of the longest of so many texts, each of which stands behind its length."""
    place = longest = 0
    unpack, skip = _LENGTH.unpack_from, _LENGTH.size
    for _ in range(texts):
        (length,) = unpack(page, place)
        place += skip + length
        longest = max(longest, length)
    return int(longest)


def _page_header(data: bytes) -> tuple[int, int, int, int, int]:
    """Read the header of a page: kind, size of its content, size as it is stored, number of texts, and its own size.

    It is a struct in Thrift's compact form. Raises ValueError or IndexError if it is not.
    """
    fields, place = _thrift_struct(data, 0)
    dictionary = fields.get(7)
    texts = dictionary.get(1, 0) if isinstance(dictionary, dict) else 0
    numbers = [fields.get(number, 0) for number in (1, 2, 3)]
    kind, plain, packed = [number if isinstance(number, int) else 0 for number in numbers]
    if min(plain, packed) < 0 or not isinstance(texts, int):
        raise ValueError("no page header")
    return kind, plain, packed, texts, place


def _thrift_struct(data: bytes, place: int) -> tuple[dict[int, object], int]:
    """Read the numbers and structs of a Thrift struct, by the number of their field, and where it ends."""
    fields: dict[int, object] = {}
    number = 0
    while head := data[place]:
        place += 1
        step, kind = head >> 4, head & 15
        if step:
            number += step
        else:
            number, place = _zigzag(data, place)
        if kind in {1, 2}:  # a boolean has no bytes of its own
            fields[number] = kind == 1
        elif kind in {4, 5, 6}:
            fields[number], place = _zigzag(data, place)
        elif kind == 12:
            fields[number], place = _thrift_struct(data, place)
        else:
            raise ValueError("a field that no dictionary page has")
    return fields, place + 1


def _zigzag(data: bytes, place: int) -> tuple[int, int]:
    """Read a number of Thrift's compact form, and where it ends."""
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return (value >> 1) ^ -(value & 1), place
