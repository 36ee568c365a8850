"""The body of a request as one endpoint wants it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class BodyFor:
    """Rewrites a body for another model: its name, and params that differ there.

    Arguments:
        own: the job's name of the model, which stands in the bodies as they come.
        model: the name at the endpoint.
        params: params that are set there in place of the job's; None takes one away.
    """

    __slots__ = ("_head", "_model", "_own_head", "_params")

    def __init__(self, own: str, model: str, params: Mapping[str, Any] | None = None) -> None:
        self._model = model
        self._params = dict(params or {})
        self._own_head = _head(own)
        self._head = _head(model)

    def of(self, body: bytes) -> bytes:
        """Return the body for the endpoint."""
        # A template writes the model first: then nothing but the head changes, and no JSON is read.
        if not self._params and body.startswith(self._own_head):
            return self._head + body[len(self._own_head) :]
        # The standard library keeps every digit of a schema's numbers.
        request = json.loads(body)
        request["model"] = self._model
        for name, value in self._params.items():
            if value is None:
                request.pop(name, None)
            else:
                request[name] = value
        return json.dumps(request, ensure_ascii=False, separators=(",", ":")).encode()


def _head(model: str) -> bytes:
    return b'{"model":' + json.dumps(model, ensure_ascii=False).encode() + b","
