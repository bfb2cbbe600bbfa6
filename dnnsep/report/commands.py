"""Writes the shell commands that measure a sweep's cases again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from dnnsep.report.table import Place, place
from dnnsep.sweep.results import Results, block_of, parse_model

# The sweep's options by the setting they end up in, with their defaults.
OPTIONS: dict[str, tuple[str, Any]] = {
    "seconds": ("--seconds", 1.0),
    "precision_percent": ("--precision", 2.0),
    "visits": ("--visits", 1),
    "stages": ("--stages", False),
    "allocator": ("--allocator", "keep"),
}
# Those of bench-model.
MODEL_OPTIONS = {
    **{name: option for name, option in OPTIONS.items() if name != "stages"},
    "seconds": ("--seconds", 2.0),
    "precision_percent": ("--precision", 1.0),
}


def commands(results: Results) -> list[str]:
    """Returns a shell command for each case, with its backends and the settings of the results."""
    backends: dict[Place, list[str]] = {}
    for record in results.records:
        backends.setdefault(place(record), []).append(record.backend)
    lines = []
    for (problem, threads, cache), names in backends.items():
        if " " in problem and block_of(problem) is None:
            words, options = _of_model(problem, names), MODEL_OPTIONS
        else:
            chosen = [word for name in names for word in ("--backend", name)]
            descriptor = str(block_of(problem) or problem)
            words, options = ["dnnsep", "sweep", descriptor, *chosen], OPTIONS
        cold = ["--cache", cache] if cache != "hot" else []
        words += ["--threads", str(threads), *cold, *_changed(options, results.settings)]
        lines.append(shlex.join(words))
    return lines


def _of_model(problem: str, engines: Sequence[str]) -> list[str]:
    """Returns the words of the command that measures a model on engines."""
    name, shape, dtype = parse_model(problem)
    words = ["dnnsep", "bench-model", name, "--input", ",".join(map(str, shape))]
    against = ",".join(engine for engine in engines if engine != "dnnsep")
    return [*words, "--dtype", dtype, "--against", against]


def _changed(options: dict[str, tuple[str, Any]], settings: dict[str, Any]) -> list[str]:
    """Returns the options whose settings are not their defaults."""
    words = []
    for setting, (option, default) in options.items():
        value = settings.get(setting, default)
        if value != default:
            words += [option] if value is True else [option, str(value)]
    return words
