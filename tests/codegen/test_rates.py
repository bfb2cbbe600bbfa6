"""Rates of the ways of multiplying, and what is chosen by them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dnnsep.codegen import layer, rates
from dnnsep.codegen.dots import DOTS
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.lang.jit import Target
from dnnsep.codegen.layer import layer_of
from dnnsep.codegen.rates import FEW, MANY, Rate, Rates
from dnnsep.host import cachefiles
from dnnsep.problem import Problem
from tests.codegen.conftest import ISAS

BF16 = next(isa for isa in reversed(ISAS) if not isa.software_tiles)
# Any CPU's vectors with all ways of multiplying: nothing is run.
ANY = replace(BF16, name="any", lanes=16, registers=32, features=("avx512bf16", "amx-bf16"))
LARGE = Problem.parse("ic256oc256ih28kh3ph1_bf16")


def _known(isa: Isa, **slowness: float) -> Rates:
    """Returns rates of a CPU where each product takes as long as Dot.cycles says, a cycle a
    nanosecond, or so many times as long."""

    def rate(name: str) -> Rate:
        (dot,) = (dot for dot in DOTS if dot.name == name)
        pixels = dot.pixels(isa, dot.vectors)
        few, many = (
            slowness.get(name, 1.0) * dot.cycles(isa, pixels, dot.vectors, depth)
            for depth in (FEW, MANY)
        )
        return Rate(few, many, pixels * dot.vectors * isa.lanes)

    return Rates(isa, {dot.name: rate(dot.name) for dot in DOTS}, {"L2": 1, "L3": 2, "DRAM": 4})


@pytest.fixture(autouse=True)
def _choose_again() -> Iterator[None]:
    layer_of.cache_clear()
    yield
    layer_of.cache_clear()


def test_slowness_is_measured_against_f32() -> None:
    known = _known(ANY, fma_f32=2.0, dp_bf16=6.0)
    assert known.cycle_ns == pytest.approx(2)
    by_name = {dot.name: dot for dot in DOTS}
    assert known.slowness(by_name["fma_f32"], 64) == 1
    for depth in (32, 64, 1024):
        assert known.slowness(by_name["dp_bf16"], depth) == pytest.approx(3, rel=0.02)
        assert known.slowness(by_name["widened_bf16"], depth) == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize(
    ("slow", "chosen"),
    [
        ({}, "amx_bf16"),
        ({"amx_bf16": 20.0}, "dp_bf16"),
        # As on a CPU whose vdpbf16ps has half the rate of its f32 multiply-add.
        ({"amx_bf16": 20.0, "dp_bf16": 4.0}, "widened_bf16"),
    ],
    ids=["amx", "pairs", "widened"],
)
def test_the_fastest_way_is_chosen(
    slow: dict[str, float], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer, "rates", lambda isa: _known(isa, **slow))
    assert layer_of(LARGE, ANY).dot.name == chosen
    assert layer_of(replace(LARGE, dtype="f32"), ANY).dot.name == "fma_f32"


def test_tiles_are_not_chosen_where_they_do_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a product was measured to take long beside its steps."""
    known = _known(ANY)
    tiles = known.dots["amx_bf16"]
    beside = 8 * tiles.few_ns
    slower = replace(tiles, few_ns=tiles.few_ns + beside, many_ns=tiles.many_ns + beside)
    known.dots["amx_bf16"] = slower
    monkeypatch.setattr(layer, "rates", lambda isa: known)
    assert layer_of(LARGE, ANY).dot.name == "amx_bf16"
    assert layer_of(Problem.parse("ic32oc16ih56kh3ph1_bf16"), ANY).dot.name == "dp_bf16"
    alone = Problem.parse("g64ic64oc64ih56kh3ph1_bf16")
    assert layer_of(alone, ANY).dot.name == "dp_bf16"  # it multiplies no tile


def test_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cachefiles.VARIABLE, str(tmp_path))
    rates.rates.cache_clear()
    found = rates.rates(BF16)
    assert set(found.dots) == {dot.name for dot in DOTS if all(map(BF16.has, dot.needs))}
    assert all(rate.gflops(MANY) > 0.1 for rate in found.dots.values())
    assert all(rate.many_ns >= rate.few_ns for rate in found.dots.values())
    plain = found.dots["fma_f32"]
    assert plain.many_ns > 1.5 * plain.few_ns  # four times as many multiply-adds
    assert set(found.line_ns) == {"L2", "L3", "DRAM"}
    rates.rates.cache_clear()
    monkeypatch.setattr(rates, "_measured_dots", None)  # a call of it would fail
    assert rates.rates(BF16) == found
    rates.rates.cache_clear()


def test_what_is_measured_is_filed_under_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """AVX2 code is for any CPU, but its rates and plans are those of one."""
    avx2 = next(isa for isa in ISAS if isa.name == "avx2")
    assert rates.measured_on(avx2) == rates.measured_on(avx2)
    here = {rates.measured_on(avx2)}
    monkeypatch.setattr(rates, "this_cpu", lambda: Target("znver4", ""))
    here.add(rates.measured_on(avx2))
    monkeypatch.setattr(rates, "sizes_of_caches", lambda: (1, 2, 3))
    here.add(rates.measured_on(avx2))
    assert len(here) == 3


def test_the_unit_in_software_is_chosen_where_it_is_asked_for() -> None:
    for isa in ISAS:
        if isa.software_tiles:
            assert layer_of(LARGE, isa).dot.name == "amx_bf16"
            assert layer_of(LARGE, isa).slowness == 1
