"""Writes files that are whole at every moment."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def replace_whole(path: Path, text: str) -> None:
    """Writes a text file at once, so that a kill leaves the old or the new one, whole.

    What a kill leaves half written beside it (``.part``) is written over by the next call. Raises
    OSError if the file cannot be written.
    """
    beside = path.with_name(path.name + ".part")
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:  # also Ctrl-C
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
