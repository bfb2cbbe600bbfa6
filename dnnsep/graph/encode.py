"""Values as JSON: what operators take as arguments, and how a model's inputs and outputs nest.

None, booleans, integers, texts, finite numbers and lists are themselves; everything else is an
object with one field, which names what it is. Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

import torch
from torch import fx

_KINDS: dict[str, type] = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}
_CONSTANTS: dict[str, dict[str, Any]] = {
    kind: {name: value for name, value in vars(torch).items() if isinstance(value, of)}
    for kind, of in _KINDS.items()
}


def encoded(value: Any, number_of: Callable[[fx.Node], int] | None = None) -> Any:
    """Returns a value as JSON. ``number_of`` gives the number of a node, where there may be some;
    an ellipsis stands for a leaf. Raises ValueError for what files cannot have."""

    def inside(one: Any) -> Any:
        return encoded(one, number_of)

    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if type(value) is float:
        return value if isfinite(value) else {"float": str(value)}
    if isinstance(value, fx.Node) and number_of is not None:
        return {"node": number_of(value)}
    if value is ...:
        return {"leaf": None}
    if type(value) is complex:
        return {"complex": [inside(value.real), inside(value.imag)]}
    if type(value) in (list, fx.immutable_collections.immutable_list):
        return [*map(inside, value)]
    if type(value) in (tuple, torch.Size):
        return {"tuple": [*map(inside, value)]}
    if type(value) in (dict, fx.immutable_collections.immutable_dict, OrderedDict):
        kind = "ordered" if type(value) is OrderedDict else "dict"
        return {kind: [[inside(key), inside(one)] for key, one in value.items()]}
    if isinstance(value, torch.device) and value.type == "cpu":
        return {"device": "cpu"}
    for kind, of in _KINDS.items():
        if isinstance(value, of):
            return {kind: str(value).removeprefix("torch.")}
    raise ValueError(f"a value of the type {type(value).__qualname__}: cannot be saved")


def decoded(value: Any, nodes: Sequence[fx.Node] = ()) -> Any:
    """Returns the value of some JSON, in which nodes are known by their numbers. Raises ValueError
    for what is no value."""

    def inside(one: Any) -> Any:
        return decoded(one, nodes)

    if not isinstance(value, dict):
        return [*map(inside, value)] if isinstance(value, list) else value
    ((kind, content),) = value.items()
    if kind in _CONSTANTS:
        return _CONSTANTS[kind][content]
    if kind == "node":
        if type(content) is not int or not 0 <= content < len(nodes):
            raise ValueError(f"node {content}: there is none yet")
        return nodes[content]
    if kind == "float" and content in ("inf", "-inf", "nan"):
        return float(content)
    if kind == "leaf":
        return ...
    if kind == "complex":
        return complex(*map(inside, content))
    if kind == "tuple":
        return tuple(map(inside, content))
    if kind in ("dict", "ordered"):
        pairs = [(inside(key), inside(one)) for key, one in content]
        return OrderedDict(pairs) if kind == "ordered" else dict(pairs)
    if kind == "device" and content == "cpu":
        return torch.device("cpu")
    raise ValueError(f"a value of the kind {kind}: there is none")
