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
    """A convolution or linear layer with what belongs to it on its only path.

    That is the normalisation, the addition and the activation that follow it, the mean and the
    product before it: ``nodes`` are all of these, in order, and ``layer_node`` is the layer's own.
    ``sources`` is what they read; the residual is added before the activation. ``pooled`` says
    whether the mean over all pixels of x is taken first.
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
        return self.nodes[-1]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(str(node.target) for node in self.nodes if node.op == "call_module")


@dataclass
class Matches:
    """Separable layers as pairs of matches, other convolutions (of depthwise ones with why they are
    not separable) and linear layers, and convolutions to leave with why."""

    separable: list[tuple[Match, Match]] = field(default_factory=list)
    single: list[tuple[Match, str]] = field(default_factory=list)
    linear: list[Match] = field(default_factory=list)
    left: list[tuple[fx.Node, str]] = field(default_factory=list)


def match_layers(traced: fx.GraphModule) -> Matches:
    """All convolutions of a traced model whose nodes have the shapes of an example (ShapeProp)."""
    return _Matcher(traced).matches()


class _Matcher:
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

        self._taken: set[fx.Node] = set()  # by what was found so far

    def matches(self) -> Matches:
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
        """Why a depthwise convolution is not the first half of a separable layer."""
        users = list(match.last.users)
        if len(users) != 1:
            return f"depthwise only: its result goes to {len(users)} places"
        (user,) = users
        if self._is_pointwise(user):
            return f"depthwise only: {user.target}: {self._obstacle(user)}"
        what: Any = user.target
        if user.op == "call_module":
            what = f"{user.target} ({type(self._modules[str(user.target)]).__name__})"
        elif user.op == "call_function":
            what = getattr(user.target, "__name__", user.target)
        elif user.op == "output":
            what = "the model's output"
        return f"depthwise only: followed by {what}, not by a pointwise convolution"

    def _is_pointwise(self, node: fx.Node) -> bool:
        return node.op == "call_module" and is_pointwise(self._modules[str(node.target)])

    def _is_linear(self, node: fx.Node) -> bool:
        """Whether it is a linear layer on (..., C) that nothing else needs."""
        if node.op != "call_module" or self._seen_by_others(node):
            return False
        layer = self._modules[str(node.target)]
        return (
            _is_plain_linear(layer)
            and not has_hooks(layer)
            and layer.weight.dtype in TORCH_DTYPES.values()
            and len(shape_of(node.args[0])) >= 2
        )

    def _take_mean(self, match: Match) -> None:
        """What makes the layer's (N, C) or (N, C, 1, 1) from (N, C, H, W), if that is the mean over
        all pixels."""
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
        """The product that is the layer's input, if that is of (N, C, H, W) and (N, C, 1, 1)."""
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
        """Why a convolution has to stay as it is; empty if it has not."""
        layer = self._modules[str(node.target)]
        assert isinstance(layer, nn.Conv2d)
        if len(shape_of(node.args[0])) != 4:
            return "its input has no batch"
        return why_not_packed(layer) or self._seen_by_others(node)

    def _seen_by_others(self, node: fx.Node) -> str:
        """What else needs a module, or its parameters, as they are."""
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
        layer = self._modules[str(node.target)]
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        x = node.args[0]
        assert isinstance(x, fx.Node)
        match = Match([node], layer, node, Sources(x))
        following = _only_user(node)
        of_images = isinstance(layer, nn.Conv2d)
        if of_images and following is not None and self._take_norm(match, following):
            following = _only_user(match.last)
        self._take_activation(match, following)
        return match

    def _take_norm(self, match: Match, node: fx.Node) -> bool:
        if node.op != "call_module" or self._seen_by_others(node):
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
            parts = dict(norm.named_children())
            if set(parts) != {"drop", "act"} or type(parts["drop"]) is not nn.Identity:
                return False
            activation = activation_of_module(parts["act"]) or ""
            if not activation:
                return False
        match.norm, match.activation = norm, activation
        match.nodes.append(node)
        return True

    def _take_activation(self, match: Match, node: fx.Node | None) -> None:
        activation = activation_of(node, self._modules) if node is not None else None
        if node is None or match.activation != "none":
            return
        if activation is not None:
            match.activation = activation
            match.nodes.append(node)

    def _with_residual(self, match: Match, then_activation: bool = True) -> Match:
        """The match with the addition after it, if it is of a tensor of the same shape."""
        node = _only_user(match.last)
        if match.activation != "none" or node is None or node in self._taken:
            return match
        if node.target not in ADDITIONS or len(node.args) != 2 or node.kwargs:  # alpha=
            return match
        first, second = node.args
        if not isinstance(first, fx.Node) or not isinstance(second, fx.Node) or first is second:
            return match
        if node.target is operator.iadd and first is not match.last:
            return match  # it would write into the other one
        if shape_of(first) != shape_of(second) or dtype_of(first) != dtype_of(second):
            return match
        residual = second if first is match.last else first
        match.sources = replace(match.sources, residual=residual)
        match.nodes.append(node)
        if then_activation:
            self._take_activation(match, _only_user(node))
        return match


def why_not_packed(layer: nn.Conv2d) -> str:
    """What about a convolution itself keeps it from being replaced; empty if nothing does."""
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
    """timm's only differs while it is scripted."""
    kind = type(layer)
    timm = issubclass(kind, nn.Linear) and kind.__module__ == "timm.layers.linear"
    return kind is nn.Linear or timm


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
