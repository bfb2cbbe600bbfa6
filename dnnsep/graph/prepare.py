"""From a module and its arguments to a network that runs it.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from dnnsep.graph.build import Packings, Settings
from dnnsep.graph.canonical import canonicalize
from dnnsep.graph.capture import Captured, capture
from dnnsep.graph.constants import evaluate_constants
from dnnsep.graph.lower import Lowered, lower
from dnnsep.graph.rewrite import CaptureError
from dnnsep.graph.sizes import Sizes

Filter = Callable[[str], bool]


@dataclass
class Options:
    """What ``optimize`` was asked for, and which layers it found to differ, with the reasons.

    ``sizes`` is a condition (see Sizes) for the sizes of images that it may be open for.
    ``part`` is the name of the part of the model that they are for, empty for all of it.
    ``cascades`` says whether layers may run as cascades.
    """

    backend: str = "auto"
    filter: Filter | None = None
    tune: bool = True
    sizes: str = "True"
    faulty: dict[str, str] = field(default_factory=dict)
    part: str = ""
    cascades: bool = True

    def inside(self, part: str) -> Options:
        """Returns the same for a part of the model; what is found faulty is shared."""
        return replace(self, part=part)

    def why_not(self, node: fx.Node) -> str:
        """Returns why a node has to stay with torch; empty if it has not."""
        name = layer_of_node(node, self.part)
        if name in self.faulty:
            return self.faulty[name]
        return "filtered out" if self.filter is not None and not self.filter(name) else ""


@dataclass
class Shelf:
    """Packed weights that all that is prepared of a module shares."""

    packings: Packings = field(default_factory=dict)


@dataclass
class Prepared:
    """A module ready for inputs of one kind, and for which other sizes of them its graph is the
    same, where that is known. ``used`` is when it ran last, as calls are counted."""

    captured: Captured
    graph: fx.Graph
    lowered: Lowered
    sizes: Sizes | None = None
    used: int = 0

    def run(self, leaves: list[Any]) -> Any:
        """Returns the module's result for arguments whose leaves these are."""
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        return self.captured.unflatten(self.lowered.network.run(tensors))


def prepare(
    module: nn.Module,
    arguments: tuple[Any, ...],
    named: Mapping[str, Any],
    options: Options,
    shelf: Shelf,
    opened: bool = False,
) -> Prepared:
    """Returns a module ready for arguments like these, and with ``opened`` for other sizes of them,
    if that can be. Raises CaptureError where its graph cannot be had, or a kernel for it cannot be
    made."""
    with torch.no_grad():
        captured = capture(module, arguments, dict(named))
        inputs = captured.flatten(arguments, dict(named))
        try:
            return prepared_of(captured, inputs, options, shelf, opened)
        except CaptureError:
            raise
        except Exception as error:
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            raise CaptureError(text) from error


def prepared_of(
    captured: Captured,
    inputs: list[Tensor],
    options: Options,
    shelf: Shelf,
    opened: bool = False,
) -> Prepared:
    """Returns a captured module ready for inputs like these, and with ``opened`` for other sizes of
    them, if that can be."""
    traced = captured.graph_module
    canonicalize(traced)
    constants = evaluate_constants(traced)
    settings = Settings(
        torch.get_num_threads(),
        options.backend,
        options.tune,
        shelf.packings,
        options.why_not,
        options.cascades,
    )
    lowered = lower(traced.graph, inputs, constants, settings, opened)
    return Prepared(captured, traced.graph, lowered)


def layer_of_node(node: fx.Node, part: str = "") -> str:
    """Returns the name of the module that a node in the graph of a model's part comes from, the
    node's own where it comes from none. Without ``part`` the graph is the whole model's."""
    layer = str(node.meta.get("layer") or "")
    return ".".join(filter(None, (part, layer))) or node.name
