"""Networks with cascades give what they give without, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor, nn

import dnnsep
from dnnsep.codegen.cascade import choose
from dnnsep.codegen.cascade.step import Cut
from dnnsep.codegen.lang.isa import this_isa
from dnnsep.graph.report import Report


class _Block(nn.Module):
    """An inverted residual block: expanded, depthwise, projected, and the input added."""

    def __init__(self, channels: int, expanded: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, expanded, 1)
        self.depthwise = nn.Conv2d(expanded, expanded, 3, padding=1, groups=expanded)
        self.project = nn.Conv2d(expanded, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu6(self.depthwise(nn.functional.relu6(self.expand(x))))
        projected: Tensor = self.project(y)
        return projected + x


def _model(dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(_Block(16, 48), _Block(16, 40)).eval().to(dtype)
    return model, torch.randn(2, 16, 19, 17).to(dtype)


def _report(model: nn.Module) -> Report:
    report: Any = model.dnnsep_report
    assert isinstance(report, Report)
    return report


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_to_the_bit(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    _ = this_isa()
    model, x = _model(dtype)
    plain = dnnsep.optimize(model, x, tune=False)
    monkeypatch.setattr(choose, "is_worth_a_look", lambda *_: True)
    always = choose.Verdict(Cut(torch.get_num_threads(), 2, 4096), 1.5, 1.0, in_network=True)
    monkeypatch.setattr(choose, "_known", lambda _: always)
    cascaded = dnnsep.optimize(model, x, tune=False)
    report = _report(cascaded)
    assert list(report.cascades.values()) == [1.5, 1.5]
    assert "cascades: 2" in str(report)
    assert not _report(plain).cascades
    with torch.inference_mode():
        assert torch.equal(plain(x), cascaded(x))
        other = torch.randn(1, 16, 31, 12).to(dtype)  # of another size: layer by layer
        assert torch.equal(plain(other), cascaded(other))


def test_layer_by_layer_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _ = this_isa()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))  # where a user's key is
    model, x = _model(torch.float32)
    monkeypatch.setattr(choose, "is_worth_a_look", lambda *_: True)
    always = choose.Verdict(Cut(torch.get_num_threads(), 2, 4096), 1.5, 1.0, in_network=True)
    monkeypatch.setattr(choose, "_known", lambda _: always)
    assert _report(dnnsep.optimize(model, x, tune=False)).cascades
    plain = dnnsep.optimize(model, x, tune=False, cascades=False)
    assert not _report(plain).cascades
    dnnsep.save(plain, tmp_path / "plain.dnnsep")

    def asked(*_: object) -> NoReturn:
        raise AssertionError("a cascade was looked at")

    monkeypatch.setattr(choose, "verdict_on", asked)
    loaded = dnnsep.load(tmp_path / "plain.dnnsep", tune=False)
    with torch.inference_mode():
        assert torch.equal(plain(x), loaded(x))


def test_small_layers_are_left_alone() -> None:
    model, x = _model(torch.float32)
    assert not _report(dnnsep.optimize(model, x)).cascades
