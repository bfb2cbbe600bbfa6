"""Steps one after the other: where their operands are, who waits for whom, calls at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from dnnsep.codegen.extras import Extras
from dnnsep.codegen.lang.isa import Isa, this_isa
from dnnsep.codegen.layer import layer_of
from dnnsep.codegen.layerstep import LayerStep, chosen_step
from dnnsep.codegen.pack import Packing
from dnnsep.codegen.program import GIVEN, INPUT, OUTPUT, Frame, Place, Placed, Program
from dnnsep.codegen.team import Phase, Work
from dnnsep.codegen.weigh import Caches, all_plans
from dnnsep.dtypes import DTYPES, Array
from dnnsep.problem import Problem
from dnnsep.sweep.check import CheckData
from dnnsep.weights import random_data
from tests.codegen.dags import ARENA, SHAPES, Links, Node, laid_out, placed, random_dag, read

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
        program = placed(nodes, _THREADS)
        right = _right(nodes, inputs)
        for _ in range(2):
            found = program.run(inputs[INPUT], inputs[GIVEN])
            assert found.tobytes() == right.tobytes(), [str(node.problem) for node in nodes]
        linked |= {name for node in nodes for name, _ in node.links}
    assert linked == {"x", "residual", "scale"}


@pytest.mark.parametrize("threads", [1, 3, 4])
def test_any_number_of_threads_gives_the_same(threads: int) -> None:
    for seed in range(3):
        nodes, inputs = random_dag(np.random.default_rng(seed), "f32", 12), _inputs("f32", seed)
        found, right = (
            placed(nodes, count).run(inputs[INPUT], inputs[GIVEN]) for count in (threads, _THREADS)
        )
        assert found.tobytes() == right.tobytes()


def _chain(text: str, length: int) -> list[Node]:
    problem = Problem.parse(text)
    weights, _ = random_data(problem)
    return [Node(problem, weights, Links(n if n >= 0 else INPUT)) for n in range(-1, length - 1)]


def test_a_result_that_is_needed_late_stays() -> None:
    """The first step's, as the residual of the last, whatever is between them."""
    for length in range(2, 7):
        nodes = _chain("g1mb2ic24oc24ih4kh1", length)
        x, given = _inputs("f32", length).values()
        first, through = (placed(nodes[:n], _THREADS).run(x, given) for n in (1, length))
        nodes[-1] = replace(nodes[-1], links=Links(length - 2, residual=0))
        found = placed(nodes, _THREADS).run(x, given)
        assert np.abs(found - (through + first)).max() < 1e-5 * np.abs(found).max()


def test_calls_from_several_threads_at_once() -> None:
    nodes = random_dag(np.random.default_rng(5), "f32", steps=12)
    assert len(nodes) > 8
    program = placed(nodes, _THREADS)
    inputs = [_inputs("f32", seed) for seed in range(6)]
    right = [program.run(x[INPUT], x[GIVEN]) for x in inputs]
    assert not np.array_equal(right[0], right[1])

    def many(number: int) -> bool:
        x = inputs[number % len(inputs)]
        found = [program.run(x[INPUT], x[GIVEN]) for _ in range(20)]
        return all(np.array_equal(y, right[number % len(inputs)]) for y in found)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(many, range(12)))


@dataclass(frozen=True, eq=False)
class Grouped:
    """A grouped convolution on images of many pixels: a step for each group, that reads and writes
    the channels of its own group, and then one that reads all of them."""

    groups: int = 8

    @property
    def group(self) -> Problem:
        return Problem.parse("g1mb1ic8oc16ih24kh3ph1_act:relu")

    @property
    def after(self) -> Problem:
        return Problem.parse(f"g1mb1ic{16 * self.groups}oc24ih24kh3ph1")

    def program(self, waits: bool) -> Program:
        """Returns the program; where not all wait, only the last group does."""
        extras = Extras(x_pitch=8 * self.groups, y_pitch=16 * self.groups)
        steps = [
            Placed(
                _step(self.group, extras, seed=number),
                {"x": Place(INPUT, 8 * number * 4), "y": Place(ARENA, 16 * number * 4)},
                waits or number == self.groups - 1,
            )
            for number in range(self.groups)
        ]
        last = Placed(_step(self.after), {"x": Place(ARENA), "y": Place(OUTPUT)}, waits)
        return Program([*steps, last])

    def run(self, program: Program, x: Array) -> Array:
        between = np.full(24 * 24 * 16 * self.groups, np.nan, np.float32)
        y = np.empty((1, 24, 24, 24), np.float32)
        given = laid_out(x, DTYPES["f32"])
        arrays = {INPUT: given, ARENA: between, OUTPUT: y}
        program.run({number: array.ctypes.data for number, array in arrays.items()})
        return read(y, DTYPES["f32"])

    def x(self, seed: int = 0) -> Array:
        shape = (1, 8 * self.groups, 24, 24)
        return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _step(problem: Problem, extras: Extras | None = None, seed: int = 0) -> LayerStep:
    weights, _ = random_data(problem, seed)
    return chosen_step(problem, lambda by: by.pack(weights), _THREADS, extras or Extras())


