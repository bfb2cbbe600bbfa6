"""What quantising takes from each layer is told, and layers can be left in f32."""

from __future__ import annotations

from math import inf

import pytest
import torch
from torch import Tensor, nn

import dnnsep
from dnnsep.graph.optimize import report_of
from dnnsep.graph.sqnr import sqnr_of


class Uneven(nn.Module):
    """Its second layer reads one channel that is a thousand times as large as the others, so that
    one scale for all of them leaves these few steps."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        second = nn.Conv2d(8, 8, 1)
        self.parts = nn.Sequential(nn.ReLU(inplace=True), second, nn.Conv2d(8, 4, 1))
        with torch.no_grad():
            self.first.weight[0] *= 1000
            second.weight[:, 0] /= 1000

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.parts(self.first(x))
        return found


def _made() -> tuple[Uneven, list[Tensor]]:
    torch.manual_seed(0)
    return Uneven().eval(), [torch.randn(2, 3, 12, 10) for _ in range(3)]


def test_the_ratio() -> None:
    right = torch.tensor([3.0, 4.0])
    assert sqnr_of([right], [right]) == inf
    assert sqnr_of([right], [right + torch.tensor([0.3, 0.4])]) == pytest.approx(20)
    assert sqnr_of([right, right], [right, 1.1 * right]) == pytest.approx(23, abs=0.02)
    assert sqnr_of([torch.zeros(2)], [right]) == -inf


def test_the_layer_that_loses_most_is_named() -> None:
    model, batches = _made()
    report = dnnsep.quantization_report(dnnsep.quantize(model, batches))
    assert [entry.layer for entry in report.entries] == ["first", "parts.1", "parts.2"]
    found = {entry.layer: entry.sqnr for entry in report.entries}
    assert report.worst(1)[0].layer == "parts.1"
    assert (found["parts.1"] or 0) < 25 < 35 < min(found["first"] or 0, found["parts.2"] or 0)
    assert "worst layers: parts.1" in str(report).splitlines()[-1]


def test_a_layer_alone_loses_what_the_report_says() -> None:
    """Rounded by hand: the input by its scale, the weights by those of the channels."""
    model, batches = _made()
    quantized = dnnsep.quantize(model, batches)
    q = next(n for n in quantized.graph.nodes if "quantize_per_tensor" in str(n.target))
    _, scale, zero, *_ = q.args
    x = batches[0]
    rounded = ((x / scale).round() + zero).clamp(0, 255).sub(zero) * scale
    weight = model.first.weight.detach()
    of_channel = weight.abs().amax((1, 2, 3), keepdim=True) / 127.5
    steps = (weight / of_channel).round().clamp(-128, 127)
    with torch.no_grad():
        right = model.first(x)
        found = nn.functional.conv2d(rounded, steps * of_channel, model.first.bias)
    told = dnnsep.quantization_report(quantized).entries[0].sqnr
    assert told == pytest.approx(sqnr_of([right], [found]), abs=0.1)


def test_layers_are_kept_in_f32() -> None:
    model, batches = _made()
    whole = dnnsep.quantization_report(dnnsep.quantize(model, batches))
    quantized = dnnsep.quantize(model, batches, keep=["parts.1"])
    report = dnnsep.quantization_report(quantized)
    assert {e.layer: e.sqnr is None for e in report.entries} == {
        "first": False,
        "parts.1": True,
        "parts.2": False,
    }
    assert report.sqnr > whole.sqnr + 3
    with torch.no_grad():
        optimized = dnnsep.optimize(quantized, batches[0])
        assert sqnr_of([quantized(batches[0])], [optimized(batches[0])]) > 60
    problems = [str(entry.problem) for entry in report_of(optimized).entries]
    assert ["u8s8" in problem for problem in problems] == [True, False, True]


def test_all_layers_of_a_part_are_kept() -> None:
    model, batches = _made()
    report = dnnsep.quantization_report(dnnsep.quantize(model, batches, keep=["parts"]))
    assert [entry.sqnr is None for entry in report.entries] == [False, True, True]


def test_what_is_not_there() -> None:
    model, batches = _made()
    with pytest.raises(ValueError, match=r"is not what dnnsep.quantize returned"):
        dnnsep.quantization_report(torch.fx.symbolic_trace(model))
    with pytest.raises(ValueError, match="keep: the model has no module 'third'"):
        dnnsep.quantize(model, batches, keep=["third"])
