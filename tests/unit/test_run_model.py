"""Any job, any stops, any edits: what must hold after each run, held against a model of what was asked and answered.

A scenario draws a job (keys, samples, corrections, a cache, dedupe, streaming, sizes of parts) and then a few runs of
it, between which rows and prompt change, each with its own options, budget, stop or crash. The provider is the model's:
it knows what it answered, and so what must be in the dataset and in the ledger, and what must not be asked again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import anyio
import httpx
import pytest
import trio.testing

import batchchat
from batchchat.errors import UsageError
from batchchat.events import RunSummary
from batchchat.records import ErrorKind
from batchchat.runner.control import StopRequest
from batchchat.runner.options import RunOptions
from batchchat.runner.run import run_job
from batchchat.store import Store, read_state
from batchchat.store.verify import verify
from tests.integration.jobs import make_job, write_rows
from tests.store_cases import POINTS, RECOVERY_POINTS
from tests.thorough import one_in
from tests.unit.test_run_clock import Provider, inline

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TOKENS = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
STEPS = (*POINTS, *RECOVERY_POINTS)


class Crash(BaseException):
    """The process ends here, as far as this can be had within one."""


@dataclass
class Asked:
    """What the provider was asked and said in one run."""

    billed: int = 0
    taken: Counter[str] = field(default_factory=Counter)


class Scenario:
    """A job, its rows and its provider."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random = Random(seed)
        self.keyed = random.random() < 0.6
        self.samples = random.choice([1, 1, 2, 3])
        self.typed = random.random() < 0.6
        self.dedupe = random.random() < 0.4
        self.cached = random.random() < 0.3
        self.streamed = random.random() < 0.3
        self.trouble = random.choice([0.0, 0.1, 0.3])
        self.prompt = 0
        self.numbers = 0
        self.rows = [self.row() for _ in range(random.randint(1, 25))]
        self.asked = Asked()
        self.lost = self.billed = 0
        self.runs: set[str] = set()
        self.ever_ok: set[str] = set()
        self.prompts: set[int] = set()
        self.at: Callable[[], None] | None = None

    def row(self) -> dict[str, Any]:
        self.numbers += 1
        word = self.random.choice(["fine"] * 8 + ["bad"])
        return {"id": self.numbers, "text": f"{word} {self.random.randint(1, 12 if self.dedupe else 40)}"}

    # --- the provider

    async def handle(self, request: httpx.Request) -> httpx.Response:
        random = self.random
        await anyio.sleep(random.uniform(0.01, 2))
        body = json.loads(request.content)
        own = body["messages"][0]["content"]
        if own.splitlines()[1].startswith("bad"):
            return httpx.Response(400, json={"error": {"message": f"not this: {own}"}})
        if random.random() < self.trouble:
            if random.random() < 0.2:
                raise httpx.ReadError("gone")
            return httpx.Response(random.choice([429, 500, 503]), json={"error": "not now"})
        self.asked.billed += 1
        text, reason = json.dumps({"n": int(own.split()[-1])}), "stop"
        if self.typed and random.random() < 0.35:
            text = random.choice(["prose", '{"n": "one"}', f"So: {text}"])
        elif random.random() < 0.1:
            text, reason = text[:3], "length"
        if reason == "stop" and text.startswith(('{"n": ', "So")) and "one" not in text:
            self.asked.taken[own] += 1
        if self.at is not None:
            self.at()
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
        if not body.get("stream"):
            data = {"choices": [choice | {"message": {"content": text}}], "usage": TOKENS, "model": "m"}
            return httpx.Response(200, json=data)
        chunks: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": {"content": text[:2]}}]},
            {"choices": [choice | {"delta": {"content": text[2:]}}]},
            {"choices": [], "usage": TOKENS},
        ]
        events = "".join(f"data: {json.dumps(chunk | {'model': 'm'})}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        return httpx.Response(200, text=events, headers={"content-type": "text/event-stream"})

    # --- a run

    def edit(self) -> None:
        random, rows = self.random, self.rows
        for _ in range(random.choice([0, 0, 1, 2])):
            match random.choice(["append", "insert", "drop", "change", "shuffle", "prompt", "twice"]):
                case "append":
                    rows += [self.row() for _ in range(random.randint(1, 5))]
                case "insert":
                    rows.insert(random.randint(0, len(rows)), self.row())
                case "drop" if len(rows) > 1:
                    del rows[random.randrange(len(rows))]
                case "change":
                    place = random.randrange(len(rows))
                    rows[place] = self.row() | {"id": rows[place]["id"]}
                case "shuffle":
                    random.shuffle(rows)
                case "prompt":
                    self.prompt = random.randint(0, 2)
                case "twice":
                    self.numbers += 1
                    rows.append(random.choice(rows) | {"id": self.numbers})

    def fields(self) -> dict[str, Any]:
        random = self.random
        fields: dict[str, Any] = {
            "messages": [{"role": "user", "content": f"Prompt {self.prompt}\n{{{{ text }}}}"}],
            "input": {"path": str(self.folder / "rows.jsonl"), **({"key": "id"} if self.keyed else {})},
            "output": {"path": str(self.folder / "out"), "part_rows": random.choice([3, 10, 100]), "part_seconds": 2},
            "limits": {"concurrency": random.choice([1, 4, 16])},
            "retry": {"attempts": random.choice([2, 6])},
            "samples": self.samples,
            "params": {"max_tokens": 5, **({"stream": True} if self.streamed else {})},
            "dedupe": self.dedupe,
        }
        if self.typed:
            truncated = random.choice(["fail", {"retry_with_max_tokens": 50}])
            fields["response"] = {"schema": SCHEMA, "corrections": random.choice([1, 3]), "truncated": truncated}
        if self.cached:
            fields["cache"] = str(self.folder / "cache")
        if random.random() < 0.15:
            fields["budget"] = {"max_requests": random.randint(1, 30)}
        if random.random() < 0.1:
            fields["deadline"] = f"{random.randint(1, 8)}s"
        return fields

    def options(self) -> RunOptions:
        random = self.random
        choice, some = random.random(), random.randint(1, len(self.rows))
        return RunOptions(
            limit=some if choice < 0.15 else None,
            sample=some if choice > 0.9 else None,
            seed=random.randint(0, 3),
            retry_failed=frozenset(ErrorKind) if random.random() < 0.2 else None,
            prune=random.random() < 0.15,
            grace=random.choice([0.0, 0.5, 20.0]),
        )

    def run(self, options: RunOptions, fields: dict[str, Any], trouble: str) -> RunSummary | None:
        """One run; None where it crashed."""
        random, stop = self.random, StopRequest()
        self.asked = asked = Asked()
        self.prompts.add(self.prompt)
        left = random.randint(1, 12)

        def point(name: str) -> None:
            nonlocal left
            if trouble == "crash" and name == step:
                left -= 1
                if left <= 0:
                    raise Crash

        def answered() -> None:
            if trouble.startswith("stop") and asked.billed in (
                {left, left + 3} if trouble.endswith("twice") else {left}
            ):
                stop.stop(reason="asked to", exit_code=143)

        step, self.at = random.choice(STEPS), answered
        left = random.randint(1, 3) if trouble == "crash" else left
        write_rows(self.folder / "rows.jsonl", self.rows)
        job = make_job(self.folder, None, **fields)
        arguments: dict[str, Any] = {
            "transport": Provider(self.handle), "offload": inline, "environ": {}, "seed": random.randint(0, 9),
            "stop": stop, "options": options, "open_store": partial(Store.open, point=point),
        }  # fmt: skip
        clock = trio.testing.MockClock(autojump_threshold=0)
        try:
            return anyio.run(partial(run_job, job, **arguments), backend="trio", backend_options={"clock": clock})
        except BaseException as error:
            if not _is_crash(error):
                raise
            return None

    # --- what must hold

    def check(self, summary: RunSummary | None, options: RunOptions) -> None:
        try:
            records = batchchat.read_output(self.folder / "out").to_pylist()
        except UsageError:  # nothing was committed before the crash
            records = []
        live = {record["custom_id"]: record for record in records}
        spend = read_state(self.folder / "out").spend
        self.billed += self.asked.billed
        assert len(records) == len(live), "no identity twice"
        if self.keyed:
            assert len({(record["key"], record["sample_index"]) for record in records}) == len(records)
        assert spend.total_tokens == 11 * spend.requests
        lost = self.billed - spend.requests
        assert lost == self.lost if summary is not None else lost >= self.lost, "each answer is in the ledger, once"
        self.lost = lost
        new = [record for record in records if record["run_id"] not in self.runs]
        self.check_records(records)
        for record in new:
            asked = record["attempts"] > 0
            assert not (asked and record["custom_id"] in self.ever_ok), (record, "asked again, though it was answered")
        if self.dedupe:
            sent = Counter((each["text"], each["sample_index"]) for each in new if each["cache_hit"] is False)
            assert max(sent.values(), default=1) == 1, "equal requests of a run are sent once"
        if summary is not None:
            self.check_asked(new)
            self.check_counts(summary, options, live)
        self.ever_ok |= {custom_id for custom_id, record in live.items() if record["status"] == "ok"}
        self.runs |= {record["run_id"] for record in records}

    def check_records(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            if record["status"] == "ok":
                number = int(record["text"].split()[-1])
                found = record["parsed"]["n"] if self.typed else json.loads(record["completion"])["n"]
                assert found == number, record
            if record["cache_hit"]:
                assert record["attempts"] == 0 or self.typed
            if record["text"].startswith("bad"):
                assert record["status"] == "failed"

    def check_asked(self, new: list[dict[str, Any]]) -> None:
        """What the provider answered well is in records of this run, and nothing else is: no answer came in vain."""
        taken: Counter[str] = Counter()
        for own, times in self.asked.taken.items():
            taken[own.splitlines()[1]] += times
        assert taken == Counter(each["text"] for each in new if each["status"] == "ok" and not each["cache_hit"])

    def check_counts(self, summary: RunSummary, options: RunOptions, live: dict[str, dict[str, Any]]) -> None:
        rows = min([len(self.rows), *(n for n in (options.limit, options.sample) if n is not None)])
        assert summary.rows == rows
        assert summary.ok + summary.failed + summary.open == rows * self.samples, summary
        assert summary.exit_code in {0, 1, 4, 143}, summary
        assert summary.ok + summary.failed + summary.kept == len(live)
        if summary.exit_code > 1:
            assert summary.open or summary.failed or summary.exit_code == 143
            return
        assert summary.open == 0
        assert summary.exit_code == bool(summary.failed)
        if options.limit is None and options.sample is None:
            wanted = Counter((row["text"], sample) for row in self.rows for sample in range(self.samples))
            found = Counter((record["text"], record["sample_index"]) for record in live.values())
            assert not wanted - found, "every row has its records"
            if options.prune or (not self.keyed and len(self.prompts) > 1):
                assert found == wanted, "and nothing else is left"
            self.prompts = {self.prompt}


def _is_crash(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(map(_is_crash, error.exceptions))
    return isinstance(error, Crash)


def play(folder: Path, seed: int, runs: int = 5) -> None:
    """Play a scenario to its end: the last run has no trouble, and completes."""
    scenario = Scenario(folder, seed)
    random = scenario.random
    for number in range(runs):
        last = number == runs - 1
        if number:
            scenario.edit()
        fields, options = scenario.fields(), scenario.options()
        trouble = random.choice(["none", "none", "stop", "stop twice", "crash"])
        if last:
            trouble, options = "none", RunOptions(prune=True)
            fields.pop("budget", None)
            fields.pop("deadline", None)
        summary = scenario.run(options, fields, trouble)
        if summary is not None or (folder / "out" / "_batchchat" / "format.json").exists():
            scenario.check(summary, options)
    report = verify(folder / "out")
    assert report.ok, report.problems


@pytest.mark.parametrize("seed", one_in(6, range(12)))
def test_whatever_happens_the_invariants_hold(tmp_path: Path, seed: int) -> None:
    play(tmp_path, seed)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("block", range(8))
def test_whatever_happens_the_invariants_hold_in_many_runs(tmp_path: Path, block: int) -> None:
    for seed in range(1000 + 100 * block, 1100 + 100 * block):
        folder = tmp_path / str(seed)
        folder.mkdir()
        play(folder, seed, runs=7)
