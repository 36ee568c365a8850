"""Evaluation: run variants of a job, score what they answered, and say which differences are real.

The rooms, each importing only from those below it:

    evaluate, planning     the order of an evaluation; what it would ask and cost
    checking, suite_runs   jobs fit together; every variant runs under shared limits
    results                scores of today's rows, judges' cases, summary files, gates for CI
    suite                  the suite file: variants, scorers, judges
    scorers                one answer becomes a number
    statistics             intervals, tests, comparisons, classes

numpy, scipy and the other libraries of the extra `batchchat[eval]` are imported by this package alone: import its
modules late, after `require_extra`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from batchchat.errors import UsageError

_NEEDED = ("numpy", "scipy", "regex", "rapidfuzz", "plotly")


def require_extra() -> None:
    """Raise UsageError, with what to install, where a library of the extra is missing."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"evaluations need {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            remedy=f"pip install {' '.join(missing)}; or in a checkout of batchchat: pip install '.[eval]'",
        )


def is_suite(path: Path) -> bool:
    """Return whether a file is a suite and no job, as far as its fields tell. Raises what reading a job raises."""
    from batchchat.job.reading import nearest_file
    from batchchat.job.syntax import parse_yaml, read_job_text

    data = parse_yaml(read_job_text(path, nearest_file(path)), path).data
    return isinstance(data, dict) and "variants" in data and "messages" not in data
