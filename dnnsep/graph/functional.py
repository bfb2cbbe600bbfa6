"""Makes operators that write into their arguments return what they write instead.

Where only the written tensor itself is read afterwards, a new name for it is enough. Otherwise
torch's functionalization has to do it, at the cost of a second tracing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from dnnsep.graph.rewrite import CaptureError, arguments, dtype_of, insert, replace

_aten = torch.ops.aten

# In eval mode eager torch returns the very argument; its values during export do not say so.
_DROPOUTS = (
    _aten.dropout,
    _aten.dropout_,
    _aten.feature_dropout,
    _aten.feature_dropout_,
    _aten.alpha_dropout,
    _aten.alpha_dropout_,
    _aten.feature_alpha_dropout,
    _aten.feature_alpha_dropout_,
)
_SAME_TENSOR = (_aten.detach_.default,)


def drop_dropouts(graph: fx.Graph) -> None:
    """Removes dropout, which does nothing in eval mode.

    Raises CaptureError for one that is in training mode.
    """
    for node in graph.nodes:
        if getattr(node.target, "overloadpacket", None) in _DROPOUTS:
            given = arguments(node)
            if given["train"] and given["p"] > 0:
                raise CaptureError("dropout in training mode")
            replace(node, given["input"] if "input" in given else given["self"])
        elif node.op == "call_function" and node.target in _SAME_TENSOR:
            replace(node, node.args[0])


def complex_write(graph: fx.Graph) -> fx.Node | None:
    """Returns the first node whose write a new name for the written tensor does not express; None
    if there is none.

    Such is a write into a tensor whose memory is read later through another node: a view of it,
    what it is a view of, or an input of the graph.
    """
    order: dict[fx.Node, int] = {node: position for position, node in enumerate(graph.nodes)}
    aliases: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        for storage in _storages(node):
            aliases.setdefault(storage, []).append(node)
    for node in order:
        if not is_write(node):
            continue
        written = node.args[0] if node.args else None
        if not isinstance(written, fx.Node) or _functional(node) is None:
            return node
        for alias in (alias for storage in _storages(written) for alias in aliases[storage]):
            if alias.op != "call_function":
                return node
            # Those made later are views of the written tensor as it is then: of the new name.
            other = order[alias] < order[node] and _tensor_of(alias) is not _tensor_of(written)
            if other and any(order[user] > order[node] for user in alias.users):
                return node
    return None


def rename_writes(graph: fx.Graph) -> None:
    """Replaces operators that write into their first argument by those that return the result.

    Raises CaptureError where that is not the same (see complex_write).
    """
    obstacle = complex_write(graph)
    if obstacle is not None:
        raise CaptureError(f"{obstacle.target} writes into a tensor that is read otherwise")
    later: set[fx.Node] = set(graph.nodes)
    for node in list(graph.nodes):
        later.discard(node)
        if is_write(node):
            written = node.args[0]
            assert isinstance(written, fx.Node)
            new = insert(node, _functional(node), *node.args, **node.kwargs)  # type: ignore[arg-type]
            if dtype_of(new) != dtype_of(written):
                new = insert(node, _aten._to_copy.default, new, dtype=dtype_of(written))
            written.replace_all_uses_with(new, delete_user_cb=later.__contains__)
            replace(node, new)


def is_write(node: fx.Node) -> bool:
    """Returns whether a node calls an operator that writes into its arguments."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _functional(node: fx.Node) -> OpOverload | None:
    """Returns the operator that returns what a node writes into its first argument."""
    assert isinstance(node.target, OpOverload)
    written = [i for i, a in enumerate(node.target._schema.arguments) if a.is_write]
    name = node.target._schema.name.removeprefix("aten::")
    if written != [0] or name[-1] != "_":
        return None
    packet = getattr(_aten, name[:-1], None)
    return getattr(packet, node.target._overloadname, None)


def _tensor_of(node: fx.Node) -> fx.Node:
    """Returns the node that made the tensor that a node is: another one, if it wrote into it."""
    while is_write(node):
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node = source
    return node


def _storages(node: fx.Node) -> set[int]:
    """Returns the memory that a node's value has, on the example, as identities."""
    value: Any = node.meta.get("val")
    tensors = value if isinstance(value, (list, tuple)) else (value,)
    return {id_ for id_ in (t.untyped_storage()._cdata for t in tensors if isinstance(t, Tensor))}
