from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchchat.errors import JobError
from batchchat.template import Rendered, RowTemplateError, Template, compile_template
from tests.thorough import examples


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def one(content: str, **params: Any) -> Template:
    return compile_template(user(content), params, model="m")


def text(content: str, values: dict[str, Any]) -> str:
    """What a template says to a row, as it stands in the body."""
    body = orjson.loads(one(content).render(values).body)
    found: str = body["messages"][0]["content"]
    return found


def failure(template: Template, values: dict[str, Any]) -> str:
    with pytest.raises(RowTemplateError) as caught:
        template.render(values)
    return str(caught.value)


EVERY_KIND = [
    one("{{ a }}{{ b }}"),
    one("{{ a|upper }}{% for item in b %}{{ item }}{% endfor %}{{ row|tojson }}"),
    one("{{ a + b }}{{ a * 3 }}{{ a|int ** 2 }}{{ a|join(b) }}{{ loop }}"),
    one("x", seed="{{ a }}", stop=["{{ b }}"], user="u {{ a }}"),
    compile_template([{"role": "{{ a }}", "content": "{{ b|tojson(indent=1) }}"}], {}, model="m"),
    compile_template({"from": "a"}, {}, model="m"),
]
ROW = {
    "subject": "Refund",
    "body": 'He said "no".\nTwice.',
    "n": 3,
    "tags": ["a", "b"],
    "meta": {"items": 2, "lang": "en"},
}


class TestBody:
    def test_a_row_becomes_the_body_of_a_request(self) -> None:
        messages = [
            {"role": "system", "content": "You sort tickets."},
            {"role": "user", "content": "{{ subject }}\n\n{{ body }}"},
        ]
        rendered = compile_template(messages, {"temperature": 0, "max_tokens": 64}, model="llama").render(ROW)
        assert json.loads(rendered.body) == {
            "model": "llama",
            "temperature": 0,
            "max_tokens": 64,
            "messages": [
                {"role": "system", "content": "You sort tickets."},
                {"role": "user", "content": 'Refund\n\nHe said "no".\nTwice.'},
            ],
        }
        assert rendered.max_tokens == 64
        assert len(rendered.digest) == 16

    def test_the_wire_keeps_the_order_of_params(self) -> None:
        schema = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "string"}}}
        body = one("x", top_p=1, response_format=schema, max_tokens=1).render({}).body
        assert list(json.loads(body)) == ["model", "top_p", "response_format", "max_tokens", "messages"]
        assert list(json.loads(body)["response_format"]["properties"]) == ["z", "a"]

    def test_parts_of_a_message_are_templates_at_any_depth(self) -> None:
        content = [
            {"type": "text", "text": "About {{ subject }}"},
            {"type": "image_url", "image_url": {"url": "https://pictures.example/{{ n }}.png", "detail": "low"}},
        ]
        body = json.loads(compile_template(user(content), {}, model="m").render(ROW).body)
        assert body["messages"][0]["content"] == [
            {"type": "text", "text": "About Refund"},
            {"type": "image_url", "image_url": {"url": "https://pictures.example/3.png", "detail": "low"}},
        ]

    def test_extra_body_is_put_beside_the_params(self) -> None:
        body = json.loads(one("x", temperature=0, extra_body={"top_k": 20}).render({}).body)
        assert body["top_k"] == 20
        assert "extra_body" not in body

    @given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.text(), min_size=3))
    def test_any_text_arrives_unchanged(self, row: dict[str, str]) -> None:
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            assert "Unicode" in failure(one("{{ a }}|{{ b }}|{{ c }}"), row)
        else:
            assert text("{{ a }}|{{ b }}|{{ c }}", row) == f"{row['a']}|{row['b']}|{row['c']}"

    def test_data_is_never_a_template(self) -> None:
        row = {"body": "{{ secret }} {% for x in y %} {# no #}", "secret": "s"}
        assert text("{{ body }}", row) == row["body"]
        conversation = {"turns": user("{{ secret }}"), "secret": "s"}
        body = compile_template({"from": "turns"}, {}, model="m").render(conversation).body
        assert json.loads(body)["messages"][0]["content"] == "{{ secret }}"

    def test_a_body_is_bounded(self) -> None:
        assert "over the limit" in failure(one("{{ body }}"), {"body": '"' * 3_000_000})
        assert "characters" in failure(one("{{ body }}"), {"body": "x" * 5_000_000})


