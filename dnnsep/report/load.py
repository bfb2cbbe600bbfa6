"""Results from files: a sweep's own, or what pytest-benchmark wrote in perf/."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dnnsep.measure.roofs import Roofs
from dnnsep.measure.stats import Round, Stats
from dnnsep.problem import Problem
from dnnsep.sweep.results import Record, Results


def load(path: Path) -> Results:
    """Raises ValueError naming the file and what is wrong with it."""
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(found, dict) or "benchmarks" not in found:
        return Results.load(path)
    try:
        machine = found["machine_info"]["dnnsep"]
        return of_benchmarks(found["benchmarks"], machine)
    except (KeyError, TypeError, ValidationError) as error:
        raise ValueError(f"{path}: not written by perf/: {error!r:.100}") from None


def of_benchmarks(benchmarks: Sequence[dict[str, Any]], machine: dict[str, Any]) -> Results:
    """Results of pytest-benchmark's entries, with one record for the visits of each case.

    ``machine`` holds ``fingerprint`` and ``roofs``, as perf/ adds them to the machine's facts.
    Raises KeyError, TypeError or ValidationError for entries that perf/ did not write.
    """
    roofs = {r["threads"]: Roofs.model_validate(r) for r in machine["roofs"]}
    records: dict[tuple[str, ...], Record] = {}
    for entry in benchmarks:
        record = _record(entry, roofs)
        before = records.get((record.problem, record.backend))
        records[record.problem, record.backend] = _merged(before, record) if before else record
    return Results(
        title="perf",
        fingerprint=machine["fingerprint"],
        settings={"suite": "perf"},
        roofs=roofs,
        records=list(records.values()),
    )


def _record(entry: dict[str, Any], roofs: dict[int, Roofs]) -> Record:
    info = entry["extra_info"]
    calls = [1e6 * seconds for seconds in entry["stats"]["data"]]
    turn = Round(visit=info["visit"], before=info["before"], after=info["after"], calls_us=calls)
    time = Stats.of([turn])
    measured = roofs.get(info["threads"])
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
        roof=measured.of(Problem.parse(info["problem"]), "hot") if measured else None,
        rounds=[turn],
    )


def _merged(before: Record, record: Record) -> Record:
    rounds = [*before.rounds, *record.rounds]
    time = Stats.of(rounds)
    gflops = record.flops / time.median_us / 1000
    return record.model_copy(update={"rounds": rounds, "time": time, "gflops": gflops})
