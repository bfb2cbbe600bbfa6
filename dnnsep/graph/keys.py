"""Names of constants by how they are computed, the same in every capture of a model."""

from __future__ import annotations

from collections.abc import Collection
from hashlib import sha256
from typing import Any

from torch import fx


def constant_keys(graph: fx.Graph, constants: Collection[fx.Node]) -> dict[fx.Node, str]:
    """Returns for each constant node a text that is equal for equal ones: the name of a parameter,
    or a hash of an operator and its arguments."""
    keys: dict[fx.Node, str] = {}
    for node in graph.nodes:
        if node not in constants:
            continue
        if node.op == "get_attr":
            keys[node] = str(node.target)
            continue
        named: Any = lambda n: _Named(keys[n])  # noqa: E731
        arguments = fx.map_arg((node.args, node.kwargs), named)
        text = f"{node.target} {arguments}"
        keys[node] = sha256(text.encode()).hexdigest()
    return keys


class _Named:
    """Prints as the key of the node that it stands for."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __repr__(self) -> str:
        return f"<{self._key}>"
