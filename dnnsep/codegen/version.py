"""What generated code and tuned plans are kept under."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path


@cache
def generator() -> str:
    """Names this generator: its own sources and LLVM's version."""
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    digest = sha256(b"".join(source.read_bytes() for source in sources))
    return f"{digest.hexdigest()} llvmlite {version('llvmlite')}"
