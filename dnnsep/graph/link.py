"""Links packed layers that feed each other into chains.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn

from dnnsep.codegen.program import INPUT
from dnnsep.codegen.sources import Sources
from dnnsep.nn.chain import PackedChain, can_be_linked, gives_rows, takes_rows


def link_chains(traced: fx.GraphModule) -> None:
    """Replaces packed layers that feed each other by a PackedChain, as many as can be linked.

    Only the last result of a chain is used outside of it.
    """
    for nodes in list(_chains(traced)):
        source = nodes[0].args[0]
        assert isinstance(source, fx.Node)
        number = {source: INPUT, **{node: index for index, node in enumerate(nodes)}}
        layers = [traced.get_submodule(str(node.target)) for node in nodes]
        sources = [_sources(node).map(number.__getitem__) for node in nodes]
        chain = PackedChain(layers, sources)  # type: ignore[arg-type]
        name = str(nodes[0].target)
        with traced.graph.inserting_after(nodes[-1]):
            new = traced.graph.call_module(name, (source,))
        new.meta = dict(nodes[-1].meta)
        nodes[-1].replace_all_uses_with(new)
        for node in reversed(nodes):
            traced.graph.erase_node(node)
        traced.set_submodule(name, chain)


def _chains(traced: fx.GraphModule) -> Iterator[list[fx.Node]]:
    """Yields the nodes of each chain, two or more, in the order of the graph."""
    nodes = [node for node in traced.graph.nodes if _can_be_linked(traced, node)]
    layers = {node: traced.get_submodule(str(node.target)) for node in nodes}

    def fits(node: fx.Node, chain: list[fx.Node]) -> bool:
        """Returns whether a layer reads only the chain's input and results, in their shapes.

        A value is either (N, C, H, W) or (..., C), and must be read as what it is.
        """
        source = chain[0].args[0]
        rows: dict[object, bool] = {linked: gives_rows(layers[linked]) for linked in chain}
        rows[source] = takes_rows(layers[chain[0]])
        return all(
            rows.get(value) == takes_rows(layers[node]) for _, value in _sources(node).items()
        )

    taken: set[fx.Node] = set()
    for index, node in enumerate(nodes):
        if node in taken or not fits(node, [node]):
            continue
        chain = [node]
        for following in nodes[index + 1 :]:
            if following not in taken and fits(following, chain):
                chain.append(following)
        while not _closed(chain):
            chain.pop()
        if len(chain) > 1:
            taken.update(chain)
            yield chain


def _closed(chain: list[fx.Node]) -> bool:
    """Returns whether only the last result is used outside of the chain."""
    return all(set(node.users) <= set(chain) for node in chain[:-1])


def _sources(node: fx.Node) -> Sources[fx.Node]:
    """Returns the nodes that a packed layer's node reads."""
    return Sources(*node.args)  # type: ignore[arg-type]


def _can_be_linked(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module" or not node.args or node.kwargs:
        return False
    layer: nn.Module = traced.get_submodule(str(node.target))
    return can_be_linked(layer, with_residual=len(node.args) > 1 and node.args[1] is not None)
