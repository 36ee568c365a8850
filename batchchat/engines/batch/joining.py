"""Making the parts of a batch engine, and joining them."""

from __future__ import annotations

from collections.abc import Callable

from batchchat.engines.batch.building import Bounds, Builder
from batchchat.engines.batch.creation import Creation, Patience
from batchchat.engines.batch.feeding import Feeding
from batchchat.engines.batch.gathering import Gathering
from batchchat.engines.batch.ledger import Ledger
from batchchat.engines.batch.looks import Looks, LookSchedule
from batchchat.engines.batch.onward import Onward
from batchchat.engines.batch.parting import Parting
from batchchat.engines.batch.queue import ChunkQueue
from batchchat.engines.batch.rooms import Rooms
from batchchat.engines.batch.setting import Means
from batchchat.engines.batch.signals import RunSignals
from batchchat.engines.port import Sink
from batchchat.errors import BatchchatError

_OUT_OF_SIGHT_S = 86_400.0
"""How long batches may be out of sight. They go on meanwhile, and their results are kept for weeks."""


def join(
    means: Means, ledger: Ledger, signals: RunSignals, sink: Sink, halt_for: Callable[[BatchchatError], None]
) -> tuple[Rooms, Looks]:
    """Return the parts of an engine, and what looks at its batches."""
    setting, service = means.setting, means.service
    bounds = Bounds.of(service, lines=setting.lines, nbytes=setting.nbytes, queued_tokens=setting.queued_tokens)
    queue = ChunkQueue(bounds)
    onward = Onward(
        means.onward,
        means.known,
        setting.terms.rounds,
        deadline=setting.deadline,
        listener=means.listener,
        wall_clock=means.wall_clock,
    )
    feeding = Feeding(
        means,
        queue,
        signals,
        onward,
        new_builder=lambda: Builder(
            setting.folder, ledger, setting.asker, bounds, account=means.account, offload=means.offload
        ),
        halt_for=halt_for,
    )
    # An upload can be made again later; a batch that is under way is paid for, and waited for much longer.
    creation = Creation(means, ledger, Patience(setting.outage, means.listener, signals.rest))
    long_patience = Patience(_OUT_OF_SIGHT_S, means.listener, signals.rest)
    rooms = Rooms(
        signals=signals,
        queue=queue,
        schedule=LookSchedule(setting.poll, setting.poll_first, rng=means.rng, wall_clock=means.wall_clock),
        onward=onward,
        feeding=feeding,
        creation=creation,
        gathering=Gathering(means, creation, long_patience, feeding, sink),
        parting=Parting(setting.folder, feeding, sink, taken_before=setting.terms.job_answered),
        listener=means.listener,
    )
    return rooms, Looks(service, creation, long_patience)
