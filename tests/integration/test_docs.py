"""What README and guide say can be done: each block of commands, YAML and Python runs, page by page."""

from __future__ import annotations

import ast
import asyncio
import io
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow.json
import pyarrow.parquet as pq
import pytest
import yaml

from batchchat.cli import cli
from batchchat.cli.process import guarded
from batchchat.demo import DemoOptions
from batchchat.evaluation.suite.reading import SuiteFields
from batchchat.job import Job
from tests.docs import ALL, README, ROOT, Block, blocks, read_yaml
from tests.integration.hub_server import running_hub
from tests.integration.processes import environment

LANGUAGES = {"console", "yaml", "python", "text", "json"}
"""Those that tests run or read. A block in another one says why it is not run."""

BASE = "jobs/label-tickets.yaml"
SUITE = "jobs/eval-tickets.yaml"
DEAR = {
    *(
        "agreement",
        "batch-api",
        "budgets",
        "compare",
        "confidence",
        "early-stopping",
        "endpoints",
        "evaluation",
        "input",
        "judges",
    ),
    *("output", "python-evaluation", "report", "review", "scorers", "workers"),
}
"""Pages that take half a second of processor time or more: two thirds of the time of all."""
_NUMBER = re.compile(r"\d[\d,.:TZ/-]*[a-z]?\b|\b\d")


