"""JSON Lines: one object a line, read in blocks and parsed a batch at a time.

The usual batch costs one pass at C speed: split, parse, see that all are objects. Only where that fails is it taken
line by line, so that a bad line costs its own row and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any

import orjson

from batchchat.sources.chunk import Chunk, Limits
from batchchat.sources.files import BLOCK, BOM, ByteStream

_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_OBJECTS = {dict}


class _Overlong(bytes):
    """Stands for a line that is too long to keep, by a digest of its bytes."""

    __slots__ = ()


class _Blank(list[bytes]):
    """Stands for a block of blank lines, of which only the number matters."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def read_jsonl(
    stream: ByteStream, name: str, limits: Limits, warn: Callable[[str], None], *, line: int = 1
) -> Iterator[Chunk]:
    """Yield the rows of one stream, which begins with line number `line`. Blank lines are no rows.

    A last line without a line end is a row if it is a whole object; if not, it may still be being written: it is left
    open, and `warnings` says so.
    """
    number = line
    for lines, end in _lines(stream, limits):
        if isinstance(lines, _Blank):
            number += lines.number
            continue
        ends = _ends(lines, end, limits.batch_rows) if end is not None else []
        for start in range(0, len(lines), limits.batch_rows):
            part = lines[start : start + limits.batch_rows]
            chunk = _parse(part, name, number, stream.encoding_hint)
            number += len(part)
            chunk.place = stream.place(ends.pop(), number) if ends else None
            if chunk.rows:
                yield chunk
    tail = stream.tail
    if tail.strip():
        row = _whole_object(tail)
        if row is None:
            warn(f"{name}:{number}: the last line has no end and is not a whole object; it is left open")
            return
        yield Chunk([row], len(tail))
    stream.end = stream.place(stream.position, number, ended=True)


def count_jsonl(stream: ByteStream, limits: Limits) -> int:
    """Count the rows that `read_jsonl` would yield, without parsing them."""
    rows = sum(sum(map(bool, map(bytes.strip, lines))) for lines, _ in _lines(stream, limits) if lines)
    return rows + (_whole_object(stream.tail) is not None)


def _lines(stream: ByteStream, limits: Limits) -> Iterator[tuple[list[bytes], int | None]]:
    """Yield the complete lines of each block, without their ends, and where they end in the stream.

    What follows the last one is the stream's `tail`; one that is too long to keep comes all the same, its end None.
    """
    size = min(BLOCK, limits.batch_bytes)
    held: list[bytes] = []
    length = 0
    overlong = None
    first = stream.position == 0
    block = stream.read(size)
    if first:
        block = block.removeprefix(BOM)
        stream.array = block.lstrip()[:1] == b"["
    while block:
        if not length and overlong is None and block[-1:] == b"\n" and not block.strip():
            # A small compressed file may hold billions of line ends: a block of them must cost no line of its own.
            yield _Blank(block.count(b"\n")), None
            block = stream.read(size)
            continue
        lines = block.split(b"\n")
        held.append(lines[0])
        length += len(lines[0])
        # From here on the line is digested as it comes, and never held whole.
        if overlong is not None or length > limits.max_line_bytes:
            overlong = overlong or blake2b(digest_size=32)
            for piece in held:
                overlong.update(piece)
            held = []
        if len(lines) > 1:
            lines[0] = _Overlong(overlong.digest()) if overlong is not None else b"".join(held)
            overlong = None
            held = [lines.pop()]
            length = len(held[0])
            yield lines, stream.position - length
        block = stream.read(size)
    if overlong is not None:
        yield [_Overlong(overlong.digest())], None
    stream.tail = b"".join(held)


def _ends(lines: list[bytes], end: int, step: int) -> list[int]:
    """Where each part of `step` lines ends, the last part first; the lines end at `end`."""
    ends = [end]
    for start in range((len(lines) - 1) // step * step, 0, -step):
        end -= sum(map(len, lines[start : start + step])) + len(lines[start : start + step])
        ends.append(end)
    return ends


def _parse(lines: list[bytes], name: str, number: int, encoding_hint: str) -> Chunk:
    """Parse lines into rows; `number` is the first one's number in its file.

    `encoding_hint` is what helps against a line that is not UTF-8.
    """
    together = b"\n".join(lines)
    zeroed = together.translate(_ZEROS)
    # Digits enough to pass 64 bits: orjson would make a float of such an integer, and lose the digits.
    wide = b"0" * 20 in zeroed or b"-" + b"0" * 19 in zeroed
    # The fast way: all lines in one go. One bad line, or one that is no object, sends the batch down the slow one.
    if not wide:
        try:
            rows = list(map(orjson.loads, lines))
        except orjson.JSONDecodeError:
            pass
        else:
            if _OBJECTS.issuperset(map(type, rows)):
                return Chunk(rows, len(together))
    chunk = Chunk([], len(together))
    for offset, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            chunk.rows.append(_parse_line(line, exact=wide))
        except ValueError as error:
            hint = f"; {encoding_hint}" if isinstance(error.__cause__, UnicodeDecodeError) else ""
            chunk.fail(f"{name}:{number + offset}: {error}{hint}", line)
    return chunk


def _parse_line(line: bytes, *, exact: bool) -> dict[str, Any]:
    """Parse one line; ValueError says what is wrong with it, without repeating it."""
    if isinstance(line, _Overlong):
        raise ValueError("the line is too long")
    try:
        row = orjson.loads(line)
        # The standard library keeps integers of any length. orjson has said before that the line is valid.
        if exact:
            row = json.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            text = line.decode()
        except UnicodeDecodeError as invalid:
            raise ValueError(f"the line is not valid UTF-8 (byte {invalid.start + 1})") from invalid
        row = _with_nan(text)
        if row is None:
            raise ValueError(f"the line is not valid JSON: {error.msg} (column {error.colno})") from None
    if not isinstance(row, dict):
        raise ValueError("the line is JSON, but not an object")
    return row


def _with_nan(text: str) -> Any:
    """Parse a line that says NaN or Infinity, as Python's own writer does; None where that does not help."""
    if "NaN" not in text and "Infinity" not in text:
        return None
    try:
        row = json.loads(text)
        # It must be writable again as UTF-8, which half a surrogate pair is not.
        json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return row


def _whole_object(line: bytes) -> dict[str, Any] | None:
    try:
        return _parse_line(line, exact=True)
    except ValueError:
        return None
