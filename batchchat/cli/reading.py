"""The commands that look at outputs: plan, status, history, show, export, report, verify; and clean."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchchat.cli.arguments import JobArguments
from batchchat.cli.running import errors, print_json, results

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchchat.choosing import RecordFilter
    from batchchat.views import RecordView, StatusView


def plan_command(arguments: JobArguments, *, as_json: bool) -> int:
    """Print what a run would do."""
    from dataclasses import replace

    from batchchat.cli.json_output import as_json as to_json
    from batchchat.cli.plan_page import render_plan
    from batchchat.evaluation import is_suite
    from batchchat.plan import plan_job

    if is_suite(arguments.job):
        from batchchat.cli.evaluating import plan_suite_command

        command = shlex.join(["batchchat", *sys.argv[1:]])
        return plan_suite_command(arguments.load_suite(), arguments, command=command, as_json=as_json)
    view = plan_job(arguments.load(), arguments.options())
    words = ["run" if word == "plan" else word for word in sys.argv[1:] if word != "--json"]
    view = replace(view, command=shlex.join(["batchchat", *words]))
    _show(view, render_plan, to_json, as_json=as_json)
    return 0


def status_command(directory: Path, *, as_json: bool) -> int:
    """Print how far a run is."""
    from batchchat.cli.json_output import as_json as to_json
    from batchchat.cli.status_page import render_status
    from batchchat.inspection import status_of
    from batchchat.store import evaluation_outputs

    if outputs := evaluation_outputs(directory):
        from batchchat.cli.status_page import render_statuses

        views = [status_of(output) for output in outputs]
        if as_json:
            print_json({"output": str(directory), "variants": [to_json(view) for view in views]})
        else:
            results().print(render_statuses(directory.name, views))
        return 0
    _show(_with_reviews(status_of(directory), directory), render_status, to_json, as_json=as_json)
    return 0


def _with_reviews(view: StatusView, directory: Path) -> StatusView:
    """Add how many rows people reviewed. Nothing more is imported for an output without reviews."""
    from batchchat.store import read_review_lines

    if not read_review_lines(directory):
        return view
    from dataclasses import replace

    from batchchat.labelling.reviews import stored_reviews

    reviews = stored_reviews(directory)
    rows = {review.content or review.custom_id for review in reviews}
    return replace(view, reviewed=len(rows), reviewers=len({review.reviewer for review in reviews}))


def _reviews_beside(views: Iterator[RecordView], directory: Path) -> Iterator[RecordView]:
    """Add to records what people say of them, in columns of their own."""
    from batchchat.store import read_review_lines

    if not read_review_lines(directory):
        yield from views
        return
    from dataclasses import replace

    from batchchat.labelling.reviews import latest_of_reviewers, read_reviews, reviewed_row

    found = latest_of_reviewers(read_reviews(directory))
    for view in views:
        people = found.get(str(view.record.get("custom_id")))
        if people is None:
            yield view
            continue
        row = reviewed_row(sorted(people.values(), key=lambda review: review.reviewed_at))
        told = {"reviewed": row.values, "reviewer": ", ".join(row.reviewers), "reviewed_at": row.reviewed_at}
        yield replace(view, record={**view.record, **told})


def history_command(directory: Path, *, as_json: bool) -> int:
    """Print the runs into an output."""
    from batchchat.cli.history import render_history
    from batchchat.cli.json_output import as_json as to_json
    from batchchat.history import history_of
    from batchchat.store import evaluation_outputs

    if outputs := evaluation_outputs(directory):
        views = [history_of(output) for output in outputs]
        if as_json:
            print_json({"output": str(directory), "variants": [to_json(view) for view in views]})
        for number, view in enumerate([] if as_json else views):
            if number:
                results().write_line("")
            results().print(render_history(view))
        return 0
    _show(history_of(directory), render_history, to_json, as_json=as_json)
    return 0


def show_command(
    directory: Path,
    *,
    row: int | None,
    key: str | None,
    where: str | None,
    failed: bool,
    table: bool,
    count: str | None,
    limit: int | None,
    follow: bool,
    as_json: bool,
) -> int:
    """Print records whole, as a table, or how often each value of a column is there."""
    from batchchat.choosing import RecordFilter
    from batchchat.cli.json_output import as_json as to_json
    from batchchat.cli.record_page import render_record, render_records
    from batchchat.errors import UsageError
    from batchchat.inspection import find_records

    if follow:
        from batchchat.cli.following import follow_command

        if count is not None:
            raise UsageError("--count counts what is there, and --follow shows what comes", remedy="Give one of them.")
        return follow_command(
            directory, RecordFilter(row, key, failed, where), limit=limit, table=table, as_json=as_json
        )
    if count is not None:
        return _count_command(directory, RecordFilter(row, key, failed, where), count, limit or 20, as_json=as_json)
    most = limit or (20 if table else 5)
    views = _reviews_beside(
        find_records(directory, row=row, key=key, failed=failed, where=where, limit=most), directory
    )
    terminal = results()
    found = 0
    if table and not as_json:
        rows = list(views)
        found = len(rows)
        if rows:
            terminal.print(render_records(rows))
    else:
        for view in views:
            if as_json:
                print_json(to_json(view))
            else:
                if found:
                    terminal.write_line("")
                terminal.print(render_record(view))
            found += 1
    if not found:
        _none_found(directory, row, key, failed=failed, where=where)
    elif found == most and row is None and key is None:
        errors().write_line(f"shown: {found}; -n shows more, --row N or --key KEY a certain one")
    return 0


def _none_found(directory: Path, row: int | None, key: str | None, *, failed: bool, where: str | None) -> None:
    """Say that there is no such record. Raises UsageError if a certain one was asked for."""
    from batchchat.errors import UsageError

    which = f" of row {row}" if row is not None else ""
    which += f" with the key {key!r}" if key is not None else ""
    which += f" for which {where}" if where is not None else ""
    message = f"no {'failed record' if failed else 'record'}{which} in {directory}"
    # A certain row that is asked for and not there is a mistake, in a script too; that nothing failed is none.
    if row is not None or key is not None:
        raise UsageError(message, remedy="Rows are counted from 0; `batchchat show DIR --table` lists some.")
    errors().write_line(message)


def _count_command(directory: Path, by: RecordFilter, column: str, most: int, *, as_json: bool) -> int:
    from batchchat.choosing import count_values
    from batchchat.cli.record_page import render_counts
    from batchchat.store import read_state

    counts = count_values(read_state(directory), by, column)
    if as_json:
        print_json({"column": column, "values": [{"value": value, "records": number} for value, number in counts]})
        return 0
    if not counts:
        errors().write_line(f"no record to count in {directory}")
        return 0
    results().print(render_counts(column, counts[:most], sum(number for _, number in counts)))
    if len(counts) > most:
        errors().write_line(f"shown: {most} of {len(counts):,} values; -n shows more")
    return 0


def export_command(
    directory: Path,
    target: Path,
    format_: str | None,
    *,
    input_path: str | None,
    force: bool,
    safe_csv: bool,
    columns: str | None,
    flatten: bool,
    bom: bool,
    final: bool,
    vote: bool,
) -> int:
    """Write one file in input order, or the same to standard output for `-`."""
    import shutil
    import tempfile

    from batchchat.errors import UsageError
    from batchchat.export import export
    from batchchat.format import asked, plural

    names = None if columns is None else [name.strip() for name in columns.split(",") if name.strip()]
    more: dict[str, Any] = {
        "input_path": input_path,
        "safe_csv": safe_csv,
        "columns": names,
        "flatten": flatten,
        "bom": bom,
        "final": final,
        "vote": vote,
    }
    if str(target) == "-":
        if format_ is None or format_ == "openai-batch":
            raise UsageError(
                "standard output has no extension that names a format",
                remedy="Give --format csv, jsonl, parquet or xlsx; openai-batch makes two files, and needs a name.",
            )
        # Whole or not at all, as a file is: nothing is printed of an export that fails half-way.
        with tempfile.TemporaryDirectory(prefix="batchchat-") as folder:
            done = export(directory, Path(folder) / "export", format=format_, **more)
            with done.files[0].open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        target = Path("standard output")
    else:
        done = export(directory, target, format=format_, force=force, **more)
    text = f"{plural(done.rows, 'row')} written to {target}"
    if len(done.files) > 1:
        lines = plural(done.rows - done.failed, "line")
        text = f"{lines} written to {target}, {done.failed:,} of errors to {done.files[1]}"
    if done.missing:
        noun = asked(done.samples)
        of_them = f"{done.missing:,} {noun}s of the input have" if done.missing > 1 else f"1 {noun} of the input has"
        text += f"; {of_them} no record yet and {'are' if done.missing > 1 else 'is'} left out"
    errors().write_line(text)
    return 0


def report_command(directory: Path, target: Path) -> int:
    """Write the HTML report about an output or a scored suite."""
    from batchchat.report import write_report

    write_report(directory, target)
    errors().write_line(f"report written to {target}")
    return 0


def verify_command(directory: Path, *, as_json: bool) -> int:
    """Check an output; 74 where something is wrong."""
    from batchchat.cli.json_output import as_json as to_json
    from batchchat.format import plural
    from batchchat.store import verify

    report = verify(directory)
    if as_json:
        print_json(to_json(report))
    else:
        terminal = results()
        for problem in report.problems:
            terminal.write_line(problem)
        for note in report.notes:
            terminal.write_line(note)
        found = (
            f"{plural(report.records, 'record')} in {plural(report.parts, 'part')}, {report.archived:,} in the archive"
        )
        verdict = plural(len(report.problems), "problem") if report.problems else "no problem found"
        terminal.write_line(f"{found}: {verdict}")
    return 74 if report.problems else 0


def clean_command(directory: Path, *, yes: bool) -> int:
    """List old outputs, and remove them where a person says so."""
    import click

    from batchchat.cli.blocks import line
    from batchchat.format import plural
    from batchchat.store import old_outputs, remove_output

    found = old_outputs(directory)
    for old in found:
        results().write_line(f"{line(str(old.path))}  {plural(old.nbytes, 'byte')}")
    if not found:
        errors().write_line(f"no old outputs beside {directory}")
        return 0
    which = f"{plural(len(found), 'old output')} of {sum(old.nbytes for old in found):,} bytes"
    if not yes:
        if not sys.stdin.isatty():
            errors().write_line(f"{which}; nothing was removed: --yes removes them")
            return 0
        if not click.confirm(f"Remove {which} for good?", err=True):
            errors().write_line("nothing was removed")
            return 0
    for old in found:
        remove_output(old)
    errors().write_line(f"{which} removed")
    return 0


def _show(view: Any, render: Any, to_json: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(to_json(view))
    else:
        results().print(render(view))
