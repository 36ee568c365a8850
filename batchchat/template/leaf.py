"""One templated text of a job: a message's content, a role, a param."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from jinja2 import Template, TemplateError, TemplateSyntaxError, UndefinedError, meta, nodes

from batchchat.errors import JobError
from batchchat.records import ErrorKind
from batchchat.template.sandbox import MAX_TEXT, Environment, RowContext, TooMuchError, listed

Values = Mapping[str, Any]
_RESULT = "_result"
_SMALL = 2**64
"""Whole numbers below it are written at once. The others take the way on which the work of a rendering is counted."""
T = TypeVar("T")


class RowTemplateError(Exception):
    """A row that does not render; the message says which template and why. It fails the row, never the run.

    `kind` is TEMPLATE, or INPUT if no template is at fault but what the row holds.
    """

    def __init__(self, message: str, kind: ErrorKind = ErrorKind.TEMPLATE) -> None:
        super().__init__(message if len(message) <= 2_000 else message[:2_000] + "…")
        self.kind = kind


class Leaf:
    """A compiled template text.

    `constant` is its text if no row can change it, else None. `names` are the columns it speaks of; `row` among them is
    the whole row, if no column has that name. A text that only
    puts columns between fixed pieces, as most prompts do, is rendered without Jinja2's machinery.
    """

    __slots__ = ("_environment", "_holes", "_pieces", "_template", "constant", "names", "place")

    def __init__(self, environment: Environment, source: str, place: str) -> None:
        self._environment = environment
        self.place = place
        parsed = parse(environment, source, place)
        self._pieces, self._holes = _plain_pieces(parsed)
        self.constant = "".join(self._pieces) if self._pieces and not self._holes else None
        self._template, self.names = _compile(environment, parsed, place)

    def render(self, values: Values) -> str:
        """Render for one row; RowTemplateError if that is not possible."""
        if self._holes:
            pieces = self._pieces.copy()
            for index, name in self._holes:
                value = values.get(name, values)  # the row itself stands for "no such column"
                kind = type(value)
                if kind is not str:
                    if value is None:
                        value = ""
                    elif kind is bool:
                        value = "true" if value else "false"
                    elif kind is float or (kind is int and -_SMALL < value < _SMALL):
                        value = str(value)
                    else:
                        break
                pieces[index] = value
            else:
                text = "".join(pieces)
                if len(text) <= MAX_TEXT:
                    return text
        return guarded(self._environment, values, self.place, self._render)

    def _render(self, context: RowContext) -> str:
        length = 0
        pieces: list[str] = []
        for piece in self._template.root_render_func(context):
            length += len(piece)
            if length > MAX_TEXT:
                raise TooMuchError(f"a text of more than {MAX_TEXT:,} characters")
            pieces.append(piece)
        return "".join(pieces)


class NativeLeaf:
    """A text that is exactly one `{{ expression }}`: it gives the value itself, such as a number from a column."""

    __slots__ = ("_environment", "_name", "_template", "names", "place")

    def __init__(self, environment: Environment, expression: nodes.Expr, place: str) -> None:
        self._environment = environment
        self.place = place
        self._name = expression.name if isinstance(expression, nodes.Name) else None
        parsed = nodes.Template([nodes.Assign(nodes.Name(_RESULT, "store"), expression, lineno=1)], lineno=1)
        parsed.set_environment(environment)
        self._template, self.names = _compile(environment, parsed, place)

    def render(self, values: Values) -> Any:
        """Give the expression's value for one row; RowTemplateError if there is none."""
        if self._name is not None and self._name in values:
            return values[self._name]
        return guarded(self._environment, values, self.place, self._evaluate)

    def _evaluate(self, context: RowContext) -> Any:
        for _ in self._template.root_render_func(context):
            pass
        value = context.vars[_RESULT]
        self._environment.as_text(value)  # refuses what is undefined, a function or a generator
        return value


def parse(environment: Environment, source: str, place: str) -> nodes.Template:
    """Parse a template text; JobError with the place and the line in the text if it is wrong."""
    try:
        return environment.parse_text(source)
    except TemplateSyntaxError as error:
        raise _syntax_error(error, place, environment) from None


