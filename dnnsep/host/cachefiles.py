"""Keeps bytes in files of the user's cache folder, each under a key, and checks what it reads.

The folder is DNNSEP_CACHE_DIR, or the system's place for a user's caches. It may be deleted at any
time. A folder that cannot be written means only that nothing is kept.

Some files hold machine code, so whoever can write one of them can run anything as this user. Hence
nothing is kept in, or taken from, a folder that somebody else can change or exchange; a warning
says so once.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from hashlib import sha256
from pathlib import Path

from platformdirs import user_cache_path

from dnnsep.host.ownfolder import NotOwnFolderError, is_private, require_own

VARIABLE = "DNNSEP_CACHE_DIR"

# The most files of one kind; a kernel has about 50 KB. The oldest go first: they are of versions
# and problems that nobody asks for any more.
_MOST_FILES = 1000

# The most bytes of one file; more are neither written nor read.
_MOST_BYTES = 1 << 26

# What a file is called while it is written, and after how many seconds nobody writes it any more:
# whoever did so was killed.
_UNFINISHED = "unfinished-"
_UNFINISHED_SECONDS = 60

# Each file begins with the SHA-256 of its key and content.
_HEAD_BYTES = 32

# Content by its kind and by the digest of its key.
Kept = dict[tuple[str, str], bytes]

# What has been warned of.
_warned: set[str] = set()

# What a file is read with: a link is not followed, and a pipe without a writer would be waited for.
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)

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

    A file is trusted only if it belongs to this user, if nobody else may write it or change its
    folder or those above it, and if its content is whole and was saved under this very key.
    """
    found = (_given.get() or {}).get((kind, digest(key)))
    content = _from_folder(kind, key) if found is None else found
    noted = _noted.get()
    if noted is not None and content is not None:
        noted[kind, digest(key)] = content
    return content


def _from_folder(kind: str, key: str) -> bytes | None:
    path = _path(kind, key)
    if not _usable(path.parent):
        return None
    try:
        # What is checked is what is read, even if another file is put in its place meanwhile.
        with os.fdopen(os.open(path, _READ), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or not is_private(status):
                return None
            saved = file.read(_MOST_BYTES + 1)
    except OSError:
        return None
    if len(saved) > _MOST_BYTES:
        return None
    head, content = saved[:_HEAD_BYTES], saved[_HEAD_BYTES:]
    return content if head == _head(key, content) else None


def save(kind: str, key: str, content: bytes) -> None:
    """Saves content under a key, where the folder can be written by this user and nobody else.

    The file is replaced at once, so that no process ever reads half of it.
    """
    noted = _noted.get()
    if noted is not None:
        noted[kind, digest(key)] = content
    path = _path(kind, key)
    if len(content) > _MOST_BYTES - _HEAD_BYTES or not _usable(path.parent, make=True):
        return
    with contextlib.suppress(OSError):
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=_UNFINISHED, delete=False) as file:
            unfinished = Path(file.name)
            try:
                file.write(_head(key, content) + content)
                file.flush()
                unfinished.replace(path)
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise
        _drop(path.parent)


def _usable(of_kind: Path, make: bool = False) -> bool:
    """Returns whether the folder is there, or has been made, and is safe; warns where it is not."""
    try:
        require_own(of_kind, make)
    except NotOwnFolderError as reason:
        if str(reason) not in _warned:
            _warned.add(str(reason))
            warnings.warn(
                f"nothing is kept in the cache folder {folder()}: {reason}; "
                f"{VARIABLE} names another folder",
                RuntimeWarning,
                stacklevel=4,
            )
        return False
    except OSError:
        return False
    return True


def _drop(of_kind: Path) -> None:
    """Deletes a folder's files that a killed process left unfinished, and the oldest ones beyond
    the most it may hold."""
    files = sorted((path.stat().st_mtime, path) for path in of_kind.iterdir())
    finished = [path for _, path in files if not path.name.startswith(_UNFINISHED)]
    long_ago = time.time() - _UNFINISHED_SECONDS
    left = [path for at, path in files if path.name.startswith(_UNFINISHED) and at < long_ago]
    for path in [*left, *finished[: max(0, len(finished) - _MOST_FILES)]]:
        path.unlink(missing_ok=True)


def _head(key: str, content: bytes) -> bytes:
    """Returns the 32 bytes that prove that a file is whole and was saved under this key."""
    return sha256(key.encode() + b"\0" + content).digest()


def _path(kind: str, key: str) -> Path:
    return folder() / kind / digest(key)
