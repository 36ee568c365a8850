"""`batchchat show --follow`: records as a run commits them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from batchchat.cli.process import errors, results
from batchchat.format import plural

if TYPE_CHECKING:
    from batchchat.choosing import RecordFilter


def follow_command(directory: Path | str, by: RecordFilter, *, limit: int | None, table: bool, as_json: bool) -> int:
    """Print records until the run ends, `limit` of them are shown, or nobody reads any more."""
    from batchchat.cli.json_output import as_json as to_json
    from batchchat.cli.record_page import record_line, render_record
    from batchchat.following import follow_records

    terminal = results()
    shown = 0
    for view in follow_records(directory, by):
        # A closed pipe ends it, as it ends `tail -f`; also while no record comes.
        if terminal.abandoned:
            return 0
        if view is None:
            continue
        if as_json:
            terminal.stream.write(json.dumps(to_json(view), ensure_ascii=False) + "\n")
            terminal.stream.flush()
        elif table:
            terminal.write_line(record_line(view))
        else:
            if shown:
                terminal.write_line("")
            terminal.print(render_record(view))
        shown += 1
        if shown == limit:
            return 0
    errors().write_line(f"the run has ended; shown: {plural(shown, 'record')}")
    return 0
