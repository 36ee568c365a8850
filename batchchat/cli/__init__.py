"""The command line: parse, call, print, exit code. No logic of its own.

Only click is imported here; each command imports what it needs when it runs, so that `batchchat --help` is quick.
"""

from __future__ import annotations

import gc
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import click

import batchchat
from batchchat.addresses import address_of
from batchchat.cli.options import (
    FILE,
    gate_options,
    job_options,
    json_option,
    metrics_option,
    output_argument,
    run_options,
    suite_options,
    until_options,
    variant_option,
)
from batchchat.cli.spared_imports import spare_imports

_EXIT_CODES = """\b
Exit codes: 0 every row has a completion · 1 some rows failed · 2 bad usage,
job file or input · 3 needs a human (key, model, credit) · 4 stopped by a
budget or the deadline · 5 a gate of an evaluation does not hold · 69 provider
unavailable · 70 internal error · 74 disk trouble · 75 another run holds the
output · 129/130/143 stopped by SIGHUP/SIGINT/SIGTERM. All but 2 can be
resumed by the same command."""


_FAULTS = """Faults: error_400 error_401 error_403 error_404 error_416 error_422 error_429 error_500 error_503 error_504
html error_200 no_choices null_content no_usage truncated_json drop drop_body stream_cut stream_error slow hang
empty_whitespace wrong_label invalid_output misfit misfit_once cut_off fenced refusal content_filter quota sticky_500
sticky_504, and the counts revoke_after, quota_after, day_after and other_after.

Of streams: stream_cut closes the connection before the usage is told, drop_body half-way; truncated_json ends one
half-way, stream_error with an error inside; no_usage leaves the usage out.

The faults and dialects of the Batch API are in the page `batchchat guide demo-batches`."""


class _Group(click.Group):
    """Commands in the order they are written here, and the nearest name for one that does not exist.

    Without a command it shows its help.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # click would end with exit code 2, and this is no mistake.
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), color=ctx.color)
            ctx.exit()
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            # The likeliest slip: the command was left out, and the job stands in its place.
            if Path(args[0]).suffix in {".yaml", ".yml"}:
                hint = f" To run a job: batchchat run {args[0]}"
            raise click.UsageError(error.message + hint, ctx) from None


@click.group(
    cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=_EXIT_CODES
)
@click.version_option(batchchat.__version__, "-V", "--version", prog_name="batchchat")
def cli() -> None:
    """Run one prompt over many rows, and never lose or pay twice for an answer.

    Start with `batchchat init`, which writes a job to try, then `batchchat run` it. `batchchat plan` shows what a run
    would send and cost before anything is sent. `batchchat guide` is the documentation.
    """


def main() -> None:
    """Run the command line; the console script's entry point."""
    _start_fast()
    from batchchat.cli.process import guarded, leave

    # Arrow reads this once, when it is loaded. `keep_memory_small` says why; what reads Parquet pages heeds this alone.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    leave(guarded(cli))


def _start_fast() -> None:
    """Spare this process work at its start that no command needs.

    Modules make hundreds of thousands of objects that stay, and the collector of cycles would look at them again and
    again.
    """
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, 20, 20)
    spare_imports()


_OBJECTS_BETWEEN_COLLECTIONS = 500_000
"""More than the imports of any command make (a run: 250,000), so that the collector never looks at them."""


@cli.command()
@run_options
@click.option(
    "--grace", default="20s", show_default=True, metavar="TIME", help="How long a stop waits for what is in flight."
)
@click.option("--take-over", is_flag=True, help="Take an output on object storage from a run that seems to be alive.")
@click.option("--no-wait", is_flag=True, help="With engine: batch, end when the batches are created; exit code 4.")
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Form of log lines."
)
@click.option(
    "--html",
    metavar="FILE",
    type=FILE,
    help="Write a report to this .html file after the run. Needs the extra batchchat[report].",
)
@click.option(
    "--workers", type=click.IntRange(1, 256), metavar="N", help="Run with N processes; needs an output in shards."
)
@click.option(
    "--ray", metavar="ADDRESS", help="With --workers, run them on a Ray cluster: HOST:PORT, or auto for the one here."
)
@click.option(
    "--shard", metavar="I/N", help="Run one of N even shares of the shards, from 0; auto asks SLURM or Kubernetes."
)
@metrics_option
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
@click.option("-q", "--quiet", is_flag=True, help="Log warnings and errors only, and show no progress.")
@json_option
def run(**options: Any) -> None:
    """Run JOB, or go on with it where an earlier run stopped.

    Rows that have an answer are passed over. Ctrl-C once lets the requests in flight end, twice stops at once; nothing
    that was answered is lost either way.

    Several jobs run one after the other, so that one may read the output of another. A job begins only after those
    before it have ended with exit code 0 or 1.
    """
    from dataclasses import replace

    from batchchat.cli.running import run_command

    jobs = options.pop("jobs")
    # All jobs take the same options, so that these are read once.
    options["job"] = jobs[0]
    first = _job_arguments(options)
    jobs = [replace(first, job=job) for job in jobs]
    sys.exit(run_command(jobs, command=_command_line(), **options))


