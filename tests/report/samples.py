"""Made-up results that look like two real sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dnnsep.cost import cost
from dnnsep.measure.roofs import MemoryLevel, Roofs
from dnnsep.measure.stats import Stats
from dnnsep.problem import Problem
from dnnsep.sweep.case import Case
from dnnsep.sweep.config import Overrides, load_sweep
from dnnsep.sweep.results import Record, Results
from tests.sweep.samples import rounds_of

_CONFIG = Path(__file__).parents[2] / "configs" / "models" / "mobilenet_v1.yaml"
BACKENDS = ("ipex", "onnxruntime", "openvino", "xnnpack", "eager")
# How much of the roof each backend reaches.
_SHARES = {"ipex": 0.62, "onnxruntime": 0.41, "openvino": 0.55, "xnnpack": 0.47, "eager": 0.3}
_IMPLS = ["convolution:brdgmm_dw:avx512_core", "matmul:brg_matmul:avx512_core"]
_WARNINGS = (
    "spread: half the interquartile range is 14% of the median",
    "load: other processes used 8% of the CPUs",
)


def two_files() -> list[tuple[str, Results]]:
    """MobileNet V1 in f32 and bf16 on 2 threads, and in f32 on 1 thread of another machine."""
    rng = np.random.default_rng(7)
    first = _results("MobileNet V1", 2, ("f32", "bf16"), BACKENDS, "AMD EPYC", rng)
    second = _results("MobileNet V1", 1, ("f32",), ("ipex", "openvino"), "Intel Xeon", rng)
    return [("epyc.json", first), ("xeon.json", second)]


def fleet(count: int = 3) -> dict[str, Results]:
    """MobileNet V1 in both dtypes on machines of which each is faster than the one before; which
    backend is the fastest changes between them, and one machine has no bf16."""
    rng = np.random.default_rng(11)
    machines = {}
    for number in range(count):
        dtypes = ("f32",) if number == 1 else ("f32", "bf16")
        name = f"amd-epyc-9r{number + 1}4-avx512_bf16-2c"
        machines[name] = _results(
            "MobileNet V1",
            2,
            dtypes,
            BACKENDS[:3],
            f"AMD EPYC 9R{number + 1}4",
            rng,
            1 + number / 2,
        )
    return machines


def awkward_file() -> tuple[str, Results]:
    """Much that does not fit: many backends with long names, long and missing layer names, layers
    of the same name, long reasons and warnings, a wide range of times."""
    rng = np.random.default_rng(8)
    backends = [f"{name}:pointwise=inner_product" for name in BACKENDS] + list(BACKENDS)
    records = []
    for index, size in enumerate((4, 14, 56, 112)):
        problem = Problem.parse(
            f"mb1ic64oc{64 + index}ih{size}iw{size + 1}kh3kw5ph1pw2pr1_act:gelu,silu"
        )
        case = Case(problem, None if index < 2 else "features.block." * 5 + "same", 2, ())
        for name in backends:
            record = _record(case, name, roofs(2), 3, rng)
            records.append(record.model_copy(update={"warnings": [_WARNINGS[0] * 3]}))
    refused = records[-1].model_copy(
        update={
            "backend": "ncnn",
            "status": "refused",
            "time": None,
            "gflops": None,
            "reason": "cannot run this: " + "a long reason, " * 12,
        }
    )
    results = Results(
        title="awkward " * 12,
        fingerprint=_fingerprint("C" * 120),
        settings=_settings(backends),
        roofs={2: roofs(2)},
        records=[*records, refused],
    )
    return "results-" + "x" * 90 + ".json", results


def roofs(threads: int, faster: float = 1.0) -> Roofs:
    """A core's 255 GFLOP/s in f32 and 500 in bf16, with L2, L3 and DRAM; all of it so many times
    as fast."""
    rates = {"f32": 255.0, "bf16": 500.0, "int8": 990.0}
    levels = (("L2", 1 << 20, 210.0), ("L3", 16 << 20, 95.0), ("DRAM", None, 21.0))
    return Roofs(
        threads=threads,
        clock_ghz=4.02,
        fma_gflops={dtype: rate * threads * faster for dtype, rate in rates.items()},
        fma_flops_per_cycle={"f32": 63.5, "bf16": 124.4, "int8": 246.3},
        memory=[
            MemoryLevel(
                name=name,
                capacity_bytes=capacity and capacity * threads,
                read_gbs=rate * threads * faster,
                copy_gbs=0.8 * rate * threads * faster,
            )
            for name, capacity, rate in levels
        ],
    )


def _results(
    title: str,
    threads: int,
    dtypes: tuple[str, ...],
    backends: tuple[str, ...],
    cpu: str,
    rng: np.random.Generator,
    faster: float = 1.0,
) -> Results:
    plan = load_sweep([str(_CONFIG)], Overrides(backends, [threads], dtypes), threads)
    measured = roofs(threads, faster)
    return Results(
        title=title,
        created="2026-03-01T12:00:00+00:00",
        fingerprint=_fingerprint(cpu),
        settings=_settings(backends),
        roofs={threads: measured},
        records=[
            _record(case, backend, measured, index, rng)
            for index, case in enumerate(plan.cases)
            for backend in backends
        ],
    )


def models_file() -> Results:
    """A model in both dtypes and two batches on two engines, one of which refuses bf16."""
    (_, results), _ = two_files()
    timed = results.records[0].model_copy(update={"name": None, "roof": None, "impls": []})
    records = []
    for problem in ("net 1x3x9x9", "net bf16 1x3x9x9", "net 4x3x9x9", "net bf16 4x3x9x9"):
        case = {"problem": problem, "flops": 1_000_000}
        records.append(timed.model_copy(update={**case, "backend": "dnnsep"}))
        other = timed.model_copy(update={**case, "backend": "onnxruntime"})
        if "bf16" in problem:
            refused = {"status": "refused", "reason": "no bf16 kernels", "rounds": []}
            other = other.model_copy(update={**refused, "time": None, "gflops": None})
        records.append(other)
    settings = {"seconds": 2.0, "precision_percent": 1.0, "stages": False, "visits": 3}
    return results.model_copy(update={"records": records, "roofs": {}, "settings": settings})


def _record(
    case: Case, backend: str, measured: Roofs, index: int, rng: np.random.Generator
) -> Record:
    flops = cost(case.problem).flops
    common: dict[str, Any] = {
        **{"problem": str(case.problem), "name": case.name, "backend": backend},
        **{"threads": case.threads, "cache": case.cache, "flops": flops},
    }
    if backend == "xnnpack" and case.problem.dtype == "bf16":
        return Record(**common, status="refused", reason="xnnpack runs f32 only")
    if backend == "onnxruntime" and index == 12:
        return Record(**common, status="failed", reason="the worker ended with signal 11 (SIGSEGV)")
    if backend == "eager" and index == 4:
        reason = "disagrees with the reference at (0, 17, 3, 5): 41.0, should be 40.0"
        return Record(**common, status="incorrect", reason=reason)
    roof = measured.of(case.problem, case.cache)
    share = _SHARES[backend.partition(":")[0]] * rng.uniform(0.7, 1.3)
    calls = flops / (roof.gflops * share * 1e3) * rng.normal(1, 0.02, (10, 12))
    rounds = rounds_of(calls.tolist())
    time = Stats.of(rounds)
    return Record(
        **common,
        status="ok",
        ran_on=backend,
        check="right, exactly equal to the reference",
        impls=_IMPLS if backend.startswith(("ipex", "eager")) else [],
        time=time,
        gflops=flops / time.median_us / 1e3,
        roof=roof,
        output="new",
        peak_memory_bytes=412_000_000 + index,
        warnings=[_WARNINGS[index % 2]] if index % 7 == 3 else [],
        rounds=rounds,
    )


def _settings(backends: Sequence[str]) -> dict[str, Any]:
    return {
        **{"config": [_CONFIG.name], "backends": list(backends), "seconds": 0.5},
        **{"precision_percent": 2.0, "visits": 1, "stages": False, "allocator": "keep"},
        **{"caches": ["hot"]},
    }


def _fingerprint(cpu: str) -> dict[str, Any]:
    return {
        "cpu": cpu,
        "isa": ["avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni"],
        "cores": 2,
        "logical_cpus": 2,
        "caches": {"l2": 2 << 20, "l3": None},
        "memory_bytes": 25_276_510_208,
        "os": "Linux-6.18.44-x86_64-with-glibc2.36",
        "python": "3.11.7",
        "packages": {"dnnsep": "0.1.0", "torch": "2.8.0", "openvino": "2026.4.1"},
        "environment": {"OMP_NUM_THREADS": "2"},
    }
