"""The Tab key in real shells, set up as the guide says."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.docs import GUIDE, blocks
from tests.integration.processes import environment
from tests.thorough import one_in

PATIENCE_S = 30


def set_up(shell: str, home: Path, env: dict[str, str]) -> None:
    """Do what the guide says for this shell."""
    wanted = [block.text for block in blocks(GUIDE / "editors.md") if f"{shell}_source batchchat > ~" in block.text]
    (text,) = wanted
    subprocess.run(["bash", "-c", text], check=True, env=env, cwd=home)


class Typing:
    """A shell at a terminal of its own."""

    def __init__(self, arguments: list[str], env: dict[str, str], folder: Path) -> None:
        self.terminal, theirs = pty.openpty()
        self.shell = subprocess.Popen(
            arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=folder, start_new_session=True
        )
        os.close(theirs)

    def type(self, keys: str, until: str) -> None:
        """Press keys, and read until a text is shown."""
        os.write(self.terminal, keys.encode())
        shown = ""
        end = time.monotonic() + PATIENCE_S
        while until not in shown:
            assert time.monotonic() < end, f"{until!r} is not shown after {keys!r}: {shown!r}"
            if select.select([self.terminal], [], [], 0.2)[0]:
                shown += os.read(self.terminal, 10_000).decode("utf-8", "replace")

    def close(self) -> None:
        self.shell.kill()
        self.shell.wait()
        os.close(self.terminal)


@pytest.mark.parametrize("shell", one_in(2, ["bash", "zsh"]))
def test_the_tab_key_completes_commands_and_options(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**environment(), "HOME": str(tmp_path), "PATH": path, "TERM": "dumb", "HISTFILE": "/dev/null"}
    if shell == "zsh":
        (tmp_path / ".zshrc").write_text("autoload -U compinit && compinit -u -D\n", encoding="utf-8")
    set_up(shell, tmp_path, env)
    with (tmp_path / f".{shell}rc").open("a", encoding="utf-8") as settings:
        settings.write("PS1='ready> '\n")
    typing = Typing([shell, "-i"], env, tmp_path)
    try:
        typing.type("", "ready> ")
        typing.type("batchchat hist\t", "history")
        typing.type("\x15batchchat run --max-req\t", "--max-requests")
    finally:
        typing.close()
