"""Scales and shifts of channels folded into weights, and those that must not be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnnsep.graph.capture import capture
from dnnsep.graph.constants import constants, evaluate_constants, is_constant
from dnnsep.graph.fold import fold
from dnnsep.graph.normalize import normalize

from .captures import Function, calls, cases, check, difference, image, operators, settled

# Long together; what one kernel, rule or operator does is in them, networks of all in other files.
pytestmark = pytest.mark.slow

_PASSES = (normalize, fold, normalize)


def _check(function: Callable[..., Any], *inputs: Tensor, **layers: Any) -> dict[str, int]:
    return dict(check(Function(function, **layers), *(inputs or (image(),)), passes=_PASSES))


def _vector(*shape: int) -> nn.Module:
    """A module whose [0] is a random constant of a shape."""
    generator = torch.Generator().manual_seed(7)
    return nn.ParameterList([torch.rand(shape, generator=generator) + 0.5])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("affine", [False, True])
def test_a_norm_after_a_convolution(bias: bool, groups: int, affine: bool) -> None:
    conv = nn.Conv2d(6, 6, 3, padding=1, groups=groups, bias=bias)
    model = nn.Sequential(conv, nn.BatchNorm2d(6, affine=affine), nn.ReLU())
    assert check(model, image(), passes=_PASSES) == {"convolution": 1, "relu": 1}


def test_norms_around_linear_layers() -> None:
    rows = image()[:, :, 0, 0]
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU())
    assert check(model, rows, passes=_PASSES) == {"linear": 1, "relu": 1}


def test_a_norm_behind_reshapes_of_a_linear_layer() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.linear(x.flatten(2).transpose(1, 2))
        return m.norm(y.flatten(0, 1)).reshape_as(y)

    found = _check(forward, linear=nn.Linear(6, 5), norm=nn.BatchNorm1d(5))
    assert found == {"reshape": 1, "permute": 1, "linear": 1}


def test_a_norm_of_other_channels_behind_a_reshape_stays() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.norm(m.conv(x).reshape(2, 3, 18, 8))

    found = _check(forward, conv=nn.Conv2d(6, 6, 1), norm=nn.BatchNorm2d(3))
    assert (found["mul"], found["add"], found["convolution"]) == (1, 1, 1)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.conv(x) * m.scale[0],
        lambda m, x: m.scale[0] * m.conv(x) + m.scale[0],
        lambda m, x: (m.conv(x) - m.scale[0]) / m.scale[0],
        lambda m, x: m.scale[0] - m.conv(x),
        lambda m, x: m.conv(x).sub(m.scale[0], alpha=3),
        lambda m, x: m.conv(x) * 0.25 / 3 + 1,
        lambda m, x: m.conv(x).permute(0, 2, 3, 1).mul(m.scale[0].reshape(-1)).permute(0, 3, 1, 2),
        lambda m, x: m.conv(m.norm(x) / 2 - 1),
        lambda m, x: m.conv(x * m.scale[0]),
        lambda m, x: 2 - m.conv(-x) * 3,
    ],
)
def test_products_and_sums_around_a_convolution(function: Callable[..., Any]) -> None:
    layers: dict[str, nn.Module] = {"conv": nn.Conv2d(6, 6, 1), "scale": _vector(6, 1, 1)}
    assert _check(function, norm=nn.BatchNorm2d(6), **layers) == {"convolution": 1}


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_a_scale_before_a_padded_convolution(groups: int) -> None:
    conv = nn.Conv2d(6, 12, 3, padding=1, groups=groups)
    found = _check(lambda m, x: m.conv(x * m.scale[0] / 2), conv=conv, scale=_vector(6, 1, 1))
    assert found == {"convolution": 1}


def test_a_norm_before_an_unpadded_convolution() -> None:
    for groups in (1, 3):
        model = nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 9, 3, groups=groups, bias=False))
        assert check(model, image(), passes=_PASSES) == {"convolution": 1}


def test_a_shift_before_a_padded_convolution_stays() -> None:
    model = nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 9, 3, padding=1))
    assert check(model, image(), passes=_PASSES) == {"mul": 1, "add": 1, "convolution": 1}


def test_layer_scale_after_a_linear_layer() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + y * m.scale[0].reshape(1, -1, 1, 1)

    found = _check(forward, linear=nn.Linear(6, 6), scale=_vector(6))
    assert found == {"permute": 2, "linear": 1, "add": 1}


def test_a_norm_after_concatenated_convolutions() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        first, second = torch.split(x, [2, 4], 1)
        return m.norm(torch.cat([m.one(first), m.two(second)], 1))

    one, two = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(4, 5, 5, padding=2, bias=False)
    found = _check(forward, one=one, two=two, norm=nn.BatchNorm2d(8))
    assert found == {"slice": 2, "convolution": 2, "cat": 1}


def test_a_norm_after_something_else_concatenated_is_spelled_out() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.norm(torch.cat([m.conv(x), x], 1))

    found = _check(forward, conv=nn.Conv2d(6, 2, 1), norm=nn.BatchNorm2d(8))
    assert found == {"convolution": 1, "cat": 1, "mul": 1, "add": 1}


def test_a_norm_after_one_convolution_twice_is_spelled_out() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.conv(x)
        return m.norm(torch.cat([y, y], 1))

    found = _check(forward, conv=nn.Conv2d(6, 4, 1), norm=nn.BatchNorm2d(8))
    assert found == {"convolution": 1, "cat": 1, "mul": 1, "add": 1}


def test_results_with_other_readers_are_not_changed() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.conv(x)
        z = m.norm(y)
        return [y, z * 2, m.conv(z)]

    found = _check(forward, conv=nn.Conv2d(6, 6, 1), norm=nn.BatchNorm2d(6))
    assert found == {"convolution": 2, "mul": 2, "add": 1}


def test_shared_weights_are_folded_for_each_use() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.one(m.conv(x)) + m.two(m.conv(torch.exp(x)))

    norms = {"one": nn.BatchNorm2d(6), "two": nn.BatchNorm2d(6)}
    assert _check(forward, conv=nn.Conv2d(6, 6, 1), **norms) == {
        "convolution": 2,
        "exp": 1,
        "add": 1,
    }


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.conv(x) * m.wide[0],  # varies along pixels
        lambda m, x: m.conv(x) * m.rows[0],
        lambda m, x: m.conv(x) * x,
        lambda m, x: m.conv(x) * F.relu(m.conv(x)),
        lambda m, x: m.conv(x)[:, :1] * m.scale[0],  # makes more channels
        lambda m, x: F.batch_norm(m.conv(x), None, None, training=True),
        lambda m, x: F.batch_norm(m.conv(x), x.mean((0, 2, 3)), m.scale[0].flatten().exp()),
    ],
)
def test_what_is_no_scale_of_channels_stays(function: Callable[..., Any]) -> None:
    layers = {"scale": _vector(6, 1, 1), "wide": _vector(6, 9, 8), "rows": _vector(9, 1)}
    found = _check(function, conv=nn.Conv2d(6, 6, 1), **layers)
    assert found.get("mul", 0) + found.get("batch_norm", 0) == 1


def test_several_norms_are_one_product_and_one_sum() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return F.relu(m.two(m.one(F.relu(x)) * m.scale[0] * 2 - 1))

    norms = {"one": nn.BatchNorm2d(6), "two": nn.BatchNorm2d(6)}
    found = _check(forward, scale=_vector(6, 1, 1), **norms)
    assert found == {"relu": 2, "mul": 1, "add": 1}


def test_three_dimensional_norms() -> None:
    found = _check(lambda m, x: F.relu(m.norm(x.flatten(2))), norm=nn.BatchNorm1d(6))
    assert found == {"reshape": 1, "relu": 1, "mul": 1, "add": 1}


def test_bf16_weights_are_folded_in_f32() -> None:
    model = settled(nn.Sequential(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6)))
    exact = model(image()).detach()
    model, x = model.bfloat16(), image().bfloat16()
    captured = capture(model, (x,))
    normalize(captured.graph_module)
    fold(captured.graph_module)
    assert operators(captured.graph_module) == {"convolution": 1}
    (node,) = calls(captured.graph_module, "convolution")
    values = evaluate_constants(captured.graph_module)
    weight: Any = node.args[1]
    assert values[weight].dtype is torch.bfloat16
    # The roundings of the input and the folded weight: within 2**-8 each of sums of 54 terms.
    error = (captured.graph_module(x)[0].double() - exact).abs().max() / exact.abs().max()
    assert error < 0.02


def test_constants_are_evaluated_alone() -> None:
    model = settled(nn.Sequential(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.ReLU()))
    captured = capture(model, (image(),))
    normalize(captured.graph_module)
    fold(captured.graph_module)
    (node,) = calls(captured.graph_module, "convolution")
    values = evaluate_constants(captured.graph_module)
    parameters: Any = node.args[1:3]
    assert set(values) == set(parameters)
    assert all(is_constant(constant) for constant in values)
    assert not is_constant(node)
    inner = constants(captured.graph_module.graph)
    assert {n for n in captured.graph_module.graph.nodes if is_constant(n)} == inner
    with torch.no_grad():
        weight, bias = (values[constant] for constant in parameters)
        expected = model(image())
    torch.testing.assert_close(F.relu(F.conv2d(image(), weight, bias)), expected)


def test_the_folded_graph_sees_later_changes() -> None:
    model = settled(nn.Sequential(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)))
    captured = capture(model, (image(),))
    normalize(captured.graph_module)
    fold(captured.graph_module)
    with torch.no_grad():
        for tensor in (*model.parameters(), model[1].running_mean):
            tensor.mul_(1.5)
    assert difference(cases(model, image()), captured) < 1e-12


def test_exact_on_integers() -> None:
    conv, x = nn.Conv2d(6, 6, 3), torch.randint(-3, 4, (2, 6, 9, 8)).double()
    model: Any = nn.Sequential(conv, nn.BatchNorm2d(6, eps=0)).double().eval()
    with torch.no_grad():
        for tensor in (*conv.parameters(), model[1].bias, model[1].running_mean):
            tensor.copy_(torch.randint(-3, 4, tensor.shape))
        model[1].running_var.fill_(0.25)
        captured = capture(model, (x,))
        normalize(captured.graph_module)
        fold(captured.graph_module)
        assert torch.equal(captured.graph_module(x)[0], model(x))
