"""What the process of a run does with memory that it no longer needs."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_PROGRAM = """
import sys
from pathlib import Path
import pyarrow as pa

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if "keep" in sys.argv:
    from batchchat.cli.process import keep_memory_small
    keep_memory_small()
large = bytearray(30 << 20)  # what is freed raises glibc's threshold, unless it is set
del large
before = resident()
pieces = [bytearray(b"x") * (1 << 20) for _ in range(64)]
pinned = [bytearray(b"x") * 100_000 for _ in range(40)]  # more than the holes below hold
del pieces
print((resident() - before) >> 20, pa.default_memory_pool().backend_name)
"""


def kept(*arguments: str) -> tuple[int, str]:
    """Mebibytes that stay with a process that freed 64, and the allocator that Arrow uses."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM, *arguments], capture_output=True, check=True, text=True)
    mebibytes, allocator = done.stdout.split()
    return int(mebibytes), allocator


@pytest.mark.thorough
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has this habit")
def test_what_a_run_frees_goes_back_to_the_system() -> None:
    assert kept()[0] > 32
    mebibytes, allocator = kept("keep")
    assert mebibytes < 8
    assert allocator == "system"
