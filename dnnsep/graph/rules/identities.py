"""Rules that remove what changes nothing once no operator writes into its arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from dnnsep.graph.rewrite import (
    Rules,
    arguments,
    dtype_of,
    insert,
    is_tensor,
    same_geometry,
    shape_of,
    value_of,
)

_aten = torch.ops.aten


def _first(node: fx.Node) -> fx.Node | None:
    """A copy, or another name, of the same values."""
    x = node.args[0]
    return x if isinstance(x, fx.Node) else None


def _if_same_geometry(node: fx.Node) -> fx.Node | None:
    """What only sets sizes leaves the values as they are where the sizes stay."""
    x = node.args[0]
    return x if isinstance(x, fx.Node) and same_geometry(node, x) else None


def _conversion(node: fx.Node) -> fx.Node | None:
    """A conversion goes, if the dtype stays; otherwise it is a _to_copy with nothing but that."""
    x = node.args[0]
    if not is_tensor(x) or not is_tensor(node):
        return None
    assert isinstance(x, fx.Node)
    if value_of(x).device != value_of(node).device:
        return None
    if dtype_of(x) == dtype_of(node):
        return x
    if node.target is _aten._to_copy.default and set(node.kwargs) == {"dtype"}:
        return None
    return insert(node, _aten._to_copy.default, x, dtype=dtype_of(node))


def _neutral(number: float, *, first: bool = False) -> Any:
    """Returns the rule for an operator that a number as its second argument leaves without effect;
    with ``first`` also as its first one."""

    def rule(node: fx.Node) -> fx.Node | None:
        given = list(arguments(node).values())
        x, y, *rest = given
        if any(value not in (1, None) for value in rest):  # alpha, or a rounding mode
            return None
        if first and _is_number(x, number):
            x, y = y, x
        if not isinstance(x, fx.Node) or not _is_number(y, number):
            return None
        return x if is_tensor(x) and same_geometry(x, node) else None

    return rule


def _is_number(value: Any, number: float) -> bool:
    return isinstance(value, (int, float)) and value == number


def _whole_slice(node: fx.Node) -> fx.Node | None:
    """A slice of everything; with a negative step there is none in torch."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    return x if shape_of(x) == shape_of(node) else None


def _no_roll(node: fx.Node) -> fx.Node | None:
    x, shifts = arguments(node)["self"], arguments(node)["shifts"]
    return x if isinstance(x, fx.Node) and not any(shifts) else None


RULES: Rules = {
    **dict.fromkeys(
        (
            _aten.alias,
            _aten.clone,
            _aten.contiguous,
            _aten.detach,
            _aten.lift_fresh,
            _aten.lift_fresh_copy,
        ),
        (_first,),
    ),
    **dict.fromkeys(
        (
            _aten.broadcast_to,
            _aten.expand,
            _aten.expand_as,
            _aten.repeat,
            _aten.tile,
        ),
        (_if_same_geometry,),
    ),
    **dict.fromkeys(
        (_aten._to_copy, _aten.to, _aten.type_as),
        (_conversion,),
    ),
    _aten.slice.Tensor: (_whole_slice,),
    _aten.roll.default: (_no_roll,),
    _aten.add.Tensor: (_neutral(0, first=True),),
    _aten.sub.Tensor: (_neutral(0),),
    _aten.mul.Tensor: (_neutral(1, first=True),),
    _aten.div.Tensor: (_neutral(1),),
    _aten.pow.Tensor_Scalar: (_neutral(1),),
}

# Checks of what the example has shown already.
CHECKS = (
    "_assert_async",
    "_assert_scalar",
    "_assert_tensor_metadata",
    "_functional_assert_async",
    "_functional_assert_scalar",
    "_functional_sym_constrain_range",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
)
