"""`dataclass` of the standard library, made cheaper: a run waits for its classes before it sends a first request.

The standard library compiles up to six methods for each class. That takes a millisecond, and a run has 130 of them.
Here `__init__` alone is compiled; all classes share the other methods, which look up what fields the class has.
`field`, `fields`, `replace`, `asdict` and `match` work with these classes as with the standard library's.
"""

from __future__ import annotations

import dataclasses
from operator import attrgetter
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # To a type checker the two are one.
    from dataclasses import dataclass
else:

    def dataclass(
        cls: type | None = None, /, *, eq: bool = True, repr: bool = True, frozen: bool = False, **options: bool
    ) -> Any:
        """Give a class the methods that its fields ask for, as `dataclasses.dataclass` does.

        Arguments:
            cls: the class, if the decorator has no arguments.
            eq: two objects are equal if their fields are.
            repr: `repr` shows the fields.
            frozen: no field can be set after `__init__`. With `eq`, objects have a hash.
            options: `slots` and `kw_only`, as in the standard library. `order` and `InitVar` are not supported.

        Returns the class; with `slots`, a new one of the same name.
        """

        def made(cls: type) -> type:
            # This finds the fields, and compiles nothing.
            cls = dataclasses.dataclass(init=False, eq=False, repr=False, **options)(cls)
            return _complete(cls, eq=eq, repr=repr, frozen=frozen)

        return made if cls is None else made(cls)


__all__ = ["dataclass"]

_MISSING = dataclasses.MISSING


def _complete(cls: Any, *, eq: bool, repr: bool, frozen: bool) -> Any:
    """Add the methods that a class does not define itself, and return the class. Its fields are known already."""
    fields = dataclasses.fields(cls)
    own = cls.__dict__
    methods: dict[str, Any] = {"__init__": _init_of(cls, fields, frozen=frozen)}
    if repr:
        cls._shown = tuple(one.name for one in fields if one.repr)
        methods["__repr__"] = _repr
    if eq:
        compared = [one.name for one in fields if one.compare]
        # One name more than needed: of a single name, attrgetter would return the bare value.
        cls._compared = attrgetter(*compared, *compared[:1]) if compared else _nothing
        methods["__eq__"] = _equal
        # None may also be Python's own: it puts that beside each `__eq__` that a class defines.
        if own.get("__hash__") is None:
            cls.__hash__ = _hash if frozen else None
    if frozen:
        methods |= {"__setattr__": _no_setting, "__delattr__": _no_deleting}
        if "__slots__" in own:
            methods |= {"__getstate__": _state, "__setstate__": _set_state}
    for name, method in methods.items():
        if name not in own:
            setattr(cls, name, method)
    return cls


def _init_of(cls: type, fields: tuple[dataclasses.Field[Any], ...], *, frozen: bool) -> Any:
    """Compile `__init__`: it is called for each row, and a loop over the fields would be slower."""
    names: dict[str, Any] = {"_missing": _MISSING, "_set": object.__setattr__}
    places: list[str] = []
    by_name: list[str] = []
    lines: list[str] = []
    for one in fields:
        name, value = one.name, one.name
        place = name
        if one.default_factory is not _MISSING:
            names[f"_new_{name}"] = one.default_factory
            place = f"{name}=_missing"
            value = f"_new_{name}() if {name} is _missing else {name}" if one.init else f"_new_{name}()"
        elif one.default is not _MISSING:
            names[f"_default_{name}"] = one.default
            place = f"{name}=_default_{name}"
            value = name if one.init else f"_default_{name}"
        elif not one.init:
            # `__post_init__` gives it a value.
            continue
        if one.init:
            (by_name if one.kw_only else places).append(place)
        lines.append(f" _set(self, {name!r}, {value})" if frozen else f" self.{name} = {value}")
    if hasattr(cls, "__post_init__"):
        lines.append(" self.__post_init__()")
    head = ", ".join(["self", *places, *(["*", *by_name] if by_name else [])])
    # The text is made of names in this package's own source, never of data.
    exec(f"def __init__({head}):\n" + ("\n".join(lines) or " pass"), names)  # noqa: S102
    init = names["__init__"]
    init.__qualname__ = f"{cls.__qualname__}.__init__"
    init.__module__ = cls.__module__
    return init


def _nothing(_self: object) -> tuple[()]:
    return ()


@recursive_repr()
def _repr(self: Any) -> str:
    shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._shown)
    return f"{type(self).__qualname__}({shown})"


def _equal(self: Any, other: Any) -> Any:
    cls = type(self)
    return cls._compared(self) == cls._compared(other) if type(other) is cls else NotImplemented


def _hash(self: Any) -> int:
    return hash(type(self)._compared(self))  # noqa: SLF001


def _no_setting(self: object, name: str, _value: object) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _no_deleting(self: object, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


def _state(self: Any) -> list[object]:
    """Return what `copy` and `pickle` keep of a frozen object: by default they would set its fields one by one."""
    return [getattr(self, one.name) for one in dataclasses.fields(self)]


def _set_state(self: Any, state: list[object]) -> None:
    for one, value in zip(dataclasses.fields(self), state, strict=True):
        object.__setattr__(self, one.name, value)
