"""Numbers and foreign text as a person reads them.

Numbers: `12,345` rows, `1.2M` tokens, `1 h 03 min`, `0.0123 EUR`. What is not known is shown as a dash, never as zero.
Text from inputs, answers and servers goes through `visible` or `one_line` before it meets a terminal: what could
move the cursor, change colours, or turn the reading order is shown as an escape instead. This module imports
nothing heavy.
"""

from __future__ import annotations

import math
import re

UNKNOWN = "\N{EN DASH}"
"""Stands where a figure is not known."""

_UNITS = ("", "k", "M", "B", "T")

# Control characters (C0 but tab and newline, DEL, C1), line and paragraph separators, bidirectional embeddings,
# overrides and isolates, invisible characters, tag characters, lone surrogates. The joiners U+200C and U+200D and the
# marks U+200E and U+200F stay: emoji, Persian, Arabic and Hebrew are written with them, and they reorder nothing.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def count(number: int | None) -> str:
    """Write a whole number with thousands separators: `12,345`."""
    return UNKNOWN if number is None else f"{number:,}"


def short(number: float | None) -> str:
    """Write a number in at most four characters and a unit: `950`, `2.1k`, `41k`, `1.2M`."""
    if number is None or not math.isfinite(number):
        return UNKNOWN
    scaled, unit = float(number), 0
    while abs(scaled) >= (999.5 if abs(scaled) >= 99.5 else 1000) and unit < len(_UNITS) - 1:
        scaled, unit = scaled / 1000, unit + 1
    text = f"{scaled:.1f}" if unit and abs(scaled) < 9.95 else f"{scaled:.0f}"
    return text.removesuffix(".0") + _UNITS[unit]


def rate(per_second: float | None) -> str:
    """Write a rate with the digits that mean something: `0.25`, `30.2`, `1,204`."""
    if per_second is None or not math.isfinite(per_second):
        return UNKNOWN
    if per_second <= 0:
        return "0"
    if per_second < 0.995:
        return f"{per_second:.2f}" if per_second >= 0.005 else "<0.01"
    return f"{per_second:.1f}" if per_second < 99.95 else f"{per_second:,.0f}"


def duration(seconds: float | None) -> str:
    """Write a span that was measured: `90 ms`, `12.3 s`, `4 min 05 s`, `1 h 03 min`, `2 d 04 h`."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    seconds = max(0.0, seconds)
    if 0 < seconds < 0.0995:
        return f"{max(1, round(seconds * 1000))} ms"
    return f"{seconds:.1f} s" if seconds < 59.95 else about(seconds)


def about(seconds: float | None) -> str:
    """Write a span that is only estimated or still runs, in whole units: `12 s`, `4 min 05 s`, `1 h 03 min`."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    whole = math.floor(max(0.0, seconds) + 0.5)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = math.floor(whole / 60 + 0.5)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = math.floor(whole / 3600 + 0.5)
    return f"{hours // 24} d {hours % 24:02d} h"


def money(amount: float | None, currency: str | None = None) -> str:
    """Write an amount with the digits that mean something: `0.0123 EUR`, `0.00012 EUR`, `1,234.50 EUR`."""
    if amount is None or not math.isfinite(amount):
        return UNKNOWN
    size = abs(amount)
    if size == 0:
        text = "0"
    elif size < 1e-6:
        text = "<0.000001"
    elif size < 0.9995:
        # At least two significant digits, at least four places: small jobs cost fractions of a cent.
        text = f"{amount:.{max(4, 1 - math.floor(math.log10(size)))}f}"
    else:
        text = f"{amount:,.2f}"
    return f"{text} {currency}" if currency else text


def percent(part: int, whole: int | None) -> str:
    """Write progress in whole percent, rounded down: 100% only when all is there, 0% only when nothing is."""
    if whole is None or whole <= 0:
        return UNKNOWN
    if part >= whole:
        return "100%"
    return "<1%" if 0 < part * 100 < whole else f"{part * 100 // whole}%"


def share(part: int, whole: int | None) -> str:
    """Write a share of a whole, rounded to one decimal: shares of one whole sum to about 100 %.

    For how far something is, `percent` rounds down instead.
    """
    if whole is None or whole <= 0:
        return UNKNOWN
    if 0 < part * 2000 < whole:
        return "<0.1%"
    return f"{100 * part / whole:.1f}".removesuffix(".0") + "%"


def plural(number: int, noun: str, nouns: str | None = None) -> str:
    """Write a number and its noun: `1 row`, `2,000 rows`, `2 retries` (`plural(2, "retry", "retries")`)."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def asked(samples: int) -> str:
    """Return what a run's counts count: `row`, or `sample` where each row is asked several times."""
    return "row" if samples == 1 else "sample"


def visible(text: str) -> str:
    r"""Show what a terminal would obey or hide as escapes (`\x1b`, `\u202e`); newlines and tabs stay."""
    return _HIDDEN.sub(_escape, text.replace("\r\n", "\n"))


def one_line(text: str, limit: int | None = None) -> str:
    """Return the text as one visible line: runs of white space become one space, `…` ends it at `limit` characters."""
    # str.split() would take some separators for white space that must be shown instead, hence this pattern.
    line = visible(re.sub(r"[ \t\n]+", " ", text.replace("\r\n", "\n")).strip(" "))
    return line if limit is None or len(line) <= limit else line[: max(0, limit - 1)].rstrip() + "…"


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
