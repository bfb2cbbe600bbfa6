"""When calls go with fewer threads: how long their callers had no CPU, as a call's end sees it."""

from __future__ import annotations

import ctypes
import time

from llvmlite import ir

from dnnsep.codegen import workcode
from dnnsep.codegen.lang.emit import I64, POINTER
from dnnsep.codegen.lang.jit import Function, machine_code
from dnnsep.codegen.shared import Cores, SharedCode

_CLOCKS = time.CLOCK_MONOTONIC, time.CLOCK_THREAD_CPUTIME_ID


def _judge() -> Function:
    """Returns ``judge(cores, region)``, which looks at the clocks of a call that has just ended."""
    module = ir.Module()
    module.triple = ""
    shared = SharedCode(module)
    code = shared.begin("judge", [POINTER, POINTER], internal=False)
    cores, region = code.arguments
    workcode._judge(shared, cores, region, I64(4_000_000))
    code.end()
    return Function(machine_code(module), "judge", [ctypes.c_void_p, ctypes.c_void_p])


def test_one_bad_call_says_little_and_many_say_that_others_run_here() -> None:
    """Calls of 2 ms of which some took 3 ms more, in which the caller had no CPU."""
    judge, cores = _judge(), Cores()

    def go_with_fewer(*lost_ms: int) -> bool:
        """Returns whether one of such calls has the next ones go with fewer threads."""
        before = cores.until
        for lost in lost_ms:
            wall, cpu = (time.clock_gettime_ns(c) for c in _CLOCKS)
            region = workcode._Region(wall=wall - (2 + lost) * 1_000_000, cpu=cpu - 2_000_000)
            judge(ctypes.addressof(cores), ctypes.addressof(region))
        return bool(cores.until > before)

    often = [0] * 40 + [3]
    assert not go_with_fewer(3)
    assert not go_with_fewer(*often)
    assert not go_with_fewer(*often)
    assert go_with_fewer(*[3] * 20)
    assert go_with_fewer(3)  # as soon as all threads are tried again
    assert not go_with_fewer(*often)
