"""Which CPUs an engine's threads end up on."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from dnnsep.host.affinity import keep_on, pin_workers

ALL = sorted(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    keep_on(ALL)


def test_all_threads_are_kept_on_the_cpus() -> None:
    waiting = threading.Event()
    thread = threading.Thread(target=waiting.wait)
    thread.start()
    assert thread.native_id is not None
    assert keep_on(ALL[:1])
    assert os.sched_getaffinity(thread.native_id) == {ALL[0]}
    waiting.set()
    thread.join()


def test_threads_that_work_get_a_cpu_each_and_the_others_stay() -> None:
    cpus = ALL[:2]
    data = bytes(1 << 20)
    started = threading.Barrier(len(cpus))

    def name(_: int) -> int:
        started.wait()
        return threading.get_native_id()

    def work(_: int) -> str:
        return hashlib.sha256(data).hexdigest()  # without the interpreter's lock

    with ThreadPoolExecutor(len(cpus)) as pool:
        workers = list(pool.map(name, cpus))
        pin_workers(cpus, lambda: list(pool.map(work, cpus)))
        pinned = [os.sched_getaffinity(thread) for thread in workers]
    assert sorted(pinned, key=min) == [{cpu} for cpu in cpus]
    assert os.sched_getaffinity(threading.get_native_id()) == set(ALL)
