"""How threads share work: every part once, phases in order, and nobody waits for who has none."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random

import numpy as np
import pytest
import torch

from dnnsep.codegen.shared import Entry
from dnnsep.codegen.task import KERNEL
from dnnsep.codegen.team import Work, cores
from dnnsep.host.quota import quota
from tests.codegen.spinning import spinning

_THREADS = 2


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(_THREADS)
    cores().start_anew()  # what an earlier test's calls were held up by
    cores().values.cpus = _THREADS
    yield
    torch.set_num_threads(before)
    cores().start_anew()


class Noted:
    """Work whose kernel is a function of Python: it notes the step and the part, the thread, and
    the scratch memory of each, after ``do(step, part)``. Each phase has as many steps as a chain
    has links."""

    def __init__(
        self,
        sizes: Sequence[int],
        threads: int = _THREADS,
        do: Callable[[int, int], None] = lambda step, part: None,
        links: int = 1,
    ) -> None:
        self.done: list[tuple[int, int, int, int]] = []

        def kernel(task: int | None, part: int, scratch: int | None) -> None:
            do(task or 0, part)
            self.done.append((task or 0, part, threading.get_native_id(), scratch or 0))

        self._kernel = ctypes.CFUNCTYPE(None, *KERNEL)(kernel)
        address = ctypes.cast(self._kernel, ctypes.c_void_p).value
        self._entries = (Entry * (len(sizes) * links))(
            *(Entry(address, step) for step in range(len(sizes) * links))
        )
        first, size = ctypes.addressof(self._entries), ctypes.sizeof(Entry)
        phases = [
            [
                [(first + (n * links + link) * size, part) for link in range(links)]
                for part in range(parts)
            ]
            for n, parts in enumerate(sizes)
        ]
        self.work = Work(phases, threads, scratch=1 << 20, thread_bytes=1 << 10)

    def run(self) -> list[tuple[int, int, int, int]]:
        self.done.clear()
        self.work.run()
        return list(self.done)

    @property
    def threads(self) -> set[int]:
        return {thread for *_, thread, _ in self.done}


def test_every_part_once_and_phases_in_order() -> None:
    rng = Random(0)
    for _ in range(40):
        sizes = [rng.randint(1, 6) for _ in range(rng.randint(1, 8))]
        noted = Noted(sizes, threads=rng.randint(1, 4))
        for _ in range(10):
            done = noted.run()
            assert sorted(one[:2] for one in done) == [
                (phase, part) for phase, parts in enumerate(sizes) for part in range(parts)
            ]
            assert [one[0] for one in done] == sorted(one[0] for one in done)


def test_a_chain_is_done_in_order_by_one_thread() -> None:
    rng, links = Random(0), 3
    for _ in range(20):
        sizes = [rng.randint(1, 6) for _ in range(rng.randint(1, 8))]
        noted = Noted(sizes, threads=rng.randint(1, 4), links=links)
        for _ in range(10):
            done = noted.run()
            chains: dict[tuple[int, int], list[tuple[int, int]]] = {}
            for step, part, thread, _ in done:
                phase, link = divmod(step, links)
                chains.setdefault((phase, part), []).append((link, thread))
            assert sorted(chains) == [
                (n, part) for n, size in enumerate(sizes) for part in range(size)
            ]
            for chain in chains.values():
                assert [link for link, _ in chain] == list(range(links))
                assert len({thread for _, thread in chain}) == 1
            order = [one[0] // links for one in done]
            assert order == sorted(order)


def test_threads_that_work_at_once_have_memory_of_their_own() -> None:
    noted = Noted([4] * 20, do=lambda phase, part: time.sleep(0.0005))
    noted.run()
    assert len(noted.threads) == 2
    of_thread = {(thread, scratch) for *_, thread, scratch in noted.done}
    assert len(of_thread) == 2
    assert {scratch for _, scratch in of_thread} == {1 << 20, (1 << 20) + (1 << 10)}


def test_a_thread_that_is_put_aside_holds_up_only_what_it_has_claimed() -> None:
    caller = threading.get_native_id()
    held: list[int] = []

    def do(phase: int, part: int) -> None:
        if threading.get_native_id() != caller and not held:
            held.append(part)
            time.sleep(0.3)

    noted = Noted([8], do=do)
    while not held:  # until a helper came in time for a part
        done = noted.run()
    assert done[-1][1] == held[0]
    assert sum(thread == caller for *_, thread, _ in done) == 7


_MOMENTS = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
while True:
    time.sleep(0.001)
    end = time.perf_counter() + 2e-5
    while time.perf_counter() < end:
        pass
"""


