"""The package's own `dataclass` does what the standard library's does."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import field
from typing import Any

import pytest

from batchchat.dataclass import dataclass

Decorator = Callable[..., Any]
OPTIONS: list[dict[str, bool]] = [
    {},
    {"slots": True},
    {"frozen": True},
    {"frozen": True, "slots": True},
    {"frozen": True, "slots": True, "kw_only": True},
    {"slots": True, "eq": False},
    {"frozen": True, "slots": True, "repr": False},
]


def classes(decorator: Decorator, options: dict[str, bool]) -> list[type]:
    """Make the same classes with a decorator: of many fields, of one, of none, with methods of their own, of a base."""

    @decorator(**options)
    class Many:
        """Fields of every kind."""

        first: int
        second: str | None = None
        third: list[int] = field(default_factory=list)
        hidden: float = field(default=0.0, repr=False, compare=False)
        later: int = field(init=False, default=7)
        named: bool = field(default=False, kw_only=True)

    @decorator(**options)
    class One:
        """A single field."""

        value: float = 1.0

    @decorator(**options)
    class Nothing:
        """No field."""

    @decorator(**options)
    class Own:
        """Methods of its own, which stay."""

        value: int = 1
        double: int = field(init=False)

        def __post_init__(self) -> None:
            object.__setattr__(self, "double", 2 * self.value)

        def __repr__(self) -> str:
            return f"own {self.value}"

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]  # what Python itself puts beside `__eq__`

    @decorator(**options)
    class Below(One):
        """A field more than its base."""

        more: int = 2

    for cls in (Many, One, Nothing, Own, Below):
        cls.__qualname__ = cls.__name__
    return [Many, One, Nothing, Own, Below]


CALLS: list[dict[str, Any]] = [
    {},
    {"value": 3},
    {"value": math.nan},
    {"first": 1},
    {"first": 1, "third": [2], "hidden": 5.0, "named": True},
    {"first": 1, "later": 2},
    {"unknown": 1},
    {"value": 1, "more": 5},
]


def outcome(action: Callable[[], Any]) -> Any:
    """Return what an action gives, or the error that it raises."""
    try:
        return action()
    except (TypeError, AttributeError) as error:
        return type(error), str(error)


def set_all(made: Any) -> str:
    for one in dataclasses.fields(made):
        setattr(made, one.name, 9)
    return ", ".join(str(getattr(made, one.name)) for one in dataclasses.fields(made))


def delete_all(made: Any) -> str:
    for one in dataclasses.fields(made):
        delattr(made, one.name)
    return "deleted"


def actions_of(made: Any, again: Any, call: dict[str, Any], others: list[type]) -> list[Callable[[], Any]]:
    """Return what can be done with an object. `again` was made like it, from what `call` says."""
    changed = {name: value for name, value in call.items() if name not in {"value", "later"}}
    asdict = dataclasses.asdict
    return [
        lambda: repr(made) if repr(made) != object.__repr__(made) else "Python's own",
        lambda: (asdict(made), asdict(copy.copy(made)), asdict(copy.deepcopy(made))),
        lambda: (made == again, made != again, made == 5),
        lambda: [made == outcome(other) for other in others],
        lambda: (hash(made) == hash(again), len({made, again})),
        lambda: repr(dataclasses.replace(made, **changed)) == repr(made),
        lambda: set_all(made),
        lambda: delete_all(made),
    ]


def behaviour(cls: Any, others: list[type]) -> list[Any]:
    """Return what can be seen of a class and of its objects."""
    seen: list[Any] = [(one.name, one.init, one.kw_only) for one in dataclasses.fields(cls)]
    seen.append((cls.__name__, cls.__doc__, getattr(cls, "__slots__", None), cls.__match_args__))
    for call in CALLS:
        made = outcome(functools.partial(cls, **call))
        if isinstance(made, cls):
            seen += map(outcome, actions_of(made, cls(**call), call, others))
        else:
            seen.append(made)
    return seen


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options) or "plain")
def test_a_class_behaves_as_the_standard_library_s(options: dict[str, bool]) -> None:
    ours, theirs = classes(dataclass, options), classes(dataclasses.dataclass, options)
    for mine, other in zip(ours, theirs, strict=True):
        for seen, wanted in zip(behaviour(mine, ours), behaviour(other, theirs), strict=True):
            # NaN is another than itself, and is shown alike.
            assert repr(seen) == repr(wanted), mine


def test_the_decorator_needs_no_arguments_and_an_object_may_hold_itself() -> None:
    @dataclass
    class Holder:
        """Holds anything."""

        inside: Any

    holder = Holder([1])
    holder.inside.append(holder)
    assert repr(holder) == f"{Holder.__qualname__}(inside=[1, ...])"
    with pytest.raises(TypeError, match="unhashable"):
        hash(holder)
