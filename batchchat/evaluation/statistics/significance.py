"""Tests of paired differences, the adjustment of their p values, and how many rows a test needs."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from batchchat.evaluation.statistics.intervals import SEED, Array

ALPHA = 0.05
"""The level of all tests: a difference that is none is called real once in twenty evaluations."""
POWER = 0.8
"""The power for which needed rows are told: a difference as seen would be found four times out of five."""
FLIPS = 9_999
"""Random draws of a permutation test: the smallest p is then 0.0001, and p = 0.05 has a standard error of 0.002."""
_MOST_DRAWS = 39_999
"""The most draws of a permutation test: enough for a corrected alpha of 0.00005. Time grows with them."""
EXACT_ROWS = 16
"""Up to so many rows all sign patterns are tried: 65,536 of them take 0.7 ms."""
_NORMAL_SIZES = 200
"""From so many different sizes on the normal approximation may be used; `sign_flip_test` derives the error."""
_FLIPPED_SIZES = 2_000
"""Sizes that are flipped one by one; the smaller ones beyond it are drawn together as one normal value."""
_BLOCK = 1 << 20
"""Signs held at once: 8 MiB of float64, whatever the number of rows. Four times as many take the same time."""


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Make the exact two-sided McNemar test: is a discordant pair as likely to favour a as b? Without any, p is 1.

    The conditional test of McNemar 1947 (Psychometrika 12:153-157) with the binomial distribution itself.
    """
    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def enough_draws(alpha: float, least: int) -> int:
    """Return how many random draws a test needs so that its smallest p lies well below the level that it is held to.

    The smallest p of m draws is 1 / (m + 1). Many pairs make the level of a single one strict; 39,999 draws, enough for
    45 variants, are the most.
    """
    return min(max(least, math.ceil(2 / alpha) - 1), max(least, _MOST_DRAWS))


def sign_flip_test(differences: ArrayLike, *, seed: int = SEED, draws: int = FLIPS) -> tuple[float, str]:
    """Two-sided paired permutation test of a mean difference of zero; gives p and how it was found.

    If the variants were alike, each row's difference would be as likely with the other sign (Fisher 1935, The Design
    of Experiments, section 21). Rows without a difference carry nothing.

    - `sign_flip_exact`: up to 16 rows, all 2^n flips.
    - `sign_flip_normal`: more than 200 different sizes, of which no few dominate. The flipped sum has mean 0, variance
      sum(d^2) and no skewness, exactly, so the normal approximation is off by about 0.016 / n' around p = 0.05, where
      n' = sum(d^2)^2 / sum(d^4) (the next term of its Edgeworth series). It is used from n' = 200: far closer than
      resampling. Sizes on a grid add at most half a step: 200 of them make the deviation 1,600 steps or more.
    - `sign_flip_monte_carlo`: otherwise. By m `draws`, p = (b + 1) / (m + 1), which is never 0 (Phipson and Smyth
      2010, SAGMB 9:39). Rows of equal size are flipped together by a binomial draw, which is the same distribution.
      Beyond 2,000 different sizes the smaller ones are drawn together, as one normal value of their variance.
    """
    values = np.asarray(differences, dtype=np.float64)
    sizes, counts = np.unique(np.abs(values[values != 0]), return_counts=True)
    nonzero = int(np.sum(counts))
    if nonzero == 0:
        return 1.0, "sign_flip_exact"
    # Scaled by the largest, so that no square or fourth power leaves the range of a float.
    scale = sizes[-1]
    sizes = sizes / scale
    observed = abs(float(np.sum(np.sort(values / scale))))
    # Sums that are equal on paper may differ in the last bits, by the order of adding.
    reached = observed - 1e-12 * float(np.sum(sizes * counts))
    if nonzero <= EXACT_ROWS:
        sums = np.zeros(1)
        for size in np.repeat(sizes, counts):
            sums = np.concatenate([sums + size, sums - size])
        return float(np.mean(np.abs(sums) >= reached)), "sign_flip_exact"
    squares = float(np.sum(counts * sizes**2))
    if sizes.size > _NORMAL_SIZES and squares**2 / float(np.sum(counts * sizes**4)) >= 200:
        p_value = float(2 * stats.norm.sf(observed / math.sqrt(squares)))
        # Far out the tail leaves the range of a float; no p is 0.
        return min(max(p_value, sys.float_info.min), 1.0), "sign_flip_normal"
    sums = _flipped_sums(sizes, counts, np.random.default_rng(seed), draws)
    return (int(np.sum(np.abs(sums) >= reached)) + 1) / (draws + 1), "sign_flip_monte_carlo"


