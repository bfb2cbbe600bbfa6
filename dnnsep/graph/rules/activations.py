"""Rules that find activations in all of their spellings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from dnnsep.graph.ops import activation
from dnnsep.graph.rewrite import Rule, Rules, arguments, insert, is_call, is_floating, same_geometry

_aten = torch.ops.aten


def activated(before: fx.Node, x: fx.Node, name: str) -> fx.Node:
    """Returns a new node that activates a node's values."""
    return insert(before, activation, x, name)


def activation_of(node: Any, name: str) -> fx.Node | None:
    """Returns what a node activates by an activation of a name; None if it is not one."""
    if not is_call(node, activation) or node.args[1] != name:
        return None
    x = node.args[0]
    assert isinstance(x, fx.Node)
    return x


def _named(name: str, applies: Callable[[dict[str, Any]], bool] = lambda given: True) -> Rule:
    """Returns the rule for an operator that is an activation, with some arguments at least."""

    def rule(node: fx.Node) -> fx.Node | None:
        x = node.args[0]
        if not isinstance(x, fx.Node) or not is_floating(x) or not applies(arguments(node)):
            return None
        return activated(node, x, name) if same_geometry(x, node) else None

    return rule


def _product(node: fx.Node) -> fx.Node | None:
    """x · sigmoid(x) is silu and x · hardsigmoid(x) hardswish."""
    for x, factor in (node.args, node.args[::-1]):
        if not isinstance(x, fx.Node):
            continue
        for gate, name in (("sigmoid", "silu"), ("hardsigmoid", "hardswish")):
            if activation_of(factor, gate) is x:
                return activated(node, x, name)
    return None


def _sixth(node: fx.Node) -> fx.Node | None:
    """relu6(x + 3) / 6 is hardsigmoid, and x · relu6(x + 3) / 6 hardswish."""
    value = _over_six(node)
    if value is None:
        return None
    inner = _shifted(value)
    if inner is not None:
        return activated(node, inner, "hardsigmoid")
    if is_call(value, _aten.mul.Tensor):
        for x, factor in (value.args, value.args[::-1]):
            if isinstance(x, fx.Node) and _shifted(factor) is x:
                return activated(node, x, "hardswish")
    return None


def _over_six(node: fx.Node) -> fx.Node | None:
    """Returns what a node divides by six."""
    for x, number in (node.args, node.args[::-1])[: 1 if node.target is _aten.div.Tensor else 2]:
        factor = 6 if node.target is _aten.div.Tensor else 1 / 6
        if isinstance(x, fx.Node) and isinstance(number, (int, float)) and number == factor:
            return x if is_floating(x) else None
    return None


def _shifted(node: Any) -> fx.Node | None:
    """Returns x of relu6(x + 3)."""
    inner = activation_of(node, "relu6")
    if inner is None or not is_call(inner, _aten.add.Tensor) or inner.kwargs:
        return None
    for x, number in (inner.args, inner.args[::-1]):
        if isinstance(x, fx.Node) and isinstance(number, (int, float)) and number == 3:
            return x
    return None


def _is_clamp_to_six(given: dict[str, Any]) -> bool:
    return (given["min"], given["max"]) == (0, 6)


def _is_clamp_to_zero(given: dict[str, Any]) -> bool:
    return given["min"] == 0 and given.get("max") is None


RULES: Rules = {
    _aten.relu.default: (_named("relu"),),
    _aten.clamp.default: (_named("relu6", _is_clamp_to_six), _named("relu", _is_clamp_to_zero)),
    _aten.clip.default: (_named("relu6", _is_clamp_to_six), _named("relu", _is_clamp_to_zero)),
    _aten.clamp_min.default: (_named("relu", _is_clamp_to_zero),),
    _aten.clamp_max.default: (),
    _aten.relu6.default: (_named("relu6"),),
    _aten.hardtanh.default: (
        _named("relu6", lambda given: (given["min_val"], given["max_val"]) == (0, 6)),
    ),
    _aten.silu.default: (_named("silu"),),
    _aten.gelu.default: (_named("gelu", lambda given: given["approximate"] == "none"),),
    _aten.hardswish.default: (_named("hardswish"),),
    _aten.sigmoid.default: (_named("sigmoid"),),
    _aten.special_expit.default: (_named("sigmoid"),),
    _aten.hardsigmoid.default: (_named("hardsigmoid"),),
    _aten.mul.Tensor: (_product, _sixth),
    _aten.div.Tensor: (_sixth,),
}