class Reader:
    """Follows a page to the letter, in a folder with the sample jobs and their data."""

    def __init__(self, folder: Path, batchchat: Callable[[list[str]], tuple[int, str, str]]) -> None:
        self.folder = folder
        self.batchchat = batchchat
        self.output = ""
        self.variables: dict[str, Any] = {"__name__": "__main__"}

    def follow(self, block: Block) -> None:
        """Do what a block says."""
        for text in block.before:
            self.run(text)
        if block.not_run is not None:
            self.output = ""
            return
        if block.file is not None:
            target = self.folder / block.file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text, encoding="utf-8")
        if block.language == "console":
            self.output = "".join(map(self.run, block.text.replace("\\\n", " ").splitlines()))
        elif block.language == "yaml":
            self.load(block)
        elif block.language == "python":
            self.execute(block)
        elif block.language == "text" and block.file is None:
            self.compare(block)
        elif block.language == "json" and block.file is None:
            json.loads(block.text)

    def run(self, line: str) -> str:
        """Run a command, which ends with 0 or with the code that the line itself tells."""
        command, _, remark = line.removeprefix("pip install . && ").partition(" # ")
        told = re.search(r"exit code (\d+)", remark)
        words = shlex.split(command, comments=True)
        if not words:
            return ""
        assert words[0] == "batchchat", f"{line}: only batchchat runs here; mark the block as not run"
        target = None
        if ">" in words:
            *words, _, target = words
        code, out, err = self.batchchat(words[1:])
        assert code == int(told[1] if told else 0), f"{line}\n{out}{err}"
        if target is not None:
            (self.folder / target).write_text(out, encoding="utf-8")
        return out + err

    def load(self, block: Block) -> None:
        """Plan the job or the suite that a block is, or becomes together with a sample."""
        data = read_yaml(block.text)
        if not isinstance(data, dict):
            assert block.file is not None, "a list is the content of a file of messages"
            return
        suite = not set(data) <= set(Job.model_fields)
        if suite:
            assert set(data) <= set(SuiteFields.model_fields), set(data) - set(SuiteFields.model_fields)
        path = self.folder / block.file if block.file is not None else None
        if path is None:
            sample = self.folder / (SUITE if suite else BASE)
            base = read_yaml(sample.read_text(encoding="utf-8"))
            path = sample.with_name("part-of-a-page.yaml")
            whole = {**base, **data}
            path.write_text(yaml.safe_dump(whole, sort_keys=False, allow_unicode=True), encoding="utf-8")
        code, _, err = self.batchchat(["plan", str(path)])
        assert code == 0, err

    def execute(self, block: Block) -> None:
        """Run Python, in which `await` may stand as in a notebook; one page is one session."""
        code = compile(block.text, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        awaited = eval(code, self.variables)
        if asyncio.iscoroutine(awaited):
            asyncio.run(awaited)

    def compare(self, block: Block) -> None:
        """Hold the text to what was printed: the same lines, whatever the figures are; `…` stands for anything."""
        assert self.output, "a block of text shows what the commands before it print"
        printed = "\n".join(map(_without_figures, self.output.splitlines()))
        for line in block.text.splitlines():
            if line.strip(" …"):
                pattern = ".*".join(map(re.escape, _without_figures(line).split("…")))
                assert re.search(f"^{pattern}$", printed, re.MULTILINE), f"{block}: not printed: {line}\n{self.output}"


def _without_figures(line: str) -> str:
    return re.sub(r"[─━\s]+", " ", _NUMBER.sub("0", line)).strip()


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Reader:
    """A reader whose commands run in this process, at a demo provider that answers at once."""
    for name in environment().keys() ^ os.environ.keys():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    first = DemoOptions.__init__.__defaults__
    assert first is not None
    monkeypatch.setattr(DemoOptions.__init__, "__defaults__", (first[0], 0.0, *first[2:]))
    assert DemoOptions().latency_s == 0
    monkeypatch.chdir(tmp_path)
    for name in ("jobs", "sample_data"):
        shutil.copytree(ROOT / name, tmp_path / name)

    def batchchat(arguments: list[str]) -> tuple[int, str, str]:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "argv", ["batchchat", *arguments])
            capfd.readouterr()
            code = guarded(cli)
            out, err = capfd.readouterr()
        return code, out, err

    return Reader(tmp_path, batchchat)


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.thorough] if path.stem in DEAR else []) for path in ALL],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_block_of_a_page_does_what_it_says(path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        if any("hf://" in block.text for block in blocks(path)):
            monkeypatch.setenv("HF_ENDPOINT", stack.enter_context(_hub_of_tickets()))
        _follow(path, reader)


@contextmanager
def _hub_of_tickets() -> Iterator[str]:
    """Start a hub that has the sample tickets as a dataset, and yield its address."""
    rows = io.BytesIO()
    pq.write_table(pyarrow.json.read_json(ROOT / "sample_data" / "tickets.jsonl"), rows)
    with running_hub() as hub:
        hub.push("my-team/tickets", {"data/train-00000.parquet": rows.getvalue()}, "v1.2")
        yield hub.url


def _follow(path: Path, reader: Reader) -> None:
    for block in blocks(path):
        assert block.language in LANGUAGES or block.not_run or block.file, f"{block}: nothing tests such a block"
        try:
            reader.follow(block)
        except Exception as error:
            error.add_note(f"in the block at {block}")
            raise


def test_the_readers_own_rules_can_fail(reader: Reader) -> None:
    def block(language: str, text: str, **more: Any) -> Block:
        return Block("page.md", 1, language, text, **more)

    with pytest.raises(AssertionError, match="rnu"):
        reader.follow(block("console", "batchchat rnu job.yaml\n"))
    with pytest.raises(AssertionError, match="only batchchat"):
        reader.follow(block("console", "ls\n"))
    with pytest.raises(AssertionError, match="not a field"):
        reader.follow(block("yaml", "limits: {speed: 3}\n"))
    reader.output = "3 pears\n"
    with pytest.raises(AssertionError, match="not printed: 3 apples"):
        reader.follow(block("text", "4 pears\n3 apples\n"))
    with pytest.raises(NameError):
        reader.follow(block("python", "nothing_such()\n"))


def test_the_readme_starts_with_the_first_command_and_names_the_tests_once() -> None:
    text = README.read_text(encoding="utf-8")
    assert text.count("pip install '.[test]' && pytest\n") == 1
    first = next(block for block in blocks(README) if block.language == "console")
    assert first.text == "pip install . && batchchat run jobs/label-tickets.yaml\n"
