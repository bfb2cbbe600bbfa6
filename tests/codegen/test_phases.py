"""What may run at the same time: what parts touch, and which of them need not wait for others."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray

from dnnsep.codegen import program
from dnnsep.codegen.extent import Extent
from dnnsep.codegen.generalstep import General, GeneralStep
from dnnsep.codegen.lang.isa import this_isa
from dnnsep.codegen.layer import layer_of
from dnnsep.codegen.layerstep import LayerStep
from dnnsep.codegen.pack import Packing
from dnnsep.codegen.phases import Chain, Used, last_uses, phases
from dnnsep.codegen.reach import Reach
from dnnsep.codegen.shared import Entry
from dnnsep.codegen.task import KERNEL
from dnnsep.codegen.team import Phase
from dnnsep.codegen.weigh import Caches, all_plans
from dnnsep.dtypes import DTYPES
from dnnsep.problem import Problem
from tests.codegen.dags import SHAPES, placed, random_dag
from tests.codegen.guarded import Inputs, in_memory, random_extras, random_problem

_BYTE = 0xA5
Memory = dict[str, NDArray[np.uint8]]


def _random_step(rng: np.random.Generator) -> tuple[LayerStep | GeneralStep, Inputs]:
    """Returns a random layer by any plan or by its general kernel, for any number of threads."""
    isa, problem = this_isa(), random_problem(rng)
    while problem.kind == "depthwise" and problem.channel_multiplier > 1:
        problem = random_problem(rng)
    layer, threads = layer_of(problem, isa), int(rng.integers(1, 6))
    extras = random_extras(layer, rng, scales=problem.kind == "convolution")
    inputs = Inputs.of(problem, extras, int(rng.integers(1000)))
    weights = inputs.check.weights
    has_general = layer.kept is None and not layer.dot.in_tiles and problem.kind != "mean"
    if has_general and rng.random() < 0.5:
        general = General.of(layer, extras)
        packed = general.packing.pack(weights)
        return GeneralStep(general, Extent.of(problem), threads, packed, problem), inputs
    plans = list(all_plans(problem, isa, threads, Caches(1 << 15, 1 << 20, 1 << 20)))
    plan = replace(plans[rng.integers(len(plans))], streaming=False)
    packed = Packing(layer, plan.vectors).pack(weights)
    return LayerStep(problem, plan, packed, extras), inputs


@pytest.mark.parametrize("seed", range(25))
def test_parts_touch_no_more_than_they_say(seed: int) -> None:
    """Of its operands a part writes just bytes that it says, and what else is in memory does not
    change what it writes."""
    step, inputs = _random_step(np.random.default_rng(seed))
    reaches = [step.reach(part) for part in range(step.parts)]
    if reaches[0] is None:
        assert step.layer.product is None
        return
    memory = _memory(step.problem, inputs)
    whole = _run(step, memory, range(step.parts))
    together = np.zeros(len(whole), bool)
    for part, reach in enumerate(reaches):
        assert reach is not None
        assert set(reach) == set(memory)
        known = {name: np.full_like(held, 0xFF) for name, held in memory.items()}
        for name, span in reach.items():
            assert span.stop <= len(memory[name])
            known[name][span.start : span.stop] = memory[name][span.start : span.stop]
        known["y"] = memory["y"]
        found = _run(step, known, range(part, part + 1))
        written = found != _BYTE
        outside = np.ones(len(found), bool)
        outside[reach["y"].start : reach["y"].stop] = False
        assert not (written & outside).any()
        assert (found[written] == whole[written]).all()
        together |= written
    assert (together == (whole != _BYTE)).all()


def _memory(problem: Problem, inputs: Inputs) -> Memory:
    layer, dtype = layer_of(problem, this_isa()), DTYPES[problem.dtype]
    pitches = inputs.extras.pitches(layer)
    memory = {"x": in_memory(inputs.check.x, dtype, pitches.x)}
    if inputs.residual is not None:
        memory["residual"] = in_memory(inputs.residual, dtype, pitches.residual)
    if inputs.scale is not None:
        memory["scale"] = in_memory(inputs.scale, dtype, problem.in_channels)
    n, _, h, w = problem.output_shape
    memory["y"] = np.full(n * h * w * pitches.y * dtype.bytes, _BYTE, np.uint8)
    return memory


def _run(step: LayerStep | GeneralStep, memory: Memory, parts: range) -> NDArray[np.uint8]:
    """Returns y after these parts."""
    held = {name: of.copy() for name, of in memory.items()}
    task = step.task()
    for name, of in held.items():
        setattr(task, name, of.ctypes.data)
    size = -(-step.scratch_bytes // 64) * 64
    scratch = np.zeros(size + 64, np.uint8)
    start = scratch.ctypes.data + -scratch.ctypes.data % 64
    for part in parts:
        step.kernel(ctypes.addressof(task), part, start)
    return held["y"]


@dataclass(frozen=True)
class Rows:
    """A step whose parts are equal shares of so many rows of a byte: each reads its own of x, and
    so many more on both sides, and writes its own of y."""

    parts: int
    rows: int = 60
    around: int = 0
    known: bool = True

    def reach(self, part: int) -> Reach | None:
        first, last = (self.rows * n // self.parts for n in (part, part + 1))
        read = range(max(0, first - self.around), min(self.rows, last + self.around))
        return {"x": read, "y": range(first, last)} if self.known else None


def _found(*steps: tuple[Rows, tuple[str, int], tuple[str, int], bool]) -> list[list[Chain]]:
    used = [Used(step, {"x": x, "y": y}, waits) for step, x, y, waits in steps]  # type: ignore[arg-type]
    return phases(used)


def _in_order(*steps: Rows, places: str = "abcdefgh") -> list[list[Chain]]:
    """Returns the phases of steps of which each reads what the one before it wrote."""
    pairs = zip(steps, places, places[1:], strict=False)
    return _found(*((step, (x, 0), (y, 0), True) for step, x, y in pairs))


def test_parts_that_need_one_part_alone_are_chained() -> None:
    assert _in_order(Rows(2, around=1), Rows(2)) == [[[(0, 0), (1, 0)], [(0, 1), (1, 1)]]]


def test_a_chain_is_short() -> None:
    """What it uses stays in memory until all of its phase is done."""
    found = _in_order(*[Rows(2)] * 5)
    assert [[len(chain) for chain in phase] for phase in found] == [[2, 2], [2, 2], [1, 1]]


def test_parts_that_read_rows_of_others_wait() -> None:
    found = _in_order(Rows(2), Rows(2, around=1), Rows(2))
    assert found == [[[(0, 0)], [(0, 1)]], [[(1, 0), (2, 0)], [(1, 1), (2, 1)]]]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Rows(2), Rows(3)),
        (Rows(2), Rows(4)),
        (Rows(4), Rows(2)),
        (Rows(1), Rows(2)),
        (Rows(2), Rows(2, known=False)),
        (Rows(2, known=False), Rows(2)),
    ],
)
def test_other_parts_wait(first: Rows, second: Rows) -> None:
    assert [len(phase) for phase in _in_order(first, second)] == [first.parts, second.parts]


def test_parts_that_overwrite_what_others_read_wait() -> None:
    """The second step writes over the first one's input, of which the other part reads a row."""
    assert len(_in_order(Rows(2, around=1), Rows(2), places="aba")) == 2
    assert len(_in_order(Rows(2), Rows(2), places="aba")) == 1


