"""Rows that belong together: the rows of one document or customer are one piece of evidence, not many.

Rows of a cluster tend to be right or wrong together. Taken for independent rows, they make intervals too narrow and
p values too small. So what varies here is the cluster: sums of rows are taken cluster by cluster, and everything that
follows counts clusters.

    se² = G / (G - 1) · Σ_g (Σ_{i in g} (x_i - mean))² / n²

is the cluster-robust variance of a mean of n rows in G clusters (Liang and Zeger 1986, Biometrika 73:13-22; for means
of evaluations Miller 2024, arXiv:2411.00640, section 2.2, which has no factor G / (G - 1)). Intervals are Student's t
with G - 1 degrees of freedom (Cameron and Miller 2015, Journal of Human Resources 50:317-372).

Sums are exactly rounded (`math.fsum`), so no result depends on the order of the rows, and what is found of b - a is
exactly the negative of what is found of a - b.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from batchchat.evaluation.statistics.intervals import CONFIDENCE, Array, Interval, is_binary, wilson_interval
from batchchat.evaluation.statistics.unit import ScoreUnit

Clusters = NDArray[np.int64]
"""The cluster of each row, as any whole number; rows with the same number belong together."""


class ClusterSums(NamedTuple):
    """Rows added up by cluster: shape (clusters,) each, in no special order."""

    sums: Array
    sizes: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return int(np.sum(self.sizes))

    @property
    def mean(self) -> float:
        """Return the mean of the rows, each row with the same weight."""
        return math.fsum(self.sums) / self.rows

    def deviations(self) -> Array:
        """Return by how much the sum of each cluster differs from what it would be at the mean."""
        found: Array = self.sums - self.sizes * self.mean
        return found

    def standard_error(self) -> float:
        """Return the cluster-robust standard error of the mean; at least two clusters are needed."""
        size = self.sums.size
        squares = math.fsum(self.deviations() ** 2)
        return math.sqrt(size / (size - 1) * squares) / self.rows


def cluster_sums(rows: Array, clusters: Clusters) -> ClusterSums:
    """Add up rows (shape (rows,), all finite) by their clusters (same shape)."""
    order = np.argsort(clusters, kind="stable")
    ordered = rows[order].tolist()
    _, starts, sizes = np.unique(clusters[order], return_index=True, return_counts=True)
    ends = starts + sizes
    sums = [math.fsum(ordered[start:end]) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    return ClusterSums(np.array(sums, dtype=np.float64), sizes.astype(np.int64))


def clustered_interval(
    rows: Array, clusters: Clusters, scale: ScoreUnit, *, confidence: float = CONFIDENCE
) -> Interval:
    """Return the interval of a mean of rows in clusters, cut where the scale ends.

    Yes/no rows that are all alike get Wilson's interval for as many rows as there are clusters: they show no spread,
    and a cluster is then the most that can be counted.
    """
    if rows.size == 0:
        return Interval(None, None, None, "no row has a value")
    found = cluster_sums(rows, clusters)
    size = int(found.sums.size)
    if size == 1:
        return Interval(None, None, None, "all rows are of one cluster: it says nothing about the spread")
    if rows.min() == rows.max():
        if scale.yes_no and is_binary(rows):
            whole = wilson_interval(size if rows[0] else 0, size)
            return Interval(whole.low, whole.high, "wilson_clusters")
        return Interval(None, None, None, "all rows have the same value: they say nothing about the spread")
    mean, error = found.mean, found.standard_error()
    if error == 0:
        return Interval(None, None, None, "all clusters have the same mean: they say nothing about the spread")
    half = float(stats.t.ppf((1 + confidence) / 2, size - 1)) * error
    low, high = max(mean - half, scale.low), min(mean + half, scale.high)
    return Interval(min(low, mean), max(high, mean), "student_t_clusters")
