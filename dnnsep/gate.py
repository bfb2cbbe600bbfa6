"""A plugin of pytest: the fixture ``dnnsep_gate`` times layers and calls, and ``--dnnsep-baseline``
fails a run in which one became slower.

Costs a run without the fixture nothing: what it needs is imported by the fixture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from dnnsep.measure.calibrate import Calibrator
    from dnnsep.measure.stats import Round
    from dnnsep.report.compare import Comparison
    from dnnsep.sweep.results import Record, Results

_WARM_UP, _CALLS = 20, 25
# How long a timing waits for the machine to be quiet, in seconds.
_PATIENCE = 1.0
_FAIL_ON = ("slower", "impl-changed", "incorrect", "failed")

_GATE = pytest.StashKey["_Session"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options."""
    group = parser.getgroup("dnnsep")
    add = group.addoption
    add("--dnnsep-baseline", type=Path, metavar="FILE", help="fail where slower than in this file")
    add("--dnnsep-save", type=Path, metavar="FILE", help="write what was measured, as a baseline")
    add("--dnnsep-visits", type=int, default=8, metavar="N", help="come to every test N times [8]")
    add(
        "--dnnsep-threshold",
        type=float,
        default=5.0,
        metavar="PERCENT",
        help="the least slow-down that counts [5]",
    )


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
    """Times layers and calls: see Gate."""
    if hasattr(request.config, "workerinput"):
        raise pytest.UsageError("dnnsep_gate: times nothing beside other workers, run without -n")
    stash = request.config.stash
    if _GATE not in stash:
        stash[_GATE] = _Session()
    return Gate(stash[_GATE], request.getfixturevalue("dnnsep_visit"))


class Gate:
    """What the fixture gives: times the same things on each visit, and keeps the figures."""

    def __init__(self, session: _Session, visit: int) -> None:
        self._session, self._visit = session, visit

    def layer(self, descriptor: str, backend: str = "fused", threads: int | None = None) -> None:
        """Times a layer, ``descriptor`` as of ``dnnsep sweep``, on a backend, after it was compared
        with the reference; ``threads`` is the physical cores where it is not given.

        Fails the test where the backend is not there, cannot run it, or answers wrongly. Raises
        ValueError where the descriptor is none.
        """
        import torch

        from dnnsep import Problem, cost, get_backend
        from dnnsep.backends.tensors import to_channels_last
        from dnnsep.host.machine import default_threads
        from dnnsep.sweep.check import CheckData
        from dnnsep.sweep.verbose import onednn_log

        problem, count = Problem.parse(descriptor), threads or default_threads()
        torch.set_num_threads(count)
        engine = get_backend(backend)
        for verdict in (engine.available(), engine.supports(problem)):
            assert verdict, f"{backend}: {verdict.reason}"
        data = CheckData.exact(problem)
        executor = engine.prepare(problem, data.weights)
        x = to_channels_last(data.x, problem.dtype)
        executor(x)
        with onednn_log() as log, torch.no_grad():
            y = executor(x)
        correct, finding = data.verdict(y.float().numpy())
        assert correct, f"{backend} on {problem}: {finding}"
        impls = [f"{primitive.kind}:{primitive.impl}" for primitive in log.primitives]
        flops = cost(problem).flops
        with torch.no_grad():
            self._time(str(problem), backend, count, lambda: executor(x), flops, impls)

    def call(
        self, name: str, shape: tuple[int, ...], run: Callable[[], Any], engine: str = "mine"
    ) -> None:
        """Times ``run()``, say a model of your own on an input of a shape, as case ``name``. Its
        answer is yours to check."""
        import torch

        problem = f"{'_'.join(name.split())} {'x'.join(map(str, shape))}"
        with torch.no_grad():
            self._time(problem, engine, torch.get_num_threads(), run, 0, [])

    def _time(
        self,
        problem: str,
        backend: str,
        threads: int,
        run: Callable[[], Any],
        flops: int,
        impls: list[str],
    ) -> None:
        from dnnsep.measure.stats import Round

        for _ in range(_WARM_UP):
            run()
        calibrator = self._session.calibrator
        before = calibrator.quiet_control(calibrator.control(), _PATIENCE)
        calls_us = []
        for _ in range(_CALLS):
            start = perf_counter_ns()
            run()
            calls_us.append((perf_counter_ns() - start) / 1000)
        after = calibrator.control()
        turn = Round(visit=self._visit, before=before, after=after, calls_us=calls_us)
        self._session.keep((problem, backend, threads), turn, flops, impls)


class _Session:
    """The figures of a run."""

    def __init__(self) -> None:
        from dnnsep.host.allocator import keep_pages
        from dnnsep.host.machine import cpus_for, default_threads
        from dnnsep.measure.calibrate import Calibrator

        keep_pages()  # as in a sweep
        self.calibrator: Calibrator = Calibrator(cpus_for(default_threads()))
        self._roofs = self.calibrator.roofs()
        self._records: dict[tuple[str, str, int], Record] = {}
        self.found: list[Comparison] | None = None

    def keep(self, case: tuple[str, str, int], turn: Round, flops: int, impls: list[str]) -> None:
        """Adds a round to those of a case: its problem, backend and threads."""
        from dnnsep.measure.stats import Stats
        from dnnsep.sweep.results import Record

        earlier = self._records.get(case)
        rounds = [*(earlier.rounds if earlier else []), turn]
        time = Stats.of(rounds)
        problem, backend, threads = case
        self._records[case] = Record(
            problem=problem,
            backend=backend,
            threads=threads,
            status="ok",
            flops=flops,
            impls=impls,
            time=time,
            gflops=flops / time.median_us / 1000 if flops else None,
            rounds=rounds,
        )

    def results(self) -> Results:
        """Returns the figures as a sweep's results."""
        from dnnsep.host.machine import fingerprint
        from dnnsep.sweep.results import Results

        return Results(
            title="gate",
            fingerprint=fingerprint(),
            settings={"suite": "pytest"},
            roofs={self._roofs.threads: self._roofs},
            records=list(self._records.values()),
        )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes what was measured, and compares it with the baseline."""
    config = session.config
    gate = config.stash.get(_GATE, None)
    if gate is None:
        return
    from dnnsep.report.compare import compare, failures, how_to_compare
    from dnnsep.report.load import load

    gate.calibrator.close()
    new = gate.results()
    save, baseline = config.getoption("--dnnsep-save"), config.getoption("--dnnsep-baseline")
    if save is not None:
        new.save(save)
    if baseline is None:
        return
    try:
        base = load(baseline)
        how = how_to_compare(base, new)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    measured = {record.key for record in new.records}
    threshold = config.getoption("--dnnsep-threshold") / 100
    gate.found = [c for c in compare(base, new, threshold, how) if c.key in measured]
    if failures(gate.found, _FAIL_ON):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Says of each case whether it is as fast as in the baseline."""
    gate = config.stash.get(_GATE, None)
    if gate is None or gate.found is None:
        return
    from dnnsep.report import compare_table
    from dnnsep.report.compare import failures

    failed = failures(gate.found, _FAIL_ON)
    terminalreporter.section(f"against {config.getoption('--dnnsep-baseline')}")
    for comparison in gate.found:
        mark = "FAILED " if comparison in failed else "ok     "
        terminalreporter.line(mark + compare_table.line(comparison), red=comparison in failed)
    terminalreporter.line(compare_table.summary(gate.found))
