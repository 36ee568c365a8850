"""batchchat as its users run it: a process with arguments, streams and signals."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-W", "error", "-m", "batchchat"]


def environment(**extra: str) -> dict[str, str]:
    """The test's own environment without keys, proxies and colours."""
    hidden = ("_KEY", "_PROXY", "_proxy", "COLOR")
    kept = {name: value for name, value in os.environ.items() if not name.endswith(hidden)}
    return {**kept, "NO_COLOR": "1", "COLUMNS": "100", **extra}


def batchchat(
    *arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=environment(**(env or {})),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def start(*arguments: str | Path, cwd: Path, **options: Any) -> subprocess.Popen[str]:
    """Start a command and go on."""
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([*COMMAND, *map(str, arguments)], cwd=cwd, env=environment(), text=True, **streams)


def wait_for(condition: Callable[[], bool], seconds: float = 45) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)
