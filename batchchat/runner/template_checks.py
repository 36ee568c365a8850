"""Checks of a job's template against the columns of its input, before any row is rendered."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING

from batchchat.job import Job, has_lines
from batchchat.job.sections import EXAMPLES
from batchchat.sources import Source
from batchchat.template import Template

if TYPE_CHECKING:
    from batchchat.examples import Examples

_SINGLE_BRACES = re.compile(r"(?<!\{)\{ *([^{}%#\n]{1,200}?) *\}(?!\})")
"""A text in single braces, as Python's `format` has them: a likely slip of those who meant a hole of the template."""
_COMMENT = re.compile(r"\{#(.*?)#\}", re.DOTALL)


def check_cut(job: Job, template: Template, columns: tuple[str, ...]) -> None:
    """Refuse to cut a column that is not there or that no message shows: it would make no prompt shorter."""
    column = None if job.max_prompt_tokens is None else job.max_prompt_tokens.column
    if column is None:
        return
    if has_lines(job):
        message, remedy = "cannot be: the lines of a batch file hold their own messages", "Write `then: fail`."
    elif column not in columns:
        message, remedy = f"the input has no column {column!r}", f"Its columns are {', '.join(columns)}."
    elif column not in template.names and not template.uses_row:
        message, remedy = f"no message shows the column {column!r}", "Name one that a message shows."
    else:
        return
    raise job.error(message, "max_prompt_tokens", "then", "cut", remedy=remedy)


def examples_of(job: Job, template: Template, source: Source) -> Examples | None:
    """Read the rows that examples are chosen from. Raises JobError if no template can or does show them."""
    if job.examples is None:
        return None
    if has_lines(job):
        message = "cannot be shown: the lines of a batch file hold their own messages"
        raise job.error(message, EXAMPLES, remedy="Leave it out.")
    if EXAMPLES in source.columns:
        message = "has the name of a column of the input, so that templates could not tell the two apart"
        raise job.error(message, EXAMPLES, remedy="Rename the column.")
    if EXAMPLES not in template.names:
        message = "is shown by no message: no template names `examples`"
        loop = "{% for example in examples %}{{ example.text }}: {{ example.label }}\n{% endfor %}"
        raise job.error(message, EXAMPLES, remedy=f"Write into a message, for instance, {loop}")
    from batchchat.examples import open_examples

    return open_examples(job)


def check_columns_used(job: Job, template: Template, columns: tuple[str, ...]) -> None:
    """Refuse a job that asks every row the same, unless it says that this is meant."""
    # `row` names no column, and differs from row to row all the same.
    if template.skip is not None and template.skip.names.isdisjoint({*columns, "row"}):
        raise job.error(
            "names no column of the input, so that it is the same for every row",
            "skip",
            remedy=f"Write a condition on a column, such as {{{{ not {columns[0]} }}}}. "
            f"The input's columns are {', '.join(columns)}.",
        )
    if job.constant or has_lines(job) or template.uses(columns):
        return
    written = [text for text in _texts_of(job.messages) for text in _SINGLE_BRACES.findall(text)]
    name = next((text for text in written if text in columns), None)
    hint = (
        f"Write {{{{ {name} }}}} for {{{name}}}" if name else f"Put a column into a message, such as {_hole(columns)}"
    )
    raise job.error(
        "no message and no param uses a column of the input, so every row would ask the same",
        "messages",
        remedy=f"{hint}; or write `constant: true` into the job if this is meant. "
        f"The input's columns are {', '.join(columns)}.",
    )


def _hole(columns: tuple[str, ...]) -> str:
    """Write how a template shows one of the columns."""
    plain = next((name for name in columns if name.isidentifier()), None)
    return f"{{{{ {plain or 'text'} }}}}"


def _texts_of(value: object) -> Iterator[str]:
    """Yield the texts inside of a value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from chain.from_iterable(map(_texts_of, value.values()))
    elif isinstance(value, list | tuple):
        yield from chain.from_iterable(map(_texts_of, value))


def text_warnings(job: Job) -> list[str]:
    """Say what the model will not see: text inside of comments."""
    lost = [text for source in _texts_of(job.messages) for text in _COMMENT.findall(source)]
    # A short remark is meant as one. Several lines, or a hole, are likely a part of the prompt.
    lost = [text.strip() for text in lost if "\n" in text.strip() or "{{" in text]
    if not lost:
        return []
    short = lost[0] if len(lost[0]) <= 60 else lost[0][:59] + "…"
    return [f"messages: {{# … #}} is a comment, so {sum(map(len, lost)):,} characters are not sent: {short!r}"]


def sample_warnings(job: Job, template: Template) -> list[str]:
    """Warn if the samples of a row may all be alike."""
    reasons = alike_samples(job, template)
    if not reasons:
        return []
    return [f"samples: the {job.samples} answers to a row may all be alike, since {' and '.join(reasons)}"]


def alike_samples(job: Job, template: Template) -> list[str]:
    """Return what makes the samples of a row alike, so that more of them tell no more."""
    if job.samples == 1 or template.sampled:
        return []
    reasons = []
    if job.params.temperature == 0:
        reasons.append("params.temperature is 0")
    if job.params.seed is not None:
        reasons.append('params.seed is the same for all of them (`seed: "{{ sample_index }}"` gives each its own)')
    return reasons
