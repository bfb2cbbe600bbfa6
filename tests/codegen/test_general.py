"""General kernels are right, touch only their buffers for inputs of changing sizes, and give what
specialised ones do, to the bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dnnsep.codegen.choose import choose
from dnnsep.codegen.dots import dots_for
from dnnsep.codegen.extent import Extent
from dnnsep.codegen.extras import Extras
from dnnsep.codegen.general import product_sizes, products_of
from dnnsep.codegen.generalstep import General, GeneralStep
from dnnsep.codegen.lang.isa import CAP_VARIABLE, this_isa
from dnnsep.codegen.layer import Layer, layer_of, stages_of
from dnnsep.codegen.pack import Packing
from dnnsep.codegen.program import GIVEN, INPUT, OUTPUT, Program
from dnnsep.codegen.specialise import as_specialised, may_be_specialised
from dnnsep.dtypes import DTYPES
from dnnsep.problem import Problem
from dnnsep.sweep.check import CheckData
from tests.codegen.conftest import SETTING_OF, WAYS, Way
from tests.codegen.running import run_alone

PROBLEMS = {
    "separable": "mb1ic40oc70ih14kh3ph1_act:relu6,none",
    "strided": "mb2ic33oc17ih15iw29kh5sh2ph2_act:silu,silu",
    "convolution": "g1mb1ic3oc32ih30kh3sh2ph1_act:relu",
    "pointwise": "g1mb1ic24oc96ih9kh1_act:relu6",
    "depthwise": "g48mb1ic48oc48ih11kh7ph3_act:hardswish",
    "linear": "linear_mb5ic64oc50",
    "wide": "mb1ic16oc16ih1iw60kh1kw31ph0pw15",
}


def _general(problem: Problem, extras: Extras) -> General:
    isa = this_isa()
    dot = layer_of(problem, isa).dot
    vectors = [dot for dot in dots_for(problem.dtype, isa) if not dot.in_tiles]
    layer = Layer(stages_of(problem), isa, vectors[0] if dot.in_tiles else dot)
    return General.of(layer, extras)


def _results(problem: Problem, extras: Extras, threads: int) -> list[np.ndarray]:
    """Returns what the general and the specialised kernel write for random numbers."""
    general, dtype = _general(problem, extras), DTYPES[problem.dtype]
    data, rng = CheckData.random(problem, 3), np.random.default_rng(4)
    packed = general.packing.pack(data.weights)
    step = GeneralStep(general, Extent.of(problem), threads, packed, problem)
    plan = choose(problem, general.layer.isa, threads, extras)
    assert may_be_specialised(step)
    special = as_specialised(step, plan)
    assert special is not None
    x = dtype.stored(np.ascontiguousarray(data.x.transpose(0, 2, 3, 1)))
    size = int(np.prod(problem.output_shape))
    given = dtype.stored(dtype.rounded(rng.standard_normal(size)))
    found = []
    for one in (step, special):
        y = np.zeros(size, given.dtype)
        buffers = {INPUT: x, GIVEN: given, OUTPUT: y}
        Program([one.alone()]).run({n: array.ctypes.data for n, array in buffers.items()})
        found.append(y)
    return found


@pytest.mark.parametrize("text", PROBLEMS.values(), ids=PROBLEMS.keys())
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_both_kernels_give_the_same_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, text: str, dtype: str, threads: int
) -> None:
    """Where both multiply in the same way, which they do not on a tile unit."""
    monkeypatch.setenv(CAP_VARIABLE, "avx512_bf16")
    problem = replace(Problem.parse(text), dtype=dtype)
    residual = problem.kind != "linear"
    general, special = _results(problem, Extras(residual=residual), threads)
    assert np.abs(special.astype(np.float64)).max() > 0
    assert (general == special).all()


def test_a_trimmed_layer_stays_general() -> None:
    problem = Problem.parse("mb1ic8oc8ih4kh3ph5dh4")
    general = _general(problem, Extras())
    step = GeneralStep(general, Extent.of(problem), 1, np.zeros(1, np.uint8), problem)
    assert layer_of(problem, this_isa()).kept is not None
    assert not may_be_specialised(step)


@pytest.mark.parametrize("text", PROBLEMS.values(), ids=PROBLEMS.keys())
def test_one_packing_serves_all_sizes(text: str) -> None:
    problem = Problem.parse(text)
    general = _general(problem, Extras())
    larger = replace(problem, batch=9)
    if problem.kind != "linear":
        larger = replace(problem, height=33, width=70)
    for one in (problem, larger):
        plan = choose(one, this_isa(), 2)
        assert Packing(general.layer, plan.vectors) == general.packing


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_products_cover_any_number_of_pixels(way: Way) -> None:
    problem = Problem.parse("mb1ic40oc70ih14kh3ph1")
    problem = replace(problem, dtype=way.dot.dtype)
    layer = Layer(stages_of(problem), way.isa, way.dot)
    if way.dot.in_tiles:
        with pytest.raises(ValueError, match="no general kernel for products on a tile unit"):
            General.of(layer, Extras())
        return
    sizes = product_sizes(layer, 2)
    for pixels in range(1, 100):
        products = products_of(pixels, sizes)
        # Only the last product has pixels in common with the one before it.
        assert sum(products[:-1]) < pixels <= sum(products)


def test_a_mean_has_none() -> None:
    layer = layer_of(Problem.mean(1, 8, 4, 4, "f32"), this_isa())
    with pytest.raises(ValueError, match="no general kernel for a mean"):
        General.of(layer, Extras())


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [(1, 7, 7), (1, 14, 14), (3, 5, 9), (1, 1, 1)])
def test_parts_share_all_work(threads: int, size: tuple[int, int, int]) -> None:
    problem = Problem.parse("mb1ic40oc70ih14kh3ph1")
    batch, height, width = size
    step = GeneralStep(
        _general(problem, Extras()), Extent(*size), threads, np.zeros(1, np.uint8), problem
    )
    task = step.task()
    assert step.problem == replace(problem, batch=batch, height=height, width=width)
    assert (task.pixels, task.out_height, task.out_width) == (batch * height * width, height, width)
    assert 1 <= step.parts == task.pixel_parts * task.channel_parts <= max(threads, 1)


@pytest.mark.parametrize("setting", SETTING_OF.values(), ids=lambda s: "-".join(s.values()))
def test_random_layers_on_changing_sizes(setting: dict[str, str]) -> None:
    run_alone("tests.codegen.anysize", setting, seed=1, count=60)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTING_OF.values(), ids=lambda s: "-".join(s.values()))
def test_many_random_layers_on_changing_sizes(setting: dict[str, str]) -> None:
    run_alone("tests.codegen.anysize", setting, seed=2, count=300)
