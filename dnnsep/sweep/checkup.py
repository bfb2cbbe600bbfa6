"""What a machine of a fleet measures of itself before anybody trusts it with a sweep."""

from __future__ import annotations

from dataclasses import dataclass

from dnnsep.host.machine import cpus_for, default_threads
from dnnsep.measure.calibrate import Calibrator
from dnnsep.measure.roofs import Roofs
from dnnsep.measure.warnings import MAX_OTHERS, MAX_STEAL, Load
from dnnsep.sweep.host import Canary


@dataclass(frozen=True)
class Checkup:
    """What came of it: the roofs of one thread a core and the median microseconds of the canary,
    each None where it could not be measured, and what is wrong, empty where nothing is."""

    roofs: Roofs | None
    canary_us: float | None
    doubts: tuple[str, ...]


def check_up() -> Checkup:
    """Measures the roofs of the machine that it runs on, and the canary before and after, in about
    ten seconds."""
    doubts, roofs, canary = [], None, Canary("keep")
    try:
        canary.sing()
        load = Load([])
        try:
            with Calibrator(cpus_for(default_threads())) as calibrator:
                roofs = calibrator.roofs()
        except RuntimeError as error:
            doubts.append(f"no roofs: {error}")
        load.stop()
        canary.sing()
    finally:
        canary.close()
    if load.others > MAX_OTHERS:
        doubts.append(f"other processes used {load.others:.0%} of the CPUs")
    if load.steal > MAX_STEAL:
        doubts.append(f"the hypervisor took {load.steal:.0%} of the CPUs")
    if canary.warning:
        doubts.append(canary.warning)
    return Checkup(roofs, canary.first_us, tuple(doubts))
