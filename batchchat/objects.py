"""Opening object storage by its URL: Amazon S3 and what speaks as it does, Google Cloud Storage, Azure.

Credentials, region and endpoint come from the environment, by the names that the providers' own tools read; never from
a job file, nor from a URL. A store that has no credentials is refused at once: the client would ask the machine's
metadata service for them, again and again, on machines that have none.

The client is the package obstore. It is imported when a store is opened, and not before.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from batchchat.addresses import OBJECT_SCHEMES, scheme_of
from batchchat.errors import StoreError, UsageError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

INSTALL = "pip install 'batchchat[objects]'"
RETRIES = 8
"""How often the client repeats a request that only reads: for about a minute."""
_METADATA = ("169.254.169.254", 80)
"""Where machines of Amazon, Google and Azure ask for their own credentials."""
_METADATA_WAIT = 1.0
"""Seconds for that to accept a connection. It is on the machine's own host: where it exists, it answers in less than
10 ms."""
_LOOPBACK = re.compile(r"localhost|127(?:\.\d{1,3}){3}|::1")
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound")
_TRUE = frozenset({"1", "true", "yes", "on"})
_SECRETS = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|SAS|CONNECTION_STRING")
_TEXT_SHOWN = 300
_REGION = "us-east-1"


def open_store(
    url: str, *, retries: int = RETRIES, timeout: float = 30, environ: Mapping[str, str] | None = None
) -> tuple[ObjectStore, str]:
    """Return the store of the bucket that a URL names, and what follows the bucket's name: a key, or a prefix of keys.

    `retries` is how often the client itself repeats a request; it must be 0 for a writer that depends on conditions,
    since a repeated create looks like somebody else's. `timeout` bounds one request, in seconds. Nothing is sent.

    Raises UsageError for a URL that is none of an object store, for a missing package, for missing credentials, and for
    an endpoint that is not encrypted.
    """
    environ = os.environ if environ is None else environ
    scheme, rest = scheme_of(url), url.partition("://")[2]
    bucket, _, prefix = rest.partition("/")
    if scheme not in OBJECT_SCHEMES:
        known = ", ".join(f"{one}://" for one in OBJECT_SCHEMES)
        raise UsageError(
            f"{url}: {scheme}:// is no object storage that is known",
            remedy=f"Known are {known}; an input may also be hf://datasets/OWNER/NAME.",
        )
    if not bucket:
        raise UsageError(f"{url}: names no bucket", remedy=f"Write {scheme}://BUCKET/PATH.")
    if "@" in bucket and not scheme.startswith("abfs"):
        raise UsageError(
            f"{scheme}://…@{bucket.rpartition('@')[2]}: a URL holds no credentials",
            remedy="Put them into the environment, and leave out what stands before the @.",
        )
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError:
        raise UsageError(
            f"{url}: object storage needs the package obstore, which is not installed", remedy=INSTALL
        ) from None
    settings = {"s3": _amazon, "gs": _google}.get(scheme, _azure)(url, environ)
    endpoint = str(settings.get("endpoint") or settings.get("base_url") or "")
    client: dict[str, Any] = {"timeout": f"{timeout:g}s", "connect_timeout": "5s", "user_agent": "batchchat"}
    if endpoint.startswith("http://"):
        _check_plain(url, endpoint, environ)
        client["allow_http"] = True
    make: Any = from_url  # its overloads want the settings of one provider, by their names
    try:
        store: ObjectStore = make(
            f"{scheme}://{bucket}", client_options=client, retry_config={"max_retries": retries}, **settings
        )
    except (BaseError, ValueError, TypeError) as error:
        raise UsageError(f"{url}: {error_text(error, environ)}", remedy=_REMEDIES[_kind(scheme)]) from None
    return store, prefix


def store_error(address: str, error: Exception, *, environ: Mapping[str, str] | None = None) -> StoreError:
    """Return what a failed request to a store means, in words. `address` is what was asked for.

    `error` is one that obstore raised, or an OSError.
    """
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    words, remedy = error_text(error, environ), _REMEDIES[_kind(scheme_of(address))]
    lasting = True
    if _METADATA[0] in words:  # the client asked the machine itself for them, and got none
        told = "there are no credentials for this store"
    elif isinstance(error, PermissionDeniedError | UnauthenticatedError):
        told, remedy = f"the store refuses: {words}", f"Look at what the credentials may do there. {remedy}"
    elif isinstance(error, FileNotFoundError) or _NO_BUCKET.search(words):
        told, remedy = "there is no such bucket or object", "Correct the address, or look at the endpoint."
    else:
        told, lasting = f"the store does not answer as it should: {words}", False
        remedy = "Look at the network and at the endpoint, then run the same command again."
    found = StoreError(f"{address}: {told}", remedy=remedy)
    found.lasting = lasting
    return found


def error_text(error: Exception, environ: Mapping[str, str] | None = None) -> str:
    """Return what an error of the client says: one line, without secrets, nor what is for the client's developers."""
    text = str(error).partition("\n\nDebug source")[0]
    body = re.search(r"<Message>(.*?)</Message>", text, re.DOTALL)
    code = re.search(r"<Code>(.*?)</Code>", text, re.DOTALL)
    if code is not None:  # the body of S3's errors is a page of XML
        text = f"{code[1]}: {body[1]}" if body is not None else code[1]
    text = re.sub(r"\?[^\s\"')]+", "?…", text)  # signatures stand in queries
    for name, value in (os.environ if environ is None else environ).items():
        if len(value) >= 8 and _SECRETS.search(name):
            text = text.replace(value, "…")
    return re.sub(r"\s+", " ", text).strip()[:_TEXT_SHOWN] or type(error).__name__


