"""The review page: one HTML file that needs no other, asks nothing of the network, and is used by keys alone.

Rows go in as JSON that cannot end its element, and its script puts them on the page as text. A policy in the page
allows that script and those styles by their digests, images as data URLs, and nothing else.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from hashlib import blake2b, sha256
from importlib import resources
from pathlib import Path
from typing import Any

import orjson

import batchchat
from batchchat.addresses import address_of
from batchchat.images import ImageReader
from batchchat.job import Job
from batchchat.labelling.content import plain
from batchchat.labelling.rows import FormRow, ReviewForm
from batchchat.runner.questions import compile_questions

IMAGE_BYTES = 400_000
"""The largest image that a page shows, in bytes: of 200 rows with one each the page has 100 MB at most. Chosen."""


def page_text(form: ReviewForm, target: Path) -> str:
    """Return the page as HTML. `target` names it: the file that the page saves has that name, too."""
    import jinja2
    from markupsafe import Markup

    assets = resources.files("batchchat.labelling") / "assets"
    style, script, page = ((assets / name).read_text("utf-8") for name in ("review.css", "review.js", "review.html"))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(page).render(
        title=form.job.name,
        generator=f"batchchat {batchchat.__version__}",
        policy=(
            f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; img-src data:; "
            "base-uri 'none'; form-action 'none'"
        ),
        style=Markup(style),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        form=Markup(_embedded(_data(form, target))),  # noqa: S704 - made safe by _embedded
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"


def _embedded(value: object) -> str:
    """Return JSON for a script element: nothing in it can end the element or open a comment."""
    text = orjson.dumps(value, default=plain, option=orjson.OPT_NON_STR_KEYS).decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _data(form: ReviewForm, target: Path) -> dict[str, Any]:
    reader = _image_reader(form.job)
    rows = [_row(row, reader) for row in form.rows]
    # The browser keeps answers under this name: two pages of the same rows share them, others do not.
    identity = blake2b(orjson.dumps([row["content"] for row in rows]), digest_size=8).hexdigest()
    return {
        "id": identity,
        "job": form.job.name,
        "file": target.name.removesuffix(target.suffix),
        "round": form.rows[0].round,
        "fields": [
            {"name": field.name, "kind": field.kind, "choices": list(field.choices), "nullable": field.nullable}
            for field in form.fields
        ],
        "rows": rows,
    }


def _row(row: FormRow, reader: ImageReader) -> dict[str, Any]:
    images = _images(row, reader)
    return {
        "content": row.content,
        "custom_id": row.custom_id,
        "row_index": row.row_index,
        "key": row.key,
        "probability": row.probability,
        "confidence": row.confidence,
        "row": {name: None if name in images else value for name, value in row.columns.items()},
        "images": images,
        "answer": row.answer,
    }


def _image_reader(job: Job) -> ImageReader:
    """Return what reads the images of the columns that the job's messages name."""
    root = Path(job.images.root) if job.images.root is not None else None
    given = address_of(job.input.path)
    folder = given if isinstance(given, Path) and given.is_dir() else given.parent if isinstance(given, Path) else None
    columns = compile_questions(job).template.image_columns
    return ImageReader(columns, lambda _source: folder, root=root, max_bytes=IMAGE_BYTES)


def _images(row: FormRow, reader: ImageReader) -> Mapping[str, list[str]]:
    """Return the images of a row as data URLs, by column. One that is large, gone or on the network stays a text."""
    found = {}
    for name, loaded in reader.load(row.columns, row.source).items():
        urls = [] if isinstance(loaded, str) else [orjson.loads(picture.url) for picture in loaded]
        if urls and all(url.startswith("data:image/") for url in urls):
            found[name] = urls
    return found
