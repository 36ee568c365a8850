"""Lines of an OpenAI batch file as requests: sent as they are, save what the job says."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.errors import JobError
from batchchat.records import ErrorKind
from batchchat.template import RowTemplateError, Template, compile_lines, compile_template

USER = [{"role": "user", "content": "Hello {{ not_a_template }}"}]


def line(**body: Any) -> dict[str, Any]:
    return {
        "custom_id": "r-1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": USER, **body},
    }


def sent(template: Template, row: dict[str, Any], sample_index: int = 0) -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads(template.render(row, sample_index).body)
    return body


def problem(template: Template, row: dict[str, Any]) -> str:
    with pytest.raises(RowTemplateError) as caught:
        template.render(row)
    assert caught.value.kind is ErrorKind.INPUT
    return str(caught.value)


AS_IT_IS = compile_lines({}, model="")


def test_a_body_is_sent_as_it_is() -> None:
    schema = {"type": "object", "properties": {"z": {"enum": [None, "{{ x }}"]}, "a": {"default": None}}}
    row = line(
        temperature=0.5,
        max_tokens=7,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
        metadata={"unknown": "to us"},
    )
    rendered = AS_IT_IS.render(row)
    assert orjson.loads(rendered.body) == row["body"]
    # What a model reads keeps the author's order.
    assert list(orjson.loads(rendered.body)["response_format"]["json_schema"]["schema"]["properties"]) == ["z", "a"]
    assert rendered.max_tokens == 7


@pytest.mark.parametrize("fields", [{"method": None, "url": None}, {"url": "/chat/completions"}])
def test_lines_of_other_providers_ask_the_same(fields: dict[str, Any]) -> None:
    assert AS_IT_IS.render({**line(), **fields}).digest == AS_IT_IS.render(line()).digest
    bare = {name: value for name, value in {**line(), **fields}.items() if value is not None}
    assert sent(AS_IT_IS, bare) == line()["body"]


def test_messages_keep_their_nulls_and_every_kind_of_part() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.example/1"}}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]
    assert sent(AS_IT_IS, line(messages=messages))["messages"] == messages


def test_a_line_and_a_template_that_ask_the_same_are_one_request() -> None:
    template = compile_template([{"role": "user", "content": "hi"}], {"temperature": 0, "max_tokens": 5}, model="m")
    row = line(messages=[{"content": "hi", "role": "user"}], max_tokens=5, temperature=0.0)
    assert AS_IT_IS.render(row).digest == template.render({}).digest


def test_defaults_of_the_api_are_no_part_of_a_request() -> None:
    plain = AS_IT_IS.render(line())
    assert AS_IT_IS.render(line(n=1, stream=False, stream_options=None, stop=None)) == plain


def test_what_the_job_says_goes_over_what_the_lines_say() -> None:
    template = compile_lines({"temperature": 0, "extra_body": {"top_k": 5}}, model="other")
    assert sent(template, line(temperature=1, seed=3)) == {
        "model": "other",
        "seed": 3,
        "temperature": 0,
        "top_k": 5,
        "messages": USER,
    }
    of_sample = compile_lines({"seed": "{{ sample_index }}"}, model="")
    assert of_sample.sampled
    assert [sent(of_sample, line(seed=9), sample)["seed"] for sample in range(3)] == [0, 1, 2]


def test_one_bound_of_the_answer_takes_the_place_of_the_other() -> None:
    template = compile_lines({"max_tokens": 9}, model="")
    assert sent(template, line(max_completion_tokens=100)).keys() == {"model", "messages", "max_tokens"}


def test_fields_that_the_job_sets_to_null_are_left_out() -> None:
    template = compile_lines(
        {}, model="", removed=frozenset({"user"}), unsupported=frozenset({"user", "logit_bias"}), provider_name="p"
    )
    assert sent(template, line(user="u")).keys() == {"model", "messages"}
    told = problem(template, line(logit_bias={}))
    assert told == "body.logit_bias is not supported by p; `params: {logit_bias: null}` leaves it out"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({**line(), "method": "GET"}, "method must be POST, or left out, not 'GET'"),
        ({**line(), "url": "/v1/embeddings"}, "url must be /v1/chat/completions, or left out, not '/v1/embeddings'"),
        ({"custom_id": "x", "body": {}}, "body.messages must be a list"),
        ({**line(), "url": 3}, "url must be /v1/chat/completions, or left out, not int"),
        ({**line(), "body": None}, "body must be an object, and is missing"),
        ({**line(), "body": "{}"}, "body must be an object"),
        (line(messages=[]), "body.messages must be a list of at least one message"),
        (line(messages="hi"), "body.messages must be a list of at least one message"),
        (line(messages=[{"role": "user"}]), "body.messages.0 has no content"),
        (line(messages=[*USER, {"role": "boss", "content": "x"}]), "body.messages.1 has the role 'boss'"),
        (line(model=None), "body.model is missing; `model` in the job gives all lines one"),
        (line(stream=True), "body.stream must be false, or left out"),
        (line(n=2), "body.n must be 1, or left out; `samples: N` in the job asks each line N times"),
        (line(n=True), "body.n must be 1"),
        (line(temperature=float("nan")), "body.temperature: nan is not a number that JSON can hold"),
        (line(stop=["\ud800"]), "body.stop"),
        (line(messages=[{"role": "user", "content": "\ud800"}]), "body.messages"),
    ],
)
def test_a_line_that_no_batch_takes_is_a_bad_row_of_the_input(row: dict[str, Any], told: str) -> None:
    assert told in problem(AS_IT_IS, row)


def test_a_file_has_one_model() -> None:
    template = compile_lines({}, model="", expected="m")
    assert sent(template, line())["model"] == "m"
    assert "body.model is 'x', and that of the first line is 'm'" in problem(template, line(model="x"))


def test_too_many_images_are_refused() -> None:
    template = compile_lines({}, model="", max_images=1)
    part = {"type": "image_url", "image_url": {"url": "https://x.example/1"}}
    assert template.render(line(messages=[{"role": "user", "content": [part]}]))
    told = problem(template, line(messages=[{"role": "user", "content": [part] * 2}]))
    assert told == "body.messages: 2 images, and the provider takes at most 1 in one request"


def test_a_wrong_param_of_the_job_is_an_error_of_the_job() -> None:
    with pytest.raises(JobError, match=r"params\.seed: unexpected end of template"):
        compile_lines({"seed": "{{ x"}, model="m")
    with pytest.raises(JobError, match="model is a field of the job"):
        compile_lines({"extra_body": {"model": "x"}}, model="m")


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=10,
)


@given(st.dictionaries(st.text(min_size=1, max_size=6).map("x_{}".format), json_values, max_size=5))
def test_any_field_arrives_as_it_was(fields: dict[str, Any]) -> None:
    body = json.loads(AS_IT_IS.render(line(**fields)).body)
    assert {name: body.get(name) for name in fields} == fields


params = st.dictionaries(
    st.sampled_from(["temperature", "logprobs", "stream", "n", "user"]),
    st.sampled_from([None, 0, 0.0, 1, 1.0, True, False, "x", float("nan"), 2**70]),
    max_size=3,
)


@given(st.lists(params, max_size=6))
def test_no_line_changes_how_the_next_one_renders(lines: list[dict[str, Any]]) -> None:
    def outcome(template: Template, fields: dict[str, Any]) -> object:
        try:
            return template.render(line(**fields))
        except RowTemplateError as error:
            return str(error)

    one_for_all = compile_lines({}, model="")
    for fields in lines:
        assert outcome(one_for_all, fields) == outcome(compile_lines({}, model=""), fields)


@pytest.mark.parametrize(
    "url",
    [
        "/v1/chat/completions",
        "v1/chat/completions/",
        "/chat/completions",
        "/openai/deployments/gpt/chat/completions?api-version=2024-10-21",
        "https://api.example.com/v1/chat/completions",
        None,
    ],
)
@pytest.mark.parametrize("method", ["POST", "post", None])
def test_a_line_may_name_any_address_of_chat_completions(url: str | None, method: str | None) -> None:
    assert AS_IT_IS.render({**line(), "url": url, "method": method}) == AS_IT_IS.render(line())


@pytest.mark.parametrize("url", ["", "/v1/completions", "/v1/notchat/completions", "/v1/chat/completions/x", 3, []])
def test_a_line_for_another_address_is_refused(url: object) -> None:
    assert problem(AS_IT_IS, {**line(), "url": url}).startswith("url must be /v1/chat/completions")
