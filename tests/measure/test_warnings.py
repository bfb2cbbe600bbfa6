from __future__ import annotations

import subprocess
import sys
import time

import pytest

from dnnsep.measure.stats import Control, Stats
from dnnsep.measure.warnings import Load, ratio_to_other_cache, warnings_of
from tests.sweep.samples import QUIET, rounds_of

STEADY = rounds_of([[100.0, 101.0, 99.0]] * 8)


def _warnings(rounds=STEADY, load=None, denormals=False, ratio=None) -> list[str]:  # type: ignore[no-untyped-def]
    return warnings_of(Stats.of(rounds), rounds, load or Load([]), denormals, ratio, "hot")


def test_a_steady_record_has_no_warning() -> None:
    assert _warnings() == []


@pytest.mark.parametrize(
    ("control", "kind"),
    [
        (Control(busy_us=440, loads_us=500, handover_ns=25), "clock"),
        (Control(busy_us=400, loads_us=500, handover_ns=60), "cores"),
        (Control(busy_us=400, loads_us=650, handover_ns=25), "neighbour"),
    ],
)
def test_a_machine_that_changes(control: Control, kind: str) -> None:
    rounds = [*rounds_of([[100.0]] * 7), *rounds_of([[100.0]], control=control)]
    (warning,) = _warnings(rounds)
    assert warning.startswith(kind + ":")
    later = [*rounds, *rounds_of([[100.0]] * 8, visit=1, control=QUIET)]
    assert _warnings(later) == []  # the visit before has had its own warning


def test_spread_denormals_and_caches() -> None:
    (spread,) = _warnings(rounds_of([[70.0, 100.0, 130.0]] * 8))
    assert spread.startswith("spread: half the interquartile range is 30%")
    assert _warnings(denormals=True)[0].startswith("denormals:")
    assert _warnings(ratio=1.4) == []
    assert _warnings(ratio=1.6) == ["cache: cold takes 1.6 times as long as hot, only hot measured"]
    assert ratio_to_other_cache(100, [300, 200, 100], "hot") == 2
    assert ratio_to_other_cache(100, [50, 50, 80], "cold") == 2


def test_load_of_others_is_seen_and_our_own_is_not() -> None:
    spin = "import time\nend = time.time() + 1.5\nwhile time.time() < end: pass"
    process = subprocess.Popen([sys.executable, "-c", spin])
    ours, others = Load([process.pid]), Load([])
    time.sleep(1)
    ours.stop()
    others.stop()
    process.wait()
    assert others.others > ours.others + 0.2 / 2
    assert _warnings(load=others)[0].startswith("load: other processes used")
