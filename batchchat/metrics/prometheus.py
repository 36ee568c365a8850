"""Figures for Prometheus: over HTTP, or in a file that its node exporter reads."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from prometheus_client import CollectorRegistry, start_http_server, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from batchchat.errors import UsageError
from batchchat.events import Event, Listener
from batchchat.metrics.figures import Family, families, prometheus_name
from batchchat.metrics.recorder import Recorder

_WRITE_S = 10.0
"""Seconds between two writings of the file: what reads such files looks every 15 s to a minute."""


class _Figures(Collector):
    """Gives the figures as they are when somebody asks."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def collect(self) -> Iterable[Metric]:
        """Return all figures that have a value."""
        return [_metric(family) for family in families(self._recorder) if family.values or family.buckets]

    def describe(self) -> Iterable[Metric]:
        """Return nothing: names are not checked beforehand, since there is one collector only."""
        return []


def _metric(family: Family) -> Metric:
    name = prometheus_name(family)
    labels = _names(labels for labels, _ in (*family.values, *family.buckets))
    # Prometheus wants the sum of all lower buckets in each, and we count each by itself.
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(name, family.help, labels=labels)
        for own, buckets in family.buckets:
            told, number = [], 0
            for bound, count in zip((*buckets.bounds, math.inf), buckets.counts(), strict=True):
                number += count
                told.append((_bound(bound), number))
            histogram.add_metric([own.get(label, "") for label in labels], told, buckets.sum)
        return histogram
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(name, family.help, labels=labels)
    for own, value in family.values:
        metric.add_metric([own.get(label, "") for label in labels], value)
    return metric


def _names(all_labels: Iterable[Iterable[str]]) -> list[str]:
    """Return the names of all labels that some value has, in the order in which they come."""
    return list(dict.fromkeys(name for labels in all_labels for name in labels))


def _bound(bound: float) -> str:
    return "+Inf" if bound == math.inf else f"{bound:.10g}"


def _registry(recorder: Recorder) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_Figures(recorder))
    return registry


class PrometheusServer:
    """Serves the figures over HTTP until it is closed. Raises UsageError if the address cannot be had."""

    def __init__(self, recorder: Recorder, host: str, port: int, listener: Listener) -> None:
        try:
            self._server, self._thread = start_http_server(port, addr=host, registry=_registry(recorder))
        except OSError as error:
            raise UsageError(
                f"--metrics {host}:{port}: cannot listen there: {error.strerror or error}",
                remedy="Name another port, or end what listens there; port 0 takes a free one.",
            ) from None
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_port}/metrics"
        listener(Event("metrics_served", f"metrics are served at {self.url}", "info", {"url": self.url}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(1)


class PrometheusFile:
    """Writes the figures to a file now and then, and at the end; the file is whole at every moment.

    Raises UsageError if the file cannot be written at the start.
    """

    def __init__(self, recorder: Recorder, path: Path, listener: Listener) -> None:
        self._path = path
        self._registry = _registry(recorder)
        self._listener = listener
        self._troubled = False
        self._done = threading.Event()
        try:
            write_to_textfile(str(path), self._registry)
        except OSError as error:
            raise UsageError(
                f"--metrics {path}: cannot be written: {error.strerror or error}",
                remedy="Name a file in a folder that exists and that you may write to.",
            ) from None
        self._thread = threading.Thread(target=self._work, name="metrics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._done.set()
        self._thread.join(_WRITE_S)

    def _work(self) -> None:
        while not self._done.wait(_WRITE_S):
            self._write()
        self._write()  # the last values stay

    def _write(self) -> None:
        try:
            write_to_textfile(str(self._path), self._registry)
        except OSError as error:
            # Figures are no reason to end a run.
            if not self._troubled:
                self._troubled = True
                text = f"--metrics {self._path}: cannot be written any more: {error.strerror or error}"
                self._listener(Event("warning", text, "warning"))
