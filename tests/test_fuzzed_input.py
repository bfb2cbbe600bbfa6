"""Random changes of valid files and command lines: each is read, or refused as bad input is."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from typer.testing import CliRunner

from dnnsep.cli import app
from tests.test_bad_input import SMALL, results, within

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


Check = Callable[[list[str]], None]


@pytest.fixture
def check() -> Iterator[Check]:
    """What runs a command line and looks at how it ends. Prints how many did, the longest time
    that one took, and the most memory that this process had so far."""
    seconds: list[float] = []

    def checked(arguments: list[str]) -> None:
        start = time.perf_counter()
        _check(arguments)
        seconds.append(time.perf_counter() - start)

    yield checked
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{len(seconds)} tries, at most {max(seconds):.2f} s and {memory} MiB")


def _check(arguments: list[str]) -> None:
    with within(20):
        result = CliRunner().invoke(app, arguments)
    ended = result.exception is None or isinstance(result.exception, SystemExit)
    assert ended, (arguments, result.exception)
    assert result.exit_code in (0, 1, 2), (arguments, result.exit_code, result.output)
    if result.exit_code == 2 and result.stderr.startswith("dnnsep: "):
        assert result.stderr.count("\n") == 1, result.stderr
        assert len(result.stderr) < 800


@pytest.mark.slow
@pytest.mark.parametrize("block", range(4))
def test_changed_sweep_files(check: Check, tmp_path: Path, block: int) -> None:
    rng = Random(block)
    texts = [path.read_text() for path in VALID]
    path = tmp_path / "changed.yaml"
    for _ in range(TRIES // 4):
        path.write_text(mutated(rng.choice(texts), rng), encoding="utf-8")
        check(["sweep", str(path), "--list"])


@pytest.mark.slow
def test_changed_shape_files(check: Check, tmp_path: Path) -> None:
    rng = Random(4)
    text = 'g32ic32ih112oc32oh112kh3ph1n"dw"\nic32oc64ih112oh112kh1n"pw"\n# a comment\n'
    path = tmp_path / "changed.bench"
    for _ in range(TRIES // 2):
        path.write_text(mutated(text, rng), encoding="utf-8")
        check(["sweep", str(path), "--list"])


@pytest.mark.slow
def test_changed_descriptors(check: Check) -> None:
    rng = Random(5)
    texts = [SMALL, "linear_mb196ic768oc3072_act:gelu", "g1mb1ic3oc32ih224kh3sh2ph1_act:relu_bf16"]
    for _ in range(TRIES):
        text = mutated(rng.choice(texts), rng)
        if not text.startswith("-"):
            check(["cost", text])


@pytest.mark.slow
def test_changed_results(check: Check, tmp_path: Path) -> None:
    rng = Random(6)
    text = json.dumps(results())
    path = tmp_path / "changed.json"
    for _ in range(TRIES // 2):
        path.write_text(mutated(text, rng), encoding="utf-8")
        check(["report", str(path), "--format", "markdown"])


# Each ends soon, also where what is changed stays valid; what must stay is after the bar.
COMMAND_LINES = [
    "sweep s.yaml --threads 2 --batch 1 --dtype f32 --backend fused --cache cold | --list",
    "sweep s.yaml -o r2.json --backend ipex --seconds 0.1 --rounds 3 | --list",
    f"cost {SMALL} | --json",
    "compare r.json r.json --threshold 5 --fail-on slower |",
    "report r.json -o report.html --format html |",
    "report r.json --format markdown |",
    "export r.json --to csv --samples |",
    "extract timm:none_of_these -o shapes.yaml |",
    "model none_of_these --input 1,3,224,224 |",
    "bench-model none_of_these --dtype bf16 --batch 1 --threads 2 |",
    "ab none.yaml --base . --new . --threads 2 --fail-on slower |",
    "tune none.yaml --threads 2 --dtype bf16 |",
    "explain none_of_these --backend ipex --threads 1 |",
]


@pytest.mark.slow
def test_changed_command_lines(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(f"title: T\nproblems: [{SMALL}]\n")
    rng = Random(7)
    for _ in range(TRIES):
        (tmp_path / "r.json").write_text(json.dumps(results()))
        free, kept = rng.choice(COMMAND_LINES).split("|")
        words = free.split()
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(1, len(words) + 1)
            change = rng.choice(["drop", "double", "swap", "mutate", "mutate", "piece"])
            if change == "piece":
                words.insert(at, rng.choice(PIECES))
            elif at == len(words):
                continue
            elif change == "drop":
                del words[at]
            elif change == "double":
                words.insert(at, words[at])
            elif change == "swap":
                words[at] = rng.choice(words)
            else:
                words[at] = mutated(words[at], rng)
        check([*words, *kept.split()])