@cli.command(hidden=True)
def worker() -> None:
    """Be a worker of `run --workers`: it tells this process what to do on standard input."""
    from batchchat.cli.sharding import worker_command

    sys.exit(worker_command())


@cli.command(short_help="Show what a run of JOB would send and cost; send nothing.")
@job_options
@json_option
def plan(**options: Any) -> None:
    """Show what a run of JOB, or an evaluation of a suite, would do and cost. Sends nothing, writes nothing."""
    from batchchat.cli.reading import plan_command

    arguments = _job_arguments(options)
    sys.exit(plan_command(arguments, **options))


@cli.command("eval", short_help="Run the variants of SUITE, and say which differ.")
@suite_options
@click.option("--plan", "plan_only", is_flag=True, help="Show what it would send and cost; send nothing.")
@until_options
@gate_options
@click.option(
    "--grace", default="20s", show_default=True, metavar="TIME", help="How long a stop waits for what is in flight."
)
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Form of log lines."
)
@metrics_option
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
@click.option("-q", "--quiet", is_flag=True, help="Log warnings and errors only, and show no progress.")
@json_option
def eval_(**options: Any) -> None:
    """Run every variant of SUITE, or go on with them, and say which is better, by how much, and whether that is real.

    Needs the extra batchchat[eval]. Answers that are there are not asked for again; --set reaches fields of the suite,
    and fields of its base job.
    """
    from batchchat.cli.evaluating import eval_command

    arguments = _job_arguments(options)
    sys.exit(eval_command(arguments, command=_command_line(), **options))


