"""A Ray cluster of a head and two nodes on this machine, in a process of its own; lines of standard input steer it.

`kill N` kills the node with this number, as a loss of power does; `kill-worker` the process of one worker; `kill-head`
the head's server; an end of the input ends all.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from tests.integration.processes import children_of

os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    # A busy machine starts Ray's own processes slowly.
    RAY_agent_register_timeout_ms="120000",
    RAY_raylet_start_wait_time_s="120",
)


def main() -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    cluster.wait_for_nodes()
    print(cluster.address, *(node.node_id for node in nodes), flush=True)
    for line in sys.stdin:
        words = line.split()
        if words[0] == "kill":
            # Of a node that lost its power, the processes of its workers are gone at once, too.
            cluster.remove_node(nodes[int(words[1])], allow_graceful=False)
        elif words[0] == "kill-worker":
            os.kill(_workers()[0], signal.SIGKILL)
        else:
            cluster.head_node.kill_gcs_server(check_alive=False)
        print("done", flush=True)
    cluster.shutdown()


def _workers() -> list[int]:
    """Return the processes of this cluster that are workers of batchchat."""
    found, below = [], [os.getpid()]
    while below:
        below = [child for pid in below for child in children_of(pid)]
        found += [pid for pid in below if b"PlacedActor" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return found


if __name__ == "__main__":
    main()
