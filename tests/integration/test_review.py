"""People's reviews from end to end: forms, the page in a real browser, taking answers back."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

import batchchat
from batchchat.errors import UsageError
from batchchat.labelling.choice import Design
from batchchat.labelling.forms import write_form
from batchchat.labelling.page import IMAGE_BYTES
from batchchat.labelling.reviews import read_reviews
from batchchat.labelling.rows import review_form
from batchchat.labelling.taking import take_reviews, taken_text
from tests.integration.browser import Browser, Page
from tests.integration.jobs import make_job, write_rows
from tests.integration.test_report import HOSTILE, command
from tests.pictures import png

LABELS = ["billing", "bug", "other"]
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["label", "urgent", "order"],
    "properties": {
        "label": {"enum": LABELS},
        "urgent": {"type": "boolean"},
        "order": {"type": ["string", "null"]},
    },
}
TYPED: dict[str, Any] = {"response": {"schema": SCHEMA}}


def label(folder: Path, texts: Sequence[str], *, prompt: str = "Sort it.", **fields: Any) -> Path:
    """Run a labelling job over these texts; row n gets the label n modulo 3. Returns its output."""
    write_rows(folder / "rows.jsonl", ({"id": f"T-{n}", "text": text, "gold": "x"} for n, text in enumerate(texts)))

    def answer(request: httpx.Request) -> httpx.Response:
        content = json.loads(request.content)["messages"][-1]["content"]
        number = int(content.partition("\n")[0].removeprefix("T-"))
        told = {"label": LABELS[number % 3], "urgent": number % 2 == 0, "order": None}
        text = json.dumps(told) if "response" in fields else f"answer {number}"
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        return httpx.Response(200, json={"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 3}})

    messages = [{"role": "system", "content": prompt}, {"role": "user", "content": "{{ id }}\n{{ text }}"}]
    fields = {"input": {"path": str(folder / "rows.jsonl"), "key": "id"}, "messages": messages, **fields}
    job = make_job(folder, None, **fields)
    batchchat.run(job, transport=httpx.MockTransport(answer), environ={})
    return Path(job.output.path)


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled output of 30 rows. Tests that take reviews copy it."""
    return label(tmp_path_factory.mktemp("typed"), [f"ticket {n}" for n in range(30)], **TYPED)


@pytest.fixture
def out(typed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(typed, tmp_path / "out"))


def form(out: Path, target: Path, rows: int = 4, **options: Any) -> list[dict[str, Any]]:
    """Write a form; returns its lines, if it has any."""
    write_form(review_form(out, Design(rows, rows), **options), target)
    return [json.loads(line) for line in target.read_text().splitlines()] if target.suffix == ".jsonl" else []


def filled(target: Path, lines: Sequence[dict[str, Any]], **values: Any) -> Path:
    """Write lines of a form as a person gives them back."""
    target.write_text("".join(json.dumps({**line, **values}) + "\n" for line in lines))
    return target


# --- the page


def saved(page: Page, folder: Path) -> Path:
    """Save the page's answers, as a person does, and return the file."""

    async def act(driver: Any) -> Path:
        async with driver.expect_download() as waiting:
            await driver.keyboard.press("s")
        download = await waiting.value
        await download.save_as(folder / download.suggested_filename)
        return folder / str(download.suggested_filename)

    # Saving makes an address of its own, which is no request to anybody.
    found = page.do(act)
    page.problems[:] = [problem for problem in page.problems if "blob:" not in problem]
    return found


