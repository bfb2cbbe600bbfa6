"""Describes the machine and the software that a result is made with, and counts its CPUs."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dnnsep.host.caches import cpu_list
from dnnsep.host.packages import installed_version

_PACKAGES = (
    "torch",
    "intel-extension-for-pytorch",
    "numpy",
    "openvino",
    "onnxruntime",
    "ai-edge-litert",
    "ncnn",
)

# How the environment variables begin that change how the engines run.
_VARIABLES = (
    "OMP_",
    "GOMP_",
    "KMP_",
    "ONEDNN_",
    "DNNL_",
    "MKL_",
    "LD_PRELOAD",
    "MALLOC_",
    "TORCH",
    "DNNSEP_",
)


def fingerprint() -> dict[str, Any]:
    """Returns a description of this machine that can be written as JSON.

    It holds the CPU, the sizes of caches and memory in bytes, the OS, the versions of packages and
    the environment variables that change how the engines run.
    """
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
            **{name: number for name in _PACKAGES if (number := installed_version(name))},
        },
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_VARIABLES)},
    }


def cpus_for(threads: int) -> list[int]:
    """Returns the CPU to pin each of so many threads to.

    Only CPUs that this process may use are taken: first one of each core, then the others of the
    cores, then, with more threads than CPUs, the same ones again.
    """
    if not hasattr(os, "sched_getaffinity"):
        return list(range(threads))
    allowed = sorted(os.sched_getaffinity(0))
    first_of_core = [cpu for cpu in allowed if cpu == min(_siblings(cpu) & set(allowed))]
    ordered = first_of_core + [cpu for cpu in allowed if cpu not in first_of_core]
    return [ordered[i % len(ordered)] for i in range(threads)]


def _siblings(cpu: int) -> set[int]:
    """Returns the CPUs that share a core with this one, itself among them."""
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return cpu_list(path.read_text())
    except OSError:
        return {cpu}


def default_threads() -> int:
    """Returns the physical cores, or the CPUs this process may run on where they are fewer."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(psutil.cpu_count(logical=False) or 1, usable or 1))
