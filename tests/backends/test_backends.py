"""Every backend against the reference: exactly on integers, within the bound on random data."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from dnnsep import Backend, BatchNorm, Problem, Weights, fold_batchnorm, get_backend
from dnnsep.backends.reference import error_bound
from dnnsep.backends.tensors import to_channels_last
from dnnsep.sweep.check import CheckData
from tests.strategies import problems

SHAPES = [
    "ic32oc64ih28kh3ph1",
    "mb3ic7oc5ih9iw11kh3ph1",
    "ic1oc1ih1kh1",
    "mb2ic1oc17ih5kh3ph1",
    "ic1oc3ih6kh2cm2",
    "ic16oc16ih1kh3ph1",
    "ic33oc65ih14kh5sh2ph2",
    "ic16oc24ih15kh3sh2ph0pb1pw0pr1",
    "ic16oc8ih20kh3ph2dh1",
    "ic8oc8ih21iw19kh3kw5sh1sw2ph1pw4dh0dw1",
    "ic24oc12ih12kh7ph3",
    "ic16oc16ih40kh31ph15",
    "ic32oc16ih40kh31ph15",
    "ic5oc6ih1iw64kh1kw31ph0pw15",
    "mb2ic12oc10ih10kh3ph1cm2",
    "ic64oc1024ih7kh3ph1",
    "ic1024oc16ih7kh3ph1",
    "mb4ic16oc32ih8kh3ph1_nobias",
]
ACTIVATIONS = ["relu,relu", "relu6,none", "silu,none", "none,hardswish", "gelu,gelu", "none,silu"]


def check(backend: Backend, problem: Problem, data: CheckData) -> None:
    """Asserts that a backend answers rightly, or refuses with a reason."""
    verdict = backend.supports(problem)
    if not verdict:
        assert verdict.reason
        with pytest.raises(ValueError, match=r".") as error:
            backend.prepare(problem, data.weights)
        assert str(error.value) == verdict.reason
        return
    y = backend.prepare(problem, data.weights)(to_channels_last(data.x, problem.dtype))
    assert y.is_contiguous(memory_format=torch.channels_last)
    correct, finding = data.verdict(y.float().numpy())
    assert correct, f"{backend.name} {problem}: {finding}"


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(backend: Backend, shape: str, dtype: str) -> None:
    problem = dataclasses.replace(Problem.parse(shape), dtype=dtype)
    check(backend, problem, CheckData.exact(problem))
    check(backend, problem, CheckData.random(problem))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_activations(backend: Backend, activations: str, dtype: str) -> None:
    problem = Problem.parse(f"mb2ic19oc21ih9kh3ph1_act:{activations}_{dtype}")
    check(backend, problem, CheckData.exact(problem))
    check(backend, problem, CheckData.random(problem))


@pytest.mark.parametrize("kernel", range(1, 32))
def test_kernel_sizes(backend: Backend, kernel: int) -> None:
    problem = Problem.parse(f"ic17oc9ih33iw{kernel}kh{kernel}ph{kernel // 2}")
    check(backend, problem, CheckData.exact(problem))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(problem=problems())
def test_random_problems(backend: Backend, problem: Problem) -> None:
    check(backend, problem, CheckData.exact(problem))
    check(backend, problem, CheckData.random(problem))


@pytest.mark.slow
@settings(
    max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(problem=problems())
def test_many_random_problems(onednn_backend: Backend, problem: Problem) -> None:
    """Of fused there are many in tests/codegen/test_guarded.py: each has to be compiled."""
    check(onednn_backend, problem, CheckData.exact(problem))
    check(onednn_backend, problem, CheckData.random(problem))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_thread_counts(backend: Backend, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        problem = Problem.parse("mb2ic48oc40ih30kh3ph1_act:relu,none")
        check(backend, problem, CheckData.exact(problem))
    finally:
        torch.set_num_threads(before)


def test_one_executor_from_many_threads(backend: Backend) -> None:
    problem = Problem.parse("ic32oc48ih28kh3ph1_act:relu,relu")
    data = CheckData.exact(problem)
    executor = backend.prepare(problem, data.weights)
    inputs = [to_channels_last(data.x * (i % 3 - 1), "f32") for i in range(24)]
    alone = [executor(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(executor, inputs))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_out_and_fresh_results(backend: Backend) -> None:
    problem = Problem.parse("ic16oc8ih6kh3ph1")
    data = CheckData.exact(problem)
    executor, x = backend.prepare(problem, data.weights), to_channels_last(data.x, "f32")
    out = torch.empty(problem.output_shape, memory_format=torch.channels_last)
    first = executor(x)
    kept = first.clone()
    assert executor(x, out) is out
    assert torch.equal(out, kept)
    executor(x * 2)
    assert torch.equal(first, kept)  # a later call does not write into an earlier result
    assert not executor(x.clone().requires_grad_()).requires_grad


def test_calls_that_do_not_fit_are_refused(backend: Backend) -> None:
    problem = Problem.parse("ic16oc8ih6kh3ph1")
    executor = backend.prepare(problem, CheckData.exact(problem).weights)
    x = torch.zeros(problem.input_shape).contiguous(memory_format=torch.channels_last)
    for wrong, message in (
        (x[:, :8], r"x: shape \(1, 8, 6, 6\), the problem has \(1, 16, 6, 6\)"),
        (x.bfloat16(), "x: dtype torch.bfloat16, the problem has f32"),
        (x.contiguous(), "x: must be channels-last in memory"),
    ):
        with pytest.raises(ValueError, match=message):
            executor(wrong)
    with pytest.raises(ValueError, match="out: shape"):
        executor(x, torch.zeros(1))


@pytest.mark.parametrize("text", ["mb2ic8oc5ih1kh2kw1ph1pw0", "mb2ic1oc5ih4kh3ph1"])
def test_inputs_whose_layout_torch_cannot_tell(backend: Backend, text: str) -> None:
    problem = Problem.parse(text)
    data = CheckData.exact(problem)
    executor = backend.prepare(problem, data.weights)
    for x in (torch.from_numpy(data.x), to_channels_last(data.x, "f32")):
        correct, finding = data.verdict(executor(x).numpy())
        assert correct, finding


def test_stages_in_turn_are_the_call(backend: Backend) -> None:
    problem = Problem.parse("ic16oc8ih8kh3sh2ph0pb1pw0pr1cm2")
    data = CheckData.exact(problem)
    executor = backend.prepare(problem, data.weights)
    x = to_channels_last(data.x, "f32")
    y = executor(x)
    names = [stage.name for stage in executor.stages]
    if backend.name == "fused":
        assert not names  # one pass
        return
    assert names[0] == "pad"
    assert names[-2:] == ["depthwise", "pointwise"]
    with torch.no_grad():
        for stage in executor.stages:
            x = stage.run(x)
    assert torch.equal(x, y)


def test_mobilenet_block_with_folded_batchnorm(backend: Backend) -> None:
    torch.manual_seed(0)
    depthwise = torch.nn.Conv2d(24, 24, 3, 2, 1, groups=24, bias=False)
    pointwise = torch.nn.Conv2d(24, 40, 1, bias=False)
    norms = torch.nn.BatchNorm2d(24), torch.nn.BatchNorm2d(40)
    folding = []
    for norm in norms:
        values = [torch.empty(norm.num_features).uniform_(0.2, 2.0) for _ in range(4)]
        names = ("weight", "bias", "running_mean", "running_var")
        norm.load_state_dict(dict(zip(names, values, strict=True)), strict=False)
        scale, shift, mean, variance = (v.numpy() for v in values)
        folding.append(BatchNorm(scale, shift, mean, variance, norm.eps))
    relu = torch.nn.ReLU()
    block = torch.nn.Sequential(depthwise, norms[0], relu, pointwise, norms[1], relu).eval()

    plain = Weights(depthwise.weight.data.numpy(), None, pointwise.weight.data.numpy(), None)
    folded = fold_batchnorm(plain, *folding)
    problem = Problem.parse("mb2ic24oc40ih17kh3sh2ph1_act:relu,relu")
    x = torch.randn(problem.input_shape).contiguous(memory_format=torch.channels_last)
    expected: torch.Tensor = block.double()(x.double()).detach()
    bound = torch.from_numpy(error_bound(problem, folded, x.numpy()))
    assert (expected > 0).float().mean() > 0.1
    assert ((backend.prepare(problem, folded)(x) - expected).abs() <= 2 * bound).all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ic16oc8ih6kh3ph1", "fused"),
        ("ic16oc8ih6kh3ph1_bf16", "fused"),
        ("ic16oc128ih1iw40kh1kw31ph0pw15_bf16", "fused"),
        ("ic32oc16ih40kh31ph15_bf16", "fused"),
        ("ic16oc16ih9kh3ph1cm2_bf16", "fused"),
    ],
)
def test_auto_takes_the_best_backend_there_is(text: str, expected: str) -> None:
    problem = Problem.parse(text)
    data = CheckData.exact(problem)
    auto = get_backend("auto")
    executor = auto.prepare(problem, data.weights)
    assert executor.backend == expected
    assert executor.backend in auto.supports(problem).reason
    check(auto, problem, data)


@pytest.mark.parametrize(
    ("refused", "beside", "reason"),
    [
        ("ic16oc8ih4iw33kh1kw15pw7ph0_bf16", "ic17oc8ih4iw33kh1kw15pw7ph0_bf16", "hangs"),
        ("ic8oc8ih4iw33kh1kw15pw7ph0cm2_bf16", "ic8oc8ih4iw33kh1kw13pw6ph0cm2_bf16", "hangs"),
    ],
)
def test_known_oneDNN_hang_is_refused(refused: str, beside: str, reason: str) -> None:  # noqa: N802
    backend = get_backend("onednn")
    assert reason in backend.supports(Problem.parse(refused)).reason
    problem = Problem.parse(beside)
    assert backend.supports(problem)
    check(backend, problem, CheckData.exact(problem))


def test_known_unwritten_outputs_are_refused() -> None:
    problem = Problem.parse("ic1oc8ih4iw5kh3kw7sh1sw2ph1pw1")
    assert problem.out_width == 1
    assert "unwritten" in get_backend("onednn").supports(problem).reason


def test_known_wrong_convolution_is_refused_by_eager() -> None:
    problem = Problem.parse("ic16oc8ih4iw5kh3kw7sh1sw2ph1pw1cm2_bf16")
    assert problem.out_width == 1
    verdict = get_backend("eager").supports(problem)
    assert not verdict
    assert "channel multiplier" in verdict.reason


def test_reference_backend_runs() -> None:
    problem = Problem.parse("ic6oc5ih6kh3ph1_bf16")
    check(get_backend("reference"), problem, CheckData.exact(problem))


def test_nan_and_infinity_reach_the_output(backend: Backend) -> None:
    problem = Problem.parse("ic16oc16ih6kh1_nobias")
    data = CheckData.exact(problem)
    ones = dataclasses.replace(
        data.weights,
        depthwise=np.ones_like(data.weights.depthwise),
        pointwise=np.ones_like(data.weights.pointwise),
    )
    x = np.ones_like(data.x)
    x[0, 3, 2, 2], x[0, 5, 4, 4] = np.nan, np.inf
    y = backend.prepare(problem, ones)(to_channels_last(x, "f32"))
    assert y[0, :, 2, 2].isnan().all()
    assert y[0, :, 4, 4].isposinf().all()
    assert y.isfinite().sum() == y.numel() - 2 * 16
