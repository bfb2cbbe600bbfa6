"""What the gate of this project's own layers adds to the plugin (dnnsep.gate): which layers there
are, and pytest-benchmark's tables and files, which get what ``dnnsep compare`` needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dnnsep.gate.measuring import Gate

_CONFIG = Path(__file__).parents[1] / "configs" / "ci.yaml"

_GATE = pytest.StashKey[Gate]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dnnsep")
    group.addoption("--config", type=Path, default=_CONFIG, help="the layers [configs/ci.yaml]")


@pytest.fixture
def gate(dnnsep_gate: Gate, pytestconfig: pytest.Config) -> Gate:
    """The plugin's, kept for what is written at the end."""
    pytestconfig.stash[_GATE] = dnnsep_gate
    return dnnsep_gate


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    if (gate := config.stash.get(_GATE, None)) is not None:
        results = gate.results()
        roofs = [of_threads.model_dump() for of_threads in results.roofs.values()]
        machine_info["dnnsep"] = {"fingerprint": results.fingerprint, "roofs": roofs}


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """To 10 ns, which is what the clock resolves in a call: a baseline is a file in the project."""
    for entry in output_json["benchmarks"]:
        entry["stats"]["data"] = [round(seconds, 8) for seconds in entry["stats"]["data"]]
