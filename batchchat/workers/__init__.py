"""Workers: several processes that run one job into the shards of one output, and the coordinator that starts them.

A worker is a run like any other, over some of the shards. The coordinator hands out shards, adds up what the workers
tell, and passes on what a person says. It holds no row and no answer: whichever of them dies, what was counted is in
the stores of the shards, and the same command goes on.

`port` is what carries workers: a launcher starts them, on this machine (`processes`) or elsewhere. `messages` lists
what the two sides tell each other. `worker` is the one side, `coordinator` the other.
"""

from __future__ import annotations

from batchchat.workers.coordinator import run_with_workers
from batchchat.workers.messages import Message
from batchchat.workers.port import Launcher, RunningWorker, WorkerEnd
from batchchat.workers.worker import work

__all__ = ["Launcher", "Message", "RunningWorker", "WorkerEnd", "run_with_workers", "work"]
