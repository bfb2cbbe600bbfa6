"""The package without its checkout: what the wheel has, and a sweep by it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dnnsep.host.shipped import shipped, shipped_networks, shipped_sweeps
from dnnsep.models.names import model_names
from dnnsep.sweep.config import ConfigError, Overrides, load_sweep

_CHECKOUT = Path(__file__).resolve().parent.parent


def test_shipped_configurations_are_those_of_the_checkout() -> None:
    files = [p for p in (_CHECKOUT / "configs").rglob("*") if p.suffix in (".yaml", ".yml")]
    assert len(shipped_sweeps()) + len(shipped_networks()) == len(files)
    assert {"quickstart", "models/mobilenet_v1"} <= set(shipped_sweeps())
    assert shipped_networks() == ["networks/families"]
    assert shipped("nothing") is None


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml"])
def test_a_name_is_its_file(name: str) -> None:
    named = load_sweep([name], Overrides(), 2)
    assert named == load_sweep([str(_CHECKOUT / "configs" / "quickstart.yaml")], Overrides(), 2)


@pytest.mark.parametrize("name", ["networks/families", "networks/families.yml"])
def test_a_name_is_its_list_of_models(name: str) -> None:
    families = str(_CHECKOUT / "configs" / "networks" / "families.yml")
    assert model_names([name]) == model_names([families])


def test_a_file_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart.yaml").write_text("title: mine\nproblems: [mb1ic8oc8ih4kh3ph1]\n")
    assert load_sweep(["quickstart.yaml"], Overrides(), 2).title == "mine"


@pytest.mark.parametrize("name", ["quickstrat", "quickstart.yml", "models/nothing"])
def test_another_name_says_which_there_are(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}: no such file, nor one of .*quickstart"):
        load_sweep([name], Overrides(), 2)


@pytest.mark.slow
def test_the_wheel_sweeps_elsewhere(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    built, installed, source = (tmp_path / name for name in ("wheel", "site", "source"))
    # Building leaves files behind.
    left_out = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__")
    shutil.copytree(_CHECKOUT, source, symlinks=True, ignore=left_out)
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(built), str(source)], check=True)
    (wheel,) = built.iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    assert {"dnnsep/py.typed", "dnnsep/configs/models/mobilenet_v1.yaml"} <= set(names)
    assert not any(name.startswith(("tests/", "perf/", "configs/")) for name in names)
    subprocess.run([*pip, "install", "--no-deps", "--target", str(installed), wheel], check=True)
    sweep = ["sweep", "quickstart", "--backend", "eager", "--threads", "1", "--seconds", "0.02"]
    where = "import dnnsep, sys; print(dnnsep.__file__, file=sys.stderr); import dnnsep.cli as c"
    done = subprocess.run(
        [sys.executable, "-c", f"{where}; c.main()", *sweep, "-o", "r.json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(str(installed))
    assert (tmp_path / "r.json").exists()
