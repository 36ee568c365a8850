"""From a job file to a validated job, or to errors that name the line."""

from __future__ import annotations

import copy
import difflib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from batchchat.addresses import is_url
from batchchat.errors import JobError, UsageError
from batchchat.job.model import Job
from batchchat.job.origin import FieldOrigin, FieldPlace, Origins, combined, dotted, job_error
from batchchat.job.sections import BATCH_FORMAT
from batchchat.job.syntax import Document, parse_yaml, read_job_text, read_text
from batchchat.job.wording import validation_errors

_EXAMPLE = "Example: --set limits.concurrency=64"
_PATHS = frozenset(
    {
        ("provider", "ca_file"),
        ("provider", "api_key_file"),
        ("images", "root"),
        ("files", "root"),
        ("examples", "from"),
        ("cache",),
        ("engine", "folder"),
    }
)
"""The fields, beside input and output, that hold a path."""


class FieldChange(NamedTuple):
    """A field of a job that another file sets: its dotted path, the value, and where that file sets it.

    `inside` tells where the value's own fields stand, by their places in it. Paths in the value are relative to `base`.
    """

    path: str
    value: Any
    origin: FieldOrigin
    base: Path
    inside: Origins


def load_job(
    path: str | Path,
    *,
    overrides: Sequence[str] = (),
    changes: Sequence[FieldChange] = (),
    input: str | None = None,
    output: str | None = None,
) -> Job:
    """Read and validate a job file.

    `overrides` are `dotted.path=value` texts with YAML values, as `--set` takes them; `changes` are put over them.
    `input` and `output` take the place of the file's own paths. Paths that come with the call are relative to the
    current folder, those in the file to the file. Raises UsageError where there is no such file or an override has no
    form, JobError for what a job cannot be.
    """
    file = Path(path)
    document = parse_yaml(read_job_text(file, nearest_file(file)), file)
    if not isinstance(document.data, dict):
        what = "is empty" if document.data is None else "is not a mapping of fields"
        raise JobError(what, file=file, remedy="`batchchat init` writes a job to start from.")
    # A suite's fields would each be told as unknown, which says nothing of what is wrong.
    if "variants" in document.data and "messages" not in document.data:
        raise UsageError(
            f"{file} is a suite of evaluations, not a job",
            remedy=f"Run it with `batchchat eval {shlex.quote(str(file))}`.",
        )
    draft = Draft(document, file)
    draft.resolve_paths()
    for change in (*map(read_override, overrides), *changes):
        draft.change(change)
    for name, value in (("input", input), ("output", output)):
        if value is not None:
            draft.set_path(name, value, FieldOrigin(option=f"--{name}"), Path.cwd())
    job = validate_job(draft.data, file=file, origins=draft.origins, faults=draft.faults)
    job._answer_model = draft.answer_model  # noqa: SLF001 - pydantic's private attributes are set after validation
    job._options = options_of(overrides, changes, input)  # noqa: SLF001 - as above
    return job


def options_of(overrides: Sequence[str], changes: Sequence[FieldChange], input: str | None) -> tuple[str, ...]:
    """Return the options of the command line that say the same as these; the output is known without them."""
    texts = [*overrides, *(f"{change.path}={json.dumps(change.value, ensure_ascii=False)}" for change in changes)]
    words = [word for text in texts for word in ("--set", text)]
    if input is not None:
        words += ["--input", input if input == "-" or is_url(input) else str(Path(input).absolute())]
    return tuple(words)


def validate_job(
    data: Mapping[str, Any],
    *,
    file: Path | None = None,
    origins: Origins | None = None,
    faults: Sequence[JobError] = (),
) -> Job:
    """Validate a job given as plain data. Raises JobError that lists everything that is wrong.

    `faults` are errors found before, which are told with the others.
    """
    origins = origins or {}
    errors = list(faults)
    try:
        job = _kind_of(data).model_validate(data)
    except ValidationError as error:
        errors += validation_errors(error, data, origins, file)
    if errors:
        raise combined(errors)
    job._file = file  # noqa: SLF001 - pydantic's private attributes are set after validation
    job._origins = dict(origins)  # noqa: SLF001
    return job


def job_of(snapshot: Mapping[str, Any]) -> Job:
    """Return the job that an output keeps. Raises JobError if this version cannot read it.

    A job that was loaded from a file knows that file again, so that its errors name it.
    """
    data = {name: value for name, value in snapshot.items() if name not in {"file", "suite", "options"}}
    file = snapshot.get("file")
    return validate_job(data, file=Path(file) if isinstance(file, str) and file else None)


def read_override(text: str, option: str | None = None) -> FieldChange:
    """Return what one `--set` changes, or an `option` of its own that stands for one.

    The value is never repeated in an error of its form: it may be a secret.
    """
    name, equals, given = text.partition("=")
    path = name.strip()
    if not equals or not all(path.split(".")):
        raise UsageError(f"{f'--set {name[:60]}'.rstrip()}: is not of the form field.path=value", remedy=_EXAMPLE)
    origin = FieldOrigin(option=option or f"--set {path}")
    return FieldChange(path, _read_value(given, path, origin), origin, Path.cwd(), {})


