"""The commands that look at outputs: plan, status, history, show, export, report, verify; and clean."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchchat.cli.arguments import JobArguments
from batchchat.cli.process import errors, print_json, results

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from batchchat.choosing import RecordFilter
    from batchchat.evaluation.outputs import EvaluationOutput
    from batchchat.store import VerifyReport
    from batchchat.views import RecordView, StatusView


_SAMPLES = 1_000
"""The most records that a row may have in one output: as many as a job may ask for samples."""


def plan_command(arguments: JobArguments, *, as_json: bool) -> int:
    """Print what a run would do."""
    from dataclasses import replace

    from batchchat.cli.json_output import as_json as to_json
    from batchchat.cli.plan_page import render_plan
    from batchchat.evaluation import is_suite
    from batchchat.planning import plan_job

    # One command for both, since both are files that a person wants to see before paying.
    if is_suite(arguments.job):
        from batchchat.cli.evaluating import plan_suite_command

        command = shlex.join(["batchchat", *sys.argv[1:]])
        return plan_suite_command(arguments.load_suite(), arguments, command=command, as_json=as_json)
    view = plan_job(arguments.load(), arguments.options())
    # The command that follows a plan is shown as the person typed it, with its own options.
    words = ["run" if word == "plan" else word for word in sys.argv[1:] if word != "--json"]
    view = replace(view, command=shlex.join(["batchchat", *words]))
    _show(view, render_plan, to_json, as_json=as_json)
    return 0


def status_command(directory: Path | str, *, as_json: bool) -> int:
    """Print how far a run is, or all runs of an evaluation."""
    from batchchat.cli.json_output import as_json as to_json
    from batchchat.cli.status_page import render_status
    from batchchat.evaluation.outputs import outputs_of
    from batchchat.inspection import status_of

    if outputs := outputs_of(directory):
        from batchchat.cli.status_page import render_statuses

        views = [(one, status_of(one.path)) for one in outputs]
        if as_json:
            _print_outputs(directory, [(one, to_json(view)) for one, view in views])
        else:
            results().print(render_statuses(Path(directory).name, [(one.name, one.judge, view) for one, view in views]))
        return 0
    _show(_with_reviews(status_of(directory), directory), render_status, to_json, as_json=as_json)
    return 0


def _with_reviews(view: StatusView, directory: Path | str) -> StatusView:
    """Add how many rows people reviewed. Nothing more is imported for an output without reviews."""
    from batchchat.store import read_review_lines

    if not read_review_lines(directory):
        return view
    from dataclasses import replace

    from batchchat.labelling.reviews import stored_reviews

    reviews = stored_reviews(directory)
    rows = {review.content or review.custom_id for review in reviews}
    return replace(view, reviewed=len(rows), reviewers=len({review.reviewer for review in reviews}))


def _reviews_beside(views: Iterator[RecordView], directory: Path | str) -> Iterator[RecordView]:
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
        # Most rows have no review: they go on as they are.
        if people is None:
            yield view
            continue
        row = reviewed_row(sorted(people.values(), key=lambda review: review.reviewed_at))
        told = {"reviewed": row.values, "reviewer": ", ".join(row.reviewers), "reviewed_at": row.reviewed_at}
        yield replace(view, record={**view.record, **told})


def history_command(directory: Path | str, *, as_json: bool) -> int:
    """Print the runs into an output, or into all outputs of an evaluation."""
    from batchchat.cli.blocks import pair
    from batchchat.cli.history import render_history
    from batchchat.cli.json_output import as_json as to_json
    from batchchat.evaluation.outputs import outputs_of
    from batchchat.history import history_of

    if outputs := outputs_of(directory):
        views = [(one, history_of(one.path)) for one in outputs]
        if as_json:
            _print_outputs(directory, [(one, to_json(view)) for one, view in views])
            return 0
        for number, (one, view) in enumerate(views):
            if number:
                results().write_line("")
            results().print(pair("judge" if one.judge else "variant", one.name))
            results().print(render_history(view))
        return 0
    _show(history_of(directory), render_history, to_json, as_json=as_json)
    return 0


def _print_outputs(
    directory: Path | str, views: Sequence[tuple[EvaluationOutput, Any]], more: Mapping[str, Any] | None = None
) -> None:
    """Print what is told of each output of an evaluation as JSON, with the name that a person knows it by."""
    told: dict[str, Any] = {"output": str(directory), **(more or {}), "variants": [], "judges": []}
    for one, view in views:
        told["judges" if one.judge else "variants"].append({"name": one.name, **view})
    print_json(told)


def show_command(
    directory: Path | str,
    *,
    row: int | None,
    key: str | None,
    where: str | None,
    failed: bool,
    table: bool,
    count: str | None,
    limit: int | None,
    follow: bool,
    variant: str | None,
    as_json: bool,
) -> int:
    """Print records whole, as a table, or how often each value of a column is there.

    Of an evaluation, a certain row is printed as every variant answered it; anything else is about one variant.
    """
    from batchchat.choosing import RecordFilter
    from batchchat.errors import UsageError
    from batchchat.evaluation.outputs import chosen_output, outputs_of

    by = RecordFilter(row, key, failed, where)
    certain = (row is not None or key is not None) and not (table or follow or count is not None)
    # A certain row of an evaluation is asked for to compare the answers.
    if certain and variant is None and (outputs := outputs_of(directory)):
        return _show_of_variants([one for one in outputs if not one.judge], by, as_json=as_json)
    directory = chosen_output(directory, variant)
    if follow:
        from batchchat.cli.following import follow_command

        if count is not None:
            raise UsageError("--count counts what is there, and --follow shows what comes", remedy="Give one of them.")
        return follow_command(directory, by, limit=limit, table=table, as_json=as_json)
    if count is not None:
        return _count_command(directory, by, count, limit or 20, as_json=as_json)
    # A whole record fills a screen, one of a table a line.
    found, most = _print_records(directory, by, limit or (20 if table else 5), table=table, as_json=as_json)
    if not found:
        _none_found(directory, row, key, failed=failed, where=where)
    # As many as the bound, so there may be more.
    elif found == most and row is None and key is None:
        errors().write_line(f"shown: {found}; -n shows more, --row N or --key KEY a certain one")
    return 0


def _print_records(
    directory: Path | str, by: RecordFilter, most: int, *, table: bool, as_json: bool, variant: str | None = None
) -> tuple[int, int]:
    """Print records of an output; return how many, and how many would have been the most."""
    from batchchat.cli.blocks import pair
    from batchchat.cli.json_output import as_json as to_json
    from batchchat.cli.record_page import render_record, render_records
    from batchchat.inspection import find_records

    views = _reviews_beside(
        find_records(directory, row=by.row, key=by.key, failed=by.failed, where=by.where, limit=most), directory
    )
    terminal = results()
    if table and not as_json:
        rows = list(views)
        if rows:
            terminal.print(render_records(rows))
        return len(rows), most
    found = 0
    for view in views:
        if as_json:
            print_json(to_json(view) if variant is None else {"variant": variant, **to_json(view)})
        else:
            if found:
                terminal.write_line("")
            if variant is not None:
                terminal.print(pair("variant", variant))
            terminal.print(render_record(view))
        found += 1
    return found, most


def _none_found(directory: Path | str, row: int | None, key: str | None, *, failed: bool, where: str | None) -> None:
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


def _show_of_variants(outputs: Sequence[EvaluationOutput], by: RecordFilter, *, as_json: bool) -> int:
    """Print a row as every variant answered it."""
    from batchchat.errors import UsageError

    found = 0
    for one in outputs:
        if found and not as_json:
            results().write_line("")
        found += _print_records(one.path, by, _SAMPLES, table=False, as_json=as_json, variant=one.name)[0]
    if not found:
        which = f"row {by.row}" if by.row is not None else f"the row with the key {by.key!r}"
        raise UsageError(
            f"no variant has a record of {which}",
            remedy="Rows are counted from 0; `batchchat show DIR --variant NAME --table` lists some.",
        )
    return 0


def _count_command(directory: Path | str, by: RecordFilter, column: str, most: int, *, as_json: bool) -> int:
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
    directory: Path | str,
    target: Path,
    format_: str | None,
    *,
    input_path: str | None,
    force: bool,
    safe_csv: bool,
    columns: str | None,
    flatten: bool,
    bom: bool,
    variant: str | None,
    final: bool,
    vote: bool,
) -> int:
    """Write one file in input order, or the same to standard output for `-`."""
    import shutil
    import tempfile

    from batchchat.errors import UsageError
    from batchchat.evaluation.outputs import chosen_output
    from batchchat.export import export
    from batchchat.format import asked, plural

    directory = chosen_output(directory, variant)
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


def report_command(directory: Path | str, target: Path) -> int:
    """Write the HTML report about an output or a scored suite."""
    from batchchat.report import write_report

    write_report(directory, target)
    errors().write_line(f"report written to {target}")
    return 0


def verify_command(directory: Path | str, *, as_json: bool) -> int:
    """Check an output, or all outputs and files of an evaluation; 74 if something is wrong."""
    from batchchat.cli.json_output import as_json as to_json
    from batchchat.evaluation.outputs import check_files, outputs_of
    from batchchat.store import verify

    outputs = outputs_of(directory)
    if not outputs:
        report = verify(directory)
        if as_json:
            print_json(to_json(report))
        else:
            _print_verified(report)
        return 74 if report.problems else 0
    reports = [(one, verify(one.path)) for one in outputs]
    problems = check_files(directory)
    if as_json:
        told = [(one, to_json(report)) for one, report in reports]
        _print_outputs(directory, told, {"problems": problems})
    else:
        for one, report in reports:
            _print_verified(report, one.name)
        for problem in problems:
            results().write_line(problem)
    return 74 if problems or any(report.problems for _, report in reports) else 0


def _print_verified(report: VerifyReport, name: str | None = None) -> None:
    """Print what is wrong with an output, then how much was read; with `name`, that of the variant or judge."""
    from batchchat.format import plural

    for text in (*report.problems, *report.notes):
        results().write_line(text)
    found = f"{plural(report.records, 'record')} in {plural(report.parts, 'part')}, {report.archived:,} in the archive"
    verdict = plural(len(report.problems), "problem") if report.problems else "no problem found"
    results().write_line(f"{'' if name is None else f'{name}: '}{found}: {verdict}")


def clean_command(directory: Path | str, *, yes: bool) -> int:
    """List old outputs, and remove them if a person says so."""
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
        # A script cannot be asked, and nobody must lose an old output to a silent yes.
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
