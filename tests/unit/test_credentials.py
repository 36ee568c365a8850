"""Keys: from a variable, a file or a command, cleaned, refused, and read again once after a 401."""

from __future__ import annotations

import os
import re
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from batchchat.client import ChatClient
from batchchat.client.masking import KeyMask
from batchchat.credentials import Credential, KeyProblem, KeySource, header_field
from batchchat.providers import Provider
from batchchat.records import Reply, Verdict

KEY = "canary-key-0123456789"
OTHER = "canary-key-9876543210"


def in_file(tmp_path: Path, text: str, mode: int = 0o600) -> KeySource:
    path = tmp_path / "key.txt"
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return KeySource(file=str(path))


def by_python(code: str, **fields: Any) -> KeySource:
    return KeySource(command=(sys.executable, "-S", "-c", code), environ=dict(os.environ), **fields)


def by_shell(code: str, **fields: Any) -> KeySource:
    return KeySource(command=("/bin/sh", "-c", code), environ=dict(os.environ), **fields)


@pytest.mark.parametrize("text", [KEY, f"{KEY}\n", f"{KEY}\r\n"])
def test_a_file_gives_its_key_without_a_word_about_its_last_line_break(tmp_path: Path, text: str) -> None:
    told: list[str] = []
    assert in_file(tmp_path, text).read(told.append) == KEY
    assert told == []


@pytest.mark.parametrize(
    ("text", "what"), [(f"\n\n{KEY}\n", "white space"), (f'"{KEY}"\n', "quotes"), (f"\ufeff{KEY}", "white space")]
)
def test_what_stands_around_a_key_is_taken_off_with_a_warning(tmp_path: Path, text: str, what: str) -> None:
    told: list[str] = []
    assert in_file(tmp_path, text).read(told.append) == KEY
    assert f"with {what} around it" in told[0]
    assert "canary" not in told[0]


