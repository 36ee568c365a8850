"""The Jinja2 environment that templates run in: sandboxed, strict, repeatable, and bounded in work and size.

Jinja2's sandbox keeps a template away from Python's internals and from changing data; it does not keep it from being
endless or from building a text of a terabyte. A `WorkBudget` does: loops, calls and filters are charged for what they
walk over and for the text they make, and an operation that could make far more than it was given (`*`, `center`,
`replace`, …) is checked before it runs. A loop over a sequence is charged once, by its length, and a template
without loops, filters and calls pays nothing.

What would render to another text at each run is not offered (`random`, `lipsum`) or is an error (printing a method
or a generator, which would show an address): a rendered request is its own identity, and a new one is paid for again.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, cast

from jinja2 import StrictUndefined, TemplateSyntaxError, Undefined, nodes
from jinja2.filters import do_batch, do_indent, do_round, do_wordwrap, make_attrgetter, sync_do_slice
from jinja2.nodes import EvalContext
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.visitor import NodeTransformer

from batchchat.template.plain import to_json

MAX_TEXT = 4 * 1024 * 1024
"""Characters of one rendered text, and bytes of one request."""
MAX_WORK = 64 * 1024 * 1024
"""Characters that the filters, calls and joins of one rendering may walk over or make."""
STEP = 256
"""What one step of a loop or one filter counts for: 262,144 of them use up a rendering."""
_CALL = 4 * STEP
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_MAX_WIDTH = 100_000
_MAX_BITS = 65_536
_MAX_DIGITS = 300
"""Bounds of a width or range, of the bits of a product, and of digits. Within them one operation takes well under a
second. Templates of people need far less; chosen, not measured."""
_NOT_REPEATABLE = ("random", "lipsum")
_HTML_ONLY = ("urlize", "xmlattr")
_UNMEASURED_METHODS = frozenset({"translate", "maketrans", "to_bytes"})


class TooMuchError(Exception):
    """A rendering that would take too long or grow too large."""


class WorkBudget(threading.local):
    """What the rendering under way may still do; each thread has its own."""

    left = MAX_WORK

    def reset(self) -> None:
        """Begin a new rendering."""
        self.left = MAX_WORK

    def charge(self, amount: int) -> None:
        """Take `amount` characters' worth of work; TooMuchError when nothing is left."""
        self.left -= amount
        if self.left < 0:
            raise TooMuchError("the template does too much work for one row (endless or nested loops?)")

    def text(self, length: int) -> None:
        """Take the work of making a text of `length` characters; TooMuchError if that is over the limit."""
        if length > MAX_TEXT:
            raise TooMuchError(f"a text of {length:,} characters is over the limit of {MAX_TEXT:,}")
        self.charge(length)

    def operand(self, value: Any) -> Any:
        """Charge for walking over a value once: by its length if it has one, else step by step as it is read."""
        kind = type(value)
        if kind is str:
            self.charge(STEP + len(value))
        # Undefined is Sized, and asking for its length would raise before a filter such as `default` could see it.
        elif kind is int or value is None or isinstance(value, Undefined):
            self.charge(STEP)
        elif isinstance(value, Sized):
            self.charge(STEP * (len(value) + 1))
        else:
            self.charge(STEP)
            # Its length is known to nobody before it has been walked over.
            if isinstance(value, Iterator):
                return self._counted(value)
        return value

    def steps(self, value: Any) -> Any:
        """Charge a loop for its steps; a text is walked character by character."""
        if isinstance(value, str):
            self.charge(STEP * len(value))
        return self.operand(value)

    def _counted(self, values: Iterator[Any]) -> Iterator[Any]:
        for value in values:
            self.charge(STEP + (len(value) if type(value) is str else 0))
            yield value

    def made(self, value: Any) -> Any:
        """Charge for a value that an operation made, with all that it holds."""
        if isinstance(value, str):
            self.text(len(value))
        elif isinstance(value, list | tuple | dict):
            stack: list[Any] = [value]
            while stack:
                item = stack.pop()
                if isinstance(item, str):
                    self.charge(len(item))
                elif isinstance(item, list | tuple | dict):
                    self.charge(64 * (len(item) + 1))
                    stack.extend(item.values() if isinstance(item, dict) else item)
        return value


