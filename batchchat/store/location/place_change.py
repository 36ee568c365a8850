"""How a new output takes the place of the old one in a folder. A kill at any moment leaves one of them there.

The new output is built beside the old one, as a draft. In the draft lies a mark while the two change places: it says
that the draft is whole, and under which name the old output is kept. A system that can exchange two folders leaves no
moment without an output. On others there is one, after which whoever looks for the output first puts the draft there.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from batchchat.store.location.disk import exchange, free_name, publish_bytes, synchronize_folder

_MARK = "changing-places"


class PlaceChange:
    """The place of an output, and the draft that is to come there. `state` is the path of the state in an output."""

    def __init__(self, root: Path, state: str) -> None:
        self.draft = root.with_name(f"{root.name}.resharding")
        self._root = root
        self._state = state

    def tidy(self) -> None:
        """Remove what a kill left, but keep the draft if it is the old output. Raises OSError."""
        kept = self._kept(self._root)
        if self.draft.exists():
            if kept is not None and not kept.exists():
                # The two had changed places when the kill came, and the old one had not its new name yet.
                self.draft.rename(kept)
            else:
                shutil.rmtree(self.draft)
        self._unmark()

    def change(self) -> Path:
        """Let the two change places; return where the old output is now. Raises OSError."""
        kept = free_old_name(self._root)
        state = self.draft / self._state
        publish_bytes(state / _MARK, os.fsencode(kept.name), temporary=state / "tmp")
        if exchange(self._root, self.draft):
            synchronize_folder(self._root.parent)
            self.draft.rename(kept)
        else:
            # A file system that cannot exchange two folders, as some network ones: for a moment there is none.
            self._root.rename(kept)
            synchronize_folder(self._root.parent)
            self.complete()
        synchronize_folder(self._root.parent)
        self._unmark()
        return kept

    def complete(self) -> bool:
        """Put a whole draft into its place, which the old output has just left. Tell whether an output is there now.

        Raises OSError.
        """
        kept = self._kept(self.draft)
        # Without the old output under its new name, somebody has removed what was here: it must not come back.
        if kept is None or not kept.exists():
            return False
        with suppress(FileNotFoundError):  # another process that looked was quicker
            self.draft.rename(self._root)
        return self._root.exists()

    def _kept(self, folder: Path) -> Path | None:
        """Return where the old output is kept whose place the one in a folder takes; None if it takes nobody's."""
        try:
            name = (folder / self._state / _MARK).read_bytes()
        except OSError:
            return None
        return self._root.with_name(os.fsdecode(name))

    def _unmark(self) -> None:
        (self._root / self._state / _MARK).unlink(missing_ok=True)


def free_old_name(root: Path) -> Path:
    """Return a free path beside an output for what it was."""
    return free_name(root.parent, f"{root.name}.old-{datetime.now(UTC):%Y%m%d-%H%M%S}")
