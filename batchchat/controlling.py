"""Steering a run from another process: send a command to the run that holds an output, and wait for its reply."""

from __future__ import annotations

import getpass
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from batchchat.addresses import Address
from batchchat.dataclass import dataclass
from batchchat.errors import OutputLocked, UsageError
from batchchat.runner.control import Settings
from batchchat.store import (
    CommandFiles,
    Location,
    evaluation_outputs,
    is_output,
    lock_holder,
    running_outputs,
    running_places,
)

_WAIT_S = 8.0
"""Seconds to wait for the run to take a command. A run looks four times a second; one that opens a large output, or
whose machine is overloaded, takes longer."""
_REPLY_S = 20.0
"""Seconds to wait for the reply of a run that has taken it: it is carried out at once, and the reply is one file."""
_LAST_WORDS_S = 2.0
_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Controlled:
    """What a run did on a command. `changed` is false if it was so already.

    `outputs` are those of the runs that the command was for. `sending` and `waiting` count the requests of the run that
    replied. `seconds` is the time from sending the command to its reply.
    """

    action: str
    outputs: tuple[str, ...]
    did: str
    changed: bool
    run_id: str
    pid: int | None
    host: str
    sending: int
    waiting: int
    seconds: float


def control_run(
    directory: Path | str,
    action: str,
    settings: Settings | None = None,
    *,
    wait_s: float = _WAIT_S,
    sleep: Callable[[float], None] = time.sleep,
) -> Controlled:
    """Tell the run that is going on into an output, or all runs of an evaluation, to do something.

    Raises UsageError if no run is going on, or if the run refuses; OutputLocked if it does not take the command within
    `wait_s` seconds, which is withdrawn then; StorageError if the output cannot be written.
    """
    whole = bool(evaluation_outputs(directory))
    running = running_outputs(directory) if whole else []
    if not whole and not is_output(directory):
        raise UsageError(
            f"{directory} is no output of batchchat", remedy="Give the folder, or the URL, that a job's `output` names."
        )
    command = {"action": action, "whole": whole, "by": _who()}
    if settings is not None:
        command["settings"] = dict(settings)
    # Any run of an evaluation hands the command on to all of them; one may end before it has taken it.
    for output in running:
        done = _Sending(output, command, wait_s, sleep).send()
        if done is not None:
            outputs = tuple(str(path) for path in running)
            return Controlled(action, outputs, **done)
    # Runs over some of the shards each know nothing of one another: each is told.
    told = [] if whole else [_Sending(place, command, wait_s, sleep).send() for place in running_places(directory)]
    if done := next((each for each in told if each is not None), None):
        for name in ("sending", "waiting"):
            done[name] = sum(each[name] for each in told if each is not None)
        return Controlled(action, (str(directory),), **done)
    raise UsageError(
        f"no run is going on into {directory}",
        remedy=f"`batchchat status {directory}` shows how the last one ended. What a run is to begin with goes into "
        "its job, or --set.",
    )


class _Sending:
    """One command on its way to one run."""

    def __init__(
        self, output: Address | Location, command: Mapping[str, Any], wait_s: float, sleep: Callable[[float], None]
    ) -> None:
        self._output = output
        self._command = command
        self._wait_s = wait_s
        self._sleep = sleep
        self._files = CommandFiles(output)

    def send(self) -> dict[str, Any] | None:
        """Send it, and return what the run did; None if no run was there to take it."""
        holder = lock_holder(self._output)
        run_id = self._run_of(holder)
        if holder is None or run_id is None:
            return None
        began = time.monotonic()
        name = self._files.send(run_id, self._command)
        taken, last = False, self._wait_s + _REPLY_S
        while (reply := self._files.reply_to(name)) is None:
            waited = time.monotonic() - began
            # A run that ends carries out what it has taken, so a command that can be withdrawn was not taken.
            if self._run_of(lock_holder(self._output)) != run_id:
                if self._files.withdraw(name):
                    return None
                if not taken:
                    # It replied before it ended, unless it was killed just then.
                    taken, last = True, waited + _LAST_WORDS_S
            if not taken and waited > self._wait_s:
                taken = not self._files.withdraw(name)
                if not taken:
                    raise self._not_taken(holder, "it was withdrawn, and nothing has changed")
            if waited > last:
                raise self._not_taken(
                    holder, "the run took it, and did not reply: `batchchat status` shows what it does"
                )
            self._sleep(_LOOK_S)
        if "error" in reply:
            raise UsageError(str(reply["error"]), remedy=reply.get("remedy"))
        pid = holder.get("pid")
        return {
            "did": str(reply.get("did")),
            "changed": reply.get("changed") is True,
            "run_id": run_id,
            "pid": pid if isinstance(pid, int) else None,
            "host": str(holder.get("host", "")),
            "sending": int(reply.get("sending") or 0),
            "waiting": int(reply.get("waiting") or 0),
            "seconds": round(time.monotonic() - began, 3),
        }

    @staticmethod
    def _run_of(holder: Mapping[str, Any] | None) -> str | None:
        run_id = None if holder is None else holder.get("run_id")
        return run_id if isinstance(run_id, str) else None

    def _not_taken(self, holder: Mapping[str, Any], what: str) -> OutputLocked:
        return OutputLocked(
            f"the run (pid {holder.get('pid')} on {holder.get('host')}) did not answer the command within "
            f"{self._wait_s:g} s; {what}",
            remedy="Try it again. A run that is stopped (SIGTSTP), or whose machine hangs, takes no command; one of an "
            "earlier version knows none: signals reach it.",
        )


def _who() -> str:
    """Return who sends a command, and from which machine, to be shown and logged."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user without a name, as in some containers
        user = "somebody"
    return f"{user} on {socket.gethostname()}"