class TestTexts:
    @pytest.mark.parametrize(
        ("source", "expected"),
        [
            ("{{ subject }}", "Refund"),
            ("{{ subject|upper }}!", "REFUND!"),
            ("{{ n }} {{ n * 2 }}", "3 6"),
            ("{% if n > 2 %}many{% else %}few{% endif %}", "many"),
            ("{% for tag in tags %}{{ loop.index }}{{ tag }}{{ ',' if not loop.last }}{% endfor %}", "1a,2b"),
            ("{{ tags|join(', ') }}", "a, b"),
            ("{{ meta.lang }} {{ meta['lang'] }}", "en en"),
            ("{{ meta.items }}", "2"),  # the field, not the method of the same name
            ("{{ row['subject'] }}", "Refund"),
            ("{{ row['a b'] }}", "spaced"),
            ("{{ nothing }}|{{ nothing or 'none' }}", "|none"),
            ("{{ missing|default('-') }}", "-"),
            ("{{ 'yes' if missing is defined else 'no' }}", "no"),
            ("{{ meta|tojson }}", '{"items":2,"lang":"en"}'),
            ("{{ html|tojson }}", '"<b> é & \'"'),
            ("{{ html }}", "<b> é & '"),
            ("{{ meta|tojson(indent=2) }}", '{\n  "items": 2,\n  "lang": "en"\n}'),
            ("{{ '%05.1f'|format(ratio) }} {{ '{:>4}'.format(n) }}", "000.5    3"),
            ("{{ body|replace('\\n', ' ') }}", 'He said "no". Twice.'),
            ("{{ tags|map('upper')|list }}", '["A","B"]'),
            ("{% set total = n + 1 %}{{ total }}", "4"),
            ("{% macro bold(t) %}**{{ t }}**{% endmacro %}{{ bold(subject) }}", "**Refund**"),
            ("{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}in{% endcall %}", "<in>"),
            ("{% filter upper %}{{ subject }}{% endfilter %}", "REFUND"),
            ("{% for k, v in meta|dictsort %}{{ k }}={{ v }};{% endfor %}", "items=2;lang=en;"),
            ("{{ day }} {{ day.year }} {{ at.strftime('%H:%M') }}", "2026-11-01 2026 09:30"),
            ("{{ price }}", "1.50"),
            ("{{ flag }} {{ ratio }}", "true 0.5"),
            ("{{ 'one'\n~ 'two' }}\n", "onetwo\n"),
            ("a{# comment #}b{% raw %}{{ c }}{% endraw %}", "ab{{ c }}"),
            ("{{ subject[:3] }}{{ subject[-1] }}", "Refd"),
            ("** 100% {{ n }} **", "** 100% 3 **"),
        ],
    )
    def test_templates_say_what_jinja_says(self, source: str, expected: str) -> None:
        row = {
            **ROW,
            "a b": "spaced",
            "nothing": None,
            "html": "<b> é & '",
            "day": date(2026, 11, 1),
            "at": datetime(2026, 11, 1, 9, 30, tzinfo=UTC),
            "price": Decimal("1.50"),
            "flag": True,
            "ratio": 0.5,
        }
        assert text(source, row) == expected

    @given(
        st.dictionaries(
            st.sampled_from(["a", "b"]),
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(codec="utf-8"))),
        )
    )
    def test_plain_and_computed_texts_agree(self, row: dict[str, Any]) -> None:
        # The second form renders through Jinja2, the first without it.
        plain, computed = one("x{{ a }}-{{ b }}"), one("x{{ a }}-{{ b }}{% if false %}{% endif %}")

        def outcome(template: Template) -> Any:
            try:
                return template.render(row)
            except RowTemplateError as error:
                return str(error)

        assert outcome(plain) == outcome(computed)

    def test_a_column_called_row_is_that_column(self) -> None:
        assert text("{{ row }}", {"row": "mine"}) == "mine"

    def test_a_column_may_have_the_name_of_a_jinja_function(self) -> None:
        assert text("{{ range }} {{ range|upper }}", {"range": "wide"}) == "wide WIDE"

    def test_big_integers_are_written_in_full(self) -> None:
        assert text("{{ n|tojson }} {{ n }}", {"n": 2**70}) == f"{2**70} {2**70}"


anything = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.decimals(), st.datetimes()
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=5,
)


