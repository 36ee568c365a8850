"""Making the parts of a batch engine, and joining them."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from batchchat.budget import Account
from batchchat.engines.batch.building import Asker, Bounds, Builder
from batchchat.engines.batch.carried import Carried
from batchchat.engines.batch.creation import Creation, Patience
from batchchat.engines.batch.feeding import Feeding
from batchchat.engines.batch.gathering import Gathering
from batchchat.engines.batch.harvest import Terms
from batchchat.engines.batch.ledger import Ledger
from batchchat.engines.batch.looks import POLL_FIRST_S, Looks, LookSchedule
from batchchat.engines.batch.onward import Onward
from batchchat.engines.batch.parting import Parting
from batchchat.engines.batch.queue import ChunkQueue
from batchchat.engines.batch.rooms import Rooms
from batchchat.engines.batch.service import BatchService
from batchchat.engines.batch.signals import RunSignals
from batchchat.engines.port import Engine, Sink
from batchchat.errors import BatchchatError
from batchchat.events import Listener

_OUT_OF_SIGHT_S = 86_400.0
"""How long batches may be out of sight. They go on meanwhile, and their results are kept for weeks."""


@dataclass(frozen=True, slots=True)
class BatchSetting:
    """How a batch engine works.

    `folder` holds chunks and ledger. `poll` is the time between two looks in seconds, None for the usual one, which
    begins with `poll_first` and grows with the age of the batches. `lines`, `nbytes` and `queued_tokens` bound chunks
    below what the provider allows. `outage` is how long the provider may be out of reach for uploads. With `keep_files`
    the provider's copies stay. With `wait` the run waits for its batches. With `cancel` it cancels all batches, and
    takes what they answered. `deadline` is the job's, in seconds from the start of the engine.
    """

    folder: Path
    asker: Asker
    terms: Terms
    poll: float | None = None
    poll_first: float = POLL_FIRST_S
    lines: int | None = None
    nbytes: int | None = None
    queued_tokens: int | None = None
    outage: float = 600.0
    keep_files: bool = True
    wait: bool = True
    cancel: bool = False
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class Means:
    """What a batch engine is given; see `BatchEngine`."""

    service: BatchService
    setting: BatchSetting
    known: Carried
    listener: Listener
    account: Account | None
    onward: Callable[[], Engine] | None
    rng: random.Random
    offload: Callable[..., Awaitable[Any]]
    wall_clock: Callable[[], float]


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
        service,
        queue,
        signals,
        means.known,
        onward,
        new_builder=lambda: Builder(
            setting.folder, ledger, setting.asker, bounds, account=means.account, offload=means.offload
        ),
        cancelling=setting.cancel,
        halt_for=halt_for,
        wall_clock=means.wall_clock,
    )
    # An upload can be made again later; a batch that is under way is paid for, and waited for much longer.
    creation = _creation(means, ledger, Patience(setting.outage, means.listener, signals.rest))
    long_patience = Patience(_OUT_OF_SIGHT_S, means.listener, signals.rest)
    rooms = Rooms(
        signals=signals,
        queue=queue,
        schedule=LookSchedule(setting.poll, setting.poll_first, rng=means.rng, wall_clock=means.wall_clock),
        onward=onward,
        feeding=feeding,
        creation=creation,
        gathering=_gathering(means, creation, long_patience, feeding, sink),
        parting=Parting(setting.folder, feeding, sink, taken_before=setting.terms.job_answered),
        listener=means.listener,
    )
    return rooms, Looks(service, creation, long_patience)


def _creation(means: Means, ledger: Ledger, patience: Patience) -> Creation:
    return Creation(
        means.service,
        ledger,
        means.setting.folder,
        patience=patience,
        listener=means.listener,
        poll_s=means.setting.poll or POLL_FIRST_S,
        wall_clock=means.wall_clock,
        offload=means.offload,
    )


def _gathering(means: Means, creation: Creation, patience: Patience, feeding: Feeding, sink: Sink) -> Gathering:
    setting = means.setting
    return Gathering(
        means.service,
        creation,
        patience,
        feeding,
        sink,
        folder=setting.folder,
        terms=replace(setting.terms, onward=means.onward is not None, leave_open=setting.cancel),
        keep_files=setting.keep_files,
        poll_s=setting.poll or POLL_FIRST_S,
        asker=setting.asker,
        listener=means.listener,
        wall_clock=means.wall_clock,
        offload=means.offload,
    )