@cli.command(short_help="Score the answers of SUITE again; send nothing.")
@click.argument("suite", type=FILE)
@click.option("--output", "output_path", metavar="DIR", help="The folder of the evaluation, if not the suite's.")
@click.option(
    "--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Set a field of the suite, or of its base job."
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Score the first N rows only.")
@click.option("--sample", type=click.IntRange(min=1), metavar="N", help="Score N rows chosen at random.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="S", help="Seed of --sample.")
@gate_options
@json_option
def score(**options: Any) -> None:
    """Score the answers of SUITE again, by its scorers and the input's expected values as they are now.

    Sends nothing: answers that are not there are left out and counted.
    """
    from batchchat.cli.evaluating import score_command

    sys.exit(score_command(**options))


@cli.command(short_help="Compare two outputs row by row.")
@click.argument("a", metavar="DIR_A", type=address_of)
@click.argument("b", metavar="DIR_B", type=address_of)
@click.option("--on", metavar="COLUMN", help="What tells rows apart: an input column, key (the default) or row_index.")
@click.option(
    "--field",
    default="completion",
    show_default=True,
    metavar="PATH[=PATH]",
    help="What counts as the answer: parsed.label, or completion=parsed.label for a path of each output.",
)
@click.option(
    "--scorer",
    "scorers",
    multiple=True,
    metavar="KIND:COLUMN",
    help="Score both by an expected column, such as exact:label, or by a mapping as in a suite. May be repeated.",
)
@click.option("--suite", type=FILE, metavar="SUITE", help="Score both by this suite's scorers.")
@click.option(
    "--cluster", metavar="COLUMN", help="Rows with the same value here are one piece of evidence: document, customer."
)
@json_option
def compare(**options: Any) -> None:
    """Compare two outputs: two nights, two versions of a prompt, two models. Sends nothing.

    Over the rows that both have: how often the answers agree, and the differences in completions, length, tokens, cost
    and latency, each with its interval and test; with scorers, which one is better. Needs the extra batchchat[eval].
    """
    from batchchat.cli.evaluating import compare_command

    sys.exit(compare_command(**options))


@cli.command(short_help="Measure how far the labels of DIR agree with others.")
@output_argument
@click.option(
    "--against",
    metavar="COLUMN|DIR",
    help="An input column with the right labels, or another output. Without it: people's reviews, and the samples.",
)
@click.option("--field", metavar="NAME", help="Look at this field of the answers alone, such as label.")
@click.option(
    "--level",
    type=click.Choice(["nominal", "ordinal", "interval"]),
    default="nominal",
    show_default=True,
    help="What labels are, for alpha: names, ranks (in the schema's order), or numbers.",
)
@click.option("--below", type=click.FloatRange(0, 1), metavar="T", help="Look at rows with less confidence alone.")
@click.option("--by", metavar="COLUMN", help="Also measure the rows of each value of this input column.")
@json_option
def agreement(directory: Path | str, **options: Any) -> None:
    """Measure how far the labels of DIR agree: with a column, with people, with another output. Sends nothing.

    Accuracy, macro-F1, Cohen's kappa, Krippendorff's alpha, the confusion matrix, and whether confidence says how often
    answers are right; each with its 95 % interval. Needs the extra batchchat[eval].
    """
    from batchchat.cli.labelling import agreement_command

    sys.exit(agreement_command(directory, **options))


@cli.command(short_help="Find how unsure a cheap model may be before a dear one is asked.")
@job_options
@click.option("--expected", metavar="COLUMN", help="The input column that holds the right labels.")
@click.option(
    "--reviewed",
    type=address_of,
    metavar="DIR",
    help="An output of the same rows: what people say in its reviews is right.",
)
@click.option(
    "--target",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    required=True,
    metavar="SHARE",
    help="How many answers must be right, such as 0.95.",
)
@click.option(
    "--risk",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    metavar="SHARE",
    help="How likely it may be that fewer are right.",
)
@click.option("--rows", type=click.IntRange(min=1), metavar="N", help="Ask N rows chosen at random, not all.")
@click.option("--small", metavar="MODEL", help="The cheap model, asked first. Without it the job's model.")
@click.option("--large", metavar="MODEL", help="The better model, asked where the first is unsure.")
@click.option("--field", metavar="NAME", help="The field of the answers that is compared, if there are several.")
@click.option("-q", "--quiet", is_flag=True, help="Log warnings and errors only, and show no progress.")
@json_option
def calibrate(**options: Any) -> None:
    """Find the threshold of confidence with which a cascade of two models is right often enough.

    Runs both models on rows with the right labels, into DIR.calibrate/small and DIR.calibrate/large beside the job's
    output DIR, and goes on there after a stop. The accuracy is at least the target with probability 1 - risk. Exit code
    5 if no threshold reaches it.
    """
    from batchchat.cli.labelling import calibrate_command

    arguments = _job_arguments(options)
    sys.exit(calibrate_command(arguments, command=_command_line(), **options))


@cli.command()
@output_argument
@json_option
def status(directory: Path | str, as_json: bool) -> None:
    """Show how far the run into DIR is, or how the last one ended."""
    from batchchat.cli.reading import status_command

    sys.exit(status_command(directory, as_json=as_json))


@cli.command(short_help="Steer the run into DIR: pause, resume, stop, set limits.")
@output_argument
@click.argument("action", type=click.Choice(["pause", "resume", "stop", "set"]))
@click.argument("settings", nargs=-1, metavar="[FIELD=VALUE]...")
@json_option
def control(directory: Path | str, action: str, settings: tuple[str, ...], as_json: bool) -> None:
    """Steer the run that is going on into DIR, from another terminal; of an evaluation's folder, all its runs.

    \b
    pause    send nothing more until `resume`; the run goes on to hold DIR
    resume   go on after `pause`
    stop     let the requests in flight end, then end; twice: end at once
    set      change limits.concurrency, limits.requests_per_minute (rpm),
             limits.tokens_per_minute (tpm), budget.max_cost, max_tokens,
             max_requests, deadline or grace, such as limits.concurrency=64

    It is for this run alone: the job file stays as it is. Exit code 2 if no run is going on.
    """
    from batchchat.cli.controlling import control_command

    sys.exit(control_command(directory, action, settings, as_json=as_json))


@cli.command(short_help="Cancel the provider's batches of DIR, keep what they answered.")
@output_argument
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Form of log lines."
)
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
@click.option("-q", "--quiet", is_flag=True, help="Log warnings and errors only, and show no progress.")
@json_option
def cancel(directory: Path | str, **options: Any) -> None:
    """Cancel the provider's batches of DIR, wait for their end, and keep what they answered.

    What is answered by then is paid for. Their other rows stay open: the next run asks them again.
    """
    from batchchat.cli.running import cancel_command

    sys.exit(cancel_command(directory, **options))


@cli.command(short_help="List the runs into DIR: when, what, and at what cost.")
@output_argument
@json_option
def history(directory: Path | str, as_json: bool) -> None:
    """List the runs into DIR: when, what each did and cost, how it ended; sums at the end."""
    from batchchat.cli.reading import history_command

    sys.exit(history_command(directory, as_json=as_json))


@cli.command(short_help="Look at records of DIR: messages in, completion out.")
@output_argument
@click.option("--row", type=click.IntRange(min=0), metavar="N", help="Show the record of row N (the first is 0).")
@click.option("--key", metavar="KEY", help="Show the record of the row with this key.")
@click.option(
    "--where",
    metavar="EXPRESSION",
    help="Show records for which this is true, such as \"status == 'failed'\" or \"parsed.label == 'bug'\".",
)
@click.option("--failed", is_flag=True, help="Show failed records only.")
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Show at most N records, or N values of --count. Without it: 5, 20 of --table and --count.",
)
@click.option("--table", is_flag=True, help="Show one line a record: row, key, start of the prompt, answer, status.")
@click.option("--count", metavar="COLUMN", help="Count the values of a column, or of a field such as parsed.label.")
@click.option(
    "-f",
    "--follow",
    is_flag=True,
    help="Show the records of the run that is going on as they are committed, until it ends; --json: one a line.",
)
@variant_option
@json_option
def show(directory: Path | str, **options: Any) -> None:
    """Look at records of DIR: messages in, completion out; or count what they hold."""
    from batchchat.cli.reading import show_command

    sys.exit(show_command(directory, **options))


