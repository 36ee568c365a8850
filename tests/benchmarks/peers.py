"""What people would use instead, each over the same rows against the same server, and batchchat without its store.

`python -m tests.benchmarks.peers NAME --url … --rows FILE --concurrency N` prints `{"seconds": …, "rows": …}`. Time
counts from the first request's preparation to the last answer, after a warm-up: starting Python, importing and what a
package does at its first call are left out.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import orjson

MODEL: Final = "llama-3.1-8b-instruct"
SYSTEM: Final = "You sort support tickets into one of seven queues. Answer with its name."
_TIMEOUT_S: Final = 120.0
_WARM_UP_ROWS: Final = 20
"""Sent before the clock starts: SDKs import and build much at their first call, which few rows would not make good."""

Ask = Callable[[Sequence[dict[str, Any]], str, int], Awaitable[None]]


class Peer(NamedTuple):
    """What people would use instead: its package, its distribution, what the table calls it, and how it is run."""

    package: str
    distribution: str
    told: str
    ask: Ask


def messages(row: dict[str, Any]) -> list[dict[str, str]]:
    """The conversation that every peer sends for a row."""
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"{row['subject']}\n\n{row['body']}"},
    ]


async def openai_loop(rows: Sequence[dict[str, Any]], url: str, concurrency: int) -> None:
    """The OpenAI SDK with gather and a semaphore: the loop that most people write."""
    openai = importlib.import_module("openai")
    gate = asyncio.Semaphore(concurrency)
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="test-key", timeout=_TIMEOUT_S) as client:

        async def one(row: dict[str, Any]) -> str:
            async with gate:
                answer = await client.chat.completions.create(
                    model=MODEL, messages=messages(row), temperature=0, max_tokens=64
                )
            return str(answer.choices[0].message.content)

        _check(await asyncio.gather(*map(one, rows)), rows)


async def litellm_loop(rows: Sequence[dict[str, Any]], url: str, concurrency: int) -> None:
    """litellm's `acompletion` with gather and a semaphore."""
    litellm = importlib.import_module("litellm")
    gate = asyncio.Semaphore(concurrency)

    async def one(row: dict[str, Any]) -> str:
        async with gate:
            answer = await litellm.acompletion(
                model=f"openai/{MODEL}",
                messages=messages(row),
                temperature=0,
                max_tokens=64,
                base_url=f"{url}/v1",
                api_key="test-key",
            )
        return str(answer.choices[0].message.content)

    _check(await asyncio.gather(*map(one, rows)), rows)


