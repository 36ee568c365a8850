"""What a hub of datasets means by a refusal, in words, and what to do about it."""

from __future__ import annotations

from typing import NamedTuple

from batchchat.errors import StoreError
from batchchat.sources.hub_access import HubAccess


class MissingOnHubError(StoreError):
    """A file or folder that a dataset does not have at this commit."""


class HubRefusal(NamedTuple):
    """What a hub says when it refuses: the HTTP status, its own code for the reason, and its words."""

    status: int
    code: str
    told: str

    @property
    def words(self) -> str:
        """Return the refusal as it came."""
        return f"HTTP {self.status}: {self.told}" if self.told else f"HTTP {self.status}"


def lasting(address: str, words: str, remedy: str | None = None, *, kind: type[StoreError] = StoreError) -> StoreError:
    """Return an error that stays until a person acts. `address` is what was asked for."""
    error = kind(f"{address}: {words}", remedy=remedy)
    error.lasting = True
    return error


def refusal(address: str, access: HubAccess, page: str, refused: HubRefusal) -> StoreError:
    """Return what a refusal means. `address` is what was asked for, `page` the dataset's page for people."""
    if refused.code == "EntryNotFound":
        words = "there is no such file or folder"
        return lasting(address, words, f"The files of the dataset are at {page}/tree/main.", kind=MissingOnHubError)
    if refused.code == "RevisionNotFound":
        return lasting(address, "the dataset has no such revision", f"Its commits are at {page}/commits/main.")
    told = _without_token if access.token is None else _with_token
    words, remedy = told(access, page, refused)
    return lasting(address, words, remedy)


def _without_token(access: HubAccess, page: str, refused: HubRefusal) -> tuple[str, str]:
    """Return what a refusal means to somebody who sent no token, and what to do."""
    set_token = f"set HF_TOKEN to a token of {access.address}/settings/tokens, or run `hf auth login`."
    if refused.code == "GatedRepo":
        words = "the dataset is for those who accepted its terms, and there is no token"
        return words, f"Accept its terms at {page}, then {set_token}"
    # To whoever may not see a dataset, the hub says that there is none.
    if refused.code == "RepoNotFound" or refused.status in {401, 404}:
        words = "there is no such dataset, or it is private"
        return words, f"Correct the name. If the dataset is private, {set_token}"
    remedy = f"Look at {page} and at HF_ENDPOINT. To read with a token, {set_token}"
    return f"the hub refuses: {refused.words}", remedy


def _with_token(access: HubAccess, page: str, refused: HubRefusal) -> tuple[str, str]:
    """Return what a refusal means to somebody who sent a token, and what to do."""
    token = f"the token of {access.token_from}"
    if refused.code == "GatedRepo":
        words = f"the dataset is for those who accepted its terms, and {token} may not read it"
        return words, f"Accept its terms at {page} with the account of the token. Its owner may have to agree."
    if refused.status == 401 and "credentials" in refused.told.lower():
        remedy = f"Set it to a token of {access.address}/settings/tokens, or remove it to read public datasets."
        return f"the hub does not accept {token}", remedy
    if refused.code == "RepoNotFound" or refused.status in {401, 404}:
        words = f"there is no such dataset, or {token} may not read it"
        return words, f"Correct the name, or use a token whose account may read {page}."
    return f"the hub refuses: {refused.words}", f"Look at {page}, at what {token} may read, and at HF_ENDPOINT."