@cli.command(short_help="Write the records of DIR to one file, in input order.")
@output_argument
@click.option(
    "-o",
    "--to",
    "target",
    required=True,
    metavar="FILE",
    type=FILE,
    help="A .parquet, .jsonl, .csv or .xlsx file; - is standard output, with --format.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["parquet", "jsonl", "csv", "xlsx", "openai-batch"]),
    help="What to write, where the extension does not say it; openai-batch: the output and error lines of a batch.",
)
@click.option(
    "--input", "input_path", metavar="PATH", help="Take positions and columns from this input, not the job's own."
)
@click.option("--force", is_flag=True, help="Write over an existing file.")
@click.option(
    "--safe-csv",
    is_flag=True,
    help="Put ' before each text of a .csv file that a spreadsheet would run as a formula (= + - @).",
)
@click.option(
    "--columns",
    metavar="NAMES",
    help="Write these columns only, in this order: names joined by commas; parsed.label is a field.",
)
@click.option("--flatten", is_flag=True, help="Write the fields of objects as columns of their own: parsed.label.")
@click.option("--final", is_flag=True, help="Where people reviewed a row, write their values in place of the model's.")
@click.option(
    "--vote",
    is_flag=True,
    help="Write one row for each row of the input: the answer that most of its samples gave, and their share.",
)
@click.option("--bom", is_flag=True, help="Begin a .csv file with a byte order mark, so that Excel reads it as UTF-8.")
@variant_option
def export(directory: Path | str, target: Path, format_: str | None, **options: Any) -> None:
    """Write the records of DIR to one file, in the order of the current input."""
    from batchchat.cli.reading import export_command

    sys.exit(export_command(directory, target, format_, **options))


@cli.command(short_help="Write an HTML report about DIR.")
@output_argument
@click.option(
    "-o",
    "--to",
    "target",
    required=True,
    metavar="FILE",
    type=FILE,
    help="An .html file; a report that is there already is written over.",
)
def report(directory: Path | str, target: Path) -> None:
    """Write an HTML report about DIR: counts, failures, latency, tokens, cost and labels in one offline page.

    Works while a run is going, too. Of a suite's folder, its report is written again. Needs the extra
    batchchat[report].
    """
    from batchchat.cli.reading import report_command

    sys.exit(report_command(directory, target))


