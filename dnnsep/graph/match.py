"""Matches convolutions and linear layers, with what follows them, in a traced model.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from torch import fx, nn
from torch.nn.utils import parametrize

from dnnsep.backends.executor import TORCH_DTYPES
from dnnsep.codegen.sources import Sources
from dnnsep.graph.patterns import (
    ADDITIONS,
    activation_of,
    activation_of_module,
    dtype_of,
    has_hooks,
    is_mean,
    is_product,
    only_reshapes,
    shape_of,
)
from dnnsep.nn.convolution import is_pointwise


@dataclass
class Match:
    """A convolution or linear layer with the operations around it that one packed layer can do.

    These are the mean or the product before it, and the normalisation, the addition and the
    activation after it; no other node reads a value between them. ``nodes`` are all of these in
    order, the layer's own ``layer_node`` among them. ``sources`` are the nodes that they read; the
    residual is added before the activation. ``pooled`` says whether the mean over all pixels of x
    is taken first.
    """

    nodes: list[fx.Node]
    layer: nn.Conv2d | nn.Linear
    layer_node: fx.Node
    sources: Sources[fx.Node]
    norm: nn.BatchNorm2d | None = None
    activation: str = "none"
    pooled: bool = False

    @property
    def last(self) -> fx.Node:
        """Returns the node whose value is the result of the match."""
        return self.nodes[-1]

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the names of the modules that are called in the match."""
        return tuple(str(node.target) for node in self.nodes if node.op == "call_module")


@dataclass
class Matches:
    """The layers of a model, each in one of the lists.

    ``separable`` has the depthwise and the pointwise half of separable layers, ``single`` the other
    convolutions, where a depthwise one comes with the reason why it is not separable, ``linear``
    the linear layers, and ``left`` the convolutions that stay as they are, with the reasons.
    """

    separable: list[tuple[Match, Match]] = field(default_factory=list)
    single: list[tuple[Match, str]] = field(default_factory=list)
    linear: list[Match] = field(default_factory=list)
    left: list[tuple[fx.Node, str]] = field(default_factory=list)


def match_layers(traced: fx.GraphModule) -> Matches:
    """Returns the convolutions and linear layers of a traced model.

    The nodes of the model must have the shapes of an example, as torch's ShapeProp writes them.
    """
    return _Matcher(traced).matches()