def _flipped_sums(sizes: Array, counts: NDArray[np.intp], generator: np.random.Generator, draws: int) -> Array:
    """So many sums of the differences under random signs, in blocks of bounded memory; `sizes` ascend."""
    small = float(np.sum(counts[:-_FLIPPED_SIZES] * sizes[:-_FLIPPED_SIZES] ** 2))
    sizes, counts = sizes[-_FLIPPED_SIZES:], counts[-_FLIPPED_SIZES:]
    single, shared, repeats = sizes[counts == 1], sizes[counts > 1], counts[counts > 1]
    sums = generator.normal(0.0, math.sqrt(small), draws) if small else np.zeros(draws)
    block = max(1, _BLOCK // sizes.size)
    for start in range(0, draws, block):
        size = min(block, draws - start)
        if single.size:
            packed = np.frombuffer(generator.bytes(size * -(-single.size // 8)), dtype=np.uint8).reshape(size, -1)
            positive = np.unpackbits(packed, axis=1, count=single.size)
            sums[start : start + size] += (2.0 * positive - 1) @ single
        if shared.size:
            positive_rows = generator.binomial(repeats, 0.5, size=(size, repeats.size))
            sums[start : start + size] += (2.0 * positive_rows - repeats) @ shared
    return sums


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment over those that are not None (Holm 1979, Scandinavian J. of Statistics 6:65-70)."""
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(1.0, (len(known) - rank) * p))
        adjusted[place] = least
    return adjusted


def needed_pairs(only_a: float, only_b: float, *, alpha: float = ALPHA, power: float = POWER) -> int | None:
    """Rows that McNemar's test needs, given the shares of discordant pairs in each direction; None if they are equal.

    n = (z₁ √ψ + z₂ √(ψ - δ²))² / δ² with ψ = only_a + only_b and δ = only_a - only_b (Connor 1987, Biometrics
    43:207-211); z₁ and z₂ are the normal quantiles of 1 - alpha / 2 and of the power.
    """
    discordant, difference = only_a + only_b, only_a - only_b
    if difference == 0:
        return None
    test, reach = stats.norm.ppf(1 - alpha / 2), stats.norm.ppf(power)
    root: float = test * math.sqrt(discordant) + reach * math.sqrt(max(discordant - difference**2, 0.0))
    return math.ceil((root / difference) ** 2)


def needed_rows(difference: float, deviation: float, *, alpha: float = ALPHA, power: float = POWER) -> int | None:
    """Return how many rows a paired test of a mean difference needs, None without a difference.

    Arguments:
        difference: the mean difference δ to be found.
        deviation: the standard deviation s of row differences, in the same unit.
        alpha: the two-sided level of the test.
        power: the probability of finding it.

    n = ((z₁ + z₂) s / δ)², by the normal approximation (Lachin 1981, Controlled Clinical Trials 2:93-113).
    """
    if difference == 0 or deviation == 0:
        return None
    root = (stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)) * deviation / difference
    return math.ceil(root**2) if math.isfinite(root**2) else None


def needed_for_equivalence(
    difference: float, deviation: float, margin: float, *, alpha: float = ALPHA, power: float = POWER
) -> int | None:
    """Rows that two one-sided tests need to show that a difference is smaller than a margin; None if it is not.

    n = ((z₁ + z₂) s / (m - |δ|))² with the normal quantiles of 1 - alpha and of 1 - (1 - power) / 2 (Chow, Shao and
    Wang 2008, Sample Size Calculations in Clinical Research, section 3.1).
    """
    room = margin - abs(difference)
    if room <= 0 or deviation == 0:
        return None
    root = (stats.norm.ppf(1 - alpha) + stats.norm.ppf(1 - (1 - power) / 2)) * deviation / room
    return math.ceil(root**2) if math.isfinite(root**2) else None
