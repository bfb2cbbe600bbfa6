"""Keeps bytes in files of the user's cache folder, each under a key, and checks what it reads.

The folder is DNNSEP_CACHE_DIR, or the system's place for a user's caches. It may be deleted at any
time. A folder that cannot be written means only that nothing is kept.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from hashlib import sha256
from pathlib import Path

from platformdirs import user_cache_path

VARIABLE = "DNNSEP_CACHE_DIR"

# The most files of one kind; a kernel has about 50 KB. The oldest go first: they are of versions
# and problems that nobody asks for any more.
_MOST_FILES = 1000

# Each file begins with the SHA-256 of its key and content.
_HEAD_BYTES = 32

# Content by its kind and by the digest of its key.
Kept = dict[tuple[str, str], bytes]

_given: ContextVar[Mapping[tuple[str, str], bytes] | None] = ContextVar("given", default=None)
_noted: ContextVar[Kept | None] = ContextVar("noted", default=None)


@contextlib.contextmanager
def given(kept: Mapping[tuple[str, str], bytes]) -> Iterator[None]:
    """While it is open, this thread's ``load`` finds these first, without any folder."""
    token = _given.set(kept)
    try:
        yield
    finally:
        _given.reset(token)


@contextlib.contextmanager
def noting() -> Iterator[Kept]:
    """Returns a dictionary that fills, while it is open, with what this thread loads and saves."""
    noted: Kept = {}
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)


def digest(key: str) -> str:
    """Returns what content is filed under by its key."""
    return sha256(key.encode()).hexdigest()


def folder() -> Path:
    """Returns the folder that holds a subfolder for each kind of file; it may not exist yet."""
    chosen = os.environ.get(VARIABLE)
    return Path(chosen) if chosen else user_cache_path("dnnsep")


def load(kind: str, key: str) -> bytes | None:
    """Returns the content saved under a key, or None where there is none that can be trusted.

    A file is trusted only if it belongs to this user, if nobody else may write it or its folder,
    and if its content is whole and was saved under this very key.
    """
    found = (_given.get() or {}).get((kind, digest(key)))
    content = _from_folder(kind, key) if found is None else found
    noted = _noted.get()
    if noted is not None and content is not None:
        noted[kind, digest(key)] = content
    return content


def _from_folder(kind: str, key: str) -> bytes | None:
    path = _path(kind, key)
    try:
        if not _private(path.parent.stat()):
            return None
        # What is checked is what is read, even if another file is put in its place meanwhile. A
        # pipe without a writer would keep waiting for one.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or not _private(status):
                return None
            saved = file.read()
    except OSError:
        return None
    head, content = saved[:_HEAD_BYTES], saved[_HEAD_BYTES:]
    return content if head == _head(key, content) else None


def save(kind: str, key: str, content: bytes) -> None:
    """Saves content under a key, where the folder can be written.

    The file is replaced at once, so that no process ever reads half of it.
    """
    noted = _noted.get()
    if noted is not None:
        noted[kind, digest(key)] = content
    path = _path(kind, key)
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            unfinished = Path(file.name)
            try:
                file.write(_head(key, content) + content)
                file.flush()
                unfinished.replace(path)
            except OSError:
                unfinished.unlink(missing_ok=True)
                raise
        _drop_oldest(path.parent)


def _drop_oldest(of_kind: Path) -> None:
    """Deletes the oldest files of a folder beyond the most it may hold."""
    files = list(of_kind.iterdir())
    if len(files) > _MOST_FILES:
        files.sort(key=lambda path: path.stat().st_mtime)
        for path in files[:-_MOST_FILES]:
            path.unlink(missing_ok=True)


def _head(key: str, content: bytes) -> bytes:
    """Returns the 32 bytes that prove that a file is whole and was saved under this key."""
    return sha256(key.encode() + b"\0" + content).digest()


def _path(kind: str, key: str) -> Path:
    return folder() / kind / digest(key)


def _private(status: os.stat_result) -> bool:
    """Returns whether only this user may write what has such a status."""
    mine = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    return mine and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
