from __future__ import annotations

import platform

import pytest
import torch

from dnnsep.activations import ACTIVATIONS
from dnnsep.backends import BACKENDS, get_backend, versions
from dnnsep.backends.tensors import TORCH_ACTIVATIONS


@pytest.mark.parametrize(
    "text", [*BACKENDS, "ipex:pointwise=inner_product", "ipex:pointwise=conv1x1"]
)
def test_a_backend_is_its_name(text: str) -> None:
    assert get_backend(text).name == text
    assert get_backend(get_backend(text).name) == get_backend(text)


def test_defaults_are_not_part_of_the_name() -> None:
    assert get_backend("ipex:pointwise=matmul").name == "ipex"
    assert get_backend("ipex", pointwise="conv1x1").name == "ipex:pointwise=conv1x1"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("mkl", "backend 'mkl': must be one of ipex, onednn"),
        ("ipex:pointwise=gemm", "pointwise='gemm': must be one of matmul, inner_product, conv1x1"),
        ("onednn:pointwise=matmul", r"unknown option 'pointwise' \(it has: none\)"),
    ],
)
def test_unknown_names_and_options(text: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        get_backend(text)


@pytest.mark.parametrize(
    ("installed", "ok", "reason"),
    [
        ({"torch": "2.8.0", "intel-extension-for-pytorch": "2.8.0"}, True, "2.8.0 on torch 2.8.0"),
        ({"torch": "2.8.0+cpu", "intel-extension-for-pytorch": "2.8.10+xpu"}, True, "2.8.10"),
        ({"torch": "2.13.0", "intel-extension-for-pytorch": "2.8.0"}, False, "needs torch 2.8.*"),
        ({"torch": "2.13.0"}, False, "intel-extension-for-pytorch is not installed"),
        ({"torch": "2.7.1"}, False, "torch 2.7.1 is installed, 2.8 or later is needed"),
        ({}, False, "torch is not installed"),
    ],
)
def test_ipex_is_judged_by_versions_alone(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], ok: bool, reason: str
) -> None:
    monkeypatch.setattr(versions, "installed_version", installed.get)
    verdict = versions.ipex_verdict()
    assert verdict.ok == ok
    assert reason in verdict.reason


def test_other_cpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    for name in ("ipex", "onednn"):
        assert "aarch64 CPU; an x86-64 one is needed" in get_backend(name).available().reason
    assert get_backend("eager").available()


def test_torch_has_every_activation() -> None:
    assert list(TORCH_ACTIVATIONS) == list(ACTIVATIONS)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_forms_of_an_activation_are_one_function(name: str) -> None:
    x = torch.linspace(-8, 8, 101)
    expected = torch.from_numpy(ACTIVATIONS[name].naive(x.double().numpy())).float()
    activation, y = TORCH_ACTIVATIONS[name], x.clone()
    for found in (activation.function(x), activation.module()(x), activation.in_place(y)):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
