"""Figures pushed by OpenTelemetry (OTLP over HTTP), with the names of its conventions for generative AI.

Where to, and with which headers, say the environment variables of OpenTelemetry (`OTEL_EXPORTER_OTLP_ENDPOINT`, …). A
meter of its own SDK would be told each answer; here what is counted already is pushed as it stands.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Self

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

import batchchat
from batchchat.events import Event, Listener
from batchchat.metrics.figures import Family, families
from batchchat.metrics.recorder import Buckets, Recorder, RunMeter

_PUSH_S = 10.0
"""Seconds between two pushes, if `OTEL_METRIC_EXPORT_INTERVAL` says nothing else: short jobs are seen, too."""
_PUSH_TIMEOUT_S = 5.0
"""How long one push may take, with its retries: a collector that does not answer holds back the end of the process."""
_UNITS = {"seconds": "s", "": "1"}
_CUMULATIVE = AggregationTemporality.CUMULATIVE


class OtlpPush:
    """Pushes the figures now and then, and at the end. A collector that is away is told once, and ends no run.

    `timeout_s` is how long one push may take, in seconds.
    """

    def __init__(self, recorder: Recorder, listener: Listener, *, timeout_s: float = _PUSH_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._recorder = recorder
        self._listener = listener
        self._troubled = False
        self._done = threading.Event()
        # It says in its own log what is told as one event here.
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
        self._exporter = OTLPMetricExporter()
        self._resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "batchchat")})
        self._thread = threading.Thread(target=self._work, name="metrics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._done.set()
        # One push may be under way, and the last one comes behind it.
        self._thread.join(2 * self._timeout_s)
        self._exporter.shutdown(timeout_millis=1000)

    def _work(self) -> None:
        while not self._done.wait(_interval_s()):
            self._push()
        self._push()

    def _push(self) -> None:
        scope = InstrumentationScope("batchchat", batchchat.__version__)
        metrics = list(otlp_metrics(self._recorder, time.time_ns()))
        # Before the first snapshot there is nothing to tell.
        if not metrics:
            return
        data = MetricsData([ResourceMetrics(self._resource, [ScopeMetrics(scope, metrics, "")], "")])
        try:
            pushed = self._exporter.export(data, timeout_millis=self._timeout_s * 1000)
            problem = None if pushed is MetricExportResult.SUCCESS else "the collector did not take them"
        except Exception as error:  # noqa: BLE001 - whatever the exporter meets: figures are no reason to end a run
            problem = f"{type(error).__name__}: {error}"
        if problem is not None and not self._troubled:
            self._troubled = True
            text = (
                f"--metrics otlp: {problem}. OTEL_EXPORTER_OTLP_ENDPOINT says where the collector is, "
                "http://localhost:4318 if it is not set; the run goes on"
            )
            self._listener(Event("warning", text, "warning"))


def _interval_s() -> float:
    """Return the time between two pushes: the variable of OpenTelemetry is in milliseconds."""
    try:
        return max(0.1, float(os.environ["OTEL_METRIC_EXPORT_INTERVAL"]) / 1000)
    except (KeyError, ValueError):
        return _PUSH_S


def otlp_metrics(recorder: Recorder, now_ns: int) -> Iterator[Metric]:
    """Yield all figures that have a value, and those of the conventions for generative AI."""
    start_ns = int(recorder.started * 1e9)
    for family in families(recorder):
        if family.buckets:
            points = [_histogram(labels, buckets, start_ns, now_ns) for labels, buckets in family.buckets]
            yield Metric(family.name, family.help, _UNITS[family.unit], Histogram(points, _CUMULATIVE))
        elif family.values:
            yield Metric(family.name, family.help, _UNITS[family.unit], _numbers(family, start_ns, now_ns))
    usage, duration = [], []
    for meter in recorder.meters():
        for answers in meter.answers():
            common = {**_attributes(meter), **({"gen_ai.response.model": answers.model} if answers.model else {})}
            error = {"error.type": answers.error_kind} if answers.error_kind else {}
            duration.append(_histogram({**common, **error}, answers.duration_s, start_ns, now_ns))
            for kind, buckets in (("input", answers.input_tokens), ("output", answers.output_tokens)):
                usage.append(_histogram({**common, **error, "gen_ai.token.type": kind}, buckets, start_ns, now_ns))
    if usage:
        text = "Number of input and output tokens used."
        yield Metric("gen_ai.client.token.usage", text, "{token}", Histogram(usage, _CUMULATIVE))
        text = "GenAI operation duration."
        yield Metric("gen_ai.client.operation.duration", text, "s", Histogram(duration, _CUMULATIVE))


def _attributes(meter: RunMeter) -> dict[str, str]:
    found = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": meter.provider,
        "gen_ai.request.model": meter.model,
        "batchchat.job": meter.job,
    }
    return {**found, "batchchat.variant": meter.variant} if meter.variant else found


def _numbers(family: Family, start_ns: int, now_ns: int) -> Sum | Gauge:
    points = [NumberDataPoint(dict(labels), start_ns, now_ns, value) for labels, value in family.values]
    return Sum(points, _CUMULATIVE, is_monotonic=True) if family.kind == "counter" else Gauge(points)


def _histogram(labels: Mapping[str, str], buckets: Buckets, start_ns: int, now_ns: int) -> HistogramDataPoint:
    counts = buckets.counts()
    return HistogramDataPoint(
        attributes=dict(labels),
        start_time_unix_nano=start_ns,
        time_unix_nano=now_ns,
        count=sum(counts),
        sum=buckets.sum,
        bucket_counts=counts,
        explicit_bounds=buckets.bounds,
        min=buckets.lowest,
        max=buckets.highest,
    )