class TestMistakes:
    @examples(60)
    @given(st.dictionaries(st.sampled_from(["a", "b", "row", "loop"]), anything))
    @example({"a": Decimal("sNaN")})
    def test_a_row_gives_a_request_or_a_row_template_error(self, row: dict[str, Any]) -> None:
        for template in EVERY_KIND:
            try:
                body = template.render(row).body
            except RowTemplateError:
                continue
            assert json.loads(body)["model"] == "m"

    def test_a_missing_column_is_named_with_the_nearest_one(self) -> None:
        for source in ("{{ subjct }}", "{{ subjct|upper }}"):
            message = failure(one(source), ROW)
            assert "messages.0.content" in message
            assert "'subjct'" in message
            assert "did you mean 'subject'?" in message
            assert "subject, body, n, tags, meta" in message

    def test_a_missing_field_lists_the_fields(self) -> None:
        assert "there are: items, lang" in failure(one("{{ meta.language }}"), ROW)

    def test_an_error_message_is_bounded(self) -> None:
        assert len(failure(one("{{ a[b] }}"), {"a": {}, "b": "x" * 50_000})) < 2_100

    def test_many_columns_are_not_all_listed(self) -> None:
        message = failure(one("{{ x }}"), {f"column_{number}": 1 for number in range(1_000)})
        assert "and 970 more" in message

    @pytest.mark.parametrize(
        ("source", "reason"),
        [
            ("{{ subject.upper }}", "call it with ()"),
            ("{{ tags|map('upper') }}", "|list"),
            ("{{ n / 0 }}", "ZeroDivisionError"),
            ("{{ subject + n }}", "TypeError"),
            ("{{ data|tojson }}", "bytes"),
        ],
    )
    def test_an_expression_that_fails_fails_its_row(self, source: str, reason: str) -> None:
        assert reason in failure(one(source), {**ROW, "data": b"\x00"})

    @pytest.mark.parametrize(
        ("source", "reason"),
        [
            ("one\n{{ two", "line 2"),
            ("{% if x %}", "line 1"),
            ("{{ x|nofilter }}", "nofilter"),
            ("{{ xs|random }}", "at each run"),
            ("{% include 'other' %}", "cannot load"),
            ("{% extends 'other' %}", "cannot load"),
        ],
    )
    def test_a_bad_template_is_found_before_any_row(self, source: str, reason: str) -> None:
        with pytest.raises(JobError, match=r"messages\.1.content") as caught:
            compile_template([{"role": "system", "content": "x"}, *user(source)], {}, model="m")
        assert reason in str(caught.value)

    @pytest.mark.parametrize(
        "messages",
        [
            [],
            "text",
            {"role": "user", "content": "x"},
            [{"content": "x"}],
            [{"role": "boss", "content": "x"}],
            [{"role": "user"}],
            [{"role": "user", "content": 5}],
            [{"role": "user", "content": []}],
            [{"role": "user", "content": ["text"]}],
            ["text"],
            [{"from": ""}],
        ],
    )
    def test_what_is_no_list_of_messages_is_refused(self, messages: Any) -> None:
        with pytest.raises(JobError, match="messages"):
            compile_template(messages, {}, model="m")

    @pytest.mark.parametrize(
        "params",
        [
            {"model": "x"},
            {"extra_body": {"messages": []}},
            {"temperature": 0, "extra_body": {"temperature": 1}},
            {"temperature": float("nan")},
            {"stop": "{{ open"},
            {"extra_body": {"when": b"x"}},
        ],
    )
    def test_bad_params_are_refused(self, params: dict[str, Any]) -> None:
        with pytest.raises(JobError):
            compile_template(user("x"), params, model="m")


class TestParams:
    def test_one_expression_gives_the_value_itself(self) -> None:
        template = one("x", max_tokens="{{ budget }}", seed="{{ n + 1 }}", stop="{{ tags }}", user="u-{{ n }}")
        rendered = template.render({**ROW, "budget": 12})
        body = json.loads(rendered.body)
        assert (body["max_tokens"], body["seed"], body["stop"], body["user"]) == (12, 4, ["a", "b"], "u-3")
        assert rendered.max_tokens == 12

    def test_a_decimal_becomes_a_number(self) -> None:
        body = json.loads(
            one("x", max_tokens="{{ a }}", top_p="{{ b }}").render({"a": Decimal("5.0"), "b": Decimal("0.5")}).body
        )
        assert (body["max_tokens"], body["top_p"]) == (5, 0.5)

    def test_none_leaves_a_param_out_but_stays_inside_a_schema(self) -> None:
        template = one("x", seed="{{ seed }}", stop=None, response_format={"enum": ["a", None]})
        body = json.loads(template.render({"seed": None}).body)
        assert set(body) == {"model", "response_format", "messages"}
        assert body["response_format"]["enum"] == ["a", None]

    @pytest.mark.parametrize("value", ["{{ missing }}", "{{ data }}", "{{ tags|map('upper') }}", "{{ bad }}"])
    def test_a_param_without_json_form_fails_its_row(self, value: str) -> None:
        row = {**ROW, "data": b"\x00", "bad": float("nan")}
        assert "params" in failure(one("x", seed=value), row)

    def test_max_completion_tokens_wins(self) -> None:
        assert one("x", max_tokens=5, max_completion_tokens=9).render({}).max_tokens == 9


