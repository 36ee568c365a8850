"""Opens what a job says of sharing: the limits of this machine, or those of a broker."""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from batchchat.events import Listener
from batchchat.limits import MAX_CONCURRENCY
from batchchat.limits.ceilings import Advertised, LimitCeilings
from batchchat.sharing.asking import Carrier
from batchchat.sharing.file import LimitFile
from batchchat.sharing.limiter import SharedLimiter
from batchchat.sharing.naming import limits_folder

if TYPE_CHECKING:
    from batchchat.sharing.link import Link

BROKER = "BATCHCHAT_BROKER"
"""The environment variable that names a broker for jobs that say `shared: true`."""


class Sharing:
    """Opens the shared limiters of one run; all are left when `stack` is. Make it with `Sharing.open`."""

    def __init__(self, environ: Mapping[str, str], stack: AsyncExitStack, link: Link | None) -> None:
        self._environ = environ
        self._stack = stack
        self._link = link

    @classmethod
    async def open(
        cls, shared: bool | str, environ: Mapping[str, str], outage_s: float, stack: AsyncExitStack
    ) -> Sharing:
        """Find out where the limits are kept, and connect to a broker if one keeps them.

        Arguments:
            shared: the job's `limits.shared`.
            environ: the environment.
            outage_s: how long a broker that is away is waited for, in seconds.
            stack: holds the connection.

        Raises BatchchatError if the broker cannot be used.
        """
        address = environ.get(BROKER) if shared is True else shared
        if not address:
            return cls(environ, stack, None)
        from batchchat.sharing.link import TOKEN, connect

        link = await stack.enter_async_context(connect(str(address), token=environ.get(TOKEN), outage_s=outage_s))
        return cls(environ, stack, link)

    async def limiter(
        self, name: str, ceilings: LimitCeilings, advertised: Advertised, listener: Listener, rng: random.Random
    ) -> SharedLimiter:
        """Return a limiter that asks the keeper of a limit.

        Arguments:
            name: of the limit; see `naming.limit_name`.
            ceilings: the job's.
            advertised: what the provider is known to allow.
            listener: takes its events.
            rng: spreads waits.

        Raises BatchchatError if the limit cannot be used.
        """
        # The most at once is what the open files of this process allow: others may have more.
        room = advertised.concurrency or ceilings.concurrency or MAX_CONCURRENCY
        carrier: Carrier
        if self._link is None:
            carrier = LimitFile(limits_folder(self._environ), name, advertised, rng)
        else:
            carrier = self._link.limit(name, advertised)
        limiter = SharedLimiter(carrier, ceilings, room=room, listener=listener)
        return await self._stack.enter_async_context(limiter.kept())
