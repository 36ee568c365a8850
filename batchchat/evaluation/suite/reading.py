"""Reading a suite file: its fields, its scorers, its variants and its judges, each with the place of an error."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from batchchat.addresses import is_url
from batchchat.errors import JobError, UsageError
from batchchat.evaluation.scorers.answer_scorers import MODELS, model_of, read_one
from batchchat.evaluation.scorers.judging import JUDGES, Judge, JudgeSettings, Pairwise, judge_job
from batchchat.evaluation.scorers.record_scorers import ScorerFunction, scorer_fields
from batchchat.evaluation.scorers.scorer import Scorer
from batchchat.evaluation.statistics.intervals import SEED
from batchchat.evaluation.statistics.sequential import LOOKS
from batchchat.evaluation.suite.suite import JudgeTask, Score, Suite, Until, Variant
from batchchat.evaluation.suite.variants import VariantText, read_variants
from batchchat.job import FieldChange, Job, load_job
from batchchat.job.origin import FieldOrigin, FieldPlace, combined, job_error, origin_of
from batchchat.job.reading import Draft, absolute_path, nearest_file, options_of, read_override
from batchchat.job.sections import BudgetCaps
from batchchat.job.syntax import parse_yaml, read_job_text
from batchchat.job.values import Duration, Switch, Whole, nearest
from batchchat.job.wording import Grammar, validation_errors

_AnyScorer = Scorer | Judge | Pairwise
_KINDS: Mapping[str, type[Any]] = {**MODELS, **JUDGES}
_SHARED = ("name", "samples", "budget", "deadline")
_REMEDY = "jobs/eval-tickets.yaml of the project is a commented suite to start from."


class SuiteFields(BaseModel):
    """What stands in a suite file. `variants` and `scorers` are read by themselves: they know more than types."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_max_length=10_000_000, allow_inf_nan=False)

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    job: str = Field(min_length=1)
    variants: list[Any] | dict[str, Any]
    scorers: list[Any] = Field(min_length=1)
    output: str = Field(min_length=1)
    samples: Whole | None = Field(None, ge=1, le=1_000)
    judge: JudgeSettings | None = None
    failed: Literal["wrong", "skip"] | None = None
    budget: BudgetCaps | None = None
    deadline: Duration | None = Field(None, gt=0)
    seed: Whole = Field(SEED, ge=0, lt=2**63)
    cluster: str | None = Field(None, min_length=1)
    until: Literal["settled"] | None = None
    margin: float | None = Field(None, gt=0)
    looks: Whole | None = Field(None, ge=2, le=50)
    decide_by: str | None = Field(None, min_length=1)
    allow_fallback: Switch = False

    @field_validator("output")
    @classmethod
    def _folder(cls, value: str) -> str:
        if is_url(value):
            raise ValueError("must be a folder of this machine: an evaluation keeps tables and pages there")
        return value


_GRAMMAR = Grammar(
    {(): SuiteFields, ("budget",): BudgetCaps, ("judge",): JudgeSettings},
    examples={
        ("name",): "name: ticket-prompts",
        ("job",): "job: label-tickets.yaml",
        ("variants",): "variants: {matrix: {messages: [short.yaml, long.yaml]}}",
        ("scorers",): "scorers: [{name: accuracy, kind: exact, expected: label}]",
        ("output",): "output: out/ticket-prompts",
    },
    patterns={("name",): "must begin with a letter or digit and go on with up to 99 letters, digits, dots, _ or -"},
    hints={
        **dict.fromkeys(
            ("input", "provider", "model", "messages", "params", "limits", "retry", "prices"),
            "it belongs into the base job, or into a variant",
        ),
        "matrix": "it belongs into `variants`",
    },
)


def _no_fallback(job: Job) -> JobError:
    """Return why a job with a fallback is not evaluated as it is."""
    return job.error(
        "another model would answer some rows, and the evaluation could not tell its answers from the job's own",
        "fallback",
        remedy="Say `allow_fallback: true` in the suite if that is meant, or remove `fallback` by a job of its own.",
    )


