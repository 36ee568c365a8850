"""Files at the provider: the Files API."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import anyio

from batchchat.engines.batch.service import BadLine, BatchProblem, Gone, RemoteBatch, Unavailable
from batchchat.engines.batch.services.dialects import BatchDialect
from batchchat.engines.batch.services.http import Form, Http
from batchchat.engines.batch.services.problems import Call
from batchchat.engines.batch.services.shapes import line_in

_BUSY: Final = frozenset({"pending", "running", "processing", "validating"})
"""Words for a file that cannot be used yet."""
_BROKEN: Final = frozenset({"error", "failed"})
_READY_WITHIN_S: Final = 600.0
_LONGEST_WAIT_S: Final = 15.0
_PAGES: Final = 20


class RemoteFiles:
    """The files of one account at one provider."""

    def __init__(self, http: Http, dialect: BatchDialect) -> None:
        self._http = http
        self._dialect = dialect

    async def preflight(self) -> None:
        """Nothing: the batches tell whether the key is right."""

    async def upload(self, name: str, path: Path) -> str:
        """Upload a file under this name and return its id, once the provider can use it."""
        dialect = self._dialect
        fields = {"purpose": dialect.upload_purpose, **dialect.upload_extra}
        if dialect.upload_name_field is not None:
            fields[dialect.upload_name_field] = name
        form = Form(fields, name, path, dialect.upload_type, f"batchchat-{secrets.token_hex(16)}")
        answer = await self._http.ask(
            Call.UPLOAD, "POST", dialect.upload_path, content=form.pieces, headers=form.headers
        )
        data = answer.data
        # Some wrap the file into `data`.
        data = data["data"] if isinstance(data, dict) and isinstance(data.get("data"), dict) else data
        ref = data.get("id") if isinstance(data, dict) else None
        if not isinstance(ref, str) or not ref:
            raise Unavailable(f"{self._http.party.name} answered an upload with no id of a file")
        await self._usable(ref, data)
        return ref

    async def download(self, ref: str, target: Path) -> bool:
        """Stream a file's content to `target`. Return false if the provider says that more will come."""
        size: int | None = None
        try:
            told = (await self._http.ask(Call.LOOK, "GET", _place(ref))).data
        except Unavailable:
            told = None  # the size is a check that can be done without
        if isinstance(told, dict) and type(told.get("bytes")) is int and told["bytes"] >= 0:
            size = told["bytes"]
        return await self._http.download(f"{_place(ref)}/content", target, nbytes=size)

    async def result_refs(self, batch: RemoteBatch) -> Sequence[str]:
        """Return the result files of a batch: those that it names."""
        return batch.result_refs

    async def finished(self, input_ref: str) -> RemoteBatch | None:
        """Return None: only the batches tell what is finished."""

    async def delete(self, ref: str) -> None:
        """Delete a file. One that is gone already is no error."""
        try:
            await self._http.ask(Call.CHANGE, "DELETE", _place(ref))
        except Gone:
            return

    def explained(self, problem: BatchProblem) -> BatchProblem:
        """Return the problem as it is: the provider keeps the files itself."""
        return problem

    async def _usable(self, ref: str, told: Any) -> None:
        """Wait until the provider can use a file. Raises BadLine if it refuses the file, Unavailable after long."""
        pause = 1.0
        deadline = anyio.current_time() + _READY_WITHIN_S
        while True:
            status = _status(told)
            if status in _BROKEN:
                said = told.get("status_details") or told.get("error") or "no reason given"
                said = self._http.mask(str(said))
                line = line_in(said) if self._dialect.line_numbers else None
                raise BadLine(f"{self._http.party.name} refuses the file: {said}", line=line)
            # Only one dialect is known to refuse a batch until its file is processed. Elsewhere `uploaded` may last.
            if status not in _BUSY and not (self._dialect.waits_processed and status == "uploaded"):
                return
            if anyio.current_time() >= deadline:
                raise Unavailable(f"{self._http.party.name} has not processed a file for {_READY_WITHIN_S:.0f} s")
            await anyio.sleep(pause)
            pause = min(pause * 2, _LONGEST_WAIT_S)
            try:
                told = (await self._http.ask(Call.LOOK, "GET", _place(ref))).data
            except Gone:
                continue  # not yet: a list or a look may lag behind an upload


def _place(ref: str) -> str:
    return f"/files/{quote(ref, safe='')}"


def _status(told: Any) -> str:
    status = told.get("status") or told.get("processing_status") if isinstance(told, dict) else None
    return status.lower() if isinstance(status, str) else ""
