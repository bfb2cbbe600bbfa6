"""What generated code and tuned plans are kept under."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

# Beside this folder, the sources that decide what is generated of a problem and how weights lie.
_NOUNS = (
    *("problem.py", "descriptor.py", "weights.py", "activations.py", "dtypes.py"),
    "quantization.py",
)


@cache
def generator() -> str:
    """Names this generator: the text of every source that decides its code, and LLVM's version."""
    here = Path(__file__).parent
    sources = [*sorted(here.rglob("*.py")), *(here.parent / name for name in _NOUNS)]
    digest = sha256()
    for source in sources:
        content = source.read_bytes()
        digest.update(f"{source.relative_to(here.parent)} {len(content)}\n".encode() + content)
    return f"{digest.hexdigest()} llvmlite {version('llvmlite')}"
