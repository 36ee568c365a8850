"""From a job file to a validated job, or to errors that name the line."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from batchchat.errors import JobError, UsageError
from batchchat.job.model import FIELDS, Job, line_of, nearest


def load_job(
    path: str | Path,
    *,
    overrides: Sequence[str] = (),
    input: str | None = None,
    output: str | None = None,
) -> Job:
    """Read and validate a job file.

    `overrides` are `dotted.path=value` texts with YAML values, as `--set` takes them. `input` and `output`, relative to the
    current folder, take the place of the file's own. Raises JobError.
    """
    file = Path(path)
    text = _read_job_text(file)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _yaml_error(error, file) from None
    if not isinstance(data, dict) or not isinstance(node, yaml.MappingNode):
        raise JobError("is not a mapping of fields", file=file, remedy="`batchchat init` writes a job to start from.")
    lines = dict(_walk(node, (), file))
    base = file.absolute().parent
    _resolve_paths(data, base, lines, file)
    for override in overrides:
        _apply_override(data, override)
    if input is not None:
        _section(data, "input")["path"] = input if input == "-" else str(Path(input).absolute())
    if output is not None:
        _section(data, "output")["path"] = str(Path(output).absolute())
    return validate_job(data, file=file, lines=lines)


def validate_job(
    data: Mapping[str, Any],
    *,
    file: Path | None = None,
    lines: Mapping[tuple[Hashable, ...], int] | None = None,
) -> Job:
    """Validate a job given as plain data. Raises JobError that lists everything that is wrong."""
    lines = lines or {}
    try:
        job = Job.model_validate(data)
    except ValidationError as error:
        raise _validation_error(error, data, file, lines) from None
    job._file = file  # noqa: SLF001 - pydantic's private attributes are set after validation
    job._lines = dict(lines)  # noqa: SLF001
    return job


def _read_job_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = difflib.get_close_matches(file.name, _names_beside(file), n=1)
        hint = f"Did you mean {file.parent / near[0]}?" if near else "`batchchat init` writes a job to start from."
        raise UsageError(f"{file}: no such job file", remedy=hint) from None
    except IsADirectoryError:
        raise UsageError(f"{file} is a folder, not a job file") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None


def _names_beside(file: Path) -> list[str]:
    try:
        return [entry.name for entry in file.parent.iterdir()]
    except OSError:
        return []


def _yaml_error(error: yaml.YAMLError, file: Path) -> JobError:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    remedy = "A text that holds `{{`, `: ` or `#` must stand in quotes." if mark is not None else None
    return JobError(
        f"is not valid YAML: {problem}",
        file=file,
        line=mark.line + 1 if mark is not None else None,
        remedy=remedy,
    )


def _walk(node: yaml.Node, place: tuple[Hashable, ...], file: Path) -> Iterator[tuple[tuple[Hashable, ...], int]]:
    """Yield each field's place and line; refuse a field that stands twice, which YAML would silently merge."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen and name != "<<":
                raise JobError(f"stands twice (first in line {seen[name]})", file=file, line=line, field=name)
            seen[name] = line
            yield (*place, name), line
            yield from _walk(value, (*place, name), file)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            yield (*place, position), value.start_mark.line + 1
            yield from _walk(value, (*place, position), file)


def _section(data: dict[str, Any], name: str) -> dict[str, Any]:
    value = data.get(name)
    if isinstance(value, dict):
        return value
    section: dict[str, Any] = {"path": value} if isinstance(value, str) else {}
    data[name] = section
    return section


def _resolve_paths(data: dict[str, Any], base: Path, lines: dict[tuple[Hashable, ...], int], file: Path) -> None:
    for name in ("input", "output"):
        value = data.get(name)
        path = value.get("path") if isinstance(value, dict) else value
        if isinstance(path, str) and path and path != "-":
            _section(data, name)["path"] = os.path.normpath(base / Path(path).expanduser())
    provider = data.get("provider")
    if isinstance(provider, dict) and isinstance(provider.get("ca_file"), str):
        provider["ca_file"] = str(base / Path(provider["ca_file"]).expanduser())
    messages = data.get("messages")
    if isinstance(messages, str):
        data["messages"] = _load_messages(base / Path(messages).expanduser(), file, lines.get(("messages",)))


def _load_messages(path: Path, file: Path, line: int | None) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise JobError(
            f"the template file {path} cannot be read: {reason}", file=file, line=line, field="messages"
        ) from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _yaml_error(error, path) from None


