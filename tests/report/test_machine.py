"""What ``dnnsep machine`` shows of a tile unit: its roofs, or why there are none."""

from __future__ import annotations

import json

import pytest
import typer
from rich.console import Console

from dnnsep.cli import look
from dnnsep.codegen.lang import isa
from dnnsep.report.machine import as_text, head
from tests.report.samples import roofs, two_files
from tests.sweep.samples import small_roofs

_FINGERPRINT = two_files()[0][1].fingerprint


def _shown(*, tiles: dict[str, float], no_tiles: str = "") -> str:
    measured = roofs(2).model_copy(update={"tile_gflops": tiles})
    console = Console(width=120)
    with console.capture() as capture:
        console.print(as_text(_FINGERPRINT, [measured], no_tiles))
    return capture.get()


def test_units_are_rows() -> None:
    text = _shown(tiles={"bf16": 7700.0})
    rows = [line.replace("│", " ").split() for line in text.splitlines()]
    assert ["vector", "unit", "f32", "510.0", "63.5"] in rows
    assert ["tile", "unit", "bf16", "7700.0", "957.7"] in rows
    assert "not measured" not in text


def test_a_refusal_is_said_with_its_reason() -> None:
    text = _shown(tiles={}, no_tiles="the system refuses AMX: Operation not supported")
    assert "tile unit not measured: the system refuses AMX: Operation not supported" in text
    assert "tile unit" not in text.replace("tile unit not measured", "")


def test_the_head_of_a_sweep_names_the_units() -> None:
    tiles = small_roofs(2).model_copy(update={"tile_gflops": {"bf16": 1600.0}})
    assert head(tiles) == (
        "roofs, threads 2, 3.00 GHz: vector unit f32 100, vector unit bf16 200, tile unit bf16 1600"
        " GFLOP/s (int8: GOP/s); L2 100, L3 50, DRAM 10 GB/s"
    )


@pytest.mark.parametrize("refusal", ["", "the system refuses AMX: Operation not supported"])
def test_the_command_says_a_refusal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], refusal: str
) -> None:
    monkeypatch.setattr(isa, "why_no_tiles", lambda: refusal)
    monkeypatch.setattr(look, "measure_roofs", small_roofs)
    look.machine([1], as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["no_tiles"] == (refusal or None)
    assert found["roofs"][0]["tile_gflops"] == {}
    look.machine([1])
    assert ("tile unit not measured" in capsys.readouterr().out) == bool(refusal)


def test_a_cap_that_is_unknown_is_bad_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(isa.CAP_VARIABLE, "sse")
    with pytest.raises(typer.Exit) as stopped:
        look.machine([1])
    assert stopped.value.exit_code == 2
    assert "DNNSEP_MAX_ISA='sse': must be one of" in capsys.readouterr().err
