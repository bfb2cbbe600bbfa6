"""The gate: ``pytest perf --baseline FILE`` fails where a layer is slower than in the baseline.

Freed memory stays in the process, as in a sweep: see dnnsep.host.allocator.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dnnsep.host.allocator import keep_pages
from dnnsep.host.machine import cpus_for, default_threads, fingerprint
from dnnsep.measure.calibrate import Calibrator
from dnnsep.report import compare_table
from dnnsep.report.compare import Comparison, compare, failures, how_to_compare
from dnnsep.report.load import load, of_benchmarks
from dnnsep.sweep.results import Key

keep_pages()

_CONFIG = Path(__file__).parents[1] / "configs" / "ci.yaml"
_FAIL_ON = ("slower", "impl-changed", "incorrect", "failed")
_THRESHOLDS: dict[str, float] = yaml.safe_load(
    (Path(__file__).parent / "thresholds.yaml").read_text(encoding="utf-8")
)

ENTRIES = pytest.StashKey[list[dict[str, Any]]]()
MACHINE = pytest.StashKey[dict[str, Any]]()
VERDICTS = pytest.StashKey[list[Comparison]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dnnsep")
    group.addoption("--baseline", type=Path, help="fail where a layer is slower than in this file")
    group.addoption("--config", type=Path, default=_CONFIG, help="the layers [configs/ci.yaml]")
    group.addoption("--visits", type=int, default=8, help="measure every layer so many times")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ENTRIES] = []


@pytest.fixture(scope="session")
def calibrator(pytestconfig: pytest.Config) -> Any:
    with Calibrator(cpus_for(default_threads())) as found:
        roofs = [found.roofs().model_dump()]
        pytestconfig.stash[MACHINE] = {"fingerprint": fingerprint(), "roofs": roofs}
        yield found


@pytest.fixture
def entries(pytestconfig: pytest.Config) -> list[dict[str, Any]]:
    """What the gate compares: pytest-benchmark's entries, as it would write them to JSON."""
    return pytestconfig.stash[ENTRIES]


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    machine_info["dnnsep"] = config.stash.get(MACHINE, {})


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """To 10 ns, which is what the clock resolves in a call: a baseline is a file in the project."""
    for entry in output_json["benchmarks"]:
        entry["stats"]["data"] = [round(seconds, 8) for seconds in entry["stats"]["data"]]


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    baseline = config.getoption("baseline")
    entries = config.stash[ENTRIES]
    if baseline is None or not entries:
        return
    try:
        base = load(baseline)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    new = of_benchmarks(entries, config.stash[MACHINE])
    names = {record.key: record.name or "" for record in new.records}

    def threshold(key: Key) -> float:
        return _THRESHOLDS.get(names.get(key, ""), _THRESHOLDS["default"]) / 100

    measured = set(names)
    how = how_to_compare(base, new)
    found = [c for c in compare(base, new, how=how, thresholds=threshold) if c.key in measured]
    config.stash[VERDICTS] = found
    if failures(found, _FAIL_ON):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)  # after the tables
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    found = config.stash.get(VERDICTS, None)
    if found is None:
        return
    failed = failures(found, _FAIL_ON)
    terminalreporter.section(f"against {config.getoption('baseline')}")
    for comparison in found:
        mark = "FAILED " if comparison in failed else "ok     "
        terminalreporter.line(mark + compare_table.line(comparison), red=comparison in failed)
    terminalreporter.line(compare_table.summary(found))
