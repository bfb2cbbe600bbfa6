"""The backend of torch.compile: ``torch.compile(model, backend="dnnsep")``.

Imports torch: torch loads it when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_
from typing import Any

from torch import Tensor, fx, nn

from dnnsep.graph.prepare import Options
from dnnsep.graph.runner import Runner


def backend(graph_module: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """Returns what runs a graph that torch.compile found, as ``dnnsep.optimize`` would.

    A graph that was found while gradients are recorded, in training, or with values on other
    devices than a CPU runs as it is. Parts of it that depend on the shapes of inputs are prepared
    for each shape when that first comes.
    """
    return _Compiled(graph_module, example_inputs)


class _Compiled:
    """Calls a graph whose arguments are a model's parameters and the inputs of a call."""

    def __init__(self, graph_module: fx.GraphModule, example_inputs: Sequence[Any]) -> None:
        places = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
        fixed = [_is_fixed(node, x) for node, x in zip(places, example_inputs, strict=True)]
        self._fixed = [index for index, is_fixed in enumerate(fixed) if is_fixed]
        self._others = [index for index, is_fixed in enumerate(fixed) if not is_fixed]
        self._graph = _Graph(graph_module, self._fixed, self._others).eval()
        self._parameters: list[Tensor] = []
        self._runner = Runner(self._graph, Options())

    def __call__(self, *arguments: Any) -> Any:
        parameters = [arguments[index] for index in self._fixed]
        if len(parameters) != len(self._parameters) or not all(
            map(is_, parameters, self._parameters)
        ):
            self._graph.set_parameters(parameters)
            self._parameters = parameters
        return self._runner(*[arguments[index] for index in self._others])


class _Graph(nn.Module):
    """A graph as a module of the inputs of a call, with parameters of its own."""

    def __init__(self, graph_module: fx.GraphModule, fixed: list[int], others: list[int]) -> None:
        super().__init__()
        self.graph_module = graph_module
        self._fixed, self._others = fixed, others

    def set_parameters(self, parameters: list[Tensor]) -> None:
        """Makes tensors the module's parameters, in the order of the graph's arguments."""
        for index, tensor in zip(self._fixed, parameters, strict=True):
            self.register_buffer(f"argument{index}", tensor)

    def forward(self, *inputs: Any) -> Any:
        """Returns the graph's results for the inputs of a call."""
        arguments: list[Any] = [None] * (len(self._fixed) + len(self._others))
        for index in self._fixed:
            arguments[index] = self._buffers[f"argument{index}"]
        for index, value in zip(self._others, inputs, strict=True):
            arguments[index] = value
        return self.graph_module(*arguments)


def _is_fixed(node: fx.Node, example: Any) -> bool:
    """Returns whether an argument of a graph is a parameter or a buffer of the model."""
    described = node.meta.get("tensor_dict", {})
    return isinstance(example, nn.Parameter) or "_dynamo_static_input_type" in described
