"""How good the labels are: people's reviews, agreement, calibration, and what a cascade may promise."""

from __future__ import annotations

from importlib.util import find_spec

from batchchat.errors import UsageError


def require_statistics() -> None:
    """Raise UsageError, with what to install, where a library that agreement needs is missing."""
    missing = [name for name in ("numpy", "scipy") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"agreement needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            remedy="pip install 'batchchat[eval]'; or in a checkout of batchchat: pip install '.[eval]'",
        )
