"""`batchchat control`: steer a run that is going on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from batchchat.cli.process import print_json, results
from batchchat.errors import UsageError


def control_command(directory: Path | str, action: str, settings: Sequence[str], *, as_json: bool) -> int:
    """Send a command to the run into an output, and print what it did."""
    from batchchat.cli.json_output import as_json as to_json
    from batchchat.controlling import control_run
    from batchchat.format import plural

    if action != "set" and settings:
        raise UsageError(f"{action} takes no fields", remedy=f"`batchchat control {directory} set FIELD=VALUE` does.")
    values = None
    if action == "set":
        from batchchat.runner.settings import read_settings

        # Read here first: what is wrong with a value is told also if no run is going on.
        values = read_settings(settings)
    done = control_run(directory, action, values)
    if as_json:
        print_json({"directory": str(directory), **to_json(done)})
        return 0
    which = f"{directory}, {plural(len(done.outputs), 'run')}" if len(done.outputs) > 1 else str(directory)
    in_flight = f" ({plural(done.sending, 'request')} in flight)" if action == "pause" and done.sending else ""
    results().write_line(f"{which}: {done.did}{in_flight}")
    return 0
