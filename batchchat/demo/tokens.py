"""The demo provider's tokens: about four characters each, three bytes outside ASCII; always the same count."""

from __future__ import annotations

IMAGE_TOKENS = 256
"""What an image counts, whatever its size: images are never fetched or decoded."""

FILE_TOKENS = 1_500
"""What a PDF counts, whatever its pages."""

SOUND_TOKENS = 100
"""What sound counts, whatever its length."""

MESSAGE_TOKENS = 4
"""What a message counts beside its text."""


def count_tokens(text: str) -> int:
    """Count a text's tokens: one for every started four ASCII characters and three other bytes."""
    if text.isascii():
        return (len(text) + 3) // 4
    ascii_length = len(text.encode("ascii", "ignore"))
    other_bytes = len(text.encode("utf-8", "surrogatepass")) - ascii_length
    return (ascii_length + 3) // 4 + (other_bytes + 2) // 3


def cut_to_tokens(text: str, limit: int) -> str:
    """Return the longest start of `text` that has at most `limit` tokens."""
    if count_tokens(text) <= limit:
        return text
    low, high = 0, min(len(text), 4 * limit)
    while low < high:
        middle = (low + high + 1) // 2
        if count_tokens(text[:middle]) <= limit:
            low = middle
        else:
            high = middle - 1
    return text[:low]
