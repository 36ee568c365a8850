"""The completions of an output as rows: what one job answered is the input of the next. Blocking code.

A row has the columns of the first job's input under the names that the dataset gives them, and of the record what a
next step may need. Failed records are no rows. The rows come in the order of the parts; memory holds one batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from batchchat.errors import OutputLocked, UsageError
from batchchat.lazy_arrow import compute as pc
from batchchat.records import PARSED
from batchchat.store.output import Output, read_state
from batchchat.store.schema import own_columns

_CARRIED = ("key", "sample_index", "completion", "reasoning", "tool_calls", "finish_reason", "model", "confidence")
"""The columns of a record that are columns of the next job's rows, if the output has them; `parsed` is the last."""
_EXTRA = "input_extra"


class Completions:
    """The rows of an output, with the Arrow C stream interface; they can be read more than once.

    `columns` are their names. `left_out` counts the records without a completion, `open` the rows that the last run
    left open, None if no run has ended by itself.

    Raises UsageError if the output holds no completions, OutputLocked if a run is going on: rows would be missing, and
    records move while they are read. Raises StorageError if the output cannot be read.
    """

    def __init__(self, directory: Path | str) -> None:
        self._directory = directory
        output = self._read()
        schema = output.schema
        assert schema is not None  # noqa: S101 - `_read` looked
        own = set(own_columns(schema))
        # An output of an earlier version may lack a later column, and then hold one of the input by that name.
        names = [name for name in schema.names if name not in own and name not in (PARSED, _EXTRA)]
        names += [name for name in _CARRIED if name in own]
        names += [PARSED] if PARSED in schema.names else []
        self.columns = tuple(names)
        self._schema = pa.schema([schema.field(name).remove_metadata() for name in names])
        self._rows = self.left_out = 0
        for batch in output.records(["status"]):
            found = int(pc.equal(batch.column("status"), "ok").true_count)
            self._rows += found
            self.left_out += batch.num_rows - found
        if not self._rows:
            raise UsageError(
                f"{directory} holds no completions yet, so that it has no rows for another job",
                remedy="Run its own job first.",
            )
        left = output.last_run.get("open") if output.last_run else None
        self.open = left if type(left) is int else None

    def __len__(self) -> int:
        return self._rows

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Return the rows, from the first, as a capsule with an Arrow C stream."""
        reader = pa.RecordBatchReader.from_batches(self._schema, self._batches())
        return reader.__arrow_c_stream__(requested_schema)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for batch in self._read().records([*self.columns, "status"]):
            answered = batch.filter(pc.equal(batch.column("status"), "ok")).select(list(self.columns))
            if answered.num_rows:
                yield pa.RecordBatch.from_arrays(answered.columns, schema=self._schema)

    def _read(self) -> Output:
        output = read_state(self._directory)
        if output.holder is not None:
            raise OutputLocked(
                f"{self._directory}: a run into this output is going on, and its rows are not complete",
                remedy="Wait until it ends, then run the same command again; `batchchat run FIRST SECOND` runs two "
                "jobs one after the other.",
            )
        if output.schema is None:
            raise UsageError(f"{self._directory} holds no records yet", remedy="Run its own job first.")
        return output
