"""Traces a model's graph, with the shapes of an example.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from dnnsep.graph.patterns import has_hooks

_IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout2d)


class UntraceableError(Exception):
    """A model cannot be traced, or what was traced does not do the same; the text says why."""


class _Tracer(fx.Tracer):
    """A tracer that does not look into layers that are matched, nor into modules with hooks."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            isinstance(m, (nn.Conv2d, nn.Linear, nn.BatchNorm2d))
            or has_hooks(m)
            or super().is_leaf_module(m, module_qualified_name)
        )


def trace(model: nn.Module, example: tuple[Any, ...]) -> fx.GraphModule:
    """Returns the model's graph, in eval mode, with the example's shapes as ``tensor_meta``.

    Arguments that the example leaves out keep their defaults. Raises UntraceableError where the
    model has hooks or its code cannot be traced.
    """
    if has_hooks(model):
        raise UntraceableError("it has hooks")
    defaults = {
        name: parameter.default
        for name, parameter in list(inspect.signature(model.forward).parameters.items())[
            len(example) :
        ]
        if parameter.default is not inspect.Parameter.empty
    }
    try:
        graph = _Tracer().trace(model, concrete_args=defaults or None)
        traced = fx.GraphModule(model, graph, type(model).__name__)
        _drop_identities(traced)
        shapes: Any = ShapeProp
        shapes(traced).propagate(*example)
    except Exception as error:  # a model's own code runs here, on values it was not written for
        text = str(error).strip().splitlines()
        raise UntraceableError(f"{type(error).__name__}: {text[0] if text else ''}") from None
    return traced.eval()


def _drop_identities(traced: fx.GraphModule) -> None:
    """Removes the nodes that do nothing in eval mode."""
    for node in list(traced.graph.nodes):
        if _is_identity(traced, node):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)


def _is_identity(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module" and len(node.args) == 1:
        layer = traced.get_submodule(str(node.target))
        return type(layer) in _IDENTITIES and not has_hooks(layer)
    # torchvision's function, called with (x, p, mode, training).
    name = getattr(node.target, "__name__", "")
    return node.op == "call_function" and name == "stochastic_depth" and node.args[-1] is False
