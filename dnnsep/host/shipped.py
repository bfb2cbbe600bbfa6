"""The configurations that come with the package, by name."""

from __future__ import annotations

from pathlib import Path

# In a checkout a link to its configs.
_FOLDER = Path(__file__).resolve().parent.parent / "configs"
_SUFFIXES = (".yaml", ".yml")


def shipped(name: str) -> Path | None:
    """Returns the file of a configuration, as ``quickstart`` or ``models/mobilenet_v1``; None where
    none is called that."""
    return next((path for known, path in _all().items() if known == name), None)


def shipped_names() -> list[str]:
    """Returns the names of all."""
    return list(_all())


def _all() -> dict[str, Path]:
    files = sorted(path for path in _FOLDER.rglob("*") if path.suffix in _SUFFIXES)
    return {path.relative_to(_FOLDER).with_suffix("").as_posix(): path for path in files}
