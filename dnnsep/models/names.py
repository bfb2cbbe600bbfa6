"""Reads files that list models by name: YAML with one key, ``models``.

    # Any comment.
    models:
      - mobilenetv2_100
      - torchvision:resnet18

An entry is a name as ``dnnsep.models.zoo.load`` takes it. Such a file that comes with the package
is also found by its name, ``networks/families`` or ``networks/families.yml``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dnnsep.host.inputs import exists, read_yaml
from dnnsep.host.shipped import shipped, shipped_networks


def model_names(sources: Sequence[str]) -> list[str]:
    """Returns the names that a command was given, with each YAML file's names in its place.

    Raises ValueError, whose one line names the file, its line, the field and the rule.
    """
    names: list[str] = []
    for source in sources:
        is_file = source.endswith((".yaml", ".yml"))
        if is_file and exists(path := Path(source)):
            names += _names_of_file(path)
        elif (known := shipped(source)) is not None:
            names += _names_of_file(known)
        elif is_file or source.startswith("networks/"):
            raise ValueError(f"{source}: no such file, nor one of {', '.join(shipped_networks())}")
        else:
            names.append(source)
    return list(dict.fromkeys(names))


def _names_of_file(path: Path) -> list[str]:
    root = read_yaml(path).root
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{path}:1: must be a mapping with models")
    found: Any = None
    for key, value in root.value:
        where = f"{path}:{key.start_mark.line + 1}: {key.value}"
        if key.value != "models":
            raise ValueError(f"{where}: unknown, the only key is models")
        if found is not None:
            raise ValueError(f"{where}: given twice")
        if not isinstance(value, yaml.SequenceNode) or not value.value:
            raise ValueError(f"{where}: must be a list of at least one name")
        found = value
    if found is None:
        raise ValueError(f"{path}:1: models: missing")
    return [_name(path, index, node) for index, node in enumerate(found.value)]


def _name(path: Path, index: int, node: Any) -> str:
    """Returns the name that an entry of ``models`` is. Raises ValueError."""
    if not isinstance(node, yaml.ScalarNode) or node.tag != "tag:yaml.org,2002:str":
        given = f" (given: {node.value})" if isinstance(node, yaml.ScalarNode) else ""
        where = f"{path}:{node.start_mark.line + 1}: models[{index}]"
        raise ValueError(f"{where}: must be a model's name{given}")
    return str(node.value)
