"""Options and arguments that several commands have.

Only click is imported here, as by the commands themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from batchchat.addresses import address_of, is_url

Command = Callable[..., Any]


class _File(click.Path):
    """A file of this machine. A URL as a path would lose a slash, and name a folder that nobody meant."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path. A URL is bad usage."""
        if is_url(value):
            self.fail(
                f"{value} is a URL. Name a file of this machine, and copy it with a tool of the store.", param, ctx
            )
        return super().convert(value, param, ctx)


FILE = _File()
"""The type of an argument that names a file."""


def job_options(command: Command, noun: str = "job", *, several: bool = False) -> Command:
    """Return the options that `run` and `plan` share, and those of a suite. `run` takes `several` jobs."""
    stdin = "; - is standard input" if noun == "job" else ""
    options = [
        click.argument("jobs", metavar="JOB...", type=FILE, nargs=-1, required=True)
        if several
        else click.argument("job", metavar=noun.upper(), type=FILE),
        click.option("--input", "input_path", metavar="PATH", help=f"Read this input instead of the job's{stdin}."),
        click.option("--output", "output_path", metavar="DIR", help=f"Write to this folder instead of the {noun}'s."),
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="FIELD=VALUE",
            help="Set a field of the job by its dotted path, such as limits.concurrency=64. May be repeated.",
        ),
        click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Take the first N rows only."),
        click.option("--sample", type=click.IntRange(min=1), metavar="N", help="Take N rows chosen at random."),
        click.option("--seed", type=int, default=0, show_default=True, metavar="S", help="Seed of --sample."),
        click.option(
            "--retry-failed",
            is_flag=False,
            flag_value="transient",
            metavar="[=KINDS]",
            help="Try failed rows again now: transient (when no kinds are given), all, or kinds joined by commas.",
        ),
        click.option("--max-cost", metavar="AMOUNT", help="Stop before this run costs more, in the price's currency."),
        click.option("--max-tokens", metavar="N", help="Stop before this run uses more tokens."),
        click.option("--max-requests", metavar="N", help="Stop after so many requests, retries included."),
        click.option("--deadline", metavar="TIME", help="Send nothing after this time, such as 50m, from the start."),
        click.option("--fresh", is_flag=True, help="Begin anew; the old output is set aside, not deleted."),
        click.option("--prune", is_flag=True, help="Move records whose input is gone to the archive."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def run_options(command: Command) -> Command:
    """Return the options of `run`."""
    return job_options(command, several=True)


def suite_options(command: Command) -> Command:
    """Return the options that an evaluation has in common with `run`."""
    return job_options(command, "suite")


def until_options(command: Command) -> Command:
    """Return what makes an evaluation stop before all rows are asked. Each option is a field of the suite, too."""
    options = [
        click.option("--until", type=click.Choice(["settled"]), help="Ask rows in random parts until nothing is open."),
        click.option("--margin", type=float, metavar="D", help="With --until: the difference that does not matter."),
        click.option("--looks", type=int, metavar="N", help="With --until: look after each of N equal parts [5]."),
        click.option("--decide-by", metavar="SCORE", help="With --until: the score that decides [the first one]."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def gate_options(command: Command) -> Command:
    """Return what makes an evaluation end with exit code 5, and tells a continuous integration system why."""
    options = [
        click.option(
            "--fail-under",
            multiple=True,
            metavar="[VARIANT:]SCORE=VALUE",
            help="Exit code 5 where a mean is lower, such as accuracy=0.8. May be repeated.",
        ),
        click.option(
            "--fail-over",
            multiple=True,
            metavar="[VARIANT:]SCORE=VALUE",
            help="Exit code 5 where a mean is higher: for scores of which lower values are better.",
        ),
        click.option(
            "--fail-if-worse-than",
            "baseline",
            metavar="DIR",
            type=FILE,
            help="Exit code 5 where a variant is worse than in this earlier evaluation, by a test at 5 %.",
        ),
        click.option("--junit", metavar="FILE", type=FILE, help="Write scores and gates as JUnit XML."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def json_option(command: Command) -> Command:
    """Return the option that prints JSON."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON to standard output.")(command)


def metrics_option(command: Command) -> Command:
    """Return the option that shows figures to a monitoring system."""
    return click.option(
        "--metrics",
        multiple=True,
        metavar="WHERE",
        help="Show figures: HOST:PORT serves Prometheus, FILE.prom keeps the last ones, otlp pushes OpenTelemetry.",
    )(command)


def output_argument(command: Command) -> Command:
    """Return the argument that names an output: a folder, or an address on object storage."""
    return click.argument("directory", metavar="DIR", type=address_of)(command)


def variant_option(command: Command) -> Command:
    """Return the option that names one output of an evaluation."""
    return click.option(
        "--variant", metavar="NAME", help="Of an evaluation's folder: the variant, or the judge, that is meant."
    )(command)
