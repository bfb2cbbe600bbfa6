"""The plugin in somebody's repository: a baseline, a gate that passes, and those that fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnnsep.sweep.results import Results

pytest_plugins = ["pytester"]

_SUITE = """
import torch


def test_layer(dnnsep_gate):
    before = torch.get_num_threads()
    dnnsep_gate.layer("mb1ic32oc32ih28kh3ph1", backend="eager", threads=1, name="block")
    assert torch.get_num_threads() == before


def test_model(dnnsep_gate):
    torch.set_num_threads(1)
    model, x = torch.nn.Conv2d(16, 32, 3).eval(), torch.ones(1, 16, 40, 40)
    dnnsep_gate.call("my net", x.shape, lambda: [model(x) for _ in range(PASSES)])


def test_nothing_of_it():
    pass
"""

# On a busy machine the gate calls nothing, and the tests' machine may be one.
_QUIET = """
from dnnsep.measure.calibrate import Calibrator
from dnnsep.measure.stats import Control

Calibrator.control = lambda self: Control(busy_us=1, loads_us=1, handover_ns=None)
"""

# A version of the backend whose layers do their work PASSES times, and are wrong by ERROR.
_CHANGED = """
from dnnsep.backends.eager import EagerBackend

prepare = EagerBackend.prepare


def changed(self, problem, weights):
    executor = prepare(self, problem, weights)

    def run(x):
        for _ in range(PASSES):
            y = executor(x)
        return y + ERROR

    return run


EagerBackend.prepare = changed
"""

_LAYER, _NET = "mb1ic32oc32ih28kh3sh1ph1", "my_net 1x16x40x40"


def _run(
    pytester: pytest.Pytester,
    *arguments: str,
    layer_passes: int = 1,
    net_passes: int = 1,
    error: float = 0.0,
) -> pytest.RunResult:
    """Runs the suite with a layer and a model that do their work so many times."""
    pytester.makepyfile(test_mine=_SUITE.replace("PASSES", str(net_passes)))
    changed = _CHANGED.replace("PASSES", str(layer_passes)).replace("ERROR", str(error))
    pytester.makeconftest(_QUIET + (changed if layer_passes > 1 or error else ""))
    # Without pytest-benchmark, which not everybody has.
    plugins = ("-p", "dnnsep.gate", "-p", "no:cacheprovider", "-p", "no:benchmark")
    return pytester.runpytest_subprocess(*plugins, *arguments)


def test_it_costs_nothing_where_it_is_not_used(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import sys\n"
        "def test_it():\n"
        "    assert 'dnnsep.gate' in sys.modules\n"
        "    assert not {'torch', 'scipy', 'numpy', 'pydantic'} & set(sys.modules)\n"
    )
    done = pytester.runpytest_subprocess("-p", "dnnsep.gate", "-p", "no:hypothesispytest")
    done.assert_outcomes(passed=1)


@pytest.mark.slow
def test_the_gate(pytester: pytest.Pytester, tmp_path: Path) -> None:
    baseline = tmp_path / "baseline.json"
    done = _run(pytester, "--dnnsep-save", str(baseline))
    done.assert_outcomes(passed=17)  # eight visits to two tests, and the other one
    results = Results.load(baseline)
    assert [record.problem for record in results.records] == [_LAYER, _NET]
    assert all(record.visits == 8 for record in results.records)

    # Three passes take 200 % more. What others do on the machine is to stay below the threshold.
    arguments = ("--dnnsep-baseline", str(baseline), "--dnnsep-threshold", "70")
    done = _run(pytester, *arguments)
    assert done.ret == 0
    done.stdout.fnmatch_lines(["*against *baseline.json*", "ok *block, eager*", f"ok *{_NET}*"])

    done = _run(pytester, *arguments, net_passes=3)
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    done.assert_outcomes(passed=17)
    done.stdout.fnmatch_lines(["ok *block, eager*", f"FAILED SLOWER *{_NET}*"])

    done = _run(pytester, *arguments, layer_passes=3)
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    done.stdout.fnmatch_lines(["FAILED SLOWER *block, eager*", f"ok *{_NET}*"])


@pytest.mark.slow
def test_a_wrong_answer_fails_its_test(pytester: pytest.Pytester) -> None:
    done = _run(pytester, "--dnnsep-visits", "1", error=1.0)
    done.assert_outcomes(failed=1, passed=2)
    done.stdout.fnmatch_lines([f"*AssertionError: eager on {_LAYER}: *"])


@pytest.mark.slow
def test_a_backend_that_is_not_there_fails_its_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(dnnsep_gate): dnnsep_gate.layer('mb1ic8oc8ih4kh3', 'nobody')")
    done = pytester.runpytest_subprocess("-p", "dnnsep.gate", "--dnnsep-visits", "1")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*backend 'nobody': must be one of*"])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--dnnsep-baseline", "bad.json"), "*--dnnsep-baseline bad.json: title: Field required"),
        (("--dnnsep-baseline", "no.json"), "*--dnnsep-baseline no.json: No such file*"),
        (("--dnnsep-save", "no/such.json"), "*--dnnsep-save no/such.json: no such directory"),
        (("--dnnsep-visits", "0"), "*--dnnsep-visits: must be a whole number from 1 (given: 0)"),
    ],
)
def test_bad_options_stop_before_measuring(
    pytester: pytest.Pytester, arguments: tuple[str, str], error: str
) -> None:
    pytester.path.joinpath("bad.json").write_text("{}")
    pytester.makepyfile("def test_it(): pass")
    done = pytester.runpytest_subprocess("-p", "dnnsep.gate", *arguments)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines([error])
    assert "test_it" not in done.stdout.str()
