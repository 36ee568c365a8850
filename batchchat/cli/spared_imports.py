"""Modules that libraries would import for themselves, and that no command of this program needs."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType


def spare_imports() -> None:
    """Keep three large imports from this process. To be called before pydantic, httpx and Arrow are imported.

    httpx brings a command line of its own, with rich and pygments, which it does without if that cannot be imported:
    importing them was a tenth of the start.

    Where pandas is installed, Arrow imports it at the first list that it makes an array of, only to see whether the
    list is one of pandas'. That takes longer than everything else that a run imports.

    pydantic looks for plugins in the descriptions of all installed packages, before it validates anything. This
    program has none.
    """
    # None tells the import system that there is no such module. This process is ours: nobody else imports httpx here.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
    sys.meta_path.insert(0, _PandasOnlyForOthers())
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    if "importlib.metadata" not in sys.modules:
        sys.modules["importlib.metadata"] = _Metadata()


class _Metadata(ModuleType):
    """Stands in the place of `importlib.metadata`, which is imported when it is used."""

    def __init__(self) -> None:
        super().__init__("importlib.metadata")
        # Every `from importlib.metadata import …` asks for this.
        self.__path__ = [f"{importlib.__path__[0]}/metadata"]

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)

    def entry_points(self, **params: str) -> Any:
        """Return what packages offer. pydantic takes this function from the module, and does not call it."""
        return self.__getattr__("entry_points")(**params)


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
