"""Adds layers to a network: their steps, and their weights packed.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from dnnsep.backends import Backend
from dnnsep.codegen.extras import Extras
from dnnsep.codegen.layerstep import LayerStep, chosen_step
from dnnsep.codegen.pack import Packing
from dnnsep.graph import layout
from dnnsep.graph.build import Builder, Packer
from dnnsep.graph.groups import LayerGroup
from dnnsep.graph.network import Buffer, Call, Native, Value
from dnnsep.graph.predict import predicted, view_of
from dnnsep.graph.quantized import Scales
from dnnsep.graph.rewrite import shape_of
from dnnsep.nn.layer import array
from dnnsep.problem import Problem
from dnnsep.quantization import Quantization
from dnnsep.weights import Weights


def add_layer(build: Builder, group: LayerGroup) -> list[LayerStep]:
    """Adds a layer, and returns its steps: one, or of a grouped convolution one for each group."""
    dims = _channel_dims(group)
    operands = {"x": build.as_rows(group.x, dims["x"])}
    if group.residual is not None:
        operands["residual"] = build.as_rows(group.residual, dims["residual"])
    if group.scale is not None:
        operands["scale"] = _dense(build, group.scale)
    base = predicted(group.anchors[-1])
    if group.scales is not None:  # the result may be bytes
        dtype = predicted(group.result).dtype
        base = torch.empty_strided(base.shape, base.stride(), dtype=dtype, device="meta")
    y = operands["y"] = build.result(group.result, base, in_slot=not group.views)
    steps = _add_steps(build, group, operands, dims)
    like = y.like
    for view in group.views:
        seen = view_of(view, like)
        assert seen is not None, view
        like = seen
    build.values[group.result] = y.seen(like)
    return steps


def add_on_engine(build: Builder, group: LayerGroup, engine: Backend) -> None:
    """Adds a call of another backend's executor, which takes dense channels-last images."""
    executor = engine.prepare(group.problem, _weights(build, group, 0))
    x = build.as_rows(group.x, 1)
    rows = layout.rows_of(x.like, 1)
    if rows is None or not rows.dense:
        x = build.copied_densely(x, 1)
    y = Value(Buffer("torch"), layout.images(shape_of(group.result), x.like.dtype))
    name = " ".join((executor.backend, *executor.impls))
    build.actions.append(Call(name, executor.run, (x,), {}, [y]))
    build.values[group.result] = y


def _channel_dims(group: LayerGroup) -> dict[str, int]:
    """Returns which dimension of each operand has the channels."""
    dim = -1 if group.problem.kind == "linear" else 1
    dims = {"x": dim, "y": dim, "scale": 1}
    if group.residual is not None:
        dims["residual"] = layout.minor_dim(predicted(group.residual))
    return dims


def _dense(build: Builder, scale: fx.Node) -> Value:
    """Returns the numbers (N, C, 1, 1) that scale an input, without gaps between images."""
    value = build.as_rows(scale, 1)
    rows = layout.rows_of(value.like, 1)
    assert rows is not None
    return value if rows.dense or rows.pixels == 1 else build.copied_densely(value, 1)


def _add_steps(
    build: Builder, group: LayerGroup, operands: Mapping[str, Value], dims: Mapping[str, int]
) -> list[LayerStep]:
    settings, extras = build.settings, _extras(group, operands, dims)
    steps = []
    for number in range(group.groups):
        packed = _packed(build, group, number)
        step = chosen_step(group.problem, packed, settings.threads, extras, settings.tune)
        slices = {
            name: _channels_of_group(value, dims[name], number, group.groups)
            for name, value in operands.items()
        }
        # Groups do not read each other's results.
        waits = number == group.groups - 1
        native = Native(_name(group), step, slices, waits)
        build.actions.append(native)
        build.packers[native] = packed
        steps.append(step)
    return steps