class _Missing(StrictUndefined):
    """A strict undefined value that says which fields a mapping does have."""

    __slots__ = ()

    @property
    def _undefined_message(self) -> str:
        owner = self._undefined_obj
        if isinstance(owner, Mapping) and self._undefined_hint is None:
            return f"there is no field {self._undefined_name!r}; there are: {listed(owner)}"
        return str(super()._undefined_message)


def listed(names: Iterable[str]) -> str:
    """Write names for a message, not too many of them."""
    known = list(names)
    more = f" and {len(known) - 30} more" if len(known) > 30 else ""
    return (", ".join(str(name) for name in known[:30]) or "none") + more


class _Charged(NodeTransformer):
    """Puts the budget's checks into a parsed template: on what loops walk over and on what operations make."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - the visitor finds methods by node name
        self.generic_visit(node)
        node.iter = _checked(node.iter, "__steps__")
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.node, nodes.Expr):
            node.node = _checked(node.node, "__operand__")
        return _checked(node, "__made__")

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        self.generic_visit(node.call)
        # The call itself stays a call, which Jinja2 wants here: only its arguments and its body are charged.
        node.body = [self.visit(statement) for statement in node.body]
        return node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        return self._maker(node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        if isinstance(node.arg, nodes.Slice):
            return self._maker(node)
        return self.generic_visit(node)

    def _maker(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return _checked(node, "__made__")

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [cast("nodes.Expr", _checked(part, "__shown__")) for part in node.nodes]
        return _checked(node, "__made__")

    visit_Add = visit_Call = visit_Dict = visit_List = _maker  # noqa: N815


def _checked(node: nodes.Node, check: str) -> nodes.Filter:
    return nodes.Filter(
        cast("nodes.Expr", node), check, [], [], None, None, lineno=node.lineno, environment=node.environment
    )


def _check_width(width: Any) -> None:
    if isinstance(width, int) and abs(width) > _MAX_WIDTH:
        raise TooMuchError(f"{width:,} is over the limit of {_MAX_WIDTH:,}")


_PERCENT_WIDTHS = re.compile(r"%(?:\([^)]*\))?[-#0 +]*(\*|\d*)(?:\.(\*|\d*))?")


def _check_percent(text: str) -> None:
    for widths in _PERCENT_WIDTHS.findall(text):
        for width in widths:
            if width == "*" or len(width) > 5:
                raise TooMuchError(f"a format of width {width[:20]} is not offered")


def _formatted(text: str, values: Any) -> int:
    items = values.values() if isinstance(values, dict) else values if isinstance(values, tuple) else (values,)
    longest = max((len(item) for item in items if isinstance(item, str)), default=0)
    return len(text) + text.count("%") * longest


def _replaced(text: str, old: str = "", new: str = "", count: int = -1, /) -> int:
    times = text.count(old)
    return len(text) + (times if count < 0 else min(count, times)) * max(0, len(new) - len(old))


def _joined(text: str, parts: Iterable[Any] = (), /) -> int:
    texts = [part for part in parts if isinstance(part, str)]
    return sum(map(len, texts)) + len(text) * len(texts)


def _padded(text: str, width: int = 0, _fill: str = " ", /) -> int:
    return max(len(text), width)


def _expanded(text: str, tabsize: int = 8) -> int:
    return len(text) + text.count("\t") * max(0, tabsize)


_METHOD_SIZES: Mapping[str, Callable[..., int]] = {
    "center": _padded,
    "ljust": _padded,
    "rjust": _padded,
    "zfill": _padded,
    "expandtabs": _expanded,
    "replace": _replaced,
    "join": _joined,
}
"""How long the result of a text's method gets, for methods whose result can outgrow what they were given."""


class RowContext(Context):
    """A Jinja2 context that costs little to make: one rendering of one template, no blocks, no autoescape."""

    def __init__(self, environment: Environment, names: dict[str, Any]) -> None:
        self.parent = names
        self.vars = {}
        self.environment = environment
        self.eval_ctx = environment.eval_ctx
        self.exported_vars = set()
        self.name = None
        self.globals_keys = set()
        self.blocks = {}


