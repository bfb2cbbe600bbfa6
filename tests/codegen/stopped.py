"""Makes many short calls with phases of one part and of two while others take the CPUs for moments.

``python -m tests.codegen.stopped CALLS``. A thread is then stopped at every place now and then,
also between any two changes of what threads share.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import torch

from dnnsep.codegen.shared import Entry
from dnnsep.codegen.team import Work
from tests.codegen.spinning import spinning

_OTHER = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
while True:
    time.sleep(0.0001)
"""


def main(calls: int) -> None:
    torch.set_num_threads(2)
    kernel = spinning(300)
    entry = Entry(kernel.address, 0)
    place = ctypes.addressof(entry)
    sizes = [2, 1, 1, 1, 2, 1, 1, 1] * 8
    work = Work([[[(place, part)] for part in range(size)] for size in sizes], 2)
    others = [
        subprocess.Popen([sys.executable, "-c", _OTHER, str(cpu)], stdout=subprocess.DEVNULL)
        for cpu in sorted(os.sched_getaffinity(0))[:2] * 2
    ]
    try:
        for _ in range(calls):
            work.run()
    finally:
        for other in others:
            other.kill()
            other.wait()


if __name__ == "__main__":
    main(int(sys.argv[1]))
