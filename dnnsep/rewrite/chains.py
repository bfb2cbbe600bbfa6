"""Packed layers that follow each other become one chain.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn

from dnnsep.chain import PackedChain, can_be_linked


def link_chains(traced: fx.GraphModule) -> None:
    """Put a PackedChain in the place of layers whose results only the next ones see."""
    for nodes in list(_chains(traced)):
        source = nodes[0].args[0]
        places = {node: number for number, node in enumerate(nodes)} | {source: -1}
        residuals = [places[node.args[1]] if len(node.args) > 1 else None for node in nodes]
        layers = [traced.get_submodule(str(node.target)) for node in nodes]
        chain = PackedChain(layers, residuals)  # type: ignore[arg-type]
        name = str(nodes[0].target)
        with traced.graph.inserting_after(nodes[-1]):
            new = traced.graph.call_module(name, (source,))
        new.meta = dict(nodes[-1].meta)
        nodes[-1].replace_all_uses_with(new)
        for node in reversed(nodes):
            traced.graph.erase_node(node)
        traced.set_submodule(name, chain)


def _chains(traced: fx.GraphModule) -> Iterator[list[fx.Node]]:
    taken: set[fx.Node] = set()
    for node in traced.graph.nodes:
        if node in taken or not _is_link(traced, node) or not _inside(node, []):
            continue
        chain = [node]
        while (following := _next(traced, chain)) is not None:
            chain.append(following)
        while (end := _seen_outside(chain)) is not None:
            chain = chain[: end + 1]
        if len(chain) > 1:
            taken.update(chain)
            yield chain


def _seen_outside(chain: list[fx.Node]) -> int | None:
    """The first link but the last whose result others need too."""
    return next((i for i, link in enumerate(chain[:-1]) if not set(link.users) <= set(chain)), None)


def _next(traced: fx.GraphModule, chain: list[fx.Node]) -> fx.Node | None:
    """The one layer that goes on from the end of a chain."""
    last = chain[-1]
    found = [u for u in last.users if _is_link(traced, u) and u.args[0] is last]
    return found[0] if len(found) == 1 and _inside(found[0], chain) else None


def _inside(node: fx.Node, chain: list[fx.Node]) -> bool:
    """Whether a layer's residual, if it has one, is a result of the chain or its input."""
    start = chain[0].args[0] if chain else node.args[0]
    return len(node.args) == 1 or node.args[1] in chain or node.args[1] is start


def _is_link(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module" or not node.args or node.kwargs:
        return False
    layer: nn.Module = traced.get_submodule(str(node.target))
    return can_be_linked(layer, len(node.args) > 1)