def test_independent_steps_need_no_waiting() -> None:
    grouped = Grouped()
    x = grouped.x()
    right = grouped.run(grouped.program(waits=True), x)
    program = grouped.program(waits=False)
    for _ in range(30):
        assert grouped.run(program, x).tobytes() == right.tobytes()


def test_steps_without_waiting_are_right() -> None:
    grouped = Grouped(groups=2)
    x = grouped.x()
    values: dict[int, Array] = {}
    for number in range(2):
        weights, _ = random_data(grouped.group, number)
        node = Node(grouped.group, weights, Links(0))
        values[number] = node.alone({0: x[:, 8 * number : 8 * number + 8]}, _THREADS)
    joined = np.concatenate([values[0], values[1]], axis=1)
    node = Node(grouped.after, random_data(grouped.after)[0], Links(0))
    right = node.alone({0: joined}, _THREADS)
    assert grouped.run(grouped.program(waits=False), x).tobytes() == right.tobytes()


@pytest.mark.parametrize(("waits", "phases"), [(True, 5), (False, 2)])
def test_steps_wait_where_one_says_so(
    monkeypatch: pytest.MonkeyPatch, waits: bool, phases: int
) -> None:
    made: list[int] = []
    init = Work.__init__

    def counted(self: Work, phases: list[Phase], *more: int) -> None:
        made.append(len(phases))
        init(self, phases, *more)

    monkeypatch.setattr(Work, "__init__", counted)
    monkeypatch.setattr(LayerStep, "reach", lambda self, part: None)  # else parts are chained
    grouped = Grouped(groups=4)
    grouped.run(grouped.program(waits), grouped.x())
    assert made == [phases]


def test_frames_of_several_threads_in_their_own_memory() -> None:
    """A frame is bound once, then run again and again while others run."""
    grouped = Grouped()
    program = grouped.program(waits=False)
    inputs = [grouped.x(seed) for seed in range(4)]
    right = [grouped.run(program, x) for x in inputs]

    def many(number: int) -> bool:
        frame = Frame(program)
        x = laid_out(inputs[number], DTYPES["f32"])
        between = np.empty(24 * 24 * 16 * grouped.groups, np.float32)
        y = np.empty((1, 24, 24, 24), np.float32)
        for buffer, array in ((INPUT, x), (ARENA, between), (OUTPUT, y)):
            frame.bind(buffer, array.ctypes.data)
        same = True
        for _ in range(20):
            y[:] = 0
            frame.run()
            same = same and read(y, DTYPES["f32"]).tobytes() == right[number].tobytes()
        return same

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(many, range(4)))


def test_a_frame_uses_the_scratch_memory_that_it_is_given() -> None:
    problem = Problem.parse("mb2ic24oc24ih4kh3ph1_act:relu,none")
    data = CheckData.exact(problem)
    step = chosen_step(problem, lambda by: by.pack(data.weights), _THREADS)
    program = Program([step.alone()])
    memory = np.full(program.scratch_bytes + 64, 0xA5, np.uint8)
    frame = Frame(program, memory.ctypes.data + -memory.ctypes.data % 64)
    x = laid_out(data.x, DTYPES["f32"])
    y = np.empty((2, 4, 4, 24), np.float32)
    frame.bind(INPUT, x.ctypes.data)
    frame.bind(OUTPUT, y.ctypes.data)
    frame.run()
    assert data.verdict(read(y, DTYPES["f32"]))[0]
    assert (memory != 0xA5).any()


def test_a_frame_can_be_bound_again() -> None:
    """Only what is bound anew changes, wherever steps read it."""
    nodes = random_dag(np.random.default_rng(5), "f32", steps=12)
    program = placed(nodes, _THREADS)
    first, second = (_inputs("f32", seed) for seed in range(2))
    mixed = program.run(second[INPUT], first[GIVEN])
    stored = [laid_out(v, DTYPES["f32"]) for v in (first[INPUT], first[GIVEN], second[INPUT])]
    y = np.empty(mixed.transpose(0, 2, 3, 1).shape, np.float32)
    arena = np.empty(program.arena_bytes, np.uint8)
    frame = Frame(program.program)
    buffers: list[tuple[int, np.ndarray[Any, Any]]] = [
        (INPUT, stored[0]),
        (GIVEN, stored[1]),
        (OUTPUT, y),
        (ARENA, arena),
    ]
    for buffer, array in buffers:
        frame.bind(buffer, array.ctypes.data)
    frame.run()
    assert not np.array_equal(read(y, DTYPES["f32"]), mixed)
    frame.bind(INPUT, stored[2].ctypes.data)
    frame.run()
    assert read(y, DTYPES["f32"]).tobytes() == mixed.tobytes()