def _compile(environment: Environment, parsed: nodes.Template, place: str) -> tuple[Template, frozenset[str]]:
    """Compile what was parsed, and tell the columns it speaks of; JobError for an unknown filter or test."""
    try:
        names = meta.find_undeclared_variables(parsed) - set(environment.globals)
        return environment.from_string(parsed), frozenset(names)
    except TemplateSyntaxError as error:
        raise _syntax_error(error, place, environment) from None


def single_expression(parsed: nodes.Template) -> nodes.Expr | None:
    """Return the expression of a template that is one `{{ expression }}` and nothing else."""
    if len(parsed.body) == 1 and isinstance(parsed.body[0], nodes.Output) and len(parsed.body[0].nodes) == 1:
        node = parsed.body[0].nodes[0]
        return None if isinstance(node, nodes.TemplateData) else node
    return None


def guarded(environment: Environment, values: Values, place: str, render: Callable[[RowContext], T]) -> T:
    """Run a rendering under a fresh budget, turning whatever goes wrong into a RowTemplateError."""
    environment.budget.reset()
    try:
        return render(RowContext(environment, {**environment.globals, "row": values, **values}))
    except RowTemplateError:
        raise
    except UndefinedError as error:
        raise RowTemplateError(f"{place}: {_undefined(str(error.message), values)}") from None
    except RecursionError:
        raise RowTemplateError(f"{place}: the template calls itself too deeply") from None
    except (TooMuchError, TemplateError) as error:
        raise RowTemplateError(f"{place}: {error}") from None
    except Exception as error:  # noqa: BLE001 - an expression over data can raise anything; it fails its row alone
        raise RowTemplateError(f"{place}: {type(error).__name__}: {error}") from None


def _syntax_error(error: TemplateSyntaxError, place: str, environment: Environment) -> JobError:
    message = str(error.message).rstrip(".")
    unknown = re.fullmatch(r"No (filter|test) named '(.*)'", message)
    remedy = None
    if unknown is not None:
        kind = unknown[1]
        offered = environment.filters if kind == "filter" else environment.tests
        known = sorted(name for name in offered if name.isidentifier() and not name.startswith("__"))
        message = f"there is no {kind} {unknown[2]!r}{suggestion(unknown[2], known)}"
        remedy = f"The {kind}s are {', '.join(known)}."
    return JobError(f"{message} (line {error.lineno} of the template)", field=place, remedy=remedy)


def _undefined(message: str, values: Values) -> str:
    found = re.fullmatch(r"'None' has no attribute '(.*)'", message)
    if found is not None:
        return (
            f"the value that {found[1]!r} is asked of is null in this row: test it first, as in "
            f"{{% if value %}}{{{{ value.{found[1]} }}}}{{% endif %}}"
        )
    found = re.fullmatch(r"'(.*)' is undefined", message)
    if found is None:
        return message
    name, near = found[1], suggestion(found[1], values)
    # Rows of JSON Lines may leave a column out: a name that is like none of the row's is likely one of those.
    remedy = "" if near else f". If other rows have it, write {{{{ {name} | default('') }}}}"
    return f"there is no column {name!r}{near}; the row has: {listed(values)}{remedy}"


def suggestion(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or nothing if no known name is near."""
    near = difflib.get_close_matches(name, [str(other) for other in known], n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _plain_pieces(parsed: nodes.Template) -> tuple[list[str], list[tuple[int, str]]]:
    """Split a template into fixed pieces and columns between them; nothing if it does more than that."""
    pieces: list[str] = []
    holes: list[tuple[int, str]] = []
    for statement in parsed.body:
        if not isinstance(statement, nodes.Output):
            return [], []
        for node in statement.nodes:
            if isinstance(node, nodes.TemplateData):
                pieces.append(node.data)
            elif isinstance(node, nodes.Name):
                holes.append((len(pieces), node.name))
                pieces.append("")
            else:
                return [], []
    return pieces or [""], holes
