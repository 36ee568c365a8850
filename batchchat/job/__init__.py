"""A job: a validated job file.

`load_job` reads the YAML, applies `--set` overrides and validates every field; whatever is wrong is told with file,
line and remedy, all of it at once. Paths in a job file are relative to that file. The result is immutable; nothing
here touches the network or the output.
"""

from batchchat.job.keys import api_key, key_problem, key_source, load_keys
from batchchat.job.model import Job, has_lines
from batchchat.job.reading import FieldChange, job_of, load_job, read_override, validate_job
from batchchat.job.sections import failed_kinds
from batchchat.job.values import parse_duration, write_duration

__all__ = [
    "FieldChange",
    "Job",
    "api_key",
    "failed_kinds",
    "has_lines",
    "job_of",
    "key_problem",
    "key_source",
    "load_job",
    "load_keys",
    "parse_duration",
    "read_override",
    "validate_job",
    "write_duration",
]
