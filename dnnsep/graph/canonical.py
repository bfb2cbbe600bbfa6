"""Every rewriting of a captured graph, in the order in which they find work for each other."""

from __future__ import annotations

from torch import fx

from dnnsep.graph.fold import fold
from dnnsep.graph.merge import merge
from dnnsep.graph.normalize import normalize
from dnnsep.graph.quantized import dequantize_by_user
from dnnsep.graph.torchao import decompose_affine


def canonicalize(graph_module: fx.GraphModule) -> None:
    """Brings a captured graph into its canonical form, with everything folded and merged, in place.

    Raises CaptureError if an operator writes into a tensor that is then read through another name.
    """
    decompose_affine(graph_module.graph)
    normalize(graph_module)
    fold(graph_module)
    while merge(graph_module):
        fold(graph_module)
        normalize(graph_module)
    dequantize_by_user(graph_module.graph)
