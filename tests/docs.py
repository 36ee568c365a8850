"""The documentation as tests read it: README and guide, their blocks of code, tables and links.

A comment before a block says how it is tested, and is shown to nobody:

    <!-- not run: REASON -->     the block cannot run here
    <!-- file: NAME -->          the block is the content of a file, which later blocks use
    <!-- before: COMMAND -->     a command of batchchat that makes what the block looks at

A block whose first line is `# NAME.yaml` or `# NAME.py` is the content of that file, too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchchat.job.syntax import parse_yaml

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "batchchat" / "guide"
README = ROOT / "README.md"
SAMPLES = ROOT / "jobs" / "README.md"
CONTENTS = GUIDE / "README.md"
PAGES = sorted(path for path in GUIDE.glob("*.md") if path != CONTENTS)
ALL = [README, SAMPLES, CONTENTS, *PAGES]

_FENCE = re.compile(r"^( *)```(\w*)$")
_COMMENT = re.compile(r"^ *<!-- (not run|file|before): (.+?) -->$")
_NAMED = re.compile(r"# ([\w./-]+\.(?:yaml|py))$")


@dataclass(slots=True)
class Block:
    """One block of code: where it stands, its language, its text, and what the comments before it say."""

    page: str
    line: int
    language: str
    text: str
    before: list[str] = field(default_factory=list)
    not_run: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(path: Path) -> list[Block]:
    """Return the blocks of a page in order."""
    found: list[Block] = []
    comments: list[tuple[str, str]] = []
    inside: Block | None = None
    lines: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if inside is not None:
            if fence is not None and not fence[2]:
                inside.text = "\n".join(lines) + "\n"
                found.append(inside)
                inside = None
            else:
                lines.append(line)
            continue
        if fence is not None:
            told = dict(comments)
            before = [text for name, text in comments if name == "before"]
            page = str(path.relative_to(ROOT))
            inside = Block(page, number, fence[2], "", before, told.get("not run"), told.get("file"))
            lines, comments = [], []
        elif comment := _COMMENT.match(line):
            comments.append((comment[1], comment[2]))
        elif line.strip():
            assert not comments, f"{path}:{number}: a comment about a block stands right before it"
    assert inside is None, f"{path}: a block does not end"
    for block in found:
        named = _NAMED.match(block.text.partition("\n")[0])
        if block.file is None and named is not None and block.not_run is None:
            block.file = named[1]
    return found


def read_yaml(text: str) -> Any:
    """Read YAML as batchchat reads its files."""
    return parse_yaml(text, Path("block.yaml")).data


def prose(path: Path) -> str:
    """Return a page without its blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def table(page: str, heading: str) -> dict[str, list[str]]:
    """Return the first table below a heading of a page of the guide.

    It has the other cells of each row by the names in its first cell; several names there give a row for each.
    """
    text = (GUIDE / f"{page}.md").read_text(encoding="utf-8")
    _, found, rest = text.partition(f"\n## {heading}\n")
    assert found, f"{page} has no heading {heading!r}"
    rows: dict[str, list[str]] = {}
    for line in rest.partition("\n## ")[0].splitlines():
        if not line.startswith("| `"):
            if rows and not line.startswith("|"):
                break
            continue
        first, *others = re.split(r"\s*(?<!\\)\|\s*", line.strip("| "))
        for name in re.findall(r"`([^`]+)`", first):
            assert name not in rows, f"{page}, {heading}: {name} twice"
            rows[name] = others
    assert rows, f"{page} has no table below {heading!r}"
    return rows


def names(text: str) -> set[str]:
    """Return what stands in backquotes."""
    return set(re.findall(r"`([^`]+)`", text))
