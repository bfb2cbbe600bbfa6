"""The machine and the software that a result was made with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

from dnnsep.backends.versions import installed_version

_PACKAGES = ("torch", "intel-extension-for-pytorch", "numpy")

# What changes how the engines run.
_VARIABLES = ("OMP_", "GOMP_", "KMP_", "ONEDNN_", "DNNL_", "MKL_", "LD_PRELOAD", "MALLOC_", "TORCH")


def fingerprint() -> dict[str, Any]:
    """CPU, caches in bytes, memory, OS, versions and the environment variables that matter."""
    import psutil
    from cpuinfo import get_cpu_info

    cpu = get_cpu_info()
    isa = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile")
    return {
        "cpu": cpu.get("brand_raw", platform.processor()),
        "cpu_family_model": [cpu.get("family"), cpu.get("model")],
        "isa": [flag for flag in isa if flag in cpu.get("flags", ())],
        "cores": psutil.cpu_count(logical=False),
        "logical_cpus": psutil.cpu_count(),
        "caches": {level: cpu.get(f"{level}_cache_size") for level in ("l2", "l3")},
        "memory_bytes": psutil.virtual_memory().total,
        "os": platform.platform(),
        "python": platform.python_version(),
        "packages": {
            "dnnsep": version("dnnsep"),
            **{name: found for name in _PACKAGES if (found := installed_version(name))},
        },
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_VARIABLES)},
    }


def default_threads() -> int:
    """The physical cores this process may run on."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(psutil.cpu_count(logical=False) or 1, usable or 1))
