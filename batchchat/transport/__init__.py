"""How a request travels: the fast path, the stock one, and which of them is taken.

Every transport here is an `httpx.AsyncBaseTransport` that verifies certificates, decodes and bounds what it receives,
follows no redirect, and raises httpx's exceptions, each of which `request_sent` can be asked about.
"""

from __future__ import annotations

from batchchat.transport.choose import choose_transport
from batchchat.transport.faults import ResponseTooLarge, UntrustedServer, request_sent
from batchchat.transport.incoming import BodySink
from batchchat.transport.lean import Answer, Exchange, LeanTransport, Route
from batchchat.transport.room import allow_many_files, connection_room
from batchchat.transport.stock import StockTransport
from batchchat.transport.tls import tls_context

__all__ = [
    "Answer",
    "BodySink",
    "Exchange",
    "LeanTransport",
    "ResponseTooLarge",
    "Route",
    "StockTransport",
    "UntrustedServer",
    "allow_many_files",
    "choose_transport",
    "connection_room",
    "request_sent",
    "tls_context",
]