def test_a_step_beside_another_is_chained_to_nothing() -> None:
    one, two, three = (Rows(2), ("a", 0), ("b", 0)), (Rows(2), ("a", 60), ("b", 60)), Rows(2)
    found = _found((*one, False), (*two, True), (three, ("b", 0), ("c", 0), True))
    assert [len(phase) for phase in found] == [4, 2]


def test_a_step_after_a_chained_one_that_does_not_wait_is_looked_at_too() -> None:
    first, second = (Rows(2), ("a", 0), ("b", 0), True), (Rows(2), ("b", 0), ("c", 0), False)
    third = (Rows(2, around=1), ("b", 0), ("d", 0), True)
    assert [len(phase) for phase in _found(first, second, third)] == [2, 2]


def test_what_a_chain_uses_is_kept_for_all_of_its_phase() -> None:
    steps = [Used(Rows(2), {"x": (x, 0), "y": (y, 0)}) for x, y in ("ab", "bc")]  # type: ignore[arg-type]
    steps.append(Used(Rows(3), {"x": ("c", 0), "y": ("d", 0)}))  # type: ignore[arg-type]
    assert last_uses(steps, phases(steps)) == {"a": 1, "b": 1, "c": 2, "d": 2}


class InAnyOrder:
    """In place of Work: does the chains of each phase one by one, in a random order."""

    random = Random(0)
    chained = 0

    def __init__(self, phases: list[Phase], threads: int, scratch: int, size: int) -> None:
        self._phases, self._scratch = phases, scratch
        InAnyOrder.chained += sum(len(chain) > 1 for phase in phases for chain in phase)

    def run(self) -> None:
        for phase in self._phases:
            for chain in self.random.sample(phase, len(phase)):
                for address, part in chain:
                    entry = Entry.from_address(address)
                    ctypes.CFUNCTYPE(None, *KERNEL)(entry.function)(entry.task, part, self._scratch)


@pytest.mark.parametrize("reuse", [True, False])
def test_chains_of_a_phase_may_run_in_any_order(
    monkeypatch: pytest.MonkeyPatch, reuse: bool
) -> None:
    """Random programs, to the bit what they give where every step waits for the one before it."""
    monkeypatch.setattr(program, "Work", InAnyOrder)
    InAnyOrder.chained = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        nodes = random_dag(rng, "f32", 12)
        x, given = (rng.standard_normal(shape).astype(np.float32) for shape in SHAPES.values())
        for threads in (2, 3):
            found = placed(nodes, threads, reuse)
            with monkeypatch.context() as without:
                without.setattr(LayerStep, "reach", lambda self, part: None)
                right = placed(nodes, threads, reuse).run(x, given)
            for _ in range(4):
                assert found.run(x, given).tobytes() == right.tobytes()
    assert InAnyOrder.chained > 20
