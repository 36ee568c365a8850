"""Every filter, test and global that templates are offered is used here once, with what it must give."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from batchchat.errors import JobError
from batchchat.template import RowTemplateError, compile_template
from batchchat.template.sandbox import Environment

ROW: dict[str, Any] = {
    "n": -3,
    "x": 2.567,
    "s": "ab cd",
    "l": [3, 1, 2],
    "t": ["b", "a", "b"],
    "d": {"b": 1, "a": 2},
    "o": [{"k": "x", "v": 1}, {"k": "y", "v": 2}, {"k": "x", "v": 3}],
    "none": None,
    "yes": True,
    "html": "<b>é & x</b>",
}

FILTERS = {
    "abs": ("{{ n|abs }}", "3"),
    "attr": ("{{ s|attr('upper') is callable }}", "true"),
    "batch": ("{{ l|batch(2, 0)|list }}", "[[3,1],[2,0]]"),
    "capitalize": ("{{ s|capitalize }}", "Ab cd"),
    "center": ("{{ 'x'|center(5) }}", "  x  "),
    "count": ("{{ l|count }}", "3"),
    "d": ("{{ nothing|d('x') }}", "x"),
    "default": ("{{ nothing|default('x') }}", "x"),
    "dictsort": ("{{ d|dictsort }}", '[["a",2],["b",1]]'),
    "e": ("{{ html|e }}", "&lt;b&gt;é &amp; x&lt;/b&gt;"),
    "escape": ("{{ html|escape }}", "&lt;b&gt;é &amp; x&lt;/b&gt;"),
    "filesizeformat": ("{{ 13000|filesizeformat }}", "13.0 kB"),
    "first": ("{{ l|first }}", "3"),
    "float": ("{{ '2'|float }}", "2.0"),
    "forceescape": ("{{ '<'|forceescape }}", "&lt;"),
    "format": ("{{ '%s-%s'|format('a', 1) }}", "a-1"),
    "groupby": ("{% for k, v in o|groupby('k') %}{{ k }}{{ v|length }}{% endfor %}", "x2y1"),
    "indent": ("{{ 'a\\nb'|indent(2) }}", "a\n  b"),
    "int": ("{{ '7'|int }}", "7"),
    "items": ("{% for k, v in d|items %}{{ k }}{{ v }}{% endfor %}", "b1a2"),
    "join": ("{{ l|join('-') }}{{ o|join(attribute='v') }}{{ [[1, true]]|join }}", "3-1-2123[1,true]"),
    "last": ("{{ l|last }}", "2"),
    "length": ("{{ s|length }}", "5"),
    "list": ("{{ 'ab'|list }}", '["a","b"]'),
    "lower": ("{{ 'AB'|lower }}", "ab"),
    "map": ("{{ o|map(attribute='v')|list }}", "[1,2,3]"),
    "max": ("{{ l|max }}", "3"),
    "min": ("{{ l|min }}", "1"),
    "pprint": ("{{ l|pprint }}", "[3, 1, 2]"),
    "reject": ("{{ l|reject('odd')|list }}", "[2]"),
    "rejectattr": ("{{ o|rejectattr('k', 'eq', 'x')|list }}", '[{"k":"y","v":2}]'),
    "replace": ("{{ s|replace('a', 'x') }}", "xb cd"),
    "reverse": ("{{ 'abc'|reverse }}", "cba"),
    "round": ("{{ x|round(1) }}", "2.6"),
    "safe": ("{{ '<'|safe }}", "<"),
    "select": ("{{ l|select('odd')|list }}", "[3,1]"),
    "selectattr": ("{{ o|selectattr('v', 'gt', 2)|list }}", '[{"k":"x","v":3}]'),
    "slice": ("{{ l|slice(2)|list }}{{ l|slice(2, 0)|list }}", "[[3,1],[2]][[3,1],[2,0]]"),
    "sort": ("{{ l|sort }}", "[1,2,3]"),
    "string": ("{{ l|string }}{{ 1|string }}", "[3,1,2]1"),
    "striptags": ("{{ html|striptags }}", "é & x"),
    "sum": ("{{ l|sum }}", "6"),
    "title": ("{{ s|title }}", "Ab Cd"),
    "tojson": ("{{ [html, none]|tojson(ensure_ascii=False) }}", '["<b>é & x</b>",null]'),
    "trim": ("{{ ' x '|trim }}", "x"),
    "truncate": ("{{ 'abcdefghij'|truncate(6, true, '…', 0) }}", "abcde…"),
    "unique": ("{{ t|unique|list }}", '["b","a"]'),
    "upper": ("{{ s|upper }}", "AB CD"),
    "urlencode": ("{{ 'a b&'|urlencode }}", "a%20b%26"),
    "wordcount": ("{{ s|wordcount }}", "2"),
    "wordwrap": ("{{ s|wordwrap(2) }}", "ab\ncd"),
}
TESTS = {
    "!=": "1 is ne 2",
    "<": "1 is lt 2",
    "<=": "1 is le 2",
    "==": "1 is eq 1",
    ">": "2 is gt 1",
    ">=": "2 is ge 1",
    "boolean": "yes is boolean",
    "callable": "s.upper is callable",
    "defined": "s is defined",
    "divisibleby": "9 is divisibleby 3",
    "eq": "1 is eq 1",
    "equalto": "1 is equalto 1",
    "escaped": "('<'|e) is escaped",
    "even": "2 is even",
    "false": "false is false",
    "filter": "'upper' is filter",
    "float": "x is float",
    "ge": "1 is ge 1",
    "greaterthan": "2 is greaterthan 1",
    "gt": "2 is gt 1",
    "in": "1 is in l",
    "integer": "n is integer",
    "iterable": "l is iterable",
    "le": "1 is le 1",
    "lessthan": "1 is lessthan 2",
    "lower": "s is lower",
    "lt": "1 is lt 2",
    "mapping": "d is mapping",
    "ne": "1 is ne 2",
    "none": "none is none",
    "number": "n is number",
    "odd": "n is odd",
    "sameas": "yes is sameas true",
    "sequence": "l is sequence",
    "string": "s is string",
    "test": "'odd' is test",
    "true": "yes is true",
    "undefined": "nothing is undefined",
    "upper": "'AB' is upper",
}
GLOBALS = {
    "range": ("{{ range(3)|list }}", "[0,1,2]"),
    "dict": ("{{ dict(a=1) }}", '{"a":1}'),
    "cycler": ("{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}", "aba"),
    "joiner": ("{% set j = joiner(',') %}{% for i in l %}{{ j() }}{{ i }}{% endfor %}", "3,1,2"),
    "namespace": ("{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{{ ns.a }}", "2"),
}
VALUES = [
    ("{{ l }}|{{ d }}|{{ yes }}|{{ none }}|{{ n }}|{{ x }}", '[3,1,2]|{"a":2,"b":1}|true||-3|2.567'),
    ("{{ yes }}", "true"),
    ("{{ o }}", '[{"k":"x","v":1},{"k":"y","v":2},{"k":"x","v":3}]'),
    ("{{ l ~ yes ~ s }}", "[3,1,2]trueab cd"),
    ("{{ html|tojson(ensure_ascii=true) }}", '"<b>\\u00e9 & x</b>"'),
    ("{{ '😀'|tojson(ensure_ascii=True) }}", '"\\ud83d\\ude00"'),
]


def text(source: str, row: dict[str, Any] = ROW) -> str:
    body = compile_template([{"role": "user", "content": source}], {}, model="m").render(row).body
    return str(orjson.loads(body)["messages"][0]["content"])


def test_the_tables_name_all_that_is_offered() -> None:
    environment = Environment()
    assert set(FILTERS) == {name for name in environment.filters if not name.startswith("__")}
    assert set(TESTS) == set(environment.tests)
    assert set(GLOBALS) == set(environment.globals)


@pytest.mark.parametrize(("source", "wanted"), [*FILTERS.values(), *GLOBALS.values(), *VALUES])
def test_what_is_offered_works(source: str, wanted: str) -> None:
    assert text(source) == wanted


@pytest.mark.parametrize("expression", TESTS.values())
def test_every_test_works(expression: str) -> None:
    assert text(f"{{{{ 'right' if {expression} else 'wrong' }}}}") == "right"


def test_a_column_called_row_is_that_column() -> None:
    assert text("{{ row }}", {"row": "mine"}) == "mine"
    assert text("{{ row|upper }}", {"row": "mine"}) == "MINE"
    template = compile_template([{"role": "user", "content": "{{ row }}"}], {}, model="m")
    assert template.uses(["row"])


@pytest.mark.parametrize(
    ("name", "given", "sent"),
    [
        *[("temperature", "0.5", 0.5), ("max_tokens", " 20 ", 20), ("seed", "-7", -7), ("top_p", ".9", 0.9)],
        *[("max_tokens", "20.0", 20), ("max_tokens", 20.0, 20), ("n", "1e1", 10), ("top_p", "1.0", 1.0)],
        *[("logprobs", "true", True), ("logprobs", "False", False), ("user", "7", "7"), ("temperature", 0.5, 0.5)],
    ],
)
def test_a_param_from_a_text_column_has_its_own_type(name: str, given: object, sent: object) -> None:
    template = compile_template([{"role": "user", "content": "hi"}], {name: "{{ value }}"}, model="m")
    found = orjson.loads(template.render({"value": given}).body)[name]
    assert (type(found), found) == (type(sent), sent)
    assert name not in orjson.loads(template.render({"value": None}).body)


@pytest.mark.parametrize(("name", "given"), [("temperature", "warm"), ("seed", "1_0"), ("logprobs", "maybe")])
def test_a_param_that_is_no_number_fails_its_row(name: str, given: str) -> None:
    template = compile_template([{"role": "user", "content": "hi"}], {name: "{{ value }}"}, model="m")
    with pytest.raises(RowTemplateError, match=rf"params.{name}: must be .*, not '{given}'"):
        template.render({"value": given})


@pytest.mark.parametrize(
    ("source", "told"),
    [("{{ s|trimm }}", "there is no filter 'trimm' (did you mean 'trim'?)"), ("{{ 1 is od }}", "no test 'od'")],
)
def test_an_unknown_filter_is_told_with_the_nearest_name(source: str, told: str) -> None:
    with pytest.raises(JobError) as refused:
        text(source)
    assert told in str(refused.value)
    assert "trim," in str(refused.value.remedy) or "odd," in str(refused.value.remedy)


def test_the_groups_of_groupby_are_written_as_json() -> None:
    row = {"o": [{"k": "x", "n": 1}, {"k": "y", "n": 2}]}
    assert text("{{ o|groupby('k')|list }}", row) == '[["x",[{"k":"x","n":1}]],["y",[{"k":"y","n":2}]]]'
    assert text("{{ (o|groupby('k')|first)|tojson }}", row) == '["x",[{"k":"x","n":1}]]'
