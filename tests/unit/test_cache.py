"""The answer cache: what goes in comes out, from any process, and damage is seen."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.cache import AnswerCache, remove_cache
from batchchat.errors import StorageError, UsageError
from batchchat.reasoning import is_blank, split
from batchchat.records import Completion, Usage
from tests.thorough import examples

ANSWER = Completion(
    text="yes ✓",
    finish_reason="stop",
    model="m-1",
    usage=Usage(10, 2, 12, None, 1),
    request_id="r-1",
    reasoning="because",
    tool_calls=({"id": "c1", "type": "function", "name": "look", "arguments": "{}"},),
    logprobs=({"token": "yes", "logprob": -0.1, "top": [{"token": "no", "logprob": -2.0}]},),
)
PLAIN = Completion("no", "stop", "m-1", Usage(1, 1, 2))


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[AnswerCache]:
    opened = AnswerCache.open(tmp_path / "cache")
    yield opened
    opened.close()


def change(cache: AnswerCache, statement: str, *values: Any) -> None:
    with sqlite3.connect(cache.path) as connection:
        connection.execute(statement, values)
    connection.close()


def test_an_answer_comes_back_whole_and_the_first_one_stays(cache: AnswerCache) -> None:
    cache.add([(key(1), ANSWER), (key(2), PLAIN)])
    cache.add([(key(1), PLAIN)])
    assert cache.fetch([key(1), key(2), key(3), key(1)]) == {key(1): ANSWER, key(2): PLAIN}
    cache.close()
    again = AnswerCache.open(cache.path.parent)
    assert again.fetch([key(1)]) == {key(1): ANSWER}
    again.close()


texts = st.none() | st.text(st.characters(codec="utf-8"), max_size=20)
counts = st.none() | st.integers(0, 2**53 - 1)
calls = st.none() | st.lists(
    st.fixed_dictionaries({"id": texts, "type": texts, "name": texts, "arguments": texts}), min_size=1, max_size=3
).map(tuple)


usages = st.builds(Usage, counts, counts, counts, counts, counts)
completions = st.builds(Completion, texts, texts, texts, usages, texts, st.none(), texts, calls)
whole = completions.filter(lambda found: bool(found.tool_calls) or not is_blank(split(found.text or "")[1]))


@examples(50)
@given(st.lists(whole, max_size=5))
def test_any_completion_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, answers: list[Any]) -> None:
    opened = AnswerCache.open(tmp_path_factory.mktemp("cache"))
    opened.add(enumerate_keys(answers))
    assert opened.fetch([key(number) for number in range(9)]) == dict(enumerate_keys(answers))
    opened.close()


def enumerate_keys(answers: list[Completion]) -> list[tuple[bytes, Completion]]:
    return [(key(number), answer) for number, answer in enumerate(answers)]


def test_thousands_are_looked_up_at_once(cache: AnswerCache) -> None:
    cache.add((key(number), PLAIN) for number in range(0, 3000, 2))
    assert set(cache.fetch([key(number) for number in range(3000)])) == {key(number) for number in range(0, 3000, 2)}
    looking = AnswerCache.existing(cache.path.parent)
    assert looking is not None
    assert len(looking.known([key(number) for number in range(3000)])) == 1500
    looking.close()


def test_files_and_folder_are_private(cache: AnswerCache) -> None:
    cache.add([(key(1), ANSWER)])
    assert stat.S_IMODE(cache.path.parent.stat().st_mode) == 0o700
    names = sorted(path.name for path in cache.path.parent.iterdir())
    assert names[0] == "answers.sqlite3"
    assert {stat.S_IMODE(path.stat().st_mode) for path in cache.path.parent.iterdir()} == {0o600}


@pytest.mark.parametrize(
    "value",
    [b"{}", b"nothing", b'{"usage":[1]}', b'{"usage":[1,2,3,4,5],"text":7}', b'{"usage":[-1,2,3,4,5]}',
     b'{"usage":[1,2,3,4,5],"tool_calls":[{"id":1}]}', b'{"usage":[1,2,3,4,5],"logprobs":[7]}', b"[]", b"null"],
)  # fmt: skip
def test_what_has_not_the_form_of_an_answer_is_none_also_with_a_good_checksum(cache: AnswerCache, value: bytes) -> None:
    from batchchat.cache import _sum

    change(cache, "INSERT INTO answers VALUES (?, ?, ?)", key(1), value, _sum(key(1), value))
    assert cache.fetch([key(1)]) == {}
    assert cache.damaged == 1


def test_a_damaged_answer_is_absent_and_replaced_by_the_next_one(cache: AnswerCache) -> None:
    cache.add([(key(1), ANSWER), (key(2), PLAIN)])
    change(cache, "UPDATE answers SET value = replace(value, 'yes', 'off') WHERE id = ?", key(1))
    assert cache.fetch([key(1), key(2)]) == {key(2): PLAIN}
    assert cache.fetch([key(1)]) == {}
    assert cache.damaged == 1
    cache.add([(key(1), PLAIN)])
    assert cache.fetch([key(1)]) == {key(1): PLAIN}


@pytest.mark.parametrize("text", ["", " \n", "\u200b", "<think>never closed", "<think>so</think>\n "])
def test_an_empty_answer_of_an_earlier_version_is_absent_and_replaced(cache: AnswerCache, text: str) -> None:
    cache.add([(key(1), replace(PLAIN, text=text))])
    assert cache.fetch([key(1)]) == {}
    assert cache.damaged == 0
    cache.add([(key(1), PLAIN)])
    assert cache.fetch([key(1)]) == {key(1): PLAIN}


def test_an_answer_of_unbelievable_size_is_not_read(cache: AnswerCache) -> None:
    change(cache, "INSERT INTO answers VALUES (?, zeroblob(70000000), x'00')", key(1))
    assert cache.fetch([key(1)]) == {}


def test_a_folder_that_is_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        AnswerCache.open(write(tmp_path / "file", b"x"))
    (tmp_path / "text").mkdir()
    write(tmp_path / "text" / "answers.sqlite3", b"this is a text of someone else's, long enough to be read" * 20)
    with pytest.raises(UsageError, match="is no cache of batchchat"):
        AnswerCache.open(tmp_path / "text")
    (tmp_path / "other").mkdir()
    with sqlite3.connect(tmp_path / "other" / "answers.sqlite3") as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    with pytest.raises(UsageError, match="is no cache of batchchat"):
        AnswerCache.open(tmp_path / "other")
    for name in ("text", "other"):
        with pytest.raises(UsageError, match="is no cache of batchchat"):
            AnswerCache.existing(tmp_path / name)


def test_a_cache_of_another_version_is_refused(cache: AnswerCache) -> None:
    change(cache, "PRAGMA user_version = 7")
    with pytest.raises(UsageError, match="another version"):
        AnswerCache.open(cache.path.parent)


def test_a_file_that_breaks_under_the_reader_says_what_to_do(cache: AnswerCache) -> None:
    cache.add((key(number), ANSWER) for number in range(2000))
    cache.close()
    data = bytearray(cache.path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    cache.path.write_bytes(data)
    with pytest.raises(StorageError, match="malformed") as caught:
        look_up(cache.path.parent, 2000)
    assert "Move the folder away" in (caught.value.remedy or "")


def look_up(folder: Path, count: int) -> None:
    opened = AnswerCache.open(folder)
    try:
        opened.fetch([key(number) for number in range(count)])
    finally:
        opened.close()


def test_looking_creates_nothing_and_removing_leaves_nothing(tmp_path: Path, cache: AnswerCache) -> None:
    assert AnswerCache.existing(tmp_path / "none") is None
    assert not (tmp_path / "none").exists()
    remove_cache(tmp_path / "none")
    cache.add([(key(1), ANSWER)])
    cache.close()
    remove_cache(cache.path.parent)
    assert not cache.path.parent.exists()


def test_many_threads_may_open_a_new_cache_at_once(tmp_path: Path) -> None:
    failed: list[Exception] = []

    def work(number: int) -> None:
        try:
            opened = AnswerCache.open(tmp_path / "cache")
            opened.add((key(number * 100 + each), PLAIN) for each in range(100))
            opened.close()
        except Exception as error:  # noqa: BLE001 - told below
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    opened = AnswerCache.open(tmp_path / "cache")
    assert len(opened.known([key(number) for number in range(1000)])) == 800
    opened.close()


_CHILD = """
import sys
from batchchat.cache import AnswerCache
from batchchat.reasoning import is_blank, split
from batchchat.records import Completion, Usage
cache, start = AnswerCache.open(sys.argv[1]), int(sys.argv[2])
for number in range(start, start + 10**9, 10):
    ids = [each.to_bytes(16, "little") for each in range(number, number + 10)]
    cache.add([(id, Completion("x" * 500, "stop", "m", Usage(1, 1, 2))) for id in ids])
    print(number + 9 - start, flush=True)
"""


def test_a_writer_that_is_killed_leaves_what_it_committed_and_others_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    children = [
        subprocess.Popen([sys.executable, "-c", _CHILD, str(folder), str(number * 10**6)], stdout=subprocess.PIPE)
        for number in range(2)
    ]
    try:
        seen = [read_until(child, 400) for child in children]
    finally:
        for child in children:
            child.send_signal(signal.SIGKILL)
            child.communicate()
    opened = AnswerCache.open(folder)
    for number, last in enumerate(seen):
        ids = [key(number * 10**6 + each) for each in range(last + 1)]
        assert len(opened.fetch(ids)) == last + 1
    assert opened.damaged == 0
    opened.close()


def read_until(child: subprocess.Popen[bytes], enough: int) -> int:
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= enough:
            return int(line)
    raise AssertionError("the child ended")


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
