"""A sample of times, summarized."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict


class Stats(BaseModel):
    """Median, quartiles, minimum and number of a sample of times in microseconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    median_us: float
    q25_us: float
    q75_us: float
    min_us: float
    count: int

    @property
    def spread(self) -> float:
        """Half the interquartile range as a share of the median."""
        return (self.q75_us - self.q25_us) / 2 / self.median_us

    @classmethod
    def of(cls, samples_us: list[float]) -> Stats:
        q25, median, q75 = np.quantile(samples_us, [0.25, 0.5, 0.75])
        return cls(
            median_us=round(float(median), 3),
            q25_us=round(float(q25), 3),
            q75_us=round(float(q75), 3),
            min_us=round(min(samples_us), 3),
            count=len(samples_us),
        )


def geomean(ratios: list[float]) -> float:
    return float(np.exp(np.mean(np.log(ratios))))
