"""What is kept in the cache folder, and what is not trusted."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dnnsep.host import cachefiles


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cachefiles.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "things"


def _file(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def test_what_is_saved_is_loaded(folder: Path) -> None:
    assert cachefiles.load("things", "key") is None
    cachefiles.save("things", "key", b"content")
    assert cachefiles.load("things", "key") == b"content"
    assert cachefiles.load("things", "other") is None
    assert cachefiles.load("others", "key") is None
    cachefiles.save("things", "key", b"newer")
    assert cachefiles.load("things", "key") == b"newer"
    assert _file(folder).is_file()


@pytest.mark.parametrize("change", ["cut", "flipped", "longer", "empty"])
def test_a_damaged_file_counts_as_none(folder: Path, change: str) -> None:
    cachefiles.save("things", "key", b"content")
    path = _file(folder)
    good = path.read_bytes()
    flipped = good[:-1] + bytes([good[-1] ^ 1])
    bad = {"cut": good[:-1], "flipped": flipped, "longer": good + b"x", "empty": b""}
    path.write_bytes(bad[change])
    assert cachefiles.load("things", "key") is None


def test_a_file_under_another_name_counts_as_none(folder: Path) -> None:
    cachefiles.save("things", "key", b"content")
    path = _file(folder)
    cachefiles.save("things", "other", b"other content")
    (other,) = set(folder.iterdir()) - {path}
    other.replace(path)
    assert cachefiles.load("things", "key") is None


def test_the_oldest_files_go_when_there_are_many(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cachefiles, "_MOST_FILES", 3)
    for number in range(5):
        cachefiles.save("things", f"key {number}", b"content")
        os.utime(cachefiles._path("things", f"key {number}"), (number, number))
    there = [cachefiles.load("things", f"key {number}") is not None for number in range(5)]
    assert there == [False, False, True, True, True]


def test_a_write_that_fails_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        cachefiles.save("things", "key", b"content")
    assert list(folder.iterdir()) == []
    assert cachefiles.load("things", "key") is None


def test_what_others_may_write_counts_as_none(folder: Path) -> None:
    cachefiles.save("things", "key", b"content")
    path = _file(folder)
    path.chmod(0o666)
    assert cachefiles.load("things", "key") is None
    path.chmod(0o600)
    assert cachefiles.load("things", "key") == b"content"
    folder.chmod(0o777)
    assert cachefiles.load("things", "key") is None


def test_a_folder_that_cannot_be_made_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cachefiles.VARIABLE, str(tmp_path / "file"))
    cachefiles.save("things", "key", b"content")
    assert cachefiles.load("things", "key") is None


def test_what_is_given_is_found_first(folder: Path) -> None:
    cachefiles.save("things", "key", b"content")
    with cachefiles.given({("things", cachefiles.digest("key")): b"given"}):
        assert cachefiles.load("things", "key") == b"given"
        assert cachefiles.load("others", "key") is None
        assert cachefiles.load("things", "other") is None
        with ThreadPoolExecutor(1) as pool:  # other threads have their own
            assert pool.submit(cachefiles.load, "things", "key").result() == b"content"
    assert cachefiles.load("things", "key") == b"content"


def test_what_is_loaded_and_saved_is_noted(folder: Path) -> None:
    cachefiles.save("things", "before", b"before")
    with cachefiles.noting() as noted:
        cachefiles.load("things", "before")
        cachefiles.load("things", "missing")
        cachefiles.save("others", "new", b"new")
    cachefiles.save("things", "after", b"after")
    digest = cachefiles.digest
    assert noted == {("things", digest("before")): b"before", ("others", digest("new")): b"new"}
