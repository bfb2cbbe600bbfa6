"""The CPUs and the ways of multiplying that generated code is tested for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from unittest.mock import patch

import pytest

from dnnsep.codegen.dots import DOTS, Dot
from dnnsep.codegen.lang.isa import CAP_VARIABLE, Isa, this_isa

CAPS = ("avx2", "avx512", "avx512_bf16")


def _capped(cap: str) -> Isa:
    with patch.dict(os.environ, {CAP_VARIABLE: cap}):
        return this_isa()


# On a CPU that has less two caps come to the same.
ISAS = tuple(dict.fromkeys(_capped(cap) for cap in CAPS))


@dataclass(frozen=True)
class Way:
    """A way of multiplying on vectors that can run it; prints itself as a test's id."""

    isa: Isa
    dot: Dot

    def __str__(self) -> str:
        return f"{self.isa.name}-{self.dot.name}"


WAYS = tuple(Way(isa, dot) for isa in ISAS for dot in DOTS if all(map(isa.has, dot.needs)))


@pytest.fixture(params=ISAS, ids=lambda isa: isa.name)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Isa:
    """Returns each kind of vectors that this CPU has, which ``this_isa`` then returns too."""
    found: Isa = request.param
    monkeypatch.setenv(CAP_VARIABLE, found.name)
    return found


@pytest.fixture(params=WAYS, ids=str)
def way(request: pytest.FixtureRequest) -> Way:
    """Returns each way of multiplying on each kind of vectors."""
    found: Way = request.param
    return found