def _kind_of(data: Mapping[str, Any]) -> type[Job]:
    given = data.get("input")
    if not (isinstance(given, Mapping) and given.get("format") == BATCH_FORMAT):
        return Job
    # To make this class takes as long as all of the small sections together, and few jobs are of it.
    from batchchat.job.batch_file import BatchFileJob

    return BatchFileJob


def nearest_file(file: Path) -> str | None:
    """Return the file beside this one whose name is nearest, where the file itself is not there."""
    try:
        names = {entry.stem: entry.name for entry in file.parent.iterdir() if entry.suffix in {".yaml", ".yml"}}
    except OSError:
        return None
    # Names alone: with their extensions, short ones would all be near. At 0.6, "jbo" is still near "job".
    near = [names[stem] for stem in difflib.get_close_matches(file.stem, names, n=1, cutoff=0.6)]
    return str(file.parent / near[0]) if near else None


class Draft:
    """A job on its way from the file to validation: plain data, and where each field of it came from."""

    def __init__(self, document: Document, file: Path) -> None:
        self.data: dict[str, Any] = document.data
        self.origins = document.origins
        self.faults = document.faults
        self.file = file
        self._schema_named = False
        self.answer_model: tuple[str, Path] | None = None

    # --- what the file says

    def resolve_paths(self) -> None:
        """Make the file's paths absolute, and put the messages of a template file in the place of its path."""
        base = self.file.absolute().parent
        for name in ("input", "output"):
            value = self.data.get(name)
            path = value.get("path") if isinstance(value, dict) else value
            if isinstance(path, str) and path and path != "-":
                self._section(name)["path"] = absolute_path(base, path)
        cache = self.data.get("cache")
        if isinstance(cache, str) and cache:
            self.data["cache"] = absolute_path(base, cache)
        provider = self.data.get("provider")
        places = _places(provider) + _places(self.data.get("fallback"), "provider")
        places += _places(self.data.get("cascade"), "provider")
        for place in [*places, *(endpoint for one in places for endpoint in _places(one.get("endpoints")))]:
            for name in ("ca_file", "api_key_file"):
                if isinstance(place.get(name), str) and place[name]:
                    place[name] = absolute_path(base, place[name])
        for name in ("images", "files"):
            given = self.data.get(name)
            if isinstance(given, dict) and isinstance(given.get("root"), str) and given["root"]:
                given["root"] = absolute_path(base, given["root"])
        examples = self.data.get("examples")
        if isinstance(examples, dict) and isinstance(examples.get("from"), str) and examples["from"]:
            examples["from"] = absolute_path(base, examples["from"])
        engine = self.data.get("engine")
        if isinstance(engine, dict) and isinstance(engine.get("folder"), str) and engine["folder"]:
            engine["folder"] = absolute_path(base, engine["folder"])
        messages = self.data.get("messages")
        if isinstance(messages, str) and messages:
            self.data["messages"] = self._load_messages(messages, base)
        self._load_schema(base)

    def _load_messages(self, text: str, base: Path) -> Any:
        """The content of a template file. Raises JobError at the field that names it."""
        # No path looks like that: the text of the prompt itself stands where a list is wanted.
        if "{{" in text or "{%" in text or "\n" in text:
            raise self._error(
                "is the path of a file, or a list of messages, and this is neither",
                ("messages",),
                'A single text is written as [{role: user, content: "…"}].',
            )
        path = Path(absolute_path(base, text))
        try:
            content = read_text(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise self._error(
                f"the template file {path} cannot be read: {reason}",
                ("messages",),
                "Give the path of a YAML file that holds the list of messages, or the list itself.",
            ) from None
        document = parse_yaml(content, path, ("messages",))
        if isinstance(document.data, str):
            raise JobError("holds a text, not a list of messages", file=path, line=1)
        self.origins.update(document.origins)
        self.faults.extend(document.faults)
        return document.data

    def _load_schema(self, base: Path) -> None:
        """Put a schema that is named (a file, a model) in the place of its name, so that the job is whole by itself."""
        response = self.data.get("response")
        spec = response.get("schema") if isinstance(response, dict) else None
        if isinstance(spec, dict):
            self.answer_model = None  # an override gave the schema itself
        if not isinstance(response, dict) or not isinstance(spec, str) or not spec:
            return
        from batchchat.structured import SchemaError, load_schema

        try:
            loaded = load_schema(spec, folder=base)
        except SchemaError as error:
            raise self._error(error.message, ("response", "schema"), error.remedy) from None
        response["schema"] = dict(loaded.schema)
        # A schema does not hold what a model's own validators check: they are asked as well.
        self.answer_model = (spec, base) if loaded.from_model else None
        if self._schema_named or response.get("name") is None:
            response["name"] = loaded.name
            self._schema_named = True

    def _error(self, message: str, place: FieldPlace, remedy: str | None = None) -> JobError:
        return job_error(message, place, self.origins, self.file, remedy)

    # --- what the command line, or another file, says

    def change(self, change: FieldChange) -> None:
        """Put a value in the place of the file's own."""
        # A copy: the same value may go into several jobs, and a later change into it.
        value, parts = copy.deepcopy(change.value), change.path.split(".")
        if parts[0] in {"input", "output"} and parts[1:] in ([], ["path"]) and isinstance(value, str):
            self.set_path(parts[0], value, change.origin, change.base)
            return
        target, place = self._reach(parts, change)
        if place in _PATHS and isinstance(value, str) and value:
            value = absolute_path(change.base, value)
        target[place[-1]] = value
        self._note(place, change.origin)
        self.origins.update({(*place, *inside): origin for inside, origin in change.inside.items()})
        if place == ("messages",) and isinstance(value, str) and value:
            self.data["messages"] = self._load_messages(value, change.base)
        if place[:1] == ("response",):
            self._load_schema(change.base)

    def set_path(self, name: str, value: str, origin: FieldOrigin, base: Path) -> None:
        """Take another input or output, and keep the other fields of its section."""
        if not value:
            raise _refusal("the path is empty", name, origin)
        self._section(name)["path"] = value if value == "-" else absolute_path(base, value)
        self._note((name, "path"), origin)

    def _section(self, name: str) -> dict[str, Any]:
        value = self.data.get(name)
        if not isinstance(value, dict):
            value = self.data[name] = {"path": value} if isinstance(value, str) else {}
        return value

    def _reach(self, parts: list[str], change: FieldChange) -> tuple[Any, FieldPlace]:
        """The mapping or list that holds a field, and the field's place; sections on the way are made."""
        target: Any = self.data
        place: FieldPlace = ()
        if parts[0] in {"input", "output"} and len(parts) > 1:
            self._section(parts[0])
        for part in parts[:-1]:
            step: Any = _key_in(target, part, change)
            place = (*place, step)
            value = target.get(step) if isinstance(target, dict) else target[step]
            if value is None:
                value = target[step] = {}
                self._note(place, change.origin)
            # `provider: openai` is short for a section with a profile, and a field of it can be set all the same.
            elif place == ("provider",) and isinstance(value, str):
                value = target[step] = {"profile": value}
            elif place == ("engine",) and isinstance(value, str):
                value = target[step] = {"kind": value}
            elif not isinstance(value, dict | list):
                raise _refusal(f"{dotted(place)} has no fields of its own", change.path, change.origin)
            target = value
        return target, (*place, _key_in(target, parts[-1], change))

    def _note(self, place: FieldPlace, origin: FieldOrigin) -> None:
        """Remember where a field, and all inside it, came from."""
        # What the old value had inside is gone, and must not give its lines to errors of the new one.
        for inside in [known for known in self.origins if known[: len(place)] == place]:
            del self.origins[inside]
        self.origins[place] = origin


def absolute_path(base: Path, path: str) -> str:
    """Return a path, as it is written in a file that lies in `base`, as an absolute one. A URL stays as it is."""
    return path if is_url(path) else os.path.normpath(base / Path(path).expanduser())


def _places(value: Any, inside: str | None = None) -> list[dict[str, Any]]:
    """Return the mappings in a list, or those at one field of them."""
    found = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, dict)]
    return found if inside is None else [one[inside] for one in found if isinstance(one.get(inside), dict)]


