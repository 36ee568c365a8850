"""What the end of a connection says about the request that was under way, or about a server that keeps none."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

import httpx

from batchchat.transport.faults import tell_sent
from batchchat.transport.incoming import Incoming

STALE_END_S: Final = 2.0
"""A kept connection that ends unanswered within this time was closed as the request was written.

That is one way to the server and back. A request that is worked on for longer may cost, and is not sent again unasked.
"""
EARLY_END_S: Final = 1.0
"""An idle connection that ends within this time was closed on purpose: no server waits so short for a request."""


def peek(sock: socket.socket) -> bytes:
    """Return what has come on a socket and is not yet read, without taking it; empty if it has ended."""
    # A copy of the file number: asyncio lends its socket without `recv`. The copy is closed, the connection is not.
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(sock.fileno())) as twin:
        return twin.recv(64, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    return b""


def loss(
    incoming: Incoming, error: Exception | None, *, writing: bool, undelivered: bool, silent_s: float
) -> httpx.RequestError:
    """Return the fault of a response that the end of its connection cuts short.

    Arguments:
        incoming: the response, as far as it came.
        error: what the event loop says; None if the server ended the connection in order.
        writing: whether the request was still being written.
        undelivered: whether the server cannot have received the request.
        silent_s: seconds since anything was written or came.
    """
    if not incoming.began:
        where = "before it answered"
    elif not incoming.head_done:
        where = "in the response's head"
    else:
        length = incoming.length
        of = f" of {length}" if length is not None else ""
        where = f"in the response's body, after {incoming.size}{of} bytes"
    fault: httpx.RequestError
    if error is None:
        fault = httpx.RemoteProtocolError(f"the server disconnected {where}")
    else:
        kind = httpx.WriteError if writing else httpx.ReadError
        fault = kind(f"the connection broke {where}: {error}")
    # An answer that takes long is no race between the server's close and our request.
    if not incoming.began and silent_s < STALE_END_S:
        fault.__dict__["ended_unanswered"] = True
    return tell_sent(fault, not undelivered)
