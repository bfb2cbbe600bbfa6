"""Models of timm and torchvision: every one rewritten with the same answers."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import nn

import dnnsep
from dnnsep import SeparableConv2d
from dnnsep.graph.difference import difference
from dnnsep.graph.optimize import report_of
from dnnsep.models.layers import layers
from dnnsep.models.zoo import _torchvision, enliven, load

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
    """Gives random values to what a small network's layers start with as (nearly) nothing, so that
    no part of it can be wrong unseen."""
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
    optimized = dnnsep.optimize(model, x)
    report = report_of(optimized)
    assert not report.notes
    assert separable in (None, report.count("separable"))
    other = x.flip(-1)
    with torch.no_grad():
        expected = model(other)
        assert difference(model(x), expected) > 1e-2
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


class _Constant(nn.Module):
    """Starts with all that hides what comes before it."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        nn.init.zeros_(self.norm.weight)
        self.gamma = nn.Parameter(torch.full((8, 1, 1), 1e-6))
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.2))
        self.head = nn.Linear(8, 4)
        nn.init.zeros_(self.head.weight)
        self.unused = nn.BatchNorm1d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.convolution(x)) * self.gamma * self.scale
        z: torch.Tensor = self.head(y.mean((2, 3)))
        return z


def test_constants_of_a_new_model_become_random() -> None:
    first, second = _Constant().eval(), _Constant().eval()
    second.load_state_dict(first.state_dict())
    x = torch.randn(1, 3, 9, 9)
    for model in (first, second):
        enliven(model, x)
    for (name, value), again in zip(
        first.state_dict().items(), second.state_dict().values(), strict=True
    ):
        assert torch.equal(value, again), name
        assert value.numel() == 1 or name.startswith("unused.running") or value.std() > 0, name
    for values, least, most in (
        (first.norm.weight, 0.5, 1.5),
        (first.gamma, 0.5, 1.5),
        (first.scale, 0.1, 0.3),
    ):
        assert least <= values.min() < values.max() <= most
    y = first.norm(first.convolution(x))
    assert 0.2 < y.abs().mean() < 4


def test_what_was_trained_stays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    nn.init.normal_(model[1].running_mean)  # type: ignore[arg-type]
    nn.init.normal_(model[1].weight)  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    enliven(model, torch.randn(1, 3, 9, 9))
    changed = [n for n, v in model.state_dict().items() if not torch.equal(v, before[n])]
    assert changed == ["1.bias"]


def test_a_model_that_fails_on_the_input() -> None:
    with pytest.raises(ValueError, match=r"'resnet18' fails on an input of \[1, 4, 9, 9\]: Given"):
        load("resnet18", (1, 4, 9, 9))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("goes to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_backbones_are_not_fetched(name: str) -> None:
    model, x = load(f"torchvision:{name}", (1, 3, 64, 64))
    with torch.no_grad():
        assert difference(model(x.flip(-1)), model(x)) > 1e-2


@pytest.mark.slow
@pytest.mark.usefixtures("no_network")
def test_no_model_of_torchvision_is_fetched() -> None:
    from torchvision import models

    wanted = (models.detection, models.segmentation)
    for name in [name for module in wanted for name in models.list_models(module)]:
        factory = _torchvision(name)
        assert factory is not None
        with torch.device("meta"):
            factory()


@pytest.mark.slow
def test_a_list_of_images_is_a_tensor() -> None:
    model, x = load("torchvision:ssdlite320_mobilenet_v3_large", (1, 3, 64, 64))
    with torch.no_grad():
        (found,) = model(x)
    assert len(found["boxes"]) == len(found["scores"]) > 0
