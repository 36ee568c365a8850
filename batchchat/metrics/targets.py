"""Where figures go: an address, a file, or a collector, as `--metrics` names them."""

from __future__ import annotations

import importlib.util
import ipaddress
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from batchchat.errors import UsageError
from batchchat.events import Event, Listener
from batchchat.metrics.recorder import Recorder

OTLP = "otlp"
_REMEDY = "Give HOST:PORT such as 127.0.0.1:9464, a file such as run.prom, or otlp."


@contextmanager
def open_metrics(targets: Sequence[str], listener: Listener) -> Iterator[Recorder]:
    """Open the targets, and yield the recorder whose figures they show. They are closed at the end.

    Raises UsageError if a target cannot be read or had, or if the package that it needs is not there; nothing is open
    then.
    """
    recorder = Recorder()
    with ExitStack() as stack:
        for target in dict.fromkeys(targets):
            if target.lower() == OTLP:
                _need("opentelemetry.exporter", "otel", target)
                from batchchat.metrics.otlp import OtlpPush

                stack.enter_context(OtlpPush(recorder, listener))
            elif target.endswith(".prom"):
                _need("prometheus_client", "metrics", target)
                from batchchat.metrics.prometheus import PrometheusFile

                stack.enter_context(PrometheusFile(recorder, Path(target), listener))
            else:
                host, port = read_address(target)
                _need("prometheus_client", "metrics", target)
                from batchchat.metrics.prometheus import PrometheusServer

                stack.enter_context(PrometheusServer(recorder, host, port, listener))
                if not _is_loopback(host):
                    text = (
                        f"--metrics {target}: everybody who reaches this machine can read the figures: names of jobs, "
                        "models and costs"
                    )
                    listener(Event("warning", text, "warning"))
        yield recorder


def read_address(text: str) -> tuple[str, int]:
    """Read `HOST:PORT`; an IPv6 address stands in brackets. Raises UsageError."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise UsageError(f"--metrics {text[:80]}: an IPv6 address stands in brackets: [::1]:9464", remedy=_REMEDY)
    if not colon or not host or not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65_535):
        raise UsageError(f"--metrics {text[:80]}: neither an address with a port, nor a .prom file", remedy=_REMEDY)
    return host, int(port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _need(module: str, extra: str, target: str) -> None:
    """Raise UsageError if a package is not there."""
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package above it is not there
        found = False
    if not found:
        raise UsageError(
            f"--metrics {target} needs the extra batchchat[{extra}]", remedy=f"pip install 'batchchat[{extra}]'"
        )