def _apply_override(data: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    path = name.strip().split(".")
    if not equals or not all(path):
        raise UsageError(
            f"--set {override}: is not of the form field.path=value",
            remedy="Example: --set limits.concurrency=64",
        )
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        value = text
    if (
        path[0] in {"input", "output"}
        and (path[1:] == ["path"] or len(path) == 1)
        and isinstance(value, str)
        and value != "-"
    ):
        value = str(Path(value).expanduser().absolute())
    if path == ["messages"] and isinstance(value, str):
        value = _load_messages(Path(value).expanduser().absolute(), Path("--set"), None)
    target: Any = data
    if path[0] in {"input", "output"} and len(path) > 1:
        _section(data, path[0])
    for position, part in enumerate(path[:-1]):
        step: Any = _child(target, part, override)
        if step is None:
            step = {}
            target[part] = step
        if not isinstance(step, dict | list):
            if path[position] == "provider" and isinstance(step, str):
                step = {"profile": step}
                target[part] = step
            else:
                raise UsageError(f"--set {override}: {'.'.join(path[: position + 1])} has no fields of its own")
        target = step
    _child(target, path[-1], override)
    if isinstance(target, list):
        target[int(path[-1])] = value
    else:
        target[path[-1]] = value


def _child(target: Any, part: str, override: str) -> Any:
    if isinstance(target, list):
        if not part.isdecimal() or int(part) >= len(target):
            raise UsageError(f"--set {override}: {part} is no position in a list of {len(target)} (the first is 0)")
        return target[int(part)]
    return target.get(part)


def _fields_at(path: tuple[Hashable, ...]) -> list[str]:
    """The field names that a job may have at a place, for suggestions."""
    section = FIELDS.get(tuple(str(part) for part in path))
    return list(section.model_fields) if section else []


def _place(error: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[Hashable, ...]:
    """pydantic's location without the parts that name a union's member."""
    place: list[Hashable] = []
    value: Any = data
    for part in error["loc"]:
        if isinstance(value, dict) and (part in value or error["type"] in {"missing", "extra_forbidden"}):
            known = part in value or part in _fields_at(tuple(place))
            if not known:
                continue
            place.append(part)
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            place.append(part)
            value = value[part]
    return tuple(place)


_HINTS = {
    "stream": "is not a param here: answers are read whole",
    "rpm": "use requests_per_minute",
    "tpm": "use tokens_per_minute",
    "api_key": "a key never stands in a job file: name its variable in api_key_env",
}


def _message(error: Mapping[str, Any], place: tuple[Hashable, ...]) -> str:
    kind = error["type"]
    if kind == "extra_forbidden":
        name, known = str(place[-1]), _fields_at(place[:-1])
        hint = _HINTS.get(name)
        if hint:
            return f"is not a field; {hint}"
        return f"is not a field{nearest(name, known)}" + (f"; known are {', '.join(known)}" if known else "")
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    text = str(error["msg"])
    shown = error.get("input")
    if isinstance(shown, str | int | float) and place and "key" not in str(place[-1]):
        text += f", not {json.dumps(shown, ensure_ascii=False)[:80]}"
    return text[0].lower() + text[1:]


def _validation_error(
    error: ValidationError,
    data: Mapping[str, Any],
    file: Path | None,
    lines: Mapping[tuple[Hashable, ...], int],
) -> JobError:
    problems: dict[tuple[Hashable, ...], JobError] = {}
    for item in error.errors(include_url=False):
        place = _place(item, data)
        made = JobError(
            _message(item, place),
            file=file,
            line=line_of(lines, place),
            field=".".join(str(part) for part in place) or None,
        )
        # A union reports each member's complaint: the most specific one, said first, is enough for a place.
        problems.setdefault(place, made)
    ordered = [problems[place] for place in problems if not _covered(place, problems)]
    first = ordered[0]
    if len(ordered) == 1:
        return first
    combined = JobError("\n".join(problem.message for problem in ordered))
    combined.file, combined.line, combined.field = file, first.line, first.field
    return combined


def _covered(place: tuple[Hashable, ...], problems: Mapping[tuple[Hashable, ...], object]) -> bool:
    """Whether a problem deeper inside the same field says it better."""
    return any(len(other) > len(place) and other[: len(place)] == place for other in problems)