class TestConversations:
    def test_a_column_holds_the_messages(self) -> None:
        turns: list[dict[str, Any]] = [
            {"role": "system", "content": "Be brief.", "name": None},
            {"role": "user", "content": "Hi", "tool_calls": None},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "content": "4", "tool_call_id": "1"},
        ]
        template = compile_template({"from": "turns"}, {}, model="m")
        plain = template.render({"turns": turns})
        messages = json.loads(plain.body)["messages"]
        assert messages[0] == {"role": "system", "content": "Be brief."}
        assert messages[2] == {key: value for key, value in turns[2].items() if value is not None}
        assert template.render({"turns": json.dumps(turns)}) == plain
        assert template.names == {"turns"}

    def test_a_column_may_stand_between_other_messages(self) -> None:
        template = compile_template(
            [{"role": "system", "content": "S {{ n }}"}, {"from": "history"}, *user("Now?")], {}, model="m"
        )
        body = json.loads(template.render({"n": 1, "history": user("a") + user("b")}).body)
        assert [message["content"] for message in body["messages"]] == ["S 1", "a", "b", "Now?"]

    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            (None, "at least one message"),
            ([], "at least one message"),
            ("not json", "not JSON"),
            ('{"role": "user"}', "at least one message"),
            ([{"content": "x"}], "message 0: has no role"),
            ([{"role": "boss", "content": "x"}], "'boss'"),
            ([{"role": "user", "content": "x"}, {"role": "user", "content": None}], "message 1: has no content"),
            ([{"role": "user", "content": {"a": 1}}], "an object"),
            (["x"], "text, not a message"),
            ([{"role": "user", "content": [{"type": "text", "text": b"x"}]}], "bytes"),
            ([{"role": "user", "content": "\ud800"}], "turns"),
            ('[{"role": "user", "content": "x", "a": ' + "[" * 1010 + "]" * 1010 + "}]", "turns"),
        ],
    )
    def test_what_is_no_conversation_fails_its_row(self, value: Any, reason: str) -> None:
        assert reason in failure(compile_template({"from": "turns"}, {}, model="m"), {"turns": value})

    def test_a_missing_column_is_named(self) -> None:
        message = failure(compile_template({"from": "turn"}, {}, model="m"), {"turns": []})
        assert "did you mean 'turns'?" in message

    def test_a_role_from_the_row_is_checked(self) -> None:
        template = compile_template([{"role": "{{ who }}", "content": "x"}], {}, model="m")
        assert json.loads(template.render({"who": "assistant"}).body)["messages"][0]["role"] == "assistant"
        assert "no role" in failure(template, {"who": "boss"})


def shuffled(value: Any) -> Any:
    """The same value with the keys of every mapping in reverse order."""
    if isinstance(value, dict):
        return {name: shuffled(item) for name, item in reversed(value.items())}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


PARAMS: dict[str, Any] = {
    "temperature": 0.0,
    "tools": [{"type": "function", "function": {"name": "f", "strict": True}}],
}