def test_a_page_is_used_by_keys_to_its_end(out: Path, tmp_path: Path, browser: Browser) -> None:
    target = tmp_path / "page.html"
    form(out, target, rows=3, only="label")
    with browser.open(target) as page:
        page.wait("html[data-ready]")
        assert page.text("#progress") == "0 of 3 reviewed"
        # The column that the prompt does not use, a gold label, is not shown.
        assert page.texts("#row dt") == ["id", "text"]
        model = page.text("button:has(.tag)").split()[1]
        page.press("Enter")
        assert page.text("#progress") == "1 of 3 reviewed"
        page.press("3")
        assert page.text("#progress") == "2 of 3 reviewed"
        page.press("u")
        assert page.text("#progress") == "1 of 3 reviewed"
        assert page.text("#place").startswith("2 of 3")
        page.press("s")
        assert "name" in page.text("#message")
        page.fill("#reviewer", "Ada L.")
        page.press("Escape", "2")
        # What was answered outlives the page.
        page.do(lambda driver: driver.reload())
        page.wait("html[data-ready]")
        assert page.text("#progress") == "2 of 3 reviewed"
        assert page.text("#place").startswith("3 of 3")
        page.press("n")
        page.do(lambda driver: driver.keyboard.type("not 1 sure"))
        page.press("Escape", "Enter")
        assert page.text("#progress") == "3 of 3 reviewed"
        assert "Every row" in page.text("#message")
        file = saved(page, tmp_path)
    assert file.name == "page-Ada-L.jsonl"
    taken = take_reviews(out, [file])
    assert (taken.new, taken.rows, taken.reviewers) == (3, 3, ("Ada L.",))
    first, second, third = (json.loads(line) for line in file.read_text().splitlines())
    assert first["values"] == {"label": model}
    assert second["values"] == {"label": "bug"}
    assert third["note"] == "not 1 sure"


def test_a_page_of_several_fields(out: Path, tmp_path: Path, browser: Browser) -> None:
    target = tmp_path / "page.html"
    form(out, target, rows=2)
    with browser.open(target, scheme="dark", width=420, height=800) as page:
        page.wait("html[data-ready]")
        assert page.evaluate("document.documentElement.scrollWidth") <= 420
        assert page.style("body", "backgroundColor") == "rgb(19, 21, 25)"
        assert page.texts("fieldset.marked legend") == ["label"]
        # A digit goes on to the next field, Enter to the next row.
        page.press("3", "2")
        assert page.texts("fieldset.marked legend") == ["order"]
        page.press("e")
        page.do(lambda driver: driver.keyboard.type("A-12"))
        page.press("Escape", "Enter", "Enter")
        assert page.text("#progress") == "2 of 2 reviewed"
        page.fill("#reviewer", "Bo")
        page.press("Escape")
        file = saved(page, tmp_path)
    first, second = (json.loads(line)["values"] for line in file.read_text().splitlines())
    assert first == {"label": "other", "urgent": False, "order": "A-12"}
    assert second["order"] is None
    assert take_reviews(out, [file]).new == 2


def test_texts_of_rows_cannot_act_on_the_page(tmp_path: Path, browser: Browser) -> None:
    out = label(tmp_path, HOSTILE)
    target = tmp_path / "page.html"
    form(out, target, rows=len(HOSTILE))
    with browser.open(target) as page:
        page.wait("html[data-ready]")
        shown = []
        for _ in HOSTILE:
            shown.append(page.evaluate("document.querySelectorAll('#row dd')[1].textContent"))
            page.press("ArrowRight")
        assert sorted(shown) == sorted(HOSTILE)
        assert page.evaluate("window.hacked") is None
        # The answer of a job without a schema is a text to edit.
        page.press("e")
        page.do(lambda driver: driver.keyboard.type("!"))
        page.do(lambda driver: driver.keyboard.press("Control+Enter"))
        page.fill("#reviewer", "Ada")
        page.press("Escape")
        file = saved(page, tmp_path)
    (answer,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert answer["values"]["completion"].endswith("!")
    assert take_reviews(out, [file]).new == 1


# --- other forms


def test_a_table_comes_back(out: Path, tmp_path: Path) -> None:
    target = tmp_path / "form.csv"
    form(out, target)
    with target.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0] |= {"accept": "yes", "reviewer": "Ada"}
    rows[1] |= {"review.label": "bug", "review.urgent": "TRUE", "reviewer": "Ada", "note": "=?"}
    with target.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter=";")
        table.writeheader()
        table.writerows(rows)
    taken = take_reviews(out, [target])
    assert (taken.reviews, taken.new, taken.empty) == (2, 2, 2)
    by_row = {review.row_index: review for review in read_reviews(out)}
    accepted, corrected = by_row[int(rows[0]["row_index"])], by_row[int(rows[1]["row_index"])]
    assert accepted.values == {
        "label": rows[0]["model.label"],
        "urgent": rows[0]["model.urgent"] == "true",
        "order": None,
    }
    assert corrected.values == {"label": "bug", "urgent": True}
    assert corrected.probability == pytest.approx(4 / 30)
    # A copy of the file has another time, and says nothing new.
    copy = shutil.copyfile(target, tmp_path / "copy.csv")
    os.utime(copy, (1, 1))
    assert take_reviews(out, [target, Path(copy)]).new == 0


