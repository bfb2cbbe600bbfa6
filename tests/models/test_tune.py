"""Tuning a block: what most measurements of its cascades say is kept, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dnnsep.block import Block
from dnnsep.codegen.cascade import choose
from dnnsep.codegen.cascade.choose import Verdict
from dnnsep.codegen.cascade.step import Cut
from dnnsep.codegen.lang.isa import this_isa
from dnnsep.host import cachefiles
from dnnsep.host.machine import cpus_for
from dnnsep.models import tune as tuning
from dnnsep.models.tune import agreed, tune

_BLOCK = Block.parse("mbconv_mb1ic8ex24oc8ih14kh3sh1_act:relu6")
_FAST, _OTHER, _SLOW = (
    Verdict(Cut(1, 2, 4096), 1.5, 6e-5),
    Verdict(Cut(1, 4, 4096), 1.2, 4e-5),
    Verdict(None, 0.9, 5e-5),
)


@pytest.fixture
def measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives each measurement a verdict."""
    _ = this_isa()
    monkeypatch.setenv(cachefiles.VARIABLE, str(tmp_path))
    monkeypatch.setenv("DNNSEP_TUNE", "0")
    monkeypatch.setattr(choose, "_verdicts", {})
    monkeypatch.setattr(choose, "is_worth_a_look", lambda *_: True)
    monkeypatch.setattr(tuning, "keep_on", lambda cpus: True)

    def set_verdicts(verdicts: Sequence[Verdict]) -> None:
        left = list(verdicts)

        monkeypatch.setattr(choose, "measure", lambda *_: (left.pop(0), True))

    return set_verdicts


def _tune() -> tuning.TunedCascade:
    (found,) = tune(_BLOCK, cpus_for(torch.get_num_threads()), lambda text: None)
    return found


def test_what_most_measurements_say_is_kept(measuring: Callable[..., None]) -> None:
    measuring([_FAST] * 4 + [_OTHER] * 2 + [_SLOW])
    found = _tune()
    assert (found.taken, found.before, found.agreeing, found.kept) == (True, False, 6, True)
    assert found.layer_by_layer_us == pytest.approx(60)
    assert found.cascade_us == pytest.approx(40)
    measuring([_SLOW] * 7)
    found = _tune()
    assert (found.taken, found.before, found.kept) == (False, True, True)


def test_what_was_known_stays_where_measurements_differ(measuring: Callable[..., None]) -> None:
    measuring([_FAST] * 7)
    assert _tune().taken
    measuring([_FAST] * 3 + [_SLOW] * 4)
    found = _tune()
    assert (found.taken, found.before, found.agreeing, found.kept) == (True, True, 4, False)


def test_the_cut_that_most_of_those_with_a_cascade_have() -> None:
    verdict, agreeing = agreed([_OTHER, _FAST, _SLOW, _FAST])
    assert verdict == replace(_FAST, in_network=True)
    assert agreeing == 3
    verdict, agreeing = agreed([_SLOW, _FAST])  # a tie is none
    assert (verdict.cut, agreeing) == (None, 1)
