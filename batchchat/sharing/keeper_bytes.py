"""A keeper as bytes, and back.

The bytes are JSON that names nothing but the classes of a limiter: a file that somebody else wrote runs no code. An
object that is met twice is written once. What belongs to a process (its generator of random numbers) stays out of it.
Long lists of numbers are packed: each way takes about 0.6 ms, measured with 2,048 answers and 200 suspects.
"""

from __future__ import annotations

import json
import random
from array import array
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Iterator
from enum import Enum
from importlib import import_module
from typing import Any

from batchchat.limits.ceilings import LimitCeilings
from batchchat.limits.schedule import Minute
from batchchat.records import Axis
from batchchat.sharing.keeper import KeeperEvents, LimitKeeper, SharingProcess
from batchchat.sharing.messages import KeeperEvent

_CLASSES: dict[str, type] = {
    f"{one.__module__}:{one.__qualname__}": one
    for one in (Axis, LimitKeeper, SharingProcess, KeeperEvents, LimitCeilings, KeeperEvent)
}
_ROOMS = tuple(
    f"batchchat.limits.{name}"
    for name in (
        "checks",
        "circuit",
        "concurrency",
        "controller",
        "cycles",
        "evidence",
        "experiments",
        "hints",
        "others",
        "pacing",
        "rates",
        "schedule",
        "telling",
        "trials",
    )
)
_PACKED = 16
"""Numbers from which on a list is packed: a shorter one is as quick as it is. Chosen, not measured."""


def bytes_of_keeper(value: object) -> bytes:
    """Return a keeper as bytes."""
    return json.dumps(_Encoder().write(value), separators=(",", ":")).encode()


def keeper_of_bytes(data: bytes, rng: random.Random) -> Any:
    """Return the keeper of these bytes, with this process's generator. Raises ValueError if they hold anything else."""
    try:
        return _Decoder(rng).read(json.loads(data))
    except Exception as error:  # noqa: BLE001 - damaged bytes make a reader raise nearly anything
        raise ValueError(f"no keeper can be read: {error}") from None


class _Encoder:
    """Writes values as lists: a mark, and what it needs. Plain values stand for themselves."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        # An object that is let go of in between could leave its number to another one.
        self._kept: list[object] = []

    def write(self, value: Any) -> Any:
        """Return a value as JSON can hold it."""
        if value is None or type(value) in {bool, int, float, str}:
            return value
        if isinstance(value, random.Random):
            return ["random"]
        if isinstance(value, Enum):
            return ["enum", _name_of(type(value)), value.name]
        if isinstance(value, tuple):
            name = _name_of(type(value)) if type(value) is not tuple else None
            return ["tuple", name, [self.write(item) for item in value]]
        place = self._places.get(id(value))
        if place is not None:
            return ["same", place]
        self._places[id(value)] = len(self._kept)
        self._kept.append(value)
        return self._write_new(value)

    def _write_new(self, value: Any) -> list[Any]:
        if type(value) is list:
            return ["list", self._items(value)]
        if type(value) is deque:
            return ["deque", value.maxlen, self._items(value)]
        if type(value) is dict:
            return ["dict", [[self.write(key), self.write(item)] for key, item in value.items()]]
        if type(value) is set:
            return ["set", [self.write(item) for item in value]]
        if isinstance(value, Minute):
            # Nearly all of a minute is one list of numbers.
            counts = _pack(value.counts)
            return ["minute", value.size, value.head, value.total, counts]
        return ["object", _name_of(type(value)), {name: self.write(item) for name, item in _fields(value)}]

    def _items(self, values: list[Any] | deque[Any]) -> Any:
        if len(values) >= _PACKED and all(type(value) is float for value in values):
            return _pack(values)
        return [self.write(value) for value in values]


class _Decoder:
    """Reads what an `_Encoder` wrote."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._kept: list[Any] = []

    def read(self, value: Any) -> Any:
        """Return the value that these lists stand for. Raises ValueError for what no limiter holds."""
        if not isinstance(value, list):
            if isinstance(value, dict):
                raise TypeError("an object of JSON stands for nothing by itself")
            return value
        mark, *rest = value
        if mark == "random":
            return self._rng
        if mark == "enum":
            return _class_of(rest[0], Enum)[rest[1]]
        if mark == "tuple":
            items = [self.read(item) for item in rest[1]]
            return tuple(items) if rest[0] is None else _class_of(rest[0], tuple)(*items)
        if mark == "same":
            return self._kept[rest[0]]
        return self._read_new(mark, rest)

    def _read_new(self, mark: str, rest: list[Any]) -> Any:
        found: Any
        if mark == "list":
            found = self._keep([])
            found.extend(self._items(rest[0]))
        elif mark == "deque":
            found = self._keep(deque(maxlen=rest[0]))
            found.extend(self._items(rest[1]))
        elif mark == "dict":
            found = self._keep({})
            found.update((self.read(key), self.read(item)) for key, item in rest[0])
        elif mark == "set":
            found = self._keep(set())
            found.update(self.read(item) for item in rest[0])
        elif mark == "minute":
            found = self._keep(Minute())
            found.size, found.head, found.total = rest[:3]
            found.counts = _unpack(rest[3])
        elif mark == "object":
            found = self._read_object(*rest)
        else:
            raise ValueError(f"{mark} is no mark")
        return found

    def _read_object(self, name: str, fields: dict[str, Any]) -> Any:
        kind = _class_of(name, object)
        found = self._keep(object.__new__(kind))
        for field, value in fields.items():
            # `__class__` and the like are no fields: they could make another thing of it.
            if field.startswith("__"):
                raise ValueError(f"{field} is no field")
            # Frozen classes are among them.
            object.__setattr__(found, field, self.read(value))
        return found

    def _items(self, values: Any) -> list[Any]:
        return _unpack(values) if isinstance(values, str) else [self.read(value) for value in values]

    def _keep(self, value: Any) -> Any:
        # Kept before its parts are read, since a part may hold it.
        self._kept.append(value)
        return value


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the fields of an object that are set, those in slots and others."""
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                yield name, getattr(value, name)
    yield from getattr(value, "__dict__", {}).items()


def _name_of(kind: type) -> str:
    name = f"{kind.__module__}:{kind.__qualname__}"
    _class_of(name, object)
    return name


def _class_of(name: str, base: type) -> Any:
    """Return a class of a limiter by its name. Raises ValueError for any other one."""
    found = _CLASSES.get(name)
    if found is None:
        module, _, qualname = name.partition(":")
        found = getattr(import_module(module), qualname, None) if module in _ROOMS else None
        # What a module has imported is not its own.
        if not isinstance(found, type) or found.__module__ != module:
            raise ValueError(f"{name} is no part of a limiter")
        _CLASSES[name] = found
    if not issubclass(found, base):
        raise ValueError(f"{name} is no {base.__name__}")
    return found


def _pack(values: list[float] | deque[float]) -> str:
    return b64encode(array("d", values).tobytes()).decode()


def _unpack(text: str) -> list[float]:
    return array("d", b64decode(text)).tolist()
