"""A worker that does what tests ask for. Run as ``python -m tests.sweep.fakeworker NAME keep``."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dnnsep.sweep.worker import serve


class FakeWorker:
    """Kills itself, hangs, or starts another process."""

    def __init__(self, name: str) -> None:
        self._name = name

    def kill(self, number: int) -> dict[str, Any]:
        """Sends itself a signal while it answers."""
        os.kill(os.getpid(), number)
        return {}

    def spawn(self) -> dict[str, Any]:
        """Starts a process that does not end by itself; returns its id."""
        code = "import time; time.sleep(600)"
        return {"pid": subprocess.Popen([sys.executable, "-c", code]).pid}

    def hang(self, path: str) -> dict[str, Any]:
        """Writes its id to a file and does not answer."""
        beside = Path(path + ".part")
        beside.write_text(str(os.getpid()))
        beside.replace(path)
        time.sleep(600)
        return {}


if __name__ == "__main__":
    serve(FakeWorker)
