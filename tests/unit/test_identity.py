from __future__ import annotations

from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.identity import DIGEST_SIZE, Identity, failed_row_id, row_bytes

DIGEST = bytes(range(16))


@pytest.mark.parametrize(
    ("provider", "key", "occurrence", "sample_index", "expected"),
    [
        ("scaleway", None, 0, 0, "b27dcdf3165f17e85b0836d0c387b7b0"),
        ("scaleway", None, 1, 0, "5234f8ea1f7fd5d00c6af28a803f5965"),
        ("scaleway", None, 0, 1, "feb57d1a0c2d7eaeb96e1e9a347106f9"),
        ("scaleway", "T-1001", 0, 0, "992345f093a3d87ba893cebe91c362d2"),
        ("scaleway", "ключ", 0, 0, "df18369415d083d1bf03a2a117a040e8"),
        ("https://llm.example.com/v1", None, 0, 0, "e7b8d8920871e1c9d53793e9c1547f4f"),
    ],
)
def test_golden_ids_never_change(
    provider: str, key: str | None, occurrence: int, sample_index: int, expected: str
) -> None:
    # A changed id makes users pay again for every answer they have. Do not adapt these values to new code.
    found = Identity(provider).custom_id(DIGEST, key=key, occurrence=occurrence, sample_index=sample_index)
    assert found == expected


@pytest.mark.parametrize(
    ("source", "raw", "occurrence", "expected"),
    [
        ("tickets.jsonl", b'{"broken', 0, "a256724d978ede8ba8a0ca2c97e979b7"),
        ("tickets.jsonl", b'{"broken', 1, "662b44edf9a1b8f1a6387fc31e459edb"),
        ("-", b"", 0, "1b2c4fc7ea8b6e173915c862495e44e7"),
    ],
)
def test_golden_ids_of_failed_rows_never_change(source: str, raw: bytes, occurrence: int, expected: str) -> None:
    assert failed_row_id(source, raw, occurrence=occurrence) == expected


def test_an_id_follows_its_documented_encoding() -> None:
    # Made by hand from the module's description, so that the description stays true.
    def text(value: bytes) -> bytes:
        return len(value).to_bytes(8, "little") + value

    head = b"batchchat custom_id 1\n" + text(b"demo") + b"\x01" + DIGEST + (3).to_bytes(8, "little")
    for tail, key, occurrence in ((b"kT7", "T7", 0), (b"o" + (9).to_bytes(8, "little"), None, 9)):
        expected = blake2b(head + tail, digest_size=16).hexdigest()
        assert Identity("demo").custom_id(DIGEST, key=key, occurrence=occurrence, sample_index=3) == expected


parts = st.tuples(
    st.text(max_size=8),
    st.binary(min_size=DIGEST_SIZE, max_size=DIGEST_SIZE),
    st.one_of(st.none(), st.text(max_size=12)),
    st.integers(0, 2**63),
    st.integers(0, 1000),
)


@given(parts, parts)
def test_ids_are_equal_only_if_all_parts_are(
    one: tuple[str, bytes, str | None, int, int], other: tuple[str, bytes, str | None, int, int]
) -> None:
    def identity(part: tuple[str, bytes, str | None, int, int]) -> str:
        provider, digest, key, occurrence, sample = part
        return Identity(provider).custom_id(digest, key=key, occurrence=occurrence, sample_index=sample)

    def meaning(part: tuple[str, bytes, str | None, int, int]) -> tuple[object, ...]:
        provider, digest, key, occurrence, sample = part
        return provider, digest, key, occurrence if key is None else None, sample

    assert (identity(one) == identity(other)) == (meaning(one) == meaning(other))


def test_a_key_cannot_be_mistaken_for_an_occurrence() -> None:
    identity = Identity("demo")
    number = (5).to_bytes(8, "little").decode()
    assert identity.custom_id(DIGEST, key=number) != identity.custom_id(DIGEST, occurrence=5)


def test_making_one_id_does_not_change_the_next() -> None:
    identity = Identity("demo")
    first = identity.custom_id(DIGEST, key="a")
    identity.custom_id(DIGEST, key="b")
    assert identity.custom_id(DIGEST, key="a") == first


@given(st.text(max_size=6), st.binary(max_size=6), st.text(max_size=6), st.binary(max_size=6))
def test_failed_rows_differ_by_source_and_bytes(source: str, raw: bytes, other: str, other_raw: bytes) -> None:
    same = (source, raw) == (other, other_raw)
    assert (failed_row_id(source, raw) == failed_row_id(other, other_raw)) == same


def test_a_failed_row_is_told_by_occurrence_and_sample() -> None:
    ids = {
        failed_row_id("a.jsonl", b"x", occurrence=occurrence, sample_index=sample)
        for occurrence in range(3)
        for sample in range(3)
    }
    assert len(ids) == 9


@given(st.dictionaries(st.text(max_size=5), st.one_of(st.none(), st.integers(), st.floats(), st.text(), st.binary())))
def test_row_bytes_do_not_depend_on_the_order_of_fields(row: dict[str, object]) -> None:
    assert row_bytes(row) == row_bytes(dict(reversed(row.items())))


def test_golden_ids_of_answers_never_change() -> None:
    # As above: a changed id empties every cache.
    assert Identity("scaleway").answer_id(DIGEST).hex() == "525b87f9f9800da598d7d110e2e0d0b7"
    assert Identity("scaleway").answer_id(DIGEST, 2).hex() == "480279459e5e5e3439b99204ea1705db"
    head = (
        b"batchchat custom_id 1\n" + (4).to_bytes(8, "little") + b"demo" + b"\x03" + DIGEST + (3).to_bytes(8, "little")
    )
    assert Identity("demo").answer_id(DIGEST, 3) == blake2b(head, digest_size=16).digest()
