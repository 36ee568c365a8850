"""Where a batch stands, by the clock and by how many of its lines are answered."""

from __future__ import annotations

from batchchat.demo.batches.batch import Batch, Stand
from batchchat.demo.batches.faults import BatchFaults

_VALIDATED, _RAN, _CANCELLED = 0.15, 0.85, 0.1
"""Shares of a batch's time: until it is validated, until all lines ran; and how long cancelling takes."""


class BatchTimeline:
    """Tells the statuses of batches that take `seconds` each, as faults change them.

    With `expires`, a batch ends at the end of its completion window.
    """

    def __init__(self, seconds: float, faults: BatchFaults, *, expires: bool) -> None:
        self._seconds = seconds
        self._faults = faults
        self._expires = expires

    def all_ran_at(self, batch: Batch) -> float:
        """Return when all lines of a batch seem to have run."""
        return batch.created + _RAN * self._seconds

    def stand(self, batch: Batch, now: float, answered: int) -> Stand:
        """Return where a batch stands at a moment at which so many of its lines are `answered`."""
        validated = batch.created + _VALIDATED * self._seconds
        if batch.problem is not None:
            if now < validated:
                return Stand("validating")
            return Stand("failed", times={"failed": validated})
        stand = self._ending(batch, now, answered) or self._running(batch, now, answered)
        if self._expires and not stand.ended and now >= batch.expires:
            done = self._running(batch, batch.expires, answered).done
            return Stand("expired", done, done, {**stand.times, "expired": batch.expires})
        return stand

    def _running(self, batch: Batch, now: float, answered: int) -> Stand:
        """Return where a batch stands that nobody cancels and that does not expire."""
        seconds, faults = self._seconds, self._faults
        validated, ran = (batch.created + share * seconds for share in (_VALIDATED, _RAN))
        if now < validated:
            return Stand("validating")
        times = {"in_progress": validated}
        share = 1.0 if now >= ran else (now - validated) / (ran - validated)
        done = min(answered, int(share * batch.total))
        if faults.batch("stuck_running", batch.number):
            return Stand("in_progress", min(done, batch.total // 2), times=times)
        # The clock is ahead of the thread: the batch waits for it.
        if now < ran or batch.worked is None or now < batch.worked:
            return Stand("in_progress", done, times=times)
        finalizing = max(ran, batch.worked)
        times["finalizing"] = finalizing
        end = finalizing + (1 - _RAN) * seconds + faults.seconds("finalizing")
        if now < end or faults.batch("stuck_finalizing", batch.number):
            return Stand("finalizing", batch.total, times=times)
        return Stand("completed", batch.total, batch.total, {**times, "completed": end})

    def _ending(self, batch: Batch, now: float, answered: int) -> Stand | None:
        """Return where a batch stands that was cancelled, or that is to expire by a fault; None if it is neither."""
        seconds, faults, number = self._seconds, self._faults, batch.number
        if faults.batch("expire", number) or faults.batch("expire_empty", number):
            due = batch.created + _RAN * seconds
            times = {"in_progress": batch.created + _VALIDATED * seconds}
            if now >= due and batch.worked is not None:
                done = 0 if faults.batch("expire_empty", number) else batch.total // 2
                return Stand("expired", done, done, {**times, "expired": due})
        if batch.cancelled is None:
            return None
        before = self._running(batch, batch.cancelled, answered)
        times = {**before.times, "cancelling": batch.cancelled}
        end = batch.cancelled + _CANCELLED * seconds + faults.seconds("cancel_slow")
        wants_all = faults.batch("cancel_all", number)
        # Cancelling takes its time, and with this fault every line is answered first.
        if now < end or (wants_all and batch.worked is None):
            return Stand("cancelling", before.done, times=times)
        done = batch.total if wants_all else before.done
        kept = 0 if faults.batch("cancel_none", number) else done
        return Stand("cancelled", done, kept, {**times, "cancelled": end})
