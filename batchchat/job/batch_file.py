"""A job whose input holds its requests ready-made: the lines of an OpenAI batch file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PrivateAttr, StringConstraints, field_validator

from batchchat.job.model import Job


class BatchFileJob(Job):
    """A job over the lines of an OpenAI batch file, which hold their requests: it needs no messages, and no model.

    `messages` are always empty. `model` is empty until `with_model_of_lines`, where the job names none.
    """

    of_lines = True

    model: Annotated[str, StringConstraints(strip_whitespace=True, max_length=200)] = ""
    messages: list[dict[str, Any]] | dict[str, Any] = Field(default_factory=list)

    _of_lines: bool = PrivateAttr(False)

    @field_validator("messages", mode="before")
    @classmethod
    def _list_or_column(cls, value: object) -> object:
        if value:
            raise ValueError("the lines of a batch file hold their own messages: leave messages out")
        return []

    def removed(self) -> frozenset[str]:
        """Return the params that the job sets to null: they are left out of every line."""
        return frozenset(name for name in self.params.model_fields_set if getattr(self.params, name) is None)

    @property
    def names_model(self) -> bool:
        """Whether the job itself names the model, so that it goes over those of the lines."""
        return bool(self.model) and not self._of_lines

    def with_model_of_lines(self, model: str) -> BatchFileJob:
        """Return the same job, knowing the one model that its lines name."""
        copy = self.model_copy(update={"model": model})
        copy._of_lines = True  # noqa: SLF001 - of its own class
        return copy

    def snapshot(self) -> dict[str, Any]:
        """Return the job as plain JSON, without a model that only its lines name."""
        found = super().snapshot()
        return found if self.names_model else {name: value for name, value in found.items() if name != "model"}
