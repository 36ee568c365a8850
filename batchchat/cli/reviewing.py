"""The command `review`: a form for people, or what they answered."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchchat.cli.process import errors, print_json, results
from batchchat.errors import UsageError

if TYPE_CHECKING:
    from batchchat.labelling.rows import ReviewForm
    from batchchat.labelling.taking import TakenReviews

_ROWS = 200
"""Rows of a form, if nobody says it: one to two hours of a person's work. Chosen, not measured."""
_CONFLICTS_SHOWN = 20
"""Rows on which people differ that are written out: as many as fit a screen. `--json` has all."""
_OF_FORM = ("target", "format_", "rows", "random_", "below", "stratify", "field", "confidence", "seed")


def review_command(directory: Path | str, **options: Any) -> int:
    """Write a form, or take answers."""
    # A pattern of the shell, `--take *.csv`, gives all files but the first without the option.
    take = [*options["take"], *(options["more"] if options["take"] else ())]
    if not take:
        if options["more"]:
            raise UsageError(
                f"what is to be done with {options['more'][0]}?",
                remedy="--take FILE takes answers, -o FILE writes a form.",
            )
        return _write(directory, options)
    # An option that would do nothing is refused: whoever gave it expects something of it.
    given = [name for name in _OF_FORM if options[name] is not None]
    given += [name for name in ("again", "force") if options[name]]
    if given:
        option = {"target": "-o"}.get(given[0], f"--{given[0].rstrip('_')}")
        raise UsageError(f"{option} is about a form, and --take reads answers", remedy="Give one command for each.")
    return _take(directory, take, options["reviewer"], as_json=options["as_json"])


def _write(directory: Path | str, options: Mapping[str, Any]) -> int:
    from batchchat.labelling.choice import Design
    from batchchat.labelling.forms import format_of, write_form
    from batchchat.labelling.rows import review_form

    target: Path | None = options["target"]
    if target is None:
        raise UsageError(
            "neither a form to write nor answers to take",
            remedy="Write a form with -o FILE.html, or take answers with --take FILE.",
        )
    if options["reviewer"] is not None:
        raise UsageError("--reviewer is for --take", remedy="Leave it out: each person names themselves in the form.")
    kind = format_of(target, options["format_"])
    rows = options["rows"] or _ROWS
    # A quarter at random: only those rows can say how good all answers are. The least sure ones are worse than most.
    drawn = options["random_"] if options["random_"] is not None else (rows + 3) // 4
    if drawn > rows:
        raise UsageError(f"--random {drawn} is more than --rows {rows}", remedy="Raise --rows, or lower --random.")
    design = Design(rows, drawn, options["below"], options["stratify"] is not None, options["seed"] or 0)
    form = review_form(
        directory,
        design,
        stratify=options["stratify"],
        confidence=options["confidence"],
        only=options["field"],
        again=options["again"],
    )
    files = write_form(form, target, format=kind, force=options["force"])
    if options["as_json"]:
        print_json(_form_as_json(form, files))
    for note in form.notes:
        errors().write_line(f"note: {note}")
    errors().write_line(_form_text(form, files))
    answers = {"html": "the file that the page saves", "labelstudio": "what Label Studio exports"}.get(
        kind, "it, once filled"
    )
    errors().write_line(f"take {answers}: batchchat review {shlex.quote(str(directory))} --take FILE")
    return 0


def _form_text(form: ReviewForm, files: list[Path]) -> str:
    from batchchat.format import plural

    unsure = sum(row.part == "least sure" for row in form.rows)
    parts = [f"{unsure:,} least sure"] if unsure else []
    if len(form.rows) > unsure:
        parts.append(f"{len(form.rows) - unsure:,} at random")
    return f"{plural(len(form.rows), 'row')} of {form.population:,} written to {files[0]}: {', '.join(parts)}" + (
        f"; the labelling interface is {files[1]}" if len(files) > 1 else ""
    )


def _form_as_json(form: ReviewForm, files: list[Path]) -> dict[str, Any]:
    return {
        "files": [str(path) for path in files],
        "rows": len(form.rows),
        "population": form.population,
        "least_sure": sum(row.part == "least sure" for row in form.rows),
        "random": sum(row.part == "random" for row in form.rows),
        "fields": [field.name for field in form.fields],
        "notes": list(form.notes),
    }


def _take(directory: Path | str, files: list[Path], reviewer: str | None, *, as_json: bool) -> int:
    from batchchat.labelling.taking import take_reviews, taken_text

    taken = take_reviews(directory, files, reviewer=reviewer)
    if as_json:
        print_json(_taken_as_json(taken))
        return 0
    terminal = results()
    terminal.write_line(taken_text(taken))
    if taken.conflicts:
        terminal.write_line(f"people do not agree about {len(taken.conflicts):,}:")
    for conflict in taken.conflicts[:_CONFLICTS_SHOWN]:
        said = ", ".join(f"{_shown(value)} ({', '.join(people)})" for value, people in conflict.values)
        key = f" {conflict.key}" if conflict.key is not None else ""
        terminal.write_line(f"  row {conflict.row_index}{key}: {conflict.field}: {said}")
    if len(taken.conflicts) > _CONFLICTS_SHOWN:
        terminal.write_line(f"  and {len(taken.conflicts) - _CONFLICTS_SHOWN:,} more; --json tells all")
    return 0


def _shown(value: object) -> str:
    import orjson

    from batchchat.format import one_line

    return one_line(value if isinstance(value, str) else orjson.dumps(value, default=str).decode(), 60)


def _taken_as_json(taken: TakenReviews) -> dict[str, Any]:
    return {
        "reviews": taken.reviews,
        "new": taken.new,
        "without_answer": taken.empty,
        "reviewed_rows": taken.rows,
        "reviewers": list(taken.reviewers),
        "conflicts": [
            {
                "row_index": conflict.row_index,
                "key": conflict.key,
                "field": conflict.field,
                "values": [{"value": value, "reviewers": list(people)} for value, people in conflict.values],
            }
            for conflict in taken.conflicts
        ],
    }
