"""Whole networks in their canonical form: the same answers after every pass, on two inputs."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dnnsep.graph.canonical import canonicalize
from dnnsep.graph.capture import capture
from dnnsep.graph.fold import fold
from dnnsep.graph.normalize import normalize
from dnnsep.graph.rewrite import CaptureError

from .captures import cases, check_values, difference, operators, settled

# How many convolutions are left, as many as the network is deployed with.
_CONVOLUTIONS = {
    "convnextv2_atto": 40,
    "densenet121": 120,
    "edgenext_xx_small": 19,
    "efficientvit_b0": 50,
    "efficientvit_m0": 116,
    "fastvit_t8": 52,
    "ghostnetv3_100": 137,
    "hrnet_w18_small": 91,
    "levit_128s": 4,
    "maxvit_nano_rw_256": 40,
    "mixnet_s": 123,
    "mobileone_s0": 43,
    "mobilevitv2_050": 64,
    "poolformer_s12": 28,
    "regnety_002": 70,
    "repghostnet_100": 95,
    "repvgg_a0": 22,
    "repvit_m0_9": 103,
    "rexnet_100": 75,
    "swin_tiny_patch4_window7_224": 1,
    "tf_efficientnet_b0": 81,
    "tiny_vit_5m_224": 27,
    "xcit_nano_12_p16_224": 28,
    "torchvision:googlenet": 57,
    "torchvision:lraspp_mobilenet_v3_large": 66,
    "torchvision:shufflenet_v2_x1_0": 56,
    "torchvision:vit_b_16": 1,
}


def _network(name: str) -> tuple[nn.Module, Tensor]:
    """Returns a random network in float64, none of whose parameters are all one number, and an
    image of its size."""
    torch.manual_seed(0)
    origin, _, own = name.rpartition(":")
    library = importlib.import_module(origin or "timm")
    if origin:
        options: dict[str, Any] = {"weights": None}
        options |= {"weights_backbone": None} if "lraspp" in own or "ssd" in own else {}
        options |= {"init_weights": False} if own == "googlenet" else {}
        model, size = library.models.get_model(own, **options), (3, 224, 224)
    else:
        model = library.create_model(own)
        size = model.default_cfg["input_size"]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and parameter.min() == parameter.max():
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    return settled(model), torch.randn(1, *size, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("name", _CONVOLUTIONS)
def test_networks(name: str) -> None:
    model, x = _network(name)
    captured = capture(model, (x,))
    module = captured.graph_module
    expected = cases(model, x)
    assert difference(expected, captured) < 1e-12
    for change in (normalize, fold, canonicalize):
        change(module)
        assert difference(expected, captured) < 1e-12
    check_values(module, x)
    found = operators(module)
    assert found["convolution"] == _CONVOLUTIONS[name]
    left = {"batch_norm", "dropout", "view", "flatten", "transpose", "chunk", "getitem", "clone"}
    assert not left & set(found)


@pytest.mark.slow
def test_a_network_whose_shapes_depend_on_data() -> None:
    model, x = _network("torchvision:ssdlite320_mobilenet_v3_large")
    with pytest.raises(CaptureError, match="data") as raised:
        capture(model, (x,))
    assert "\n" not in str(raised.value)