@cli.command(short_help="Choose rows of DIR for people, and take their answers back.")
@output_argument
@click.argument("more", nargs=-1, metavar="[FILE]...", type=FILE)
@click.option(
    "-o",
    "--to",
    "target",
    metavar="FILE",
    type=FILE,
    help="Write the form here: a page (.html), .csv, .jsonl, or tasks for Label Studio (.labelstudio.json).",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["html", "csv", "jsonl", "labelstudio"]),
    help="What to write, if the name does not say it.",
)
@click.option("--rows", type=click.IntRange(min=1), metavar="N", help="Choose N rows.  [default: 200]")
@click.option(
    "--random",
    "random_",
    type=click.IntRange(min=0),
    metavar="N",
    help="Draw N of them at random.  [default: a quarter]",
)
@click.option(
    "--below", type=click.FloatRange(0, 1), metavar="P", help="Rows with a confidence of P or more are not unsure."
)
@click.option("--stratify", metavar="COLUMN", help="Give each value of this column its share, such as parsed.label.")
@click.option("--field", metavar="NAME", help="Ask for this field of the answers only, such as parsed.label.")
@click.option("--confidence", metavar="COLUMN", help="Where the confidence is.  [default: the column confidence]")
@click.option("--seed", type=int, metavar="S", help="Seed of the random part.  [default: 0]")
@click.option("--again", is_flag=True, help="Choose rows that have a review, too.")
@click.option("--force", is_flag=True, help="Write over an existing file.")
@click.option("--take", multiple=True, metavar="FILE", type=FILE, help="Take people's answers from a file.")
@click.option("--reviewer", metavar="NAME", help="Who answered, if the files of --take do not say it.")
@json_option
def review(directory: Path | str, **options: Any) -> None:
    """Choose rows of DIR for people to review, and write a form: batchchat review DIR -o review.html

    The least sure rows come first, the rest is drawn at random. Then take what people answered:
    batchchat review DIR --take answers.jsonl. Their answers are kept beside the model's, never over them.
    """
    from batchchat.cli.reviewing import review_command

    sys.exit(review_command(directory, **options))


@cli.command()
@output_argument
@json_option
def verify(directory: Path | str, as_json: bool) -> None:
    """Read everything in DIR and check it."""
    from batchchat.cli.reading import verify_command

    sys.exit(verify_command(directory, as_json=as_json))


@cli.command(short_help="Move the records of DIR into other shards; ask nothing.")
@output_argument
@click.option("--shards", type=click.IntRange(1, 1_000), metavar="N", required=True, help="How many; 1 is none.")
@json_option
def reshard(directory: Path | str, shards: int, as_json: bool) -> None:
    """Move the records of an output into another number of shards. Nothing is asked again.

    The old output stays as it is until the new one is whole, and is kept under another name; `batchchat clean` removes
    it. No run may go on meanwhile. Put the new number into the job as well, or leave output.shards out there.
    """
    from batchchat.cli.sharding import reshard_command

    sys.exit(reshard_command(directory, shards, as_json=as_json))


@cli.command(short_help="Remove old outputs that `run --fresh` set aside.")
@output_argument
@click.option("--yes", is_flag=True, help="Remove them without a question.")
def clean(directory: Path | str, yes: bool) -> None:
    """List the old outputs that `run --fresh` set aside beside DIR, and remove them.

    Asks before it removes anything; where there is no terminal to ask at, only `--yes` removes. DIR itself stays.
    """
    from batchchat.cli.reading import clean_command

    sys.exit(clean_command(directory, yes=yes))


@cli.command(short_help="Write a commented job to start from, and sample rows.")
@click.argument("name", default="demo")
@click.option("--force", is_flag=True, help="Write over existing files.")
def init(name: str, force: bool) -> None:
    """Write NAME.yaml, a commented job to start from, and a few sample rows. It runs as it is."""
    from batchchat.cli.starting import init_command

    sys.exit(init_command(name, force=force))


