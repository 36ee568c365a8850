"""YAML as a job file uses it: JSON's types, names that are texts, and bounds on what a few lines can unfold to.

Plain words are texts, unless both YAML 1.1 and YAML 1.2 call them a number, `true`, `false` or `null`. So a label `no`,
`on`, `12:30`, `010`, `1_000` or `2024-01-01` stays the text that was written; YAML 1.1 would make a boolean, a number
or a date of it without a word. Typed fields of a job still read `yes`, `1_000` and `0x10`. `extra_body` has no types of
its own, so such a word is refused there as the value of a name: nobody can tell which one was meant.

A field that stands twice, which YAML would silently drop, is an error. Aliases are followed, but no document may unfold
to more than 100,000 values or 100 levels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from batchchat.errors import JobError, UsageError
from batchchat.job.origin import FieldOrigin, FieldPlace, dotted

MAX_BYTES = 4_000_000
_MAX_NODES = 100_000
_MAX_TEXT = 40_000_000
_MAX_DEPTH = 100
_TAG = "tag:yaml.org,2002:"
_KINDS = ("null", "bool", "int", "float", "str", "seq", "map")
_DATA_SUFFIXES = frozenset({".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".zst"})
_QUOTES = "A text that holds `{{`, `: ` or `#`, or begins with - @ % or `, must stand in quotes."


_PLAIN_WORDS = {
    "bool": (re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), "tTfF"),
    "null": (re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]),
    "int": (re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z"), "-+0123456789"),
    "float": (
        re.compile(
            r"[-+]?(?:(?:0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?\Z"
            r"|[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z"
        ),
        "-+0123456789.",
    ),
    "merge": (re.compile(r"<<\Z"), "<"),
}
"""What a plain word must look like to be more than a text, and the characters that it may begin with."""
_TWO_READINGS = [
    (re.compile(r"(?:yes|on)\Z", re.IGNORECASE), "true"),
    (re.compile(r"(?:no|off)\Z", re.IGNORECASE), "false"),
    (re.compile(r"[-+]?0[0-9_]+\Z|[-+]?0[box][0-9a-fA-F_]+\Z", re.ASCII), "a number without a leading zero"),
    (re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?\Z", re.ASCII), "a number of digits alone"),
    (re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?\Z", re.ASCII), "a number of digits alone"),
]
"""Plain words that are texts here and something else in another reading of YAML, with what to write for the latter."""


class Document(NamedTuple):
    """What a YAML text says, and where each of its fields stands.

    `faults` are fields that stand there twice, and values without a type that can be read in two ways.
    """

    data: Any
    origins: dict[FieldPlace, FieldOrigin]
    faults: list[JobError]


class _Loader(yaml.SafeLoader):
    """YAML's safe loader without the types that JSON has no word for; the name of a field is the text as written."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except ValueError:
            problem = "this value cannot be read as the number that it looks like"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        return {_name(key): self.construct_object(value, deep=deep) for key, value in node.value}

    def refuse(self, node: yaml.Node) -> Any:
        """Say that a tag is not for job files."""
        problem = f"a value of the type {node.tag.removeprefix(_TAG)!r} cannot stand in a job file"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag is not None and tag.removeprefix(_TAG) in _KINDS
} | {None: _Loader.refuse}
# `<<` is a text where it is a value; as a name it puts another mapping in its place.
_Loader.yaml_constructors[f"{_TAG}merge"] = yaml.SafeLoader.construct_yaml_str
_Loader.yaml_implicit_resolvers = {}
for _kind, (_pattern, _first) in _PLAIN_WORDS.items():
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", _pattern, list(_first))


def _name(key: yaml.Node) -> str:
    if not isinstance(key, yaml.ScalarNode):
        problem = "a name must be a text, and here stands a list or a mapping"
        raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
    return str(key.value)


def read_text(file: Path) -> str:
    """Read a text file of bounded size. Raises OSError, and ValueError with the reason where it is no such text."""
    with file.open("rb") as stream:
        # One byte more than allowed tells that the file is too large, whatever its size: no more of it is read.
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES // 1_000_000} MB, too large for a job or a template")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start})") from None


