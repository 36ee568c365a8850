"""Data is never trusted: it is no template, no path and no address, and it cannot hold a run up."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from batchchat.errors import JobError, UsageError
from batchchat.job import load_job
from batchchat.template import RowTemplateError, compile_template

ROOT = Path(__file__).parents[2]
HOSTILE = [
    "{{ 7 * 7 }}",
    "{% for x in range(10**9) %}x{% endfor %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{# gone #}",
    "{% include '/etc/passwd' %}",
    "file:///etc/passwd",
    "/etc/passwd",
    "http://127.0.0.1:1/",
    "${HOME} $(id) `id` %(x)s {x} \x00 \u202e",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_a_row_goes_through_as_it_is(text: str) -> None:
    import orjson

    template = compile_template([{"role": "user", "content": "<{{ text }}>"}], {"stop": "{{ text }}"}, model="m")
    body = orjson.loads(template.render({"text": text}).body)
    assert body["messages"][0]["content"] == f"<{text}>"
    assert body["stop"] == text


@pytest.mark.parametrize(
    "content",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 10**10 }}",
        "{% for a in range(10000) %}{{ text * 10000 }}{% endfor %}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ text.ljust(10**10) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ text.format.__globals__ }}",
    ],
)
def test_a_render_that_does_not_end_or_grows_is_one_failed_row_soon(content: str) -> None:
    template = compile_template([{"role": "user", "content": content}], {}, model="m")
    started = time.monotonic()
    with pytest.raises(RowTemplateError):
        template.render({"text": "abc"})
    assert time.monotonic() - started < 30


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(f"name: !!python/object/apply:os.system ['touch {tmp_path}/owned']\n", encoding="utf-8")
    with pytest.raises((JobError, UsageError)):
        load_job(job)
    assert not (tmp_path / "owned").exists()


def test_nothing_in_the_code_makes_code_of_data() -> None:
    forbidden = re.compile(
        r"\bimport (?:pickle|marshal|shelve|dill)\b|\bfrom (?:pickle|marshal|shelve) |(?<![\w.])(?:eval|exec)\("
        r"|yaml\.(?:load|unsafe_load|full_load)\(|os\.system\(|shell=True"
    )
    # The methods of a class are compiled from the names in its own source, as the standard library does.
    allowed = ["batchchat/dataclass.py: exec("]
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in (ROOT / "batchchat").rglob("*.py")
        for match in forbidden.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == allowed
