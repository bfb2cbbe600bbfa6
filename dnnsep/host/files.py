"""Writes files that are whole at every moment."""

from __future__ import annotations

import os
from pathlib import Path


def replace_whole(path: Path, text: str) -> None:
    """Writes a text file at once, so that a kill leaves the old or the new one, whole.

    Raises OSError if it cannot be written.
    """
    beside = path.with_name(path.name + ".part")
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
