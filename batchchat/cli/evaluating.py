"""The commands of evaluations: eval, score."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchchat.cli.arguments import JobArguments, read_duration
from batchchat.cli.process import errors, print_json, results, tell_error
from batchchat.cli.running import attended, hide_key, log_listener, recorder_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchchat.evaluation.evaluate import Evaluation
    from batchchat.evaluation.results.gates import GateResult
    from batchchat.evaluation.results.summary import SuiteSummary
    from batchchat.evaluation.suite.suite import Suite
    from batchchat.events import Snapshot
    from batchchat.runner.control import Control

GATE_FAILED = 5
"""The exit code of an evaluation of which a gate has failed."""


def eval_command(
    arguments: JobArguments,
    *,
    command: str,
    plan_only: bool,
    fail_under: Sequence[str],
    fail_over: Sequence[str],
    baseline: Path | None,
    junit: Path | None,
    grace: str,
    log_format: str,
    verbose: bool,
    quiet: bool,
    as_json: bool,
    metrics: Sequence[str] = (),
) -> int:
    """Run the variants of a suite, score them, and print what came of it; return the exit code."""
    suite = arguments.load_suite()
    if plan_only:
        return plan_suite_command(suite, arguments, command=command, as_json=as_json)
    from batchchat.evaluation.evaluate import evaluate
    from batchchat.evaluation.suite_runs import SuiteRunOptions
    from batchchat.report import PAGE_NAME, check_page

    gates = Gates(suite, fail_under, fail_over, baseline, junit)
    # Before anything is paid for: the page is written at the end, whatever came of it.
    check_page(suite.output / PAGE_NAME)
    log = log_listener(log_format, verbose=verbose, quiet=quiet)
    for job in suite.jobs:
        hide_key(job)
    options = arguments.options(grace=read_duration("--grace", grace), command=command)

    async def work(stop: Control, on_snapshot: Callable[[Snapshot], None]) -> Evaluation:
        setting = SuiteRunOptions(suite.name, options, suite.budget, suite.deadline, log, on_snapshot, stop)
        setting.metrics = recorder
        return await evaluate(suite, setting)

    with recorder_of(metrics, log) as recorder:
        done = attended(work, log)
        if recorder is not None:
            recorder.end(done.exit_code)
    passed = gates.check(done.summary) if done.summary is not None else []
    code = gates.exit_code(done.exit_code, passed)
    if as_json:
        print_json(_json(done.summary, code, done.reason, passed, done))
        return code if done.summary is None else _write_page(suite.output, code)
    from batchchat.cli.evaluation_tables import render_ending, render_evaluation

    if done.summary is not None:
        results().print(render_evaluation(done.summary, passed, suite.output, done.warnings, done.note))
    if done.exit_code not in {0, GATE_FAILED} or done.summary is None:
        errors().print(render_ending(done, command))
    return code if done.summary is None else _write_page(suite.output, code)


def _write_page(directory: Path, code: int) -> int:
    """Write the page about a scored suite; return the code, or that for trouble with a file if it was 0."""
    from batchchat.errors import BatchchatError, StorageError
    from batchchat.report import PAGE_NAME, write_suite_report

    try:
        write_suite_report(directory, directory / PAGE_NAME)
    except BatchchatError as error:
        tell_error(error)
        return code or StorageError.exit_code
    return code


def score_command(
    *,
    suite: Path,
    output_path: str | None,
    overrides: tuple[str, ...],
    limit: int | None,
    sample: int | None,
    seed: int,
    fail_under: Sequence[str],
    fail_over: Sequence[str],
    baseline: Path | None,
    junit: Path | None,
    as_json: bool,
) -> int:
    """Score what is there, and print it; return the exit code."""
    from batchchat.evaluation import require_extra

    require_extra()
    from batchchat.evaluation.checking import check_suite
    from batchchat.evaluation.results.current_rows import Choice
    from batchchat.evaluation.results.scoring import score_suite
    from batchchat.evaluation.suite.reading import load_suite
    from batchchat.report import PAGE_NAME, check_page

    loaded = load_suite(suite, overrides=overrides, output=output_path)
    check_page(loaded.output / PAGE_NAME)
    gates = Gates(loaded, fail_under, fail_over, baseline, junit)
    check_suite(loaded)
    summary = score_suite(loaded, choice=Choice(limit, sample, seed))
    passed = gates.check(summary)
    code = gates.exit_code(0, passed)
    if as_json:
        print_json(_json(summary, code, None, passed, None))
        return _write_page(loaded.output, code)
    from batchchat.cli.evaluation_tables import render_evaluation

    results().print(render_evaluation(summary, passed, loaded.output))
    return _write_page(loaded.output, code)


def compare_command(
    *,
    a: Path,
    b: Path,
    on: str | None,
    field: str,
    scorers: Sequence[str],
    suite: Path | None,
    cluster: str | None,
    as_json: bool,
) -> int:
    """Compare two outputs, and print what differs."""
    from batchchat.evaluation import require_extra

    require_extra()
    from batchchat.cli.evaluation_tables import render_output_comparison
    from batchchat.cli.json_output import as_json as to_json
    from batchchat.evaluation.results.comparing import compare_outputs, read_scorer_text
    from batchchat.evaluation.suite.reading import load_suite

    wanted = [read_scorer_text(text) for text in scorers]
    if suite is not None:
        loaded = load_suite(suite)
        wanted += loaded.scorers
        # What was said with the command is meant for this comparison.
        cluster = cluster or loaded.cluster
    found = compare_outputs(a, b, on=on, field=field, scorers=wanted, cluster=cluster)
    if as_json:
        print_json({**to_json(found), "summary": to_json(found.summary.as_json())})
    else:
        results().print(render_output_comparison(found))
    return 0


def plan_suite_command(suite: Suite, arguments: JobArguments, *, command: str, as_json: bool) -> int:
    """Print what an evaluation would send and cost."""
    from batchchat.cli.evaluation_tables import render_suite_plan
    from batchchat.cli.json_output import as_json as to_json
    from batchchat.evaluation.planning import plan_suite

    words = [word for word in shlex.split(command) if word not in {"--plan", "--json"}]
    # `plan SUITE` and `eval --plan SUITE` show the same, and only `eval` runs it.
    if words[1:2] == ["plan"]:
        words[1] = "eval"
    plan = replace(plan_suite(suite, arguments.options()), command=shlex.join(words))
    if as_json:
        print_json(to_json(plan))
    else:
        results().print(render_suite_plan(plan))
    return 0


class Gates:
    """The gates of a command line, read before anything is sent."""

    def __init__(
        self,
        suite: Suite,
        under: Sequence[str],
        over: Sequence[str],
        baseline: Path | None,
        junit: Path | None,
    ) -> None:
        from batchchat.evaluation.results.gates import Baseline, read_gate

        self._gates = [read_gate("--fail-under", text, suite) for text in under]
        self._gates += [read_gate("--fail-over", text, suite, over=True) for text in over]
        self._baseline = None if baseline is None else Baseline(baseline, suite)
        self._junit = junit
        self._output = suite.output

    def check(self, summary: SuiteSummary) -> list[GateResult]:
        """Hold an evaluation against the gates, and write the JUnit file if one is wanted."""
        from batchchat.evaluation.results.gates import check_gates, write_junit

        found = check_gates(self._gates, summary)
        if self._baseline is not None:
            found += self._baseline.check(self._output, summary)
        if self._junit is not None:
            write_junit(self._junit, summary, found)
        return found

    def exit_code(self, code: int, passed: Sequence[GateResult]) -> int:
        """Return the run's code, or 5 if it ended but a gate does not hold."""
        # A run that did not end says why with its own code: its scores are of some rows alone.
        return GATE_FAILED if code in {0, 1} and not all(result.passed for result in passed) else code


def _json(
    summary: SuiteSummary | None,
    code: int,
    reason: str | None,
    passed: Sequence[GateResult],
    done: Evaluation | None,
) -> dict[str, Any]:
    """Return what `--json` prints: the content of summary.json, and how the command ended."""
    from batchchat.cli.json_output import as_json

    found: dict[str, Any] = {} if summary is None else as_json(summary.as_json())
    found |= {"exit_code": code, "reason": reason, "gates": [as_json(result) for result in passed]}
    if done is not None:
        found["runs"] = [
            {"name": run.name, "summary": None if run.summary is None else as_json(run.summary)} for run in done.runs
        ]
    return found
