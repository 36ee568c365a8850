"""A run that kills itself at a named step of the store. Its arguments: the job, the step, and how often it is passed.

The process ends by SIGKILL when the step is reached for the given time, else with the run's exit code. `between` is no
step of the store: it is the end of the first commit after which a row of a cascade is between two steps.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from pathlib import Path

import anyio

import batchchat
from batchchat.runner.run import run_job
from batchchat.store import Store, read_state

BETWEEN = "between"


def main() -> None:
    job, wanted, number = sys.argv[1:]
    left = int(number)

    def point(name: str) -> None:
        nonlocal left
        if wanted == BETWEEN:
            if name == "commit.after" and read_state(Path("out")).answers:
                os.kill(os.getpid(), signal.SIGKILL)
        elif name == wanted:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    open_store = functools.partial(Store.open, point=point)
    work = functools.partial(run_job, batchchat.load_job(Path(job)), open_store=open_store, environ={})
    sys.exit(anyio.run(work).exit_code)
