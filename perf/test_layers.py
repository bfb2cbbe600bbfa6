"""Regression benchmarks: configs/ci.yaml, or another ``--config``, on every backend it names, one
group a problem.

Every layer is measured on several visits (``--visits``), which is what the gate compares.

A backend that cannot run a problem, or is not installed, fails its benchmarks unless
``DNNSEP_TEST_BACKENDS`` names the others.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from dnnsep import Problem, cost, get_backend
from dnnsep.backends.tensors import to_channels_last
from dnnsep.host.machine import default_threads
from dnnsep.measure.calibrate import Calibrator
from dnnsep.sweep.case import Case
from dnnsep.sweep.check import CheckData
from dnnsep.sweep.config import Overrides, load_sweep
from dnnsep.sweep.verbose import onednn_log

_CALLS = 25

# How long a benchmark waits for the machine to be quiet.
_PATIENCE_SECONDS = 1.0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Makes a benchmark of all layers, then of all again: what a machine does for a while does not
    hit one layer only."""
    config = str(metafunc.config.getoption("config"))
    backends = [b for b in os.environ.get("DNNSEP_TEST_BACKENDS", "").split(",") if b]
    cases = load_sweep([config], Overrides(backends=backends), default_threads()).cases
    metafunc.parametrize(
        ("visit", "case", "backend"),
        [
            pytest.param(visit, case, backend, id=f"{case.name}-{case.problem}-{backend}-{visit}")
            for visit in range(metafunc.config.getoption("visits"))
            for case in cases
            for backend in case.backends
        ],
    )


def test_layer(
    benchmark: BenchmarkFixture,
    calibrator: Calibrator,
    entries: list[dict[str, Any]],
    visit: int,
    case: Case,
    backend: str,
) -> None:
    problem = case.problem
    torch.set_num_threads(case.threads)
    engine = get_backend(backend)
    for verdict in (engine.available(), engine.supports(problem)):
        assert verdict, verdict.reason
    data = _data(problem)
    executor, x = engine.prepare(problem, data.weights), to_channels_last(data.x, problem.dtype)
    executor(x)
    with onednn_log() as log:
        y = executor(x)
    correct, finding = data.verdict(y.float().numpy())
    assert correct, finding

    benchmark.group = str(problem)
    before = calibrator.quiet_control(calibrator.control(), _PATIENCE_SECONDS)
    with torch.no_grad():
        benchmark.pedantic(executor, args=(x,), rounds=_CALLS, warmup_rounds=20)  # type: ignore[no-untyped-call]
    if benchmark.stats is None:  # --benchmark-disable
        return
    flops = cost(problem).flops
    benchmark.extra_info.update(
        problem=str(problem),
        name=case.name,
        backend=backend,
        threads=case.threads,
        dtype=problem.dtype,
        visit=visit,
        before=before.model_dump(),
        after=calibrator.control().model_dump(),
        impls=[f"{p.kind}:{p.impl}" for p in log.primitives],
        flops=flops,
        gflops=flops / benchmark.stats["median"] / 1e9,
    )
    calls = {"data": list(benchmark.stats.stats.data)}
    entries.append({"extra_info": dict(benchmark.extra_info), "stats": calls})


@cache
def _data(problem: Problem) -> CheckData:
    return CheckData.exact(problem)
