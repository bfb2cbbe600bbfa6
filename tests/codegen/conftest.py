"""The CPUs and the ways of multiplying that generated code is tested for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from unittest.mock import patch

import pytest

from dnnsep.codegen.dots import DOTS, Dot
from dnnsep.codegen.lang.isa import CAP_VARIABLE, TILES_VARIABLE, Isa, this_isa
from dnnsep.dtypes import DTYPES

# What the environment says of each kind of vectors, and of the tile unit in software on some.
SETTINGS = tuple(
    {CAP_VARIABLE: cap, TILES_VARIABLE: unit}
    for unit, caps in {
        "cpu": ("avx2", "avx512", "avx512_bf16", "avx512_amx"),
        "software": ("avx2", "avx512_bf16"),
    }.items()
    for cap in caps
)


def _isa(setting: dict[str, str]) -> Isa:
    with patch.dict(os.environ, setting):
        return this_isa()


# On a CPU that has less two settings come to the same.
SETTING_OF = {_isa(setting): setting for setting in reversed(SETTINGS)}
# Products of bytes are on further kinds of vectors other ones.
_OF_BYTES = tuple(
    {CAP_VARIABLE: cap, TILES_VARIABLE: "cpu"} for cap in ("avx2_vnni", "avx512_vnni")
)
BYTE_SETTING_OF = {**{_isa(setting): setting for setting in _OF_BYTES}, **SETTING_OF}
ISAS = tuple(reversed(SETTING_OF))


@dataclass(frozen=True)
class Way:
    """A way of multiplying on vectors that can run it; prints itself as a test's id."""

    isa: Isa
    dot: Dot

    def __str__(self) -> str:
        return f"{self.isa.name}-{self.dot.name}"


# Those of f32 and of bf16; bytes have tests of their own, test_bytes.py.
WAYS = tuple(
    Way(isa, dot)
    for isa in ISAS
    for dot in DOTS
    if all(map(isa.has, dot.needs)) and (dot.in_tiles or not isa.software_tiles)
    if dot.dtype in DTYPES
)
VECTOR_WAYS = tuple(way for way in WAYS if not way.dot.in_tiles)


@pytest.fixture(params=ISAS, ids=lambda isa: isa.name)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Isa:
    """Returns each kind of vectors that this CPU has, and a tile unit in software on some, which
    ``this_isa`` then returns too."""
    found: Isa = request.param
    for variable, value in SETTING_OF[found].items():
        monkeypatch.setenv(variable, value)
    return found


@pytest.fixture(params=WAYS, ids=str)
def way(request: pytest.FixtureRequest) -> Way:
    """Returns each way of multiplying on each kind of vectors."""
    found: Way = request.param
    return found


# Tests on kinds of vectors between the least and the best ones, and on tile units in software but
# the first, are slow ones.
_SOFTWARE = [isa for isa in ISAS if isa.software_tiles]
_CPUS = [isa for isa in BYTE_SETTING_OF if not isa.software_tiles]
_ALWAYS = {_isa(SETTINGS[0]), _isa({}), *_SOFTWARE[:1]}
LATER = {*_SOFTWARE, *_CPUS} - _ALWAYS


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests on those as slow."""
    for item in items:
        spec = getattr(item, "callspec", None)
        for value in spec.params.values() if spec is not None else ():
            if _isa_of(value) in LATER:
                item.add_marker(pytest.mark.slow)


def _isa_of(value: object) -> Isa | None:
    """Returns the kind of vectors that a test's parameter is, has, or sets."""
    if isinstance(value, dict) and CAP_VARIABLE in value:
        return _isa(value)
    found = value if isinstance(value, Isa) else getattr(value, "isa", None)
    return found if isinstance(found, Isa) else None
