"""Addresses: where an output is, as a person writes it. It is a folder of this machine, or a URL of object storage.

A URL stays text. As a `Path` it would lose a slash, and name a folder that nobody meant.
"""

from __future__ import annotations

import re
from pathlib import Path

Address = Path | str
"""A folder as a path or as text, or a URL as text."""

OBJECT_SCHEMES = ("s3", "gs", "az", "abfs", "abfss")
"""The schemes of URLs that can be an output: Amazon S3 and what speaks as it does, Google, and Azure."""

HUB_SCHEME = "hf"
"""The scheme of URLs of a hub of datasets: they can be an input, and never an output."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(address: Address) -> bool:
    """Tell whether an address is a URL, and no folder of this machine."""
    return isinstance(address, str) and _URL.match(address) is not None


def scheme_of(url: str) -> str:
    """Return the scheme of a URL, in small letters."""
    return url.partition("://")[0].lower()


def address_of(text: str) -> Address:
    """Return a folder as a path, and a URL as the text that it is."""
    return text if is_url(text) else Path(text)


def absolute(address: Address) -> Address:
    """Return an address that does not depend on the current folder."""
    return str(address).rstrip("/") if is_url(address) else Path(address).absolute()


def same_address(first: Address, second: Address) -> bool:
    """Tell whether two addresses are of one place."""
    if is_url(first) or is_url(second):
        return str(first).rstrip("/") == str(second).rstrip("/")
    return Path(first).resolve() == Path(second).resolve()