def _read_value(text: str, path: str, origin: FieldOrigin) -> Any:
    """The YAML value of a `--set`. Lists and mappings are written in brackets; any other `a: b` or `# c` is text."""
    text = text.strip()
    if not text:
        return text
    try:
        document = parse_yaml(text, Path("--set"), tuple(path.split(".")))
    except JobError:
        return text
    value = document.data
    for fault in document.faults:
        raise UsageError(f"{origin.option}: {fault.message}", remedy=fault.remedy)
    if isinstance(value, str):
        return value if text.startswith(("'", '"')) else text
    if isinstance(value, dict | list):
        return value if text.startswith(("{", "[")) else text
    return value


def _key_in(target: Any, part: str, change: FieldChange) -> str | int:
    if not isinstance(target, list):
        return part
    if not (part.isascii() and part.isdecimal() and int(part) < len(target)):
        problem = f"{part} is no position in a list of {len(target)} (the first is 0)"
        raise _refusal(problem, change.path, change.origin, remedy=None)
    return int(part)


def _refusal(message: str, field: str, origin: FieldOrigin, remedy: str | None = _EXAMPLE) -> UsageError:
    """The error of a change that has no place in the job."""
    if origin.option is not None:
        return UsageError(f"{origin.option}: {message}", remedy=remedy)
    return JobError(message, file=origin.file, line=origin.line, field=field)
