"""Quantised models: what PT2E makes of a model runs as layers of bytes, and answers alike."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import dnnsep
from dnnsep.graph.difference import difference
from dnnsep.graph.optimize import report_of
from dnnsep.graph.quantize import _pt2e


def _separable(channels: int, out: int, stride: int = 1) -> list[nn.Module]:
    depthwise = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
    norms = (nn.BatchNorm2d(channels), nn.BatchNorm2d(out))
    for norm in norms:
        norm.running_mean = torch.randn(norm.num_features) * 0.1
        norm.running_var = torch.rand(norm.num_features) + 0.5
    pointwise = nn.Conv2d(channels, out, 1, bias=False)
    return [depthwise, norms[0], nn.ReLU6(), pointwise, norms[1], nn.ReLU()]


class Net(nn.Module):
    """MobileNet's layers, with an addition and an activation that is not quantised with them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU())
        self.first = nn.Sequential(*_separable(12, 20))
        self.second = nn.Sequential(*_separable(20, 20))
        self.silu = nn.Sequential(nn.Conv2d(20, 16, 1), nn.SiLU())
        self.head = nn.Linear(16, 7)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(self.stem(x))
        y = self.silu(y + self.second(y))
        found: Tensor = self.head(y.mean((2, 3)))
        return found


def _made(seed: int = 0) -> tuple[nn.Module, fx.GraphModule, Tensor]:
    """Returns a model, the model quantised, and an input."""
    torch.manual_seed(seed)
    model = Net().eval()
    batches = [torch.randn(2, 3, 21, 17) for _ in range(4)]
    return model, dnnsep.quantize(model, batches), batches[0]


def test_layers_run_on_bytes() -> None:
    model, quantized, x = _made()
    with torch.no_grad():
        optimized = dnnsep.optimize(quantized, x)
        right, found, plain = quantized(x), optimized(x), model(x)
    report = report_of(optimized)
    problems = [str(layer.problem) for layer in report.entries if layer.problem]
    kinds = [layer.kind for layer in report.entries]
    assert kinds == ["convolution", "separable", "separable", "convolution", "linear"], problems
    assert all("_u8s8" in problem for problem in problems)
    assert problems[0].endswith("act:relu_u8s8")
    # Its result is also read in f32.
    assert problems[1].endswith("act:relu6,relu_u8s8f32")
    # No further from the quantised model than quantising is from the model.
    assert difference(found, right) <= 0.5 * difference(plain, right)


