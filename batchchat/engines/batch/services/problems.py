"""Refusals of a Batch API, and what each means for the engine, as one table.

A refusal means different things for different calls: an upload that is refused for its size is split, a create that may
have been carried out is never repeated, a look that fails is made again later.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from typing import Final

from batchchat.client.problems import read_problem
from batchchat.dataclass import dataclass
from batchchat.engines.batch.service import (
    BadLine,
    ChunkTooLarge,
    Gone,
    OutcomeUnknown,
    QueueFull,
    Unavailable,
)
from batchchat.engines.batch.services.lines import load
from batchchat.engines.batch.services.shapes import line_in
from batchchat.errors import NeedsHuman, UsageError


class Call(Enum):
    """What was asked for."""

    CHECK = "check"
    UPLOAD = "upload"
    CREATE = "create"
    LOOK = "look"
    CHANGE = "change"


@dataclass(frozen=True, slots=True)
class Party:
    """Who was asked, in words for a person: the provider's name, the address, and the place of its key."""

    name: str
    address: str
    key_place: str | None
    line_numbers: bool = True


@dataclass(frozen=True, slots=True)
class Refused:
    """A refusal: the call, its HTTP status, what the body says (`codes` are words for machines), and Retry-After."""

    call: Call
    status: int
    message: str
    codes: str
    retry_after: float | None
    party: Party

    @property
    def text(self) -> str:
        """Everything that is said, in lower case."""
        return f"{self.message} {self.codes}".lower()

    def __str__(self) -> str:
        said = self.message or "no reason given"
        return f"{self.party.name} refused to {_DOING[self.call]} (HTTP {self.status}): {said}"


_DOING: Final = {
    Call.CHECK: "tell about its batches",
    Call.UPLOAD: "take a file of requests",
    Call.CREATE: "create a batch",
    Call.LOOK: "tell about a batch or a file",
    Call.CHANGE: "cancel a batch or delete a file",
}

_ACTING: Final = frozenset({Call.CHECK, Call.UPLOAD, Call.CREATE})
"""Calls that end a run if a key is refused. A look is made again: what was paid for is still there."""
_SENDING: Final = frozenset({Call.UPLOAD, Call.CREATE})
_ANY: Final = frozenset(Call)

_CREDIT: Final = (
    r"insufficient_quota|insufficient (?:balance|credit|funds)|credit_balance|billing_hard_limit|payment_required|"
    r"spend(?:ing)?[ _]limit|out of credit|no credit|payment required|billing_not_active"
)
_QUEUE: Final = (
    r"token_limit_exceeded|enqueued|queued[ _]tokens?|tokens? in (?:the )?queue|"
    r"(?:too many|(?:maximum|max)(?: number of)?|limit of) (?:\d+ )?(?:active |running |open |concurrent |pending )*"
    r"(?:batches|jobs)|(?:batches|jobs|concurrent batch) (?:limit|quota)|at capacity|capacity (?:is|has|exceeded)"
)
_SIZE: Final = (
    r"too large|too big|too_large|too_many_tasks|exceed\w* .{0,40}(?:size|bytes|[mg]i?b\b)|file size|larger than|"
    r"(?:maximum|max) (?:file |batch )?size|too many (?:lines|tasks|rows|requests in)|"
    r"exceed\w* .{0,40}(?:number of (?:requests|lines|rows)|requests per (?:batch|file))"
)
_NOT_READY: Final = (
    r"\b(?:file|input|upload)\w*\b.{0,100}(?:not (?:yet )?(?:been )?(?:processed|ready|available|uploaded)|"
    r"still (?:being )?(?:process|validat|upload|pending)|(?:is|status:?|state:?) (?:pending|uploaded|processing))|"
    r"wait (?:until|for) .{0,40}process"
)
_NO_FILE: Final = (
    r"(?:no such|unknown|missing|invalid) (?:input[_ ])?file|file.{0,80}(?:not (?:be )?found|n't exist|not exist)"
)
_MODEL: Final = r"model_not_found|\bmodel\b"
_NO_MODEL: Final = (
    r"model_not_found|unknown model|access to (?:the |this )?model|"
    r"model .{0,80}(?:not (?:be )?(?:found|exist|available|permitted|supported)|n't exist|no access|unknown)"
)
_LINE_NAMED: Final = r"\bline[ _#:]{0,3}\d"
_CONTENT: Final = (
    r"\bline\b|\brow\b|json|custom_id|schema|parse|utf-?8|input should|field required|invalid file format|validation|"
    r"empty_file|mismatch"
)

Maker = Callable[[Refused], Exception]


@dataclass(frozen=True, slots=True)
class Rule:
    """If one of these calls was refused with one of these statuses and such words, `make` tells what it means."""

    calls: frozenset[Call]
    statuses: range | frozenset[int]
    words: str | None
    make: Maker

    def fits(self, refused: Refused) -> bool:
        """Return whether this rule is about a refusal."""
        if refused.call not in self.calls or refused.status not in self.statuses:
            return False
        return self.words is None or re.search(self.words, refused.text) is not None


def _later(refused: Refused) -> Exception:
    return Unavailable(str(refused), retry_after=refused.retry_after)


def _unknown(refused: Refused) -> Exception:
    return OutcomeUnknown(str(refused))


def _gone(refused: Refused) -> Exception:
    return Gone(str(refused))


def _too_large(refused: Refused) -> Exception:
    return ChunkTooLarge(str(refused))