def test_a_cell_is_no_formula(tmp_path: Path) -> None:
    out = label(tmp_path, ["=1+1", "@x", " -2", "plain"])
    form(out, tmp_path / "form.csv")
    with (tmp_path / "form.csv").open(encoding="utf-8-sig", newline="") as file:
        assert {row["row.text"] for row in csv.DictReader(file)} == {"'=1+1", "'@x", "' -2", "plain"}


def test_tasks_of_label_studio_come_back(out: Path, tmp_path: Path) -> None:
    target = tmp_path / "form.labelstudio.json"
    form(out, target)
    assert '<Choice value="billing"/>' in (tmp_path / "form.config.xml").read_text()
    tasks = json.loads(target.read_text())
    assert {region["from_name"] for region in tasks[0]["predictions"][0]["result"]} == {"label", "urgent"}
    people: list[dict[str, Any]] = [{"completed_by": {"email": "ada@example.org"}}, {"completed_by": 7}]
    for task, value in zip(tasks, ("bug", "bug", "other", "bug"), strict=True):
        region = {"from_name": "label", "to_name": "text", "type": "choices", "value": {"choices": [value]}}
        task["annotations"] = [
            {**who, "created_at": "2026-01-02T03:04:05Z", "was_cancelled": False, "result": [region]} for who in people
        ]
    tasks[0]["annotations"][1]["was_cancelled"] = True
    target.write_text(json.dumps(tasks))
    taken = take_reviews(out, [target])
    assert (taken.new, taken.rows, taken.reviewers) == (7, 4, ("7", "ada@example.org"))
    assert all(review.reviewed_at == "2026-01-02T03:04:05+00:00" for review in read_reviews(out))


def test_any_text_of_a_row_comes_back(tmp_path: Path) -> None:
    texts = [*HOSTILE, "long " * 60_000, 'quoted "so", and\r\nbroken']
    out = label(tmp_path, texts)
    lines = tmp_path / "form.jsonl"
    write_form(review_form(out, Design(len(texts), len(texts))), lines)
    told = [json.loads(line) for line in lines.read_text(encoding="utf-8").split("\n") if line]
    assert sorted(line["row"]["text"] for line in told) == sorted(texts)
    back = [{**line, "values": {"completion": line["row"]["text"]}, "reviewer": "Ada"} for line in told]
    lines.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in back), encoding="utf-8")
    assert take_reviews(out, [lines]).new == len(texts)
    assert sorted(review.values["completion"] for review in read_reviews(out)) == sorted(texts)
    table = tmp_path / "form.csv"
    write_form(review_form(out, Design(len(texts), 1), again=True), table)
    # Its cells are read, however long, and none of its lines is filled.
    with pytest.raises(UsageError, match="no line has an answer"):
        take_reviews(out, [table])


# --- taking


