"""Tells content that this user made on this machine from content that came from elsewhere.

The key is a file of the user's own data folder that nobody else may read; it is made when
something is signed first. Without it, or with another one, content counts as from elsewhere.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from platformdirs import user_data_path

_KEY_BYTES = 32


def signature(parts: Iterable[Any]) -> str:
    """Returns the signature of parts, which are bytes or arrays of them; empty where this user can
    keep no key."""
    with contextlib.suppress(OSError):
        _make_key()
    key = _key()
    return _signed(key, parts) if key is not None else ""


def is_signed(parts: Iterable[Any], by: str) -> bool:
    """Returns whether a signature of parts was made by this user."""
    key = _key()
    return key is not None and hmac.compare_digest(_signed(key, parts).encode(), by.encode())


def _signed(key: bytes, parts: Iterable[Any]) -> str:
    made = hmac.new(key, digestmod="sha256")
    for part in parts:
        made.update(len(part).to_bytes(8, "little"))
        made.update(part)
    return made.hexdigest()


def _path() -> Path:
    return user_data_path("dnnsep") / "signing.key"


def _key() -> bytes | None:
    """Returns the key, if it is whole and nobody else may read or write it."""
    try:
        path = _path()
        status = path.stat()
        if hasattr(os, "getuid") and status.st_uid != os.getuid():
            return None
        if os.name == "posix" and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            return None
        key = path.read_bytes()
    except OSError:
        return None
    return key if len(key) == _KEY_BYTES else None


def _make_key() -> None:
    """Makes the key where there is none. Raises OSError where it cannot be kept."""
    path = _path()
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
        # Unlike a replacement, a link never takes the place of another process's key.
        with contextlib.suppress(FileExistsError):
            os.link(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
