"""`response` in a job file: where a schema comes from, what it makes of a request, and what is refused of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from batchchat.errors import JobError
from batchchat.job import Job, load_job, validate_job
from batchchat.runner.questions import compile_questions
from batchchat.template import compile_template
from batchchat.template.instructions import Instructions
from tests.unit.test_job import folder, load, refused, write

__all__ = ["folder"]

SCHEMA = {"title": "Label of a ticket", "type": "object", "properties": {"z": {"type": "string"}, "a": {}}}
MODEL = """
from pydantic import BaseModel

class Ticket(BaseModel):
    label: str
    urgent: bool
"""


def body(job: Job, **row: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(compile_questions(job).template.render({"text": "hi", **row}).body)
    return found


def test_a_schema_in_a_file_lies_beside_the_job_and_becomes_part_of_it(folder: Path) -> None:
    (folder / "ticket.json").write_text(json.dumps(SCHEMA), encoding="utf-8")
    job = load(folder, "response: {schema: ticket.json}")
    assert job.response.spec == SCHEMA
    wanted = body(job)["response_format"]["json_schema"]
    assert (wanted["name"], list(wanted["schema"]["properties"])) == ("Label_of_a_ticket", ["z", "a"])
    (folder / "ticket.json").unlink()
    snapshot = json.loads(json.dumps(job.snapshot()))
    again = validate_job({name: value for name, value in snapshot.items() if name != "file"})
    assert body(again) == body(job)


def test_a_file_without_a_title_gives_its_own_name(folder: Path) -> None:
    (folder / "some.labels.json").write_text('{"type": "object"}', encoding="utf-8")
    assert (
        body(load(folder, "response: {schema: some.labels.json}"))["response_format"]["json_schema"]["name"] == "some"
    )
    named = load(folder, "response: {schema: some.labels.json, name: mine}")
    assert body(named)["response_format"]["json_schema"]["name"] == "mine"


def test_a_pydantic_model_lies_beside_the_job(folder: Path) -> None:
    (folder / "ticket_models.py").write_text(MODEL, encoding="utf-8")
    wanted = body(load(folder, "response: {schema: 'ticket_models:Ticket'}"))["response_format"]["json_schema"]
    assert (wanted["name"], list(wanted["schema"]["properties"])) == ("Ticket", ["label", "urgent"])


def test_an_option_names_a_schema_from_the_current_folder(folder: Path) -> None:
    (folder / "one.json").write_text('{"type": "object"}', encoding="utf-8")
    Path("two.json").write_text('{"type": "array"}', encoding="utf-8")
    job = load(folder, "response: {schema: one.json, mode: prompt}", set=["response.schema=two.json"])
    assert (job.response.spec, job.response.name, job.response.mode) == ({"type": "array"}, "two", "prompt")
    inline = load(folder, "response: {schema: one.json}", set=['response.schema={"type": "number"}'])
    assert inline.response.spec == {"type": "number"}


def test_without_a_schema_nothing_of_a_request_changes(folder: Path) -> None:
    plain, kept = load(folder), load(folder, "response: {truncated: keep}")
    one, other = (compile_questions(job).template for job in (plain, kept))
    row = {"text": "hi"}
    assert one.render(row) == other.render(row)
    assert one.text_digest == other.text_digest
    assert one.render(row) == compile_template(plain.messages, plain.params.as_body(), model=plain.model).render(row)
    # A digest that changed would make every user pay again.
    assert one.render(row).digest.hex() == "270d9e30a579e6c21256e2dc2baae7db"


@pytest.mark.parametrize(
    ("mode", "digest"),
    [
        ("json_schema", "78ea9b81be3f57b185a848a91b07f8ff"),
        ("json_object", "f36d7fa6a879d36534ebbcd544b8fbd6"),
        ("prompt", "dee0ab1e62596c7afdda674a1f85b3d2"),
    ],
)
def test_golden_digests_of_requests_with_a_schema_never_change(folder: Path, mode: str, digest: str) -> None:
    # Other words for the same schema would make every user pay again. Do not adapt these values to new code.
    job = load(folder, f"response: {{schema: {json.dumps(SCHEMA)}, mode: {mode}}}")
    assert compile_questions(job).template.render({"text": "hi"}).digest.hex() == digest


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["response: {schema: no.json}"], "job.yaml:7: response.schema: the schema no.json cannot be read"),
        (["response: {schema: 'no_such:Model'}"], "job.yaml:7: response.schema: no_such cannot be imported"),
        (["response: {schema: 7}"], "job.yaml:7: response.schema: must be a path to a JSON file"),
        (["response: {scheme: x.json}"], "job.yaml:7: response.scheme: is not a field (did you mean 'schema'?)"),
        (["response: {on_truncated: keep}"], "response.on_truncated: is not a field: write truncated"),
        (["response: {truncated: drop}"], "response.truncated: must be fail, keep or {retry_with_max_tokens: N}"),
        (["response: {truncated: {retry_with_max_tokens: 0}}"], "retry_with_max_tokens: must be at least 1"),
        (["response: {corrections: 99}"], "response.corrections: must be at most 20"),
        (["response: {name: a b}"], "response.name: must be 1 to 64 letters, digits, _ or -"),
        (["response: {mode: xml}"], "response.mode: must be 'json_schema', 'json_object' or 'prompt'"),
        (["schema: {type: object}"], "schema: is not a field here: write response.schema"),
    ],
)
def test_what_a_job_cannot_say_is_told_with_its_line(folder: Path, lines: list[str], told: str) -> None:
    assert told in refused(folder, *lines)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (
            ["response:", "  schema:", "    type: object", "    properties:", "      a: {type: strin}"],
            "job.yaml:11: response.schema.properties.a.type",
        ),
        (
            ["params:", "  tools:", "  - type: function", "    function:", "      name: two words"],
            "job.yaml:11: params.tools.0.function.name: needs a name",
        ),
        (["params: {tools: [{type: function}]}"], "job.yaml:7: params.tools.0.function: needs a mapping"),
        (["params: {tool_choice: auto}"], "job.yaml:7: params.tool_choice: chooses among tools, and there are none"),
    ],
)
def test_a_schema_or_tool_that_is_none_is_told_with_its_line(folder: Path, lines: list[str], told: str) -> None:
    job = load_job(write(folder, *lines))
    with pytest.raises(JobError) as raised:
        compile_questions(job)
    assert told in str(raised.value)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([("system", "S"), ("user", "U")], [("system", "S\n\nFORM"), ("user", "U")]),
        (
            [("user", "U"), ("assistant", "A"), ("user", "V")],
            [("user", "U"), ("assistant", "A"), ("user", "V\n\nFORM")],
        ),
        ([("developer", ""), ("user", "U")], [("developer", "FORM"), ("user", "U")]),
        ([("assistant", "A")], [("system", "FORM"), ("assistant", "A")]),
    ],
)
def test_instructions_go_where_every_server_takes_them(messages: list[Any], expected: list[Any]) -> None:
    given = json.dumps([{"role": role, "content": content} for role, content in messages]).encode()
    sent, tokens = Instructions("FORM").put_into(given, 10)
    assert [(message["role"], message["content"]) for message in json.loads(sent)] == expected
    assert tokens > 10


def test_instructions_are_one_more_part_of_a_message_of_parts() -> None:
    parts = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "http://h/x.png"}}]
    sent, _ = Instructions("FORM").put_into(json.dumps([{"role": "user", "content": parts}]).encode(), 0)
    assert json.loads(sent)[0]["content"] == [*parts, {"type": "text", "text": "FORM"}]


def test_conversations_from_a_column_get_the_instructions_too(folder: Path) -> None:
    job = load(folder, "response: {schema: {type: array}, mode: json_object}", messages="messages: {from: talk}")
    sent = body(job, talk=[{"role": "user", "content": "{{ text }}"}])
    assert sent["messages"][0]["content"].startswith("{{ text }}\n\nAnswer with one JSON value")
    assert sent["response_format"] == {"type": "json_object"}
