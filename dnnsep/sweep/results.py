"""Defines what a sweep writes: one versioned JSON file, whole at every moment."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from typing_extensions import Self

from dnnsep.block import Block, is_block
from dnnsep.host.files import replace_whole
from dnnsep.host.inputs import RESULT_BYTES, read_bytes
from dnnsep.measure.roofs import NoShare, Roof, Roofs
from dnnsep.measure.stats import Round, Stats
from dnnsep.problem import Problem

Cache = Literal["hot", "cold"]

# What tells a sweep's records apart: problem, backend, threads, cache state.
Key = tuple[str, str, int, str]


class Record(BaseModel):
    """The figures of one problem on one backend, or the reason why there are none.

    ``status`` is ``ok``, ``refused`` (the backend cannot run the problem, or is not there),
    ``incorrect`` (it does not agree with the reference, and was not timed), ``failed`` (it crashed
    or hung) or ``killed`` (its worker was killed from outside, which says nothing of the backend:
    resuming measures it again). ``time`` is in microseconds a call; ``flops`` are a call's, of a
    separable problem 2·bs·oh·ow·ic·m·(kh·kw+oc). ``output`` says where the calls' results went,
    ``cpus`` which CPUs the threads were kept on (None where the system does not allow it).
    ``stages`` are the times of the last visit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    problem: str
    name: str | None = None
    backend: str
    threads: int
    cache: Cache = "hot"
    status: Literal["ok", "refused", "incorrect", "failed", "killed"]
    reason: str | None = None
    flops: int
    ran_on: str | None = None
    check: str | None = None
    impls: list[str] = Field(default_factory=list)
    time: Stats | None = None
    gflops: float | None = None
    roof: Roof | None = None
    stages: dict[str, Stats] = Field(default_factory=dict)
    output: str | None = None
    peak_memory_bytes: int | None = None
    cpus: list[int] | None = None
    warnings: list[str] = Field(default_factory=list)
    rounds: list[Round] = Field(default_factory=list)

    @field_validator("problem")
    @classmethod
    def _parses(cls, text: str) -> str:
        dtype_and_batch(text)
        return text

    @model_validator(mode="after")
    def _has_times(self) -> Record:
        if self.status == "ok" and (self.time is None or not self.rounds):
            raise ValueError("a record whose status is ok needs time and rounds")
        return self

    @property
    def dtype(self) -> str:
        """Returns the problem's or the model's dtype."""
        return dtype_and_batch(self.problem)[0]

    @property
    def batch(self) -> int:
        """Returns the number of images, which a model's input begins with."""
        return dtype_and_batch(self.problem)[1]

    @property
    def is_model(self) -> bool:
        """Returns whether ``problem`` is a model and its input: ``mobilenetv2_100 1x3x224x224``."""
        return " " in self.problem

    @property
    def key(self) -> Key:
        """Returns what tells the record apart from the others of its sweep."""
        return (self.problem, self.backend, self.threads, self.cache)

    def is_due(self, visit: int) -> bool:
        """Returns whether a visit, from 0, is still to be made: nothing was found, and it has no
        figures of that visit."""
        if self.status == "ok":
            return all(r.visit != visit for r in self.rounds)
        return self.status == "killed"

    def joined(self, later: Record) -> Record:
        """Returns the record with a later visit's rounds, and the figures that follow from all."""
        rounds = [*self.rounds, *later.rounds]
        time = Stats.of(rounds)
        gflops = self.flops / time.median_us / 1000 if self.flops else None
        return self.model_copy(update={"rounds": rounds, "time": time, "gflops": gflops})

    @property
    def visits(self) -> int:
        """Returns how many times the sweep came to the record, at least once."""
        return 1 + max((r.visit for r in self.rounds), default=0)

    @property
    def roof_share(self) -> float | None:
        """Returns the achieved over the attainable GFLOP/s, 0 to 1.

        Returns None without one of them, and where the rate is beyond the roof.
        """
        if self.gflops is None or self.roof is None:
            return None
        return self.roof.share(self.gflops)

    @property
    def why_no_share(self) -> NoShare | None:
        """Returns why the rate is no share of the roof; None where it is, or one is missing."""
        if self.gflops is None or self.roof is None:
            return None
        return self.roof.why_no_share(self.gflops)

    @property
    def doubts(self) -> list[str]:
        """Returns the warnings, with one more where the roof cannot be right."""
        why = self.why_no_share
        return [*self.warnings, *([f"roof: {why.reason}"] if why and why.is_doubt else [])]

    @property
    def stage_overhead(self) -> float | None:
        """Returns the call's median over the sum of its stages' medians; None without stages."""
        if self.time is None or not self.stages:
            return None
        return self.time.median_us / sum(s.median_us for s in self.stages.values())


