"""What a process and the keeper of a shared limit say to each other.

A `KeeperAsk` carries what the process wants and what it has learned since its last one. A `KeeperAnswer` carries the
permits that are granted, how long it is until another ask can bring more, and how the limit stands. Both are plain
values: the file carrier hands them over as they are, the broker writes them as JSON.
"""

from __future__ import annotations

from dataclasses import field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from batchchat.dataclass import dataclass
from batchchat.events import Pace
from batchchat.limits.ceilings import LimitCeilings
from batchchat.records import Axis, ErrorKind, Failure, LimitHeaders, Reply, Usage, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MESSAGE_MAX = 200
"""Characters of a failure's message that are passed on: enough for a person to recognise it."""


class Reconnected(Exception):
    """The way to the keeper was lost and is there again: what was asked may have been heard or not."""


class GrantedPermit(NamedTuple):
    """A permit that was granted, in the keeper's words: see `limits.controller.Grant`. `at` is the keeper's time."""

    tokens: int
    at: float
    level: int
    number: int
    probe: bool


class PermitSettled(NamedTuple):
    """What came of a permit: the reply, or None if the attempt was abandoned.

    `lent` is the permit. If it was reused within the same ask, the keeper has not named it yet: then `lent` is the
    place of the entry whose `successor` it was. `unused` tells that it was never sent. `took` is how many seconds a
    reused permit was held; None for one that the keeper granted. `successor` is the request that took the slot at once,
    with its tokens and key; None if the slot came back.
    """

    lent: GrantedPermit | int
    key: str | None
    reply: Reply | None
    unused: bool = False
    took: float | None = None
    successor: tuple[int, str | None] | None = None


class KeeperEvent(NamedTuple):
    """Something that the keeper's limiter told (see `events.Event`), with its place among all that it told."""

    place: int
    name: str
    message: str
    level: str
    fields: Mapping[str, Any]


@dataclass(slots=True)
class KeeperAsk:
    """What a process says.

    `wants` are requests that wait for a permit, each with its tokens and key, in their order. `settled` are permits
    that are given back. `in_use` is how many permits the process has after that, `probes` how
    many of them are probes. `acts` are what it says beside: the
    name of a method of `Limiter` and its keys. `heard` is the place of the last thing that it was told.
    """

    ceilings: LimitCeilings = LimitCeilings()
    wants: Sequence[tuple[int, str | None]] = ()
    settled: Sequence[PermitSettled] = ()
    in_use: int = 0
    probes: int = 0
    acts: Sequence[tuple[str, tuple[str, ...]]] = ()
    heard: int = 0


@dataclass(slots=True)
class LimitStanding:
    """How a shared limit stands. Seconds are as of the answer; `holders` are the processes that use it."""

    pace: Pace = field(default_factory=Pace)
    down: bool = False
    refusing: bool = False
    failed_probes: int = 0
    answered: bool = False
    outage_s: float = 0.0
    unreachable_s: float = 0.0
    holders: int = 1


@dataclass(slots=True)
class KeeperAnswer:
    """What the keeper says.

    `granted` are for the first wants; `wait` is when to ask again for the others. `reused` are the permits of the
    successors that the ask names, in their order. `reusable` is how many permits the process may have by reuse: as long
    as the lease of this answer lasts, and nothing but the number of requests at once is limited, a request that was
    answered leaves its slot to the next one of the same process.
    """

    granted: Sequence[GrantedPermit] = ()
    wait: float = 0.0
    reused: Sequence[GrantedPermit] = ()
    reusable: int = 0
    standing: LimitStanding = field(default_factory=LimitStanding)
    heard: Sequence[KeeperEvent] = ()


