"""What is kept in the cache folder, and what is not trusted."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dnnsep.host import cachefiles


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cachefiles, "_warned", set())
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
    with pytest.warns(RuntimeWarning, match="may be written by others"):
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


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("no_umask")
def test_folders_are_made_for_this_user_alone_from_the_top(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cachefiles.VARIABLE, str(tmp_path / "a" / "b" / "cache"))
    cachefiles.save("things", "key", b"content")
    assert cachefiles.load("things", "key") == b"content"
    made = [tmp_path / "a", tmp_path / "a/b", tmp_path / "a/b/cache", tmp_path / "a/b/cache/things"]
    assert [_mode(path) for path in made] == [0o700] * 4
    assert _mode(_file(made[-1])) == 0o600


def _give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a path another user's; only root can do so, otherwise this process says it is one."""
    if os.getuid() == 0:
        os.chown(path, 12345, -1, follow_symlinks=False)
    else:
        other = os.getuid() + 1
        monkeypatch.setattr(os, "getuid", lambda: other)


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
@pytest.mark.parametrize("level", ["", "above", "above/cache"])
def test_a_folder_that_others_may_write_is_refused_at_any_height(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str, mode: int
) -> None:
    monkeypatch.setenv(cachefiles.VARIABLE, str(tmp_path / "above" / "cache"))
    cachefiles.save("things", "key", b"content")
    (tmp_path / level).chmod(mode)
    said = f"{tmp_path / level} may be written by others"
    with pytest.warns(RuntimeWarning, match=said):
        assert cachefiles.load("things", "key") is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it has been said
        cachefiles.save("things", "other", b"content")
        assert cachefiles.load("things", "other") is None
    (tmp_path / level).chmod(0o700)
    assert cachefiles.load("things", "key") == b"content"
    assert cachefiles.load("things", "other") is None


@pytest.mark.parametrize("level", ["above", "above/cache", "above/cache/things"])
def test_another_users_folder_is_refused_at_any_height(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    monkeypatch.setenv(cachefiles.VARIABLE, str(tmp_path / "above" / "cache"))
    cachefiles.save("things", "key", b"content")
    _give_away(tmp_path / level, monkeypatch)
    with pytest.warns(RuntimeWarning, match="belongs to another user"):
        assert cachefiles.load("things", "key") is None


def test_nothing_is_made_below_what_others_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o777)
    with pytest.warns(RuntimeWarning, match="may be written by others"):
        cachefiles.save("things", "key", b"content")
    assert list(tmp_path.iterdir()) == []
    tmp_path.chmod(0o700)


def test_below_a_sticky_folder_only_ones_own_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    monkeypatch.setenv(cachefiles.VARIABLE, str(shared / "cache"))
    cachefiles.save("things", "key", b"content")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cachefiles.load("things", "key") == b"content"
    monkeypatch.setenv(cachefiles.VARIABLE, str(shared))
    cachefiles.save("things", "key", b"content")
    assert cachefiles.load("things", "key") == b"content"
    (shared / "things").chmod(0o1777)  # others cannot replace files here, but add some
    with pytest.warns(RuntimeWarning, match="may be written by others"):
        assert cachefiles.load("things", "key") is None
    (shared / "things").chmod(0o700)
    _give_away(shared / "things", monkeypatch)
    with pytest.warns(RuntimeWarning, match="belongs to another user"):
        assert cachefiles.load("things", "key") is None