def test_people_who_do_not_agree(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = form(out, tmp_path / "form.jsonl", only="label")
    ada = filled(tmp_path / "ada.jsonl", lines, values={"label": "bug"}, reviewer="Ada")
    bo = filled(tmp_path / "bo.jsonl", lines, values={"label": "other"}, reviewer="Bo")
    assert command(monkeypatch, "review", out, "--take", ada, bo) == 0
    told = capfd.readouterr().out
    assert "8 new reviews taken; 4 rows reviewed in all, by Ada, Bo" in told
    assert "people do not agree about 4:" in told
    assert "label: bug (Ada), other (Bo)" in told
    assert command(monkeypatch, "review", out, "--take", ada, "--json") == 0
    answer = json.loads(capfd.readouterr().out)
    assert (answer["new"], len(answer["conflicts"])) == (0, 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"values": {"label": "nonsense"}}, 'bad.jsonl:2: label: "nonsense" is none of "billing"'),
        ({"values": {"urgent": "yes"}}, 'urgent: "yes" is none of true, false'),
        ({"values": {"size": 1}}, "'size' is no field of the answers"),
        ({"content": "0" * 32}, "has other content now"),
        ({"content": "0" * 32, "row_index": 77}, "row 77 is not in the output"),
        ({"job": "another"}, "is about the job 'another'"),
        ({"reviewer": ""}, "nobody is named"),
        ({"probability": 0}, "probability 0 is not above 0"),
        ({"reviewed_at": "soon"}, "is no time"),
        ({"accept": "perhaps"}, "neither yes nor no"),
        ({"values": None}, "no object `values`"),
    ],
)
def test_one_bad_line_keeps_all_out(typed: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    lines = form(typed, tmp_path / "form.jsonl")
    good = filled(tmp_path / "good.jsonl", lines, accept=True, reviewer="Ada")
    bad = [{**line, "accept": True, "reviewer": "Ada"} for line in lines]
    bad[1] = {**bad[1], **change}
    with pytest.raises(UsageError) as raised:
        take_reviews(typed, [good, filled(tmp_path / "bad.jsonl", bad)])
    assert said in str(raised.value)
    assert "bad.jsonl:2" in str(raised.value)
    assert raised.value.remedy
    assert read_reviews(typed) == []


@pytest.mark.parametrize("name", ["cut.jsonl", "cut.csv", "cut.json", "form.txt", "gone.jsonl"])
def test_a_file_that_is_half_there_changes_nothing(typed: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "cut.jsonl":
        filled(path, form(typed, tmp_path / "form.jsonl"), accept=True, reviewer="Ada")
    elif name == "cut.csv":
        form(typed, path)
    elif name == "cut.json":
        write_form(review_form(typed, Design(4, 4)), path, format="labelstudio")
    if path.exists():
        path.write_bytes(path.read_bytes()[:-40])
    elif name == "form.txt":
        path.write_text("hello")
    with pytest.raises(UsageError):
        take_reviews(typed, [path])
    assert read_reviews(typed) == []


def test_reviews_belong_to_the_content_of_rows(tmp_path: Path) -> None:
    texts = [f"ticket {n}" for n in range(6)]
    out = label(tmp_path, texts, **TYPED)
    lines = form(out, tmp_path / "form.jsonl", rows=6)
    take_reviews(out, [filled(tmp_path / "ada.jsonl", lines, accept=True, reviewer="Ada")])
    with pytest.raises(UsageError, match="no row to review"):
        review_form(out, Design(6, 6))
    assert len(review_form(out, Design(6, 6), again=True).rows) == 6
    # Another prompt keeps all reviews; another text of a row loses the row's own.
    texts[2] = "changed"
    label(tmp_path, texts, prompt="Sort it well.", **TYPED)
    left = review_form(out, Design(6, 6))
    assert [row.row_index for row in left.rows] == [2]
    assert left.rows[0].round == 2
    assert any("5 rows left out" in note for note in left.notes)


def test_a_later_round_keeps_estimates_right(out: Path, tmp_path: Path) -> None:
    for turn, rows in ((1, 6), (2, 8)):
        lines = form(out, tmp_path / f"{turn}.jsonl", rows=rows)
        assert {line["round"] for line in lines} == {turn}
        take_reviews(out, [filled(tmp_path / f"{turn}-back.jsonl", lines, accept=True, reviewer="Ada")])
    # The weights of all reviewed rows add up to all rows.
    assert sum(1 / (review.probability or 0) for review in read_reviews(out)) == pytest.approx(30)


def test_what_the_command_says(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "form.jsonl"
    assert command(monkeypatch, "review", out, "-o", target, "--rows", "6", "--stratify", "parsed.label") == 0
    told = capfd.readouterr().err
    assert "no row has a confidence" in told
    assert f"6 rows of 30 written to {target}: 6 at random" in told
    for arguments, said in (
        ((out,), "neither a form to write nor answers to take"),
        ((out, target), "--take FILE takes answers"),
        ((out, "-o", target), "exists already"),
        ((out, "-o", tmp_path / "x.txt"), ".labelstudio.json"),
        ((out, "-o", tmp_path / "x.csv", "--stratify", "parsed.lable"), "no field 'lable'"),
        ((out, "-o", tmp_path / "x.csv", "--field", "lable"), "did you mean 'label'"),
        ((out, "-o", tmp_path / "x.csv", "--rows", "5", "--random", "9"), "more than --rows"),
        ((out, "--take", target, "--rows", "5"), "--rows is about a form"),
        ((out, "--take", target), "no line has an answer"),
    ):
        assert command(monkeypatch, "review", *arguments) == 2, arguments
        assert said in capfd.readouterr().err
    assert taken_text(
        take_reviews(
            out,
            [filled(target, [json.loads(line) for line in target.read_text().splitlines()], accept=True)],
            reviewer="Cy",
        )
    ).endswith("6 rows reviewed in all, by Cy")


# --- reading them


def test_an_export_has_what_people_say_beside_the_model(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "all.jsonl"
    assert command(monkeypatch, "export", out, "-o", target, "--final") == 2
    assert "has no reviews" in capfd.readouterr().err
    lines = form(out, tmp_path / "form.jsonl", rows=2)
    numbers = [line["row_index"] for line in lines]
    for who, value in (("Ada", "bug"), ("Bo", "other"), ("Cy", "bug")):
        take_reviews(out, [filled(tmp_path / f"{who}.jsonl", lines, values={"label": value}, reviewer=who)])
    assert command(monkeypatch, "export", out, "-o", target) == 0
    records = [json.loads(line) for line in target.read_text().splitlines()]
    for number, record in enumerate(records):
        assert record["parsed"]["label"] == LABELS[number % 3]
        if number in numbers:
            # A field that nobody reviewed is null here, and the majority tells the others.
            assert record["reviewed"] == {"label": "bug", "urgent": None, "order": None}
            assert sorted(record["reviewer"].split(", ")) == ["Ada", "Bo", "Cy"]
            assert record["reviewed_at"].endswith("Z")
        else:
            assert (record["reviewed"], record["reviewer"], record["reviewed_at"]) == (None, None, None)
    final = tmp_path / "final.csv"
    assert command(monkeypatch, "export", out, "-o", final, "--final", "--flatten") == 0
    with final.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["parsed.label"] for row in rows] == [
        "bug" if number in numbers else LABELS[number % 3] for number in range(30)
    ]
    assert [row["parsed.urgent"] for row in rows] == [str(number % 2 == 0) for number in range(30)]


def test_a_text_is_reviewed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = label(tmp_path, ["a", "b"])
    lines = form(out, tmp_path / "form.jsonl", rows=2)
    take_reviews(out, [filled(tmp_path / "ada.jsonl", lines[:1], values={"completion": "better"}, reviewer="Ada")])
    assert command(monkeypatch, "export", out, "-o", tmp_path / "x.jsonl", "--final") == 0
    records = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    number = lines[0]["row_index"]
    assert [record["completion"] for record in records] == ["better" if n == number else f"answer {n}" for n in (0, 1)]


def test_calls_of_tools_are_shown(tmp_path: Path) -> None:
    write_rows(
        tmp_path / "rows.jsonl", ({"id": f"T-{n}", "text": f"ticket {n}", "tool_calls": "own"} for n in range(4))
    )

    def answer(request: httpx.Request) -> httpx.Response:
        number = int(json.loads(request.content)["messages"][-1]["content"].removeprefix("T-"))
        call = {"id": "c1", "type": "function", "function": {"name": "close", "arguments": f'{{"ticket": {number}}}'}}
        message: dict[str, Any] = (
            {"content": None, "tool_calls": [call]} if number % 2 else {"content": "nothing to do"}
        )
        reason = "tool_calls" if number % 2 else "stop"
        usage = {"prompt_tokens": 5, "completion_tokens": 3}
        return httpx.Response(200, json={"choices": [{"message": message, "finish_reason": reason}], "usage": usage})

    tool = {"type": "function", "function": {"name": "close", "parameters": {"type": "object"}}}
    job = make_job(
        tmp_path,
        None,
        input={"path": str(tmp_path / "rows.jsonl"), "key": "id"},
        messages=[{"role": "user", "content": "{{ id }}"}],
        params={"tools": [tool]},
    )
    batchchat.run(job, transport=httpx.MockTransport(answer), environ={})
    out = Path(job.output.path)
    lines = {line["key"]: line for line in form(out, tmp_path / "form.jsonl")}
    assert lines["T-1"]["row"]["tool_calls"] == [{"name": "close", "arguments": '{"ticket": 1}'}]
    assert lines["T-2"]["row"]["tool_calls"] is None
    assert lines["T-2"]["answer"] == {"completion": "nothing to do"}
    for name in ("form.csv", "form.html", "form.labelstudio.json"):
        form(out, tmp_path / name)
        assert "ticket" in (tmp_path / name).read_text()
    given = filled(tmp_path / "back.jsonl", [lines["T-1"]], values={"completion": "closed"}, reviewer="Ada")
    assert take_reviews(out, [given]).new == 1


def test_status_and_show_tell_of_reviews(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = form(out, tmp_path / "form.jsonl", rows=2)
    take_reviews(out, [filled(tmp_path / "ada.jsonl", lines, accept=True, reviewer="Ada")])
    assert command(monkeypatch, "status", out, "--json") == 0
    status = json.loads(capfd.readouterr().out)
    assert (status["reviewed"], status["reviewers"]) == (2, 1)
    assert command(monkeypatch, "status", out) == 0
    assert "rows reviewed by people" in capfd.readouterr().out
    assert command(monkeypatch, "show", out, "--row", lines[0]["row_index"], "--json") == 0
    record = json.loads(capfd.readouterr().out)["record"]
    assert (record["reviewed"], record["reviewer"]) == (lines[0]["answer"], "Ada")


def test_the_report_counts_reviewed_rows(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = form(out, tmp_path / "form.jsonl", rows=3)
    for who, value in (("Ada", "bug"), ("Bo", "other")):
        take_reviews(out, [filled(tmp_path / f"{who}.jsonl", lines, values={"label": value}, reviewer=who)])
    assert command(monkeypatch, "report", out, "-o", tmp_path / "report.html") == 0
    page = (tmp_path / "report.html").read_text()
    assert "Rows reviewed by people" in page
    assert "by 2 people; they do not agree about 3" in page


def test_small_images_are_in_the_page_and_large_ones_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.png").write_bytes(png(4, 4, (9, 9, 9)))
    (tmp_path / "large.png").write_bytes(png(4, 4, (8, 8, 8)) + bytes(IMAGE_BYTES))
    write_rows(tmp_path / "rows.jsonl", [{"file": "small.png"}, {"file": "large.png"}])
    content = [{"type": "text", "text": "What is it?"}, {"type": "image", "from": "file"}]
    job = make_job(
        tmp_path, None, input={"path": str(tmp_path / "rows.jsonl")}, messages=[{"role": "user", "content": content}]
    )
    answer = {"choices": [{"message": {"content": "grey"}, "finish_reason": "stop"}], "usage": {}}
    batchchat.run(job, transport=httpx.MockTransport(lambda _: httpx.Response(200, json=answer)), environ={})
    target = tmp_path / "page.html"
    form(Path(job.output.path), target, rows=2)
    text = target.read_text()
    data = json.loads(text.partition('id="form">')[2].partition("</script>")[0])
    by_row = {row["row_index"]: row for row in data["rows"]}
    assert by_row[0]["images"]["file"][0].startswith("data:image/png;base64,")
    assert (by_row[1]["images"], by_row[1]["row"]) == ({}, {"file": "large.png"})
