"""Which packages are installed, found out without importing any of them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed_version(distribution: str) -> str | None:
    """Returns a distribution's version; None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def minor_version(text: str) -> tuple[int, int]:
    """Returns the first two numbers of a version: (2, 8) of "2.8.0+cpu"."""
    major, minor = text.split("+")[0].split(".")[:2]
    return int(major), int(minor)