def key_of(key: object) -> str | None:
    """Return a short digest of what tells a request apart, so that no text of a row is passed on."""
    return None if key is None else blake2b(str(key).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


# --- as JSON


def ask_to_json(ask: KeeperAsk) -> dict[str, Any]:
    """Return an ask as plain values."""
    return {
        "ceilings": ask.ceilings,
        "wants": ask.wants,
        "settled": [
            (one.lent, one.key, _reply_to_json(one.reply), one.unused, one.took, one.successor) for one in ask.settled
        ],
        "in_use": ask.in_use,
        "probes": ask.probes,
        "acts": ask.acts,
        "heard": ask.heard,
    }


def ask_of_json(plain: Mapping[str, Any]) -> KeeperAsk:
    """Return the ask that `ask_to_json` wrote. Raises ValueError, TypeError or KeyError if it is none."""
    return KeeperAsk(
        ceilings=LimitCeilings(*plain["ceilings"]),
        wants=[(int(tokens), key) for tokens, key in plain["wants"]],
        settled=[
            PermitSettled(
                lent if isinstance(lent, int) else GrantedPermit(*lent),
                key,
                _reply_of_json(reply),
                bool(unused),
                took,
                None if successor is None else (int(successor[0]), successor[1]),
            )
            for lent, key, reply, unused, took, successor in plain["settled"]
        ],
        in_use=int(plain["in_use"]),
        probes=int(plain["probes"]),
        acts=[(name, tuple(keys)) for name, keys in plain["acts"]],
        heard=int(plain["heard"]),
    )


def answer_to_json(answer: KeeperAnswer) -> dict[str, Any]:
    """Return an answer as plain values."""
    standing = answer.standing
    return {
        "granted": answer.granted,
        "wait": answer.wait,
        "reused": answer.reused,
        "reusable": answer.reusable,
        "heard": answer.heard,
        "standing": {
            **{name: getattr(standing, name) for name in LimitStanding.__slots__ if name != "pace"},
            "pace": {name: getattr(standing.pace, name) for name in Pace.__slots__},
        },
    }


def answer_of_json(plain: Mapping[str, Any]) -> KeeperAnswer:
    """Return the answer that `answer_to_json` wrote. Raises ValueError, TypeError or KeyError if it is none."""
    standing = dict(plain["standing"])
    return KeeperAnswer(
        granted=[GrantedPermit(*lent) for lent in plain["granted"]],
        wait=float(plain["wait"]),
        reused=[GrantedPermit(*lent) for lent in plain["reused"]],
        reusable=int(plain["reusable"]),
        standing=LimitStanding(pace=Pace(**standing.pop("pace")), **standing),
        heard=[KeeperEvent(*one) for one in plain["heard"]],
    )


def _reply_to_json(reply: Reply | None) -> dict[str, Any] | None:
    """Return what a limiter looks at in a reply."""
    if reply is None:
        return None
    plain: dict[str, Any] = {"verdict": reply.verdict}
    if reply.usage is not None:
        plain["tokens"] = reply.usage.total_tokens
    if not reply.sent:
        plain["sent"] = False
    if reply.retry_after is not None:
        plain["retry_after"] = reply.retry_after
    if reply.axis is not Axis.UNKNOWN:
        plain["axis"] = reply.axis
    if reply.limits is not None:
        plain["limits"] = [getattr(reply.limits, name) for name in LimitHeaders.__slots__]
    if reply.failure is not None:
        failure = reply.failure
        plain["failure"] = [failure.kind, failure.message[:_MESSAGE_MAX], failure.http_status]
    return plain


def _reply_of_json(plain: Mapping[str, Any] | None) -> Reply | None:
    if plain is None:
        return None
    failure = plain.get("failure")
    return Reply(
        Verdict(plain["verdict"]),
        usage=Usage(total_tokens=plain["tokens"]) if "tokens" in plain else None,
        sent=plain.get("sent", True),
        retry_after=plain.get("retry_after"),
        axis=Axis(plain["axis"]) if "axis" in plain else Axis.UNKNOWN,
        limits=LimitHeaders(*plain["limits"]) if "limits" in plain else None,
        failure=Failure(ErrorKind(failure[0]), failure[1], failure[2]) if failure else None,
    )
