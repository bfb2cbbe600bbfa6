"""What this user signed, and what somebody else did."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnnsep.host import signing


@pytest.fixture(autouse=True)
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the key is going to be in."""
    monkeypatch.setattr(signing, "user_data_path", lambda name: tmp_path / "data" / name)
    return tmp_path / "data" / "dnnsep" / "signing.key"


def test_only_what_was_signed_is_known(key: Path) -> None:
    assert not signing.is_signed([b"a", b"b"], "")
    signed = signing.signature([b"a", b"b"])
    assert signing.is_signed([b"a", b"b"], signed)
    for other in ([b"ab"], [b"a"], [b"a", b"c"], [b"", b"ab"]):
        assert not signing.is_signed(other, signed)
    for forged in ("", "0" * 64, signed[:-1], signed + "0", "ä"):
        assert not signing.is_signed([b"a", b"b"], forged)


def test_the_key_is_the_users_own(key: Path) -> None:
    signed = signing.signature([b"a"])
    assert key.stat().st_mode & 0o777 == 0o600
    assert list(key.parent.iterdir()) == [key]
    key.chmod(0o644)
    assert not signing.is_signed([b"a"], signed)
    assert signing.signature([b"a"]) == ""
    key.unlink()
    assert not signing.is_signed([b"a"], signed)
    assert signing.signature([b"a"]) not in ("", signed)


def test_without_a_place_for_a_key_nothing_is_signed(key: Path) -> None:
    key.parent.parent.write_text("a file, not a folder")
    assert signing.signature([b"a"]) == ""
    assert not signing.is_signed([b"a"], "")