class ResultsFile(BaseModel):
    """What a file of results holds."""

    model_config = ConfigDict(extra="forbid")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Returns a file's results. Raises ValueError naming the file and what is wrong with it."""
        return cls.parse(path, read_bytes(path, RESULT_BYTES))

    @classmethod
    def parse(cls, path: Path, text: bytes) -> Self:
        """Returns the results that a file's text holds. Raises ValueError as ``load`` does."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            rule = first["msg"].removeprefix("Value error, ")
            raise ValueError(f"{path}: {field + ': ' if field else ''}{rule}") from None


class Results(ResultsFile):
    """A sweep's records, and the machine, software and settings they were made with.

    ``roofs`` are by number of threads; ``workers`` has each backend's answer to being started.
    """

    format: Literal["dnnsep-sweep"] = "dnnsep-sweep"
    version: Literal[3] = 3
    title: str
    created: str = Field(
        default_factory=lambda: datetime.now(timezone.utc).isoformat("T", "seconds")
    )
    fingerprint: dict[str, Any]
    settings: dict[str, Any]
    roofs: dict[int, Roofs] = Field(default_factory=dict)
    workers: dict[str, dict[str, Any]] = Field(default_factory=dict)
    records: list[Record] = Field(default_factory=list)

    @field_validator("created")
    @classmethod
    def _is_moment(cls, text: str) -> str:
        moment_of(text)
        return text

    def to_json(self) -> str:
        """Returns JSON text with each record on a line of its own."""
        head = self.model_dump_json(exclude={"records"})
        records = ",\n".join(record.model_dump_json() for record in self.records)
        return f'{head[:-1]},"records":[\n{records}\n]}}\n'

    def save(self, path: Path) -> None:
        """Writes the file at once, so that a kill leaves the old or the new one, whole."""
        replace_whole(path, self.to_json())


def moment_of(created: str) -> datetime:
    """Returns the moment of a time in ISO 8601, in UTC; one without an offset is of UTC.

    Raises ValueError for any other text.
    """
    try:
        # Python 3.10 does not read the Z, which is UTC.
        moment = datetime.fromisoformat(created.replace("Z", "+00:00"))
        if moment.tzinfo is None:
            return moment.replace(tzinfo=timezone.utc)
        return moment.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        rule = "must be a time in ISO 8601, e.g. 2026-01-31T02:00:00+00:00"
        raise ValueError(rule) from None


def parse_model(problem: str) -> tuple[str, tuple[int, ...], str]:
    """Returns the model's name, its input's shape and its dtype, from ModelCase.problem's text.

    Raises ValueError where there is no shape at the end of the text.
    """
    before, _, shape = problem.rpartition(" ")
    name, _, dtype = before.rpartition(" ")
    if dtype not in ("bf16", "int8"):
        name, dtype = before, "f32"
    return name, tuple(int(size) for size in shape.split("x")), dtype


def block_of(problem: str) -> Block | None:
    """Returns the block that a text such as ``mbconv_mb1ic8ex16oc8ih9kh3 bf16 1x8x9x9`` is of, in
    that dtype and batch; None where it is another model's, or a problem's."""
    if " " not in problem or not is_block(problem.partition(" ")[0]):
        return None
    name, shape, dtype = parse_model(problem)
    return replace(Block.parse(name), batch=shape[0], dtype=dtype)


def dtype_and_batch(problem: str) -> tuple[str, int]:
    """Returns those of a problem, or of a model and its input, from its text."""
    if " " in problem:
        _, shape, dtype = parse_model(problem)
        return dtype, shape[0]
    parsed = Problem.parse(problem)
    return parsed.dtype, parsed.batch
