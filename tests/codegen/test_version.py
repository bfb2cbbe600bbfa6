"""What kernels are kept under: all that decides their code, and nothing that a process adds."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from itertools import combinations
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

import dnnsep
from dnnsep.codegen.choose import plan_key
from dnnsep.codegen.extras import Extras
from dnnsep.codegen.kernel import Specialization
from dnnsep.codegen.version import generator
from dnnsep.codegen.weigh import Caches, all_plans
from dnnsep.problem import Problem
from tests.codegen.conftest import ISAS

PACKAGE = Path(dnnsep.__file__).parent
CACHES = Caches(48 * 1024, 1 << 20, 32 << 20)

# What the generator imports of it keeps files and knows the sizes of caches, which plans are chosen
# by; it decides nothing of a plan's code.
UNDECIDING = "host/"


def _imported() -> set[str]:
    """Returns the files of the package that a kernel's code may depend on: what compiling imports,
    and what that imports."""
    found: set[str] = set()
    waiting = ["codegen/kernel.py", "codegen/pack.py"]
    while waiting:
        name = waiting.pop()
        if name in found or name.startswith(UNDECIDING):
            continue
        found.add(name)
        for node in ast.walk(ast.parse((PACKAGE / name).read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for module in names:
                if module.startswith("dnnsep."):
                    path = PACKAGE.joinpath(*module.split(".")[1:])
                    files = [path.with_suffix(".py"), path / "__init__.py"]
                    waiting += [str(f.relative_to(PACKAGE)) for f in files if f.exists()]
    return found


DECIDING = sorted(_imported())


def _named(tree: Path) -> str:
    """Returns the generator's name in a copy of the package, by that copy's own module."""
    spec = spec_from_file_location("copied_version", tree / "codegen" / "version.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.generator())


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copied = tmp_path_factory.mktemp("tree") / "dnnsep"
    copytree(PACKAGE, copied, ignore=ignore_patterns("__pycache__"))
    return copied


@pytest.mark.parametrize("name", DECIDING)
def test_another_text_of_a_deciding_source_is_another_generator(name: str, tree: Path) -> None:
    path = tree / name
    before, text = _named(tree), path.read_text()
    path.write_text(text + "\n# changed")
    assert _named(tree) != before
    path.write_text(text)
    assert _named(tree) == before


def test_a_new_file_of_the_generator_is_another_generator(tree: Path) -> None:
    before = _named(tree)
    for folder in ("codegen", "codegen/dots", "codegen/stages"):
        path = tree / folder / "zzz.py"
        path.write_text("# new")
        assert _named(tree) != before
        path.unlink()


def test_all_of_the_generator_is_looked_at() -> None:
    """What these tests know of it: a file of each folder, and the nouns that it is written with."""
    some = {
        "activations.py",
        "dtypes.py",
        "problem.py",
        "weights.py",
        "codegen/dots/fma_f32.py",
        "codegen/lang/emit.py",
        "codegen/stages/gather.py",
    }
    assert some <= set(DECIDING)


def _specializations() -> list[Specialization]:
    """Returns kernels that all differ: in a layer, a size, a plan, extras, or a CPU."""
    base = Problem.parse("mb2ic20oc40ih9iw11kh3ph1_act:relu,none")
    problems = [
        base,
        replace(base, batch=3),
        replace(base, height=10),
        replace(base, width=12),
        replace(base, height=11, width=9),
        replace(base, in_channels=21),
        replace(base, out_channels=41),
        replace(base, kernel=(3, 1)),
        replace(base, stride=(1, 2)),
        replace(base, padding=(1, 1, 1, 0)),
        replace(base, dilation=(2, 1)),
        replace(base, channel_multiplier=2),
        replace(base, activations=("none", "relu")),
        replace(base, dtype="bf16"),
        Problem.parse("g1mb2ic20oc40ih9iw11kh1"),
        Problem.parse("g1mb2ic20oc40ih9iw11kh3ph1"),
    ]
    found = [
        Specialization.of(problem, next(all_plans(problem, isa, 2, CACHES)))
        for isa in ISAS
        for problem in problems
    ]
    plans = list(all_plans(base, ISAS[0], 2, CACHES))
    found += dict.fromkeys(
        Specialization.of(base, plan) for plan in plans if plan.channel_parts > 1
    )
    plan = plans[0]
    for changed in (
        replace(plan, streaming=not plan.streaming),
        replace(plan, prefetch=not plan.prefetch),
        replace(plan, ahead=plan.ahead + 1),
    ):
        found.append(Specialization.of(base, changed))
    for extras in (
        Extras(residual=True),
        Extras(residual=True, after=True),
        Extras(residual=True, residual_pitch=50),
        Extras(x_pitch=50),
        Extras(y_pitch=50),
    ):
        found.append(Specialization.of(base, plan, extras))
    pointwise = Problem.parse("g1mb2ic20oc40ih9iw11kh1")
    plan = next(all_plans(pointwise, ISAS[0], 2, CACHES))
    found.append(Specialization.of(pointwise, plan, Extras(scale=True)))
    found.append(Specialization.of(pointwise, replace(plan, gathers=not plan.gathers)))
    return found


def test_plans_that_differ_in_the_tile_alone_share_a_kernel() -> None:
    problem = Problem.parse("mb2ic20oc40ih9iw11kh3ph1")
    plans = [plan for plan in all_plans(problem, ISAS[0], 2, CACHES) if plan.channel_parts == 1]
    assert len({plan.tile for plan in plans}) > 2
    assert len({Specialization.of(problem, plan) for plan in plans}) == 1


def test_different_kernels_have_different_keys() -> None:
    special = _specializations()
    for first, second in combinations(special, 2):
        assert first != second
        assert str(first) != str(second)


_SCRIPT = """
from dnnsep.codegen.weigh import Caches, all_plans
from dnnsep.codegen.kernel import Specialization
from dnnsep.codegen.lang.isa import this_isa
from dnnsep.codegen.version import generator
from dnnsep.problem import Problem
for text in ("ic20oc40ih9kh3ph1_act:silu,none", "g1ic20oc40ih9kh3ph1_bf16", "linear_mb3ic4oc5"):
    problem = Problem.parse(text)
    for plan in all_plans(problem, this_isa(), 2, Caches(1 << 15, 1 << 20, 1 << 25)):
        print(f"{generator()} {Specialization.of(problem, plan)}")
"""


def test_two_processes_have_the_same_keys() -> None:
    """Nothing of a key is an address or in the order of a set."""
    printed = [
        subprocess.run(
            [sys.executable, "-c", _SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert len(printed[0].splitlines()) > 3
    assert printed[0] == printed[1]


def test_kept_plans_are_this_generators() -> None:
    problem = Problem.parse("ic20oc40ih9kh3ph1")
    keys = {
        plan_key(other, isa, threads)
        for isa in ISAS
        for threads in (1, 2)
        for other in (problem, replace(problem, batch=2))
    }
    assert len(keys) == 4 * len(ISAS)
    assert all(key.startswith(generator()) for key in keys)
