"""`max_prompt_tokens`: prompts that are too long fail, or lose the end of a column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.errors import JobError
from batchchat.planning import plan_job
from batchchat.template import PromptBound, RowTemplateError, compile_template
from batchchat.template.bound import CUT_MARK, shortened_text
from tests.integration.jobs import make_job, query, write_rows
from tests.thorough import examples
from tests.unit.test_run_clock import Provider, answer, simulate

LINES: list[dict[str, Any]] = [
    {"id": 0, "text": "short"},
    {"id": 1, "text": "word " * 400},
    {"id": 2, "text": "word " * 900},
]


async def at_once(_request: httpx.Request) -> httpx.Response:
    await anyio.sleep(0.1)
    return answer()


def asked(folder: Path, most: Any) -> tuple[Any, int]:
    provider = Provider(at_once)
    summary, _, _ = simulate(folder, provider, 0, lines=LINES, max_prompt_tokens=most)
    return summary, len(provider.times)


def test_a_prompt_that_is_too_long_fails_and_is_not_sent(tmp_path: Path) -> None:
    summary, sent = asked(tmp_path, 700)
    assert (summary.exit_code, summary.ok, summary.failed, sent) == (1, 2, 1, 2)
    [(kind, message)] = query(tmp_path, "select error_kind, error_message from data where status = 'failed'")
    assert (kind, message) == ("input", "the prompt has about 1,100 tokens: max_prompt_tokens is 700")


def test_a_changed_limit_asks_only_the_rows_that_are_cut_at_another_place(tmp_path: Path) -> None:
    assert asked(tmp_path, None)[1] == 3
    cut, sent = asked(tmp_path, {"limit": 700, "then": {"cut": "text"}})
    assert (cut.exit_code, cut.ok, sent) == (0, 3, 1)
    assert asked(tmp_path, {"limit": 400, "then": {"cut": "text"}})[1] == 2
    assert asked(tmp_path, {"limit": 400, "then": {"cut": "text"}})[1] == 0
    last, sent = asked(tmp_path, None)
    assert (sent, last.revived) == (0, 2)


def test_a_plan_names_the_longest_rows(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", LINES)
    plan = plan_job(make_job(tmp_path, None, samples=2))
    assert [(one.row_index, one.key) for one in plan.longest] == [(2, "2"), (1, "1"), (0, "0")]
    assert plan.longest[0].prompt_tokens > 1_000


@examples(60)
@given(st.text(max_size=300), st.text(max_size=40), st.integers(1, 60))
def test_a_cut_prompt_fits_and_holds_as_much_as_has_room(text: str, other: str, limit: int) -> None:
    messages = [{"role": "user", "content": "{{ other }}\n{{ text }}"}]
    free = compile_template(messages, {}, model="m")
    bound = compile_template(messages, {}, model="m", bound=PromptBound(limit, "text"))
    values = {"text": text, "other": other}
    try:
        whole = free.render(values)
        found = bound.render(values)
    except RowTemplateError:
        nothing = free.render({**values, "text": CUT_MARK.strip()})
        assert nothing.prompt_tokens > limit
        return
    assert found.prompt_tokens <= limit
    if whole.prompt_tokens <= limit:
        assert found.body == whole.body
    else:
        kept = [length for length in range(len(text)) if
                free.render({**values, "text": shortened_text(text, length)}).body == found.body]  # fmt: skip
        assert kept
        longer = free.render({**values, "text": shortened_text(text, min(len(text), max(kept) + 1))})
        assert longer.prompt_tokens > limit or max(kept) + 1 >= len(text)


@pytest.mark.parametrize(
    ("text", "length", "expected"),
    [
        ("abc def", 3, "abc […]"),
        ("abc def", 4, "abc […]"),
        ("abc", 0, "[…]"),
        ("cafe\u0301s", 4, "caf […]"),
        ("x👩\u200d🔧y", 2, "x […]"),
        ("x👍🏽y", 2, "x […]"),
    ],
)
def test_a_cut_keeps_together_what_is_one_character(text: str, length: int, expected: str) -> None:
    assert shortened_text(text, length) == expected


@pytest.mark.parametrize(
    ("most", "field", "message"),
    [
        ({"limit": 5, "then": {"cut": "txt"}}, "max_prompt_tokens.then.cut", "the input has no column 'txt'"),
        ({"limit": 5, "then": {"cut": "id"}}, "max_prompt_tokens.then.cut", "no message shows the column 'id'"),
        ({"limit": 5, "then": "cut"}, "max_prompt_tokens.then", "must be fail or {cut: COLUMN}"),
        ({"limit": 0}, "max_prompt_tokens.limit", "at least 1"),
        ("many", "max_prompt_tokens", "mapping"),
    ],
)
def test_a_bound_that_cannot_be_is_refused_with_its_place(tmp_path: Path, most: Any, field: str, message: str) -> None:
    write_rows(tmp_path / "rows.jsonl", LINES)
    with pytest.raises(JobError) as caught:
        plan_job(make_job(tmp_path, None, max_prompt_tokens=most))
    assert (caught.value.field or "").startswith(field)
    assert message in str(caught.value)