def parse_yaml(text: str, file: Path, place: FieldPlace = ()) -> Document:
    """Read YAML. `place` is where its content belongs in the job. Raises JobError with the line."""
    origins: dict[FieldPlace, FieldOrigin] = {}
    faults: list[JobError] = []
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return Document(None, origins, faults)
        faults += _doubt(node, place, file)
        for field, line, first, value in _walk(node, place, _Budget(file)):
            if first is None:
                origins[field] = FieldOrigin(file, line)
                faults += _doubt(value, field, file)
            else:
                message = f"stands twice (first in line {first}): keep one of the two"
                faults.append(JobError(message, file=file, line=line, field=dotted(field)))
        return Document(loader.construct_document(node), origins, faults)
    except yaml.YAMLError as error:
        raise _yaml_error(error, text, file) from None
    except RecursionError:
        raise JobError("is nested too deeply", file=file) from None
    finally:
        if loader is not None:
            loader.dispose()


class _Budget:
    """What a document may still unfold to."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.nodes = _MAX_NODES
        self.text = _MAX_TEXT

    def spend(self, node: yaml.Node, depth: int) -> None:
        self.nodes -= 1
        if isinstance(node, yaml.ScalarNode):
            self.text -= len(node.value)
        if self.nodes < 0 or self.text < 0 or depth > _MAX_DEPTH:
            what = "is nested too deeply" if depth > _MAX_DEPTH else "unfolds to more than a job can hold"
            raise JobError(f"{what} (do its aliases repeat each other?)", file=self.file, line=node.start_mark.line + 1)


def _doubt(node: yaml.Node, field: FieldPlace, file: Path) -> list[JobError]:
    """Return an error for a value of `extra_body` that can be read in two ways.

    The entries of a list are choices, and so is a `const`: they are texts.
    """
    # Fields of the job have a type, by which such a word is refused or read. A free body has none.
    if "extra_body" not in field[:-1] or not isinstance(field[-1], str) or field[-1] == "const":
        return []
    if not isinstance(node, yaml.ScalarNode) or node.style is not None or node.tag != f"{_TAG}str":
        return []
    instead = next((instead for pattern, instead in _TWO_READINGS if pattern.match(node.value)), None)
    if instead is None:
        return []
    remedy = f'Write {instead}, or "{node.value}" in quotes for a text.'
    line = node.start_mark.line + 1
    message = f"{node.value} can be read in two ways"
    return [JobError(message, file=file, line=line, field=dotted(field), remedy=remedy)]


def _walk(
    node: yaml.Node, place: FieldPlace, budget: _Budget, depth: int = 0
) -> Iterator[tuple[FieldPlace, int, int | None, yaml.Node]]:
    """Yield each field's place, line and value; of one that stands there twice, also the line where it stood first."""
    budget.spend(node, depth)
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = _name(key), key.start_mark.line + 1
            # `<<` may stand more than once: each takes in another mapping.
            yield (*place, name), line, seen.get(name) if name != "<<" else None, value
            seen.setdefault(name, line)
            yield from _walk(value, (*place, name), budget, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            yield (*place, position), value.start_mark.line + 1, None, value
            yield from _walk(value, (*place, position), budget, depth + 1)


def _yaml_error(error: yaml.YAMLError, text: str, file: Path) -> JobError:
    # It tells a position in the text and no line.
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return JobError("holds a control character that YAML does not allow", file=file, line=line)
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    remedy = _remedy(problem, text, file)
    return JobError(
        f"is not valid YAML: {problem}",
        file=file,
        line=mark.line + 1 if mark is not None else None,
        remedy=remedy,
    )


def _remedy(problem: str, text: str, file: Path) -> str:
    """Say how to mend what the parser met."""
    if file.suffix.lower() in _DATA_SUFFIXES:
        return f"{file.name} is data, not a job: name a job file, and let its `input` name the data."
    if "\\t" in problem:
        return "Indent with spaces, not with tabs."
    if "<block" in problem or "mapping values are not allowed" in problem:
        return f"Check the indentation here and in the line before: fields side by side start in one column. {_QUOTES}"
    return _QUOTES


def read_job_text(file: Path, near: str | None) -> str:
    """Read a job file. Raises UsageError; `near` is a name that may have been meant."""
    try:
        return read_text(file)
    except FileNotFoundError:
        hint = f"Did you mean {near}?" if near else "`batchchat init` writes a job to start from."
        raise UsageError(f"{file}: no such job file", remedy=hint) from None
    except IsADirectoryError:
        raise UsageError(f"{file} is a folder, not a job file", remedy="Name the .yaml file inside it.") from None
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{file}: {error}", remedy="A job is a small YAML file, saved as UTF-8.") from None
