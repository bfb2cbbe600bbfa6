"""How a worker's end is told, and that neither it nor what it started outlives the sweep."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dnnsep.sweep.client import Client, WorkerError, WorkerKilledError

_WORKER = "tests.sweep.fakeworker"
_SECONDS = 30


@pytest.fixture
def client() -> Iterator[Client]:
    with Client("fake", worker=_WORKER, timeout=_SECONDS) as client:
        yield client


def _soon(holds: Callable[[], bool]) -> bool:
    """Returns whether something comes to hold."""
    deadline = time.monotonic() + _SECONDS
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _runs(pid: int) -> bool:
    """Returns whether a process runs; one that only waits to be waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT"])
def test_a_signal_from_outside_tells_nothing_of_the_backend(client: Client, name: str) -> None:
    with pytest.raises(WorkerKilledError, match=f"worker killed by {name}"):
        client.ask("kill", number=int(signal.Signals[name]))
    assert not client.alive


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGILL", "SIGFPE", "SIGBUS"])
def test_a_crash_is_the_backends(client: Client, name: str) -> None:
    with pytest.raises(WorkerError, match=f"worker killed by {name}") as raised:
        client.ask("kill", number=int(signal.Signals[name]))
    assert not isinstance(raised.value, WorkerKilledError)


def test_a_signal_without_a_name_is_told_by_its_number(client: Client) -> None:
    number = signal.SIGRTMIN + 5
    with pytest.raises(WorkerError, match=f"worker killed by signal {number}"):
        client.ask("kill", number=number)


def test_a_worker_that_hangs_is_a_finding(tmp_path: Path) -> None:
    with Client("fake", worker=_WORKER, timeout=4) as client:
        with pytest.raises(WorkerError, match="hung: no answer within 4 s") as raised:
            client.ask("hang", path=str(tmp_path / "pid"))
        assert not isinstance(raised.value, WorkerKilledError)
        assert not client.alive


@pytest.mark.parametrize("end", ["close", "kill"])
def test_what_a_worker_started_ends_with_it(client: Client, end: str) -> None:
    pid = client.ask("spawn")["pid"]
    assert _runs(pid)
    if end == "close":
        client.close()
    else:
        with pytest.raises(WorkerKilledError):
            client.ask("kill", number=int(signal.SIGKILL))
    assert _soon(lambda: not _runs(pid))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has it")
def test_a_worker_amid_its_work_ends_with_a_killed_sweep(tmp_path: Path) -> None:
    """It reads no request that would tell it that the sweep is gone."""
    path = tmp_path / "pid"
    code = (
        "import sys; from dnnsep.sweep.client import Client\n"
        f"Client('fake', worker={_WORKER!r}).ask('hang', path=sys.argv[1])"
    )
    sweep = subprocess.Popen([sys.executable, "-c", code, str(path)])
    assert _soon(path.exists)
    worker = int(path.read_text())
    assert _runs(worker)
    sweep.kill()
    sweep.wait()
    assert _soon(lambda: not _runs(worker))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has it")
def test_a_worker_whose_sweep_is_killed_as_it_starts_does_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    code = (
        "import json, os, signal, sys; from dnnsep.sweep.client import Client\n"
        f"client = Client('fake', worker={_WORKER!r})\n"
        "request = json.dumps({'do': 'hang', 'path': sys.argv[1]}) + '\\n'\n"
        "client._process.stdin.write(request.encode()); client._process.stdin.flush()\n"
        "print(client.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    sweep = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert sweep.returncode == -signal.SIGKILL
    worker = int(sweep.stdout)
    try:
        assert _soon(lambda: not _runs(worker) or path.exists())
        assert not path.exists()
    finally:
        if _runs(worker):
            os.kill(worker, signal.SIGKILL)
