"""A template that answers yes or no about a row, such as a job's `skip`."""

from __future__ import annotations

from batchchat.template.leaf import Leaf, RowTemplateError, Values
from batchchat.template.sandbox import Environment

_YES = frozenset({"true", "yes", "1"})
_NO = frozenset({"", "false", "no", "0"})
_SHOWN = 60


class Condition:
    """A compiled condition. `place` is the field of the job that holds it, `names` are the columns that it names.

    The text that the template gives decides, without the blanks around it and in any case: `true`, `yes` or `1`, and
    `false`, `no`, `0` or nothing. Any other text is an error: a row must not be left out because of a slip.
    """

    __slots__ = ("_leaf", "names", "place")

    def __init__(self, source: str, place: str) -> None:
        self._leaf = Leaf(Environment(), source, place)
        self.place = place
        self.names = self._leaf.names

    def holds(self, values: Values) -> bool:
        """Return whether the condition is true of a row. Raises RowTemplateError if it is neither true nor false."""
        text = self._leaf.render(values).strip()
        word = text.lower()
        if word in _YES:
            return True
        if word in _NO:
            return False
        shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
        raise RowTemplateError(
            f"{self.place}: {shown!r} is neither true nor false: write a condition, such as "
            "{{ not column }} or {{ column == 'text' }}"
        )
