"""Whole runs of a cascade on a virtual clock: who is asked, what is kept, and how a run ends or goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from batchchat.errors import JobError
from batchchat.runner.control import Control
from tests.integration.jobs import make_job, query
from tests.unit.test_pool_clock import Servers, status, totals
from tests.unit.test_run_clock import row_of, simulate

SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["yes", "no"]}, "sure": {"type": "number", "minimum": 0, "maximum": 1}},
    "required": ["label", "sure"],
    "additionalProperties": False,
}
RESPONSE: dict[str, Any] = {"schema": SCHEMA, "confidence": {"field": "sure"}}
TWO: list[dict[str, Any]] = [{"model": "small", "accept": {"confidence": 0.9}}, {"model": "large"}]
THREE: list[dict[str, Any]] = [*TWO[:1], {"model": "middle", "accept": {"confidence": 0.7}}, {"model": "large"}]
PRICES = {"input": 1.0, "output": 1.0, "currency": "EUR"}
DEAR = {"input": 10.0, "output": 10.0, "currency": "EUR"}


def says(model: str, sure: float) -> httpx.Response:
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    choice = {"message": {"content": json.dumps({"label": "yes", "sure": sure})}, "finish_reason": "stop"}
    return httpx.Response(200, json={"choices": [choice], "usage": usage, "model": model})


def finished(reason: str, text: str = "I cannot") -> httpx.Response:
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    choice = {"message": {"content": text}, "finish_reason": reason}
    return httpx.Response(200, json={"choices": [choice], "usage": usage, "model": "m"})


class Models(Servers):
    """One server of several models. `small` is sure of every second row, `middle` of every fourth, `large` of all."""

    def __init__(self, **special: Any) -> None:
        self.by_model: list[tuple[str, int]] = []
        self.special = special
        super().__init__(a=self._answer)

    async def _answer(self, request: httpx.Request, _at: float) -> httpx.Response:
        await anyio.sleep(0.1)
        body = json.loads(request.content)
        model, row = body["model"], row_of(request)
        self.by_model.append((model, row))
        if model in self.special:
            special: httpx.Response = self.special[model](row, body)
            return special
        sure = {"small": 0.95 if row % 2 == 0 else 0.5, "middle": 0.8 if row % 4 == 1 else 0.6}.get(model, 0.4)
        return says(model, sure)

    def rows(self, model: str) -> list[int]:
        return sorted(row for name, row in self.by_model if name == model)


def run(folder: Path, models: Models, rows: int, cascade: list[dict[str, Any]] = TWO, **fields: Any) -> Any:
    given = {"provider": {"base_url": "http://a/v1"}, "response": RESPONSE, **fields}
    return simulate(folder, models, rows, model="small", cascade=cascade, **given)


def test_a_further_step_is_asked_only_for_what_the_one_before_leaves(tmp_path: Path) -> None:
    models = Models()
    summary, _, _ = run(tmp_path, models, 40, THREE, prices=PRICES)
    assert totals(summary) == (0, 40, 0)
    assert models.rows("small") == list(range(40))
    assert models.rows("middle") == list(range(1, 40, 2))
    assert models.rows("large") == list(range(3, 40, 4))
    found = query(tmp_path, "select step, model, count(*), min(confidence) from data group by all order by all")
    assert found == [(1, "small", 20, 0.95), (2, "middle", 10, 0.8), (3, "large", 10, 0.4)]
    earlier = query(tmp_path, "select earlier_steps from data where step = 3 limit 1")[0][0]
    assert [(one["step"], one["model"], one["confidence"]) for one in earlier] == [
        (1, "small", 0.5),
        (2, "middle", 0.6),
    ]
    assert earlier[0]["reason"] == "its confidence 0.5 is below 0.9"
    assert json.loads(earlier[0]["completion"])["sure"] == 0.5
    told = [(one.step, one.asked, one.ok, one.passed_on) for one in summary.steps]
    assert told == [(1, 40, 20, 20), (2, 20, 10, 10), (3, 10, 10, 0)]
    assert query(tmp_path, "select count(*) from data where step = 1 and earlier_steps is not null") == [(0,)]


def test_each_step_is_told_its_own_cost(tmp_path: Path) -> None:
    cascade: list[dict[str, Any]] = [TWO[0], {"model": "large", "prices": DEAR}]
    summary, _, _ = run(tmp_path, Models(), 10, cascade, prices=PRICES)
    assert [round(one.cost * 1e6) for one in summary.steps] == [10 * 110, 5 * 1100]
    assert round(summary.spend.cost * 1e6) == 10 * 110 + 5 * 1100
    costs = query(tmp_path, "select step, round(cost * 1e6) from data group by all order by all")
    assert costs == [(1, 110.0), (2, 1210.0)]


NOT_VALID = {
    "refusal": lambda *_: httpx.Response(
        200,
        json={
            "choices": [{"message": {"content": None, "refusal": "no"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        },
    ),
    "content_filter": lambda *_: finished("content_filter", ""),
    "truncated": lambda *_: finished("length", '{"la'),
    "invalid_output": lambda *_: finished("stop", "what?"),
    "invalid_request": lambda row, _body: (
        httpx.Response(400, json={"error": {"message": "maximum context length"}}) if row else says("small", 0.95)
    ),
}


@pytest.mark.parametrize("kind", list(NOT_VALID))
def test_an_answer_that_is_not_valid_is_passed_on(tmp_path: Path, kind: str) -> None:
    models = Models(small=NOT_VALID[kind])
    summary, _, _ = run(tmp_path, models, 6, response={**RESPONSE, "corrections": 1})
    assert totals(summary) == (0, 6, 0)
    reasons = query(tmp_path, "select distinct split_part(earlier_steps[1].reason, ':', 1) from data where step = 2")
    assert reasons == [(kind,)]
    # The next model is asked the row's own question: no correction of the first one's answer is in it.
    assert {len(body["messages"]) for _, body in models.bodies if body["model"] == "large"} == {1}


def test_an_error_of_the_server_is_not_passed_on(tmp_path: Path) -> None:
    def small(row: int, _body: dict[str, Any]) -> httpx.Response:
        return httpx.Response(500) if row == 3 else says("small", 0.95)

    models = Models(small=small)
    summary, _, _ = run(tmp_path, models, 20, retry={"attempts": 2})
    assert totals(summary) == (1, 19, 1)
    assert models.rows("large") == []


def test_a_failure_of_the_last_step_is_the_rows_own(tmp_path: Path) -> None:
    models = Models(large=lambda *_: finished("content_filter", ""))
    summary, _, _ = run(tmp_path, models, 4)
    assert totals(summary) == (1, 2, 2)
    failed = query(tmp_path, "select step, error_kind, earlier_steps[1].confidence from data where status = 'failed'")
    assert failed == [(2, "content_filter", 0.5)] * 2
    assert [(one.step, one.failed) for one in summary.steps] == [(1, 0), (2, 2)]


def test_params_of_a_step_are_its_own(tmp_path: Path) -> None:
    cascade: list[dict[str, Any]] = [TWO[0], {"model": "large", "params": {"max_tokens": 500, "temperature": None}}]
    models = Models()
    run(tmp_path, models, 2, cascade, params={"max_tokens": 50, "temperature": 0})
    sent = {body["model"]: (body.get("max_tokens"), body.get("temperature")) for _, body in models.bodies}
    assert sent == {"small": (50, 0), "large": (500, None)}


def test_another_threshold_or_second_model_asks_the_first_one_nothing_again(tmp_path: Path) -> None:
    run(tmp_path, Models(), 20)
    models = Models()
    cascade: list[dict[str, Any]] = [{"model": "small", "accept": {"confidence": 0.99}}, {"model": "other"}]
    summary, _, _ = run(tmp_path, models, 24, cascade)
    assert (summary.ok, summary.new_ok) == (24, 4)
    assert models.rows("small") == [20, 21, 22, 23]
    # A job without a cascade has the same rows done: they are the same requests.
    single, _, _ = simulate(
        tmp_path, models, 24, model="small", provider={"base_url": "http://a/v1"}, response=RESPONSE
    )
    assert single.sent == 0


def stopped(folder: Path, models: Models, cascade: list[dict[str, Any]] = TWO) -> None:
    """Run until the first answers of the first step are kept, and the second one has answered nothing."""
    stop = Control()

    def large(_row: int, _body: dict[str, Any]) -> httpx.Response:
        stop.stop(reason="asked to", exit_code=143)
        return httpx.Response(503)

    models.special["large"] = large
    summary, _, _ = run(folder, models, 8, cascade, stop=stop, limits={"concurrency": 1})
    assert summary.open
    del models.special["large"]
    models.by_model.clear()


def test_each_sample_of_a_row_has_its_own_steps(tmp_path: Path) -> None:
    # One sample of each row is sure, and the other is not.
    seen: set[int] = set()

    def small(row: int, _body: dict[str, Any]) -> httpx.Response:
        sure = 0.95 if row in seen else 0.5
        seen.add(row)
        return says("small", sure)

    models = Models(small=small)
    summary, _, _ = run(tmp_path, models, 6, samples=2)
    assert totals(summary) == (0, 12, 0)
    assert models.rows("small") == sorted([*range(6), *range(6)])
    assert models.rows("large") == list(range(6))
    sql = "select row_index, count(distinct sample_index), min(step), max(step) from data group by 1 order by 1"
    assert query(tmp_path, sql) == [(row, 2, 1, 2) for row in range(6)]


def test_each_step_may_stream(tmp_path: Path) -> None:
    def streamed(model: str, sure: float) -> httpx.Response:
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        text = json.dumps({"label": "yes", "sure": sure})
        chunks: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": {"content": piece}}], "model": model} for piece in (text[:9], text[9:])
        ]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "model": model})
        chunks.append({"choices": [], "usage": usage, "model": model})
        events = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        content = "".join([*events, "data: [DONE]\n\n"]).encode()
        return httpx.Response(200, content=content, headers={"content-type": "text/event-stream"})

    def small(row: int, body: dict[str, Any]) -> httpx.Response:
        assert body["stream"] is True
        return streamed("small", 0.95 if row % 2 == 0 else 0.5)

    def large(_row: int, body: dict[str, Any]) -> httpx.Response:
        assert body["stream"] is True
        return streamed("large", 0.4)

    models = Models(small=small, large=large)
    summary, _, _ = run(tmp_path, models, 8, params={"stream": True}, prices=PRICES)
    assert totals(summary) == (0, 8, 0)
    assert models.rows("large") == [1, 3, 5, 7]
    sql = "select step, count(*), count(ttft_s), min(earlier_steps[1].confidence) from data group by 1 order by 1"
    assert query(tmp_path, sql) == [(1, 4, 4, None), (2, 4, 4, 0.5)]


def test_a_stopped_run_goes_on_at_the_next_step(tmp_path: Path) -> None:
    models = Models()
    stopped(tmp_path, models)
    left = set(range(8)) - {row for (row,) in query(tmp_path, "select row_index from data")}
    summary, _, _ = run(tmp_path, models, 8, prices=PRICES)
    assert totals(summary) == (0, 8, 0)
    assert set(models.rows("small")) == left - {1}
    assert 1 in models.rows("large")
    earlier = query(tmp_path, "select step, earlier_steps[1].confidence, attempts from data where row_index = 1")
    assert [row[:2] for row in earlier] == [(2, 0.5)]


def test_a_kept_answer_is_judged_by_the_threshold_of_now(tmp_path: Path) -> None:
    models = Models()
    stopped(tmp_path, models)
    lower: list[dict[str, Any]] = [{"model": "small", "accept": {"confidence": 0.4}}, {"model": "large"}]
    summary, _, _ = run(tmp_path, models, 8, lower)
    assert totals(summary) == (0, 8, 0)
    assert models.rows("large") == []
    assert 1 not in models.rows("small")
    assert query(tmp_path, "select step, confidence from data where row_index = 1") == [(1, 0.5)]


def test_a_further_step_that_is_down_leaves_its_rows_open(tmp_path: Path) -> None:
    models = Models(large=lambda *_: httpx.Response(503))
    summary, elapsed, _ = run(tmp_path, models, 40, retry={"outage": "2m"}, limits={"concurrency": 4})
    assert (summary.exit_code, summary.failed) == (69, 0)
    assert 115 < elapsed < 200
    assert 0 < summary.ok < 40
    again, _, _ = run(tmp_path, Models(), 40)
    assert totals(again) == (0, 40, 0)


@pytest.mark.parametrize("code", [401, 404])
def test_a_further_step_that_refuses_us_stops_the_run(tmp_path: Path, code: int) -> None:
    models = Models(large=lambda *_: status(code)())
    summary, _, _ = run(tmp_path, models, 200)
    assert summary.exit_code == 3
    assert summary.ok < 60
    assert summary.failed <= 3
    assert summary.open


def test_a_fallback_stands_for_the_first_step(tmp_path: Path) -> None:
    models = Models(small=lambda *_: finished("content_filter", ""), spare=lambda row, _: says("spare", row / 10))
    fallback = [{"model": "spare", "on": ["content_filter"]}]
    summary, _, _ = run(tmp_path, models, 11, fallback=fallback)
    assert totals(summary) == (0, 11, 0)
    assert models.rows("large") == list(range(9))
    found = query(tmp_path, "select step, model, count(*) from data group by all order by all")
    assert found == [(1, "spare", 2), (2, "large", 9)]


def test_the_budget_holds_back_the_price_of_the_dearest_step(tmp_path: Path) -> None:
    cascade: list[dict[str, Any]] = [TWO[0], {"model": "large", "prices": DEAR}]
    summary, _, _ = run(tmp_path, Models(), 400, cascade, prices=PRICES, budget={"max_cost": 0.02})
    assert summary.exit_code == 4
    assert 0.005 < summary.spend.cost <= 0.02


@pytest.mark.parametrize("shared", [{"dedupe": True}, {"cache": "{}/answers"}], ids=["dedupe", "cache"])
def test_equal_rows_are_asked_once_at_each_step(tmp_path: Path, shared: dict[str, Any]) -> None:
    lines = [{"id": f"k{number}", "text": f"row {number % 4}"} for number in range(20)]
    fields: dict[str, Any] = {
        name: value if value is True else value.format(tmp_path) for name, value in shared.items()
    }
    messages = [{"role": "user", "content": "{{ text }}"}]
    models = Models()
    summary, _, _ = run(tmp_path, models, 0, lines=lines, messages=messages, **fields)
    assert (summary.exit_code, summary.ok, summary.sent) == (0, 20, 6)
    assert models.rows("small") == [0, 1, 2, 3]
    assert models.rows("large") == [1, 3]
    found = query(tmp_path, "select step, model, count(*) from data group by all order by all")
    assert found == [(1, "small", 10), (2, "large", 10)]


def test_a_cache_gives_each_step_its_own_answers(tmp_path: Path) -> None:
    cache = str(tmp_path / "answers")
    folders = [tmp_path / name for name in ("first", "plain", "again", "other")]
    for folder in folders:
        folder.mkdir()
    fields: dict[str, Any] = {"provider": {"base_url": "http://a/v1"}, "response": RESPONSE, "cache": cache}
    models = Models()
    run(folders[0], models, 10, cache=cache)
    models.by_model.clear()
    # A job of the first model alone finds that model's answers, the unsure ones too.
    plain, _, _ = simulate(folders[1], models, 10, model="small", **fields)
    assert (plain.ok, plain.sent) == (10, 0)
    assert query(folders[1], "select distinct model from data") == [("small",)]
    again, _, _ = run(folders[2], models, 10, cache=cache)
    assert (again.ok, again.sent) == (10, 0)
    # Another second model is asked itself, and the first one's answers are there.
    other, _, _ = run(folders[3], models, 10, [TWO[0], {"model": "other"}], cache=cache)
    assert (other.ok, other.sent) == (10, 5)
    assert models.rows("small") == []
    assert query(folders[3], "select step, model, count(*) from data group by all order by all") == [
        (1, "small", 5),
        (2, "other", 5),
    ]


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("one step", {"cascade": TWO[:1]}, "one step"),
    ("a loop", {"cascade": [TWO[0], {"model": "small"}]}, "asked before it already"),
    ("no threshold", {"cascade": [{"model": "small"}, {"model": "large"}]}, "no threshold"),
    ("no confidence", {"cascade": TWO, "response": {"schema": SCHEMA}}, "measures none"),
    ("samples", {"cascade": TWO, "response": {"schema": SCHEMA, "confidence": "samples"}, "samples": 3}, "all samples"),
    ("another model", {"cascade": TWO, "model": "large"}, "first step"),
    ("last accepts", {"cascade": [TWO[0], {"model": "large", "accept": {"confidence": 0.5}}]}, "last step"),
    ("batch", {"cascade": TWO, "engine": "batch"}, "engine: batch"),
    ("first params", {"cascade": [{**TWO[0], "params": {"seed": 1}}, TWO[1]]}, "the job itself"),
    ("budget", {"cascade": TWO, "budget": {"max_cost": 1}, "prices": PRICES}, "no price is known for large"),
    ("above one", {"cascade": [{"model": "small", "accept": {"confidence": 1.5}}, TWO[1]]}, "1"),
    ("template", {"cascade": [TWO[0], {"model": "large", "params": {"seed": "{{ text }}"}}]}, "fixed values"),
    ("stream", {"cascade": [TWO[0], {"model": "large", "params": {"stream": True}}]}, "same at each step"),
]


@pytest.mark.parametrize(("fields", "words"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_a_cascade_that_cannot_work_is_refused(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    given = {"provider": {"base_url": "http://a/v1"}, "response": RESPONSE, "model": "small", **fields}
    with pytest.raises(JobError, match=words):
        simulate(tmp_path, Models(), 4, **given)


def test_the_first_step_names_the_model(tmp_path: Path) -> None:
    job = make_job(tmp_path, None, model=None, cascade=TWO, response=RESPONSE)
    assert job.model == "small"
