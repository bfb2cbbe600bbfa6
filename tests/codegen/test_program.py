"""Steps one after the other: their links, the memory between them, calls at once."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from dnnsep.codegen.sources import Sources

from dnnsep.codegen.lang.isa import Isa, this_isa
from dnnsep.codegen.layer import layer_of
from dnnsep.codegen.pack import Packing
from dnnsep.codegen.program import FROM_INPUT, GIVEN, INPUT, Program, Step, chosen_step
from dnnsep.codegen.weigh import Caches, all_plans
from dnnsep.dtypes import DTYPES, Array
from dnnsep.problem import Problem
from dnnsep.sweep.check import CheckData
from dnnsep.weights import random_data
from tests.codegen.dags import SHAPES, Node, laid_out, random_dag, read, run

_THREADS = 2
_STREAMS = Caches(1 << 10, 1 << 12, 1 << 12)


def _inputs(dtype: str, seed: int) -> dict[int, Array]:
    rng = np.random.default_rng(seed)
    return {
        source: DTYPES[dtype].rounded(rng.standard_normal(shape))
        for source, shape in SHAPES.items()
    }


def _right(nodes: list[Node], inputs: dict[int, Array]) -> Array:
    """Returns the last step's result, each step having been run alone; checks each of them."""
    values = dict(inputs)
    for number, node in enumerate(nodes):
        values[number] = node.alone(values, _THREADS)
        naive, bound = node.answer(values)
        assert (np.abs(values[number] - naive) <= bound).all(), node
    return values[len(nodes) - 1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_programs(dtype: str) -> None:
    """To the bit what their steps give one by one, each of which is right."""
    linked: set[str] = set()
    for seed in range(20):
        nodes, inputs = random_dag(np.random.default_rng(seed), dtype, 12), _inputs(dtype, seed)
        program = Program([node.step(_THREADS) for node in nodes])
        right = _right(nodes, inputs)
        for _ in range(2):  # the second time in the memory of the first
            found = run(program, inputs[INPUT], inputs[GIVEN])
            assert found.tobytes() == right.tobytes(), [str(node.problem) for node in nodes]
        linked |= {name for node in nodes for name, _ in node.sources.items()}
    assert linked == {"x", "residual", "scale"}


def _chain(text: str, length: int) -> list[Step]:
    problem = Problem.parse(text)
    weights, _ = random_data(problem)
    step = chosen_step(problem, lambda packing: packing.pack(weights), _THREADS)
    return [step, *(replace(step, sources=Sources(n)) for n in range(length - 1))]


def test_a_result_that_is_needed_late_stays() -> None:
    """The first step's, as the residual of the last, whatever is between them."""
    for length in range(2, 7):
        steps = _chain("g1mb2ic24oc24ih4kh1", length)
        steps[-1] = replace(steps[-1], sources=Sources(length - 2, residual=0))
        x, given = _inputs("f32", length).values()
        plain = [run(Program(steps[: n + 1]), x, given) for n in range(length - 1)]
        through = run(Program(_chain("g1mb2ic24oc24ih4kh1", length)), x, given)
        found = run(Program(steps), x, given)
        assert np.abs(found - (through + plain[0])).max() < 1e-5 * np.abs(found).max()


def test_memory_is_taken_again() -> None:
    """A chain needs the memory of two results, however long it is."""

    def bytes_of_a_call(length: int) -> int:
        steps = _chain("g8mb1ic8oc8ih64kh3ph1", length)
        program, shape = Program(steps), steps[0].problem.input_shape
        x, y = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        tracemalloc.start()
        program.run(x.ctypes.data, 0, y.ctypes.data)
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return used

    result = 8 * 64 * 64 * 4
    assert bytes_of_a_call(2) - bytes_of_a_call(1) > 0.9 * result
    assert bytes_of_a_call(12) - bytes_of_a_call(3) < 0.1 * result


def test_calls_from_several_threads_at_once() -> None:
    nodes = random_dag(np.random.default_rng(5), "f32", steps=12)
    assert len(nodes) > 8
    program = Program([node.step(_THREADS) for node in nodes])
    inputs = [_inputs("f32", seed) for seed in range(6)]
    right = [run(program, x[INPUT], x[GIVEN]) for x in inputs]
    assert not np.array_equal(right[0], right[1])

    def many(number: int) -> bool:
        x = inputs[number % len(inputs)]
        found = [run(program, x[INPUT], x[GIVEN]) for _ in range(20)]
        return all(np.array_equal(y, right[number % len(inputs)]) for y in found)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(many, range(12)))


