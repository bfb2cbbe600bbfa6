"""Cascades of kernels that are told their sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dnnsep
from dnnsep.codegen.cascade import choose
from dnnsep.codegen.cascade.step import CascadeStep, Cut
from dnnsep.codegen.lang.isa import this_isa
from dnnsep.graph.template import Template

_THREADS = 2


class _Block(nn.Module):
    """Expanded, depthwise, and projected, with or without squeeze and excitation in between."""

    def __init__(self, channels: int, expanded: int, squeezed: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, expanded, 1)
        self.depthwise = nn.Conv2d(expanded, expanded, 3, padding=1, stride=2, groups=expanded)
        self.squeeze = nn.Conv2d(expanded, squeezed, 1) if squeezed else None
        self.excite = nn.Conv2d(squeezed, expanded, 1) if squeezed else None
        self.project = nn.Conv2d(expanded, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu(self.depthwise(nn.functional.silu(self.expand(x))))
        if self.squeeze is not None and self.excite is not None:
            scale = nn.functional.silu(self.squeeze(y.mean((2, 3), keepdim=True)))
            y = y * torch.sigmoid(self.excite(scale))
        projected: Tensor = self.project(y)
        return projected


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has each cascade be faster than its steps, and the longer the more."""
    torch.set_num_threads(_THREADS)
    _ = this_isa()  # before what is known is replaced

    def verdict(key: str) -> choose.Verdict:
        members = key.count("{")  # what each one reads
        return choose.Verdict(Cut(_THREADS, 40, 4096), 1.5, members**2, in_network=True)

    monkeypatch.setattr(choose, "is_worth_a_look", lambda *_: True)
    monkeypatch.setattr(choose, "_known", verdict)


def _cascades(model: nn.Module, size: tuple[int, int, int]) -> list[int]:
    """Returns how many kernels each cascade has that a model runs for images of a size."""
    forward: Any = model.__dict__["forward"]
    template = forward.prepared[0].lowered.opened
    assert isinstance(template, Template), template
    used = template.used(template.grids.of(*size), _THREADS)
    return [len(one.step.members) for one in used if isinstance(one.step, CascadeStep)]


@pytest.mark.parametrize("squeezed", [0, 5])
def test_the_same_to_the_bit_where_there_is_as_much_between(squeezed: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(_Block(16, 48, squeezed), nn.ReLU()).eval()
    x_format = torch.channels_last
    x = torch.randn(2, 16, 20, 18).contiguous(memory_format=x_format)
    plain = dnnsep.optimize(model, x, tune=False, cascades=False)
    cascaded = dnnsep.optimize(model, x, tune=False)
    members = [6] if squeezed else [2]
    assert _cascades(cascaded, (2, 20, 18)) == members
    assert _cascades(cascaded, (3, 33, 21)) == members
    assert _cascades(cascaded, (2, 9, 9)) == []  # less between them than where it was measured
    # Of one image two threads would have to share the pixels that are squeezed.
    assert _cascades(cascaded, (1, 64, 64)) == ([] if squeezed else members)
    dnnsep.save(cascaded, tmp_path / "model.dnnsep")
    loaded = dnnsep.load(tmp_path / "model.dnnsep", tune=False)
    with torch.inference_mode():
        for size in ((2, 20, 18), (3, 33, 21), (2, 9, 9), (1, 64, 64), (5, 20, 19), (2, 41, 3)):
            other = torch.randn(size[0], 16, *size[1:]).contiguous(memory_format=x_format)
            expected = plain(other)
            assert torch.equal(expected, cascaded(other)), size
            assert torch.equal(expected, loaded(other)), size


def test_without_cascades_where_there_are_none_for_one_size() -> None:
    model, x = _Block(16, 48, 0).eval(), torch.randn(2, 16, 20, 18)
    plain = dnnsep.optimize(model, x, tune=False, cascades=False)
    assert _cascades(plain, (3, 33, 21)) == []
