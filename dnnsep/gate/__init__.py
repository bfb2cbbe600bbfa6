"""A plugin of pytest: the fixture ``dnnsep_gate`` times layers and calls, and ``--dnnsep-baseline``
fails a run in which one became slower.

A run without the fixture pays for reading this file only: what measures (measuring.py) is imported
by the fixture, what compares where there is a baseline.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from dnnsep.gate.measuring import Gate, Session
    from dnnsep.report.compare import Comparison
    from dnnsep.sweep.results import Results

_FAIL_ON = ("slower", "impl-changed", "incorrect", "failed")

_BASELINE: pytest.StashKey[Results] = pytest.StashKey()
_SESSION: pytest.StashKey[Session] = pytest.StashKey()
_FOUND: pytest.StashKey[list[Comparison]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options."""
    add = parser.getgroup("dnnsep").addoption
    add("--dnnsep-baseline", type=Path, metavar="FILE", help="fail where slower than in this file")
    add("--dnnsep-save", type=Path, metavar="FILE", help="write what was measured, as a baseline")
    add(
        "--dnnsep-visits",
        type=_visits,
        default=8,
        metavar="N",
        help="come to every test N times; with fewer than 4 nothing is called slower [8]",
    )
    add(
        "--dnnsep-threshold",
        type=float,
        default=5.0,
        metavar="PERCENT",
        help="the least slow-down that counts [5]",
    )


def _visits(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 (given: {text})")
    return int(text)


def pytest_configure(config: pytest.Config) -> None:
    """Reads the baseline. Raises UsageError where that or saving later is not possible: before
    minutes of measuring, not after."""
    save, baseline = config.getoption("--dnnsep-save"), config.getoption("--dnnsep-baseline")
    if save is not None and not save.absolute().parent.is_dir():
        raise pytest.UsageError(f"--dnnsep-save {save}: no such directory")
    if baseline is None:
        return
    from dnnsep.report.load import load

    try:
        config.stash[_BASELINE] = load(baseline)
    except ValueError as error:
        raise pytest.UsageError(f"--dnnsep-baseline {error}") from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Makes as many tests as visits of each that uses the fixture."""
    if "dnnsep_gate" in metafunc.fixturenames:
        visits = metafunc.config.getoption("--dnnsep-visits")
        metafunc.fixturenames.append("dnnsep_visit")
        metafunc.parametrize("dnnsep_visit", range(visits), ids=lambda n: f"visit{n}")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders tests by visits: what a machine does for a while does not hit one layer only."""

    def visit(item: pytest.Item) -> int:
        spec = getattr(item, "callspec", None)
        return int(spec.params.get("dnnsep_visit", 0)) if spec is not None else 0

    items.sort(key=visit)


@pytest.fixture
def dnnsep_gate(request: pytest.FixtureRequest) -> Gate:
    """Times layers and calls: see dnnsep.gate.measuring.Gate."""
    if hasattr(request.config, "workerinput"):
        raise pytest.UsageError("dnnsep_gate: times nothing beside other workers, run without -n")
    from dnnsep.gate.measuring import Gate, Session

    stash = request.config.stash
    if _SESSION not in stash:
        stash[_SESSION] = Session(request.config.getoption("--dnnsep-threshold"))
    return Gate(stash[_SESSION], request.getfixturevalue("dnnsep_visit"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes what was measured, and compares it with the baseline."""
    config = session.config
    measured = config.stash.get(_SESSION, None)
    if measured is None:
        return
    measured.close()
    save = config.getoption("--dnnsep-save")
    if save is not None:
        measured.results().save(save)
    baseline = config.stash.get(_BASELINE, None)
    if baseline is None:
        return
    from dnnsep.report.compare import failures

    try:
        found = measured.compared_with(baseline)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[_FOUND] = found
    if failures(found, _FAIL_ON):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)  # after the tables of others
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Says of each case whether it is as fast as in the baseline."""
    found = config.stash.get(_FOUND, None)
    if not found:
        return
    from dnnsep.report import compare_table
    from dnnsep.report.compare import failures

    failed = failures(found, _FAIL_ON)
    terminalreporter.section(f"against {config.getoption('--dnnsep-baseline')}")
    for comparison in found:
        mark = "FAILED " if comparison in failed else "ok     "
        terminalreporter.line(mark + compare_table.line(comparison), red=comparison in failed)
    # It advises in terms of dnnsep sweep, whose option has the shorter name.
    summary = compare_table.summary(found).replace("`--visits", "`--dnnsep-visits")
    terminalreporter.line(summary)
