"""The demo model: how it labels, fills schemas, judges, summarises and replies."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.demo.model import answering, judgement, label_ranking
from batchchat.demo.model.answering import ModelAnswer, answer
from batchchat.demo.model.label_ranking import find_labels, make_labels, rank
from batchchat.demo.model.scanning import Scan
from batchchat.demo.model.schema_filler import Filler, guess_language
from batchchat.demo.request import ApiError, parse_request
from batchchat.demo.server_options import LLAMA, MISTRAL, DemoOptions
from tests.thorough import examples

TICKETS = Path(__file__).parents[2] / "sample_data" / "tickets.jsonl"


def asked(*messages: tuple[str, str], model: str = MISTRAL, seed: int = 0, **fields: Any) -> ModelAnswer:
    turns = [{"role": role, "content": content} for role, content in messages]
    body = orjson.dumps({"model": model, "temperature": 0, "messages": turns, **fields})
    return answer(parse_request(body, DemoOptions()), seed, blake2b(body, digest_size=16).digest())


def text_of(*messages: tuple[str, str], **fields: Any) -> str:
    text = asked(*messages, **fields).text
    assert text is not None
    return text


# Labels


@pytest.mark.parametrize(
    ("prompt", "labels"),
    [
        ("Labels: billing, bug, other", "billing bug other"),
        ("Label: one of billing, bug, other.", "billing bug other"),
        ("Answer with one of these labels: billing, bug or other. Nothing else.", "billing bug other"),
        ("Classify the ticket as billing, bug or other.", "billing bug other"),
        (
            "Sort into one of:\n- billing: invoices, refunds\n- bug (errors)\n- `other` - the rest\n",
            "billing bug other",
        ),
        ("Categories:\n1. Billing\n2. Bug\n", "Billing Bug"),
        ("Choose one of [billing, bug].", "billing bug"),
        ('The label is one of "billing", "bug" and "other", in lower case.', "billing bug other"),
        ("Answer with exactly one word: billing, bug.", "billing bug"),
        ("What is its sentiment (positive/negative/neutral)?", "positive negative neutral"),
        ("Choose between billing and bug.", "billing bug"),
        ("Is it spam? Answer yes or no.", "yes no"),
        ("Reply with only positive, negative or neutral", "positive negative neutral"),
        ("Which is better? Answer A, B or tie", "A B tie"),
        ("Answer in two sentences at most.", None),
        ("One of my cups, a blue one, arrived broken. I ordered it with a lamp, a chair and a table.", None),
        ("You are the assistant of a shop for household goods.", None),
        ("", None),
    ],
)
def test_labels_are_found_as_prompts_write_them(prompt: str, labels: str | None) -> None:
    found = find_labels(prompt)
    assert (None if found is None else " ".join(label.name for label in found.labels)) == labels


def test_descriptions_of_labels_count() -> None:
    prompt = "Labels: red, green\n- red: tomatoes, strawberries\n- green: cucumbers, peas"
    found = find_labels(prompt)
    assert found is not None
    assert found.described
    assert rank(found.labels, "I ate a cucumber").names[0] == "green"
    assert rank(found.labels, "I ate tomatoes").names[0] == "red"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("I was charged twice and want my money back", "billing"),
        ("The app crashes when I tap the button", "bug"),
        ("Please add a dark mode, that would be great", "feature_request"),
        ("I cannot log in, the password reset link does not come", "account"),
        ("My parcel has not arrived, where is the courier?", "shipping"),
        ("Meine Rechnung ist falsch, bitte erstatten Sie mir das Geld", "billing"),
        ("Mon colis n'est jamais arrivé, la livraison était prévue lundi", "shipping"),
        ("パスワードを忘れてログインできません", "account"),
        ("الطرد لم يصل", "shipping"),
        ("", "other"),
        ("🙂🙂🙂", "other"),
    ],
)
def test_the_label_that_shares_most_words_wins(text: str, label: str) -> None:
    labels = make_labels((name, "") for name in ("billing", "bug", "feature_request", "account", "shipping", "other"))
    assert rank(labels, text).names[0] == label


@given(
    st.text(max_size=300), st.lists(st.sampled_from(["billing", "bug", "x", "y z", "other"]), min_size=1, unique=True)
)
def test_ranking_orders_every_label_once(text: str, names: list[str]) -> None:
    ranking = rank(make_labels((name, "") for name in names), text)
    assert sorted(ranking.names) == sorted(names)
    assert 0 <= ranking.confidence <= 1


def test_without_a_match_or_an_other_the_first_label_is_the_answer() -> None:
    assert rank(make_labels([("red", ""), ("green", "")]), "Hello").names[0] == "red"


def accuracy(model: str, system: str, temperature: float) -> float:
    tickets = [orjson.loads(line) for line in TICKETS.read_bytes().splitlines()]
    right: int = sum(
        text_of(
            ("system", system),
            ("user", f"{ticket['subject']}\n\n{ticket['body'] or ''}"),
            model=model,
            temperature=temperature,
        )
        == ticket["label"]
        for ticket in tickets
    )
    return right / len(tickets)


def test_it_is_useful_on_the_sample_tickets_and_leaves_something_to_find() -> None:
    short = "Labels: billing, bug, feature_request, account, shipping, other"
    long = (
        f"{short}\n- billing: payments, refunds, invoices\n- bug: something does not work\n- feature_request: a wish"
        "\n- account: login, personal data\n- shipping: delivery, damaged goods\n- other: everything else"
    )
    large, small = accuracy(MISTRAL, long, 0), accuracy(LLAMA, long, 0)
    assert 0.70 <= accuracy(LLAMA, short, 0) < small < large <= 0.90
    assert accuracy(LLAMA, long, 1.5) < small


def test_labels_in_the_users_message_work_too() -> None:
    said = "The parcel came broken.\n\nLabels: billing, shipping, other"
    assert text_of(("user", said)) == "shipping"


# Filling schemas


def problems(value: Any, schema: Mapping[str, Any] | bool) -> list[str]:
    """Check a value against the parts of JSON Schema that these tests use."""
    if isinstance(schema, bool):
        return []
    if options := schema.get("anyOf"):
        return [] if any(not problems(value, option) for option in options) else ["anyOf"]
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    python: Mapping[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "boolean": bool,
        "null": type(None),
        "number": (int, float),
        "integer": int,
    }
    fits = [k for k in kinds if isinstance(value, python[k]) and (k == "boolean" or not isinstance(value, bool))]
    found = [] if fits or not kinds else [f"{value!r} is no {kinds}"]
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{value!r} not in enum")
    if isinstance(value, dict):
        found += [f"{name} missing" for name in schema.get("required", ()) if name not in value]
        if schema.get("additionalProperties") is False:
            found += [f"{name} extra" for name in value if name not in schema["properties"]]
        for name, part in schema.get("properties", {}).items():
            found += problems(value[name], part) if name in value else []
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 10**9):
            found.append("number of items")
        if schema.get("uniqueItems") and len({orjson.dumps(entry) for entry in value}) < len(value):
            found.append("not unique")
        found += [problem for entry in value for problem in problems(entry, schema.get("items", True))]
    if isinstance(value, str) and not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 10**9):
        found.append("length")
    if isinstance(value, int | float) and not isinstance(value, bool):
        found += ["too small"] if value < schema.get("minimum", value) else []
        found += ["too large"] if value > schema.get("maximum", value) else []
    return found


NAMES = st.sampled_from(
    ["label", "amount", "email", "order_id", "urgent", "score", "tags", "summary", "customer_name", "lang", "x"]
)


@st.composite
def _bounded(draw: st.DrawFn, kind: str, low: str, high: str, bottom: int) -> dict[str, Any]:
    first, second = sorted((draw(st.integers(bottom, 50)), draw(st.integers(bottom, 50))))
    schema: dict[str, Any] = {"type": [kind, "null"] if draw(st.booleans()) else kind}
    if draw(st.booleans()):
        schema[low] = first
    if draw(st.booleans()):
        schema[high] = second
    return schema


LEAVES = st.one_of(
    st.just({"type": "boolean"}),
    st.builds(
        lambda labels: {"enum": labels}, st.lists(st.sampled_from(["bug", "x", None, 3]), min_size=1, unique=True)
    ),
    _bounded("string", "minLength", "maxLength", 0),
    _bounded("integer", "minimum", "maximum", -50),
    _bounded("number", "minimum", "maximum", -50),
    st.just({"anyOf": [{"type": "number"}, {"type": "null"}]}),
)


def _compound(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    objects = st.dictionaries(NAMES, inner, max_size=4).map(
        lambda properties: {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
    )
    sizes = st.tuples(st.integers(0, 3), st.integers(3, 5))
    arrays = st.builds(
        lambda items, size: {"type": "array", "items": items, "minItems": size[0], "maxItems": size[1]}, inner, sizes
    )
    return st.one_of(objects, arrays)


@examples(150)
@given(st.recursive(LEAVES, _compound, max_leaves=8), st.text(max_size=120))
def test_what_is_filled_is_valid(schema: dict[str, Any], text: str) -> None:
    value = Filler(schema, text, choose=lambda labels: labels[0].name).fill()
    assert problems(value, schema) == []


def filled(schema: dict[str, Any], text: str) -> Any:
    return Filler(schema, text, choose=lambda labels: rank(labels, text).names[0]).fill()


def test_values_are_looked_up_in_the_text() -> None:
    text = (
        "Urgent! Order AB-1234 of 2026-03-05 by Ada Miller was charged 1,299.50 € instead of 12.\n"
        "Write to ada@example.org or see https://example.org/x"
    )
    nullable = {"type": ["string", "null"]}
    schema = {
        "type": "object",
        "properties": {
            "order_id": nullable, "date": nullable, "contactEmail": nullable, "link": nullable, "phone": nullable,
            "amount": {"type": "number"}, "urgent": {"type": "boolean"}, "cancelled": {"type": "boolean"},
            "customer_name": nullable, "language": {"type": "string"},
        },
    }  # fmt: skip
    assert filled(schema, text) == {
        "order_id": "AB-1234",
        "date": "2026-03-05",
        "contactEmail": "ada@example.org",
        "link": "https://example.org/x",
        "phone": None,
        "amount": 1299.5,
        "urgent": True,
        "cancelled": False,
        "customer_name": "Ada Miller",
        "language": "en",
    }


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"const": 5}, 5),
        ({"$ref": "#/$defs/label", "$defs": {"label": {"enum": ["bug", "billing"]}}}, "billing"),
        ({"allOf": [{"type": "integer"}, {"minimum": 7}]}, 49),
        ({"oneOf": [{"type": "null"}, {"enum": ["bug", "billing"]}]}, "billing"),
        ({"type": "string", "format": "date"}, "2026-01-01"),
        ({"type": "string", "pattern": r"^[A-Z]{2}-\d{4}$"}, "AB-1234"),
        ({"type": "integer", "exclusiveMinimum": 49, "exclusiveMaximum": 51}, 50),
        ({"type": "integer", "minimum": 51, "multipleOf": 10}, 60),
        ({"type": "array", "items": {"type": "string"}, "minItems": 5, "uniqueItems": True, "maxItems": 5}, 5),
        ({"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "items": False}, [1, 2]),
        ({"type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": 3, "uniqueItems": True}, ["a", "b", "c"]),
    ],
)
def test_keywords_of_schemas(schema: dict[str, Any], expected: object) -> None:
    value = filled(schema, "Invoice AB-1234 was charged 49 times")
    assert (len(set(value)) if expected == 5 and isinstance(value, list) else value) == expected


def test_a_schema_that_refers_to_itself_ends() -> None:
    node: dict[str, Any] = {
        "type": "object",
        "properties": {
            "children": {"type": "array", "items": {"$ref": "#"}},
            "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        },
    }
    value = filled(node, "text")
    assert isinstance(value["children"], list)
    filled({"$ref": "#"}, "text")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Where is my order?", "en"),
        ("Wo ist das Paket und der Fahrer?", "de"),
        ("שלום", "he"),
        ("ご注文", "ja"),
        ("", "en"),
    ],
)
def test_languages_are_guessed(text: str, code: str) -> None:
    assert guess_language(text) == code


def test_a_schema_or_an_example_in_the_prompt_is_followed() -> None:
    schema = {"type": "object", "properties": {"label": {"enum": ["bug", "billing"]}}, "required": ["label"]}
    for prompt in (
        f"Answer with JSON that fits this schema: {orjson.dumps(schema).decode()}",
        'Answer with JSON like {"label": "bug | billing"}',
    ):
        assert orjson.loads(text_of(("system", prompt), ("user", "My invoice is wrong"))) == {"label": "billing"}


def test_a_correction_answers_the_first_question_again() -> None:
    schema = {"type": "object", "properties": {"label": {"enum": ["bug", "billing"]}}, "required": ["label"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    text = text_of(
        ("user", "My invoice is wrong"),
        ("assistant", '{"label": "refunds"}'),
        ("user", "That does not fit the schema: the label must be bug or billing. Answer with valid JSON only."),
        response_format=wanted,
    )
    assert orjson.loads(text) == {"label": "billing"}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": ["a"]},
        {"type": "object", "required": 5},
        {"type": "integer", "minimum": "low"},
        {"type": "array", "minItems": "many"},
        {"type": "string", "minLength": [1]},
    ],
)
def test_what_is_no_schema_is_refused(schema: dict[str, Any]) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(ApiError, match="schema") as caught:
        asked(("user", "Hello there"), response_format=wanted)
    assert caught.value.status == 400


# Judging, summarising, replying


@pytest.mark.parametrize(
    ("candidate", "grade"),
    [
        ("Unused lamps can be returned within thirty days", "5"),
        ("Lamps can be returned", "3"),
        ("Bananas are yellow", "1"),
    ],
)
def test_a_rating_follows_the_words_shared_with_the_reference(candidate: str, grade: str) -> None:
    prompt = (
        "Rate the answer from 1 to 5.\n\nQuestion: May I return a lamp?\n"
        f"Reference: Unused lamps can be returned within thirty days\nAnswer: {candidate}"
    )
    assert text_of(("user", prompt)) == grade


def test_the_better_of_two_wins_in_either_order() -> None:
    good, bad = "You can return the lamp within thirty days.", "Bananas are yellow and bend."
    for first, second, expected in ((good, bad, "A"), (bad, good, "B"), (good, good, "tie")):
        prompt = f"Question: May I return the lamp after thirty days?\n\nAnswer A:\n{first}\n\nAnswer B:\n{second}\n"
        system = "You compare two answers. Which answer is better? Reply with A, B or tie."
        assert text_of(("system", system), ("user", prompt)) == expected


def test_a_typed_verdict_is_judged_too() -> None:
    schema = {
        "type": "object",
        "properties": {"score": {"type": "integer", "minimum": 0, "maximum": 10}, "reason": {"type": "string"}},
        "required": ["score", "reason"],
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema}}
    scores = []
    for candidate in ("Bananas are yellow", "Unused lamps can be returned"):
        prompt = f"Grade the answer.\nReference: Unused lamps can be returned\nAnswer: {candidate}"
        scores.append(orjson.loads(text_of(("user", prompt), response_format=wanted))["score"])
    assert scores == [0, 10]


def test_a_summary_skips_title_and_greeting_and_keeps_to_the_length() -> None:
    article = (
        "Bridge closed\n\nHello all! The stone bridge will be closed to all cars from Monday. It was built in 1820."
    )
    system = "Write a one-sentence summary."
    assert text_of(("system", system), ("user", article)) == "The stone bridge will be closed to all cars from Monday."
    limited = text_of(("system", "Summarise in at most 4 words."), ("user", article))
    assert limited == "The stone bridge will"
    assert text_of(("user", f"Summarize this: {article.partition(chr(10))[2]}")).startswith("The stone bridge")


def test_a_conversation_gets_a_reply_that_quotes_the_last_message() -> None:
    reply = text_of(
        ("system", "You are kind."), ("user", "hello?"), ("assistant", "Yes?"), ("user", "Can I return a lamp?")
    )
    assert "“Can I return a lamp?”" in reply
    warm = [text_of(("user", f"Hi {n}"), temperature=1.0) for n in range(20)]
    assert len({re.sub(r"“.*”", "", text) for text in warm}) > 1


# Whatever comes, it answers


@examples(150)
@given(
    system=st.text(max_size=200)
    | st.sampled_from(["Rate from 1 to 5", "Labels: a, b", "JSON {", 'JSON {"a": [{"b": 1}]}']),
    said=st.text(max_size=200) | st.sampled_from(["Answer:\n", "Answer A:\nx\nAnswer B:\ny", "Summarise:"]),
    format_=st.sampled_from(["text", "json_object"]),
    temperature=st.sampled_from([0, 1, 2]),
)
def test_it_always_answers_and_always_the_same(system: str, said: str, format_: str, temperature: int) -> None:
    fields: dict[str, Any] = {"response_format": {"type": format_}, "temperature": temperature}
    first = text_of(("system", system), ("user", said), **fields)
    assert first == text_of(("system", system), ("user", said), **fields)
    if format_ == "json_object":
        assert isinstance(orjson.loads(first), dict)


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "1",
        " ",
        "\t\n",
        "label: one of ",
        "a, ",
        "(",
        "((a/",
        "- x: y\n",
        "Answer A:\n",
        "{",
        "[",
        "1,1",
        "a@",
        "AB-1",
        "é",
        "| ",
    ],
)
def test_repetitive_text_takes_no_time_to_read(unit: str) -> None:
    said = (unit * 150_000)[:150_000]
    properties = {name: {"type": ["string", "null"]} for name in ("email", "phone", "order_id", "date", "name", "url")}
    schema = {"type": "object", "properties": {**properties, "amount": {"type": "number"}, "n": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    started = time.process_time()
    asked(("user", said))
    asked(("system", "Rate from 1 to 5. Answer with JSON."), ("user", said), response_format=wanted)
    assert time.process_time() - started < 2


SCANS = {name: scan for module in (answering, judgement, label_ranking) for name, scan in vars(module).items()}
SCANS = {name: scan for name, scan in SCANS.items() if isinstance(scan, Scan)}
SAID = (
    "label labels category categorise class one of either option as into to with say answer only rate rated better "
    "a, b or c d|e choose between pick decide summary summarise tl;dr headline which x y 1. : , . \u0130 \u017fay"
)


@pytest.mark.parametrize("name", SCANS)
@given(
    words=st.lists(
        st.sampled_from([*SAID.split(), "Labels:", "RATE", "\n", "\n- one\n- two\n", "as a, b or c"]), max_size=25
    )
)
@examples(100)
def test_a_scan_finds_what_its_pattern_finds(name: str, words: list[str]) -> None:
    scan, text = SCANS[name], " ".join(words)
    expected = [match.span() for match in scan._pattern.finditer(text)]
    assert [match.span() for match in scan.finditer(text)] == expected
    assert [match.span() for match in [scan.search(text)] if match] == expected[:1]
