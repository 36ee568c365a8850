"""What refusals prove. A provider refuses now and then for reasons of its own: that says nothing about a rate.

Two questions are told apart by the answers alone:

- *Has a limit been met?* Then nearly everything is refused from one moment on. A cumulative sum of log-likelihood
  ratios (CUSUM; Page 1954, Biometrika 41:100-115) of "half of all or more are refused" against "as many as usual"
  finds that after three refusals in a row at a quiet server, and later at a noisy one.
- *How many are refused usually?* `share`, the mean over about 300 answers. Refusals that a limit explains are taken
  out again."""

from __future__ import annotations

import math

ALARM = 6.9
"""ln 1,000. At a server that refuses as often as `_USUAL_MIN` a false alarm comes once in several thousand answers."""
_USUAL_MIN = 0.05
"""A server is taken to refuse at least this share: three refusals in a row then reach the alarm (3 x 2.3)."""
_USUAL_MAX = 0.3
_LIMITED = 0.5
_MEMORY = 300
_PRIOR, _PRIOR_WEIGHT = 0.002, 20


class RefusalEvidence:
    """Counts answers and refusals of requests that were sent at the same pace."""

    __slots__ = ("_accepted_step", "_before", "_refused_step", "_score", "_weight", "share")

    def __init__(self) -> None:
        self.share = _PRIOR
        self._weight = _PRIOR_WEIGHT
        self._score = 0.0
        self._before = (self.share, self._weight)
        self._refused_step = self._accepted_step = 0.0
        self._expect()

    def _expect(self) -> None:
        usual = min(_USUAL_MAX, max(_USUAL_MIN, 1.5 * self.share + 0.02))
        limited = max(_LIMITED, 2 * usual)
        self._refused_step = math.log(limited / usual)
        self._accepted_step = math.log((1 - limited) / (1 - usual))

    def accepted(self) -> None:
        """Count an answer."""
        self._count(0.0)
        score = self._score
        if score:
            self._score = score + self._accepted_step if score > -self._accepted_step else 0.0

    def refused(self) -> bool:
        """Count a refusal; return whether a limit must have been met."""
        if not self._score:
            self._before = (self.share, self._weight)
        self._count(1.0)
        self._score += self._refused_step
        return self._score >= ALARM

    def _count(self, refused: float) -> None:
        if self._weight < _MEMORY:
            self._weight += 1
        self.share += (refused - self.share) / self._weight
        if refused:
            self._expect()

    def explained(self) -> None:
        """Forget the refusals since the last quiet moment: a limit explains them."""
        self.share, self._weight = self._before
        self._score = 0.0
        self._expect()

    def forgive(self) -> None:
        """Take the last refusal out of the usual share: the pace was a little too high, and is lower now."""
        self.share = max(0.0, self.share - 1.0 / self._weight)
        self._expect()

    def settled(self, refused: int, answered: int) -> None:
        """Take over what a trial showed: the pace was the cause of the refusals, and it is lower now."""
        self._weight = _PRIOR_WEIGHT + answered
        self.share = (_PRIOR * _PRIOR_WEIGHT + refused) / self._weight
        self._score = 0.0
        self._expect()

    @property
    def known(self) -> bool:
        """Tell whether enough refusals came for `share` to mean something."""
        return self.share * self._weight >= 3.0
