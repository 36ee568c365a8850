"""Metrics: the figures of a run for those who watch many: Prometheus, a file, or OpenTelemetry.

A run gives its snapshots and its records to a `Recorder`. Whoever wants figures reads them from there, in a thread of
its own, and never waits for the run, nor the run for it. `targets` opens what the command line names; the libraries are
imported only then.
"""

from __future__ import annotations

from batchchat.metrics.recorder import Recorder, RunMeter
from batchchat.metrics.targets import open_metrics

__all__ = ["Recorder", "RunMeter", "open_metrics"]
