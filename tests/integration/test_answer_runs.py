"""What servers answer, in whole runs: filtered rows, doubted refusals, validators of models, wrong addresses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

import batchchat
from batchchat.job import api_key, load_keys
from tests.integration.jobs import make_job, query, texts, write_rows
from tests.integration.test_structured_runs import go, record, said, typed

pytestmark = pytest.mark.usefixtures("quick_retries")
FLAGGED = {"error": {"message": "Your input was flagged", "code": 403, "metadata": {"reasons": ["violence"]}}}
SAMPLED = {"error": {"message": "Failed to generate JSON", "code": "json_validate_failed", "failed_generation": '{"l'}}


def bad(status: int, body: dict[str, Any]) -> httpx.Response:
    return httpx.Response(status, json=body)


def test_a_run_of_nothing_but_filtered_rows_ends_by_itself(tmp_path: Path) -> None:
    summary, _ = go(tmp_path, lambda *_: bad(403, FLAGGED), 30)
    assert (summary.exit_code, summary.failed, summary.open) == (1, 30, 0)


def test_what_a_server_could_not_use_is_corrected(tmp_path: Path) -> None:
    good = '{"label": "yes", "n": 1}'
    summary, provider = go(tmp_path, lambda _, step: bad(400, SAMPLED) if step == 1 else good, **typed())
    assert (summary.exit_code, summary.corrections, summary.retries) == (0, 1, 0)
    assert provider.bodies[1]["messages"][-2]["content"] == '{"l'
    assert record(tmp_path)["parsed"] == {"label": "yes", "n": 1}


def test_what_a_server_could_never_use_is_tried_as_often_as_the_job_says(tmp_path: Path) -> None:
    summary, provider = go(tmp_path, lambda *_: bad(400, SAMPLED), retry={"attempts": 2}, **typed(corrections=1))
    # The answer, one correction, and one more attempt at it.
    assert (summary.exit_code, summary.corrections, len(provider.bodies)) == (1, 1, 3)
    found = record(tmp_path)
    assert (found["error_kind"], found["completion"]) == ("invalid_output", '{"l')


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("nothing", ["", " \n", None])
def test_empty_answers_are_tried_again_and_end_as_protocol(tmp_path: Path, nothing: str | None, stream: bool) -> None:
    summary, _ = go(
        tmp_path, lambda *_: {"content": nothing}, retry={"attempts": 2}, params={"stream": stream}, **typed()
    )
    assert (summary.exit_code, summary.sent, summary.corrections) == (1, 2, 0)
    found = record(tmp_path)
    assert (found["error_kind"], found["total_tokens"]) == ("protocol", 30)
    assert found["error_message"].startswith("HTTP 200 with an empty answer: neither text nor a tool call")


def test_a_typed_answer_is_never_taken_out_of_reasoning(tmp_path: Path) -> None:
    thoughts = 'Is it {"label": "yes", "n": 1}? No.'
    answers = [f"{thoughts}\n</think>\nI cannot tell.", f"Hm. <think>{thoughts}</think> None.", f"<think>{thoughts}"]
    summary, _ = go(tmp_path, lambda row, _: answers[row], 3, retry={"attempts": 1}, **typed(corrections=0))
    assert (summary.exit_code, summary.ok) == (1, 0)
    # One that never ends its reasoning has answered nothing.
    kinds = query(tmp_path, "select error_kind from data order by row_index")
    assert kinds == [("invalid_output",), ("invalid_output",), ("protocol",)]


# --- validators of a model

MODEL = """
from datetime import date
from typing import Annotated
from pydantic import AfterValidator, BaseModel, Field, field_validator, model_validator

def even(value: int) -> int:
    if value % 2:
        raise ValueError("must be even")
    return value

class Booking(BaseModel):
    model_config = {"strict": True}
    name: str
    first: date
    last: date
    seats: Annotated[int, AfterValidator(even)]
    note: str = Field(default="", alias="Note")

    @field_validator("name")
    @classmethod
    def named(cls, value: str) -> str:
        if value == "crash":
            raise KeyError("a fault of the validator")
        if not value.istitle():
            raise ValueError("must begin with a capital")
        return value.upper()

    @model_validator(mode="after")
    def in_order(self) -> "Booking":
        assert self.first <= self.last, "first is after last"
        return self
