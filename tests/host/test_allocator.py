"""Page faults are counted, not timed, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

_COUNT_FAULTS = """
import resource, sys
from dnnsep.host.allocator import keep_pages
if sys.argv[1] == "keep":
    assert keep_pages()
import torch
from dnnsep import Problem, get_backend
from dnnsep.backends.tensors import to_channels_last
from dnnsep.weights import random_data
problem = Problem.parse("mb16ic32oc64ih112kh3ph1")
weights, x = random_data(problem)
run, x = get_backend("onednn").prepare(problem, weights), to_channels_last(x, "f32")
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def faults_of_a_call():
    before = faults()
    run(x)
    return faults() - before
print(sorted(faults_of_a_call() for _ in range(9))[4])
"""


def _faults(allocator: str) -> int:
    """The median of nine calls."""
    command = [sys.executable, "-c", _COUNT_FAULTS, allocator]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_kept_pages_are_not_faulted_in_again() -> None:
    # The output is 51.4 MB, more than glibc ever keeps by itself: 12544 pages of 4 KiB, or 25
    # where the system gives pages of 2 MiB.
    assert _faults("keep") < 5
    assert _faults("system") > 20