def _queue_full(refused: Refused) -> Exception:
    return QueueFull(str(refused), queued_tokens=queued_tokens_in(refused.message), retry_after=refused.retry_after)


def _bad_line(refused: Refused) -> Exception:
    line = line_in(refused.message) if refused.party.line_numbers else None
    return BadLine(str(refused), line=line, code=refused.codes.split(" ", 1)[0] or None)


def _key(refused: Refused) -> Exception:
    key = refused.party.key_place
    if key is None:
        return NeedsHuman(
            str(refused),
            remedy="This address wants a key: name its place in provider.api_key_env, api_key_file or api_key_command.",
        )
    return NeedsHuman(
        str(refused),
        remedy=f"Check the key in {key}: it must be valid, of the right project, and allowed to use files and batches. "
        "Then run the same command again.",
    )


def _credit(refused: Refused) -> Exception:
    return NeedsHuman(
        str(refused),
        remedy="Add credit or raise the spending limit of the account, then run the same command again. "
        "Batches that exist already run on.",
    )


def _model(refused: Refused) -> Exception:
    return NeedsHuman(
        str(refused),
        remedy="Check `model` in the job: it must be one that this provider runs in batches. `engine: local` sends "
        "single requests.",
    )


def _no_batches(refused: Refused) -> Exception:
    return UsageError(
        f"no Batch API was found at {refused.party.address} (HTTP {refused.status})",
        remedy="Use `engine: local` for this provider, or check provider.base_url: it ends before /batches, mostly "
        "with /v1. A server without a Batch API can be fed through files: `engine: {kind: batch, folder: PATH}`.",
    )


def _moved(refused: Refused) -> Exception:
    return UsageError(
        f"{refused.party.address} answers with a redirection (HTTP {refused.status}), which a key is never sent after",
        remedy="Set provider.base_url to where it points, with https:// if that is what is missing.",
    )


def _person(refused: Refused) -> Exception:
    return NeedsHuman(
        str(refused),
        remedy="Change what the provider names, in the job or in the account, then run the same command again. "
        "Nothing was created by this call.",
    )


RULES: Final[tuple[Rule, ...]] = (
    Rule(_ACTING, range(300, 400), None, _moved),
    # What may have been carried out is never taken for a refusal.
    Rule(frozenset({Call.CREATE}), frozenset({*range(500, 600), 408, 409, 425}), None, _unknown),
    Rule(_ACTING, frozenset({402}), None, _credit),
    Rule(_ACTING, frozenset({400, 403, 429}), _CREDIT, _credit),
    Rule(frozenset({Call.CREATE}), frozenset({400, 422, 429}), _QUEUE, _queue_full),
    Rule(frozenset({Call.CREATE}), frozenset({429}), None, _queue_full),
    # All lines of a job name one model: what is wrong with it is wrong with every line.
    Rule(_SENDING, frozenset({400, 403, 404, 422}), _NO_MODEL, _model),
    Rule(_SENDING, frozenset({400, 403, 422}), _LINE_NAMED, _bad_line),
    Rule(_ACTING, frozenset({401, 403}), None, _key),
    Rule(_SENDING, frozenset({413}), None, _too_large),
    Rule(_SENDING, frozenset({400, 422}), _SIZE, _too_large),
    Rule(frozenset({Call.CREATE}), frozenset({400, 404, 422}), _NOT_READY, _later),
    Rule(frozenset({Call.CREATE}), frozenset({400, 404, 422}), _NO_FILE, _gone),
    Rule(frozenset({Call.CREATE}), frozenset({400, 404, 422}), _MODEL, _model),
    Rule(frozenset({Call.CHECK, *_SENDING}), frozenset({404, 405, 501}), None, _no_batches),
    Rule(frozenset({Call.UPLOAD}), frozenset({422}), None, _bad_line),
    Rule(_SENDING, frozenset({400, 422}), _CONTENT, _bad_line),
    Rule(frozenset({Call.LOOK, Call.CHANGE}), frozenset({404, 410}), None, _gone),
    Rule(frozenset({Call.LOOK, Call.CHANGE}), range(600), None, _later),
    Rule(_ANY, frozenset({408, 409, 425, 429, *range(500, 600)}), None, _later),
    Rule(_ANY, range(600), None, _person),
)
"""The first rule that fits a refusal decides."""


def refusal(
    call: Call, status: int, body: bytes, *, party: Party, mask: Callable[[str], str], retry_after: float | None = None
) -> Exception:
    """Return the exception that tells what a refused call means."""
    problem = read_problem(load(body), body, mask, bare=False)
    refused = Refused(call, status, problem.message, problem.codes, retry_after, party)
    return next(rule.make(refused) for rule in RULES if rule.fits(refused))


_LIMIT: Final = re.compile(
    r"limit(?:ed)?(?:\s+(?:of|is|to))?\s*[:=]?\s*"
    r"(\d{1,3}(?:[, _]\d{3})+|\d+(?:\.\d+)?)\s*([kmgb])?(?:illion|illiard)?\b",
    re.IGNORECASE,
)
_SCALE: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}


def queued_tokens_in(message: str) -> int | None:
    """Return the limit of queued tokens that a message names, such as `Limit: 90,000 enqueued tokens` or `30K`."""
    if not re.search(r"token|enqueued", message, re.IGNORECASE):
        return None
    told = _LIMIT.search(message)
    if told is None:
        return None
    number = float(re.sub(r"[, _]", "", told[1])) * _SCALE[(told[2] or "").lower()]
    return int(number) or None
