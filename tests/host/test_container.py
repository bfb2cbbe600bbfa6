"""A file of JSON and blocks: whole, or refused in one line that says why."""

from __future__ import annotations

import json
import os
import random
import stat
from pathlib import Path

import numpy as np
import pytest

from dnnsep.host import container
from dnnsep.host.container import Block, Blocks

CONTENT = {"text": "ä", "numbers": [1, 2.5, -0.0, None, True]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with three blocks, one of them empty."""
    path = tmp_path / "model"
    container.write(path, CONTENT, [_block(100), _block(0), _block(64)])
    return path


def _block(size: int) -> Block:
    return np.arange(size).astype(np.uint8)


def _refused(path: Path) -> str:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        container.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def test_what_is_written_is_read(path: Path) -> None:
    content, blocks = container.read(path)
    assert content == CONTENT
    assert [block.tolist() for block in blocks] == [_block(n).tolist() for n in (100, 0, 64)]
    assert all(block.ctypes.data % 64 == 0 for block in blocks if block.size)


def test_it_replaces_a_file_at_once_and_leaves_nothing_beside(path: Path) -> None:
    path.chmod(0o640)
    container.write(path, "other", [])
    assert container.read(path) == ("other", [])
    assert list(path.parent.iterdir()) == [path]


def test_a_link_stays_a_link(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    container.write(link, "other", [])
    assert link.is_symlink()
    assert container.read(path) == ("other", [])


def test_equal_blocks_are_written_once() -> None:
    blocks = Blocks()
    assert [blocks.add(_block(3)), blocks.add(b"\0\1\2"), blocks.add(b"")] == [0, 0, 1]


def test_a_file_that_is_cut_off_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        reason = _refused(path)
        assert "cut off" in reason if size >= 8 else "not a model" in reason or "cut off" in reason
    path.write_bytes(whole + b"\0")
    assert "1 bytes more" in _refused(path)


def test_a_flipped_bit_is_noticed(path: Path) -> None:
    whole = path.read_bytes()
    places = random.Random(0).sample(range(8 * len(whole)), 200) + list(range(8 * 64))
    for place in places:
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        _refused(path)


@pytest.mark.parametrize("content", [b"", b"PK\3\4" + bytes(200), b"\x89PNG\r\n\x1a\n", b"{}" * 99])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    assert _refused(path) == f"{path}: is not a model that dnnsep saved"


@pytest.mark.parametrize("number", [0, 2, 1 << 31])
def test_another_format_is_refused(path: Path, number: int) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:8] + number.to_bytes(4, "little") + whole[12:])
    reason = _refused(path)
    assert f"format {number}" in reason
    assert ("newer" in reason) == (number > container.FORMAT)


def test_sizes_are_not_taken_at_their_word(path: Path) -> None:
    header = path.read_bytes()[:64]
    for json_bytes, size in ((1 << 62, 1 << 10), (1 << 62, 1 << 39), (10, 1 << 39)):
        sizes = json_bytes.to_bytes(8, "little") + size.to_bytes(8, "little")
        path.write_bytes(header[:16] + sizes + header[32:])
        os.truncate(path, size)  # without taking room on the disk
        assert "larger than any model" in _refused(path)


@pytest.mark.parametrize("sizes", [[1 << 40], [-1], [1.5], "ab", None, [[]], [True]])
def test_blocks_that_are_not_there_are_refused(
    path: Path, sizes: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    dumps = json.dumps
    monkeypatch.setattr(json, "dumps", lambda it, **_: dumps({**it, "blocks": sizes}))
    container.write(path, CONTENT, [_block(10)])
    if sizes == [True]:
        assert container.read(path)[1][0].size == 1  # as harmless as the number 1
    else:
        assert "does not hold what it should" in _refused(path)


def test_deep_json_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "dumps", lambda *_, **__: "[" * 200_000)
    container.write(path, CONTENT, [])
    monkeypatch.undo()
    assert "does not hold what it should" in _refused(path)


def test_only_regular_files_are_read_and_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero"), Path("/dev/null")):
        assert _refused(path) == f"{path}: is not a regular file"
        with pytest.raises(ValueError, match="is not a regular file"):
            container.write(path, CONTENT, [])
        assert not stat.S_ISREG(path.stat().st_mode)


def test_wrong_paths_say_so_in_one_line(tmp_path: Path) -> None:
    for path, error in (
        (tmp_path, IsADirectoryError),
        (tmp_path / "missing" / "model", FileNotFoundError),
        (Path("/proc/model"), OSError),
    ):
        for act in (lambda p: container.write(p, CONTENT, []), container.read):
            with pytest.raises(error, match=rf"^[^\n]*'{path}'$"):
                act(path)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        container.write(path, "other", [])
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