class Environment(ImmutableSandboxedEnvironment):
    """The environment of one job's templates, with the budget of the rendering under way."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(undefined=_Missing, autoescape=False, keep_trailing_newline=True, finalize=self.as_text)
        self.budget = budget = WorkBudget()
        self.eval_ctx = EvalContext(self)
        for name in _NOT_REPEATABLE + _HTML_ONLY:
            self.globals.pop(name, None)
            self.filters.pop(name, None)
        self.globals["range"] = _range
        self.concat = self._concat  # type: ignore[method-assign]  # the place that Jinja2 offers for it
        self.filters.update(
            __steps__=budget.steps,
            __operand__=budget.operand,
            __made__=budget.made,
            __shown__=self.shown,
            batch=self._batch,
            center=self._center,
            format=self._format,
            indent=self._indent,
            join=self._join,
            replace=self._replace,
            round=self._round,
            slice=self._slice,
            string=self._string,
            tojson=self._tojson,
            wordwrap=self._wordwrap,
        )

    # Compiling

    def parse_text(self, source: str) -> nodes.Template:
        """Parse a template's text. TemplateSyntaxError also for what is not offered here."""
        parsed = self.parse(source)
        for loading in parsed.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
            raise TemplateSyntaxError("a template here cannot load another one", loading.lineno)
        for used in parsed.find_all(nodes.Filter):
            if used.name in _NOT_REPEATABLE:
                raise TemplateSyntaxError(
                    f"the filter {used.name} would make another request, and another bill, at each run", used.lineno
                )
        return parsed

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Charged().visit(source), *args, **kwargs)

    # Rendering

    def as_text(self, value: Any) -> str:
        """Write a value as `{{ }}` shows it: None is nothing, a function or a generator is an error.

        Lists, mappings and booleans are JSON, as `tojson` writes them.
        """
        if type(value) is str:
            return value
        if value is None:
            return ""
        if isinstance(value, Undefined):
            return str(value)  # raises
        if isinstance(value, Iterator):
            raise TypeError("a generator cannot be shown: add |list, or |join(', ')")
        if callable(value) and not isinstance(value, Macro):
            raise TypeError(f"{getattr(value, '__name__', 'this')} is a function: call it with ()")
        text = str(self.shown(value))
        self.budget.charge(STEP + len(text))
        return text

    def shown(self, value: Any) -> Any:
        """Write a list, a mapping or a boolean as JSON, and return anything else as it is."""
        if value is True or value is False:
            return "true" if value else "false"
        if isinstance(value, list | tuple | dict):
            # The budget knows the size of the text before it is written.
            return to_json(self.budget.made(value), sort=True).decode()
        return value

    def _concat(self, parts: Iterable[str]) -> str:
        texts = list(parts)
        self.budget.text(sum(map(len, texts)))
        return "".join(texts)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Prefer a mapping's field to a method of the same name: data may well have `items` or `values`."""
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Refuse, beside what Jinja2 refuses, methods whose result cannot be measured beforehand."""
        return attr not in _UNMEASURED_METHODS and super().is_safe_attribute(obj, attr, value)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Charge a call: for itself, the loop that it starts again, or the text that a method will make."""
        self.budget.charge(_CALL)
        owner = getattr(obj, "__self__", None)
        # `loop(...)` of a recursive loop: its argument is what the loop walks over next.
        if isinstance(obj, LoopContext):
            args = tuple(map(self.budget.steps, args))
        elif isinstance(owner, str | bytes):
            self.budget.charge(len(owner))
            name = obj.__name__
            # A generator is read into a list: its texts are counted first, and it can be read only once.
            if name == "join":
                args = tuple(list(self.budget.operand(parts)) for parts in args)
            if name in _METHOD_SIZES:
                self.budget.text(_METHOD_SIZES[name](owner, *args, **kwargs))
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Charge `*`, `**` and `%` for what they would make, before they make it."""
        self.budget.charge(STEP)
        if operator == "%":
            if isinstance(left, str | bytes):
                text = left if isinstance(left, str) else left.decode("latin-1")
                _check_percent(text)
                self.budget.text(_formatted(text, right))
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length()
            if (bits + right.bit_length() if operator == "*" else bits * right) > _MAX_BITS:
                raise TooMuchError("a number of that size is not computed")
        elif operator == "*":
            # Python takes `3 * "a"` as well as `"a" * 3`.
            for sequence, times in ((left, right), (right, left)):
                if isinstance(times, int) and isinstance(sequence, str | bytes):
                    self.budget.text(len(sequence) * max(0, times))
                elif isinstance(times, int) and isinstance(sequence, list | tuple):
                    self.budget.charge(STEP * len(sequence) * max(0, times))
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Give a text's `format` and `format_map` with bounded widths and a bounded result."""
        # No `format` of a text: Jinja2 calls it as it is.
        if super().wrap_str_format(value) is None:
            return None
        formatter = _BoundedFormatter(self)

        def bounded(*args: Any, **kwargs: Any) -> str:
            values = dict(*args) if value.__name__ == "format_map" else kwargs
            return str(formatter.vformat(str(value.__self__), args, values))

        return bounded

    # Filters that need a bound

    def _tojson(self, value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
        """Write JSON with sorted keys, as Jinja2 does: the order of a row's fields then changes no text."""
        data = to_json(list(value) if isinstance(value, Iterator) else value, sort=True, indent=indent)
        text = data.decode()
        # Characters outside of ASCII stand only inside of texts.
        return _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text) if ensure_ascii else text

    def _string(self, value: Any) -> str:
        return str(self.shown(value))

    def _center(self, value: str, width: int = 80) -> str:
        self.budget.text(_padded(text := str(value), width))
        return text.center(width)

    def _indent(self, s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        text = str(s)
        prefix = width if isinstance(width, int) else len(width)
        self.budget.text(len(text) + (text.count("\n") + 1) * prefix)
        return str(do_indent(text, width, first, blank))

    def _replace(self, s: str, old: str, new: str, count: int | None = None) -> str:
        text, old, new, times = str(s), str(old), str(new), -1 if count is None else count
        self.budget.text(_replaced(text, old, new, times))
        return text.replace(old, new, times)

    def _join(self, value: Any, d: str = "", attribute: str | int | None = None) -> str:
        values = value if attribute is None else map(make_attrgetter(self, attribute), value)
        # A list within the list counts with all that it holds.
        texts = [str(self.shown(item)) for item in values]
        self.budget.text(_joined(str(d), texts))
        return str(d).join(texts)

    def _format(self, value: str, *args: Any, **kwargs: Any) -> str:
        text, values = str(value), kwargs or args
        _check_percent(text)
        self.budget.text(_formatted(text, values))
        return text % values

    def _round(self, value: float, precision: int = 0, method: Any = "common") -> float:
        if abs(precision) > _MAX_DIGITS:
            raise TooMuchError(f"rounding to {precision:,} digits is not offered")
        return do_round(value, precision, method)

    def _batch(self, value: Any, linecount: int, fill_with: Any = None) -> Iterator[list[Any]]:
        _check_width(linecount)
        yield from map(self.budget.made, do_batch(value, linecount, fill_with))

    def _slice(self, value: Any, slices: int, fill_with: Any = None) -> Iterator[list[Any]]:
        _check_width(slices)
        yield from map(self.budget.made, sync_do_slice(value, slices, fill_with))

    def _wordwrap(
        self,
        s: str,
        width: int = 79,
        break_long_words: bool = True,
        wrapstring: str | None = None,
        break_on_hyphens: bool = True,
    ) -> str:
        text, end = str(s), "\n" if wrapstring is None else wrapstring
        self.budget.text(len(text) + (len(text) // max(1, width) + text.count("\n") + 1) * len(end))
        return str(do_wordwrap(self, text, width, break_long_words, end, break_on_hyphens))


class _BoundedFormatter(SandboxedFormatter):
    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._budget = environment.budget

    def format_field(self, value: Any, format_spec: str) -> Any:
        if re.search(r"\d{6}", format_spec):
            raise TooMuchError(f"a format of width {format_spec[:20]} is not offered")
        text = super().format_field(value, format_spec)
        self._budget.charge(STEP + len(text))
        return text


def _range(*args: int) -> range:
    numbers = range(*args)
    if len(numbers) > _MAX_WIDTH:
        raise TooMuchError(f"range() of {len(numbers):,} numbers is over the limit of {_MAX_WIDTH:,}")
    return numbers