def load_suite(
    path: str | Path,
    *,
    overrides: Sequence[str] = (),
    changes: Sequence[FieldChange] = (),
    input: str | None = None,
    output: str | None = None,
    scorers: Sequence[ScorerFunction | Mapping[str, Any]] = (),
) -> Suite:
    """Read and validate a suite file and its base job.

    `overrides` are `--set` texts, and `changes` go over them: a field of the suite, or else one of the base job, under
    what the variants change. `input` takes the place of the base job's input, `output` that of the suite's output.
    `scorers` come behind those of the file, which may have none then: functions, named as they are in Python, or
    mappings as in a suite file, with a function in `python` if one likes.

    Raises UsageError where there is no such file, JobError for what a suite cannot be.
    """
    file = Path(path)
    document = parse_yaml(read_job_text(file, nearest_file(file)), file)
    if not isinstance(document.data, dict):
        what = "is empty" if document.data is None else "is not a mapping of fields"
        raise JobError(what, file=file, remedy=_REMEDY)
    # The likeliest slip: `eval` on a job. A list of fields that a suite lacks would not help.
    if "job" not in document.data and "messages" in document.data:
        raise UsageError(
            f"{file} is a job, not a suite", remedy=f"Run it with `batchchat run {shlex.quote(str(file))}`."
        )
    reading = _Reading(Draft(document, file), file)
    reading.add_scorers(scorers)
    reading.apply([*map(read_override, overrides), *changes], output)
    reading.options = options_of(overrides, changes, input)
    if output is not None:
        reading.options += ("--output", str(Path(output).absolute()))
    return reading.suite(input)


