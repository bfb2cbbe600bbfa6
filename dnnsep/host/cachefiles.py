"""Files in the user's cache folder, each named for its key: never trusted further than that.

The folder is DNNSEP_CACHE_DIR, or the system's place for a user's caches. It may be deleted at any
time. A folder that cannot be written means only that nothing is kept.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from hashlib import sha256
from pathlib import Path

from platformdirs import user_cache_path

VARIABLE = "DNNSEP_CACHE_DIR"

# Of a kind; a kernel has about 50 KB. Versions and problems that nobody asks for any more go first.
_MOST_FILES = 1000


def folder() -> Path:
    found = os.environ.get(VARIABLE)
    return Path(found) if found else user_cache_path("dnnsep")


def load(kind: str, key: str) -> bytes | None:
    """What was saved under a key; None where nothing was, or where it is not surely that.

    A file counts only if it belongs to this user, nobody else may write it or its folder, and its
    content is whole and was saved under this very key.
    """
    path = _path(kind, key)
    try:
        if not (_private(path) and _private(path.parent)):
            return None
        content = path.read_bytes()
    except OSError:
        return None
    head = _head(key, content[_HEAD_BYTES:])
    return content[_HEAD_BYTES:] if content[:_HEAD_BYTES] == head else None


def save(kind: str, key: str, content: bytes) -> None:
    """Keep content under a key; whole or not at all, whoever else saves at the same time."""
    path = _path(kind, key)
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            written = Path(file.name)
            try:
                file.write(_head(key, content) + content)
                file.flush()
                written.replace(path)
            except OSError:
                written.unlink(missing_ok=True)
                raise
        _drop_oldest(path.parent)


def _drop_oldest(kept: Path) -> None:
    files = list(kept.iterdir())
    if len(files) > _MOST_FILES:
        files.sort(key=lambda path: path.stat().st_mtime)
        for path in files[:-_MOST_FILES]:
            path.unlink(missing_ok=True)


_HEAD_BYTES = 32


def _head(key: str, content: bytes) -> bytes:
    return sha256(key.encode() + b"\0" + content).digest()


def _path(kind: str, key: str) -> Path:
    return folder() / kind / sha256(key.encode()).hexdigest()


def _private(path: Path) -> bool:
    found = path.stat()
    mine = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    return mine and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