def _streaming(dtype: str, isa: Isa) -> tuple[Step, CheckData]:
    problem = Problem.parse(f"mb2ic16oc64ih20kh3ph1_{dtype}")
    data = CheckData.exact(problem)
    plan = next(all_plans(problem, isa, 2, _STREAMS))
    assert plan.streaming
    packed = Packing(layer_of(problem, isa), plan.vectors).pack(data.weights)
    return Step(problem, plan, packed), data


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_streaming_plan_writes_into_any_memory(dtype: str, isa: Isa) -> None:
    step, data = _streaming(dtype, isa)
    program, stores = Program([step]), DTYPES[dtype]
    x = laid_out(data.x, stores)
    n, c, h, w = step.problem.output_shape
    room = np.zeros(n * h * w * c + 128, x.dtype)
    start = -room.ctypes.data % 64 // room.itemsize
    for first in (start, start + 1, start + 7, start):
        for call in ("run", "bound"):
            room[:] = 0
            y = room[first : first + n * h * w * c]
            if call == "run":
                program.run(x.ctypes.data, 0, y.ctypes.data)
            else:
                program.bound(x.ctypes.data, y.ctypes.data)()
            assert data.verdict(read(y.reshape(n, h, w, c), stores))[0]
            assert not room[:first].any()
            assert not room[first + y.size :].any()


def test_a_step_between_others_may_stream(isa: Isa) -> None:
    """The next step sees all of what went past the caches."""
    step, data = _streaming("f32", isa)
    after = Problem.parse("g64mb2ic64oc64ih20kh1_nobias")
    one = replace(random_data(after)[0], depthwise=np.ones((64, 1, 1, 1), np.float32))
    (plan,) = all_plans(after, isa, 2, _STREAMS)
    packed = Packing(layer_of(after, isa), plan.vectors).pack(one)
    program = Program([step, Step(after, plan, packed, Sources(0))])
    for _ in range(5):
        assert data.verdict(run(program, data.x, data.x))[0]


def test_weights_are_packed_alike_for_every_size() -> None:
    keys: list[Packing] = []

    def packed(packing: Packing) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        keys.append(packing)
        return np.zeros(packing.size, np.uint8)

    problem = Problem.parse("mb2ic24oc40ih14kh3ph1")
    for other in (problem, replace(problem, batch=1, height=30)):
        assert chosen_step(other, packed, 2).sources == FROM_INPUT
    assert keys[0] == keys[1] == Packing(layer_of(problem, this_isa()), keys[0].vectors)


def test_links_that_a_layer_cannot_have_are_refused() -> None:
    for text, sources, message in (
        ("mean_mb2ic24ih4", Sources(INPUT, residual=GIVEN), "residual: only a layer"),
        ("mb2ic24oc24ih4kh3ph1", Sources(INPUT, scale=GIVEN), "scale: only a pointwise"),
        ("g1mb2ic24oc24ih4kh3ph1", Sources(INPUT, scale=GIVEN), "scale: only a pointwise"),
    ):
        (step,) = _chain(text, 1)
        with pytest.raises(ValueError, match=message):
            Program([replace(step, sources=sources)])


def test_sources_name_what_there_is() -> None:
    """Among it step 0, and what is below it: the input, and what is given with it."""
    assert Sources(3).items() == [("x", 3)]
    assert Sources(0, residual=0, scale=0).items() == [("x", 0), ("residual", 0), ("scale", 0)]
    assert Sources(INPUT, scale=GIVEN).items() == [("x", INPUT), ("scale", GIVEN)]


def test_sources_map_to_sources() -> None:
    mapped = Sources("a", scale="b").map({"a": 0, "b": 1}.__getitem__)
    assert mapped == Sources(0, scale=1)
    assert mapped.residual is None
