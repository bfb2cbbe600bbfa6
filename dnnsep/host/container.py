"""One file that holds JSON and blocks of bytes, and is read whole or not at all.

A header of 64 bytes: 8 that name the kind of file, the number of the format and four zero bytes,
the bytes of the JSON and those of the whole file, all little-endian, and the SHA-256 of everything
else in the file. After it comes the JSON, and then the blocks, each at a multiple of 64 bytes.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Block = NDArray[np.uint8]

FORMAT = 1
_MAGIC = b"\x89dnnsep\n"
_FIELDS = struct.Struct("<8sIIQQ")
_HEADER_BYTES = _FIELDS.size + 32
_ALIGN = 64

# No model is as large as that: a header that says so is not taken at its word.
_MOST_BYTES = 1 << 38
_MOST_JSON_BYTES = 1 << 28


@dataclass
class Blocks:
    """Blocks of bytes to be written; equal ones are written once."""

    written: list[Block] = field(default_factory=list)
    _numbers: dict[bytes, int] = field(default_factory=dict)

    def add(self, content: bytes | Block) -> int:
        """Returns the number of the block with this content."""
        block = np.frombuffer(content, np.uint8) if isinstance(content, bytes) else content
        number = self._numbers.setdefault(_digest([block]), len(self.written))
        if number == len(self.written):
            self.written.append(block)
        return number


def write(path: Path, content: Any, blocks: Sequence[Block]) -> None:
    """Writes content, which JSON can hold, and blocks into a file, which is replaced at once.

    Raises OSError where it cannot be written, and ValueError where there is something else than a
    regular file.
    """
    path = Path(os.path.realpath(path))
    if path.exists():
        _refuse_special(path, path.stat().st_mode)
    sizes = [block.size for block in blocks]
    text = json.dumps({"blocks": sizes, "content": content}, allow_nan=False).encode()
    parts = list(_padded([np.frombuffer(text, np.uint8), *blocks]))
    whole = _HEADER_BYTES + sum(part.size for part in parts)
    fields = _FIELDS.pack(_MAGIC, FORMAT, 0, len(text), whole)
    unfinished = path.with_name(f".dnnsep-{secrets.token_hex(8)}")
    try:
        with open(unfinished, "xb") as file:
            file.write(fields + _digest([fields, *parts]))
            for part in parts:
                file.write(part.data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise type(error)(error.errno, error.strerror, str(path)) from None


def read(path: Path) -> tuple[Any, list[Block]]:
    """Returns the content and the blocks of a file; each block starts at a cache line.

    Raises ValueError, which names the file and what is wrong with it, if it is not whole or not of
    this format, and OSError where it cannot be read.
    """
    with open(path, "rb", buffering=0, opener=_opened) as file:
        status = os.fstat(file.fileno())
        _refuse_special(path, status.st_mode)
        header = file.read(_HEADER_BYTES) or b""
        json_bytes, whole = _checked(path, header, status.st_size)
        try:
            memory = np.empty(whole - _HEADER_BYTES + _ALIGN, np.uint8)
        except MemoryError:
            raise ValueError(f"{path}: there is no memory for its {whole} bytes") from None
        body = memory[-memory.ctypes.data % _ALIGN :][: whole - _HEADER_BYTES]
        _fill(path, file, body)
    if _digest([header[: _FIELDS.size], body]) != header[_FIELDS.size :]:
        raise ValueError(f"{path}: is damaged: its content does not have the hash that it names")
    try:
        found = json.loads(body[:json_bytes].tobytes())
        return found["content"], list(_blocks(body, json_bytes, found["blocks"]))
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: does not hold what it should: {error!r}") from None


def _opened(path: str, flags: int) -> int:
    # Opening a pipe would wait for its other end.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _refuse_special(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path}: is not a regular file")


def _checked(path: Path, header: bytes, size: int) -> tuple[int, int]:
    """Returns the bytes of the JSON and of the whole file, as its header says."""
    if header[: len(_MAGIC)] != _MAGIC[: max(1, len(header))]:
        raise ValueError(f"{path}: is not a model that dnnsep saved")
    if len(header) < _HEADER_BYTES:
        raise ValueError(f"{path}: is cut off after {size} bytes")
    _, number, _, json_bytes, whole = _FIELDS.unpack_from(header)
    if number > FORMAT:
        raise ValueError(
            f"{path}: has format {number}, of a newer dnnsep; this one knows those up to {FORMAT}"
        )
    if number != FORMAT:
        raise ValueError(f"{path}: has format {number}, which there is none of")
    if size < whole:
        raise ValueError(f"{path}: is cut off after {size} of {whole} bytes")
    if size > whole:
        raise ValueError(f"{path}: has {size - whole} bytes more than it should")
    if whole > _MOST_BYTES or json_bytes > min(_MOST_JSON_BYTES, whole - _HEADER_BYTES):
        raise ValueError(f"{path}: is larger than any model")
    return json_bytes, whole


def _fill(path: Path, file: Any, memory: Block) -> None:
    """Reads as many bytes as there is memory for."""
    there, start = memory.data, 0
    while start < len(there):
        count = file.readinto(there[start : start + (1 << 30)])
        if not count:
            raise ValueError(f"{path}: was cut off while it was read")
        start += count


def _blocks(body: Block, json_bytes: int, sizes: list[int]) -> Iterator[Block]:
    """Yields the blocks of these sizes. Raises ValueError if they do not lie in the file."""
    start = _up(json_bytes)
    for size in sizes:
        if not isinstance(size, int) or not 0 <= size <= body.size - start:
            raise ValueError("a block is not in the file")
        yield body[start : start + size]
        start = _up(start + size)


def _padded(parts: Sequence[Block]) -> Iterator[Block]:
    """Yields the parts, each made up to a multiple of the alignment by zeros."""
    for part in parts:
        yield part
        yield np.zeros(_up(part.size) - part.size, np.uint8)


def _digest(parts: Sequence[bytes | Block]) -> bytes:
    digest = sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.data)
    return digest.digest()


def _up(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
