"""Canonical graphs as JSON, and back.

What a node's value looks like is not written down: it is found anew, without data, when a graph is
read, so that a file cannot say something else than what its operators do. Imports torch: import it
from inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from dnnsep.graph.encode import decoded, encoded
from dnnsep.graph.looks import looks, without_data
from dnnsep.graph.operators import name_of, operator_of

# Of a node read from a file: why it has to stay with torch.
WHY_NOT = "why_not"


def live_nodes(graph: fx.Graph, constants: Mapping[fx.Node, Any]) -> list[fx.Node]:
    """Returns a graph's inputs and the nodes that its output depends on, in order. Of what is
    constant only those with a value in ``constants`` are among them, not what these come from."""
    live: set[fx.Node] = set()
    for node in reversed(list(graph.nodes)):
        used = any(user in live and user not in constants for user in node.users)
        if used or node.op in ("placeholder", "output"):
            live.add(node)
    return [node for node in graph.nodes if node in live]


def written(
    nodes: Sequence[fx.Node],
    constants: Mapping[fx.Node, Any],
    number_of: Callable[[Any], int],
    why_not: Callable[[fx.Node], str],
) -> list[dict[str, Any]]:
    """Returns live nodes as JSON; each is known by its place in the list.

    Those with a value in ``constants`` become leaves, known by the number that ``number_of`` gives
    for the value. ``why_not`` says of a node why it has to stay with torch. Raises ValueError for
    what cannot be saved.
    """
    numbers = {node: number for number, node in enumerate(nodes)}

    def fields_of(node: fx.Node) -> dict[str, Any]:
        if node.op == "placeholder":
            return {"input": None}
        if node in constants:
            return {"constant": number_of(constants[node])}
        if node.op == "output":
            return {"output": encoded(list(node.args[0]), numbers.__getitem__)}  # type: ignore[arg-type]
        fields = {
            "call": name_of(node.target),
            "args": encoded(list(node.args), numbers.__getitem__),
            "kwargs": encoded(dict(node.kwargs), numbers.__getitem__),
            "layer": str(node.meta.get("layer") or ""),
        }
        reason = why_not(node)
        return fields | ({WHY_NOT: reason} if reason else {})

    return [fields_of(node) for node in nodes]


def read(
    nodes: Sequence[dict[str, Any]], constants: Sequence[Tensor], inputs: Sequence[Tensor]
) -> tuple[fx.Graph, dict[fx.Node, Tensor]]:
    """Returns the graph of some JSON, for inputs like these, and the constants among its nodes.

    Raises ValueError for what is no graph, and what operators raise that cannot run so.
    """
    graph, made = fx.Graph(), list[fx.Node]()
    of_nodes: dict[fx.Node, Tensor] = {}
    given = iter(inputs)
    for fields in nodes:
        if "input" in fields:
            node = graph.placeholder(f"input_{len(made)}")
            node.meta["val"] = without_data(next(given))
        elif "constant" in fields:
            number = fields["constant"]
            if not 0 <= number < len(constants):
                raise ValueError(f"constant {number}: there is none")
            # Packed weights are known by this name in all of a file's graphs.
            node = graph.create_node("get_attr", f"constant_{number}")
            of_nodes[node] = constants[number]
            node.meta["val"] = without_data(constants[number])
        elif "output" in fields:
            node = graph.output(tuple(decoded(fields["output"], made)))
        else:
            node = _call(graph, fields, made)
        made.append(node)
    if next(given, None) is not None or not made or made[-1].op != "output":
        raise ValueError("a graph without an output, or for fewer inputs")
    return graph, of_nodes


def _call(graph: fx.Graph, fields: dict[str, Any], made: Sequence[fx.Node]) -> fx.Node:
    target = operator_of(fields["call"])
    args, kwargs = decoded(fields["args"], made), decoded(fields["kwargs"], made)
    node = graph.call_function(target, tuple(args), kwargs)
    node.meta["layer"] = str(fields["layer"])
    node.meta[WHY_NOT] = str(fields.get(WHY_NOT, ""))
    node.meta["val"] = looks(node)
    return node
