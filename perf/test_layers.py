"""Regression benchmarks: configs/ci.yaml, or another ``--config``, on every backend it names, one
group a problem.

Every layer is measured on several visits (``--dnnsep-visits``), which is what the gate compares.

A backend that cannot run a problem, or is not installed, fails its benchmarks unless
``DNNSEP_TEST_BACKENDS`` names the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pytest_benchmark.fixture import BenchmarkFixture

from dnnsep.gate.measuring import CALLS, WARM_UP, Gate, timed
from dnnsep.host.machine import default_threads
from dnnsep.sweep.case import Case
from dnnsep.sweep.config import Overrides, load_sweep

_THRESHOLDS: dict[str, float] = yaml.safe_load(
    (Path(__file__).parent / "thresholds.yaml").read_text(encoding="utf-8")
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    config = str(metafunc.config.getoption("config"))
    backends = [b for b in os.environ.get("DNNSEP_TEST_BACKENDS", "").split(",") if b]
    cases = load_sweep([config], Overrides(backends=backends), default_threads()).cases
    metafunc.parametrize(
        ("case", "backend"),
        [
            pytest.param(case, backend, id=f"{case.name}-{case.problem}-{backend}")
            for case in cases
            for backend in case.backends
        ],
    )


def test_layer(benchmark: BenchmarkFixture, gate: Gate, case: Case, backend: str) -> None:
    benchmark.group = str(case.problem)

    def timer(run: Callable[[], Any]) -> list[float]:
        benchmark.pedantic(run, rounds=CALLS, warmup_rounds=WARM_UP)  # type: ignore[no-untyped-call]
        if benchmark.stats is None:  # --benchmark-disable
            return timed(run)
        return [1e6 * seconds for seconds in benchmark.stats.stats.data]

    threshold = _THRESHOLDS.get(case.name or "", _THRESHOLDS["default"])
    record = gate.layer(
        str(case.problem), backend, case.threads, name=case.name, threshold=threshold, timer=timer
    )
    (turn,) = record.rounds
    benchmark.extra_info.update(
        problem=record.problem,
        name=record.name,
        backend=record.backend,
        threads=record.threads,
        dtype=record.dtype,
        visit=turn.visit,
        before=turn.before.model_dump(),
        after=turn.after.model_dump(),
        impls=record.impls,
        flops=record.flops,
        gflops=record.gflops,
    )
