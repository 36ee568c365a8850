"""The documentation is whole and true: its tables are held against the code, its links against what exists."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import click
import jsonschema_rs
import pytest
from click.testing import CliRunner

from batchchat import guide
from batchchat.cli import cli
from batchchat.cli.guide import show
from batchchat.cli.process import tell_error
from batchchat.cli.terminal import Terminal
from batchchat.demo import BATCH_FAULTS, FAULTS
from batchchat.demo.batches.options import DIALECTS, FaultKind
from batchchat.errors import JobError, UsageError
from batchchat.evaluation.scorers.answer_scorers import MODELS
from batchchat.evaluation.scorers.judging import JUDGES, JudgeScorer
from batchchat.evaluation.suite.reading import SuiteFields
from batchchat.events import RunSummary
from batchchat.guide.schema import job_schema, suite_schema
from batchchat.job import parse_duration
from batchchat.job.model import FIELDS
from batchchat.job.params import Params
from batchchat.job.pool_fields import EndpointFields
from batchchat.job.provider_fields import ProviderFields
from batchchat.providers import PROFILES, Provider
from batchchat.records import TRANSIENT_KINDS, ErrorKind, Record
from batchchat.template.sandbox import Environment
from tests.docs import ALL, CONTENTS, GUIDE, PAGES, README, ROOT, SAMPLES, blocks, names, prose, read_yaml, table

RUNNER = CliRunner()
SAMPLE_JOBS = sorted((ROOT / "jobs").glob("*.yaml"))


# --- pages


def test_the_contents_list_every_page_and_nothing_else() -> None:
    topics = [topic.name for topic in guide.topics()]
    assert sorted(topics) == sorted(path.stem for path in PAGES)
    assert len(set(topics)) == len(topics)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_is_one_to_two_screens_with_one_title(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    # The pages of commands and of fields are looked up, not read.
    assert 50 <= len(lines) <= (300 if path.stem in {"commands", "job"} else 160)
    assert lines[0].startswith("# ")
    outside = prose(path).splitlines()
    assert [line for line in outside if line.startswith("# ")] == [lines[0]]
    too_long = [line for line in outside if len(line) > 120 and not line.startswith("|")]
    assert not too_long


def test_the_readme_is_one_page() -> None:
    assert len(README.read_text(encoding="utf-8")) <= 6_000


def test_pictures_are_small_and_need_no_network() -> None:
    terminal, report = (ROOT / ".github" / "pictures" / name for name in ("terminal.svg", "report.png"))
    svg = terminal.read_text(encoding="utf-8")
    assert "batchchat&#160;run&#160;jobs/label-tickets.yaml" in svg
    assert set(re.findall(r"https?://[^\"' ]+", svg)) == {"http://www.w3.org/2000/svg"}
    assert report.read_bytes().startswith(b"\x89PNG")
    assert max(terminal.stat().st_size, report.stat().st_size) < 150_000


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose(path)):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        if anchor:
            assert anchor in _anchors(linked), target


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_options_and_topics_that_are_named_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    consoles = "".join(block.text for block in blocks(path) if block.language == "console")
    named = re.findall(r"`batchchat ([a-z][\w -]*)", prose(path)) + re.findall(
        r"^batchchat (.+)$", consoles, re.MULTILINE
    )
    for command, *words in map(str.split, named):
        assert command in cli.commands, command
        if command == "guide" and words and words[0].islower() and not words[0].startswith("-"):
            assert guide.page(words[0])
    known = {name for command in cli.commands.values() for name in _options(command)} | {"--help", "--version"}
    outside = {"--quick", "--model"}  # of other programs
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) - known - outside == set()


def test_nothing_speaks_of_tools_that_the_package_does_not_bring() -> None:
    for path in [*ALL, *SAMPLE_JOBS]:
        assert "duckdb -c" not in path.read_text(encoding="utf-8"), path


def test_every_sample_job_has_a_row_with_a_command_of_its_own() -> None:
    rows = re.findall(
        r"^\| \[([\w-]+)\]\(\1\.yaml\) \| .+ \| `batchchat (\w+) jobs/\1\.yaml`", prose(SAMPLES), re.MULTILINE
    )
    assert {name for name, _ in rows} == {path.stem for path in SAMPLE_JOBS}
    for name, command in rows:
        assert command == ("eval" if name.startswith("eval-") else "plan" if "scaleway" in name else "run")


@pytest.mark.parametrize("path", SAMPLE_JOBS, ids=lambda path: path.stem)
def test_the_commands_in_the_comments_of_a_sample_job_exist(path: Path) -> None:
    found = re.findall(r"^# +batchchat ([a-z-]+)(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    for command, rest in found:
        assert set(re.findall(r"--[a-z-]+", rest)) <= _options(cli.commands[command]), (command, rest)


# --- the command `guide`


def test_the_guide_shows_contents_and_pages_as_they_are_when_piped() -> None:
    done = RUNNER.invoke(cli, ["guide"])
    assert done.output == CONTENTS.read_text(encoding="utf-8")
    done = RUNNER.invoke(cli, ["guide", "Typed_Answers.md"])
    assert done.output.startswith("# Typed answers\n")
    assert "<!--" not in RUNNER.invoke(cli, ["guide", "start"]).output


def test_a_topic_that_does_not_exist_names_those_near() -> None:
    with pytest.raises(UsageError, match="no topic 'judge'") as caught:
        guide.page("judge")
    assert "judges" in str(caught.value.remedy)
    with pytest.raises(UsageError, match="no topic 'batch'") as caught:
        guide.page("batch")
    assert "batch-files" in str(caught.value.remedy)


def test_a_search_finds_places_with_all_words_below_their_headings() -> None:
    hits = list(guide.search("RETRY-AFTER"))
    assert any(hit.topic == "limits" and hit.heading == "What happens at a limit" for hit in hits)
    both = [hit.text.lower() for hit in guide.search("budget deadline")]
    assert both
    assert all("budget" in line and "deadline" in line for line in both)
    # The words stand on two lines of one paragraph.
    assert any(hit.topic == "words" for hit in guide.search("earlier row come back"))
    for nothing in ("fdatasyncx", " "):
        assert isinstance(RUNNER.invoke(cli, ["guide", "--search", nothing]).exception, UsageError)
    assert RUNNER.invoke(cli, ["guide", "--search", "journal"]).output.startswith("batchchat guide ")


def test_no_comment_in_a_block_of_code_is_taken_for_a_heading() -> None:
    headings = {hit.heading for hit in guide.search("e")}
    assert not any(re.search(r"\.(yaml|py)$", heading) for heading in headings)


def test_a_terminal_shows_names_whole_and_commands_for_links() -> None:
    stream = io.StringIO()
    terminal = Terminal(stream, tty=True, width=80)
    show(guide.page("job"), terminal)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert max(map(len, shown.splitlines())) <= 80
    for name in table("job", "Fields"):
        assert f" {name} " in shown
    assert ".md" not in shown
    stream.truncate(0)
    show("[what it costs](budgets.md), [budgets](budgets.md#what), [the job](../x.yaml)\n", terminal)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).strip(" \n\0")
    assert shown == "what it costs (batchchat guide budgets), budgets, the job"


def test_every_field_of_a_job_and_a_suite_has_a_page() -> None:
    for name in (*FIELDS[()].model_fields, *SuiteFields.model_fields):
        assert guide.page(str(guide.topic_of(f"{name}.x")))
    assert guide.topic_of("rows") is None


def test_an_error_of_a_field_names_its_page(capsys: pytest.CaptureFixture[str]) -> None:
    tell_error(JobError("must be at least 1, not 0", field="limits.concurrency"))
    assert capsys.readouterr().err.endswith("\nSee: batchchat guide limits\n")
    tell_error(JobError("is not a mapping of fields"))
    assert "guide" not in capsys.readouterr().err


# --- tables against the code


def _job_fields() -> dict[str, Any]:
    return {
        ".".join((*place, field.alias or name)): field
        for place, model in FIELDS.items()
        if place != ("params",)
        for name, field in model.model_fields.items()
        # What an endpoint has in common with its provider is told there.
        if model is not EndpointFields or name not in ProviderFields.model_fields
    }


def test_the_table_of_job_fields_is_that_of_the_model() -> None:
    rows = table("job", "Fields")
    sections = {".".join(place) for place in FIELDS if place}
    known = _job_fields()
    custom = Provider(name="custom", base_url=None, identity="")
    provider_defaults = {f"provider.{name}": getattr(custom, name) for name in ("stream_options", "transport")}
    # A section with fields of its own needs no row, but may have one.
    assert known.keys() - sections <= rows.keys() <= known.keys()
    for name, (_, default, _) in rows.items():
        field = known[name]
        shown = default.strip("`")
        if field.is_required() or (name in sections and name not in {"response.truncated", "max_prompt_tokens.then"}):
            assert shown in ("", "none"), name
        elif isinstance(field.default, bool):
            assert shown == str(field.default).lower(), name
        elif isinstance(field.default, int | float) and shown[-1] in "sm":
            assert parse_duration(shown) == field.default, name
        elif isinstance(field.default, int) and shown.endswith("MB"):
            assert int(shown[:-2]) * 1_000_000 == field.default, name
        elif field.default is None or field.default_factory is not None:
            known_default = str(provider_defaults.get(name, "")).lower()
            assert shown == known_default if known_default else not default.startswith("`") and default, name
        else:
            assert shown == str(field.default), name


def test_the_table_of_params_is_that_of_the_model() -> None:
    assert table("job", "Params").keys() == Params.model_fields.keys()


def test_the_table_of_suite_fields_is_that_of_the_model() -> None:
    rows = table("evaluation", "Fields of a suite")
    assert rows.keys() == SuiteFields.model_fields.keys()
    assert rows["seed"][1] == f"`{SuiteFields.model_fields['seed'].default}`"


def test_the_table_of_columns_is_that_of_a_record() -> None:
    columns = [field.name for field in fields(Record)]
    assert list(table("output", "Columns")) == columns[2:]


def test_the_table_of_summary_fields_is_that_of_the_summary() -> None:
    assert list(table("logs", "The summary")) != []
    assert table("logs", "The summary").keys() == {field.name for field in fields(RunSummary)}


def test_the_table_of_scorers_is_that_of_the_models() -> None:
    rows = table("scorers", "Kinds")
    assert rows.keys() == {*MODELS, *JUDGES}
    common = set(table("scorers", "Fields of all scorers"))
    for kind, model in MODELS.items():
        own = {field.alias or name for name, field in model.model_fields.items()} - common
        assert names(rows[kind][0]) == own, kind


def test_the_table_of_judges_is_that_of_the_models() -> None:
    rows = table("judges", "Kinds")
    both = JudgeScorer.model_fields.keys() - {"name"}
    assert {name for name, cells in rows.items() if cells[0] == "both"} == both
    for kind, model in JUDGES.items():
        own = model.model_fields.keys() - both - {"name", "kind"}
        assert {name for name, cells in rows.items() if cells[0] == f"`{kind}`"} == own


def test_the_table_of_faults_is_that_of_the_demo_server() -> None:
    assert list(table("demo", "Faults")) == list(FAULTS)
    batch_faults = table("demo-batches", "Faults")
    assert list(batch_faults) == list(BATCH_FAULTS)
    for name, (value, does) in batch_faults.items():
        fault = BATCH_FAULTS[name]
        assert does == fault.does
        told = re.fullmatch(r"(?:(?P<kind>\w+)(?: \((?P<default>[\d.]+)\))?)?", value)
        assert told is not None, name
        assert bool(told["kind"]) is (fault.kind is not FaultKind.FLAG), name
        assert not told["default"] or float(told["default"]) == fault.default, name
    assert tuple(table("demo-batches", "Dialects")) == DIALECTS


def test_the_table_of_providers_is_that_of_the_profiles() -> None:
    rows = _provider_rows()
    assert list(rows) == list(PROFILES)
    for name, (key, address) in rows.items():
        assert key == (PROFILES[name].api_key_env or ""), name
        assert address == (PROFILES[name].base_url or address), name


def _provider_rows() -> dict[str, tuple[str, str]]:
    text = (GUIDE / "providers.md").read_text(encoding="utf-8").partition("\n## ")[0]
    found = re.findall(r"^\| `(\w+)` \| (?:`(\w+)`)? ?\| (?:`([^`]+)`|.*) \|$", text, re.MULTILINE)
    return {name: (key, address) for name, key, address in found}


def test_the_table_of_kinds_of_failure_is_closed() -> None:
    assert list(table("errors", "A row fails")) == list(ErrorKind)
    assert names(table("resume", "Failed rows")["transient"][0]) == set(TRANSIENT_KINDS)


def test_the_table_of_exit_codes_is_that_of_the_command_line() -> None:
    epilog = str(cli.epilog)
    told = {code for part in re.findall(r"(?:^|· |: )([\d/]+) ", epilog.replace("\n", " ")) for code in part.split("/")}
    assert set(map(str, _exit_codes())) == told
    assert _exit_codes() == sorted(_exit_codes())


def _exit_codes() -> list[int]:
    text = (GUIDE / "exit-codes.md").read_text(encoding="utf-8").partition("\n## ")[0]
    return [int(code) for code in re.findall(r"^\| `(\d+)` \|", text, re.MULTILINE)]


def test_the_list_of_filters_is_that_of_the_sandbox() -> None:
    text = (GUIDE / "templates.md").read_text(encoding="utf-8")
    listed = names(text.partition("\n## Filters\n")[2].partition("\n## ")[0].partition("Filters whose")[0])
    assert listed == {name for name in Environment().filters if not name.startswith("__")}


def _options(command: click.Command) -> set[str]:
    return {
        option
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for option in parameter.opts
        if option.startswith("--")
    }


def _sections() -> Mapping[str, str]:
    text = (GUIDE / "commands.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^## ([a-z, -]+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))


def test_every_command_and_option_is_in_the_page_of_commands() -> None:
    sections = dict(_sections())
    shared = sections.pop("rows, fields and budgets")
    # One that is hidden is for processes that batchchat starts itself.
    commands = {name: command for name, command in cli.commands.items() if not command.hidden}
    assert list(sections)[:2] == list(commands)[:2]
    assert sections.keys() == commands.keys()
    for name, command in commands.items():
        told = set(
            re.findall(r"`(--[a-z-]+)", sections[name] + shared * ("#rows-fields-and-budgets" in sections[name]))
        )
        told |= set(re.findall(r"`batchchat guide (--[a-z-]+)", sections[name]))
        assert told == _options(command), name


# --- schemas for editors


def _yaml_files() -> list[tuple[str, Any]]:
    found = [(path.name, read_yaml(path.read_text(encoding="utf-8"))) for path in (ROOT / "jobs").glob("*.yaml")]
    for path in ALL:
        found += [(str(block), read_yaml(block.text)) for block in blocks(path) if block.language == "yaml"]
    return [(name, data) for name, data in found if isinstance(data, dict) and {"name", "output"} <= data.keys()]


def test_every_job_and_suite_that_we_show_fits_the_schema_of_editors() -> None:
    job, suite = jsonschema_rs.validator_for(job_schema()), jsonschema_rs.validator_for(suite_schema())
    shown = _yaml_files()
    assert len(shown) > 20
    for name, data in shown:
        errors = list((suite if "variants" in data else job).iter_errors(data))
        assert not errors, f"{name}: {[(list(error.instance_path), error.message) for error in errors]}"


GOOD: dict[str, Any] = {
    "name": "x", "input": "rows.jsonl", "output": "out", "provider": "demo", "model": "m", "messages": "m.yaml"
}  # fmt: skip


@cache
def _job_validator() -> jsonschema_rs.Draft202012Validator:
    """Make the schema once for all tests: it takes 50 ms."""
    validator = jsonschema_rs.validator_for(job_schema())
    assert isinstance(validator, jsonschema_rs.Draft202012Validator)
    return validator


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"deadline": "1h30m", "retry": {"outage": 600, "request_timeout": "45s"}}, True),
        ({"output": {"path": "out", "part_bytes": "64MB"}, "limits": None, "params": None}, True),
        (
            {
                "limits": {"concurrency": "1e2", "tokens_per_minute": "200_000"},
                "params": {"temperature": "{{ t }}", "extra_body": {"a": [1]}},
            },
            True,
        ),
        ({"provider": {"base_url": "http://127.0.0.1:8000/v1"}, "messages": {"from": "messages"}}, True),
        ({"input": {"path": "b.jsonl", "format": "openai-batch"}, "model": None, "messages": None}, True),
        ({"retry": {"failed": ["server", "timeout"]}, "response": {"truncated": {"retry_with_max_tokens": 9}}}, True),
        ({"model": None}, False),
        ({"messages": None}, False),
        ({"provider": "skaleway"}, False),
        ({"limts": {}}, False),
        ({"limits": {"concurrency": 0}}, False),
        ({"deadline": "soon"}, False),
        ({"input": {"file": "rows.jsonl"}}, False),
        ({"params": {"temprature": 1}}, False),
        ({"retry": {"failed": "some"}}, False),
    ],
)
def test_the_schema_of_a_job_takes_what_a_job_may_say(change: Mapping[str, Any], fits: bool) -> None:
    data = {
        name: value for name, value in {**GOOD, **change}.items() if value is not None or name in ("limits", "params")
    }
    assert _job_validator().is_valid(data) is fits


def test_the_schema_of_a_suite_knows_each_scorer_by_its_own_fields() -> None:
    validator = jsonschema_rs.validator_for(suite_schema())
    suite = {"name": "s", "job": "j.yaml", "variants": {"matrix": {"model": ["a", "b"]}}, "output": "out"}
    good = [
        {"name": "a", "kind": "exact", "expected": "label"},
        {"name": "b", "python": "my:function"},
        {"name": "c", "kind": "judge", "rubric": "Is it good?", "points": [1, 5], "model": "m"},
        {"name": "d", "kind": "schema", "schema": {"type": "object"}},
    ]
    assert validator.is_valid({**suite, "scorers": good})
    for bad in (
        {"name": "a"},
        {"name": "a", "kind": "exakt", "expected": "x"},
        {"name": "a", "kind": "latency", "expected": "x"},
    ):
        assert not validator.is_valid({**suite, "scorers": [bad]}), bad


def test_fields_in_the_schema_have_the_words_of_the_guide() -> None:
    done = RUNNER.invoke(cli, ["schema"])
    assert done.exit_code == 0
    schema = json.loads(done.output)
    assert schema["properties"]["name"]["description"] == "the name of the job; an output belongs to one name"
    limit = schema["$defs"]["JobLimitFields"]["properties"]["concurrency"]
    assert limit["description"] == "never more requests at the same time"
    assert "`" not in done.output
    assert '"ge"' not in done.output


def test_init_writes_the_schema_that_the_first_line_of_its_job_names(tmp_path: Path) -> None:
    for _ in range(2):
        done = RUNNER.invoke(cli, ["init", "--force", str(tmp_path / "sub" / "my.yaml")])
        assert done.exit_code == 0
    text = (tmp_path / "sub" / "my.yaml").read_text(encoding="utf-8")
    found = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert found is not None
    schema = json.loads((tmp_path / "sub" / found[1]).read_text(encoding="utf-8"))
    assert schema == job_schema()
    assert jsonschema_rs.validator_for(schema).is_valid(read_yaml(text))
    assert found[1] in (GUIDE / "editors.md").read_text(encoding="utf-8")