@cli.command(short_help="List known providers; of one, its limits and prices.")
@click.argument("name", required=False, metavar="[NAME]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def providers(name: str | None, as_json: bool) -> None:
    """List the providers that are known by name; of one, its limits and the prices of its models."""
    from batchchat.cli.providers import providers_command

    sys.exit(providers_command(name, as_json=as_json))


@cli.command("guide", short_help="Read the documentation: all topics, or one page.")
@click.argument("topic", required=False, metavar="[TOPIC]")
@click.option("--search", "word", metavar="WORD", help="List the places of all pages that hold this word.")
def guide_(topic: str | None, word: str | None) -> None:
    """Read the documentation: the list of topics, or the page of one."""
    from batchchat.cli.guide import guide_command

    sys.exit(guide_command(topic, word=word))


@cli.command(short_help="Print the JSON Schema of a job or suite, for editors.")
@click.argument("kind", type=click.Choice(["job", "suite"]), default="job")
def schema(kind: str) -> None:
    """Print the JSON Schema of a job file, or of a suite file, for editors.

    That of a suite needs the extra batchchat[eval].
    """
    from batchchat.cli.guide import schema_command

    sys.exit(schema_command(kind))


@cli.command("demo-server", epilog=_FAULTS, short_help="Run the demo provider as a server of its own.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--seed", type=int, default=0, show_default=True, help="Everything the server does follows from it.")
@click.option("--latency", default="0.35s", show_default=True, metavar="TIME", help="Median time to an answer.")
@click.option("--ttft", metavar="TIME", help="Median time to the first token of a streamed answer.")
@click.option(
    "--tokens-per-second", type=click.FloatRange(min=0, min_open=True), metavar="N", help="Pace of a streamed answer."
)
@click.option("--requests-per-minute", type=click.IntRange(min=1), metavar="N", help="Refuse more with 429.")
@click.option("--tokens-per-minute", type=click.IntRange(min=1), metavar="N", help="Refuse more with 429.")
@click.option("--concurrency", type=click.IntRange(min=1), metavar="N", help="Refuse more at once with 429.")
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="NAME=SHARE",
    help="Let a share of requests go wrong, such as error_503=0.05. May be repeated.",
)
@click.option("--key-env", metavar="VARIABLE", help="Ask for the key that this environment variable holds.")
@click.option("--key-lifetime", metavar="TIME", help="Ask for a key that expires after this time; see --key-file.")
@click.option("--key-file", metavar="FILE", help="Write the valid key to this file, whenever the last one has expired.")
@click.option("--batch-seconds", default="2s", show_default=True, metavar="TIME", help="Time of a batch to its end.")
@click.option(
    "--batch-fault",
    "batch_faults",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="Let the Batch API go wrong, such as create_lost or line_missing=0.1. May be repeated.",
)
@click.option("--batch-dialect", default="openai", show_default=True, metavar="NAME", help="Whose Batch API it plays.")
@click.option(
    "--batch-folder",
    metavar="DIR",
    help="Keep files and batches in this folder, so that they outlive the server. Without it they end with it.",
)
def demo_server(**options: Any) -> None:
    """Run the embedded demo provider as a server of its own, to try limits and faults against."""
    from batchchat.cli.starting import demo_server_command

    sys.exit(demo_server_command(**options))


@cli.command(short_help="Keep the limits of runs on several machines.")
@click.option(
    "--listen", default="127.0.0.1:7077", show_default=True, metavar="HOST:PORT", help="Port 0 takes a free one."
)
@click.option(
    "--token-file",
    metavar="FILE",
    help="The secret that runs must know; without it that of the environment variable BATCHCHAT_BROKER_TOKEN.",
)
def broker(**options: Any) -> None:
    """Keep the limits of runs on several machines, until a signal ends it. Jobs name it in `limits.shared`."""
    from batchchat.cli.broker import broker_command

    sys.exit(broker_command(**options))


def _job_arguments(options: dict[str, Any]) -> Any:
    """Take the shared arguments out of a command's options."""
    from dataclasses import fields

    from batchchat.cli.arguments import JobArguments

    shared = [field.name for field in fields(JobArguments) if field.name in options]
    return JobArguments(**{name: options.pop(name) for name in shared})


def _command_line() -> str:
    """Return the command as the person typed it, to be shown again as the way to go on."""
    # To go on with --fresh would set aside what this run has just paid for.
    once = {"--fresh", "--take-over"}
    return shlex.join(["batchchat", *(argument for argument in sys.argv[1:] if argument not in once)])
