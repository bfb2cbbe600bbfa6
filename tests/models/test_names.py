"""Files that list models by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnnsep.models.names import model_names

CONFIGS = Path(__file__).parents[2] / "configs"


def test_names_of_files_stand_in_the_files_place(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("# small ones\nmodels: [b, 'torchvision:c', net.py:d]\n")
    found = model_names(["a", str(path), "b", "e"])
    assert found == ["a", "b", "torchvision:c", "net.py:d", "e"]


def test_the_families_are_known() -> None:
    from dnnsep.models.zoo import _factory

    found = model_names([str(CONFIGS / "networks" / "families.yml")])
    assert len(found) > 40
    for name in found:
        _factory(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: must be a mapping with models"),
        ("- resnet18", ":1: must be a mapping with models"),
        ("title: x", ":1: title: unknown, the only key is models"),
        ("{}", ":1: models: missing"),
        ("models: resnet18", ":1: models: must be a list of at least one name"),
        ("models: []", ":1: models: must be a list of at least one name"),
        ("models: [a]\nmodels: [b]", ":2: models: given twice"),
        ("models:\n  - a\n  - 5", r":3: models\[1\]: must be a model's name \(given: 5\)"),
        ("models:\n  - name: a", r":2: models\[0\]: must be a model's name$"),
        ("models: [a", ":1: not YAML: "),
    ],
)
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^{path}{message}") as raised:
        model_names([str(path)])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["nope.yaml", "networks/nope"])
def test_a_missing_file(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: no such file, nor one of networks/families$"):
        model_names([name])
