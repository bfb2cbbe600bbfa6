"""Names of constants by how they are computed, the same in every capture of a model."""

from __future__ import annotations

from collections.abc import Collection
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, fx, nn


def constant_keys(graph: fx.Graph, constants: Collection[fx.Node]) -> dict[fx.Node, str]:
    """Returns for each constant node a text that is equal for equal ones: the name of a parameter,
    with a hash of the content of what is none, or a hash of an operator and its arguments."""
    keys: dict[fx.Node, str] = {}
    for node in graph.nodes:
        if node not in constants:
            continue
        if node.op == "get_attr":
            keys[node] = f"{node.target}{_content(node)}"
            continue
        named: Any = lambda n: _Named(keys[n])  # noqa: E731
        arguments = fx.map_arg((node.args, node.kwargs), named)
        text = f"{node.target} {arguments}"
        keys[node] = sha256(text.encode()).hexdigest()
    return keys


def _content(node: fx.Node) -> str:
    """Returns a hash of the content of a tensor that is no parameter: one that the model makes of
    the size of its input has the same name for every size."""
    value: Any = node.graph.owning_module
    for part in str(node.target).split("."):
        value = getattr(value, part, None)
    if not isinstance(value, Tensor) or isinstance(value, nn.Parameter):
        return ""
    elements = value.detach().contiguous().reshape(-1).view(torch.uint8)
    return f" {sha256(elements.numpy().tobytes()).hexdigest()}"


class _Named:
    """Prints as the key of the node that it stands for."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __repr__(self) -> str:
        return f"<{self._key}>"
