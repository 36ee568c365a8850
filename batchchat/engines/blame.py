"""Whom to blame for a plain 500 or 504: the provider, or the requests themselves.

Both statuses may mean either: a server that is down, or an input that breaks it every time. What others get at the same
time tells, and so a provider that seems to be down is asked with requests from all over the supply. Where nothing is
left but requests that have had such an answer themselves, there are no others to ask. Most outages are over by then, or
say so by another status; so after a while each of them is held to be the cause of its own failure.
"""

from __future__ import annotations

from batchchat.records import Reply, Request

PATIENCE_S = 120.0
"""How long a provider that answered others in this run is given, where nothing but plain errors come any more."""
_PLAIN = frozenset({500, 504})


class Blame:
    """The open requests whose last answer was a plain error, with that answer."""

    def __init__(self) -> None:
        self.accused: dict[Request, Reply] = {}

    def failed(self, request: Request, reply: Reply) -> None:
        """Note an attempt that failed and will be made again."""
        if reply.failure is not None and reply.failure.http_status in _PLAIN:
            self.accused[request] = reply
        else:
            self.accused.pop(request, None)

    def settled(self, request: Request) -> None:
        """Let go of a request that has its record, or an answer of another kind."""
        self.accused.pop(request, None)