def test_a_thread_that_loses_its_cpu_for_moments_stays() -> None:
    """As every thread does now and then in a long call: without it the others would do all the
    rest."""
    cpus = sorted(os.sched_getaffinity(0))[:_THREADS]
    if len(cpus) < _THREADS:
        return
    spin = spinning(8_000_000, counts=True)  # cycles: some milliseconds
    counts = np.zeros((_THREADS, 8), np.int64)
    entry = Entry(spin.address, 0)
    phases = [[[(ctypes.addressof(entry), part)] for part in range(_THREADS)]] * 20
    work = Work(phases, _THREADS, scratch=counts.ctypes.data, thread_bytes=counts.strides[0])
    others = [subprocess.Popen([sys.executable, "-c", _MOMENTS, str(cpu)]) for cpu in cpus]
    try:
        time.sleep(0.3)  # until they run
        most = 0
        for _ in range(40):
            counts[:] = 0
            work.run()
            most = max(most, int(counts[1, 0]))
            if most > 5:
                break
        assert most > 5
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_no_call_hangs_where_threads_are_stopped_at_any_place() -> None:
    """One that was opening a phase once took back what the next one had opened meanwhile."""
    command = [sys.executable, "-m", "tests.codegen.stopped", "20000"]
    # In a group of its own, with the processes that it starts: a call that hangs ends by no signal
    # that Python handles.
    run = subprocess.Popen(command, start_new_session=True)
    try:
        assert run.wait(timeout=120) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)


def test_calls_that_were_held_up_are_followed_by_some_with_fewer_threads() -> None:
    caller = threading.get_native_id()

    def do(phase: int, part: int) -> None:
        time.sleep(0.005 if threading.get_native_id() != caller else 0.0001)

    noted, known = Noted([2] * 10, do=do), cores().values
    while not known.time:
        noted.run()
    assert known.fewer == 1
    known.until = 1 << 62  # a machine that is held up itself may be past the time
    for _ in range(3):
        noted.run()
        assert noted.threads == {caller}
    known.until = 0
    end = time.monotonic() + 30
    while noted.threads == {caller} and time.monotonic() < end:
        noted.run()
    assert len(noted.threads) == 2


def test_threads_are_on_different_cpus() -> None:
    """Also where Linux, or whoever it is, puts them on the same one."""
    if len(os.sched_getaffinity(0)) == 1:
        return
    caller = threading.get_native_id()
    cpus: dict[int, int] = {}

    def do(step: int, part: int) -> None:
        # Where each began: after a sleep Linux may wake the one on the CPU of the other.
        cpus.setdefault(threading.get_native_id(), _cpu())
        time.sleep(0.0002)

    noted = Noted([2] * 10, do=do)
    while noted.threads <= {caller}:
        noted.run()
    (helper,) = noted.threads - {caller}
    allowed = os.sched_getaffinity(helper)
    os.sched_setaffinity(helper, {_cpu()})
    os.sched_setaffinity(helper, allowed)
    is_apart, end = False, time.monotonic() + 30
    while not is_apart and time.monotonic() < end:  # Linux may move the caller meanwhile
        cpus.clear()
        noted.run()
        is_apart = len(set(cpus.values())) == 2
    assert is_apart
    assert os.sched_getaffinity(helper) == allowed


def _cpu() -> int:
    return int(ctypes.CDLL(None).sched_getcpu())


@pytest.mark.parametrize(
    "binding", [{}, {"OMP_PROC_BIND": "true"}, {"GOMP_CPU_AFFINITY": "0-1023"}]
)
def test_a_thread_that_openmp_bound_to_a_cpu_has_help(binding: dict[str, str]) -> None:
    code = "from dnnsep.codegen.team import cores; print(cores().values.cpus)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **binding},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == max(
        1, min(len(os.sched_getaffinity(0)), math.ceil(min(quota(), 4096)))
    )


def test_callers_share_the_cpus() -> None:
    """Each of as many callers as CPUs works by itself."""
    count = _THREADS
    start = threading.Barrier(count)

    def call(_: int) -> bool:
        start.wait()
        noted = Noted([4] * 20, do=lambda phase, part: time.sleep(0.0005))
        noted.run()
        return len(noted.threads) == 1

    with ThreadPoolExecutor(count) as pool:
        alone = list(pool.map(call, range(count)))
    assert sum(alone) >= count - 1  # the first one may have begun before there was another


def test_a_call_uses_no_more_threads_than_torch_allows() -> None:
    torch.set_num_threads(1)
    noted = Noted([4] * 10, threads=4, do=lambda phase, part: time.sleep(0.0002))
    for _ in range(5):
        noted.run()
        assert noted.threads == {threading.get_native_id()}


def test_several_callers_at_once() -> None:
    """All that each asks for is done, in the memory of its own call."""

    def call(number: int) -> bool:
        noted = Noted([3, 1, 5])
        expected = [(0, 0), (0, 1), (0, 2), (1, 0), *((2, part) for part in range(5))]
        return all(sorted(u[:2] for u in noted.run()) == expected for _ in range(100))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(8)))