async def aiohttp_loop(rows: Sequence[dict[str, Any]], url: str, concurrency: int) -> None:
    """Bare aiohttp: a worker for each slot, JSON both ways, no files and no care for failures."""
    aiohttp = importlib.import_module("aiohttp")
    texts: list[str] = []
    waiting = iter(rows)
    headers = {"content-type": "application/json", "authorization": "Bearer test-key"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:

        async def work() -> None:
            for row in waiting:
                body = {"model": MODEL, "messages": messages(row), "temperature": 0, "max_tokens": 64}
                async with session.post(f"{url}/v1/chat/completions", data=orjson.dumps(body)) as response:
                    answer = orjson.loads(await response.read())
                texts.append(answer["choices"][0]["message"]["content"])

        await asyncio.gather(*(work() for _ in range(concurrency)))
    _check(texts, rows)


async def batchllm_file(rows: Sequence[dict[str, Any]], url: str, concurrency: int) -> None:
    """BatchLLM, another whole tool: a file in, a file out, with a checkpoint to go on from."""
    batchllm = importlib.import_module("batchllm.processor")
    config = batchllm.BatchConfig(
        model=MODEL,
        system_prompt=SYSTEM,
        prompt_template="{subject}\n\n{body}",
        input_column="body",
        max_concurrent=concurrency,
        max_tokens=64,
        temperature=0.0,
        timeout=_TIMEOUT_S,
        api_key="test-key",
        base_url=f"{url}/v1",
    )
    with tempfile.TemporaryDirectory() as folder:
        given, made, checkpoint = (Path(folder) / name for name in ("in.jsonl", "out.jsonl", "checkpoint.jsonl"))
        given.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
        results = await batchllm.BatchProcessor(config).process_file(given, made, checkpoint_path=checkpoint)
    _check([result.output_text for result in results], rows)


async def lm_deluge_all(rows: Sequence[dict[str, Any]], url: str, concurrency: int) -> None:
    """lm-deluge: one call for all prompts, with its limits set so high that they never hold anything back."""
    deluge = importlib.import_module("lm_deluge")
    register = importlib.import_module("lm_deluge.models").register_model
    os.environ.setdefault("BENCHMARK_API_KEY", "test-key")
    register(id="bench", name=MODEL, api_base=f"{url}/v1", api_key_env_var="BENCHMARK_API_KEY")
    client = deluge.LLMClient(
        "bench",
        max_requests_per_minute=10**9,
        max_tokens_per_minute=10**12,
        max_concurrent_requests=concurrency,
        request_timeout=int(_TIMEOUT_S),
        temperature=0.0,
        max_new_tokens=64,
    )
    prompts = [deluge.Conversation().system(SYSTEM).user(f"{row['subject']}\n\n{row['body']}") for row in rows]
    answers = await client.process_prompts_async(prompts, show_progress=False)
    _check([answer.completion for answer in answers], rows)


PEERS: Final[dict[str, Peer]] = {
    "openai": Peer("openai", "openai", "openai SDK, gather and a semaphore", openai_loop),
    "litellm": Peer("litellm", "litellm", "litellm, gather and a semaphore", litellm_loop),
    "lm_deluge": Peer("lm_deluge", "lm-deluge", "lm-deluge, one call for all prompts", lm_deluge_all),
    "batchllm": Peer("batchllm", "batchllm-ai", "batchllm-ai", batchllm_file),
    "aiohttp": Peer("aiohttp", "aiohttp", "bare aiohttp loop, no files", aiohttp_loop),
}


def installed() -> list[str]:
    """The peers whose packages are there."""
    return [name for name, peer in PEERS.items() if importlib.util.find_spec(peer.package) is not None]


def _check(texts: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    if len(texts) != len(rows) or not all(texts):
        raise RuntimeError("a peer lost answers: its figure would mean nothing")


def run_discarding(job_path: Path) -> float:
    """Run a job whose outcomes are thrown away instead of stored; return the seconds that it took."""
    import anyio

    from batchchat.cli.process import event_loop_options
    from batchchat.job import load_job
    from batchchat.runner.run import run_job
    from batchchat.store import Entry, Store, StoreChange

    def commit(_: Store, entries: Sequence[Entry]) -> StoreChange:
        return StoreChange(committed=entries, commits=1)

    setattr(Store, "commit", commit)  # noqa: B010 - what is measured is its absence
    job = load_job(job_path)

    async def main() -> float:
        summary = await run_job(job)
        if summary.new_ok != summary.rows:
            raise RuntimeError(f"{summary.new_ok} of {summary.rows} rows are ok: {summary.reason}")
        return summary.elapsed_s

    return anyio.run(main, backend_options=event_loop_options())


def _on_fast_loop(main: Any) -> None:
    if importlib.util.find_spec("uvloop") is None:
        asyncio.run(main)
    else:
        importlib.import_module("uvloop").run(main)


@click.command()
@click.argument("name", type=click.Choice([*PEERS, "discarding"]))
@click.option("--url", default="")
@click.option("--rows", type=click.Path(path_type=Path), required=True, help="JSON lines; a job file for `discarding`.")
@click.option("--concurrency", default=64)
@click.option("--count", default=0, help="Only so many rows; 0 takes all.")
def main(name: str, url: str, rows: Path, concurrency: int, count: int) -> None:
    """Run one peer."""
    if name == "discarding":
        result = {"seconds": run_discarding(rows), "rows": 0}
    else:
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it fetches a file at import otherwise
        importlib.import_module(PEERS[name].package)
        loaded = [orjson.loads(line) for line in rows.read_bytes().splitlines()]
        loaded = loaded[:count] if count else loaded
        _on_fast_loop(PEERS[name].ask(loaded[:_WARM_UP_ROWS], url, _WARM_UP_ROWS))
        started = time.perf_counter()
        _on_fast_loop(PEERS[name].ask(loaded, url, concurrency))
        result = {"seconds": time.perf_counter() - started, "rows": len(loaded)}
    sys.stdout.write(orjson.dumps(result).decode() + "\n")


if __name__ == "__main__":
    main()
