"""Commands that read results: compare, report, export."""

from __future__ import annotations


def compare() -> None:
    """Later."""


def report() -> None:
    """Later."""


def export() -> None:
    """Later."""