def _extras(group: LayerGroup, operands: Mapping[str, Value], dims: Mapping[str, int]) -> Extras:
    """Returns what a layer's kernel takes beside its input, and how its tensors lie."""
    problem = group.problem
    channels = {
        "x": problem.in_channels,
        "y": problem.out_channels,
        "residual": problem.out_channels,
    }
    pitches = {}
    for name in channels.keys() & operands.keys():
        rows = layout.rows_of(operands[name].like, dims[name])
        assert rows is not None
        pitches[f"{name}_pitch"] = 0 if rows.pitch == channels[name] else rows.pitch
    return Extras("residual" in operands, "scale" in operands, group.after, **pitches)


def _channels_of_group(value: Value, dim: int, number: int, groups: int) -> Value:
    """Returns the channels of one of a grouped convolution's groups."""
    if groups == 1:
        return value
    channels = value.like.shape[dim] // groups
    return value.seen(value.like.narrow(dim, number * channels, channels))


def _packed(build: Builder, group: LayerGroup, number: int) -> Packer:
    nodes = [node for f in group.filters for node in (f.weight, f.bias) if node is not None]
    names = tuple(build.keys[node] for node in nodes)
    # Weights that several quantised layers share are packed with each one's own scales.
    scales = None if group.scales is None else group.scales.of_tensors
    packings = build.settings.packings

    def packed(packing: Packing) -> NDArray[np.uint8]:
        key = (names, number, packing, scales)
        if key not in packings:
            packings[key] = packing.pack(_weights(build, group, number))
        return packings[key]

    return packed


def _weights(build: Builder, group: LayerGroup, number: int) -> Weights:
    """Returns the weights of one of a layer's groups."""

    def part(values: NDArray[np.float32] | None) -> Any:
        if values is None:
            return None
        each = len(values) // group.groups
        return values[number * each : (number + 1) * each]

    def of_node(node: fx.Node | None) -> Any:
        return None if node is None else part(array(build.constants[node]))

    problem = group.problem
    arrays = [(of_node(filters.weight), of_node(filters.bias)) for filters in group.filters]
    if group.scales is not None:
        scales = replace(group.scales, weights=tuple(map(part, group.scales.weights)))
        return _quantized(problem, scales, arrays)
    if problem.kind == "separable":
        (depthwise, its_bias), (pointwise, bias) = arrays
        if problem.bias:  # both have one, or neither
            its_bias = _or_zeros(its_bias, problem.mid_channels)
            bias = _or_zeros(bias, problem.out_channels)
        return Weights(depthwise, its_bias, pointwise, bias)
    ((weight, bias),) = arrays
    if problem.kind == "depthwise":
        return Weights(weight, bias)
    if problem.kind == "linear":
        weight = weight[:, :, None, None]
    return Weights(pointwise=weight, pointwise_bias=bias)


def _quantized(problem: Problem, scales: Scales, arrays: list[tuple[Any, Any]]) -> Weights:
    """Returns the weights of a quantised layer, whose arrays are what its bytes stand for."""
    whole = []
    for (weight, bias), of in zip(arrays, scales.weights, strict=True):
        steps = np.rint(weight / of.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32)
        steps = steps[:, :, None, None] if steps.ndim == 2 else steps
        whole.append((steps, _or_zeros(bias, len(steps)) if problem.bias else None, of))
    nothing = (None, None, None)
    first, its_bias, its_scales = whole.pop(0) if problem.depthwise_shape else nothing
    second, bias, second_scales = whole.pop() if whole else nothing
    source, middle, destination, residual = scales.of_tensors
    assert source is not None
    told = Quantization(source, destination, middle, its_scales, second_scales, residual)
    return Weights(first, its_bias, second, bias, told)


def _or_zeros(bias: NDArray[np.float32] | None, channels: int) -> NDArray[np.float32]:
    return np.zeros(channels, np.float32) if bias is None else bias


def _name(group: LayerGroup) -> str:
    return str(group.anchors[0].meta.get("layer") or group.anchors[0].name)