class Residual(nn.Module):
    """ResNet's: a pooling, and blocks whose ends are added to a layer's result or to bytes."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.first = nn.Sequential(nn.Conv2d(24, 8, 1), nn.ReLU(), nn.Conv2d(8, 40, 3, 2, 1))
        self.beside = nn.Conv2d(24, 40, 1, 2)
        self.second = nn.Sequential(
            nn.Conv2d(40, 16, 1), nn.ReLU(), nn.Conv2d(16, 40, 3, 1, 1, groups=groups)
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = (self.first(x) + self.beside(x)).relu()
        found: Tensor = self.head((y + self.second(y)).relu())
        return found


@pytest.mark.parametrize("groups", [1, 4])
def test_additions_and_poolings_are_of_bytes(groups: int) -> None:
    torch.manual_seed(3)
    batches = [torch.randn(2, 3, 45, 37) for _ in range(3)]
    model = Residual(groups).eval()
    quantized = dnnsep.quantize(model, batches)
    with torch.no_grad():
        optimized = dnnsep.optimize(quantized, batches[0])
        right, found, plain = quantized(batches[0]), optimized(batches[0]), model(batches[0])
    report = report_of(optimized)
    dtypes = [str(layer.problem).rpartition("_")[2] for layer in report.entries]
    # The last addition's sum is not rounded to bytes: the mean is of f32.
    assert dtypes == ["u8s8"] * 5 + ["u8s8f32"] * 2, report
    # By themselves: the input is quantised, that addition is made, the mean is quantised.
    assert report.kernels["row-wise"] == 3
    assert report.kernels["pool"] == 1
    assert difference(found, right) <= 0.5 * difference(plain, right)


def test_an_exported_program_is_taken() -> None:
    _, quantized, x = _made(1)
    with torch.no_grad():
        program = torch.export.export(quantized, (x,))
        optimized = dnnsep.optimize(program, x)
        assert difference(optimized(x), quantized(x)) < 0.05
    assert all("u8s8" in str(layer.problem) for layer in report_of(optimized).entries)


def _affine(model: nn.Module, batches: list[Tensor]) -> fx.GraphModule:
    """Returns the model quantised with observers that write affine operators: torchao's, or those
    of torch where it still has them."""
    flow, quantizers = _pt2e()
    home = flow.__name__.rpartition(".")[0].replace(".pt2e", "") + ".pt2e"
    observers = import_module(f"{home}._affine_quantization")
    granularity = import_module(observers.Granularity.__module__)
    kinds = observers.MappingType
    config = quantizers.get_default_x86_inductor_quantization_config()
    named: dict[str, Any] = {}
    for tensor, dtype, symmetric, blocks in (
        ("input_activation", torch.uint8, False, granularity.PerTensor()),
        ("weight", torch.int8, True, granularity.PerAxis(0)),
    ):
        mapping = kinds.SYMMETRIC if symmetric else kinds.ASYMMETRIC
        observer = observers.AffineQuantizedMinMaxObserver.with_args(
            mapping_type=mapping,
            target_dtype=dtype,
            granularity=blocks,
            eps=2.0**-12,
            scale_dtype=torch.float32,
            zero_point_dtype=torch.int32,
        )
        spec = replace(getattr(config, tensor), observer_or_fake_quant_ctr=observer)
        named[tensor] = spec
    quantizer = quantizers.X86InductorQuantizer().set_global(replace(config, **named))
    exported = torch.export.export(model, (batches[0],), strict=True).module()
    prepared = flow.prepare_pt2e(exported, quantizer)
    for batch in batches:
        prepared(batch)
    converted: fx.GraphModule = flow.convert_pt2e(prepared)
    return converted


def test_affine_operators_are_those_of_the_other_dialect() -> None:
    torch.manual_seed(4)
    model, batches = Net().eval(), [torch.randn(2, 3, 21, 17) for _ in range(4)]
    with torch.no_grad():
        quantized = _affine(model, batches)
        assert any("quantize_affine" in str(node.target) for node in quantized.graph.nodes)
        optimized = dnnsep.optimize(quantized, batches[0])
        right, found, plain = quantized(batches[0]), optimized(batches[0]), model(batches[0])
    report = report_of(optimized)
    assert report.bound == 0.1
    kinds = [layer.kind for layer in report.entries]
    assert kinds == ["convolution", "separable", "separable", "convolution", "linear"], report
    assert all("_u8s8" in str(layer.problem) for layer in report.entries)
    assert not report.calls
    assert difference(found, right) <= 0.5 * difference(plain, right)


def test_weights_with_zero_points_stay_in_f32() -> None:
    _, quantized, x = _made(2)
    zeros = [name for name, _ in quantized.named_buffers() if "zero_point" in name]
    assert zeros
    getattr(quantized, zeros[0]).fill_(1)
    with torch.no_grad():
        optimized = dnnsep.optimize(quantized, x)
        assert difference(optimized(x), quantized(x)) < 0.05
    problems = [str(layer.problem) for layer in report_of(optimized).entries]
    assert sum("u8s8" not in problem for problem in problems) == 1


def test_bytes_that_two_layers_read() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, padding=1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.one(x), self.other(x)

    torch.manual_seed(3)
    x = torch.randn(1, 4, 9, 9)
    quantized = dnnsep.quantize(Two().eval(), [x])
    with torch.no_grad():
        optimized = dnnsep.optimize(quantized, x)
        assert difference(optimized(x), quantized(x)) < 0.02
    assert [layer.kind for layer in report_of(optimized).entries] == ["convolution"] * 2


def test_a_layer_that_is_used_twice() -> None:
    """With the same weights, but with other scales of what it reads and gives."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.layer(torch.relu(self.layer(x)) * 20))

    torch.manual_seed(4)
    x = torch.randn(1, 8, 9, 9)
    quantized = dnnsep.quantize(Twice().eval(), [x])
    with torch.no_grad():
        optimized = dnnsep.optimize(quantized, x)
        assert difference(optimized(x), quantized(x)) < 0.01
    assert sum("u8s8" in str(layer.problem) for layer in report_of(optimized).entries) == 2


@pytest.mark.parametrize(
    ("batches", "message"),
    [([], "batches: at least one"), ([torch.zeros(1, 3, 21, 17)], "model: is in training mode")],
)
def test_what_cannot_be_quantised(batches: list[Any], message: str) -> None:
    model = Net().train() if batches else Net().eval()
    with pytest.raises(ValueError, match=message):
        dnnsep.quantize(model, batches)
