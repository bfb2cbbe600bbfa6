"""Which nodes of a quantised model's graph become one layer of the fused kernel.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from dnnsep.graph.groups import LayerGroup, LayerMatcher, has_kernel, is_layer
from dnnsep.graph.predict import predicted
from dnnsep.graph.quantized import Bytes, Scales, dequantized, quantized, weight_scales
from dnnsep.graph.rewrite import only_user


class QuantizedMatcher(LayerMatcher):
    """Finds the layers from bytes to bytes, or to f32, then those of floating point."""

    def groups(self) -> list[LayerGroup]:
        """Returns all layers; of bytes separable ones where both stages are."""
        found = []
        for node in self._nodes:
            stage = None if node in self._taken else self._quantized(node)
            if stage is None:
                continue
            group = self._with_pointwise(stage) or stage
            self._taken.update(group.nodes)
            found.append(group)
        return found + super().groups()

    def _quantized(self, node: fx.Node) -> LayerGroup | None:
        """Returns a convolution or linear layer whose input and weight were bytes, with the
        addition, the activation and the rounding to bytes that follow it."""
        source = dequantized(node.args[0]) if is_layer(node) else None
        if source is None or self._why_not(node):
            return None
        weights = weight_scales(node.args[1])
        group = self._linear(node) or self._alone(node)
        if weights is None or group is None:
            return None
        scales = Scales(source.affine, None, None, (weights,))
        return self._with_addition(group, source, scales) or self._ended(group, source, scales)

    def _with_addition(self, group: LayerGroup, source: Bytes, scales: Scales) -> LayerGroup | None:
        """Returns a layer of bytes with the addition after it: of bytes like its output's, or of
        f32 like its output."""
        node = group.result
        added = only_user(node)
        other = None if added is None else self._added(added, node, predicted(node))
        depthwise = group.problem.kind == "depthwise"
        if added is None or other is None or added in self._taken or depthwise:
            return None
        of_bytes = dequantized(other)
        longer = replace(group, nodes=[node, added], residual=other)
        if of_bytes is not None:
            longer.residual = of_bytes.node
            longer.nodes.insert(0, other)
            scales = replace(scales, residual=of_bytes.affine)
        found = self._ended(longer, source, scales)
        if found is None:
            return None
        wanted = found.problem.precision.destination.name
        return found if wanted == (of_bytes.dtype if of_bytes else "f32") else None

    def _ended(self, group: LayerGroup, source: Bytes, scales: Scales) -> LayerGroup | None:
        """Returns a layer as one of bytes, with the activation and the rounding to bytes after
        it, and with what made f32 of its input."""
        nodes, activation = self._then_activation(group.nodes)
        follower = only_user(nodes[-1])
        target = None if follower is None else quantized(follower)
        dtype = f"{source.dtype}s8"
        if target is None:
            dtype += "f32"
        elif target.dtype != source.dtype:
            dtype += target.dtype
        problem = replace(group.problem, dtype=dtype, activations=(activation,))
        if not has_kernel(problem):
            return None
        if target is not None:
            nodes = [*nodes, target.node]
            scales = replace(scales, destination=target.affine)
        nodes = [group.x, *nodes]
        return replace(group, nodes=nodes, problem=problem, x=source.node, scales=scales)

    def _with_pointwise(self, first: LayerGroup) -> LayerGroup | None:
        """Returns a quantised depthwise convolution with the pointwise one that alone reads it."""
        made = only_user(first.result)
        follower = None if made is None else only_user(made)
        if first.problem.kind != "depthwise" or made is None or follower is None:
            return None
        second = self._quantized(follower)
        if second is None or second.nodes[0] is not made or second.x is not first.result:
            return None
        convolution = self._convolution(follower)
        if convolution is None or not convolution.is_pointwise:
            return None
        assert first.scales is not None
        assert second.scales is not None
        problem = replace(
            first.problem,
            kind="separable",
            out_channels=second.problem.out_channels,
            bias=first.problem.bias or second.problem.bias,
            activations=first.problem.activations + second.problem.activations,
            dtype=second.problem.dtype,
        )
        if not has_kernel(problem):
            return None
        scales = replace(
            second.scales,
            source=first.scales.source,
            middle=second.scales.source,
            weights=first.scales.weights + second.scales.weights,
        )
        return replace(
            second,
            nodes=first.nodes + second.nodes,
            problem=problem,
            x=first.x,
            filters=first.filters + second.filters,
            anchors=first.anchors + second.anchors,
            scales=scales,
        )
