"""Files that are whole at every moment, whatever ends their writer."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dnnsep.host.files import replace_whole


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    for text in ("older", "newer, \u00b5s", ""):
        replace_whole(path, text)
        assert path.read_text("utf-8") == text
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_what_fails_or_is_interrupted_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    path = tmp_path / "r.json"
    replace_whole(path, "older")

    def fails(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fails)
        with pytest.raises((KeyboardInterrupt, OSError)):
            replace_whole(path, "newer")
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path, rng = tmp_path / "r.json", random.Random(0)
    code = (
        "import itertools, sys; from pathlib import Path; from dnnsep.host.files import *\n"
        "for n in itertools.count():\n"
        "    replace_whole(Path(sys.argv[1]), f'{n % 10}' * 300_000)\n"
    )
    for _ in range(5):
        path.unlink(missing_ok=True)
        writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
        while not path.exists():
            assert writer.poll() is None
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        writer.kill()
        assert writer.wait() == -signal.SIGKILL
        text = path.read_text()
        assert len(text) == 300_000
        assert len(set(text)) == 1
    replace_whole(path, "after")
    assert list(tmp_path.iterdir()) == [path]