def _kind(scheme: str) -> str:
    return scheme if scheme in {"s3", "gs"} else "az"


_REMEDIES = {
    "s3": "The environment gives them: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a store "
    "that is not Amazon's also AWS_ENDPOINT_URL and AWS_REGION. AWS_SKIP_SIGNATURE=true reads a public bucket.",
    "gs": "The environment gives them: GOOGLE_APPLICATION_CREDENTIALS names the file of a service account, or run "
    "`gcloud auth application-default login`. GOOGLE_SKIP_SIGNATURE=true reads a public bucket.",
    "az": "The environment gives them: AZURE_STORAGE_ACCOUNT with AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, or "
    "AZURE_STORAGE_CONNECTION_STRING, or AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET.",
}


def _first(environ: Mapping[str, str], *names: str) -> str | None:
    return next((environ[name] for name in names if environ.get(name)), None)


def _is_set(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").strip().lower() in _TRUE


def _given(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _check_plain(url: str, endpoint: str, environ: Mapping[str, str]) -> None:
    """Refuse to send a signed request over a network without encryption, unless a person wants it so."""
    if _LOOPBACK.fullmatch(urlsplit(endpoint).hostname or "") or _is_set(environ, "AWS_ALLOW_HTTP"):
        return
    raise UsageError(
        f"{url}: the endpoint {endpoint} is not encrypted", remedy="Use https://, or set AWS_ALLOW_HTTP=true."
    )


def _check_metadata(url: str, environ: Mapping[str, str]) -> None:
    """Refuse a store without credentials, unless this machine has a service that hands them out."""
    reached = False
    if not _is_set(environ, "AWS_EC2_METADATA_DISABLED"):
        try:
            with socket.create_connection(_METADATA, timeout=_METADATA_WAIT):
                reached = True
        except OSError:
            pass
    if not reached:
        raise UsageError(f"{url}: there are no credentials for this store", remedy=_REMEDIES[_kind(scheme_of(url))])


# --- Amazon S3, and what speaks as it does


def _amazon(url: str, environ: Mapping[str, str]) -> dict[str, Any]:
    profile = _profile(url, environ)
    endpoint = _first(environ, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT") or profile.get("endpoint_url")
    region = _first(environ, "AWS_REGION", "AWS_DEFAULT_REGION") or profile.get("region")
    settings = _given(
        # Stores that are not Amazon's take any region, or the one of their documentation.
        region=region or _REGION,
        endpoint=endpoint.rstrip("/") if endpoint else None,
        access_key_id=environ.get("AWS_ACCESS_KEY_ID") or profile.get("aws_access_key_id"),
        secret_access_key=environ.get("AWS_SECRET_ACCESS_KEY") or profile.get("aws_secret_access_key"),
        session_token=environ.get("AWS_SESSION_TOKEN") or profile.get("aws_session_token"),
    )
    bucket = url.partition("://")[2].partition("/")[0]
    if endpoint and not _is_set(environ, "AWS_VIRTUAL_HOSTED_STYLE_REQUEST"):
        settings["virtual_hosted_style_request"] = False
    elif not endpoint and "." not in bucket:
        settings["virtual_hosted_style_request"] = True  # a name with a dot does not fit the certificate
    if ("access_key_id" in settings) != ("secret_access_key" in settings):
        raise UsageError(f"{url}: only one half of the key is set", remedy=_REMEDIES["s3"])
    by_token = _first(
        environ,
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    )
    if "access_key_id" not in settings and not by_token and not _is_set(environ, "AWS_SKIP_SIGNATURE"):
        _check_metadata(url, environ)
    return settings


def _profile(url: str, environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return what the profile of Amazon's tools says, in their two files; nothing if there is none.

    Raises UsageError if AWS_PROFILE names none, or one whose key another program hands out.
    """
    import configparser

    named = environ.get("AWS_PROFILE")
    name = named or "default"
    found: dict[str, str] = {}
    there = False
    home = environ.get("HOME", "~")
    for variable, file, section in (
        ("AWS_CONFIG_FILE", f"{home}/.aws/config", name if name == "default" else f"profile {name}"),
        ("AWS_SHARED_CREDENTIALS_FILE", f"{home}/.aws/credentials", name),
    ):
        path = Path(environ.get(variable) or file).expanduser()
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(path.read_text(encoding="utf-8"))
        except OSError:
            continue
        except (configparser.Error, ValueError):
            raise UsageError(f"{path}: cannot be read as a file of profiles", remedy="Correct it.") from None
        if parser.has_section(section):
            there = True
            found.update(parser.items(section))
    if environ.get("AWS_ACCESS_KEY_ID"):
        return {key: value for key, value in found.items() if not key.startswith("aws_")}
    if named and not there:
        raise UsageError(f"{url}: there is no profile {named!r}", remedy="Correct AWS_PROFILE, or unset it.")
    others = sorted(key for key in found if key.startswith(("sso_", "credential_process", "role_arn")))
    if others and "aws_access_key_id" not in found:
        raise UsageError(
            f"{url}: the profile {name!r} gets its key by {others[0]}, which only Amazon's own tools can do",
            remedy='Run: eval "$(aws configure export-credentials --format env)"',
        )
    return found


# --- Google


def _google(url: str, environ: Mapping[str, str]) -> dict[str, Any]:
    emulator = environ.get("STORAGE_EMULATOR_HOST")
    if emulator:
        base = (emulator if "://" in emulator else f"http://{emulator}").rstrip("/")
        return {"base_url": base, "skip_signature": True}
    named = _first(environ, "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_SERVICE_ACCOUNT")
    if named and not Path(named).expanduser().is_file():
        raise UsageError(f"{url}: the file of credentials {named} is not there", remedy=_REMEDIES["gs"])
    folder = Path(environ.get("CLOUDSDK_CONFIG") or f"{environ.get('HOME', '~')}/.config/gcloud").expanduser()
    login = folder / "application_default_credentials.json"
    if named:
        return {"application_credentials": str(Path(named).expanduser())}
    if login.is_file():
        return {"application_credentials": str(login)}
    if not environ.get("GOOGLE_SERVICE_ACCOUNT_KEY") and not _is_set(environ, "GOOGLE_SKIP_SIGNATURE"):
        _check_metadata(url, environ)
    return {}


# --- Azure

_EMULATED = "devstoreaccount1"
"""The account that Azurite, the emulator, has from the start."""


def _azure(url: str, environ: Mapping[str, str]) -> dict[str, Any]:
    pairs = (part.partition("=") for part in environ.get("AZURE_STORAGE_CONNECTION_STRING", "").split(";"))
    told = {name.strip().lower(): value.strip() for name, _, value in pairs}
    if _is_set(environ, "AZURE_STORAGE_USE_EMULATOR"):
        return {
            "use_emulator": True,
            "account_name": _first(environ, "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT") or _EMULATED,
            "endpoint": environ.get("AZURE_STORAGE_ENDPOINT") or f"http://127.0.0.1:10000/{_EMULATED}",
        }
    settings = _given(
        account_name=_first(environ, "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT") or told.get("accountname"),
        account_key=_first(environ, "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY") or told.get("accountkey"),
        sas_key=_first(environ, "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY")
        or told.get("sharedaccesssignature"),
        tenant_id=_first(environ, "AZURE_TENANT_ID", "AZURE_STORAGE_TENANT_ID"),
        client_id=_first(environ, "AZURE_CLIENT_ID", "AZURE_STORAGE_CLIENT_ID"),
        client_secret=_first(environ, "AZURE_CLIENT_SECRET", "AZURE_STORAGE_CLIENT_SECRET"),
        endpoint=_first(environ, "AZURE_STORAGE_ENDPOINT") or told.get("blobendpoint"),
    )
    if "@" in url.partition("://")[2].partition("/")[0]:
        settings.pop("account_name", None)  # the URL names the account: container@account.dfs.core.windows.net
    elif "account_name" not in settings:
        raise UsageError(f"{url}: the account of the store is not known", remedy=_REMEDIES["az"])
    keyed = any(name in settings for name in ("account_key", "sas_key", "client_secret"))
    by_token = _first(environ, "AZURE_FEDERATED_TOKEN_FILE", "AZURE_STORAGE_TOKEN", "IDENTITY_ENDPOINT")
    cli = _is_set(environ, "AZURE_USE_AZURE_CLI")
    if not keyed and not by_token and not cli and not _is_set(environ, "AZURE_SKIP_SIGNATURE"):
        _check_metadata(url, environ)
    return settings