def _streaming(dtype: str, isa: Isa) -> tuple[LayerStep, CheckData]:
    problem = Problem.parse(f"mb2ic16oc64ih20kh3ph1_{dtype}")
    data = CheckData.exact(problem)
    plan = next(all_plans(problem, isa, 2, _STREAMS))
    assert plan.streaming
    packed = Packing(layer_of(problem, isa), plan.vectors).pack(data.weights)
    return LayerStep(problem, plan, packed), data


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_streaming_plan_writes_into_any_memory(dtype: str, isa: Isa) -> None:
    step, data = _streaming(dtype, isa)
    program, stores = Program([step.alone()]), DTYPES[dtype]
    x = laid_out(data.x, stores)
    n, c, h, w = step.problem.output_shape
    room = np.zeros(n * h * w * c + 128, x.dtype)
    start = -room.ctypes.data % 64 // room.itemsize
    for first in (start, start + 1, start + 7, start):
        for call in ("run", "bound"):
            room[:] = 0
            y = room[first : first + n * h * w * c]
            addresses = {INPUT: x.ctypes.data, OUTPUT: y.ctypes.data}
            if call == "run":
                program.run(addresses)
            else:
                program.bound(addresses)()
            assert data.verdict(read(y.reshape(n, h, w, c), stores))[0]
            assert not room[:first].any()
            assert not room[first + y.size :].any()


def test_a_step_between_others_may_stream(isa: Isa) -> None:
    """The next step sees all of what went past the caches, wherever it went."""
    step, data = _streaming("f32", isa)
    after = Problem.parse("g64mb2ic64oc64ih20kh1_nobias")
    one = replace(random_data(after)[0], depthwise=np.ones((64, 1, 1, 1), np.float32))
    (plan,) = all_plans(after, isa, 2, _STREAMS)
    packed = Packing(layer_of(after, isa), plan.vectors).pack(one)
    x = laid_out(data.x, DTYPES["f32"])
    for offset in (0, 4):
        program = Program(
            [
                Placed(step, {"x": Place(INPUT), "y": Place(ARENA, offset)}),
                Placed(
                    LayerStep(after, plan, packed),
                    {"x": Place(ARENA, offset), "y": Place(OUTPUT)},
                ),
            ]
        )
        y = np.empty((2, 20, 20, 64), np.float32)
        arena = np.empty(y.nbytes + 128, np.uint8)
        start = arena.ctypes.data + -arena.ctypes.data % 64
        for _ in range(5):
            arena[:], y[:] = 0, 0
            program.run({INPUT: x.ctypes.data, ARENA: start, OUTPUT: y.ctypes.data})
            assert data.verdict(read(y, DTYPES["f32"]))[0]


def test_weights_are_packed_alike_for_every_size() -> None:
    keys: list[Packing] = []

    def packed(packing: Packing) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        keys.append(packing)
        return np.zeros(packing.size, np.uint8)

    problem = Problem.parse("mb2ic24oc40ih14kh3ph1")
    for other in (problem, replace(problem, batch=1, height=30)):
        assert chosen_step(other, packed, 2).extras == Extras()
    assert keys[0] == keys[1] == Packing(layer_of(problem, this_isa()), keys[0].vectors)


def test_weights_are_packed_once_where_plans_agree() -> None:
    """However many plans are looked at for a step."""
    keys: list[Packing] = []
    problem = Problem.parse("ic32oc64ih28kh3ph1")
    weights, _ = random_data(problem)

    def packed(packing: Packing) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        keys.append(packing)
        return packing.pack(weights)

    chosen_step(problem, packed, 2)
    assert len(keys) == len(set(keys)) >= 1


def test_links_that_a_layer_cannot_have_are_refused() -> None:
    for text, links, message in (
        ("mean_mb2ic24ih4", Links(INPUT, residual=GIVEN), "residual: only a layer"),
        ("mb2ic24oc24ih4kh3ph1", Links(INPUT, scale=GIVEN), "scale: only a pointwise"),
        ("g1mb2ic24oc24ih4kh3ph1", Links(INPUT, scale=GIVEN), "scale: only a pointwise"),
    ):
        (node,) = _chain(text, 1)
        with pytest.raises(ValueError, match=message):
            replace(node, links=links).step(_THREADS)


def test_a_step_alone_reads_what_is_given_with_the_input() -> None:
    problem = Problem.parse("g1mb2ic24oc24ih4kh1")
    for extras, operands in (
        (Extras(), {"x": INPUT, "y": OUTPUT}),
        (Extras(residual=True), {"x": INPUT, "y": OUTPUT, "residual": GIVEN}),
        (Extras(scale=True), {"x": INPUT, "y": OUTPUT, "scale": INPUT}),
        (
            Extras(residual=True, scale=True),
            {"x": INPUT, "y": OUTPUT, "residual": GIVEN, "scale": GIVEN},
        ),
    ):
        alone = _step(problem, extras).alone()
        assert {name: place.buffer for name, place in alone.operands.items()} == operands
