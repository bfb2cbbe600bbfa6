"""Reads results from files: those of a sweep, or those that pytest-benchmark wrote in perf/."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dnnsep.host.inputs import RESULT_BYTES, read_bytes
from dnnsep.measure.roofs import Roofs
from dnnsep.measure.stats import Round, Stats
from dnnsep.problem import Problem
from dnnsep.sweep.results import Record, Results


def load(path: Path) -> Results:
    """Returns a file's results. Raises ValueError naming the file and what is wrong with it."""
    try:
        content = json.loads(text := read_bytes(path, RESULT_BYTES))
    except RecursionError:
        raise ValueError(f"{path}: is nested too deep") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None
    if not isinstance(content, dict) or "benchmarks" not in content:
        return Results.parse(path, text)
    try:
        machine = content["machine_info"]["dnnsep"]
        return of_benchmarks(content["benchmarks"], machine)
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not written by perf/: {error!r:.100}") from None


def of_benchmarks(benchmarks: Sequence[dict[str, Any]], machine: dict[str, Any]) -> Results:
    """Makes results of pytest-benchmark's entries, with one record for all visits of a case.

    ``machine`` holds ``fingerprint`` and ``roofs``, as perf/ adds them to the machine's facts.
    Raises KeyError, TypeError or ValidationError for entries that perf/ did not write.
    """
    roofs = {r["threads"]: Roofs.model_validate(r) for r in machine["roofs"]}
    records: dict[tuple[str, ...], Record] = {}
    for entry in benchmarks:
        record = _record(entry, roofs)
        earlier = records.get((record.problem, record.backend))
        records[record.problem, record.backend] = _merged(earlier, record) if earlier else record
    return Results(
        title="perf",
        fingerprint=machine["fingerprint"],
        settings={"suite": "perf"},
        roofs=roofs,
        records=list(records.values()),
    )


def _record(entry: dict[str, Any], roofs: dict[int, Roofs]) -> Record:
    """Makes a record of an entry, which is one visit."""
    info = entry["extra_info"]
    calls = [1e6 * seconds for seconds in entry["stats"]["data"]]
    turn = Round(visit=info["visit"], before=info["before"], after=info["after"], calls_us=calls)
    time = Stats.of([turn])
    measured_roofs = roofs.get(info["threads"])
    return Record(
        problem=info["problem"],
        name=info["name"],
        backend=info["backend"],
        threads=info["threads"],
        status="ok",
        ran_on=info["backend"],
        impls=info["impls"],
        flops=info["flops"],
        time=time,
        gflops=info["flops"] / time.median_us / 1000,
        roof=measured_roofs.of(Problem.parse(info["problem"]), "hot") if measured_roofs else None,
        rounds=[turn],
    )


def _merged(earlier: Record, record: Record) -> Record:
    """Returns a record with the rounds of both and the figures that follow from them."""
    rounds = [*earlier.rounds, *record.rounds]
    time = Stats.of(rounds)
    gflops = record.flops / time.median_us / 1000
    return record.model_copy(update={"rounds": rounds, "time": time, "gflops": gflops})
