"""Turns a canonical graph into a network: layers into kernels of the generator, other nodes into
other kernels or calls of torch's operators, views into nothing.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from dnnsep.backends import get_backend
from dnnsep.codegen.layerstep import LayerStep
from dnnsep.graph import cascades, joined, layout
from dnnsep.graph.attention import (
    AttentionGroup,
    add_attention,
    attention_groups,
    place_of_result,
)
from dnnsep.graph.build import Builder, Settings, place_of
from dnnsep.graph.bytegroups import QuantizedMatcher
from dnnsep.graph.constants import constants as constant_nodes
from dnnsep.graph.groups import LayerGroup, LayerMatcher
from dnnsep.graph.kernels import add_kernel, add_pool, add_rows
from dnnsep.graph.keys import constant_keys
from dnnsep.graph.layers import add_layer, add_on_engine
from dnnsep.graph.network import Buffer, Call, Network, Value
from dnnsep.graph.pooling import PoolGroup, pool_groups
from dnnsep.graph.predict import by_torch, is_view, predict, view_of
from dnnsep.graph.rows import RowGroup, row_groups
from dnnsep.graph.slots import parts_of, slots
from dnnsep.graph.template import NoTemplateError, Template, template_of


@dataclass(frozen=True, eq=False)
class Single:
    """A node that a kernel of its own computes."""

    node: fx.Node

    @property
    def nodes(self) -> list[fx.Node]:
        return [self.node]

    @property
    def inputs(self) -> list[fx.Node]:
        """The nodes whose values it reads."""
        return self.node.all_input_nodes

    @property
    def result(self) -> fx.Node:
        return self.node


Group = LayerGroup | RowGroup | AttentionGroup | PoolGroup | Single


@dataclass
class Lowered:
    """A network, the layers in it with their steps, why other convolutions and linear layers are
    not in it, and the nodes that kernels compute, kernel by kernel. With ``opened`` it has the
    network with its sizes left open, or the reason why there is none."""

    network: Network
    layers: list[tuple[LayerGroup, list[LayerStep]]]
    left: dict[fx.Node, str]
    groups: list[Group]
    opened: Template | str = ""


def lower(
    graph: fx.Graph,
    inputs: Sequence[Tensor],
    constants: Mapping[fx.Node, Tensor],
    settings: Settings,
    opened: bool = False,
) -> Lowered:
    """Returns the network of a canonical graph for inputs that lie in memory as these do, and with
    ``opened`` for other sizes of them.

    ``constants`` has the tensors of the nodes that depend on parameters only and that others read.
    """
    return _Lowering(graph, inputs, constants, settings).lowered(opened)


class _Lowering:
    """Goes through a graph's nodes in order."""

    def __init__(
        self,
        graph: fx.Graph,
        inputs: Sequence[Tensor],
        constants: Mapping[fx.Node, Tensor],
        settings: Settings,
    ) -> None:
        inner = constant_nodes(graph)
        self._nodes = [node for node in graph.nodes if node not in inner]
        places = [node for node in graph.nodes if node.op == "placeholder"]
        self._inputs = inputs
        given = dict(zip(places, inputs, strict=True))
        fused = settings.backend in ("auto", "fused")
        self._engine = None if fused else get_backend(settings.backend)
        self._native, self._why_not = settings.native, settings.why_not
        attention = attention_groups(self._nodes, constants) if self._native else []
        attention = [g for g in attention if not any(map(settings.why_not, g.nodes))]
        placed = {group.result: place_of_result(group) for group in attention}
        predict(self._nodes, {**constants, **given}, placed)
        matcher = QuantizedMatcher if self._engine is None else LayerMatcher
        self._matcher = matcher(self._nodes, constants, settings.why_not, self._engine)
        self._group_of = self._groups(attention, constants, settings)
        self._build = Builder(
            settings, constants, constant_keys(graph, inner), slots(self._nodes, constants)
        )
        for index, (node, x) in enumerate(given.items()):
            self._build.values[node] = Value(Buffer("input", index), place_of(x))
        self._done: list[Group] = []
        self._layers: list[tuple[LayerGroup, list[LayerStep]]] = []

    def _groups(
        self,
        attention: Sequence[AttentionGroup],
        constants: Mapping[fx.Node, Tensor],
        settings: Settings,
    ) -> dict[fx.Node, Group]:
        """Returns for each node the group that computes it, if one does."""
        groups: list[Group] = [*attention, *self._matcher.groups()]
        if self._native:
            taken = {node for group in groups for node in group.nodes}
            pools = pool_groups(self._nodes, taken)
            pools = [g for g in pools if not any(map(settings.why_not, g.nodes))]
            groups += pools
            taken |= {node for group in pools for node in group.nodes}
            rows = row_groups(self._nodes, constants, taken)
            groups += [g for g in rows if not any(settings.why_not(node) for node in g.nodes)]
        return {node: group for group in groups for node in group.nodes}

    def lowered(self, opened: bool) -> Lowered:
        """Returns the network of all nodes."""
        outputs: Sequence[Any] = ()
        for node in self._nodes:
            if node.op == "output":
                outputs = fx.map_arg(node.args[0], self._build.values.__getitem__)
            elif node.op == "call_function":
                self._add(node)
        build, settings = self._build, self._build.settings
        given = outputs, self._inputs
        how = settings.threads, settings.tune
        taken = cascades.chosen(build.actions, *given, *how) if settings.cascades else []
        actions = cascades.replaced(build.actions, taken, settings.threads)
        network = Network(actions, list(outputs))
        lowered = Lowered(network, self._layers, self._matcher.left, self._done)
        if opened:
            try:
                template = template_of(build.actions, outputs, self._inputs, build.packers)
                steps = template.example_steps(settings.threads)
                cascaded = joined.measured(steps, build.actions, *given, taken, *how)
                lowered.opened = replace(template, joined=cascaded)
            except NoTemplateError as reason:
                lowered.opened = str(reason)
        return lowered

    def _add(self, node: fx.Node) -> None:
        group = self._group_of.get(node)
        if group is not None:
            # The nodes before the last one are computed on the way.
            if node is group.result:
                self._add_group(group)
        elif is_view(node) and isinstance(self._build.values[first_argument(node)], Value):
            self._add_view(node)
        elif node.target is torch.ops.aten.cat.default:
            self._build.concatenate(node, *parts_of(node))
        elif self._native and not self._why_not(node) and add_kernel(self._build, node):
            self._done.append(Single(node))
        else:
            self._add_call(node)

    def _add_group(self, group: Group) -> None:
        self._done.append(group)
        if isinstance(group, RowGroup):
            add_rows(self._build, group)
        elif isinstance(group, AttentionGroup):
            add_attention(self._build, group)
        elif isinstance(group, PoolGroup):
            add_pool(self._build, group)
        elif self._engine is not None and isinstance(group, LayerGroup):
            add_on_engine(self._build, group, self._engine)
            self._layers.append((group, []))
        elif isinstance(group, LayerGroup):
            self._layers.append((group, add_layer(self._build, group)))

    def _add_view(self, node: fx.Node) -> None:
        build = self._build
        value: Value = build.values[first_argument(node)]
        like = view_of(node, value.like)
        build.values[node] = (
            build.copied_for_view(node, value) if like is None else value.seen(like)
        )

    def _add_call(self, node: fx.Node) -> None:
        """Adds a call of a node's own operator; what only views its arguments needs none."""
        values = self._build.values
        if node.target is operator.getitem:
            values[node] = values[first_argument(node)][node.args[1]]
            return
        likes = by_torch(node, lambda n: pytree.tree_map(_like_of, values[n]))
        arguments, named = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        leaves = pytree.tree_leaves((arguments, named))
        sources = [leaf for leaf in leaves if isinstance(leaf, Value)]
        flat, spec = pytree.tree_flatten(likes)
        results = [_alias(like, sources) for like in flat]
        if not flat or any(value is None for value in results):
            results = [
                Value(Buffer("torch"), place_of(like)) if isinstance(like, Tensor) else None
                for like in flat
            ]
            target: Any = node.target
            name = str(getattr(target, "__name__", target)).removesuffix(".default")
            self._build.actions.append(Call(name, target, arguments, named, results))
        values[node] = pytree.tree_unflatten(results, spec)


def first_argument(node: fx.Node) -> fx.Node:
    """Returns a node's first argument, another node."""
    first = node.args[0]
    assert isinstance(first, fx.Node)
    return first


def _alias(like: Any, sources: Sequence[Value]) -> Value | None:
    """Returns the value that a result is, if it shares the memory of an argument."""
    if not isinstance(like, Tensor):
        return None
    for source in sources:
        if layout.is_alias(like, source.like):
            return source.seen(like)
    return None


def _like_of(value: Any) -> Any:
    return value.like if isinstance(value, Value) else value
