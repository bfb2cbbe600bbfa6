"""Reads results from files: those of a sweep, or those that pytest-benchmark wrote in perf/.

What is to be shown to others is freed of the folders of the user's machine.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dnnsep.host.inputs import RESULT_BYTES, read_bytes
from dnnsep.measure.roofs import Roofs
from dnnsep.measure.stats import Round, Stats
from dnnsep.problem import Problem
from dnnsep.report.labels import unlike
from dnnsep.sweep.fleetresults import FleetResults
from dnnsep.sweep.results import Record, Results, moment_of, parse_model

# The folders of an absolute path. A fraction such as FLOP/byte, an address on the web and a closing
# tag are none. Only in quotes can folders with spaces be told. A home folder's name is its user's.
_PART = r"""[^\s\\/'"`:,;|<>]"""
_START = r"(?<![\w.~/)\]%}<])(?<!https:)(?<!http:)|(?<=-[ILW])"
_USER = r"[\w.@+-]"
_HOME = re.compile(
    rf"(?:{_START})/+(?:root(?![\w-])|(?:home|Users)/+{_USER}+(?!{_USER}))(?:/+(?![/\w.@-])|(?!/))"
)
_QUOTED = re.compile(r"""(?<=["'])(?:/|[A-Za-z]:[\\/])[^"'\n]*[\\/](?=[^"'\n\\/]+["'])""")
_POSIX = re.compile(rf"(?:{_START})(?:file:)?/+(?:{_PART}+/+)+(?={_PART})")
_WINDOWS = re.compile(rf"(?<![A-Za-z])[A-Za-z]:[\\/]+(?:{_PART}+[\\/]+)*(?={_PART})")
# These turn the direction of a line.
_TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


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
    if isinstance(content, dict) and content.get("format") == "dnnsep-fleet":
        machines = FleetResults.parse(path, text).machines
        raise SeveralMachinesError(f"{path}: has the results of {', '.join(machines)}", machines)
    if not isinstance(content, dict) or "benchmarks" not in content:
        return Results.parse(path, text)
    try:
        machine = content["machine_info"]["dnnsep"]
        found = _of_benchmarks(content["benchmarks"], machine)
        commit = (content.get("commit_info") or {}).get("id")
        found.fingerprint = {**found.fingerprint, **({"commit": commit} if commit else {})}
        found.created = str(content.get("datetime") or found.created)
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not written by perf/: {error!r:.100}") from None
    try:
        moment_of(found.created)
    except ValueError as error:
        raise ValueError(f"{path}: datetime: {error}") from None
    return found


class SeveralMachinesError(ValueError):
    """A file has the results of several machines, ``machines`` by name, where those of one are
    wanted."""

    def __init__(self, message: str, machines: dict[str, Results]) -> None:
        super().__init__(message)
        self.machines = machines


def load_machines(path: Path) -> dict[str, Results]:
    """Returns a file's results by machine, of a sweep of one machine under an empty name. Raises
    ValueError as ``load`` does."""
    try:
        return {"": load(path)}
    except SeveralMachinesError as several:
        return several.machines


def named_alike(
    one: dict[str, Results], other: dict[str, Results]
) -> tuple[dict[str, Results], dict[str, Results]]:
    """Returns what ``load_machines`` returned of two files. If both are of a single machine, and
    only one names it, as a sweep by Ray does, the other has its name."""
    if len(one) == len(other) == 1 and "" in one.keys() ^ other.keys():
        name = "".join(one.keys() | other.keys())
        (only,), (also,) = one.values(), other.values()
        return {name: only}, {name: also}
    return one, other


def version_of(fingerprint: dict[str, Any]) -> str:
    """Returns dnnsep's version, and the commit's first twelve digits where it is told."""
    version = str(fingerprint.get("packages", {}).get("dnnsep", ""))
    return " ".join(filter(None, (version, str(fingerprint.get("commit") or "")[:12])))


def labels_of_files(paths: Sequence[Path]) -> list[str]:
    """Returns the name of each file without its folders; those of the same name are numbered."""
    labels: list[str] = []
    for path in paths:
        labels.append(unlike(shareable_text(path.name), labels))
    return labels


def shareable(results: Results) -> Results:
    """Returns results as others may see them: see ``shareable_text``, which all their texts pass.

    Models from files stay apart where only their folders differ: they are numbered.
    """
    problems = _shareable_problems(record.problem for record in results.records)
    return results.model_copy(
        update={
            "title": shareable_text(results.title),
            "created": shareable_text(results.created),
            "fingerprint": _shareable_value(results.fingerprint),
            "settings": _shareable_setting(results.settings),
            "roofs": {n: _shareable_roofs(roofs) for n, roofs in results.roofs.items()},
            "records": [_shareable_record(r, problems[r.problem]) for r in results.records],
        }
    )


def shareable_text(text: str) -> str:
    """Returns a text with the last part of every absolute path in it only, ``~`` for a home, and a
    replacement character for each one that controls a terminal. Ends of lines are newlines."""
    text = _HOME.sub("~", _QUOTED.sub("", text))
    text = _WINDOWS.sub("", _POSIX.sub("", text))
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if text.isprintable() else "".join(map(_printable, text))


def _printable(character: str) -> str:
    if character in "\n\t":
        return character
    controls = unicodedata.category(character) in ("Cc", "Cs") or character in _TURNS
    return "\ufffd" if controls else character


def _shareable_value(value: Any) -> Any:
    if isinstance(value, str):
        return shareable_text(value)
    if isinstance(value, dict):
        return {shareable_text(str(k)): _shareable_value(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_shareable_value(item) for item in value]
    return value


def _shareable_setting(value: Any) -> Any:
    """Returns a setting, where a text that begins as a path does is one path, spaces and all."""
    if isinstance(value, str):
        return shareable_text(_last(value))
    if isinstance(value, dict):
        return {shareable_text(str(k)): _shareable_setting(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_shareable_setting(item) for item in value]
    return value


def _last(path: str) -> str:
    """Returns the last part of an absolute path; any other text as it is."""
    return path.rstrip("/").rpartition("/")[2] if path.startswith("/") else path


def _shareable_problems(problems: Iterable[str]) -> dict[str, str]:
    """Returns how each problem is shown; descriptors are as they are."""
    names: dict[str, str] = {}
    shown = {}
    for problem in problems:
        shown[problem] = problem
        if " " not in problem:
            continue
        model = parse_model(problem)[0]
        if model not in names:
            names[model] = unlike(shareable_text(_last(model)), names.values())
        shown[problem] = names[model] + problem.removeprefix(model)
    return shown


def _shareable_record(record: Record, problem: str) -> Record:
    fields = ("name", "backend", "reason", "ran_on", "check", "impls", "output", "warnings")
    shown = {field: _shareable_value(getattr(record, field)) for field in fields}
    stages = {shareable_text(name): stats for name, stats in record.stages.items()}
    roof = record.roof
    if roof is not None:
        roof = roof.model_copy(update={"binds": shareable_text(roof.binds)})
    update = {**shown, "problem": problem, "stages": stages, "roof": roof}
    return record.model_copy(update=update)


def _shareable_roofs(roofs: Roofs) -> Roofs:
    return Roofs.model_validate(_shareable_value(roofs.model_dump()))


def _of_benchmarks(benchmarks: Sequence[dict[str, Any]], machine: dict[str, Any]) -> Results:
    """Makes results of pytest-benchmark's entries, with one record for all visits of a case.

    ``machine`` holds ``fingerprint`` and ``roofs``, as perf/ adds them to the machine's facts.
    Raises KeyError, TypeError or ValidationError for entries that perf/ did not write.
    """
    roofs = {r["threads"]: Roofs.model_validate(r) for r in machine["roofs"]}
    records: dict[tuple[str, ...], Record] = {}
    for entry in benchmarks:
        record = _record(entry, roofs)
        earlier = records.get((record.problem, record.backend))
        records[record.problem, record.backend] = earlier.joined(record) if earlier else record
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
