"""Sweeps and their workers killed at random moments: what was measured stays, nothing is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from dnnsep.sweep.results import Key, Record, Results

# So many kills, three in each test; DNNSEP_KILLS asks for another number.
KILLS = int(os.environ.get("DNNSEP_KILLS", "6"))

SHAPES = [f"mb1ic16oc16ih{size}kh3ph1" for size in range(8, 32, 2)]
_AT_ONCE = 3
BACKENDS = ("eager", "onednn")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_MARK = "DNNSEP_TEST_MARK"

# A line of the table that is printed as cases are measured: a backend and its median, after the
# problem or below one. The lines below the table name backends too.
_ROW = re.compile(rf"^(?:mb\S+)? +(?:{'|'.join(BACKENDS)}) +\d+\.\d", re.MULTILINE)


@dataclass
class Sweep:
    """A sweep that is started again and again on one file of results, and what has been seen of
    it: ``finished`` are the records that the file had at some time."""

    folder: Path
    finished: dict[Key, Record] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir(parents=True)
        self.path = self.folder / "r.json"

    def start(self) -> subprocess.Popen[str]:
        options = ["--seconds", "0.15", "-o", str(self.path), "--resume"]
        backends = [word for backend in BACKENDS for word in ("--backend", backend)]
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "dnnsep.cli", "sweep", *SHAPES, *backends, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, _MARK: str(self.folder), "TMPDIR": str(self.temporary)},
        )

    def processes(self) -> list[int]:
        """Returns the ids of the processes that the sweep has, its own among them."""
        mark = f"{_MARK}={self.folder}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def look(self, printed: str) -> tuple[int, int]:
        """Compares the file with what was finished before, and with the rows of figures that the
        sweep has ``printed`` since; returns how many records are lost, and how many doubled."""
        records = Results.load(self.path).records if self.path.exists() else []
        now = {record.key: record for record in records}
        changed = sum(now.get(key) != record for key, record in self.finished.items())
        ok = {key: record for key, record in now.items() if record.status == "ok"}
        unsaved = len(_ROW.findall(printed)) - len(ok)  # a resumed sweep prints all of them
        self.finished |= ok
        return changed + max(0, unsaved), len(records) - len(now)

    def is_complete(self) -> bool:
        return len(self.finished) == len(SHAPES) * len(BACKENDS)


def _ended(sweep: Sweep) -> bool:
    """Returns whether all processes of a sweep are gone, soon."""
    deadline = time.monotonic() + 10
    while sweep.processes():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("block", range(-(-KILLS // _AT_ONCE)))
def test_random_kills(tmp_path: Path, block: int) -> None:
    rng = Random(block)
    kills = {"sweep": 0, "worker": 0}
    lost = doubled = starts = 0
    sweeps = [Sweep(tmp_path / "0")]
    while sum(kills.values()) < _AT_ONCE or not sweeps[-1].is_complete():
        if sweeps[-1].is_complete():
            sweeps.append(Sweep(tmp_path / str(len(sweeps))))
        sweep = sweeps[-1]
        process = sweep.start()
        starts += 1
        if sum(kills.values()) < _AT_ONCE:
            time.sleep(rng.uniform(0.3, 9))
            workers = [number for number in sweep.processes() if number != process.pid]
            if workers and rng.random() < 0.5:
                os.kill(rng.choice(workers), rng.choice(SIGNALS[:2]))
                kills["worker"] += process.poll() is None
            elif process.poll() is None:
                process.send_signal(rng.choice(SIGNALS))
                kills["sweep"] += 1
        output, errors = process.communicate(timeout=120)
        # Python itself says so where Ctrl-C comes while it imports the command.
        assert "Traceback" not in errors or "<frozen importlib" in errors, errors
        assert _ended(sweep)
        missing, twice = sweep.look(output)
        lost, doubled = lost + missing, doubled + twice
    print(f"kills: {kills}, {starts} starts, records lost: {lost}, doubled: {doubled}")
    assert lost == doubled == 0
    for sweep in sweeps:
        assert not list(sweep.temporary.iterdir())
        assert {path.name for path in sweep.folder.iterdir()} == {"r.json", "tmp"}


# Runs the command, and presses Ctrl-C as a function is called for the so-manieth time.
_STOPPED = """
import importlib, os, signal, sys
from dnnsep.cli import main
module, path, number = sys.argv.pop(1), sys.argv.pop(1), int(sys.argv.pop(1))
place = importlib.import_module(module)
*above, name = path.split(".")
for part in above:
    place = getattr(place, part)
function, calls = getattr(place, name), []
def stopped(*arguments, **options):
    calls.append(1)
    if len(calls) == number:
        os.kill(os.getpid(), signal.SIGNAL)
    return function(*arguments, **options)
setattr(place, name, stopped)
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "finished", "name"),
    [
        pytest.param(
            "dnnsep.measure.roofmeter measured_roofs 1", 0, "SIGINT", id="before the first case"
        ),
        pytest.param("dnnsep.sweep.client Client.ask 1", 0, "SIGINT", id="loading"),
        pytest.param("dnnsep.sweep.case Case.save_data 2", 1, "SIGINT", id="preparing"),
        pytest.param("dnnsep.sweep.node LocalNode._finish 2", 1, "SIGINT", id="measuring"),
        pytest.param(
            "concurrent.futures ThreadPoolExecutor.submit 2", 0, "SIGINT", id="starting threads"
        ),
        pytest.param("dnnsep.sweep.node LocalNode._finish 2", 1, "SIGTERM", id="told to end"),
        pytest.param("os fsync 2", 2, "SIGINT", id="writing"),
        pytest.param("dnnsep.cli.measure RowPrinter.show 2", 2, "SIGINT", id="printing"),
    ],
)
def test_ctrl_c_in_each_phase(tmp_path: Path, place: str, finished: int, name: str) -> None:
    """It ends soon, with a line that says how to go on, and what was finished stays."""
    path, temporary = tmp_path / "r.json", tmp_path / "tmp"
    temporary.mkdir()
    code = _STOPPED.replace("SIGNAL", name)
    command = ["sweep", *SHAPES[:3], "--backend", "eager", "--seconds", "0.1", "-o", str(path)]

    def run(*start: str, resume: bool = False) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *start, *command, *(["--resume"] if resume else [])],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "TMPDIR": str(temporary)},
        )

    done = run("-c", code, *place.split())
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == f"results: {path} (stopped; --resume goes on)"
    assert "Traceback" not in done.stderr
    before = Results.load(path).records
    assert len(before) == finished
    done = run("-m", "dnnsep.cli", resume=True)
    assert done.returncode == 0, done.stderr
    after = Results.load(path).records
    assert len(after) == 3
    assert after[:finished] == before
    assert {found.name for found in tmp_path.iterdir()} == {"r.json", "tmp"}
    assert not list(temporary.iterdir())
