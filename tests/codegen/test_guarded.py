"""The fused kernel touches only its buffers and is right, over random problems and plans."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import numpy as np
import pytest

from dnnsep.codegen.choose import Caches, all_plans
from dnnsep.codegen.lang.isa import CAP_VARIABLE, this_isa
from dnnsep.problem import Problem
from dnnsep.sweep.check import CheckData
from tests.codegen.guarded import Guarded, run_guarded

CAPS = ["avx2", "avx512", "avx512_bf16"]


def _run(cap: str, seed: int, count: int) -> None:
    """In a process of its own: touching a forbidden page kills it."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.codegen.guarded", str(seed), str(count)],
        env={**os.environ, CAP_VARIABLE: cap, "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        check=False,
    )
    last = run.stdout.splitlines()[-1:]
    assert run.returncode == 0, f"{last}: {run.returncode} {run.stderr[-500:]}"
    assert len(run.stdout.splitlines()) == count


@pytest.mark.parametrize("cap", CAPS)
def test_random_problems(cap: str) -> None:
    _run(cap, seed=1, count=25)


@pytest.mark.slow
@pytest.mark.parametrize("cap", CAPS)
def test_many_random_problems(cap: str) -> None:
    _run(cap, seed=2, count=200)


def test_a_byte_outside_kills() -> None:
    script = "from tests.codegen.guarded import Guarded; import ctypes; b = Guarded(100, {}); "
    for at_end, offset in ((True, 100), (False, -1)):
        poke = f"ctypes.memset(b.bytes.ctypes.data + {offset}, 0, 1)"
        run = subprocess.run([sys.executable, "-c", script.format(at_end) + poke], check=False)
        assert run.returncode < 0
    watched = Guarded(100, at_end=False)
    watched._rest[0] = 0
    assert not watched.untouched


@pytest.mark.parametrize("cap", CAPS)
def test_plans_give_the_same_bits(cap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the caches and the threads: nothing about the plan changes the order of sums."""
    monkeypatch.setenv(CAP_VARIABLE, cap)
    for text in ("mb2ic37oc70ih15iw29kh3ph1_act:silu,none", "ic64oc96ih7kh3ph1_bf16"):
        problem = Problem.parse(text)
        data = CheckData.random(problem)
        small, large = Caches(1 << 10, 1 << 12, 1 << 14), Caches(1 << 16, 1 << 20, 1 << 25)
        plans = {
            plan
            for caches in (small, large)
            for threads in (1, 2, 3, 4)
            for plan in all_plans(problem, this_isa(), threads, caches)
        }
        assert len(plans) > 10
        some = random.Random(1).sample(sorted(plans, key=str), 6)
        answers = [run_guarded(problem, plan, data, at_end=True) for plan in some]
        assert data.verdict(answers[0])[0]
        assert all(np.array_equal(answer, answers[0]) for answer in answers)
