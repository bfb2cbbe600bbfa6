"""Which nodes of a canonical graph become one layer of the fused kernel.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from dnnsep.backends.base import Backend
from dnnsep.codegen.lang.isa import this_isa
from dnnsep.codegen.layer import layer_of
from dnnsep.graph import layout, ops
from dnnsep.graph.predict import is_view, predicted, view_of
from dnnsep.graph.quantized import Scales
from dnnsep.graph.rewrite import only_user
from dnnsep.nn.layer import DTYPES
from dnnsep.problem import Pair, Problem

aten = torch.ops.aten


@dataclass(frozen=True)
class Filters:
    """The weight and the bias of a layer: constant nodes."""

    weight: fx.Node
    bias: fx.Node | None


@dataclass(eq=False)
class LayerGroup:
    """Nodes that one layer of the fused kernel computes, in order; the last one's value is its
    result.

    ``problem`` says what it computes of ``x``, with the ``filters`` of its one or two stages.
    ``residual`` is added before the last activation, or after it where ``after`` says so; ``scale``
    multiplies the input. ``base`` is the node after whose value only views change the shape: where
    the result has the problem's output shape. A grouped convolution, of ``groups``, has the problem
    of one of its groups. ``anchors`` are the nodes that multiply by weights. Of a quantised layer
    ``scales`` say what its bytes stand for; its result is bytes, or f32.
    """

    nodes: list[fx.Node]
    problem: Problem
    x: fx.Node
    filters: tuple[Filters, ...]
    anchors: tuple[fx.Node, ...]
    residual: fx.Node | None = None
    after: bool = False
    scale: fx.Node | None = None
    groups: int = 1
    views: list[fx.Node] = field(default_factory=list)
    scales: Scales | None = None

    @property
    def result(self) -> fx.Node:
        return self.nodes[-1]

    @property
    def inputs(self) -> list[fx.Node]:
        """The nodes whose values it reads."""
        return [node for node in (self.x, self.residual, self.scale) if node is not None]


Allowed = Callable[[fx.Node], str]


class LayerMatcher:
    """Finds the layers of floating point among the nodes of a graph, which come in order.

    ``constants`` are other nodes, those that depend on parameters only. ``why_not`` says of a
    convolution or linear layer why it may not be one, empty if it may. With an ``engine``, a
    backend other than the fused kernel, only separable layers that it can run are found.
    """

    def __init__(
        self,
        nodes: Sequence[fx.Node],
        constants: Collection[fx.Node],
        why_not: Allowed,
        engine: Backend | None = None,
    ) -> None:
        self._nodes, self._constants, self._why_not = nodes, constants, why_not
        self._engine = engine
        self._taken: set[fx.Node] = set()
        self.left: dict[fx.Node, str] = {}

    def groups(self) -> list[LayerGroup]:
        """Returns the layers in the order of their first nodes. Separable ones come first, since
        they take two convolutions."""
        found: list[LayerGroup] = []
        nodes = self._nodes
        for only_separable in (True, False) if self._engine is None else (True,):
            for node in nodes:
                if node in self._taken:
                    continue
                group = self._separable(node) if only_separable else self._single(node)
                if group is not None:
                    self._taken.update(group.nodes)
                    found.append(group)
        if self._engine is not None:
            others = [node for node in nodes if is_layer(node) and node not in self._taken]
            self.left = dict.fromkeys(others, f"not a separable layer for {self._engine.name}") | (
                self.left
            )
        return found

    def _separable(self, node: fx.Node) -> LayerGroup | None:
        first = self._convolution(node)
        if first is None or not first.is_depthwise or self._why_not(node):
            return None
        nodes, activation = self._then_activation([node])
        follower = only_user(nodes[-1])
        second = None if follower is None else self._convolution(follower)
        if follower is None or second is None or not second.is_pointwise:
            return None
        if second.x is not nodes[-1] or self._why_not(follower):
            return None
        batch, channels, height, width = shape_of(first.x)
        problem = Problem(
            batch=batch,
            in_channels=channels,
            out_channels=second.out_channels,
            height=height,
            width=width,
            kernel=first.kernel,
            stride=first.stride,
            padding=first.padding,
            dilation=first.dilation,
            channel_multiplier=first.out_channels // channels,
            bias=first.bias is not None or second.bias is not None,
            activations=(activation, "none"),
            dtype=DTYPES[dtype_of(node)],
        )
        filters = (first.filters, second.filters)
        anchors = (node, follower)
        group = LayerGroup([*nodes, follower], problem, first.x, filters, anchors)
        if self._engine is not None:
            return self._on_engine(group, self._engine)
        return self._finished(group) if has_kernel(problem) else None

    def _on_engine(self, group: LayerGroup, engine: Backend) -> LayerGroup | None:
        """Returns a separable layer with the activation after it, if a backend can run it."""
        nodes, activation = self._then_activation(group.nodes)
        problem = with_activations(group.problem, (group.problem.activations[0], activation))
        verdict = engine.supports(problem)
        if not verdict:
            self.left |= dict.fromkeys(group.anchors, f"{engine.name}: {verdict.reason}")
            return None
        group.nodes, group.problem = nodes, problem
        return group

    def _single(self, node: fx.Node) -> LayerGroup | None:
        group = self._linear(node) or self._alone(node)
        if group is None:
            if is_layer(node):
                self.left.setdefault(node, self._why_not(node) or "no kernel for it")
            return None
        return self._finished(group)

    def _linear(self, node: fx.Node) -> LayerGroup | None:
        if node.target is not aten.linear.default or not self._is_constant(*node.args[1:]):
            return None
        x, weight, bias = (*node.args, None)[:3]
        if self._why_not(node) or dtype_of(node) not in DTYPES or 0 in shape_of(x):
            return None
        problem = Problem(
            batch=max(1, prod(shape_of(x)[:-1])),
            in_channels=shape_of(weight)[1],
            out_channels=shape_of(weight)[0],
            height=1,
            width=1,
            kernel=(1, 1),
            bias=bias is not None,
            dtype=DTYPES[dtype_of(node)],
            kind="linear",
        )
        if not has_kernel(problem):
            return None
        return LayerGroup([node], problem, x, (Filters(weight, bias),), (node,))  # type: ignore[arg-type]

    def _alone(self, node: fx.Node) -> LayerGroup | None:
        """Returns a convolution that is no half of a separable layer."""
        found = self._convolution(node)
        if found is None or self._why_not(node):
            return None
        batch, channels, height, width = shape_of(found.x)
        groups = 1 if found.is_depthwise else found.groups
        try:
            problem = Problem(
                batch=batch,
                in_channels=channels // groups,
                out_channels=found.out_channels // groups,
                height=height,
                width=width,
                kernel=found.kernel,
                stride=found.stride,
                padding=found.padding,
                dilation=found.dilation,
                channel_multiplier=found.out_channels // channels if found.is_depthwise else 1,
                bias=found.bias is not None,
                dtype=DTYPES[dtype_of(node)],
                kind="depthwise" if found.is_depthwise else "convolution",
            )
        except ValueError as error:
            self.left[node] = str(error)
            return None
        if not has_kernel(problem):
            return None
        filters = (found.filters,)
        return LayerGroup([node], problem, found.x, filters, (node,), groups=groups)

    def _convolution(self, node: fx.Node) -> _Convolution | None:
        if node.target is not ops.convolution or node in self._taken:
            return None
        x, weight, bias, stride, padding, dilation, groups = node.args
        if not self._is_constant(weight, bias) or x in self._constants:
            return None
        if dtype_of(node) not in DTYPES or dtype_of(x) != dtype_of(node) or 0 in shape_of(node):
            return None
        sizes: list[Any] = [tuple(value) for value in (stride, padding, dilation)]  # type: ignore[arg-type]
        return _Convolution(x, weight, bias, sizes[0], sizes[1], sizes[2], groups)  # type: ignore[arg-type]

    def _is_constant(self, *nodes: object) -> bool:
        return all(node is None or node in self._constants for node in nodes)

    def _then_activation(self, nodes: list[fx.Node]) -> tuple[list[fx.Node], str]:
        """Returns the nodes and the activation after them, if one follows and nothing else reads
        what it is applied to."""
        follower = only_user(nodes[-1])
        if follower is not None and follower.target is ops.activation:
            return [*nodes, follower], str(follower.args[1])
        return nodes, "none"

    def _finished(self, group: LayerGroup) -> LayerGroup:
        """Adds what follows a layer, and what scales its input, as far as its kernel does it."""
        self._take_scale(group)
        self._take_following(group)
        return group

    def _take_scale(self, group: LayerGroup) -> None:
        """Adds the product of images (N, C, H, W) with a number for each of their channels,
        (N, C, 1, 1), that a pointwise convolution reads."""
        problem, node = group.problem, group.x
        pointwise = problem.kind == "convolution" and problem.kernel == problem.stride == (1, 1)
        if not pointwise or any(problem.padding) or group.groups > 1:
            return
        if only_user(node) is None or node.target is not aten.mul.Tensor or node in self._taken:
            return
        factors = [value for value in node.args if isinstance(value, fx.Node)]
        if len(factors) != 2 or any(value in self._constants for value in factors):
            return
        x, scale = sorted(factors, key=lambda value: -prod(shape_of(value)))
        (n, c, *_), of_scale = shape_of(node), shape_of(scale)
        alike = dtype_of(x) == dtype_of(scale) == dtype_of(node)
        if alike and shape_of(x) == shape_of(node) != of_scale == (n, c, 1, 1):
            group.nodes.insert(0, node)
            group.x, group.scale = x, scale

    def _take_following(self, group: LayerGroup) -> None:
        """Adds activations and an addition after the layer, and the views between them."""
        activation, nodes = "none", list(group.nodes)
        views: list[fx.Node] = []
        like = predicted(group.nodes[-1])
        while (node := only_user(nodes[-1])) is not None and node not in self._taken:
            last = nodes[-1]
            if is_view(node) and node.args[0] is last:
                seen = view_of(node, like)
                if seen is None:
                    break
                like = seen
                nodes.append(node)
                views.append(node)
                continue
            if node.target is ops.activation and activation == "none" and not group.after:
                activation = str(node.args[1])
            elif group.residual is None and (added := self._added(node, last, like)) is not None:
                group.residual, group.after = added, activation != "none"
            else:
                break
            nodes.append(node)
            group.nodes, group.views = list(nodes), list(views)
        if activation != "none":
            *before, _ = group.problem.activations
            group.problem = with_activations(group.problem, (*before, activation))

    def _added(self, node: fx.Node, last: fx.Node, like: Tensor) -> fx.Node | None:
        """Returns what an addition adds to a value that lies in memory as ``like``, if that is
        rows of the same channels."""
        if node.target is not aten.add.Tensor or node.kwargs or len(node.args) != 2:
            return None
        first, second = node.args
        if not (isinstance(first, fx.Node) and isinstance(second, fx.Node)) or first is second:
            return None
        other = second if first is last else first
        if shape_of(other) != shape_of(node) or dtype_of(other) != dtype_of(node):
            return None
        return other if layout.same_places(like, predicted(other)) else None


@dataclass(frozen=True)
class _Convolution:
    """The arguments of ops.convolution."""

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    stride: Pair
    padding: tuple[int, int, int, int]
    dilation: Pair
    groups: int

    @property
    def kernel(self) -> Pair:
        height, width = shape_of(self.weight)[2:]
        return height, width

    @property
    def out_channels(self) -> int:
        return shape_of(self.weight)[0]

    @property
    def filters(self) -> Filters:
        return Filters(self.weight, self.bias)

    @property
    def is_depthwise(self) -> bool:
        return 1 < self.groups == shape_of(self.x)[1]

    @property
    def is_pointwise(self) -> bool:
        plain = (self.kernel, self.stride, self.groups) == ((1, 1), (1, 1), 1)
        return plain and not any(self.padding)


def is_layer(node: fx.Node) -> bool:
    """Returns whether a node is a convolution or a linear layer."""
    return node.target in (ops.convolution, aten.linear.default, aten.convolution.default)


def has_kernel(problem: Problem) -> bool:
    """Returns whether the fused kernel runs a problem on this CPU."""
    try:
        layer_of(problem, this_isa())
    except (RuntimeError, ValueError):
        return False
    return True


def with_activations(problem: Problem, activations: tuple[str, ...]) -> Problem:
    """Returns a problem with other activations."""
    return replace(problem, activations=activations)


def shape_of(node: Any) -> tuple[int, ...]:
    """Returns the shape of a node's value; empty where it is not a tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def dtype_of(node: Any) -> torch.dtype:
    """Returns the dtype of a node's tensor."""
    found: torch.dtype = node.meta["val"].dtype
    return found
