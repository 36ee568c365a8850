"""The quality of labels from the user's side: confidence, votes, agreement, calibration."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from batchchat.cli import cli
from batchchat.demo import DemoOptions, DemoServer
from batchchat.demo.batches.options import BatchOptions
from batchchat.errors import JobError
from batchchat.job import Job, load_job
from batchchat.labelling.reviews import Review, line_of
from batchchat.planning import plan_job
from batchchat.runner.preparation import prepare
from batchchat.store import write_review_lines
from tests.integration.jobs import ROOT, make_job, query, run, write_rows

LABELS = ["billing", "bug", "feature_request", "account", "shipping", "other"]
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["label", "urgent", "confidence"],
    "properties": {
        "label": {"enum": LABELS},
        "urgent": {"type": "boolean", "description": "urgent, immediately"},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
    },
}
MESSAGES = [
    {"role": "system", "content": f"Sort the ticket. Answer in JSON. Labels: {', '.join(LABELS)}"},
    {"role": "user", "content": "{{ subject }}\n{{ body }}"},
]
ROWS = [json.loads(line) for line in (ROOT / "sample_data" / "labelled-tickets.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def demo() -> Iterator[DemoServer]:
    with DemoServer(DemoOptions(latency_s=0, batch=BatchOptions(seconds=0.1))) as server:
        yield server


def labelling(folder: Path, demo: DemoServer, measured: dict[str, Any], **fields: Any) -> Job:
    if not (folder / "rows.jsonl").exists():
        write_rows(folder / "rows.jsonl", ROWS)
    return make_job(
        folder,
        demo.base_url,
        **{
            "input": {"path": str(folder / "rows.jsonl"), "key": "ticket_id"},
            "model": "demo-small",
            "messages": MESSAGES,
            "response": {"schema": SCHEMA, **measured},
            "params": {"temperature": 0, "max_tokens": 80},
            **fields,
        },
    )


def command(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def refused(*words: str | Path) -> str:
    """What a command says that ends with exit code 2."""
    found = command(*words)
    error = found.exception
    assert getattr(error, "exit_code", found.exit_code) == 2, found.output
    return f"{found.output}\n{error}\n{getattr(error, 'remedy', '')}"


# --- confidence


@pytest.mark.parametrize("engine", ["local", {"kind": "batch", "poll": "0.05s"}], ids=["local", "batch"])
def test_log_probabilities_become_a_column(tmp_path: Path, demo: DemoServer, engine: Any) -> None:
    job = labelling(tmp_path, demo, {"confidence": "logprobs"}, engine=engine)
    assert run(job).exit_code == 0
    found = query(
        tmp_path,
        "select confidence, confidence_detail.method, confidence_detail.reason, confidence_detail.fields from data",
    )
    assert len(found) == len(ROWS)
    assert {method for _, method, _, _ in found} == {"logprobs"}
    assert {reason for _, _, reason, _ in found} == {None}
    for least, _, _, fields in found:
        values = {one["field"]: one["confidence"] for one in fields}
        assert values.keys() == {"label", "urgent"}
        assert least == min(values.values())
        assert 0.49 < values["label"] <= 1
    # Calibrated by the rule of the guide: within what 140 rows can show.
    ((sure, right),) = query(tmp_path, "select avg(confidence), avg((label = parsed.label)::int) from data")
    assert abs(sure - right) < 0.08
    # The request asks for them, so they are part of its identity.
    assert plan_job(job).new == 0
    plain = labelling(tmp_path, demo, {}, engine=engine)
    assert plan_job(plain).done == 0


def test_what_the_request_asks_for(tmp_path: Path, demo: DemoServer) -> None:
    def body(response: dict[str, Any], **fields: Any) -> dict[str, Any]:
        job = labelling(tmp_path, demo, response, **fields)
        found: dict[str, Any] = json.loads(prepare(job).template.render(ROWS[0]).body)
        return found

    asked = body({"confidence": "logprobs"})
    assert (asked["logprobs"], asked["top_logprobs"]) == (True, 5)
    assert body({"confidence": "logprobs"}, params={"top_logprobs": 2, "logprobs": True})["top_logprobs"] == 2
    assert "logprobs" not in body({"confidence": {"field": "confidence"}})
    # Scaleway has log probabilities, and not those of other tokens.
    there = body({"confidence": "logprobs"}, provider="scaleway", model="llama-3.3-70b-instruct")
    assert there["logprobs"] is True
    assert "top_logprobs" not in there


def test_what_the_model_says_of_itself(tmp_path: Path, demo: DemoServer) -> None:
    assert run(labelling(tmp_path, demo, {"confidence": {"field": "confidence"}}), limit=20).exit_code == 0
    found = query(tmp_path, "select confidence = parsed.confidence, confidence_detail.method from data")
    assert set(found) == {(True, "field")}


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"response": {"confidence": "logprobs"}}, "response.confidence", "there is none"),
        ({"response": {"schema": {"properties": {"a": {"type": "string"}}}, "confidence": "logprobs"}},
         "response.confidence", "the schema has none"),
        ({"response": {"schema": SCHEMA, "confidence": {"field": "confidnce"}}},
         "response.confidence.field", "did you mean 'confidence'"),
        ({"response": {"schema": SCHEMA, "confidence": {"field": "label"}}},
         "response.confidence.field", "is no number"),
        ({"response": {"schema": SCHEMA, "confidence": "samples"}}, "response.confidence", "one sample"),
        ({"response": {"schema": SCHEMA, "confidence": "always"}}, "response.confidence", "must be logprobs"),
        ({"response": {"schema": SCHEMA, "confidence": {"fields": "x"}}},
         "response.confidence", "did you mean 'field'"),
        ({"response": {"schema": SCHEMA, "confidence": "logprobs"}, "params": {"logprobs": False}},
         "params.logprobs", "is false"),
        ({"response": {"schema": SCHEMA, "confidence": "logprobs"}, "provider": "mistral"},
         "response.confidence", "does not give them"),
    ],
)  # fmt: skip
def test_a_confidence_that_cannot_be_measured(
    tmp_path: Path, demo: DemoServer, fields: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(JobError) as error:
        plan_job(labelling(tmp_path, demo, {}, **fields))
    assert str(error.value.field).startswith(field.rpartition(".")[0])
    assert words in error.value.message
    assert error.value.remedy or "must be logprobs" in words or "did you mean 'field'" in words


# --- votes


def test_the_vote_of_samples(tmp_path: Path, demo: DemoServer) -> None:
    job = labelling(
        tmp_path,
        demo,
        {"confidence": "samples"},
        samples=4,
        params={"temperature": 1, "seed": "{{ sample_index }}", "max_tokens": 80},
    )
    rows = ROWS[:40]
    assert run(job, limit=40).exit_code == 0
    reasons = query(tmp_path, "select distinct confidence, confidence_detail.reason from data")
    assert len(reasons) == 1
    assert reasons[0][0] is None
    assert "--vote" in reasons[0][1]
    target = tmp_path / "votes.jsonl"
    assert command("export", tmp_path / "out", "--vote", "-o", target).exit_code == 0
    votes = [json.loads(line) for line in target.read_text().splitlines()]
    assert [vote["key"] for vote in votes] == [row["ticket_id"] for row in rows]
    given = dict(query(tmp_path, "select key, list(parsed.label order by sample_index) from data group by 1"))
    for vote in votes:
        labels = given[vote["key"]]
        most = max(labels.count(label) for label in labels)
        assert labels.count(vote["vote"]["label"]) == most
        assert vote["vote_share"] <= most / 4
        tied = len({label for label in labels if labels.count(label) == most}) > 1
        assert ("label" in vote["vote_ties"]) == tied
        assert vote["samples"] == 4
    assert any(vote["vote_ties"] for vote in votes)
    chosen = tmp_path / "votes.csv"
    words: list[str | Path] = ["--vote", "-o", chosen, "--columns", "ticket_id,vote.label,vote_share"]
    assert command("export", tmp_path / "out", *words).exit_code == 0
    with chosen.open(newline="") as file:
        assert next(csv.reader(file)) == ["ticket_id", "vote.label", "vote_share"]
    assert "has no votes" in refused(
        "export", tmp_path / "out", "--vote", "-o", tmp_path / "x.jsonl", "--format", "openai-batch"
    )
    told = command("agreement", tmp_path / "out")
    assert "4 samples on 40 rows" in told.output
    against = json.loads(command("agreement", tmp_path / "out", "--against", "label", "--json").output)
    # The vote's share is the confidence.
    assert against["fields"][0]["check"]["n"] == 40


def test_a_vote_without_a_schema_compares_whole_answers(tmp_path: Path, demo: DemoServer) -> None:
    job = labelling(tmp_path, demo, {}, response={}, samples=2, params={"temperature": 1, "seed": "{{ sample_index }}"})
    assert run(job, limit=10).exit_code == 0
    target = tmp_path / "votes.parquet"
    assert command("export", tmp_path / "out", "--vote", "-o", target).exit_code == 0
    found = query(tmp_path, f"select count(*), max(samples) from '{target}'")
    assert found == [(10, 2)]


# --- agreement


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, demo: DemoServer) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    assert run(labelling(folder, demo, {"confidence": "logprobs"})).exit_code == 0
    better = labelling(folder, demo, {}, model="demo-large", output=str(folder / "large"))
    assert run(better).exit_code == 0
    return folder


def test_agreement_with_a_column(labelled: Path) -> None:
    found = command("agreement", labelled / "out", "--against", "label")
    assert found.exit_code == 0, found.output
    for words in ("Cohen's kappa", "macro-F1", "Krippendorff's alpha", "0.9-1.0", "expected calibration error"):
        assert words in found.output
    data = json.loads(command("agreement", labelled / "out", "--against", "label", "--json").output)
    (one,) = data["fields"]
    ((right,),) = query(labelled, "select avg((label = parsed.label)::int) from data")
    assert one["measures"]["accuracy"]["value"] == pytest.approx(right)
    assert one["measures"]["accuracy"]["low"] < right < one["measures"]["accuracy"]["high"]
    assert one["field"] == "label"
    assert sum(map(sum, one["measures"]["confusion"])) == pytest.approx(len(ROWS))
    unsure = json.loads(command("agreement", labelled / "out", "--against", "label", "--below", "0.8", "--json").output)
    assert unsure["rows"] < data["rows"]
    assert unsure["fields"][0]["measures"]["accuracy"]["value"] < right


def test_agreement_of_parts_of_the_rows(labelled: Path) -> None:
    words = ("agreement", labelled / "out", "--against", "label", "--by", "label")
    found = command(*words)
    assert found.exit_code == 0, found.output
    assert "group" in found.output
    (one,) = json.loads(command(*words, "--json").output)["fields"]
    sql = "select label, count(*), avg((label = parsed.label)::int) from data group by 1 order by 2 desc, 1"
    told = [(group["value"], group["measures"]["n"], group["measures"]["accuracy"]["value"]) for group in one["groups"]]
    assert told == [(label, n, pytest.approx(right)) for label, n, right in query(labelled, sql)]
    against = ("agreement", labelled / "out", "--against", labelled / "large", "--by", "label", "--json")
    two = json.loads(command(*against).output)["fields"]
    assert [len(field["groups"]) for field in two] == [len(told)] * 2


def test_agreement_of_two_models(labelled: Path) -> None:
    data = json.loads(command("agreement", labelled / "out", "--against", labelled / "large", "--json").output)
    assert {one["field"] for one in data["fields"]} == {"label", "urgent"}
    label = next(one for one in data["fields"] if one["field"] == "label")
    assert label["left_out"] == 0
    assert label["check"] is None
    assert 0.6 < label["measures"]["kappa"]["value"] < 1


@pytest.mark.thorough
def test_agreement_with_people_and_among_them(tmp_path: Path, demo: DemoServer) -> None:
    assert run(labelling(tmp_path, demo, {"confidence": "logprobs"})).exit_code == 0
    rows = query(tmp_path, "select custom_id, key, row_index, label, confidence from data order by row_index")
    reviews = []
    for custom_id, key, row_index, label, sure in rows:
        # The unsure rows were all chosen, one of ten of the others.
        chosen = sure < 0.7 or row_index % 10 == 0
        for number, reviewer in enumerate(("ann", "bo", "cy") if chosen else ()):
            said = "other" if (row_index + number) % 12 == 0 else label
            chance = 1.0 if sure < 0.7 else 0.1
            at = f"2026-01-0{number + 1}T00:00:00+00:00"
            reviews.append(Review(custom_id, row_index, {"label": said}, reviewer, at, key, chance))
    write_review_lines(tmp_path / "out", "first.jsonl", map(line_of, reviews))
    data = json.loads(command("agreement", tmp_path / "out", "--json").output)
    (model,) = data["fields"]
    assert (model["expected"], model["weighted"]) == ("people", True)
    # Weighted, the answers look better than the unsure rows alone make them look.
    ((unsure,),) = query(tmp_path, "select avg((label = parsed.label)::int) from data where confidence < 0.7")
    assert model["measures"]["accuracy"]["value"] > unsure
    assert model["measures"]["effective_n"] < model["measures"]["n"]
    (people,) = data["raters"]
    assert (people["among"], people["raters"], len(people["pairs"])) == ("people", 3, 3)
    assert 0.7 < people["alpha"]["value"] < 1
    told = command("agreement", tmp_path / "out").output
    assert "3 people" in told
    assert "kappa of ann, bo" in told
    page = tmp_path / "page.html"
    assert command("report", tmp_path / "out", "-o", page).exit_code == 0
    assert "the model and people" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "nothing to compare"),
        (("--against", "lable"), "did you mean 'label'"),
        (("--against", "key"), "no input column 'key'"),
        (("--against", "label", "--field", "label", "--by", "labl"), "no input column 'labl' (did you mean 'label'?)"),
        (("--against", "label", "--field", "label", "--by", "ticket_id"), "which is no set of groups"),
        (("--by", "label"), "--by label: there is nothing that the answers of"),
        (("--against", "input_extra", "--field", "label"), "empty in every row"),
        (("--against", "body"), "several labels"),
        (("--against", "label", "--field", "labl"), "no field 'labl'"),
        (("--against", "label", "--field", "label", "--level", "interval"), "no number"),
    ],
)
def test_agreement_with_what_is_not_there(labelled: Path, words: tuple[str, ...], told: str) -> None:
    assert told in refused("agreement", labelled / "out", *words)


def test_an_output_without_confidence_has_none_below(labelled: Path) -> None:
    assert "have no confidence" in refused("agreement", labelled / "large", "--against", "label", "--below", "0.5")


# --- calibrate


def _job_file(folder: Path, demo: DemoServer, **response: Any) -> Path:
    job = labelling(folder, demo, response)
    path = folder / "job.yaml"
    path.write_text(json.dumps(job.model_dump(mode="json", exclude_unset=True, by_alias=True)))
    return path


def test_calibrate_finds_a_threshold_and_asks_nothing_twice(tmp_path: Path, demo: DemoServer) -> None:
    path = _job_file(tmp_path, demo, confidence="logprobs")
    words: list[str | Path] = [
        "calibrate",
        path,
        "--expected",
        "label",
        "--large",
        "demo-large",
        "--target",
        "0.8",
        "-q",
    ]
    found = command(*words)
    assert found.exit_code == 0, found.output
    told = " ".join(found.output.split())
    assert "accept: {confidence:" in told
    assert "go on to demo-large" in told
    before = demo.stats().requests
    data = json.loads(command(*words, "--json").output)
    assert demo.stats().requests == before
    chosen = data["promise"]["chosen"]
    assert data["rows"] == chosen["n"] == len(ROWS)
    assert data["promise"]["bound"] >= 0.8
    assert 0 < chosen["escalated"] < 1
    small, large, both = data["small"], data["large"], data["cost_per_1000"]
    assert small["cost_per_1000"] < both < large["cost_per_1000"]
    assert small["accuracy"]["value"] < large["accuracy"]["value"]
    # A target that cannot be reached is a gate that fails, and says so.
    strict = command(*words[:-2], "0.999", "-q")
    assert strict.exit_code == 5
    assert "No threshold reaches the target" in strict.output


@pytest.mark.thorough
def test_calibrate_takes_what_people_say_as_right(tmp_path: Path, demo: DemoServer) -> None:
    path = _job_file(tmp_path, demo, confidence="logprobs")
    assert run(load_job(path)).exit_code == 0
    rows = query(tmp_path, "select custom_id, key, row_index, label, confidence from data order by row_index")
    reviews = []
    for custom_id, key, row_index, label, sure in rows:
        # The unsure rows were all chosen, and one of two of the others.
        if sure < 0.8 or row_index % 2 == 0:
            chance = 1.0 if sure < 0.8 else 0.5
            reviews.append(
                Review(custom_id, row_index, {"label": label}, "ann", "2026-01-01T00:00:00+00:00", key, chance)
            )
            if row_index == reviews[0].row_index:  # people are divided on it
                reviews.append(replace(reviews[-1], reviewer="bo", values={"label": "other"}))
    write_review_lines(tmp_path / "out", "form.jsonl", map(line_of, reviews))
    words: list[str | Path] = ["calibrate", path, "--reviewed", tmp_path / "out", "--field", "label"]
    words += ["--large", "demo-large", "--target", "0.6", "-q", "--json"]
    before = demo.stats().requests
    found = command(*words)
    assert found.exit_code == 0, found.output
    data = json.loads(found.output)
    unsure = sum(review.probability == 1 for review in reviews if review.reviewer == "ann")
    others = len(reviews) - 1 - unsure
    # All rows that had the least chance count, and about half of those that were chosen for sure.
    assert data["rows"] + data["left_out"] == unsure + others
    assert others - 1 <= data["rows"] < others + 0.8 * unsure
    assert demo.stats().requests - before == 2 * data["rows"]
    assert data["expected"] == f"people's reviews of {tmp_path / 'out'}"
    # The same rows are kept each time: nothing is asked again.
    assert json.loads(command(*words).output) == data
    assert demo.stats().requests - before == 2 * data["rows"]
    assert "Give one of --expected" in refused(*words, "--expected", "label")
    assert "no reviewed row" in refused(*words[:3], tmp_path / "out.calibrate" / "small", *words[4:])


@pytest.mark.parametrize(
    ("response", "words", "told"),
    [
        ({}, ("--expected", "label", "--large", "demo-large"), "a threshold needs it"),
        ({"confidence": "logprobs"}, ("--large", "demo-large"), "Give one of --expected COLUMN and --reviewed DIR"),
        ({"confidence": "logprobs"}, ("--expected", "gold", "--large", "demo-large"), "no column 'gold'"),
        ({"confidence": "logprobs"}, ("--expected", "nothing", "--large", "demo-large"), "empty in every row"),
        ({"confidence": "logprobs"}, ("--expected", "label"), "no second model"),
        ({"confidence": "logprobs"}, ("--expected", "label", "--large", "demo-small"), "both models are"),
        ({"confidence": "logprobs"}, ("--expected", "label", "--large", "x", "--target", "1.5"), "--target"),
    ],
)
def test_calibrate_refuses_before_anything_is_sent(
    tmp_path: Path, demo: DemoServer, response: dict[str, Any], words: tuple[str, ...], told: str
) -> None:
    write_rows(tmp_path / "rows.jsonl", [{**row, "nothing": None} for row in ROWS[:5]])
    path = _job_file(tmp_path, demo, **response)
    before = demo.stats().requests
    assert told in refused("calibrate", path, "--target", "0.9", *words)
    assert demo.stats().requests == before
    assert not (tmp_path / "out.calibrate").exists()
