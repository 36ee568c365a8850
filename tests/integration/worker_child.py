"""A worker that kills itself at a named step of the store. Its arguments: the step, and how often it is passed."""

from __future__ import annotations

import functools
import os
import signal
import sys

from batchchat.cli.sharding import worker_command
from batchchat.runner.run import run_job
from batchchat.store import Store


def main() -> None:
    wanted, number = sys.argv[1:]
    left = int(number)

    def point(name: str) -> None:
        nonlocal left
        if name == wanted:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.exit(worker_command(run=functools.partial(run_job, open_store=functools.partial(Store.open, point=point))))


if __name__ == "__main__":
    main()
