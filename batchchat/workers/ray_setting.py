"""What a worker on another node needs to have around it: the files of the job, and the secrets of its environment."""

from __future__ import annotations

import fcntl
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from batchchat.addresses import is_url
from batchchat.dataclass import dataclass
from batchchat.job import Job, load_keys
from batchchat.job.targets import targets_of

Problem = tuple[str, str]
"""What is wrong in words, and its remedy."""

_FAMILIES = ("AWS_", "AZURE_", "GOOGLE_", "BATCHCHAT_")
"""Prefixes of variables that credentials, addresses of object storage and secrets of brokers are read from."""
_HUB = frozenset({"HF_ENDPOINT", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"})
"""Variables of a hub of datasets. Those that name a folder of tokens stay out: each node has its own folders."""
_PROXIES = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"})
_SHARED_REMEDY = (
    "Write to object storage, such as `--output s3://bucket/run`, or to a folder that is at the same path on all nodes."
)


def passed_environment(job: Job, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that workers on other nodes need: keys of the job, credentials of storage, proxies."""
    known = load_keys(job, environ)
    keys = {endpoint.provider.api_key_env for target in targets_of(job) for endpoint in target.endpoints}
    return {
        name: value
        for name, value in known.items()
        if name in keys or name in _HUB or name.startswith(_FAMILIES) or name.upper() in _PROXIES
    }


@dataclass(frozen=True, slots=True)
class Probe:
    """What a node must see: `file` with the text `nonce`, held by a lock; and `input`, of `size` bytes if known."""

    file: str | None
    nonce: str
    input: str | None
    size: int | None

    def told(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


@contextmanager
def probing(job: Job) -> Iterator[Probe]:
    """Put a file with a lock beside the output of a job, if that is a folder, and yield what nodes must see."""
    source = str(job.input.path)
    size = None
    if is_url(source) or any(letter in source for letter in "*?["):
        seen = None
    else:
        path = seen = Path(source)
        size = path.stat().st_size if path.is_file() else None
    nonce = secrets.token_hex(16)
    told = None if seen is None else str(seen)
    if is_url(job.output.path):
        yield Probe(None, nonce, told, size)
        return
    # An output that is there may be a mount of its own; of one that is not, the folder around it counts.
    folder = Path(job.output.path).absolute()
    if not folder.is_dir():
        folder = folder.parent
        folder.mkdir(parents=True, exist_ok=True)
    file = folder / f".batchchat-probe-{nonce}"
    with file.open("x", encoding="ascii") as open_file:
        try:
            open_file.write(nonce)
            open_file.flush()
            fcntl.flock(open_file, fcntl.LOCK_EX)
            yield Probe(str(file), nonce, told, size)
        finally:
            file.unlink(missing_ok=True)


def problem_with(probe: Mapping[str, Any]) -> Problem | None:
    """Return what this node does not see of a probe, and the remedy; None if it sees all."""
    if probe["file"] is not None and (problem := _problem_with_folder(Path(probe["file"]), probe["nonce"])):
        return problem
    if probe["input"] is None:
        return None
    source = Path(probe["input"])
    if not source.exists():
        return f"it does not see the input {source}", "Put the input on object storage, or at this path on all nodes."
    if probe["size"] is not None and source.stat().st_size != probe["size"]:
        return f"its {source} has another size than the coordinator's", "Put the same input on all nodes."
    return None


def _problem_with_folder(file: Path, nonce: str) -> Problem | None:
    try:
        with file.open(encoding="ascii") as open_file:
            if open_file.read() != nonce:
                return f"its {file.parent} is another folder than the coordinator's", _SHARED_REMEDY
            try:
                fcntl.flock(open_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return None
    except FileNotFoundError:
        return f"it does not see the folder of the output, {file.parent}", _SHARED_REMEDY
    except OSError as error:
        return f"it cannot read the folder of the output, {file.parent}: {error.strerror}", _SHARED_REMEDY
    # The lock was granted, although the coordinator holds it: two workers could write one shard.
    return f"the file system of {file.parent} does not keep locks between nodes", _SHARED_REMEDY
