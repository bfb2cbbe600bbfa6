"""The sweep's end of a worker: starts the process, asks it, and says what became of it."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dnnsep.host.inputs import is_folder

Allocator = Literal["keep", "system"]

# Prints where an interpreter has dnnsep, without importing it (which takes seconds).
_FIND = "import importlib.util as u; s = u.find_spec('dnnsep'); print(s.origin if s else '')"
_FIND_SECONDS = 60


# Signals that a crash does not raise: somebody, the system short of memory, or a closing terminal
# sent them.
_FROM_OUTSIDE = {
    getattr(signal, name, None) for name in ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT")
}


class WorkerError(RuntimeError):
    """The worker crashed, hung or could not do what it was asked; the message says which."""


class WorkerKilledError(WorkerError):
    """The worker was killed from outside, which says nothing of what it was asked to do."""


@dataclass(frozen=True)
class Interpreter:
    """Another Python to run workers on, and the dnnsep that it has.

    ``executable`` is the absolute path of the Python, ``folder`` the one its processes start in,
    ``search_path`` what they get as PYTHONPATH (None: as it is here), and ``package`` the path of
    the dnnsep that they import, which is what tells two versions apart.
    """

    executable: str
    folder: str
    search_path: str | None
    package: str

    @classmethod
    def parse(cls, text: str) -> Interpreter:
        """Returns the interpreter that an environment's Python, or a checkout's folder, names.

        A checkout runs on this process's own Python, with the folder first among its modules.
        Raises ValueError in one line where there is no such thing, or no dnnsep in it.
        """
        if is_folder(Path(text)):
            folder = os.path.realpath(text)
            inherited = os.environ.get("PYTHONPATH")
            search_path = os.pathsep.join(filter(None, (folder, inherited)))
            found = cls(sys.executable, folder, search_path, "")
        else:
            executable = shutil.which(text)
            if executable is None:
                raise ValueError(f"{text}: neither a Python to run nor a checkout's folder")
            # Not started here: a dnnsep in the current folder would hide the environment's own.
            found = cls(os.path.abspath(executable), os.path.abspath(os.sep), None, "")
        package = found._find(text)
        if found.search_path is not None and not package.startswith(found.folder + os.sep):
            raise ValueError(f"{text}: no dnnsep in this folder")
        return cls(found.executable, found.folder, found.search_path, package)

    @property
    def environment(self) -> dict[str, str]:
        """Returns the environment variables of its processes."""
        if self.search_path is None:
            return dict(os.environ)
        return {**os.environ, "PYTHONPATH": self.search_path}

    def _find(self, text: str) -> str:
        """The path of the dnnsep that it imports."""
        try:
            done = subprocess.run(
                [self.executable, "-c", _FIND],
                cwd=self.folder,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=_FIND_SECONDS,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            raise ValueError(f"{text}: does not run as a Python") from None
        package = done.stdout.strip()
        if not package:
            raise ValueError(f"{text}: dnnsep is not installed there")
        return package


class Client:
    """A worker process for one backend, or one engine for models.

    Close it, or use it as a context manager.

    ``allocator`` is ``keep`` (freed memory stays in the process, see dnnsep.host.allocator) or
    ``system`` (the C library's own way); ``timeout`` the seconds to wait for an answer; ``worker``
    the module that is run; ``interpreter`` the Python it is run on, by default this process's own.
    """

    def __init__(
        self,
        backend: str,
        allocator: Allocator = "keep",
        timeout: float = 300,
        worker: str = "dnnsep.sweep.worker",
        interpreter: Interpreter | None = None,
    ) -> None:
        self._timeout = timeout
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close)
        executable = interpreter.executable if interpreter else sys.executable
        # A session of its own: Ctrl-C is for the sweep, which then closes its workers.
        self._process = subprocess.Popen(
            [executable, "-m", worker, backend, allocator],
            cwd=interpreter.folder if interpreter else None,
            env=interpreter.environment if interpreter else None,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,
        )

    def ask(self, method: str, **arguments: Any) -> dict[str, Any]:
        """The worker's answer. Raises WorkerError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": method, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._epitaph() from None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(self._timeout):
                self.close()
                raise WorkerError(f"hung: no answer within {self._timeout:g} s, killed")
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):  # it ended before, or amid, its answer
            raise self._epitaph()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """Ends the worker, and the processes that it has started."""
        self._end_group()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _epitaph(self) -> WorkerError:
        """Returns the error that says how the process ended, and the last thing it said."""
        if hasattr(os, "waitid"):  # not waited for yet, so that its id is not given to others
            with contextlib.suppress(ChildProcessError):  # it has been, by a look at ``alive``
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
            self._end_group()
        code = self._process.wait()
        how = f"killed by {_signal_name(-code)}" if code < 0 else f"exited with {code}"
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip().splitlines()
        text = f"worker {how}" + (f": {said[-1].strip()}" if said else "")
        return WorkerKilledError(text) if -code in _FROM_OUTSIDE else WorkerError(text)

    def _end_group(self) -> None:
        """Kills the worker, unless it has been waited for, and what it started and left behind."""
        if self._process.returncode is not None:
            return
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
