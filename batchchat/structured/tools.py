"""The tools that a model may call: checked before anything is sent, and its calls checked against them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

from batchchat.dataclass import dataclass
from batchchat.structured.checker import Checker
from batchchat.structured.dialect import SchemaError, SchemaPlace, shorten
from batchchat.structured.find import NotJSON, parse
from batchchat.structured.schema import as_json

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CHOICES = ("none", "auto", "required", "any")
_MAX_TOOLS = 128
_HOW = "Name a tool as {type: function, function: {name: NAME}}."
_EXAMPLE = "{type: function, function: {name: find_order, parameters: {type: object, properties: {…}}}}"


@dataclass(frozen=True, slots=True, eq=False)
class Tools:
    """A job's tools with their compiled parameters. `must_call` says that an answer without a call is wrong.

    `only` is the one tool that `tool_choice` names.
    """

    checkers: Mapping[str, Checker]
    must_call: bool = False
    only: str | None = None

    def check_calls(self, calls: Sequence[Mapping[str, str | None]] | None) -> tuple[tuple[str, ...], ...]:
        """Return the errors of each call (`{id, name, arguments}`), in order; an empty tuple for a call that is valid.

        Arguments are read strictly: they are JSON by themselves, not text with JSON in it.
        """
        return tuple(self._check(call) for call in calls or ())

    def missing_call(self, calls: Sequence[Mapping[str, str | None]] | None) -> str | None:
        """Return what is wrong with an answer that calls no tool; None if it calls one or need not."""
        if calls or not self.must_call:
            return None
        return f"the answer does not call {self.only!r}" if self.only else "the answer calls no tool"

    def _check(self, call: Mapping[str, str | None]) -> tuple[str, ...]:
        name = call.get("name")
        checker = self.checkers.get(name) if name is not None else None
        if name is None or checker is None:
            known = ", ".join(self.checkers)
            return (shorten(f"there is no tool {name!r}; there is {known}" if name else f"names no tool; use {known}"),)
        if self.only is not None and name != self.only:
            return (f"the tool to call is {self.only!r}, not {name!r}",)
        # A tool whose parameters are all optional is often called with nothing at all.
        text = call.get("arguments") or "{}"
        try:
            arguments = parse(text)
        except NotJSON as problem:
            return (f"the arguments are not JSON: {shorten(str(problem))}",)
        if not isinstance(arguments, dict):
            return ("the arguments are not a JSON object",)
        return checker.errors(arguments)


def load_tools(tools: object, tool_choice: object = None) -> Tools:
    """Check a job's `tools` and `tool_choice` and compile the tools' parameters.

    Raises SchemaError whose place starts at `tools` or `tool_choice`.
    """
    if not isinstance(tools, list | tuple) or not tools:
        raise SchemaError("needs a list of at least one tool", ("tools",), remedy=f"A tool is {_EXAMPLE}.")
    if len(tools) > _MAX_TOOLS:
        raise SchemaError(f"holds {len(tools)} tools; servers take at most {_MAX_TOOLS}", ("tools",))
    checkers: dict[str, Checker] = {}
    for index, tool in enumerate(tools):
        place: SchemaPlace = ("tools", index)
        name, checker = _load_tool(tool, place)
        if name in checkers:
            raise SchemaError(f"a second tool is named {name!r}", (*place, "function", "name"))
        checkers[name] = checker
    return _chosen(checkers, tool_choice)


def _load_tool(tool: object, place: SchemaPlace) -> tuple[str, Checker]:
    if not isinstance(tool, Mapping) or tool.get("type") != "function":
        raise SchemaError("is not a tool of `type: function`", place, remedy=f"A tool is {_EXAMPLE}.")
    function = tool.get("function")
    place = (*place, "function")
    if not isinstance(function, Mapping):
        raise SchemaError("needs a mapping of name, description and parameters", place)
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SchemaError(
            "needs a name of letters, digits, _ and -, at most 64 of them", (*place, "name"), remedy=f"Got: {name!r}."
        )
    description = function.get("description")
    if description is not None and not isinstance(description, str):
        raise SchemaError("is not text", (*place, "description"))
    place = (*place, "parameters")
    parameters = function.get("parameters")
    # The Chat API allows it for a tool without arguments, but a check needs something to check against.
    if parameters is None:
        raise SchemaError(
            f"the tool {name!r} has no parameters, so its arguments could not be checked",
            place,
            remedy="Describe them as {type: object, properties: {…}}; with no properties if there are none.",
        )
    schema = as_json(parameters, place)
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise SchemaError(f"the parameters of {name!r} are not a schema of `type: object`", place)
    try:
        return name, Checker(schema)
    except SchemaError as error:
        raise SchemaError(error.reason, (*place, *error.place), remedy=error.remedy) from None


def _chosen(checkers: Mapping[str, Checker], choice: object) -> Tools:
    if choice is None:
        return Tools(checkers)
    # A word, or below an object that names one tool.
    if isinstance(choice, str):
        if choice not in _CHOICES:
            raise SchemaError(
                f"{choice!r} is not one of {', '.join(_CHOICES)}, nor a tool", ("tool_choice",), remedy=_HOW
            )
        return Tools(checkers, must_call=choice in {"required", "any"})
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise SchemaError("names no tool", ("tool_choice",), remedy=_HOW)
    if name not in checkers:
        near = difflib.get_close_matches(name, checkers, n=1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise SchemaError(f"there is no tool {name!r}{meant}", ("tool_choice", "function", "name"))
    return Tools(checkers, must_call=True, only=name)
