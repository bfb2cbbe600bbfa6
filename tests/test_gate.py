"""The plugin in somebody's repository: a baseline, a gate that passes, and three that fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnnsep.sweep.results import Results

pytest_plugins = ["pytester"]

_SUITE = """
import time

import torch


def test_layer(dnnsep_gate):
    dnnsep_gate.layer("mb1ic8oc8ih4kh3ph1", backend="BACKEND", threads=1)


def test_model(dnnsep_gate):
    model, x = torch.nn.Conv2d(3, 8, 3).eval(), torch.ones(1, 3, 20, 20)

    def run():
        model(x)
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            pass

    dnnsep_gate.call("my net", x.shape, run)


def test_nothing_of_it():
    pass
"""


def _run(
    pytester: pytest.Pytester, *arguments: str, seconds: float = 0.001, backend: str = "eager"
) -> pytest.RunResult:
    suite = _SUITE.replace("SECONDS", str(seconds)).replace("BACKEND", backend)
    pytester.makepyfile(test_mine=suite)
    return pytester.runpytest_subprocess("-p", "dnnsep.gate", "-p", "no:cacheprovider", *arguments)


def test_it_costs_nothing_where_it_is_not_used(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import sys\ndef test_it():\n    assert not {'torch', 'scipy'} & set(sys.modules)\n"
    )
    done = pytester.runpytest_subprocess("-p", "dnnsep.gate", "-p", "no:hypothesispytest")
    done.assert_outcomes(passed=1)


@pytest.mark.slow
def test_the_gate(pytester: pytest.Pytester, tmp_path: Path) -> None:
    baseline = tmp_path / "baseline.json"
    done = _run(pytester, "--dnnsep-save", str(baseline))
    done.assert_outcomes(passed=17)  # eight visits to two tests, and the other one
    results = Results.load(baseline)
    assert [record.problem for record in results.records] == [
        "mb1ic8oc8ih4kh3sh1ph1",
        "my_net 1x3x20x20",
    ]
    assert all(record.visits == 8 for record in results.records)

    arguments = ("--dnnsep-baseline", str(baseline), "--dnnsep-threshold", "60")
    done = _run(pytester, *arguments)
    assert done.ret == 0
    done.stdout.fnmatch_lines(["*against *baseline.json*", "ok *mb1ic8oc8ih4kh3*"])

    done = _run(pytester, *arguments, seconds=0.004)
    assert done.ret == 1
    done.stdout.fnmatch_lines(["FAILED *my_net 1x3x20x20*"])


@pytest.mark.slow
def test_what_is_wrong_fails_its_test(pytester: pytest.Pytester, tmp_path: Path) -> None:
    done = _run(pytester, "--dnnsep-visits", "1", "-k", "layer", backend="nobody")
    done.assert_outcomes(failed=1)
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    done = _run(pytester, "--dnnsep-visits", "1", "--dnnsep-baseline", str(bad))
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["*bad.json: title: Field required*"])
