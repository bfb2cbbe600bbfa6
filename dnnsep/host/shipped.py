"""The configurations that come with the package, by name."""

from __future__ import annotations

from pathlib import Path

# In a checkout a link to its configs.
_FOLDER = Path(__file__).resolve().parent.parent / "configs"
_SUFFIXES = (".yaml", ".yml")
_NETWORKS = "networks/"


def shipped(name: str) -> Path | None:
    """Returns the file of a configuration, as ``quickstart``, ``quickstart.yaml`` or
    ``models/mobilenet_v1``; None where none is called that."""
    files = _all().items()
    return next((path for known, path in files if name in (known, known + path.suffix)), None)


def shipped_sweeps() -> list[str]:
    """Returns the names of the sweep files."""
    return [name for name in _all() if not name.startswith(_NETWORKS)]


def shipped_networks() -> list[str]:
    """Returns the names of the files that list models."""
    return [name for name in _all() if name.startswith(_NETWORKS)]


def _all() -> dict[str, Path]:
    files = sorted(path for path in _FOLDER.rglob("*") if path.suffix in _SUFFIXES)
    return {path.relative_to(_FOLDER).with_suffix("").as_posix(): path for path in files}
