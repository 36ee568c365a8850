"""A hub of datasets for tests, on loopback: lists in pages, commits, ranges, and storage on a port of its own."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = 100
"""Bytes from which on a file lies in storage, and not with the hub itself."""


@dataclass
class Seen:
    """One request that came in. `place` is `hub` or `storage`."""

    place: str
    method: str
    path: str
    token: str | None
    range: str | None


@dataclass
class Fault:
    """What goes wrong with the next `count` requests whose path holds `text`.

    `kind` is an HTTP status, or `cut` (the body ends early), `whole` (no ranges), `commit` (another commit's file),
    `size` (a file of another size), `text` (no JSON), `loop` (sent on without an end), `plain` (sent to http://).
    """

    kind: int | str
    text: str
    count: int = 1
    headers: dict[str, str] = field(default_factory=dict)


class FakeHub:
    """The datasets of a hub, and what was asked. Answers as the public hub does."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.revisions: dict[tuple[str, str], str] = {}
        self.seen: list[Seen] = []
        self.faults: list[Fault] = []
        self.page = 1000
        self.gated: set[str] = set()
        self.renamed: dict[str, str] = {}
        self.token: str | None = None
        self.url = self.storage = ""

    def push(self, dataset: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Make these files a new commit of a revision, and return the commit."""
        digest = hashlib.sha1(dataset.encode() + b"".join(k.encode() + v for k, v in sorted(files.items())))
        commit = digest.hexdigest()
        self.commits[f"{dataset}@{commit}"] = files
        self.revisions[dataset, revision] = self.revisions[dataset, commit] = commit
        return commit

    def asked(self, text: str) -> list[Seen]:
        """Return the requests whose path holds a text."""
        return [one for one in self.seen if text in one.path]

    def fault(self, path: str) -> Fault | None:
        """Take what goes wrong with a request."""
        for one in self.faults:
            if one.count > 0 and one.text in path:
                one.count -= 1
                return one
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are sent apart: otherwise the body waits 40 ms until the head has been acknowledged.
    disable_nagle_algorithm = True
    hub: FakeHub
    place = "hub"

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer."""
        self._answer()

    def do_POST(self) -> None:
        """Answer."""
        self._answer()

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        form = parse_qs(self.rfile.read(length).decode())
        token = self.headers.get("Authorization")
        self.hub.seen.append(Seen(self.place, self.command, self.path, token, self.headers.get("Range")))
        fault = self.hub.fault(self.path)
        if fault is not None and isinstance(fault.kind, int):
            self._refuse(fault.kind, "", "as the test wants it", fault.headers)
        elif fault is not None and fault.kind in {"loop", "plain", "text"}:
            place = {"loop": self.path, "plain": "ftp://127.0.0.1/x"}.get(str(fault.kind))
            if place is None:
                self._send(200, b"<html>Log in to the network</html>", {"Content-Type": "text/html"})
            else:
                self._send(302, b"", {"Location": place})
        else:
            self._route(form, fault.kind if fault is not None else None)

    def _route(self, form: dict[str, list[str]], fault: int | str | None) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        query = parse_qs(urlsplit(self.path).query)
        api = parts[0] == "api"
        dataset = "/".join(parts[1 + api : 3 + api])
        what, revision, *rest = [*parts[3 + api :], "revision", "main"][: max(2, len(parts) - 3 - api)]
        if (other := self.hub.renamed.get(dataset)) is not None:
            self._send(307, b"", {"Location": self.path.replace(dataset, other)})
            return
        commit = self.hub.revisions.get((dataset, revision))
        if refusal := self._closed(dataset):
            self._refuse(*refusal)
        elif commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif not api:
            self._resolve(dataset, commit, "/".join(rest), fault)
        elif what == "revision":
            self._json({"id": dataset, "sha": commit})
        elif what == "paths-info":
            entries = self._entries(dataset, commit)
            self._json([entries[path] for path in form["paths"] if path in entries])
        else:
            self._tree(self._entries(dataset, commit), "/".join(rest), query)

    def _closed(self, dataset: str) -> tuple[int, str, str] | None:
        """Return how a dataset is refused to whoever asks, or None."""
        sent, good = self.headers.get("Authorization"), f"Bearer {self.hub.token}"
        if sent is not None and sent != good:
            return 401, "", "Invalid credentials in Authorization header"
        if all(name != dataset for name, _ in self.hub.revisions):
            return (401, "", "Invalid username or password.") if sent is None else (404, "RepoNotFound", "Not found")
        if dataset in self.hub.gated:
            return (401 if sent is None else 403), "GatedRepo", f"Access to dataset {dataset} is restricted."
        return None

    def _entries(self, dataset: str, commit: str) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for path, content in self.hub.commits[f"{dataset}@{commit}"].items():
            parts = path.split("/")
            for depth in range(1, len(parts)):
                folder = "/".join(parts[:depth])
                found[folder] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": folder}
            git = hashlib.sha1(content).hexdigest()
            found[path] = {"type": "file", "oid": git, "size": len(content), "path": path}
            if len(content) >= LARGE:
                sha = hashlib.sha256(content).hexdigest()
                found[path] |= {"lfs": {"oid": sha, "size": len(content), "pointerSize": 130}, "oid": "1" * 40}
        return found

    def _tree(self, entries: dict[str, dict[str, Any]], folder: str, query: dict[str, list[str]]) -> None:
        if folder and entries.get(folder, {}).get("type") != "directory":
            self._refuse(404, "EntryNotFound", f"{folder} does not exist")
            return
        prefix = f"{folder}/" if folder else ""
        deep = query.get("recursive") == ["true"]
        below = [one for path, one in entries.items() if path.startswith(prefix)]
        listed = [one for one in below if deep or "/" not in one["path"][len(prefix) :]]
        start = int(query.get("cursor", ["0"])[0])
        headers = {}
        if start + self.hub.page < len(listed):
            path = urlsplit(self.path).path
            more = f"{self.hub.url}{path}?recursive={'true' if deep else 'false'}&cursor={start + self.hub.page}"
            headers["Link"] = f'<{more}>; rel="next"'
        self._json(listed[start : start + self.hub.page], headers)

    def _resolve(self, dataset: str, commit: str, path: str, fault: int | str | None) -> None:
        content = self.hub.commits[f"{dataset}@{commit}"].get(path)
        if content is None:
            self._refuse(404, "EntryNotFound", f"{path} does not exist")
            return
        headers = {"X-Repo-Commit": "f" * 40 if fault == "commit" else commit}
        if len(content) >= LARGE:
            key = hashlib.sha256(content).hexdigest()
            signed = f"{self.hub.storage}/{dataset}@{commit}/{path}?X-Signature=a-secret-signature"
            large = {"X-Linked-Etag": f'"{key}"', "X-Linked-Size": str(len(content)), "Location": signed}
            self._send(302, b"Found", headers | large)
        else:
            self._range(content, headers, fault)

    def _range(self, content: bytes, headers: dict[str, str], fault: int | str | None) -> None:
        wanted = self.headers.get("Range")
        if fault == "whole" or wanted is None:
            self._send(200, content, headers)
            return
        start, _, last = wanted.removeprefix("bytes=").partition("-")
        body = content[int(start) : int(last) + 1]
        size = len(content) + (fault == "size")
        headers = headers | {"Content-Range": f"bytes {start}-{int(start) + len(body) - 1}/{size}"}
        self._send(206, body, headers, cut=fault == "cut")

    def _json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _refuse(self, status: int, code: str, told: str, headers: dict[str, str] | None = None) -> None:
        named = {"X-Error-Code": code} if code else {}
        self._send(status, b'{"error": "no"}', {**named, "X-Error-Message": told, **(headers or {})})

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut


class _Storage(_Handler):
    place = "storage"

    def _route(self, form: dict[str, list[str]], fault: int | str | None) -> None:
        url = urlsplit(self.path)
        dataset, _, path = unquote(url.path).strip("/").partition("@")
        commit, _, path = path.partition("/")
        if "X-Signature=" not in url.query:
            self._refuse(403, "", "not signed")
        else:
            self._range(self.hub.commits[f"{dataset}@{commit}"][path], {}, fault)


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    """Start a hub and its storage, each on a port of its own."""
    hub = FakeHub()
    servers = []
    for kind in (_Handler, _Storage):
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (kind,), {"hub": hub}))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
    hub.url, hub.storage = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