class _Reading:
    """A suite on its way from the file to validation."""

    def __init__(self, draft: Draft, file: Path) -> None:
        self.draft = draft
        self.file = file
        self.base = file.absolute().parent
        self.job_changes: list[FieldChange] = []
        self.options: tuple[str, ...] = ()

    def add_scorers(self, given: Sequence[ScorerFunction | Mapping[str, Any]]) -> None:
        """Take the scorers of a program behind those of the file."""
        if not given:
            return
        data = self.draft.data
        own = data.get("scorers") or []
        # A value of another form is left for the validation, which names its line.
        if isinstance(own, list):
            data["scorers"] = [*own, *map(scorer_fields, given)]
            # An error must not name a line of the file for what the program gave.
            for at in range(len(own), len(data["scorers"])):
                self.draft.origins["scorers", at] = FieldOrigin(option="scorers=")

    def apply(self, changes: Sequence[FieldChange], output: str | None) -> None:
        """Make paths absolute, and take what the command line says of the suite itself."""
        data = self.draft.data
        # Paths in the file count from its folder; those of options, set below, from the working directory.
        self._absolute(self.base)
        for change in changes:
            if change.path.split(".")[0] in SuiteFields.model_fields:
                self.draft.change(change)
            else:
                self.job_changes.append(change)
        if output is not None:
            self.draft.set_path("output", output, FieldOrigin(option="--output"), Path.cwd())
        # A job may have `output: {path: …}`: the same form is taken here.
        if isinstance(data.get("output"), dict) and set(data["output"]) == {"path"}:
            data["output"] = data["output"]["path"]
        self._absolute(Path.cwd())

    def _absolute(self, base: Path) -> None:
        data = self.draft.data
        for name in ("job", "output"):
            if isinstance(data.get(name), str) and data[name]:
                data[name] = absolute_path(base, data[name])

    def fail(self, message: str, *place: Hashable, remedy: str | None = None) -> JobError:
        """Return the error of one field."""
        return job_error(message, place, self.draft.origins, self.file, remedy)

    def suite(self, input: str | None) -> Suite:
        """Validate the suite, then its scorers and variants, each as far as the rest allows."""
        draft = self.draft
        errors = list(draft.faults)
        try:
            fields = SuiteFields.model_validate(draft.data)
        except ValidationError as error:
            raise combined(
                [*errors, *validation_errors(error, draft.data, draft.origins, self.file, grammar=_GRAMMAR)]
            ) from None
        scorers: list[tuple[FieldPlace, _AnyScorer]] = []
        variants: tuple[Variant, ...] = ()
        judges: list[JudgeTask] = []
        # Scorers and variants are read each by itself, so that one run of the command names the errors of both.
        try:
            scorers = self._scorers(fields)
        except JobError as error:
            errors.append(error)
        try:
            texts = read_variants(fields.variants, ("variants",), self.fail)
            self._check_overrides(texts)
            variants = self._variants(texts, fields, input)
            judges = self._judges(scorers, variants, fields)
            errors += self._sample_errors(scorers, variants)
        except JobError as error:
            errors.append(error)
        if errors:
            raise combined(errors)
        suite = Suite(
            name=fields.name,
            file=self.file,
            output=Path(fields.output),
            variants=variants,
            scorers=tuple(scorer for _, scorer in scorers if isinstance(scorer, Scorer)),
            judges=tuple(judges),
            order=tuple(scorer.name for _, scorer in scorers),
            # One budget and one deadline hold for all variants, which cannot set their own.
            budget=variants[0].job.budget,
            deadline=variants[0].job.deadline,
            seed=fields.seed,
            origins=dict(draft.origins),
            cluster=fields.cluster,
        )
        return replace(suite, until=self._until(fields, suite.scores()))

    def _until(self, fields: SuiteFields, scores: Mapping[str, Score]) -> Until | None:
        """Return when to stop early. Raises JobError where a field has no use, or no score can decide."""
        if fields.until is None:
            for name in ("margin", "looks", "decide_by"):
                if getattr(fields, name) is not None:
                    remedy = "Add `until: settled`, or give `margin` to a scorer." if name == "margin" else None
                    told = "says when to stop early, and every row is asked"
                    raise self.fail(told, name, remedy=remedy or "Add `until: settled`.")
            return None
        # The tests of a look compare answers row by row, and need to know which difference is the better one.
        able = [name for name, score in scores.items() if score.of_rows and score.higher_is_better is not None]
        if not able:
            told = "needs a score with a value for each answer and a better direction, and there is none"
            raise self.fail(
                told, "until", remedy="Add a scorer such as {name: accuracy, kind: exact, expected: label}."
            )
        name = able[0] if fields.decide_by is None else fields.decide_by
        if name not in able:
            near = nearest(name, able)
            told = f"{name!r} is no score with a value for each answer and a better direction{near}"
            raise self.fail(told, "decide_by", remedy=f"There are: {', '.join(able)}.")
        margin = scores[name].margin if fields.margin is None else fields.margin
        return Until(name, margin, LOOKS if fields.looks is None else fields.looks)

    # --- scorers

    def _scorers(self, fields: SuiteFields) -> list[tuple[FieldPlace, _AnyScorer]]:
        made: list[tuple[FieldPlace, _AnyScorer]] = []
        errors: list[JobError] = []
        names: set[str] = set()
        for at, data in enumerate(fields.scorers):
            place: FieldPlace = ("scorers", at)
            try:
                scorer: _AnyScorer = read_one(
                    self._with_policy(data, fields.failed),
                    _KINDS,
                    base=self.base,
                    at=place,
                    origins=self.draft.origins,
                    file=self.file,
                )
            except JobError as error:
                errors.append(error)
                continue
            if scorer.name in names:
                errors.append(self.fail(f"two scorers are called {scorer.name!r}", *place, "name"))
            names.add(scorer.name)
            made.append((place, scorer))
        if errors:
            raise combined(errors)
        return made

    def _with_policy(self, data: Any, failed: str | None) -> Any:
        """A scorer's data with the suite's policy for failed rows, where it has none of its own."""
        if failed is None or not isinstance(data, dict) or "failed" in data:
            return data
        try:
            # What is wrong with its kind is told by `read_one`, with its line.
            model = model_of(data, _KINDS)
        except ValueError:
            return data
        return {**data, "failed": failed} if "failed" in model.model_fields else data

    def _judges(
        self, scorers: Sequence[tuple[FieldPlace, _AnyScorer]], variants: Sequence[Variant], fields: SuiteFields
    ) -> list[JudgeTask]:
        made: list[JudgeTask] = []
        errors: list[JobError] = []
        for place, scorer in scorers:
            # It looks at records alone, and asks no model.
            if isinstance(scorer, Scorer):
                continue
            try:
                self._check_pairs(scorer, place, variants)
                job = judge_job(
                    scorer,
                    fields.judge or JudgeSettings(),
                    variants[0].job,
                    suite=fields.name,
                    output=Path(fields.output),
                    folder=self.base,
                    place=place,
                    origins=self.draft.origins,
                    fail=self.fail,
                )
            except JobError as error:
                errors.append(error)
            else:
                made.append(JudgeTask(scorer, job.in_suite(self.file, self.options), place))
        if errors:
            raise combined(errors)
        return made

    def _sample_errors(
        self, scorers: Sequence[tuple[FieldPlace, _AnyScorer]], variants: Sequence[Variant]
    ) -> Iterator[JobError]:
        """Yield an error for each metric over samples of a score without yes and no, or of too few samples."""
        for place, scorer in scorers:
            for metric in () if isinstance(scorer, Pairwise) else scorer.sample_metrics:
                at = (*place, metric.kind)
                if not scorer.scale.yes_no:
                    yield self.fail(f"is for yes/no scores, and {scorer.name} is in {scorer.scale.unit}", *at)
                    continue
                job = variants[0].job
                if job.samples < metric.k:
                    told = f"needs {metric.k} samples of each row, and there are {job.samples}"
                    yield self.fail(told, *at, remedy=f"Set `samples: {metric.k}` or more.")

    def _check_pairs(self, scorer: Judge | Pairwise, place: FieldPlace, variants: Sequence[Variant]) -> None:
        if not isinstance(scorer, Pairwise):
            return
        names = [variant.name for variant in variants]
        if len(names) < 2:
            raise self.fail("compares variants, and there is one only", *place)
        if scorer.against is not None and scorer.against not in names:
            near = nearest(scorer.against, names)
            raise self.fail(f"no variant is called {scorer.against!r}{near}", *place, "against")

    # --- variants

    def _check_overrides(self, texts: Sequence[VariantText]) -> None:
        """Refuse a --set that no variant would feel."""
        for path in [change.path for change in self.job_changes]:
            if all(any(f"{path}.".startswith(f"{own}.") for own in variant.changes) for variant in texts):
                raise UsageError(
                    f"--set {path}: every variant sets it, so this would change nothing",
                    remedy="Change the variants in the suite file.",
                )

    def _variants(self, texts: Sequence[VariantText], fields: SuiteFields, input: str | None) -> tuple[Variant, ...]:
        file = Path(fields.job)
        if not file.is_file():
            near = difflib.get_close_matches(file.name, [entry.name for entry in _entries(file.parent)], n=1)
            hint = f" (did you mean {str(near[0])!r}?)" if near else ""
            raise self.fail(f"there is no job file {file}{hint}", "job", remedy="Paths are relative to the suite file.")
        made: list[Variant] = []
        errors: dict[str, JobError] = {}
        folders = _folders(Path(fields.output) / "variants", texts)
        for text, folder in zip(texts, folders, strict=True):
            try:
                job = load_job(
                    file,
                    changes=[*self.job_changes, *self._changes(text), *self._own(fields)],
                    input=input,
                    output=str(folder),
                )
            except JobError as error:
                # What is wrong in the base job is wrong in every variant, and told once.
                errors.setdefault(error.message, error)
            else:
                if job.fallback and not fields.allow_fallback:
                    refused = _no_fallback(job)
                    errors.setdefault(refused.message, refused)
                made.append(Variant(text.name, text.changes, folder.name, job.in_suite(self.file, self.options)))
        if errors:
            raise combined(list(errors.values()))
        # The input is the same for all: variants cannot set it.
        if made[0].job.input.path == "-":
            raise UsageError(
                "a suite cannot read standard input: every variant reads the rows anew",
                remedy="Save the rows to a file first.",
            )
        return tuple(made)

    def _changes(self, text: VariantText) -> list[FieldChange]:
        origins = self.draft.origins
        return [
            FieldChange(
                override.path,
                override.value,
                origin_of(origins, override.place, self.file),
                self.base,
                {
                    place[len(override.place) :]: origin
                    for place, origin in origins.items()
                    if len(place) > len(override.place) and place[: len(override.place)] == override.place
                },
            )
            for override in text.overrides
        ]

    def _own(self, fields: SuiteFields) -> list[FieldChange]:
        """What every variant has from the suite."""
        data = self.draft.data
        names = [name for name in _SHARED if name == "name" or getattr(fields, name) is not None]
        return [
            FieldChange(name, data[name], origin_of(self.draft.origins, (name,), self.file), self.base, {})
            for name in names
        ]


def _folders(base: Path, texts: Sequence[VariantText]) -> list[Path]:
    """The folder of each variant: its own, or the one that it had under another name."""
    names = {entry.name for entry in _entries(base)} if base.is_dir() else set()
    own = {text.folder for text in texts}
    found = []
    for text in texts:
        earlier = sorted(name for name in names - own if name.endswith(f"-{text.digest}"))
        # Several folders of the same changes: which one is meant cannot be told, and a new one is made.
        known = text.folder in names or len(earlier) != 1
        found.append(base / (text.folder if known else earlier[0]))
        names -= {found[-1].name}
    return found


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
