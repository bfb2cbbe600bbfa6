"""Regression benchmarks: configs/ci.yaml on every backend it names, one group a problem.

A backend that cannot run a problem, or is not installed, fails its benchmarks unless
``DNNSEP_TEST_BACKENDS`` names the others.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from dnnsep import cost, get_backend
from dnnsep.backends.tensors import to_channels_last
from dnnsep.sweep.check import CheckData
from dnnsep.sweep.config import Case, Overrides, load_sweep
from dnnsep.sweep.machine import default_threads
from dnnsep.sweep.verbose import onednn_log

_CONFIG = Path(__file__).parents[1] / "configs" / "ci.yaml"
_BACKENDS = [b for b in os.environ.get("DNNSEP_TEST_BACKENDS", "").split(",") if b]
_CASES = load_sweep([str(_CONFIG)], Overrides(backends=_BACKENDS), default_threads()).cases


@pytest.mark.parametrize(
    ("case", "backend"),
    [
        pytest.param(case, backend, id=f"{case.name}-{case.problem}-{backend}")
        for case in _CASES
        for backend in case.backends
    ],
)
def test_layer(benchmark: BenchmarkFixture, case: Case, backend: str) -> None:
    problem = case.problem
    torch.set_num_threads(case.threads)
    engine = get_backend(backend)
    for verdict in (engine.available(), engine.supports(problem)):
        assert verdict, verdict.reason
    data = CheckData.exact(problem)
    executor, x = engine.prepare(problem, data.weights), to_channels_last(data.x, problem.dtype)
    executor(x)
    with onednn_log() as log:
        y = executor(x)
    correct, finding = data.verdict(y.float().numpy())
    assert correct, finding

    benchmark.group = str(problem)
    with torch.no_grad():
        benchmark.pedantic(executor, args=(x,), rounds=200, warmup_rounds=20)  # type: ignore[no-untyped-call]
    if benchmark.stats is None:  # --benchmark-disable
        return
    flops = cost(problem).flops
    benchmark.extra_info.update(
        flops=flops,
        gflops=flops / benchmark.stats["median"] / 1e9,
        impls=[f"{p.kind}:{p.impl}" for p in log.primitives],
        dtype=problem.dtype,
        backend=executor.backend,
        threads=case.threads,
    )
