"""What the kernel knows of the bytes that a dead connection was given.

A keep-alive connection may be closed by the server at the very moment a request is written to it. Whether that request
can have been received is seldom knowable from the error alone; TCP's own counters often tell.
"""

from __future__ import annotations

import socket
import struct
import sys

# Offsets into Linux's `struct tcp_info` (include/uapi/linux/tcp.h): bytes_acked; bytes_sent and bytes_retrans.
_ACKED = (120, struct.Struct("=Q"))
_SENT = (200, struct.Struct("=QQ"))
_SIZE = _SENT[0] + _SENT[1].size


def surely_undelivered(sock: socket.socket, written: int, *, peer_closed: bool) -> bool:
    """Return whether the end of what was written certainly never reached the peer.

    `written` is the number of bytes given to the connection since it was opened (for TLS, before encryption: fewer than
    went out, so that the answer errs towards False). Two facts are certain. Bytes that never left this machine were not
    received. And if the peer ended its side in order (`peer_closed`, a FIN), bytes it had received before are
    acknowledged by that very segment, so what is still unacknowledged came too late for it. A reset proves nothing: it
    may overtake an acknowledgement. False also if the system does not tell.
    """
    if sys.platform != "linux":
        return False
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 512)
    except OSError:
        return False
    # An older kernel has a shorter structure, without these counters.
    if len(info) < _SIZE:
        return False
    (acked,) = _ACKED[1].unpack_from(info, _ACKED[0])
    sent, again = _SENT[1].unpack_from(info, _SENT[0])
    left = sent - again
    if left < written:
        return True
    # The count of acknowledged bytes includes the SYN of a connection that this side opened.
    return peer_closed and acked - 1 < left
