"""Writing forms for people: a page, a table, lines of JSON, or tasks for Label Studio."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import orjson

from batchchat.errors import StorageError, UsageError
from batchchat.labelling.content import plain
from batchchat.labelling.fields import ReviewField
from batchchat.labelling.rows import FormRow, ReviewForm

FORMATS = ("html", "csv", "jsonl", "labelstudio")
LABEL_STUDIO = ".labelstudio.json"
ACCEPT = "accept"
"""The column, or field, by which a person takes the model's answer as it is."""
OWN = "batchchat"
"""The field of a Label Studio task that says which row it is."""
_IDENTITY = ("job", "content", "custom_id", "row_index", "key", "probability", "round")


def format_of(target: Path, named: str | None) -> str:
    """Return the form of a file, by its name or as it is `named`. Raises UsageError if it is none of FORMATS."""
    if named is not None:
        return named
    if target.name.endswith(LABEL_STUDIO):
        return "labelstudio"
    kind = target.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise UsageError(
            f"{target}: no form of a review has this name",
            remedy=f"Call it .html, .csv, .jsonl or {LABEL_STUDIO}, or give --format {'|'.join(FORMATS)}.",
        )
    return kind


def write_form(form: ReviewForm, target: Path, *, format: str | None = None, force: bool = False) -> list[Path]:
    """Write a form, whole or not at all, and return its files.

    Tasks for Label Studio have a second file, `….config.xml`, with the labelling interface to set up there. Raises
    UsageError if a file is there already and not `force`, StorageError if the disk fails.
    """
    kind = format_of(target, format)
    texts = {target: _WRITERS[kind](form, target)}
    if kind == "labelstudio":
        texts[target.with_name(f"{target.name.removesuffix(LABEL_STUDIO)}.config.xml")] = _interface(form)
    for path in texts:
        if path.exists() and not force:
            raise UsageError(f"{path} exists already", remedy="Choose another name, or give --force to write over it.")
    for path, text in texts.items():
        _write(path, text)
    return list(texts)


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        draft.write_text(text, encoding="utf-8", newline="")
        draft.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}", remedy="Choose another place for the file.") from error
    finally:
        draft.unlink(missing_ok=True)


def _page(form: ReviewForm, target: Path) -> str:
    from batchchat.labelling.page import page_text

    return page_text(form, target)


def _identity(form: ReviewForm, row: FormRow) -> dict[str, Any]:
    """Return what tells which row an answer belongs to, and how the row was chosen."""
    return {
        "job": form.job.name,
        "content": row.content,
        "custom_id": row.custom_id,
        "row_index": row.row_index,
        "key": row.key,
        "probability": row.probability,
        "round": row.round,
    }


def _lines(form: ReviewForm, _target: Path) -> str:
    """Write a line a row. A person fills `reviewer` and either `accept: true` or fields of `values`."""
    return "".join(
        orjson.dumps(
            {
                **_identity(form, row),
                "part": row.part,
                "stratum": row.stratum,
                "confidence": row.confidence,
                "row": row.columns,
                "answer": row.answer,
                ACCEPT: False,
                "values": {},
                "reviewer": "",
                "note": None,
            },
            default=plain,
            option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS,
        ).decode()
        for row in form.rows
    )


def _table(form: ReviewForm, _target: Path) -> str:
    """Write a table. The columns that a person fills stand first; those that tell the row stand last."""
    names = [field.name for field in form.fields]
    columns = list(form.rows[0].columns)
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(
        [
            *(f"row.{name}" for name in columns),
            *(f"model.{name}" for name in names),
            "confidence",
            ACCEPT,
            *(f"review.{name}" for name in names),
            "reviewer",
            "note",
            *_IDENTITY,
        ]
    )
    for row in form.rows:
        identity = _identity(form, row)
        table.writerow(
            [
                *(_cell(row.columns[name]) for name in columns),
                *(_cell(row.answer[name]) for name in names),
                row.confidence,
                "",
                *("" for _ in names),
                "",
                "",
                *(_cell(identity[name]) for name in _IDENTITY),
            ]
        )
    # Excel reads a file as UTF-8 only if it begins with this mark.
    return f"\ufeff{text.getvalue()}"


def _cell(value: object) -> object:
    """Return a cell that no spreadsheet runs as a formula: people open these tables in one."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else orjson.dumps(value, default=plain).decode()
    # Not of a number, which may begin with a minus sign.
    formula = isinstance(value, str) and text.lstrip()[:1] in {
        "=",
        "+",
        "-",
        "@",
        "\uff1d",
        "\uff0b",
        "\uff0d",
        "\uff20",
    }
    return f"'{text}" if formula or (isinstance(value, str) and text[:1] in {"\t", "\r", "\n"}) else text


# --- Label Studio


def _tasks(form: ReviewForm, _target: Path) -> str:
    """Write tasks with the model's answers as predictions. Label Studio sorts them by their score."""
    tasks = []
    for row in form.rows:
        shown = "\n\n".join(f"{name}: {_plain_text(value)}" for name, value in row.columns.items())
        result = [found for field in form.fields if (found := _result(field, row)) is not None]
        prediction: dict[str, Any] = {"model_version": form.job.model, "result": result}
        if row.confidence is not None:
            prediction["score"] = row.confidence
        tasks.append(
            {"data": {"text": shown, "row": row.columns, OWN: _identity(form, row)}, "predictions": [prediction]}
        )
    return orjson.dumps(tasks, default=plain, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode() + "\n"


def _plain_text(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value, default=plain).decode()


def _result(field: ReviewField, row: FormRow) -> dict[str, Any] | None:
    """Return a region of a prediction; None if the model gave no value."""
    value = row.answer[field.name]
    if value is None and None not in field.choices:
        return None
    told: Mapping[str, Any]
    if field.kind == "choice":
        kind, told = "choices", {"choices": [_plain_text(value)]}
    elif field.kind == "number":
        kind, told = "number", {"number": value}
    else:
        kind, told = "textarea", {"text": [_plain_text(value)]}
    return {"from_name": field.name, "to_name": "text", "type": kind, "value": told}


def _interface(form: ReviewForm) -> str:
    """Return the labelling interface, to be put into the project's settings at Label Studio."""
    lines = ["<View>", '  <Text name="text" value="$text"/>']
    for field in form.fields:
        name = quoteattr(field.name)
        lines.append(f"  <Header value={name}/>")
        if field.kind == "choice":
            lines.append(f'  <Choices name={name} toName="text" choice="single" required="true">')
            lines += [f"    <Choice value={quoteattr(_plain_text(choice))}/>" for choice in field.choices]
            lines.append("  </Choices>")
        elif field.kind == "number":
            lines.append(f'  <Number name={name} toName="text"/>')
        else:
            lines.append(f'  <TextArea name={name} toName="text" maxSubmissions="1" editable="true"/>')
    return "\n".join([*lines, "</View>", ""])


_WRITERS: Mapping[str, Callable[[ReviewForm, Path], str]] = {
    "html": _page,
    "csv": _table,
    "jsonl": _lines,
    "labelstudio": _tasks,
}