class _Matcher:
    """Matches the layers of one model.

    It counts how often each module is called and each parameter is owned (by ``id``), and keeps
    which modules have attributes that are read and which nodes belong to a match already.
    """

    def __init__(self, traced: fx.GraphModule) -> None:
        self._modules = dict(traced.named_modules(remove_duplicate=False))
        self._nodes = list(traced.graph.nodes)
        self._calls = Counter(
            id(self._modules[str(node.target)]) for node in self._nodes if node.op == "call_module"
        )
        self._owners = Counter(
            id(parameter)
            for module in set(self._modules.values())
            for parameter in module._parameters.values()
            if parameter is not None
        )
        self._read = {
            str(node.target).rpartition(".")[0] for node in self._nodes if node.op == "get_attr"
        }
        self._taken: set[fx.Node] = set()

    def matches(self) -> Matches:
        """Returns all matches; separable layers come first, since they take two convolutions."""
        matches = Matches()
        taken = self._taken
        for node in self._convolutions():
            if node in taken or not _is_depthwise(self._modules[str(node.target)]):
                continue
            pair = self._separable(node)
            if pair is not None:
                matches.separable.append(pair)
                taken.update(pair[0].nodes, pair[1].nodes)
        for node in self._convolutions():
            if node in taken:
                continue
            obstacle = self._obstacle(node)
            if obstacle:
                matches.left.append((node, obstacle))
                continue
            match = self._with_residual(self._match(node))
            if is_pointwise(match.layer):
                self._take_mean(match)
                self._take_scale(match)
            taken.update(match.nodes)
            depthwise = _is_depthwise(match.layer)
            matches.single.append((match, self._why_not(match) if depthwise else ""))
        for node in self._nodes:
            if self._is_linear(node):
                match = self._match(node)
                if len(shape_of(node.args[0])) == 2:
                    self._take_mean(match)
                matches.linear.append(match)
        return matches

    def _convolutions(self) -> Iterator[fx.Node]:
        for node in self._nodes:
            if node.op == "call_module" and isinstance(self._modules[str(node.target)], nn.Conv2d):
                yield node

    def _separable(self, node: fx.Node) -> tuple[Match, Match] | None:
        """Returns both halves of a separable layer that begins at a depthwise convolution."""
        if self._obstacle(node):
            return None
        first = self._match(node)
        following = _only_user(first.last)
        if following is None or not self._is_pointwise(following) or self._obstacle(following):
            return None
        second = self._match(following)
        if second.activation == "none":
            second = self._with_residual(second, then_activation=False)
        return first, second

    def _why_not(self, match: Match) -> str:
        """Returns why a depthwise convolution is not the first half of a separable layer."""
        users = list(match.last.users)
        if len(users) != 1:
            return f"depthwise only: its result goes to {len(users)} places"
        (user,) = users
        if self._is_pointwise(user):
            return f"depthwise only: {user.target}: {self._obstacle(user)}"
        follower: Any = user.target
        if user.op == "call_module":
            follower = f"{user.target} ({type(self._modules[str(user.target)]).__name__})"
        elif user.op == "call_function":
            follower = getattr(user.target, "__name__", user.target)
        elif user.op == "output":
            follower = "the model's output"
        return f"depthwise only: followed by {follower}, not by a pointwise convolution"

    def _is_pointwise(self, node: fx.Node) -> bool:
        return node.op == "call_module" and is_pointwise(self._modules[str(node.target)])

    def _is_linear(self, node: fx.Node) -> bool:
        """Returns whether a node is a linear layer on (..., C) that may be replaced."""
        if node.op != "call_module" or self._other_use(node):
            return False
        layer = self._modules[str(node.target)]
        return (
            _is_plain_linear(layer)
            and not has_hooks(layer)
            and layer.weight.dtype in TORCH_DTYPES.values()
            and len(shape_of(node.args[0])) >= 2
        )

    def _take_mean(self, match: Match) -> None:
        """Adds to the match the mean over all pixels that makes the layer's input, if there is one.

        It makes (N, C) or (N, C, 1, 1) of (N, C, H, W), maybe with reshapes after it.
        """
        nodes: list[fx.Node] = []
        x = match.sources.x
        while len(x.users) == 1 and x.args and isinstance(x.args[0], fx.Node):
            mean = is_mean(x, self._modules)
            if not mean and not only_reshapes(x, self._modules):
                break
            nodes.insert(0, x)
            x = x.args[0]
            if mean:
                break
        if nodes and len(shape_of(x)) == 4:
            match.nodes = [*nodes, *match.nodes]
            match.sources, match.pooled = replace(match.sources, x=x), True

    def _take_scale(self, match: Match) -> None:
        """Adds to the match the product that is the layer's input, if there is one.

        Its factors must be (N, C, H, W) and (N, C, 1, 1), of one dtype.
        """
        node = match.sources.x
        if match.pooled or len(node.users) > 1 or not is_product(node):
            return
        factors = [value for value in node.args if isinstance(value, fx.Node)]
        if len(factors) != 2:
            return
        x, scale = sorted(factors, key=lambda value: -prod(shape_of(value)))
        (n, c, *_), of_scale = shape_of(node), shape_of(scale)
        if shape_of(x) == shape_of(node) != of_scale == (n, c, 1, 1) and dtype_of(x) == dtype_of(
            scale
        ):
            match.nodes.insert(0, node)
            match.sources = replace(match.sources, x=x, scale=scale)

    def _obstacle(self, node: fx.Node) -> str:
        """Returns why a convolution has to stay as it is; empty if it may be replaced."""
        layer = self._modules[str(node.target)]
        assert isinstance(layer, nn.Conv2d)
        if len(shape_of(node.args[0])) != 4:
            return "its input has no batch"
        return why_not_packed(layer) or self._other_use(node)

    def _other_use(self, node: fx.Node) -> str:
        """Returns what else needs a node's module, or its parameters, as they are; else empty."""
        layer = self._modules[str(node.target)]
        if self._calls[id(layer)] > 1:
            return f"used {self._calls[id(layer)]} times (shared weights)"
        parameters = [p for p in layer._parameters.values() if p is not None]
        if any(self._owners[id(parameter)] > 1 for parameter in parameters):
            return "shared weights"
        if str(node.target) in self._read:
            return "its weights are read elsewhere"
        if len(node.args) != 1 or node.kwargs:
            return "called in an unusual way"
        return ""

    def _match(self, node: fx.Node) -> Match:
        """Matches a layer with the normalisation and the activation that follow it."""
        layer = self._modules[str(node.target)]
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        x = node.args[0]
        assert isinstance(x, fx.Node)
        match = Match([node], layer, node, Sources(x))
        following = _only_user(node)
        is_convolution = isinstance(layer, nn.Conv2d)
        if is_convolution and following is not None and self._take_norm(match, following):
            following = _only_user(match.last)
        self._take_activation(match, following)
        return match

    def _take_norm(self, match: Match, node: fx.Node) -> bool:
        """Adds the node to the match if it is a batch norm; returns whether it is."""
        if node.op != "call_module" or self._other_use(node):
            return False
        norm = self._modules[str(node.target)]
        if (
            has_hooks(norm)
            or not isinstance(norm, nn.BatchNorm2d)
            or norm.running_mean is None
            or norm.training
        ):
            return False
        activation = "none"
        if type(norm) is not nn.BatchNorm2d:
            # timm's BatchNormAct2d: the normalisation, a dropout and an activation in one.
            children = dict(norm.named_children())
            if set(children) != {"drop", "act"} or type(children["drop"]) is not nn.Identity:
                return False
            activation = activation_of_module(children["act"]) or ""
            if not activation:
                return False
        match.norm, match.activation = norm, activation
        match.nodes.append(node)
        return True

    def _take_activation(self, match: Match, node: fx.Node | None) -> None:
        """Adds the node to the match if it is an activation and the match has none yet."""
        if node is None or match.activation != "none":
            return
        activation = activation_of(node, self._modules)
        if activation is not None:
            match.activation = activation
            match.nodes.append(node)

    def _with_residual(self, match: Match, then_activation: bool = True) -> Match:
        """Adds to the match the addition after it, if that adds a tensor of the same shape.

        ``then_activation`` says whether the activation after the addition is added too.
        """
        node = _only_user(match.last)
        if match.activation != "none" or node is None or node in self._taken:
            return match
        if (
            node.target not in ADDITIONS or len(node.args) != 2 or node.kwargs
        ):  # kwargs may hold alpha=
            return match
        first, second = node.args
        if not isinstance(first, fx.Node) or not isinstance(second, fx.Node) or first is second:
            return match
        if node.target is operator.iadd and first is not match.last:
            return match  # the addition would write into the other tensor
        if shape_of(first) != shape_of(second) or dtype_of(first) != dtype_of(second):
            return match
        residual = second if first is match.last else first
        match.sources = replace(match.sources, residual=residual)
        match.nodes.append(node)
        if then_activation:
            self._take_activation(match, _only_user(node))
        return match


def why_not_packed(layer: nn.Conv2d) -> str:
    """Returns what in a convolution itself keeps it from being replaced; empty if nothing does."""
    if parametrize.is_parametrized(layer):
        return "parametrized weights"
    if type(layer) is not nn.Conv2d:
        return f"{type(layer).__name__} is not torch.nn.Conv2d"
    if has_hooks(layer):
        return "has hooks"
    if layer.padding_mode != "zeros":
        return f"padding_mode={layer.padding_mode!r}"
    if layer.weight.dtype not in TORCH_DTYPES.values():
        return f"dtype {layer.weight.dtype}"
    return ""


def _is_plain_linear(layer: nn.Module) -> bool:
    """Returns whether a module is torch's Linear, or timm's, which differs only in TorchScript."""
    kind = type(layer)
    timm = issubclass(kind, nn.Linear) and kind.__module__ == "timm.layers.linear"
    return kind is nn.Linear or timm


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
