"""A machine of a fleet as it measures: what it is, and visits to cases, each made whole.

Runs on that machine, whoever brought it there; the driver has only what this returns.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from dnnsep.host.machine import cpus_for, fingerprint
from dnnsep.measure.calibrate import Calibrator
from dnnsep.measure.roofs import Roofs
from dnnsep.measure.stats import Stats
from dnnsep.problem import Problem
from dnnsep.sweep.case import AnyCase, Case
from dnnsep.sweep.client import Allocator
from dnnsep.sweep.node import Effort, LocalNode
from dnnsep.sweep.results import Record

# The canary: a small problem, for how long it is measured, how many visits go by until it is again,
# and what it may be off by beside its own spread.
_CANARY = Problem.parse("mb1ic64oc64ih28kh3ph1")
_CANARY_SECONDS, _CANARY_VISITS, _CANARY_SLACK = 0.2, 10, 0.02


@dataclass
class Visit:
    """What came of a visit: the records of all its backends, what their workers said of themselves,
    and the roofs that were measured before, by number of threads."""

    records: list[Record]
    workers: dict[str, dict[str, Any]] = field(default_factory=dict)
    roofs: dict[int, Roofs] = field(default_factory=dict)


def facts() -> dict[str, Any]:
    """Returns what tells this machine from others: its fingerprint, ``vectors``, the name of those
    that kernels use here, and ``generator``, which tells versions of generated code apart."""
    from dnnsep.codegen.lang.isa import this_isa
    from dnnsep.codegen.version import generator

    return {**fingerprint(), "vectors": this_isa().name, "generator": generator()}


class Host:
    """Measures cases on the machine that it lives on, as a sweep of that machine alone does."""

    def __init__(self, effort: Effort, allocator: Allocator, with_roofs: bool) -> None:
        # What brings it here may have set this for a process of its own kind.
        os.environ.pop("OMP_NUM_THREADS", None)
        self._with_roofs = with_roofs
        self._roofs: dict[int, Roofs] = {}
        self._node = LocalNode(effort, allocator, self._roofs, probe_cache=with_roofs)
        self._canary = Canary(allocator)
        self._visits = 0

    def visit(self, case: AnyCase, earlier: Sequence[Record], visit: int) -> Visit:
        """Visits a case; ``earlier`` are its records of this machine so far."""
        threads = case.threads
        if self._with_roofs and threads not in self._roofs:
            # Without them cases are measured all the same.
            with suppress(RuntimeError), Calibrator(cpus_for(threads)) as calibrator:
                self._roofs[threads] = calibrator.roofs()
        if self._visits % _CANARY_VISITS == 0:
            self._canary.sing()
        self._visits += 1
        records = list(self._node.run(case, {record.key: record for record in earlier}, visit))
        if warning := self._canary.warning:
            records = [_warned(record, warning) for record in records]
        return Visit(records, self._node.workers, self._roofs)

    def close(self) -> None:
        """Ends the workers."""
        self._node.__exit__()
        self._canary.close()


class Canary:
    """A fixed problem by which a machine is seen to have changed since it began."""

    def __init__(self, allocator: Allocator) -> None:
        self._node = LocalNode(Effort(_CANARY_SECONDS), allocator, {}, probe_cache=False)
        self._first: Stats | None = None
        self.warning: str | None = None

    def sing(self) -> None:
        """Measures the problem; ``warning`` then says by how much it is off, None if it is not."""
        case = Case(_CANARY, None, 1, ("fused",))
        (record,) = self._node.run(case)
        now = record.time
        if now is None:
            self.warning = f"canary: {record.reason}"
            return
        self._first = self._first or now
        self.warning = off(self._first, now)

    @property
    def first_us(self) -> float | None:
        """Returns the median microseconds of the first time; None where there is none."""
        return self._first.median_us if self._first is not None else None

    def close(self) -> None:
        """Ends its worker."""
        self._node.__exit__()


def off(first: Stats, now: Stats) -> str | None:
    """Returns a warning where a canary takes longer or shorter than at first by more than both
    medians' 95 % intervals and a slack; None where it does not."""
    apart = now.median_us / first.median_us - 1
    spread = sum(stats.precision or 0.0 for stats in (first, now)) + _CANARY_SLACK
    if abs(apart) <= spread:
        return None
    return f"canary: a fixed problem takes {apart:+.0%} of its first time (spread {spread:.0%})"


def _warned(record: Record, warning: str) -> Record:
    others = [text for text in record.warnings if not text.startswith("canary:")]
    return record.model_copy(update={"warnings": [*others, warning]})
