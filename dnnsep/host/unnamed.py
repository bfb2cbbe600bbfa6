"""Files that no kill leaves behind."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def unnamed_file() -> Iterator[Path]:
    """Gives the path of a new file that this process and its user's others can open, and that ends
    with the block or with the process, in whatever way that ends (Linux)."""
    with tempfile.TemporaryFile(prefix="dnnsep-") as file:
        yield Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")
