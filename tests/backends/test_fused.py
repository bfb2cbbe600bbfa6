"""What only the fused backend does: its kernels on disk, its threads, its stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from llvmlite import ir

from dnnsep import Problem, get_backend
from dnnsep.backends.fused_executor import FusedExecutor
from dnnsep.backends.tensors import to_channels_last
from dnnsep.codegen import kernel, team
from dnnsep.codegen.lang.isa import CAP_VARIABLE, this_isa
from dnnsep.codegen.lang.jit import Target, machine_code
from dnnsep.codegen.layer import layer_of
from dnnsep.codegen.weigh import Caches, all_plans
from dnnsep.host import cachefiles
from dnnsep.sweep.check import CheckData
from tests.codegen.conftest import SETTING_OF


def _is_right(problem: Problem) -> bool:
    data = CheckData.exact(problem)
    y = get_backend("fused").prepare(problem, data.weights)(to_channels_last(data.x, problem.dtype))
    return data.verdict(y.float().numpy())[0]


def test_a_kernel_comes_from_the_disk_and_a_damaged_one_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cachefiles.VARIABLE, str(tmp_path))
    made = []

    def counted(module: ir.Module, target: Target) -> bytes:
        made.append(module)
        return machine_code(module, target)

    monkeypatch.setattr(kernel, "machine_code", counted)
    problem = Problem.parse("ic18oc34ih11kh3ph1")
    for so_far, damage in ((1, False), (1, True), (2, False)):
        kernel.compiled.cache_clear()
        assert _is_right(problem)
        assert len(made) == so_far
        (path,) = (tmp_path / "kernels").iterdir()
        if damage:
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 0xFF
            path.write_bytes(content)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_streaming_stores_into_any_memory(dtype: str) -> None:
    problem = Problem.parse(f"mb2ic16oc64ih20kh3ph1_{dtype}")
    data = CheckData.exact(problem)
    plan = next(all_plans(problem, this_isa(), 2, Caches(1 << 10, 1 << 12, 1 << 12)))
    assert plan.streaming
    executor = FusedExecutor.of(problem, data.weights, plan)
    x = to_channels_last(data.x, dtype)
    n, c, h, w = problem.output_shape
    room = torch.empty(n * c * h * w + 1, dtype=x.dtype)
    for first in (0, 1):
        out = room[first : first + n * c * h * w].reshape(n, h, w, c).permute(0, 3, 1, 2)
        assert executor(x, out=out) is out
        assert data.verdict(out.float().numpy())[0]


def test_any_team_of_threads_does_all_the_work() -> None:
    """Also one that is smaller or larger than the plan was made for."""
    problem = Problem.parse("ic32oc64ih14kh3ph1")
    data = CheckData.random(problem)
    x = to_channels_last(data.x, "f32")
    before = torch.get_num_threads()
    answers = []
    try:
        for prepared in (1, 2, 4):
            torch.set_num_threads(prepared)
            executor = get_backend("fused").prepare(problem, data.weights)
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                answers.append(executor(x).numpy())
    finally:
        torch.set_num_threads(before)
    assert data.verdict(answers[0])[0]
    assert all(np.array_equal(answer, answers[0]) for answer in answers)


def test_a_bound_call_keeps_what_it_needs() -> None:
    problem = Problem.parse("ic32oc64ih14kh3ph1")
    data = CheckData.exact(problem)
    call = (
        get_backend("fused")
        .prepare(problem, data.weights)
        .bind(to_channels_last(data.x.copy(), "f32"))
    )
    kernel.compiled.cache_clear()
    for _ in range(3):
        assert data.verdict(call().numpy())[0]


def test_what_it_has_no_kernel_for_is_said() -> None:
    problem = Problem.parse("g8ic8oc16ih5kh3ph1")
    backend, reason = get_backend("fused"), "no kernel for a depthwise convolution alone with"
    verdict = backend.supports(problem)
    assert not verdict
    assert verdict.reason.startswith(reason)
    with pytest.raises(ValueError, match=reason):
        backend.prepare(problem, CheckData.exact(problem).weights)


def test_a_cap_that_is_not_known_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CAP_VARIABLE, "sse")
    verdict = get_backend("fused").supports(Problem.parse("ic8oc8ih5kh3ph1"))
    assert not verdict
    assert CAP_VARIABLE in verdict.reason


def test_the_kernels_of_each_cpu_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem.parse("ic8oc8ih5kh3ph1_bf16")
    data = CheckData.exact(problem)
    for isa, setting in SETTING_OF.items():
        for variable, value in setting.items():
            monkeypatch.setenv(variable, value)
        executor = get_backend("fused").prepare(problem, data.weights)
        assert executor.impls == (f"fused:{isa.name}:{layer_of(problem, isa).dot.name}",)
        assert data.verdict(executor(to_channels_last(data.x, "bf16")).float().numpy())[0]


def test_a_torch_without_openmp_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise RuntimeError("torch has loaded no OpenMP library")

    monkeypatch.setattr(team, "openmp", none)
    verdict = get_backend("fused").supports(Problem.parse("ic16oc16ih8kh3ph1"))
    assert not verdict
    assert "OpenMP" in verdict.reason