"""
GOOD: dict[str, Any] = {"name": "Ada", "first": "2026-01-02", "last": "2026-01-03", "seats": 2, "Note": "x"}


def booked(tmp_path: Path, module: str, *answers: dict[str, Any], **more: Any) -> tuple[Any, Any]:
    (tmp_path / f"{module}.py").write_text(MODEL)
    script = [json.dumps(answer) for answer in answers]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        return go(
            tmp_path,
            lambda _, step: script[min(step, len(script)) - 1],
            response={"schema": f"{module}:Booking", **more},
        )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": "ada"}, "$.name: must begin with a capital"),
        ({"first": "2026-02-02"}, "$: first is after last"),
        ({"seats": 3}, "$.seats: must be even"),
        ({"name": "crash"}, "a validator of Booking failed with KeyError"),
    ],
)
def test_what_a_models_validators_reject_is_corrected_with_their_words(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    summary, provider = booked(tmp_path, "bookings_a", {**GOOD, **change}, GOOD)
    assert (summary.exit_code, summary.corrections) == (0, 1)
    assert reason in provider.bodies[1]["messages"][-1]["content"]
    # The answer is stored as it came: the validator's own change of it is not.
    assert record(tmp_path)["parsed"]["name"] == "Ada"


def test_what_a_models_validators_go_on_rejecting_is_invalid_output(tmp_path: Path) -> None:
    summary, _ = booked(tmp_path, "bookings_b", {**GOOD, "seats": 5}, corrections=1)
    found = record(tmp_path)
    assert (summary.exit_code, found["error_kind"], found["parsed"]) == (1, "invalid_output", None)
    assert "must be even" in found["error_message"]


# --- wrong addresses and keys


@pytest.mark.parametrize(
    ("base_url", "status", "hint"),
    [
        ("http://host.invalid:8000", 404, "no /v1 at its end"),
        ("http://host.invalid:8000/v1", 404, None),
        ("http://host.invalid:8000/", 405, "no /v1 at its end"),
        ("http://host.invalid:8000", 200, "no /v1 at its end"),
    ],
)
def test_a_wrong_address_is_named(tmp_path: Path, base_url: str, status: int, hint: str | None) -> None:
    def answer(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, content=b"<html>nothing here</html>" if status == 200 else b"404 page not found")

    write_rows(tmp_path / "rows.jsonl", texts(1))
    job = make_job(tmp_path, None, provider={"base_url": base_url}, retry={"attempts": 1}, model="m")
    summary = batchchat.run(job, transport=httpx.MockTransport(answer), environ={})
    told = f"{summary.reason} {[failure.example for failure in summary.failures]}"
    assert f"asked: {base_url.rstrip('/')}/chat/completions" in told
    assert (hint in told) if hint else ("provider.base_url" not in told)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ('"key-0123456789"', "quotes"),
        ("' key-0123456789'\n", "white space and quotes"),
        ("\u2018key-0123456789\u2019", "quotes"),
        ("\u201ckey-0123456789\u201d", "quotes"),
        ("key-0123456789\r\n", "white space"),
        ("key-0123456789", None),
    ],
)
def test_a_key_is_cleaned_with_a_warning(tmp_path: Path, given: str, what: str | None) -> None:
    sent: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers["authorization"])
        return said("fine")

    write_rows(tmp_path / "rows.jsonl", texts(1))
    provider = {"base_url": "http://host.invalid/v1", "api_key_env": "THE_KEY"}
    job = make_job(tmp_path, None, provider=provider, model="m")
    summary = batchchat.run(job, transport=httpx.MockTransport(answer), environ={"THE_KEY": given})
    assert sent == ["Bearer key-0123456789"]
    told = " ".join(summary.warnings)
    assert "key-0123456789" not in told
    assert (f"with {what} around it" in told) if what else not summary.warnings
    assert api_key(job, job.resolved_provider(), load_keys(job, {"THE_KEY": given})) == "key-0123456789"


def test_a_job_without_a_model_of_its_own_imports_none_of_that() -> None:
    code = (
        "import sys, pathlib; from batchchat.structured import load_schema; "
        "load_schema({'type': 'object'}, folder=pathlib.Path()); print('batchchat.structured.model' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
