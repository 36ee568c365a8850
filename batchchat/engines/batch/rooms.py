"""What creators and the watch of one run share."""

from __future__ import annotations

from batchchat.dataclass import dataclass
from batchchat.engines.batch.creation import Creation
from batchchat.engines.batch.feeding import Feeding
from batchchat.engines.batch.gathering import Gathering
from batchchat.engines.batch.looks import LookSchedule
from batchchat.engines.batch.onward import Onward
from batchchat.engines.batch.parting import Parting
from batchchat.engines.batch.queue import ChunkQueue
from batchchat.engines.batch.signals import RunSignals
from batchchat.events import Listener


@dataclass(frozen=True, slots=True)
class Rooms:
    """The parts of the engine that exist while it runs. Each says in its module what it is for."""

    signals: RunSignals
    queue: ChunkQueue
    schedule: LookSchedule
    onward: Onward
    feeding: Feeding
    creation: Creation
    gathering: Gathering
    parting: Parting
    listener: Listener
