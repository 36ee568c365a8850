"""Modules that libraries would import for themselves, and that no command of this program needs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType


def spare_imports() -> None:
    """Keep two large imports from this process. To be called before httpx and Arrow are imported.

    httpx brings a command line of its own, with rich and pygments, which it does without if that cannot be imported:
    importing them was a tenth of the start.

    Where pandas is installed, Arrow imports it at the first list that it makes an array of, only to see whether the
    list is one of pandas'. That takes longer than everything else that a run imports.
    """
    # None tells the import system that there is no such module. This process is ours: nobody else imports httpx here.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
    sys.meta_path.insert(0, _PandasOnlyForOthers())


class _PandasOnlyForOthers:
    """Says to this package, and to Arrow below it, that pandas is not installed. A user's own modules may import it."""

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> None:
        # Arrow asks from compiled code, which has no frame: the first one that is not of the import system is that of
        # whoever called Arrow.
        if name == "pandas" and _importer().startswith(("batchchat.", "pyarrow.")):
            raise ModuleNotFoundError("No module named 'pandas'", name=name)


def _importer() -> str:
    """Return the name of the module that imports something now."""
    frame = sys._getframe(2)  # noqa: SLF001 - `inspect` would be another import
    while (back := frame.f_back) is not None and _name(frame).startswith(("importlib", "_frozen_importlib")):
        frame = back
    return _name(frame)


def _name(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
