"""One spelling for each operator: what goes, what becomes what, and what must stay as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnnsep.graph.capture import capture
from dnnsep.graph.normalize import normalize
from dnnsep.graph.rewrite import CaptureError

from .captures import Function, calls, check, image, operators, settled

# Long together; what one kernel, rule or operator does is in them, networks of all in other files.
pytestmark = pytest.mark.slow


def _check(function: Callable[..., Any], *inputs: Tensor, **layers: nn.Module) -> dict[str, int]:
    return dict(check(Function(function, **layers), *(inputs or (image(),)), passes=(normalize,)))


_NOTHING: dict[str, Callable[..., Any]] = {
    "dropout": lambda m, x: F.dropout(x, 0.5, training=False) * 2,
    "contiguous": lambda m, x: x.contiguous().clone().detach() * 2,
    "same dtype": lambda m, x: x.to(torch.float64).type_as(x).double() * 2,
    "same shape": lambda m, x: x.reshape(x.shape).expand(x.shape).expand_as(x) * 2,
    "whole slice": lambda m, x: x[:, :, 0:9][:, 0:] * 2,
    "no permutation": lambda m, x: x.permute(0, 1, 2, 3).transpose(1, 1) * 2,
    "permutations": lambda m, x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2) * 2,
    "reshapes": lambda m, x: x.flatten(1).unflatten(1, x.shape[1:]) * 2,
    "one and zero": lambda m, x: ((1 * x + 0) / 1 - 0) * 1.0 * 2,
    "no padding": lambda m, x: F.pad(x, (0, 0, 0, 0)) * 2,
    "no roll": lambda m, x: torch.roll(x, (0, 0), (2, 3)) * 2,
    "unused": lambda m, x: (x.sum(), x * 2)[1],
    "one part": lambda m, x: torch.cat([x], 1) * 2,
    "same pool": lambda m, x: F.adaptive_avg_pool2d(x, (9, 8)) * 2,
}


@pytest.mark.parametrize("name", _NOTHING)
def test_what_does_nothing_goes(name: str) -> None:
    assert _check(_NOTHING[name]) == {"mul": 1}


def test_what_looks_like_nothing_stays() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        whole = x.long() * 1.0  # a conversion
        sides = F.pad(x, (1, 1), value=2.0)
        return whole + x * torch.ones(3, 1, 1, 1, 1) + x.to(torch.float32) + sides.sum()

    found = _check(forward)
    assert found["mul"] == 2
    assert found["_to_copy"] == 2
    assert found["constant_pad_nd"] == 1


def test_equal_nodes_are_one_and_random_ones_are_not() -> None:
    assert _check(lambda m, x: torch.exp(x) * torch.exp(x) + x * 1.5 + x * 1.5)["exp"] == 1
    model = settled(Function(lambda m, x: torch.rand_like(x) + torch.rand_like(x)))
    captured = capture(model, (image(),))
    normalize(captured.graph_module)
    assert operators(captured.graph_module)["rand_like"] == 2


def _hard_sigmoid(x: Tensor) -> Tensor:
    return F.relu6(x + 3) / 6


_ACTIVATIONS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "relu": ("relu", F.relu),
    "relu_": ("relu", lambda x: F.relu(x + 1, inplace=True)),
    "clamp 0": ("relu", lambda x: x.clamp(min=0)),
    "clamp_min": ("relu", lambda x: torch.clamp_min(x, 0)),
    "relu6": ("relu6", F.relu6),
    "hardtanh": ("relu6", lambda x: F.hardtanh(x, 0.0, 6.0)),
    "clamp 0 6": ("relu6", lambda x: x.clamp(0, 6)),
    "silu": ("silu", F.silu),
    "x sigmoid": ("silu", lambda x: x * torch.sigmoid(x)),
    "sigmoid x": ("silu", lambda x: x.sigmoid().mul(x)),
    "gelu": ("gelu", F.gelu),
    "hardswish": ("hardswish", F.hardswish),
    "x hardsigmoid": ("hardswish", lambda x: x * F.hardsigmoid(x)),
    "x relu6 / 6": ("hardswish", lambda x: x * F.relu6(x + 3) / 6),
    "x (relu6 / 6)": ("hardswish", lambda x: x * _hard_sigmoid(x)),
    "x relu6 sixth": ("hardswish", lambda x: x * (F.relu6(3 + x) * (1 / 6))),
    "sigmoid": ("sigmoid", torch.sigmoid),
    "hardsigmoid": ("hardsigmoid", F.hardsigmoid),
    "relu6 / 6": ("hardsigmoid", _hard_sigmoid),
}


@pytest.mark.parametrize("spelling", _ACTIVATIONS)
def test_activations(spelling: str) -> None:
    name, function = _ACTIVATIONS[spelling]
    found = _check(lambda m, x: function(m.conv(x)), image() * 4, conv=nn.Conv2d(6, 6, 1))
    found.pop("add", None) if spelling == "relu_" else None
    assert found == {"convolution": 1, name: 1}


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: F.gelu(x, approximate="tanh"),
        lambda m, x: x.clamp(0, 5),
        lambda m, x: x.clamp(-1, 6),
        lambda m, x: F.hardtanh(x),
        lambda m, x: F.leaky_relu(x),
        lambda m, x: (x * 4).long().clamp(0, 6),
        lambda m, x: x * torch.tanh(x),
    ],
)
def test_what_is_no_known_activation_stays(function: Callable[..., Any]) -> None:
    assert not {"relu", "relu6", "gelu", "silu"} & {
        name for name in _check(function) if name != "gelu"
    }


def test_a_gate_that_others_read_stays() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        gate = torch.sigmoid(x)
        return x * gate, gate + 1

    assert _check(forward) == {"silu": 1, "sigmoid": 1, "add": 1}


@pytest.mark.parametrize(
    ("arguments", "padding"),
    [
        ({"kernel_size": 3}, [0, 0, 0, 0]),
        ({"kernel_size": 3, "padding": 1, "stride": 2}, [1, 1, 1, 1]),
        ({"kernel_size": (3, 5), "padding": (1, 2), "groups": 2}, [1, 1, 2, 2]),
        ({"kernel_size": (4, 3), "padding": "same", "dilation": (1, 2)}, [1, 2, 2, 2]),
        ({"kernel_size": 3, "padding": "valid", "bias": False}, [0, 0, 0, 0]),
    ],
)
def test_convolutions(arguments: dict[str, Any], padding: list[int]) -> None:
    captured = capture(settled(nn.Conv2d(6, 8, **arguments)), (image(),))
    normalize(captured.graph_module)
    (node,) = calls(captured.graph_module, "convolution")
    assert node.args[4] == padding
    check(nn.Conv2d(6, 8, **arguments), image(), passes=(normalize,))


def test_other_convolutions() -> None:
    found = _check(lambda m, x: m.conv(x[0]), conv=nn.Conv2d(6, 4, 3))  # without a batch
    assert found["convolution"] == 1
    row = nn.Conv1d(6, 4, 3, padding=2, stride=2, dilation=2)
    found = _check(lambda m, x: m.conv(x.flatten(2)), conv=row)
    assert (found["convolution"], found["reshape"]) == (1, 2)
    found = _check(lambda m, x: m.conv(x), conv=nn.ConvTranspose2d(6, 4, 3))
    assert "convolution" not in found
    found = _check(lambda m, x: m.conv(x), conv=nn.Conv2d(6, 4, 3, 1, 1, padding_mode="circular"))
    assert len(found) > 1


@pytest.mark.parametrize(
    ("sides", "own", "merged"),
    [
        ((1, 2, 0, 1), 0, [0, 1, 1, 2]),
        ((1, 2), 1, [1, 1, 2, 3]),
        ((-1, 0, 2, -2), 0, [2, -2, -1, 0]),
        ((-1, 0, 0, 0), 1, None),  # zeros in the place of what was cropped
    ],
)
def test_padding_before_a_convolution(
    sides: tuple[int, ...], own: int, merged: list[int] | None
) -> None:
    model = Function(lambda m, x: m.conv(F.pad(x, sides)), conv=nn.Conv2d(6, 4, 3, padding=own))
    check(model, image(), passes=(normalize,))
    captured = capture(model, (image(),))
    normalize(captured.graph_module)
    (node,) = calls(captured.graph_module, "convolution")
    assert node.args[4] == (merged or [own] * 4)
    assert len(calls(captured.graph_module, "constant_pad_nd")) == (merged is None)


def test_padding_that_must_stay() -> None:
    conv = nn.Conv2d(6, 6, 3)

    def another_reader(m: Any, x: Tensor) -> Any:
        padded = F.pad(x, (1, 1, 1, 1))
        return m.conv(padded), padded.exp()

    assert _check(another_reader, conv=conv)["constant_pad_nd"] == 1
    assert (
        _check(lambda m, x: m.conv(F.pad(x, (1, 1), value=1.0)), conv=conv)["constant_pad_nd"] == 1
    )
    assert _check(lambda m, x: m.conv(F.pad(x, (1, 1, 1, 1), "reflect")), conv=conv)["pad"] == 1
    wider = nn.Conv2d(8, 6, 3)
    found = _check(lambda m, x: m.conv(F.pad(x, (0, 0, 0, 0, 1, 1))), conv=wider)
    assert found["constant_pad_nd"] == 1

    def two_convolutions(m: Any, x: Tensor) -> Any:
        padded = F.pad(x, (1, 1, 1, 1))
        return m.conv(padded) + m.other(padded)

    found = _check(two_convolutions, conv=conv, other=nn.Conv2d(6, 6, 3))
    assert found == {"convolution": 2, "add": 1}


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: F.adaptive_avg_pool2d(x, 1),
        lambda m, x: x.mean((2, 3), keepdim=True),
        lambda m, x: x.mean((-1, -2), keepdim=True),
        lambda m, x: F.avg_pool2d(x, (9, 8)),
    ],
)
def test_means_over_all_pixels(function: Callable[..., Any]) -> None:
    assert _check(function) == {"mean": 1}


def test_other_pools() -> None:
    assert _check(lambda m, x: x.mean((2, 3))) == {"mean": 1, "reshape": 1}
    assert _check(lambda m, x: F.adaptive_avg_pool2d(x, (3, 4))) == {"avg_pool2d": 1}
    assert _check(lambda m, x: F.adaptive_avg_pool2d(x, (4, 3))) == {"adaptive_avg_pool2d": 1}
    assert _check(lambda m, x: x.mean(1)) == {"mean": 1}
    assert _check(lambda m, x: F.max_pool2d(x, 2)) == {"max_pool2d": 1}


def test_products_with_constant_matrices() -> None:
    layers = nn.ParameterList([torch.randn(8, 5), torch.randn(5), torch.randn(5, 8)])

    def forward(m: Any, x: Tensor) -> Any:
        matrix, bias, transposed = m.layers
        rows = x[0, 0]
        return [
            x @ matrix,
            rows @ transposed.t() * 2,
            torch.addmm(bias, rows, matrix),
            rows.exp() @ matrix + bias,
        ]

    found = _check(forward, layers=layers)
    assert found["linear"] == 4
    assert not {"mm", "matmul", "addmm", "permute", "add"} & set(found)


def test_products_that_stay() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        rows = x[0, 0]
        first, second = m.layers
        return [
            x @ x.transpose(2, 3),  # of two inputs
            torch.addmm(rows, rows[:, :2], rows[:2]),
            torch.addmm(first[0], rows, second, beta=2),
            first @ x,  # the constant is on the left
        ]

    layers = nn.ParameterList([torch.randn(3, 9), torch.randn(8, 9)])
    model: Any = Function(forward, layers=layers)
    model.layers[0] = nn.Parameter(torch.randn(9, 9))
    found = check(model, image(), passes=(normalize,))
    assert (found["matmul"], found["addmm"]) == (2, 2)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: sum(torch.chunk(x, 3, 1)),
        lambda m, x: sum(x.split(2, 1)),
        lambda m, x: x.split([1, 5], 1)[1],
        lambda m, x: sum(torch.tensor_split(x, 2, -1)),
        lambda m, x: x.unbind(1)[3],
        lambda m, x: torch.cat(x.chunk(2, -1), 1),
        lambda m, x: x[:, -2] + x.select(1, 0) + x.narrow(1, 1, 2)[:, 1:].sum(1),
        lambda m, x: x[:, 1::2].chunk(2, 1)[0],
    ],
)
def test_lists_become_slices(function: Callable[..., Any]) -> None:
    found = _check(function)
    assert set(found) <= {"slice", "reshape", "add", "cat", "sum"}
    assert found["slice"]


def test_slices_of_slices_are_one() -> None:
    assert _check(lambda m, x: x[:, 1:5].chunk(2, 1)[1][:, 1:]) == {"slice": 1}


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda m, x: x.permute(0, 2, 3, 1).flatten(1, 2), {"permute": 1, "reshape": 1}),
        (lambda m, x: x.mT.transpose(-1, -2) * x.movedim(1, 1), {"mul": 1}),
        (lambda m, x: x.sum((2, 3), keepdim=True).permute(0, 2, 3, 1), {"sum": 1, "reshape": 1}),
        (lambda m, x: x.unsqueeze(1).squeeze(1).view(2, 6, 72).reshape_as(x) * 2, {"mul": 1}),
        (lambda m, x: torch.stack([x, x * 2], -1), {"mul": 1, "reshape": 2, "cat": 1}),
        (lambda m, x: F.channel_shuffle(x, 2), {"reshape": 2, "permute": 1}),
        (lambda m, x: torch.addcmul(x, x, x.exp(), value=2), {"exp": 1, "mul": 2, "add": 1}),
    ],
)
def test_rearrangements(function: Callable[..., Any], left: dict[str, int]) -> None:
    assert _check(function) == left


def test_what_reads_memory_as_it_lies_is_refused() -> None:
    model = Function(lambda m, x: torch.exp(x).as_strided((2, 3), (1, 5)))
    captured = capture(settled(model), (image(),))
    with pytest.raises(CaptureError, match="as_strided"):
        normalize(captured.graph_module)
