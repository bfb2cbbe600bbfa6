"""The sweep's end of a worker: starts the process, asks it, and says what became of it."""

from __future__ import annotations

import contextlib
import json
import selectors
import signal
import subprocess
import sys
import tempfile
from typing import Any, Literal

Allocator = Literal["keep", "system"]


class WorkerError(RuntimeError):
    """The worker crashed, hung or could not do what it was asked; the message says which."""


class Client:
    """A worker process for one backend, or one engine for models.

    Close it, or use it as a context manager.

    ``allocator`` is ``keep`` (freed memory stays in the process, see dnnsep.host.allocator) or
    ``system`` (the C library's own way); ``worker`` the module that is run.
    """

    def __init__(
        self,
        backend: str,
        allocator: Allocator = "keep",
        timeout: float = 300,
        worker: str = "dnnsep.sweep.worker",
    ) -> None:
        self._timeout = timeout
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close)
        # A session of its own: Ctrl-C is for the sweep, which then closes its workers.
        self._process = subprocess.Popen(
            [sys.executable, "-m", worker, backend, allocator],
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
            raise WorkerError(self._epitaph()) from None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(self._timeout):
                self.close()
                raise WorkerError(f"hung: no answer within {self._timeout:g} s, killed")
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(self._epitaph())
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
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _epitaph(self) -> str:
        """How the process ended, and the last thing it said."""
        code = self._process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip().splitlines()
        return f"worker {how}" + (f": {said[-1].strip()}" if said else "")
