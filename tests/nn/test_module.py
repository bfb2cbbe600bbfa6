"""The layers for users of PyTorch: right, trainable, copied, saved, compiled, called by threads."""

from __future__ import annotations

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dnnsep
from dnnsep import SeparableConv2d
from dnnsep.nn.layer import Geometry, Parameters, plain
from dnnsep.nn.operator import separable_conv2d

# Name, arguments of SeparableConv2d, input.
LAYERS: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("plain", {"kernel_size": 3, "padding": 1}, (2, 6, 9, 8)),
    ("strided", {"kernel_size": (3, 5), "stride": (2, 1), "padding": (1, 2)}, (1, 6, 9, 8)),
    ("dilated", {"kernel_size": 3, "padding": 2, "dilation": 2}, (1, 6, 9, 8)),
    ("same", {"kernel_size": 4, "padding": "same"}, (1, 6, 9, 8)),
    ("valid", {"kernel_size": 2, "padding": "valid"}, (1, 6, 9, 8)),
    ("multiplied", {"kernel_size": 3, "channel_multiplier": 3}, (1, 6, 9, 8)),
    ("no bias", {"kernel_size": 3, "bias": False}, (1, 6, 9, 8)),
    ("padded beyond", {"kernel_size": 1, "padding": 2}, (1, 6, 9, 8)),
    ("reflect", {"kernel_size": 5, "padding": 2, "padding_mode": "reflect"}, (1, 6, 9, 8)),
    ("replicate", {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"}, (1, 6, 9, 8)),
    ("circular", {"kernel_size": 3, "padding": "same", "padding_mode": "circular"}, (1, 6, 9, 8)),
    ("activated", {"kernel_size": 3, "activations": ("relu6", "relu")}, (1, 6, 9, 8)),
    ("no batch", {"kernel_size": 3, "padding": 1}, (6, 9, 8)),
]


def _layer(**arguments: Any) -> SeparableConv2d:
    """A layer of small integers, so that a right answer is right to the bit."""
    torch.manual_seed(0)
    layer = SeparableConv2d(6, 10, **arguments)
    for parameter in layer.parameters():
        parameter.data = torch.randint(-2, 3, parameter.shape).to(parameter.dtype)
    return layer.eval()


def _x(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def _reference(layer: SeparableConv2d, x: Tensor) -> Tensor:
    """The layer by its own two torch.nn.Conv2d."""
    acts = {"none": lambda y: y, "relu": torch.relu, "relu6": nn.functional.relu6}
    first, second = (acts[name] for name in layer.activations)
    y: Tensor = second(layer.pointwise(first(layer.depthwise(x))))
    return y


@pytest.mark.parametrize("backend", ["auto", "onednn", "eager"])
@pytest.mark.parametrize(
    ("arguments", "shape"), [c[1:] for c in LAYERS], ids=[c[0] for c in LAYERS]
)
def test_inference_agrees_with_the_two_convolutions(
    arguments: dict[str, Any], shape: tuple[int, ...], backend: str
) -> None:
    layer, x = _layer(**arguments, backend=backend), _x(*shape)
    expected = _reference(layer, x).detach()
    with torch.no_grad():
        assert torch.equal(layer(x), expected)
        assert torch.equal(layer(x.contiguous()), expected)
    assert len(layer.runs_on) == 1
    assert torch.equal(layer(x), expected)  # with gradients: plain PyTorch
    assert torch.equal(layer.train()(x), expected)


def test_sizes_of_the_published_examples() -> None:
    def parameters(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    ordinary, separable = nn.Conv2d(8, 64, 3), SeparableConv2d(8, 64, 3).eval()
    assert (parameters(ordinary), parameters(separable)) == (4672, 656)
    x = torch.randn(1, 8, 128, 128)
    with torch.no_grad():
        assert separable(x).shape == ordinary(x).shape
    ordinary, separable = nn.Conv2d(3, 64, 5, 2), SeparableConv2d(3, 64, 5, 2).eval()
    assert (parameters(ordinary), parameters(separable)) == (4864, 334)
    assert {name: p.numel() for name, p in separable.named_parameters()} == {
        "depthwise.weight": 75,
        "depthwise.bias": 3,
        "pointwise.weight": 192,
        "pointwise.bias": 64,
    }
    with torch.no_grad():
        assert separable(torch.randn(1, 3, 228, 228)).shape == (1, 64, 112, 112)


def test_what_ran_is_visible() -> None:
    layer = _layer(kernel_size=3, backend="onednn")
    with torch.no_grad():
        layer(_x(1, 6, 9, 8))
        layer(_x(1, 6, 5, 5))
    assert set(layer.runs_on) == {(1, 6, 9, 8), (1, 6, 5, 5)}
    assert all(text.startswith("onednn") for text in layer.runs_on.values())
    assert "backend='onednn'" in repr(layer)


def test_bfloat16() -> None:
    layer = _layer(kernel_size=3).to(torch.bfloat16)
    x = _x(1, 6, 9, 8, dtype=torch.bfloat16)
    expected = _reference(layer.float(), x.float()).detach().bfloat16()
    with torch.no_grad():
        found = layer.to(torch.bfloat16)(x)
    assert layer.runs_on
    assert torch.equal(found, expected)


def test_other_dtypes_run_in_plain_torch() -> None:
    layer = _layer(kernel_size=3).double()
    with torch.no_grad():
        y = layer(_x(1, 6, 9, 8, dtype=torch.float64))
    assert y.dtype is torch.float64
    assert not layer.runs_on


def test_changed_weights_are_packed_again() -> None:
    layer, x = _layer(kernel_size=3), _x(1, 6, 9, 8)

    def check() -> None:
        with torch.no_grad():
            assert torch.equal(layer(x), _reference(layer, x))
        assert layer.runs_on

    check()
    with torch.no_grad():
        layer.depthwise.weight.mul_(2)
    check()
    layer.pointwise.weight = nn.Parameter(_x(10, 6, 1, 1) + 1)
    check()
    layer.pointwise.weight.data = _x(10, 6, 1, 1) - 1
    check()
    state = {name: value + 1 for name, value in layer.state_dict().items()}
    layer.load_state_dict(state)
    check()
    layer.depthwise.bias = None
    check()
    layer.train()
    layer.depthwise.weight.data.add_(1)  # what torch does not count
    layer.eval()
    check()


def test_gradients() -> None:
    torch.manual_seed(0)
    layer = SeparableConv2d(2, 3, 3, padding=1, activations=("silu", "none"), channel_multiplier=2)
    layer = layer.double()
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


def _operands(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Parameters, Geometry]:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 7, 6, dtype=dtype)
    parameters = Parameters(
        torch.randn(4, 1, 3, 3, dtype=dtype),
        torch.randn(4, dtype=dtype),
        torch.randn(5, 4, 1, 1, dtype=dtype),
        None,
    )
    return x, parameters, Geometry((1, 2), (1, 1, 0, 2), (1, 1), ("silu", "none"))


def test_the_operators_gradients_are_the_plain_layers() -> None:
    x, parameters, geometry = _operands()
    tensors = [t.clone().requires_grad_() for t in (x, *parameters) if t is not None]
    rebuilt = Parameters(tensors[1], tensors[2], tensors[3], None)
    expected = torch.autograd.grad(plain(tensors[0], rebuilt, geometry, 4).sum(), tensors)
    y = separable_conv2d(tensors[0], rebuilt, geometry)
    torch.testing.assert_close(y, plain(tensors[0], rebuilt, geometry, 4), rtol=1e-5, atol=1e-5)
    for a, b in zip(torch.autograd.grad(y.sum(), tensors), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_the_operator_is_well_defined() -> None:
    x, parameters, geometry = _operands()
    arguments = (x, *parameters, *(list(values) for values in geometry), "auto")
    torch.library.opcheck(torch.ops.dnnsep.separable_conv2d.default, arguments)


def test_the_operator_sees_changed_weights() -> None:
    x, parameters, geometry = _operands()
    first = separable_conv2d(x, parameters, geometry)
    parameters.depthwise.mul_(2)
    second = separable_conv2d(x, parameters, geometry)
    expected = plain(x, parameters, geometry, x.shape[1])
    torch.testing.assert_close(second, expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(first, second)


def test_copies_and_pickles() -> None:
    layer, x = _layer(kernel_size=3), _x(1, 6, 9, 8)
    with torch.no_grad():
        expected = layer(x)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert not other.runs_on
            assert torch.equal(other(x), expected)
            other.depthwise.weight.zero_()
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(x), expected)
        assert torch.equal(layer(x), expected)


def test_trains_saves_and_loads_into_plain_layers_and_back() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(SeparableConv2d(4, 8, 3, padding=1, activations=("relu", "relu")))
    model.append(SeparableConv2d(8, 2, 3, padding=1, activations=("relu", "none")))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x, target = torch.randn(4, 4, 8, 8), torch.randn(4, 2, 8, 8)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]

    class Block(nn.Module):
        def __init__(self, channels: int, out: int) -> None:
            super().__init__()
            self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
            self.pointwise = nn.Conv2d(channels, out, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.pointwise(torch.relu(self.depthwise(x)))
            return y

    plain_model = nn.Sequential(Block(4, 8), Block(8, 2))
    plain_model.load_state_dict(model.state_dict())
    expected = plain_model[1](torch.relu(plain_model[0](x)))
    assert torch.equal(model(x), expected)
    back = copy.deepcopy(model)
    for parameter in back.parameters():
        parameter.data.zero_()
    back.load_state_dict(plain_model.state_dict())
    model.eval()
    back.eval()
    with torch.no_grad():
        assert torch.equal(back(x), model(x))
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_many_threads_at_once() -> None:
    layer, inputs = _layer(kernel_size=3, padding=1), [_x(1, 6, n, 8) for n in range(3, 11)]
    with torch.no_grad():
        expected = [_reference(layer, x) for x in inputs]

    def work(number: int) -> bool:
        with torch.no_grad():
            order = range(number, number + 40)
            return all(torch.equal(layer(inputs[i % 8]), expected[i % 8]) for i in order)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_batch_norms_are_folded() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(
        nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 10, 1, bias=False),
        nn.BatchNorm2d(10),
        nn.ReLU(),
    )
    for norm in (block[1], block[4]):
        assert isinstance(norm, nn.BatchNorm2d)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
        nn.init.uniform_(norm.running_var, 0.5, 2)  # type: ignore[arg-type]
    depthwise, first, _, pointwise, second, _ = block.eval()
    before = copy.deepcopy(block.state_dict())
    layer = SeparableConv2d.from_layers(
        depthwise,  # type: ignore[arg-type]
        pointwise,  # type: ignore[arg-type]
        (first, second),  # type: ignore[arg-type]
        ("relu", "relu"),
    )
    x = torch.randn(1, 6, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), block(x), rtol=1e-5, atol=1e-5)
    assert all(
        torch.equal(a, b) for a, b in zip(before.values(), block.state_dict().values(), strict=True)
    )


def _nodes(graph: torch.fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


def test_torch_compile_sees_one_operator() -> None:
    layer, x = _layer(kernel_size=3, activations=("relu", "none")), _x(1, 6, 9, 8)
    seen: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        seen.append(graph)
        return graph.forward

    with torch.no_grad():
        found = torch.compile(layer, backend=keep, fullgraph=True)(x)
        assert torch.equal(found, layer(x))
    assert _nodes(seen[0].graph) == ["dnnsep.separable_conv2d"]


def test_torch_export_sees_one_operator() -> None:
    layer, x = _layer(kernel_size=3, activations=("relu", "none")), _x(1, 6, 9, 8)
    program = torch.export.export(layer, (x,))
    assert _nodes(program.graph) == ["dnnsep.separable_conv2d.default"]
    with torch.no_grad():
        assert torch.equal(program.module()(x), layer(x))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    with torch.no_grad():
        assert torch.equal(torch.export.load(file).module()(x), layer(x))


@pytest.mark.slow
def test_torch_compile_with_inductor() -> None:
    layer, x = _layer(kernel_size=3, activations=("relu", "none")), _x(1, 6, 9, 8)
    with torch.no_grad():
        assert torch.equal(torch.compile(layer, fullgraph=True)(x), layer(x))


def test_tracing_stays_right() -> None:
    layer, x = _layer(kernel_size=3), _x(1, 6, 9, 8)
    with torch.no_grad():
        traced = torch.jit.trace(layer, x)  # type: ignore[no-untyped-call]
        other = _x(1, 6, 9, 8) + 1
        assert torch.equal(traced(other), layer(other))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activations": ("relu", "tanh")}, "activations=.*must each be one of none, relu"),
        ({"backend": "magic"}, "backend 'magic': must be one of"),
        ({"padding": "some"}, "Invalid padding string"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dnnsep.SeparableConv2d(6, 10, 3, **arguments)
