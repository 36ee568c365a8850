"""Nearly all answers take a quick way through the reader: it must say what the whole way says."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

import batchchat.reasoning as reasoning
from batchchat.client.usage import MAX_TOKENS, read_usage
from batchchat.client.wire import judge
from batchchat.reasoning import is_blank, split
from batchchat.records import Completion, Usage, Verdict
from tests.thorough import examples

PIECES = st.sampled_from(
    [
        *("Here is", "Here's", "Here are my reasoning steps:", "Here's my thought process:", "Here is my response:"),
        *(
            "analysis",
            "assistantfinal",
            "<think>",
            "</think>",
            "[THINK]",
            "[/THINK]",
            "◁think▷",
            "◁/think▷",
            "<|im_end|>",
        ),
        *(
            "<|channel|>analysis<|message|>",
            "<|end|>",
            "yes",
            " ",
            "\n",
            "\u200b",
            "\ufeff",
            "ㅤ",
            "é",
            "1",
            "{",
            "}",
            '"',
            "<",
            "[",
        ),
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=5), max_size=8).map("".join)


@examples(300)
@given(TEXTS)
@example("\u200bHere's my thought process: yes")
@example("analysis yes assistantfinal no")
@example("Here's my thought process: yes. Here's my response: no")
def test_reasoning_is_told_apart_as_if_every_text_were_searched(text: str) -> None:
    assert split(text) == reasoning._split(text)


@examples(300)
@given(TEXTS)
@example("\u3164\u115f")
@example("é")
def test_a_text_is_blank_if_all_of_it_is(text: str) -> None:
    assert is_blank(text) == (reasoning._BLANK.fullmatch(text) is not None)


COUNTS = st.sampled_from([None, 0, 1, 5, 7.0, 7.5, -1, True, "5", MAX_TOKENS, MAX_TOKENS + 1]) | st.integers()


@examples(300)
@given(COUNTS, COUNTS, COUNTS)
@example(3, 1, 4)
def test_a_plain_usage_is_read_as_one_with_further_fields(prompt: Any, completion: Any, total: Any) -> None:
    plain = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}
    assert read_usage(plain) == read_usage({**plain, "nothing": None})


@examples(200)
@given(TEXTS)
def test_an_answer_that_stopped_is_judged_by_whether_it_says_anything(text: str) -> None:
    plain = judge(Completion(text, "stop", "m", Usage(1, 2, 3), "id-1"))
    # A word that the quick way does not know, and that says the same.
    other = judge(Completion(text, "STOP", "m", Usage(1, 2, 3), "id-1"))
    assert (plain.verdict, plain.failure, plain.text, plain.usage, plain.model, plain.request_id) == (
        other.verdict,
        other.failure,
        other.text,
        other.usage,
        other.model,
        other.request_id,
    )
    assert (plain.verdict is Verdict.OK) == (not is_blank(text))
