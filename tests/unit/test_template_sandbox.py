"""A template can neither reach out nor go on for ever: each of these costs one failed row, soon and in little room."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from batchchat.template import RowTemplateError, Template, compile_template
from batchchat.template.sandbox import MAX_WORK, STEP
from tests.thorough import one_in

ROW: dict[str, Any] = {
    "text": "ab" * 500,
    "long": "x" * 1_000_000,
    "big": 10**9,
    "n": 100_000,
    "tree": {"children": []},
}


def compiled(source: str) -> Template:
    return compile_template([{"role": "user", "content": source}], {}, model="m")


HOSTILE = [
    # Loops
    "{% for a in range(n) %}{% for b in range(n) %}{% endfor %}{% endfor %}",
    "{% for a in range(n) %}{% for b in text|list if false %}{% endfor %}{% endfor %}",
    "{% for a in range(n) %}{{ range(n)|sum }}{% endfor %}",
    "{% for a in range(n) %}{{ range(n)|list|length }}{% endfor %}",
    "{% for a in range(n) %}{% for b in range(n)|map('string') %}{% endfor %}{% endfor %}",
    "{{ range(big)|list }}",
    "{% for a in long recursive %}{{ loop(long) }}{% endfor %}",
    "{% for a in range(2000) recursive %}{% if loop.depth < 4 %}{{ loop(range(2000)) }}{% endif %}{% endfor %}",
    "{% macro m(k) %}{% if k %}{{ m(k - 1) }}{{ m(k - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    # Output
    "{% for a in range(n) %}{{ text }}{% endfor %}",
    "{% set all %}{% for a in range(n) %}{{ text|upper }}{% endfor %}{% endset %}",
    "{{ long ~ long ~ long ~ long ~ long }}",
    "{{ long }}{{ long }}{{ long }}{{ long }}{{ long }}",
    # Texts that grow
    "{{ 'x' * big }}",
    "{{ big * 'x' }}",
    "{{ [1] * big }}",
    "{{ 'x' * 1000000000 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (big, 1) }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ ('%s' * 1000)|format(*([long] * 1000)) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:>{w}}'.format(1, w=big) }}",
    "{{ '{x:>1000000000}'.format_map({'x': 1}) }}",
    "{{ ('{0}' * 1000).format(long) }}",
    "{{ 'x'|center(big) }}",
    "{{ 'x'.center(big) }}{{ 'x'.ljust(big) }}",
    "{{ 'x'.zfill(big) }}",
    "{{ '\\t'.expandtabs(big) }}",
    "{{ long.replace('x', long) }}",
    "{{ long|replace('x', long) }}",
    "{{ long.join(range(n)|map('string')) }}",
    "{{ range(n)|join(long) }}",
    "{{ text|indent(big) }}",
    "{{ text|indent(long) }}{{ (text ~ '\\n') * 50 |indent(long) }}",
    "{{ text|wordwrap(1, wrapstring=long) }}",
    "{{ text.translate({97: long}) }}",
    "{{ [1]|batch(big, 'x')|list }}",
    "{% set s = 'x' * 40000 %}{{ [1]|batch(20000, s)|join(',') }}",
    "{% set s = 'x' * 40000 %}{% for l in [1]|batch(20000, s) %}{{ l ~ '' }}{% endfor %}",
    "{% set s = 'x' * 40000 %}{{ '%s' % ([1]|batch(20000, s)|first) }}",
    "{% set s = 'x' * 4000000 %}{{ range(99)|slice(98, s)|map('string')|join }}",
    "{{ [1]|slice(big)|list }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
    # Numbers
    "{{ 9 ** (9 ** 9) }}",
    "{{ big ** big }}",
    "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{{ 5|round(-1000000000) }}",
    "{{ (5).to_bytes(big, 'big') }}",
    # Out of the sandbox
    "{{ ''.__class__.__mro__ }}",
    "{{ text['__class__'] }}",
    "{{ row.clear() }}",
    "{{ tree.children.append(1) }}",
    "{{ range.__globals__ }}",
    "{{ self.__init__ }}",
    "{{ '{0.__class__}'.format(text) }}",
    "{{ text|attr('__class__') }}",
    "{{ lipsum() }}",
]


@pytest.mark.parametrize("source", one_in(3, HOSTILE))
def test_a_hostile_template_fails_its_row_soon(source: str) -> None:
    template = compiled(source)
    begun = time.process_time()
    with pytest.raises(RowTemplateError):
        template.render(ROW)
    assert time.process_time() - begun < 20
    # The next row is not charged for it.
    assert compiled("{{ text|upper }}").render(ROW).body.count(b"AB") == 500


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(n) %}{% endfor %}",
        "{% for word in text|list %}{{ word|upper }}{% endfor %}",
        "{{ long|upper|lower|title|trim|replace('x', 'y') }}",
        "{{ '-' * 80 }}{{ 'x'|center(80) }}{{ text|indent(4)|wordwrap(70) }}",
        "{{ '%-30s|' % 'x' }}{{ '{:>30}'.format('x') }}{{ ','.join(['a', 'b']) }}",
        "{{ 2 ** 64 }}{{ 3.14159|round(2) }}",
    ],
)
def test_ordinary_templates_are_far_from_the_bounds(source: str) -> None:
    assert compiled(source).render(ROW).body


def test_a_bound_counts_one_rendering_alone() -> None:
    steps = MAX_WORK // STEP
    template = compiled("{% for a in range(90000) %}{% endfor %}")
    for _ in range(3 * steps // 90_000):
        template.render({})


def test_threads_render_side_by_side() -> None:
    template = compiled("{% for a in range(k) %}{% if loop.last %}{{ k }}{% endif %}{% endfor %}")
    found: list[bytes] = []

    def work(size: int) -> None:
        found.extend(template.render({"k": size}).body for _ in range(20))

    threads = [threading.Thread(target=work, args=(size,)) for size in (1_000, 2_000, 3_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 60
    assert len(set(found)) == 3


def test_a_data_path_is_not_opened(tmp_path: Any) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("hidden")
    body = compiled("{{ path }}").render({"path": str(secret)}).body
    assert b"hidden" not in body
