"""How much quantising takes from a model's numbers: by layer, and of the whole.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log10
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from dnnsep.graph.quantized import dequantized

aten = torch.ops.aten

# What a graph of torch.export calls of layers.
_LAYERS = (
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv_transpose2d.input,
    aten.convolution.default,
    aten.linear.default,
)
# So many layers are named as the worst.
_WORST = 3


@dataclass(frozen=True)
class LayerError:
    """What quantising a layer's input and weights alone does to its output: the signal-to-noise
    ratio in dB, against the layer in f32 on the same input; None for a layer left in f32."""

    layer: str
    sqnr: float | None


@dataclass(frozen=True)
class QuantizationReport:
    """The ``entries`` of a quantised model's layers in their order, and the signal-to-noise ratio
    in dB of its outputs, ``sqnr``, both on the first batch. Prints as a table."""

    entries: tuple[LayerError, ...]
    sqnr: float

    def worst(self, count: int = _WORST) -> list[LayerError]:
        """Returns so many layers that lose most."""
        quantized = [entry for entry in self.entries if entry.sqnr is not None]
        return sorted(quantized, key=lambda entry: entry.sqnr or 0.0)[:count]

    def __str__(self) -> str:
        width = max((len(entry.layer) for entry in self.entries), default=0)
        lines = [f"{'layer':{width}}  SQNR of its output, dB"]
        for entry in self.entries:
            text = "left in f32" if entry.sqnr is None else f"{entry.sqnr:.1f}"
            lines.append(f"{entry.layer:{width}}  {text}")
        worst = ", ".join(f"{entry.layer} ({entry.sqnr:.1f} dB)" for entry in self.worst())
        lines.append(f"the model's outputs: {self.sqnr:.1f} dB; worst layers: {worst or 'none'}")
        return "\n".join(lines)


class Sqnr:
    """The signal-to-noise ratio of numbers that come tensor by tensor."""

    def __init__(self) -> None:
        self._signal = self._noise = 0.0

    def add(self, right: Tensor, found: Tensor) -> None:
        """Takes in right numbers, and what was found in their places."""
        self._signal += float(right.double().square().sum())
        self._noise += float((found.double() - right.double()).square().sum())

    @property
    def db(self) -> float:
        """10·log10 of the sum of squares of the right numbers over that of what was added to them;
        infinity where nothing was."""
        if self._noise == 0:
            return inf
        return 10 * log10(self._signal / self._noise) if self._signal else -inf


def sqnr_of(right: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Returns the signal-to-noise ratio of some tensors in dB."""
    ratio = Sqnr()
    for pair in zip(right, found, strict=True):
        ratio.add(*pair)
    return ratio.db


def tensors_of(tree: Any) -> list[Tensor]:
    """Returns the tensors of a model's result."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def name_layers(graph: fx.Graph) -> None:
    """Lets the layers of an exported graph say of which module they are, by its path in the model,
    which the owner of the weight has: torch's own paths are expressions where the model itself is a
    list of modules. Quantisers look at it, too."""
    for node in graph.nodes:
        weight = node.args[1] if node.target in _LAYERS else None
        if isinstance(weight, fx.Node) and weight.op == "get_attr":
            path = str(weight.target).rpartition(".")[0]
            node.meta["nn_module_stack"] = {path: (path, torch.nn.Module)}


class FloatRun(fx.Interpreter):
    """Runs a prepared model, past its observers, and keeps its layers' inputs and outputs, and the
    tensors of its result."""

    def __init__(self, prepared: fx.GraphModule, batch: Sequence[Any]) -> None:
        super().__init__(prepared)
        self.layers: dict[str, tuple[Tensor, Tensor]] = {}
        with torch.no_grad():
            self.outputs = tensors_of(self.run(*batch))

    def run_node(self, n: fx.Node) -> Any:
        """Runs a node as Interpreter does."""
        value = super().run_node(n)
        if n.target in _LAYERS:
            x, *_ = self.fetch_args_kwargs_from_env(n)[0]
            # Activations may be in place.
            self.layers[n.name] = (x.clone(), value.clone())
        return value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Leaves out the observers, which are all the modules that such a graph calls."""
        return args[0]


def report_of_quantized(
    quantized: fx.GraphModule, run: FloatRun, batch: Sequence[Any]
) -> QuantizationReport:
    """Returns the report on a converted model that was prepared as ``run`` ran it on a batch."""
    with torch.no_grad():
        entries = tuple(
            _error(node, *run.layers[node.name])
            for node in quantized.graph.nodes
            if node.target in _LAYERS
        )
        found = tensors_of(quantized(*batch))
    return QuantizationReport(entries, sqnr_of(run.outputs, found))


def _error(node: fx.Node, x: Tensor, right: Tensor) -> LayerError:
    """Returns the error of a layer on what it gets in f32."""
    path = [str(name) for name, _ in node.meta.get("nn_module_stack", {}).values()]
    layer = path[-1] if path else node.name
    if dequantized(node.args[0]) is None:
        return LayerError(layer, None)
    known: dict[fx.Node, Tensor] = {}
    first = node.args[0]
    assert isinstance(first, fx.Node)
    rounded = first.args[0]
    assert isinstance(rounded, fx.Node)
    of = rounded.args[0]
    assert isinstance(of, fx.Node)
    known[of] = x
    return LayerError(layer, sqnr_of([right], [_computed(node, known)]))


def _computed(node: fx.Node, known: dict[fx.Node, Tensor]) -> Any:
    """Returns a node's value, computed of the known ones and of the module's own tensors."""
    if node in known:
        return known[node]
    if node.op == "get_attr":
        value: Any = node.graph.owning_module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return value
    assert callable(node.target)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: _computed(n, known))
    return node.target(*args, **kwargs)