class TestDigest:
    def test_golden_digests_never_change(self) -> None:
        # A changed digest makes users pay again. Do not adapt these values to new code.
        template = compile_template([{"role": "system", "content": "S"}, *user("{{ a }}")], PARAMS, model="m")
        assert template.render({"a": "é"}).digest.hex() == "fbe87300080d76bed9776654727306c4"
        dynamic = compile_template(user("{{ a }}"), {"max_tokens": "{{ n }}"}, model="m")
        assert dynamic.render({"a": "é", "n": 5}).digest.hex() == "43c6c63338ae143f304fb0a9e59d5d18"

    def test_how_an_answer_travels_is_sent_and_changes_no_digest(self) -> None:
        # Switching `stream` on must not make users pay again for what they have.
        transfer = {"stream": True, "stream_options": {"include_usage": True}}
        for params in (PARAMS, {**PARAMS, "max_tokens": "{{ n }}"}, {}):
            plain = compile_template(user("{{ a }}"), params, model="m")
            streamed = compile_template(user("{{ a }}"), params, model="m", transfer=transfer)
            one_way, other = plain.render({"a": "x", "n": 5}), streamed.render({"a": "x", "n": 5})
            assert json.loads(other.body) == {**json.loads(one_way.body), **transfer}
            assert other[1:] == one_way[1:]
            assert streamed.text_digest == plain.text_digest

    def test_the_order_of_keys_changes_nothing(self) -> None:
        messages = [{"role": "user", "content": [{"type": "text", "text": "{{ a }} {{ b|tojson }}"}]}]
        row = {"a": 1, "b": {"x": 1, "y": [{"p": 1, "q": 2}]}}
        found = compile_template(messages, PARAMS, model="m").render(row)
        again = compile_template(shuffled(messages), shuffled(PARAMS), model="m").render(shuffled(row))
        assert found.digest == again.digest

    def test_a_conversation_is_told_by_content(self) -> None:
        template = compile_template({"from": "turns"}, {}, model="m")
        turns = [{"role": "user", "content": "x"}]
        assert template.render({"turns": turns}).digest == template.render({"turns": shuffled(turns)}).digest

    def test_a_fixed_and_a_computed_param_of_equal_value_are_equal(self) -> None:
        assert one("x", max_tokens=5).render({}).digest == one("x", max_tokens="{{ n }}").render({"n": 5}).digest

    def test_whole_numbers_are_equal_however_they_are_written(self) -> None:
        assert one("x", temperature=0).render({}).digest == one("x", temperature=0.0).render({}).digest

    def test_everything_that_is_sent_counts(self) -> None:
        variants = [
            compile_template(user("x"), {}, model="m"),
            compile_template(user("x"), {}, model="n"),
            compile_template(user("y"), {}, model="m"),
            compile_template([{"role": "system", "content": "x"}], {}, model="m"),
            compile_template(user("x") + user("x"), {}, model="m"),
            one("x", temperature=0),
            one("x", temperature=1),
            one("x", top_p=0),
        ]
        assert len({template.render({}).digest for template in variants}) == len(variants)

    def test_text_digest_tells_the_jobs_own_text(self) -> None:
        digests = {
            compile_template(user("{{ a }}"), {"seed": 1}, model="m").text_digest,
            compile_template(user("{{ b }}"), {"seed": 1}, model="m").text_digest,
            compile_template(user("{{ a }}"), {"seed": 2}, model="m").text_digest,
            compile_template(user("{{ a }}"), {"seed": 1}, model="n").text_digest,
        }
        assert len(digests) == 4
        assert one("a", seed=1, top_p=1).text_digest == one("a", top_p=1.0, seed=1).text_digest

    def test_names_are_the_columns_spoken_of(self) -> None:
        template = one("{{ a }} {{ row['b'] }} {% for c in d %}{{ c }}{{ range(2) }}{% endfor %}", seed="{{ e }}")
        assert template.names == {"a", "d", "e"}


class TestTokens:
    @pytest.mark.parametrize(
        ("content", "expected"),
        [("x" * 400, 100), ("語" * 300, 300), ("", 0)],
    )
    def test_a_text_is_weighed_by_its_script(self, content: str, expected: int) -> None:
        for rendered in (
            one("{{ a }}").render({"a": content}),
            compile_template({"from": "t"}, {}, model="m").render({"t": user(content)})
            if content
            else one("").render({}),
        ):
            assert rendered.prompt_tokens == expected + 4

    def test_fixed_texts_and_tools_count(self) -> None:
        base = one("x" * 400).render({}).prompt_tokens
        assert base == 104
        tools = [{"type": "function", "function": {"name": "f", "description": "y" * 400}}]
        assert one("x" * 400, tools=tools).render({}).prompt_tokens > base + 100

    def test_a_picture_does_not_count_by_its_bytes(self) -> None:
        def picture(url: str) -> Rendered:
            part = {"type": "image_url", "image_url": {"url": url}}
            return compile_template(user([part]), {}, model="m").render({"a": "x" * 900_000})

        assert picture("data:image/png;base64,{{ a }}").prompt_tokens < 2_000
        assert picture("https://pictures.example/1.png").prompt_tokens < 2_000
        turns = user([{"type": "image_url", "image_url": {"url": "data:," + "x" * 900_000}}])
        assert compile_template({"from": "t"}, {}, model="m").render({"t": turns}).prompt_tokens < 2_000
