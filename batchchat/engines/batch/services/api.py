"""A service that speaks to a provider over HTTP: its batches, and a place for files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

from batchchat.engines.batch.service import (
    BatchProblem,
    BatchStatus,
    Gone,
    RemoteBatch,
    ResultLine,
    ServiceLimits,
    TornLine,
)
from batchchat.engines.batch.services.batches import BatchCalls
from batchchat.engines.batch.services.dialects import BatchDialect
from batchchat.engines.batch.services.http import Http
from batchchat.engines.batch.services.lines import encode_line, load, read_results
from batchchat.errors import UsageError


class Files(Protocol):
    """Where input and result files of batches lie: at the provider, or in a bucket of the customer."""

    async def preflight(self) -> None:
        """Check what can be checked before anything is uploaded. Raises UsageError or NeedsHuman."""

    async def upload(self, name: str, path: Path) -> str:
        """Upload a file and return its reference."""

    async def download(self, ref: str, target: Path) -> bool:
        """Stream a file to `target`. Return false if more of it will come. Raises Gone, Unavailable."""

    async def result_refs(self, batch: RemoteBatch) -> Sequence[str]:
        """Return the result files of a batch."""

    async def finished(self, input_ref: str) -> RemoteBatch | None:
        """Return a batch that ended if the files alone tell so, whatever the provider's list says."""

    async def delete(self, ref: str) -> None:
        """Delete a file. One that is gone already is no error."""

    def explained(self, problem: BatchProblem) -> BatchProblem:
        """Return a problem of a batch that failed, with what to do if its cause may be the place of the files."""


class ApiService:
    """One dialect over HTTP; see `BatchService` for what the methods promise."""

    def __init__(
        self, http: Http, dialect: BatchDialect, files: Files, *, window: str, limits: ServiceLimits, model: str | None
    ) -> None:
        self.limits = limits
        self._http = http
        self._dialect = dialect
        self._files = files
        self._batches = BatchCalls(http, dialect, window=window)
        self._model = model

    def __repr__(self) -> str:
        return f"ApiService({self._dialect.name!r}, {self._http!r})"

    async def __aenter__(self) -> ApiService:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *args: object) -> None:
        await self._http.__aexit__(*args)

    async def preflight(self) -> None:
        """Check the address and the key, then the place of the files."""
        await self._batches.preflight()
        await self._files.preflight()

    def encode(self, custom_id: str, body: bytes) -> bytes:
        """Return a request as one line of an input file."""
        return encode_line(custom_id, body, url=self._dialect.line_url)

    def refuses(self, body: bytes) -> str | None:
        """Return why a request would make the provider refuse the whole file, None if it would not."""
        dialect = self._dialect
        # Others fail the one request, as they would outside of a batch.
        if not dialect.checks_files or dialect.max_temperature >= 2:
            return None
        request = load(body)
        temperature = request.get("temperature") if isinstance(request, dict) else None
        if isinstance(temperature, int | float) and temperature > dialect.max_temperature:
            return (
                f"{self._http.party.name} takes no temperature above {dialect.max_temperature:g} in a batch, "
                f"and would refuse the whole file; this one is {temperature:g}"
            )
        return None

    async def upload(self, name: str, path: Path) -> str:
        """Upload a file of lines, and wait until the provider can use it."""
        if not name.endswith(".jsonl"):
            raise ValueError("the name of a file of requests must end in .jsonl")
        return await self._files.upload(name, path)

    async def create(self, input_ref: str, labels: Mapping[str, str]) -> RemoteBatch:
        """Create a batch with one request."""
        if self._dialect.model_on_job and not self._model:
            raise UsageError(f"{self._http.party.name} wants the model of a batch, and none was given")
        return self._explained(await self._batches.create(input_ref, labels, model=self._model))

    async def find(self, input_ref: str, labels: Mapping[str, str], since: float) -> list[RemoteBatch]:
        """Return the batches of one create. If the list shows none, files that are there may still tell of one."""
        found = await self._batches.find(input_ref, labels, since)
        # The list is asked first: it tells of batches that have not ended, too.
        if not found and (finished := await self._files.finished(input_ref)) is not None:
            return [finished]
        return [self._explained(batch) for batch in found]

    async def poll(self, ids: Sequence[str]) -> dict[str, RemoteBatch]:
        """Return the batches with these ids. An id that is the reference of an input was told of by files alone."""
        refs = [each for each in ids if "://" in each]
        found = await self._batches.poll([each for each in ids if "://" not in each]) if len(refs) < len(ids) else {}
        for ref in refs:
            if (finished := await self._files.finished(ref)) is not None:
                found[ref] = finished
        return {name: self._explained(batch) for name, batch in found.items()}

    def _explained(self, batch: RemoteBatch) -> RemoteBatch:
        if batch.status is not BatchStatus.FAILED:
            return batch
        problems = batch.problems or (BatchProblem(None, ""),)
        explained = tuple(self._files.explained(problem) for problem in problems)
        return replace(batch, problems=explained if batch.problems or explained[0].remedy else ())

    async def results(self, batch: RemoteBatch, scratch: Path) -> AsyncIterator[ResultLine]:
        """Iterate over the lines of every result file of a batch; damage is told after the last one."""
        torn: TornLine | None = None
        gone: Gone | None = None
        for ref in await self._files.result_refs(batch):
            path = scratch / f"{blake2b(ref.encode(), digest_size=12).hexdigest()}.download"
            try:
                whole = await self._files.download(ref, path)
                async with aclosing(read_results(path, self._http.mask.clean)) as lines:
                    async for line in lines:
                        yield line
                if not whole:
                    raise TornLine(f"{self._http.party.name} says that the result file {ref} is not complete")
            except TornLine as error:
                torn = error
            except Gone as error:
                gone = error
            finally:
                path.unlink(missing_ok=True)
        # A file that can be downloaded again goes before one that is lost.
        if torn is not None:
            raise torn
        if gone is not None:
            raise gone

    async def cancel(self, batch_id: str) -> None:
        """Ask the provider to cancel a batch. One that has ended already is no error."""
        if "://" not in batch_id:
            await self._batches.cancel(batch_id)

    async def delete(self, refs: Sequence[str]) -> None:
        """Delete files of ours."""
        for ref in refs:
            await self._files.delete(ref)
