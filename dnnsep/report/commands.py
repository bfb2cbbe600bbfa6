"""Writes the shell commands that measure a sweep's cases again."""

from __future__ import annotations

import shlex
from typing import Any

from dnnsep.report.table import place
from dnnsep.sweep.results import Results

# The sweep's options by the setting they end up in, with their defaults.
OPTIONS: dict[str, tuple[str, Any]] = {
    "seconds": ("--seconds", 1.0),
    "precision_percent": ("--precision", 2.0),
    "visits": ("--visits", 1),
    "stages": ("--stages", False),
    "allocator": ("--allocator", "keep"),
}


def commands(results: Results) -> list[str]:
    """Returns a shell command for each case, with its backends and the sweep's settings."""
    options = []
    for setting, (option, default) in OPTIONS.items():
        value = results.settings.get(setting, default)
        if value != default:
            options += [option] if value is True else [option, str(value)]
    backends: dict[tuple[str, int, str], list[str]] = {}
    for record in results.records:
        backends.setdefault(place(record), []).append(record.backend)
    lines = []
    for (problem, threads, cache), names in backends.items():
        chosen = [word for name in names for word in ("--backend", name)]
        cold = ["--cache", cache] if cache != "hot" else []
        words = ["dnnsep", "sweep", problem, *chosen, "--threads", str(threads), *cold, *options]
        lines.append(shlex.join(words))
    return lines
