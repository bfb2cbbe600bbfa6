"""What an A/B run writes: pairs of bursts of two versions, in one JSON file, never half written."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dnnsep.host.files import replace_whole
from dnnsep.measure.stats import Control
from dnnsep.sweep.results import Cache, Key, dtype_and_batch

Status = Literal["ok", "refused", "incorrect", "failed"]


class Pair(BaseModel):
    """A burst of calls of each version, one right after the other, between two controls.

    ``base_us`` and ``new_us`` are the times of a call in microseconds, of each burst's fastest few.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    before: Control
    after: Control
    base_us: float
    new_us: float

    def quiet(self, best: Control) -> bool:
        """Whether others left the cores alone around it, as far as the best control shows."""
        return self.before.quiet(best) and self.after.quiet(best)


class Visit(BaseModel):
    """The pairs of one visit to a case: of two processes started for it, and their buffers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    visit: int
    pairs: list[Pair]


class Trial(BaseModel):
    """One case on one backend, of both versions, or the reason why it was not measured.

    ``status`` and ``reason`` are as in a sweep's Record; the reason begins with the version,
    ``base`` or ``new``. ``base_impls`` and ``new_impls`` are what ran.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    problem: str
    name: str | None
    backend: str
    threads: int
    cache: Cache
    status: Status = "ok"
    reason: str | None = None
    base_impls: list[str] = Field(default_factory=list)
    new_impls: list[str] = Field(default_factory=list)
    visits: list[Visit] = Field(default_factory=list)

    @property
    def key(self) -> Key:
        """What makes it one of its kind in a run."""
        return (self.problem, self.backend, self.threads, self.cache)

    @property
    def group(self) -> str:
        """The trials that one geometric mean is over, e.g. ``fused f32 batch 1 threads 2``."""
        dtype, batch = dtype_and_batch(self.problem)
        cold = " cold" if self.cache == "cold" else ""
        return f"{self.backend} {dtype} batch {batch} threads {self.threads}{cold}"


class PairResults(BaseModel):
    """All trials of an A/B run. ``base`` and ``new`` are the paths of the packages compared."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["dnnsep-ab"] = "dnnsep-ab"
    version: Literal[1] = 1
    created: str = Field(
        default_factory=lambda: datetime.now(timezone.utc).isoformat("T", "seconds")
    )
    base: str
    new: str
    fingerprint: dict[str, Any]
    settings: dict[str, Any]
    trials: list[Trial] = Field(default_factory=list)

    def quietest(self) -> dict[int, Control]:
        """By the number of threads, the best that each control was in the whole run."""
        found: dict[int, list[Control]] = {}
        for trial in self.trials:
            pairs = (pair for visit in trial.visits for pair in visit.pairs)
            seen = (control for pair in pairs for control in (pair.before, pair.after))
            found.setdefault(trial.threads, []).extend(seen)
        return {threads: Control.best(of) for threads, of in found.items() if of}

    def to_json(self) -> str:
        """JSON text with each trial on a line of its own."""
        head = self.model_dump_json(exclude={"trials"})
        return f'{head[:-1]},"trials":[\n{_lines(self.trials)}\n]}}\n'

    def save(self, path: Path) -> None:
        """Writes the file at once, so that a kill leaves the old or the new one, never a part."""
        replace_whole(path, self.to_json())


def _lines(trials: Sequence[Trial]) -> str:
    return ",\n".join(trial.model_dump_json() for trial in trials)
