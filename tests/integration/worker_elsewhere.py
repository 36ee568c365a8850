"""A worker that takes itself to be on another machine, whose name is its argument: so nobody here sees that it died.

Its heartbeat counts for an hour, so that a test does not depend on how long a worker takes to start.
"""

from __future__ import annotations

import socket
import sys

from batchchat.cli.sharding import worker_command
from batchchat.store.location import object_hold


def main() -> None:
    name = sys.argv[1]
    socket.gethostname = lambda: name
    object_hold.DEAD_AFTER_S = 3_600.0
    sys.exit(worker_command())


if __name__ == "__main__":
    main()
