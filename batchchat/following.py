"""Following a run: its records as they are committed, chosen as `show` chooses them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from batchchat.choosing import RecordFilter, RecordMask
from batchchat.errors import UsageError
from batchchat.inspection import Templates, record_view
from batchchat.sources import python_rows
from batchchat.store import lock_holder, open_tail, read_state
from batchchat.views import RecordView

LOOK_S = 0.25
"""Seconds between two looks: a person sees no delay, and a look lists two folders."""


def follow_records(
    directory: Path | str, by: RecordFilter, *, sleep: Callable[[float], None] = time.sleep
) -> Iterator[RecordView | None]:
    """Yield each record of the run that is going on, as it is committed, until the run ends.

    Records that are there when this begins are not told. Yields None after each look, so that a caller can see whether
    anybody still reads. Raises UsageError if no run is going on, or if the expression of `by` cannot be read.
    """
    output = read_state(directory)
    run_id = (output.holder or {}).get("run_id")
    if not isinstance(run_id, str):
        raise UsageError(
            f"no run is going on into {directory}, so there is nothing to follow",
            remedy=f"`batchchat show {directory}` shows the records that are there.",
        )
    # What is wrong with an expression is told at once, unless the output is so new that it has no columns yet.
    mask = None if output.schema is None else RecordMask(by, output.schema.names)
    tail = open_tail(directory, run_id)
    try:
        templates = Templates(output)
        ended = False
        while True:
            for batch in tail.read(last=ended):
                if mask is None:
                    output = read_state(directory)
                    templates = Templates(output)
                    mask = RecordMask(by, batch.schema.names)
                for record in python_rows(batch.filter(mask.of(batch.select(mask.needed)))):
                    yield record_view(output, templates, record)
            yield None
            if ended:
                break
            # Asked before the last look, so that what it committed just before its end is told.
            ended = (lock_holder(directory) or {}).get("run_id") != run_id
            if not ended:
                sleep(LOOK_S)
    finally:
        tail.close()
    if mask is not None:
        mask.check()
