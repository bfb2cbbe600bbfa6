"""Folders that nobody but this user (and root) can change: how they are made and checked.

Every folder and link on the way from the root is checked, the upper ones first: who may write one
of them may put another one in the place of what is below it. What has been checked can then only be
changed by this user or root, so that going on by its path is safe.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_ROOT_USER = 0
_MOST_LINKS = 40


class NotOwnFolderError(PermissionError):
    """Somebody else can change what a folder holds; the message says how in one line."""


def require_own(folder: Path, make: bool = False) -> None:
    """Returns if the folder is this user's and only they or root can change it or its place.

    With ``make``, what is missing on the way is made, for this user alone (0700). Raises
    NotOwnFolderError, and another OSError where there is no such folder or it cannot be made.
    Where the system knows no users by number, nothing is checked.
    """
    for at in _way(folder):
        status = _status(at, make)
        fault = _fault(at, status)
        if fault:
            raise NotOwnFolderError(fault)
    if not is_private(status):
        whose = "is not this user's own" if not _is_mine(status) else "may be written by others"
        raise NotOwnFolderError(f"{at} {whose}")


def is_private(status: os.stat_result) -> bool:
    """Returns whether only this user may write what has such a status."""
    return _is_mine(status) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_mine(status: os.stat_result) -> bool:
    return not hasattr(os, "getuid") or status.st_uid == os.getuid()


def _way(path: Path) -> Iterator[Path]:
    """Yields each folder and link on the way to a path, from the top; the last one is its end."""
    todo = [*reversed(path.absolute().parts)]
    at, links = Path(), 0
    while todo:
        at /= todo.pop()
        yield at
        if at.is_symlink():
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            todo.extend(reversed(Path(os.readlink(at)).parts))
            at = at.parent


def _status(at: Path, make: bool) -> os.stat_result:
    """Returns the status of a folder or link, made before if it is missing and to be made."""
    try:
        return at.lstat()
    except FileNotFoundError:
        if not make:
            raise
    with contextlib.suppress(FileExistsError):  # another process was faster; it is checked too
        at.mkdir(mode=0o700)
    return at.lstat()


def _fault(at: Path, status: os.stat_result) -> str | None:
    """Returns how others could put something else in the place of what is in a folder, or of what
    a link leads to; None where they cannot.

    In a folder like /tmp (sticky) others can add, and replace only what is their own.
    """
    if not hasattr(os, "getuid"):
        return None
    if status.st_uid != _ROOT_USER and not _is_mine(status):
        return f"{at} belongs to another user"
    if stat.S_ISLNK(status.st_mode):
        return None
    open_to_others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if open_to_others and not status.st_mode & stat.S_ISVTX:
        return f"{at} may be written by others"
    return None
