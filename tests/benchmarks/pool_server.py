"""A server of the benchmark of endpoints: so many requests at once, each takes so long, and a cache of prompts' heads.

A request has two parts, as in an inference server. Its prompt is read, one prompt at a time; then its answer is
written, beside others.

`python -m tests.benchmarks.pool_server --slots 8 --seconds 0.1` prints its port and serves until it is ended. Requests
that find no free slot wait in line. With `--heads` it remembers that many beginnings of prompts, the latest ones: a
prompt whose beginning it has is read in a tenth of the time, and its answer says so (`cached_tokens`). `GET /stats`
tells how many prompts it read, and of how many it knew the beginning.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

import click
import orjson

HEAD_BYTES = 12_000
"""About 3,000 tokens."""
_READ_S = 0.04
"""Time to read a prompt whose beginning is not known."""
_CACHED_TIME = 0.1


class PoolServer:
    """The slots, the cache and the counts of one server."""

    def __init__(self, slots: int, seconds: float, heads: int) -> None:
        self._slots = asyncio.Semaphore(slots)
        self._reading = asyncio.Lock()
        self._seconds = seconds
        self._most = heads
        self._heads: OrderedDict[bytes, None] = OrderedDict()
        self.answers = self.known = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection, one after the other."""
        try:
            while line := await reader.readline():
                length = 0
                while (header := await reader.readline()).strip():
                    name, _, value = header.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                body = await reader.readexactly(length)
                answer = await self._answer(body) if line.startswith(b"POST") else self._tell(line)
                head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(answer)}\r\n\r\n"
                writer.write(head.encode() + answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _tell(self, line: bytes) -> bytes:
        if b"/models" in line:
            return orjson.dumps({"data": [{"id": "bench"}]})
        return orjson.dumps({"answers": self.answers, "known": self.known})

    async def _answer(self, body: bytes) -> bytes:
        at = body.find(b'"messages"')
        head, tokens = body[at : at + HEAD_BYTES], max(1, (len(body) - at) // 4)
        async with self._slots:
            cached = await self._read_prompt(head) if self._most else 0
            await asyncio.sleep(self._seconds)
        return self._told(tokens, cached)

    async def _read_prompt(self, head: bytes) -> int:
        """Read a prompt; return how many tokens of it were known."""
        async with self._reading:
            cached = len(head) // 4 if head in self._heads else 0
            await asyncio.sleep(_READ_S * (_CACHED_TIME if cached else 1.0))
            self._heads[head] = None
            self._heads.move_to_end(head)
            if len(self._heads) > self._most:
                self._heads.popitem(last=False)
        return cached

    def _told(self, tokens: int, cached: int) -> bytes:
        self.answers += 1
        self.known += cached > 0
        usage = {
            "prompt_tokens": tokens,
            "completion_tokens": 1,
            "total_tokens": tokens + 1,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        choice = {"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
        return orjson.dumps({"id": "c", "model": "bench", "choices": [choice], "usage": usage})


async def _run(port: int, slots: int, seconds: float, heads: int) -> None:
    server = await asyncio.start_server(PoolServer(slots, seconds, heads).serve, "127.0.0.1", port, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@click.command()
@click.option("--port", default=0, help="0 takes a free one.")
@click.option("--slots", default=8, help="Requests at once.")
@click.option("--seconds", default=0.1, help="Time of a request.")
@click.option("--heads", default=0, help="Beginnings of prompts that are kept; 0 keeps none.")
def main(port: int, slots: int, seconds: float, heads: int) -> None:
    """Answer chat completions as an inference server does, for the benchmark of endpoints."""
    asyncio.run(_run(port, slots, seconds, heads))


if __name__ == "__main__":
    main()
