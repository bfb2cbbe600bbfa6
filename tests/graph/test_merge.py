"""Parallel convolutions and linear layers that become one, and those that must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnnsep.graph.canonical import canonicalize
from dnnsep.graph.capture import capture
from dnnsep.graph.fold import fold
from dnnsep.graph.merge import merge
from dnnsep.graph.normalize import normalize

from .captures import Function, calls, check, image, settled

# Long together; what one kernel, rule or operator does is in them, networks of all in other files.
pytestmark = pytest.mark.slow

_PASSES = (normalize, fold, merge, canonicalize)


def _check(function: Callable[..., Any], *inputs: Tensor, **layers: Any) -> dict[str, int]:
    return dict(check(Function(function, **layers), *(inputs or (image(),)), passes=_PASSES))


def _conv(kernel: Any, padding: Any = 0, groups: int = 1, norm: bool = True, **more: Any) -> Any:
    conv = nn.Conv2d(6, 6, kernel, padding=padding, groups=groups, **more)
    return nn.Sequential(conv, nn.BatchNorm2d(6)) if norm else conv


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_of_repvgg(groups: int, stride: int) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.three(x) + m.one(x)
        return F.relu(y + m.norm(x) if stride == 1 else y)

    more: Any = {"groups": groups, "stride": stride}
    layers = {"three": _conv(3, 1, **more), "one": _conv(1, **more), "norm": nn.BatchNorm2d(6)}
    for height in (9, 10):
        assert _check(forward, image(6, height), **layers) == {"convolution": 1, "relu": 1}


def test_a_block_of_fastvit() -> None:
    """Layer scale on a difference of branches, with the image itself added."""

    def forward(m: Any, x: Tensor) -> Any:
        mixed = m.seven(x) + m.three(x) + m.norm(x)
        return x + m.scale[0] * (mixed - m.other(x))

    layers = {
        "seven": _conv(7, 3, 6),
        "three": _conv(3, 1, 6),
        "norm": nn.BatchNorm2d(6),
        "other": nn.BatchNorm2d(6),
        "scale": nn.ParameterList([torch.rand(6, 1, 1)]),
    }
    assert _check(forward, **layers) == {"convolution": 1}


@pytest.mark.parametrize(
    ("kernels", "groups"),
    [
        (((1, 5), (5, 1), (3, 3)), 6),
        (((2, 2), (3, 3)), 1),  # aligned at their first pixel
        (((3, 3), (3, 3), (1, 1)), 2),
    ],
)
def test_windows_of_other_shapes(kernels: Any, groups: int) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        height = 9
        return sum(conv(x)[:, :, :height, :8] for conv in m.all)

    convs = nn.ModuleList(
        _conv(k, ((k[0] - 1) // 2, (k[1] - 1) // 2), groups, norm=False) for k in kernels
    )
    if kernels[0] == (2, 2):

        def forward(m: Any, x: Tensor) -> Any:
            return m.all[0](F.pad(x, (0, 1, 0, 1))) + m.all[1](F.pad(x, (0, 2, 0, 2)))

        convs = nn.ModuleList(_conv(k, 0, norm=False) for k in kernels)
    assert _check(forward, all=convs) == {"convolution": 1}


def test_windows_with_dilation() -> None:
    layers = {
        "three": _conv(3, 2, 6, dilation=2),
        "five": _conv(5, 4, 6, dilation=2),
        "one": _conv(1, 0, 6, dilation=3),
    }
    found = _check(lambda m, x: m.three(x) + m.five(x) + m.one(x) + x, **layers)
    assert found == {"convolution": 1}
    layers["three"] = _conv(3, 1, 6)
    found = _check(lambda m, x: m.three(x) + m.five(x), **layers)
    assert found == {"convolution": 2, "add": 1}


def test_the_image_itself_joins_its_convolution() -> None:
    assert _check(lambda m, x: x + m.conv(x), conv=_conv(3, 1, 6)) == {"convolution": 1}
    assert _check(lambda m, x: m.conv(x) - 2 * x, conv=_conv(3, 1, 2)) == {"convolution": 1}
    assert _check(lambda m, x: x - m.conv(x) * 3, conv=_conv(1)) == {"convolution": 1}
    assert _check(lambda m, x: m.conv(x) + x + x, conv=_conv(3, 1)) == {"convolution": 1}


def test_exact_on_integers() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.three(x) - m.one(x) * 2 + x

    model = Function(forward, three=_conv(3, 1, norm=False), one=_conv(1, norm=False))
    x = torch.randint(-3, 4, (2, 6, 9, 8)).double()
    with torch.no_grad():
        for parameter in model.double().parameters():
            parameter.copy_(torch.randint(-3, 4, parameter.shape))
        captured = capture(model.eval(), (x,))
        canonicalize(captured.graph_module)
        (node,) = calls(captured.graph_module, "convolution")
        assert torch.equal(captured.graph_module(x)[0], model(x))
    assert node.meta["layer"] == "three"


def test_what_is_left_of_a_sum() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        other = torch.exp(x)
        return 2 * (m.one(x) + other + m.three(x) - m.five(other))

    layers = {"one": _conv(1), "three": _conv(3, 1), "five": _conv(5, 2)}
    found = _check(forward, **layers)
    assert found == {"exp": 1, "convolution": 2, "mul": 1, "add": 2} or found == {
        "exp": 1,
        "convolution": 2,
        "add": 1,
    }


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.one(x) + m.three(torch.exp(x)),  # of other images
        lambda m, x: F.relu(m.one(x)) + m.three(x),  # an activation between
        lambda m, x: m.one(m.three(x)),  # one after the other
        lambda m, x: m.one(x) * m.three(x),
        lambda m, x: m.deep(x) + m.three(x),  # other groups
        lambda m, x: m.row(x) + m.column(x),  # 9 pixels instead of 6, and not depthwise
        lambda m, x: m.one(x)[:, :, :7, :6] + m.valid(x),  # sliced between
        lambda m, x: torch.cat([m.one(x), m.three(x)], 1),  # other windows
    ],
)
def test_what_stays_apart(function: Callable[..., Any]) -> None:
    layers = {
        "one": _conv(1),
        "three": _conv(3, 1),
        "deep": _conv(3, 1, 6),
        "row": _conv((1, 3), (0, 1)),
        "column": _conv((3, 1), (1, 0)),
        "valid": _conv(3),
    }
    assert _check(function, **layers)["convolution"] == 2


def test_results_with_other_readers_stay() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        one = m.one(x)
        return one + m.three(x), one

    assert _check(forward, one=_conv(1), three=_conv(3, 1)) == {"convolution": 2, "add": 1}

    def part_of_a_sum(m: Any, x: Tensor) -> Any:
        both = m.one(x) + m.three(x)
        return both + m.two(x), both

    layers = {"one": _conv(1), "two": _conv(1), "three": _conv(3, 1)}
    assert _check(part_of_a_sum, **layers) == {"convolution": 2, "add": 1}


def test_a_residual_of_another_size_stays() -> None:
    conv = nn.Conv2d(6, 1, 1)
    assert _check(lambda m, x: m.conv(x) + x, conv=conv) == {"convolution": 1, "add": 1}
    strided = nn.Conv2d(6, 6, 1, stride=2)
    found = _check(lambda m, x: m.conv(x) + x[:, :, :5, :4], conv=strided)
    assert found["add"] == 1


@pytest.mark.parametrize("activate", [F.relu, F.silu, lambda y: y])
def test_concatenated_convolutions(activate: Callable[[Tensor], Tensor]) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return torch.cat([x, activate(m.one(x)), activate(m.two(x)), m.three(x)], 1)

    two = nn.Sequential(nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4))
    plain = nn.Conv2d(6, 3, 1, bias=False)
    found = _check(forward, one=plain, two=two, three=_conv(3, 1))
    assert (found["convolution"], found["cat"]) == (2, 1)


def test_all_that_is_concatenated() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return torch.cat([F.relu(m.one(x)), F.relu(m.two(x))], 1)

    layers = {"one": nn.Conv2d(6, 4, 3, stride=2), "two": nn.Conv2d(6, 5, 3, stride=2)}
    assert _check(forward, **layers) == {"convolution": 1, "relu": 1}


def test_concatenated_convolutions_that_differ_stay() -> None:
    one, two = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1, groups=2)
    found = _check(lambda m, x: torch.cat([m.one(x), m.two(x)], 1), one=one, two=two)
    assert found["convolution"] == 2
    found = _check(lambda m, x: torch.cat([m.two(x), m.two(x).exp()], 1), two=two)
    assert found == {"convolution": 1, "exp": 1, "cat": 1}
    found = _check(lambda m, x: torch.cat([F.relu(m.one(x)), m.one(x * 2)], 1), one=one)
    assert found["convolution"] == 2
    found = _check(lambda m, x: torch.cat([m.one(x), m.three(x)], 2), one=one, three=_same())
    assert found["convolution"] == 2


def _same() -> nn.Module:
    return nn.Conv2d(6, 4, 3, padding=1)


def test_linear_layers_of_one_value() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        rows = x.flatten(2).mT
        q, k, v = m.q(rows), m.k(rows), m.v(rows)
        return F.scaled_dot_product_attention(q, k, v)

    layers = {"q": nn.Linear(6, 4), "k": nn.Linear(6, 4, bias=False), "v": nn.Linear(6, 5)}
    found = _check(forward, **layers)
    assert (found["linear"], found["slice"]) == (1, 3)


def test_added_linear_layers() -> None:
    layers: Any = {"one": nn.Linear(8, 4), "two": nn.Linear(8, 4, bias=False)}
    found = _check(lambda m, x: (m.one(x) + m.two(x)) / 2, **layers)
    assert found == {"linear": 1}
    assert _check(lambda m, x: m.one(x) + m.two(x.exp()), **layers)["linear"] == 2
    layers["two"] = nn.Linear(8, 1)
    found = _check(lambda m, x: m.one(x) + m.two(x), **layers)
    assert found == {"linear": 1, "slice": 2, "add": 1}


def test_the_model_is_left_as_it_is() -> None:
    model = settled(Function(lambda m, x: m.one(x) + m.three(x), one=_conv(1), three=_conv(3, 1)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    captured = capture(model, (image(),))
    canonicalize(captured.graph_module)
    captured.graph_module(image())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