def test_a_link_to_a_folder_counts_as_what_it_leads_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, open_to_all = tmp_path / "real", tmp_path / "open"
    (open_to_all / "cache").mkdir(parents=True)
    open_to_all.chmod(0o777)
    (tmp_path / "link").symlink_to("./real/../real")
    (tmp_path / "bad").symlink_to(open_to_all / "cache")
    (tmp_path / "round").symlink_to("round")
    real.mkdir(mode=0o700)
    monkeypatch.setenv(cachefiles.VARIABLE, str(tmp_path / "link"))
    cachefiles.save("things", "key", b"content")
    assert _file(real / "things").is_file()
    assert cachefiles.load("things", "key") == b"content"
    for name in ("round", "bad"):
        monkeypatch.setenv(cachefiles.VARIABLE, str(tmp_path / name))
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            cachefiles.save("things", "key", b"content")
            assert cachefiles.load("things", "key") is None
        assert len(warned) == (name == "bad")
    assert list((open_to_all / "cache").iterdir()) == []
    monkeypatch.setenv(cachefiles.VARIABLE, str(tmp_path / "link"))
    _give_away(tmp_path / "link", monkeypatch)
    with pytest.warns(RuntimeWarning, match="belongs to another user"):
        assert cachefiles.load("things", "key") is None


def test_a_link_in_the_place_of_a_file_is_not_followed(folder: Path, tmp_path: Path) -> None:
    cachefiles.save("things", "key", b"content")
    path = _file(folder)
    path.replace(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert cachefiles.load("things", "key") is None
    cachefiles.save("things", "key", b"newer")
    assert cachefiles.load("things", "key") == b"newer"
    assert not path.is_symlink()


@pytest.mark.parametrize("with_writer", [False, True])
def test_a_pipe_in_the_place_of_a_file_neither_hangs_nor_is_read(
    folder: Path, with_writer: bool
) -> None:
    cachefiles.save("things", "key", b"content")
    path = _file(folder)
    good = path.read_bytes()
    path.unlink()
    os.mkfifo(path, 0o600)
    found: list[bytes | None] = []
    reader = threading.Thread(
        target=lambda: found.append(cachefiles.load("things", "key")), daemon=True
    )
    pipe = os.open(path, os.O_RDWR) if with_writer else None
    if pipe is not None:
        os.write(pipe, good)
    reader.start()
    reader.join(timeout=10)
    assert found == [None]
    if pipe is not None:
        assert os.read(pipe, len(good) + 1) == good
        os.close(pipe)
    cachefiles.save("things", "key", b"newer")
    assert cachefiles.load("things", "key") == b"newer"


def test_a_device_or_a_folder_in_the_place_of_a_file_counts_as_none(folder: Path) -> None:
    cachefiles.save("things", "key", b"content")
    path = _file(folder)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert cachefiles.load("things", "key") is None
    path.unlink()
    path.mkdir()
    assert cachefiles.load("things", "key") is None
    cachefiles.save("things", "key", b"content")
    assert [path.name for path in folder.iterdir()] == [path.name]


@pytest.mark.parametrize("size", [100, 101])
def test_a_file_larger_than_any_can_be_is_neither_written_nor_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    cachefiles.save("things", "key", b"x" * (size - 32))
    monkeypatch.setattr(cachefiles, "_MOST_BYTES", 100)
    assert _file(folder).stat().st_size == size
    assert (cachefiles.load("things", "key") is not None) == (size == 100)
    cachefiles.save("things", "other", b"x" * (size - 32))
    assert (cachefiles.load("things", "other") is not None) == (size == 100)
    assert len(list(folder.iterdir())) == 1 + (size == 100)


def test_an_endless_file_takes_no_memory(folder: Path) -> None:
    cachefiles.save("things", "key", b"content")
    os.truncate(_file(folder), 1 << 40)  # a terabyte of zeros, which takes no disk
    assert cachefiles.load("things", "key") is None
    cachefiles.save("things", "key", b"newer")
    assert cachefiles.load("things", "key") == b"newer"


def test_what_a_killed_process_left_unfinished_goes_with_the_next_save(folder: Path) -> None:
    """A process is killed as it puts the whole file in its place; what others write now stays."""
    code = (
        "import os, signal; from pathlib import Path; from dnnsep.host import cachefiles\n"
        "Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "cachefiles.save('things', 'key', b'content')"
    )
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert cachefiles.load("things", "key") is None
    old, new = folder.iterdir()
    os.utime(old, (0, 0))
    cachefiles.save("things", "key", b"content")
    assert set(folder.iterdir()) == {new, cachefiles._path("things", "key")}
    assert cachefiles.load("things", "key") == b"content"
