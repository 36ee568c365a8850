"""The answers of one output for the row browser of its page: failed rows first, then an even choice of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batchchat.dataclass import dataclass
from batchchat.report.alignment import row_ids
from batchchat.report.answers import AnswerBrowser
from batchchat.report.suite_folder import SuiteFolder
from batchchat.store import Output

MOST_ROWS = 5_000
"""Rows of a page. A page of a run stays a few MB large then, and is written in a few seconds."""


_FORM = pa.schema({"id": pa.string(), "row_index": pa.int64(), "key": pa.string()})


@dataclass(frozen=True)
class OneOutput(SuiteFolder):
    """One output as if it were a suite with one variant and no scores."""

    records: Output

    def output(self, variant: Any) -> Output:
        """Return the output itself."""
        del variant
        return self.records

    def _table(self, name: str, empty: pa.Table) -> pa.Table:
        """Return no line: scores and verdicts are those of a suite, whose folder this is not."""
        del name
        return empty


def run_answers(directory: Path | str, output: Output, records: int) -> AnswerBrowser:
    """Return the answers of an output that has so many records. Memory does not grow with them."""
    told = output.job.get("samples")
    samples = told if isinstance(told, int) and told > 0 else 1
    summary = {"variants": [{"name": "answer"}], "samples": samples}
    rows = _chosen(output, records // samples)
    total = max(rows.num_rows, records // samples)
    return AnswerBrowser(OneOutput(Path(directory), summary, output), rows=rows, total=total)


def _chosen(output: Output, rows: int) -> pa.Table:
    """Return the rows that a page shows: `id`, `row_index`, `key`, in the order of the input."""
    # Half of the room is for failures: they are what a person looks for, and may be rare.
    stride = -(-rows // (MOST_ROWS // 2)) if rows > MOST_ROWS else 1
    failures = MOST_ROWS // 2
    found = [_FORM.empty_table()]
    for batch in output.records(["row_index", "key", "status"]):
        index = batch.column("row_index").cast(pa.int64())
        shown = pc.equal(pc.subtract(index, pc.multiply(pc.divide(index, stride), stride)), 0)
        if failures > 0:
            failed = pc.not_equal(batch.column("status"), "ok")
            failures -= failed.true_count
            shown = pc.or_(shown, failed)
        kept = batch.filter(shown)
        columns = [row_ids(kept), kept.column("row_index").cast(pa.int64()), kept.column("key").cast(pa.string())]
        found.append(pa.table(columns, schema=_FORM))
    table = pa.concat_tables(found).group_by("id", use_threads=False).aggregate([("row_index", "min"), ("key", "min")])
    table = table.rename_columns(_FORM.names).sort_by([("row_index", "ascending"), ("id", "ascending")])
    # One batch may hold more failures than there is room for.
    return table.slice(0, 2 * MOST_ROWS)