def test_a_file_that_others_can_read_gets_a_warning(tmp_path: Path) -> None:
    told: list[str] = []
    source = in_file(tmp_path, KEY, 0o644)
    assert source.read(told.append) == KEY
    path = source.file
    assert told == [
        f"other users of this machine can read the key in the file {path}: `chmod 600 {path}` keeps it private"
    ]


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "cannot be read: No such file"),
    "empty": (lambda path: path.write_text(" \n"), "is empty: it should give the key"),
    "folder": (lambda path: path.mkdir(), "is no regular file"),
    "pipe": (os.mkfifo, "is no regular file"),
    "two keys": (lambda path: path.write_text(f"{KEY}\n{OTHER}\n"), "holds characters that no key has"),
    "no text": (lambda path: path.write_bytes(b"\xff\xfe"), "gives no text"),
    "a book": (lambda path: path.write_text("x" * 20_000), "gives more than 16,384 bytes"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_without_a_usable_key_is_refused_in_words(tmp_path: Path, case: str) -> None:
    make, words = BAD_FILES[case]
    make(tmp_path / "key")
    source = KeySource(file=str(tmp_path / "key"))
    with pytest.raises(KeyProblem, match=words) as raised:
        source.read()
    assert raised.value.exit_code == 2
    assert raised.value.remedy
    assert "canary" not in str(raised.value)
    assert str(source.problem()) == str(raised.value)


def test_a_command_runs_in_its_folder_with_the_environment_and_without_a_shell(tmp_path: Path) -> None:
    script = tmp_path / "token.sh"
    script.write_text('#!/bin/sh\nprintf "%s\\n" "$TOKEN-$1-$(basename "$PWD")"\n')
    script.chmod(stat.S_IRWXU)
    source = KeySource(command=("./token.sh", "$HOME"), environ={"TOKEN": "t0ken", "PATH": "/bin:/usr/bin"})
    source = KeySource(command=source.command, environ=source.environ, folder=tmp_path)
    told: list[str] = []
    assert source.read(told.append) == f"t0ken-$HOME-{tmp_path.name}"
    assert told == []
    assert source.problem() is None


BAD_COMMANDS: dict[str, tuple[KeySource, str]] = {
    "missing": (KeySource(command=("no-such-program-here",), environ={"PATH": "/bin"}), "is not found"),
    "fails": (by_shell("echo first >&2; echo 'log in again' >&2; exit 3"), "failed with exit code 3: log in again"),
    "fails and shows": (by_shell(f"echo {KEY}; echo 'bad {KEY} {OTHER}' >&2; exit 1"), r"bad \*\*\* \*\*\*"),
    "silent": (by_shell("true"), "printed nothing: it should give the key"),
    "two lines": (by_shell(f"echo {KEY}; echo {OTHER}"), "holds characters that no key has"),
    "endless": (by_shell("while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyy; done"), "gives more than 16,384 bytes"),
    "hangs": (by_shell("sleep 60", timeout=0.1), "did not end within 0.1 s"),
    "closes and hangs": (by_shell("exec >&- 2>&-; sleep 60", timeout=0.1), "did not end within 0.1 s"),
}


@pytest.mark.parametrize("case", BAD_COMMANDS)
def test_a_command_without_a_usable_key_is_refused_in_words(case: str) -> None:
    source, words = BAD_COMMANDS[case]
    began = time.monotonic()
    with pytest.raises(KeyProblem, match=words) as raised:
        source.read()
    assert time.monotonic() - began < 30
    assert raised.value.remedy
    assert "canary" not in str(raised.value)


def test_a_command_that_leaves_a_service_behind_gives_its_key_at_once() -> None:
    source = by_shell(f"sleep 2 & echo {KEY}", timeout=1.5)
    assert source.read() == KEY


def test_a_command_that_says_much_on_standard_error_is_not_held_up() -> None:
    assert by_python(f"import sys; sys.stderr.write('x' * 300_000); print('{KEY}')").read() == KEY


@pytest.mark.parametrize(
    ("header", "scheme", "field"),
    [
        (None, None, ("Authorization", f"Bearer {KEY}")),
        ("authorization", None, ("authorization", f"Bearer {KEY}")),
        ("api-key", None, ("api-key", KEY)),
        ("Authorization", "", ("Authorization", KEY)),
        ("X-Key", "Token", ("X-Key", f"Token {KEY}")),
    ],
)
def test_the_header_of_a_key(header: str | None, scheme: str | None, field: tuple[str, str]) -> None:
    assert header_field(KEY, header, scheme) == field


def test_nothing_that_is_printed_of_a_source_or_a_credential_holds_a_secret(tmp_path: Path) -> None:
    source = KeySource(env="THE_KEY", environ={"THE_KEY": KEY})
    for thing in (source, Credential(KEY, source), KeyMask(KEY), Credential(KEY)):
        assert "canary" not in repr(thing)


def test_a_mask_keeps_the_last_keys(tmp_path: Path) -> None:
    mask = KeyMask()
    assert mask("plain") == "plain"
    for number in range(6):
        mask.add(f"canary-key-{number}")
    assert mask("canary-key-5 canary-key-2 canary-key-1") == "*** *** canary-key-1"
    assert mask.clean(b"canary-key-4") == b"***"


# --- read again


class Rotating(httpx.AsyncBaseTransport):
    """A service that takes one key at a time; `taken` lists the keys that came with requests, in order."""

    def __init__(self, valid: str) -> None:
        self.valid = valid
        self.taken: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        await anyio.sleep(0.01)
        self.taken.append(given)
        if given != self.valid:
            error = {"message": f"{given} has expired", "type": "invalid_request_error", "code": "invalid_api_key"}
            return httpx.Response(401, json={"error": error})
        message = {"role": "assistant", "content": "fine"}
        return httpx.Response(200, json={"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


class Counting:
    """Runs blocking code in the loop's thread, and counts how often."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self, work: Callable[..., Any], *args: Any) -> Any:
        self.count += 1
        await anyio.sleep(0.01)
        return work(*args)


def client_of(server: Rotating, credential: Credential) -> ChatClient:
    provider = Provider(name="custom", base_url="http://host.invalid/v1", identity="x")
    return ChatClient(provider, server, api_key=credential, request_timeout=10)


async def sends(client: ChatClient, number: int) -> list[Reply]:
    replies: list[Reply] = []

    async def one() -> None:
        replies.append(await client.send(b"{}"))

    async with anyio.create_task_group() as group:
        for _ in range(number):
            group.start_soon(one)
    return replies


def play(use: Callable[[], Any]) -> Any:
    return anyio.run(use)


def test_many_refusals_cause_one_reading_and_no_failure(tmp_path: Path) -> None:
    source, offload, told = in_file(tmp_path, KEY), Counting(), list[str]()
    server = Rotating(KEY)

    async def use() -> None:
        client = client_of(server, Credential(source.read(), source, offload=offload, tell=told.append))
        async with client:
            for turn, key in enumerate([KEY, OTHER, "canary-key-third-1"]):
                in_file(tmp_path, key)
                server.valid = key
                assert {reply.verdict for reply in await sends(client, 20)} == {Verdict.OK}
                assert offload.count == turn

    play(use)
    assert len(server.taken) == 20 + 40 + 40
    assert len(told) == 2
    assert "canary" not in " ".join(told)


@pytest.mark.parametrize(
    ("then", "words"),
    [
        (KEY, "still gives the same key"),
        ("canary-key-wrong-1", "has given another key, which is refused too"),
        ("", "could not be read again: the file .* is empty"),
    ],
)
def test_a_key_that_stays_refused_is_fatal_and_says_why(tmp_path: Path, then: str, words: str) -> None:
    source, offload, server = in_file(tmp_path, KEY), Counting(), Rotating(KEY)

    async def use() -> list[Reply]:
        async with client_of(server, Credential(source.read(), source, offload=offload)) as client:
            assert (await client.send(b"{}")).verdict is Verdict.OK
            server.valid = OTHER
            in_file(tmp_path, then)
            return await sends(client, 5) + [await client.send(b"{}")]

    replies = play(use)
    assert offload.count == 1
    for reply in replies:
        assert reply.verdict is Verdict.FATAL
        assert reply.failure is not None
        assert reply.failure.http_status == 401
        assert "canary" not in reply.failure.message
    failure = replies[0].failure
    assert failure is not None
    assert re.search(words, failure.message), failure.message


def test_a_command_that_gives_a_new_key_at_each_call_is_not_called_without_end() -> None:
    calls: list[str] = []

    source = by_python("import time; print('canary-key-' + str(time.time_ns()))")

    async def offload(work: Callable[..., Any]) -> Any:
        calls.append("read")
        return work()

    async def use() -> list[Reply]:
        server = Rotating("nothing that is ever given")
        async with client_of(server, Credential(source.read(), source, offload=offload)) as client:
            return [await client.send(b"{}") for _ in range(4)]

    assert {reply.verdict for reply in play(use)} == {Verdict.FATAL}
    assert calls == ["read"]


def test_a_key_of_the_environment_is_not_read_again() -> None:
    source, offload = KeySource(env="K", environ={"K": KEY}), Counting()

    async def use() -> Reply:
        async with client_of(Rotating(OTHER), Credential(KEY, source, offload=offload)) as client:
            return await client.send(b"{}")

    assert play(use).verdict is Verdict.FATAL
    assert offload.count == 0


def test_requests_that_wait_for_a_slow_failure_do_not_start_it_anew(tmp_path: Path) -> None:
    """The key is read once for all of them, however long it takes, and again for a request that comes much later."""
    source, calls = in_file(tmp_path, KEY), list[str]()

    async def offload(work: Callable[..., Any]) -> Any:
        calls.append("read")
        await anyio.sleep(0.3)
        return work()

    async def use() -> None:
        server = Rotating(OTHER)
        async with client_of(server, Credential(KEY, source, offload=offload, again_s=0.2)) as client:
            assert {reply.verdict for reply in await sends(client, 8)} == {Verdict.FATAL}
            assert calls == ["read"]
            in_file(tmp_path, OTHER)
            await anyio.sleep(0.25)
            assert (await client.send(b"{}")).verdict is Verdict.OK
            assert calls == ["read"] * 2

    play(use)
