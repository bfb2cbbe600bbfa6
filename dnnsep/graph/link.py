"""Packed layers that feed each other become one chain.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn

from dnnsep.codegen.program import INPUT
from dnnsep.codegen.sources import Sources
from dnnsep.nn.chain import PackedChain, can_be_linked, gives_rows, takes_rows


def link_chains(traced: fx.GraphModule) -> None:
    """Put a PackedChain in the place of layers of whose results only the last one's is seen
    outside."""
    for nodes in list(_chains(traced)):
        source = nodes[0].args[0]
        assert isinstance(source, fx.Node)
        number = {source: INPUT, **{node: place for place, node in enumerate(nodes)}}
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
    nodes = [node for node in traced.graph.nodes if _is_link(traced, node)]
    layers = {node: traced.get_submodule(str(node.target)) for node in nodes}

    def fits(node: fx.Node, chain: list[fx.Node]) -> bool:
        """Whether a layer reads only the chain's input and results, as what they are."""
        source = chain[0].args[0]
        rows: dict[object, bool] = {link: gives_rows(layers[link]) for link in chain}
        rows[source] = takes_rows(layers[chain[0]])
        return all(
            rows.get(value) == takes_rows(layers[node]) for _, value in _sources(node).items()
        )

    taken: set[fx.Node] = set()
    for place, node in enumerate(nodes):
        if node in taken or not fits(node, [node]):
            continue
        chain = [node]
        for other in nodes[place + 1 :]:
            if other not in taken and fits(other, chain):
                chain.append(other)
        while not _closed(chain):
            chain.pop()
        if len(chain) > 1:
            taken.update(chain)
            yield chain


def _closed(chain: list[fx.Node]) -> bool:
    """Whether only the last result is seen outside."""
    return all(set(node.users) <= set(chain) for node in chain[:-1])


def _sources(node: fx.Node) -> Sources[fx.Node]:
    """Returns what a packed layer's node reads."""
    return Sources(*node.args)  # type: ignore[arg-type]


def _is_link(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module" or not node.args or node.kwargs:
        return False
    layer: nn.Module = traced.get_submodule(str(node.target))
    return can_be_linked(layer, with_residual=len(node.args) > 1 and node.args[1] is not None)
