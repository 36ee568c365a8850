"""How a batch engine works, and what it is given for that."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import field, replace
from pathlib import Path
from typing import Any

import anyio.to_thread

from batchchat.budget import Account
from batchchat.dataclass import dataclass
from batchchat.engines.batch.building import Asker
from batchchat.engines.batch.carried import Carried
from batchchat.engines.batch.harvest import Terms
from batchchat.engines.batch.service import BatchService
from batchchat.engines.port import Engine
from batchchat.events import Listener

POLL_FIRST_S = 30.0
"""Seconds between two looks at young batches: what providers advise."""


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

    @property
    def repeat_s(self) -> float:
        """Return the seconds before something is asked again that the provider has not got ready yet."""
        return self.poll or POLL_FIRST_S


@dataclass(frozen=True, slots=True)
class Means:
    """What a batch engine is given, and its parts use.

    `known` is what the output tells of requests. `account` holds the run's budget. `onward` makes the engine that takes
    what batches did not answer, None if they are to be given up. `rng` spreads looks. `offload` runs blocking code off
    the event loop. `wall_clock` returns seconds since the epoch.
    """

    service: BatchService
    setting: BatchSetting
    known: Carried
    listener: Listener
    account: Account | None = None
    onward: Callable[[], Engine] | None = None
    rng: random.Random = field(default_factory=random.Random)
    offload: Callable[..., Awaitable[Any]] = anyio.to_thread.run_sync
    wall_clock: Callable[[], float] = time.time

    @property
    def terms(self) -> Terms:
        """Return how answers are judged, with what follows from the engine."""
        return replace(self.setting.terms, onward=self.onward is not None, leave_open=self.setting.cancel)
