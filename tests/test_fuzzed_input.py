"""Random changes of valid files and command lines: each is read, or refused as bad input is."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest
from typer.testing import CliRunner

from dnnsep.cli import app
from tests.test_bad_input import SMALL, within

# So many of each kind; DNNSEP_FUZZ_TRIES asks for another number.
TRIES = int(os.environ.get("DNNSEP_FUZZ_TRIES", "400"))

CONFIGS = Path(__file__).parent.parent / "configs"
VALID = sorted(CONFIGS.rglob("*.yaml"))

# What parsers stumble over.
PIECES = [
    *("[", "]", "{", "}", ":", ": ", ",", "- ", "\n", "\n  ", '"', "'", "#", "&a ", "*a", "<<: "),
    *("!!binary ", "!!float ", "!!set ", "? ", "| ", "> ", "---\n", "...\n", "%YAML 9.9\n", "\t"),
    *("null", "true", "~", "0", "-1", "1e309", ".nan", ".inf", "0x10", "1_000", "2020-01-01"),
    *("999999999999999999999999", "\x00", "\x1b[31m", "\ufeff", "\u2028", "é", "𝟘", "\ud7ff"),
    *("axes: ", "include: ", "shape: ", "combine: zip", "ph: same", "kind: linear", "backends: "),
    *("peers", "ipex", "_act:", "_bf16", "_nobias", "linear_", "mean_", "mb1", "g1", "kh3", "oh"),
    *("title: ", "problems: ", "threads: ", "dtypes: ", "batch: ", "cache: ", "hot", "models: "),
]


def mutated(text: str, rng: Random) -> str:
    """Returns a text with one to six random changes."""
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(text) + 1)
        until = min(len(text), at + rng.choice([1, 2, 5, 20, 200]))
        part = rng.choice([rng.choice(PIECES), text[at:until], chr(rng.randrange(1, 0x300)), ""])
        kept = until if rng.random() < 0.5 else at
        text = text[:at] + part * rng.choice([1, 1, 1, 2, 50]) + text[kept:]
    return text


def check(arguments: list[str]) -> None:
    with within(20):
        result = CliRunner().invoke(app, arguments)
    ended = result.exception is None or isinstance(result.exception, SystemExit)
    assert ended, (arguments, result.exception)
    assert result.exit_code in (0, 2), (arguments, result.exit_code, result.output)
    if result.exit_code == 2 and result.stderr.startswith("dnnsep: "):
        assert result.stderr.count("\n") == 1, result.stderr
        assert len(result.stderr) < 800


@pytest.mark.slow
@pytest.mark.parametrize("block", range(4))
def test_changed_sweep_files(tmp_path: Path, block: int) -> None:
    rng = Random(block)
    texts = [path.read_text() for path in VALID]
    path = tmp_path / "changed.yaml"
    for _ in range(TRIES // 4):
        path.write_text(mutated(rng.choice(texts), rng), encoding="utf-8")
        check(["sweep", str(path), "--list"])


@pytest.mark.slow
def test_changed_shape_files(tmp_path: Path) -> None:
    rng = Random(4)
    text = 'g32ic32ih112oc32oh112kh3ph1n"dw"\nic32oc64ih112oh112kh1n"pw"\n# a comment\n'
    path = tmp_path / "changed.bench"
    for _ in range(TRIES // 2):
        path.write_text(mutated(text, rng), encoding="utf-8")
        check(["sweep", str(path), "--list"])


@pytest.mark.slow
def test_changed_descriptors() -> None:
    rng = Random(5)
    texts = [SMALL, "linear_mb196ic768oc3072_act:gelu", "g1mb1ic3oc32ih224kh3sh2ph1_act:relu_bf16"]
    for _ in range(TRIES):
        text = mutated(rng.choice(texts), rng)
        if not text.startswith("-"):
            check(["cost", text])


@pytest.mark.slow
def test_changed_results(tmp_path: Path) -> None:
    import json

    from tests.test_bad_input import _results

    rng = Random(6)
    text = json.dumps(_results())
    path = tmp_path / "changed.json"
    for _ in range(TRIES // 2):
        path.write_text(mutated(text, rng), encoding="utf-8")
        check(["report", str(path), "--format", "markdown"])
