"""What a score says of several samples of a row together; see `statistics.samples`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from batchchat.evaluation.statistics.samples import SampleMetric


class OverSamples(BaseModel):
    """Fields of a yes/no score. Each number is how many samples are looked at together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pass_at: int | None = Field(None, ge=2, le=1_000)
    pass_all: int | None = Field(None, ge=2, le=1_000)
    majority: int | None = Field(None, ge=2, le=1_000)
    consistency: bool = False

    @property
    def sample_metrics(self) -> tuple[SampleMetric, ...]:
        """Return the metrics that were asked for."""
        asked = (("pass_at", self.pass_at), ("pass_all", self.pass_all), ("majority", self.majority))
        found = [SampleMetric(kind, k) for kind, k in asked if k is not None]  # type: ignore[arg-type]
        return (*found, SampleMetric("consistency", 2)) if self.consistency else tuple(found)
