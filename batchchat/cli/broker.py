"""`batchchat broker`: keep the limits of runs on several machines."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import anyio

from batchchat.cli.process import errors, results
from batchchat.errors import UsageError
from batchchat.events import Event
from batchchat.format import one_line
from batchchat.sharing.broker import serve_broker
from batchchat.sharing.protocol import TOKEN


def broker_command(*, listen: str, token_file: str | None) -> int:
    """Serve until a signal ends it."""
    token = _read_token(token_file)

    def tell(event: Event) -> None:
        errors().write_line(f"{event.level}: {one_line(event.message)}")

    async def main() -> None:
        # An earlier broker may have run here a moment ago: what it granted may still be sent.
        async with serve_broker(listen, token=token, stands=True, listener=tell) as broker:
            results().write_line(broker.address)
            secret = f" and {TOKEN} as here" if token else ""
            errors().write_line(f"the broker listens; use it with  --set limits.shared={broker.address}{secret}")
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
                async for _ in received:
                    return

    anyio.run(main)
    return 0


def _read_token(file: str | None) -> str | None:
    """Return the secret of a file or the environment; None if there is none."""
    if file is None:
        return os.environ.get(TOKEN) or None
    try:
        token = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"--token-file {file} cannot be read: {said}") from None
    if not token:
        raise UsageError(f"--token-file {file} is empty", remedy="Write a long random secret into it.")
    return token
