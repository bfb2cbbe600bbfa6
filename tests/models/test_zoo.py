"""Models of timm and torchvision: every one rewritten with the same answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import dnnsep
from dnnsep import SeparableConv2d
from dnnsep.graph.difference import difference
from dnnsep.graph.optimize import report_of
from dnnsep.models.layers import layers
from dnnsep.models.zoo import load

# Name and the separable layers that it has.
SMALL: list[tuple[str, int | None]] = [("mobilenetv2_100", 17)]
OTHERS: list[tuple[str, int | None]] = [
    ("mobilenetv1_100", 13),
    ("mobilenetv3_large_100", None),
    ("mobilenetv3_small_100", None),
    ("efficientnet_b0", None),
    ("mnasnet_100", None),
    ("xception41", None),
    ("legacy_xception", None),
    ("convnext_tiny", None),
    ("torchvision:mobilenet_v2", 17),
    ("torchvision:mobilenet_v3_large", None),
    ("torchvision:efficientnet_b0", None),
    ("torchvision:mnasnet1_0", None),
    ("torchvision:convnext_tiny", None),
    ("torchvision:resnet18", 0),
    ("torchvision:vit_b_16", 0),
]


def lively(model: nn.Module) -> nn.Module:
    """With something in the parameters and statistics that start as (nearly) nothing, so that no
    part of the model can be wrong unseen."""
    for parameter in model.parameters():
        if float(parameter.detach().abs().max()) < 1e-4:
            nn.init.normal_(parameter, std=0.1)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(layer.running_var, 0.5, 2)  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize(("name", "separable"), SMALL)
def test_optimized(name: str, separable: int | None) -> None:
    model, x = load(name, (1, 3, 96, 96) if name != "torchvision:vit_b_16" else None)
    optimized = dnnsep.optimize(lively(model), x)
    report = report_of(optimized)
    assert not report.notes
    assert separable in (None, report.count("separable"))
    other = x.flip(-1)
    with torch.no_grad():
        expected = model(other)
        assert float(expected.std()) > 0
        assert difference(optimized(other), expected) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("name", "separable"), OTHERS)
def test_other_models_optimized(name: str, separable: int | None) -> None:
    test_optimized(name, separable)


def test_layers_count_parameters_and_operations() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 64, 5, 2), nn.BatchNorm2d(64), nn.Flatten(), nn.Linear(64, 10)
    )
    found = layers(nn.Sequential(model[0], model[1]).eval(), torch.randn(1, 3, 228, 228))
    assert [(layer.kind, layer.parameters, layer.macs) for layer in found] == [
        ("Conv2d", 4864, 64 * 112 * 112 * 75),
        ("BatchNorm2d", 128, 0),
    ]
    ours = layers(SeparableConv2d(3, 64, 5, 2).eval(), torch.randn(1, 3, 228, 228))
    assert [(layer.parameters, layer.macs) for layer in ours] == [
        (78, 3 * 112 * 112 * 25),
        (256, 64 * 112 * 112 * 3),
    ]
    assert ours[-1].output == found[0].output == (1, 64, 112, 112)
    (linear,) = layers(model[3], torch.randn(2, 64))
    assert (linear.parameters, linear.macs, linear.flops) == (650, 1280, 2560)


def test_a_model_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text("from torch import nn\ndef small():\n    return nn.Conv2d(3, 4, 1)\n")
    model, x = load(f"{path}:small", (1, 3, 5, 5))
    assert isinstance(model, nn.Conv2d)
    assert x.shape == (1, 3, 5, 5)
    again, _ = load(f"{path}:small", (1, 3, 5, 5))
    assert torch.equal(model.weight, again.weight)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "no_such_model",
            "model 'no_such_model': timm and torchvision (do not have|not installed)",
        ),
        ("keras:x", "model 'keras:x': before the colon must be timm, torchvision or a .py file"),
        ("missing.py:f", "missing.py: No such file or directory"),
        (f"{__file__}:nothing", "has no function 'nothing'"),
    ],
)
def test_unknown_models(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(name)
