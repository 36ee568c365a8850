"""Where each field of a job came from, so that an error can point there."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from batchchat.errors import JobError

FieldPlace = tuple[Hashable, ...]
"""A field by the names and positions that lead to it: `("messages", 0, "content")`."""


class FieldOrigin(NamedTuple):
    """The line of a file, or the option of the command line, that gave a field."""

    file: Path | None = None
    line: int | None = None
    option: str | None = None


Origins = Mapping[FieldPlace, FieldOrigin]


def dotted(place: FieldPlace) -> str:
    """Return a place as a person writes it: `messages.0.content`."""
    return ".".join(str(part) for part in place)


def origin_of(origins: Origins, place: FieldPlace, file: Path | None) -> FieldOrigin:
    """Return the origin of a field, or of the nearest one around it that has one."""
    while place:
        if place in origins:
            return origins[place]
        place = place[:-1]
    return FieldOrigin(file)


def job_error(
    message: str, place: FieldPlace, origins: Origins, file: Path | None, remedy: str | None = None
) -> JobError:
    """Make the error of one field, which names the file and line, or the option, that gave it."""
    origin, field = origin_of(origins, place, file), dotted(place) or None
    if origin.option is None:
        return JobError(message, file=origin.file, line=origin.line, field=field, remedy=remedy)
    if field is not None and not origin.option.endswith((f" {field}", f"--{field}")):
        message = f"{field}: {message}"
    error = JobError(message, field=origin.option, remedy=remedy)
    error.field = field
    return error


def combined(errors: Sequence[JobError]) -> JobError:
    """Return one error that says them all, in the order of their lines, each remedy once at the end."""
    if len(errors) == 1:
        return errors[0]
    ordered = sorted(errors, key=lambda error: (str(error.file or "~"), error.line or 0))
    remedies = dict.fromkeys(error.remedy for error in ordered if error.remedy)
    first, every = ordered[0], JobError("\n".join(error.message for error in ordered))
    every.file, every.line, every.field = first.file, first.line, first.field
    every.remedy = "\n".join(remedies) or None
    return every
