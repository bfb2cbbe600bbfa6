"""A problem's weights as the fused kernel reads them: one block of memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnnsep.codegen.plan import Plan, block_channels, blocks, depth, tile_is_bf16
from dnnsep.problem import Problem
from dnnsep.single import Dense, Depthwise, Mean
from dnnsep.weights import Weights

_ALIGN = 4096


class Layout:
    """Where everything is, in bytes from the start: ``pointwise`` in panels of ``panel_bytes`` and
    ``panel_channels``, of which ``whole_panels`` and, where channels are left, one more with
    ``tail_channels``; the pointwise ``bias`` in f32. The depthwise weights come first."""

    def __init__(self, problem: Problem, plan: Plan) -> None:
        isa = plan.isa
        taps = problem.kernel[0] * problem.kernel[1]
        self.panel_channels = plan.vectors * isa.lanes
        self.whole_panels, self.tail_channels = divmod(problem.out_channels, self.panel_channels)
        self.panels = self.whole_panels + bool(self.tail_channels)
        size = 2 if tile_is_bf16(problem, isa) else 4
        self.panel_bytes = depth(problem, isa) * self.panel_channels * size
        depthwise = 4 * depth(problem, isa) * (taps + 1)
        if isinstance(problem, (Dense, Mean)):
            depthwise = 0
        self.pointwise = _up(depthwise)
        self.bias = self.pointwise + _up(self.panels * self.panel_bytes)
        self.size = self.bias + 4 * self.panels * self.panel_channels
        if isinstance(problem, Depthwise):
            self.size = self.pointwise


def packed(problem: Problem, plan: Plan, weights: Weights) -> NDArray[np.uint8]:
    """All weights, laid out, in memory that starts at a cache line."""
    layout = Layout(problem, plan)
    room = np.zeros(layout.size + 64, np.uint8)
    memory = room[-room.ctypes.data % 64 :][: layout.size]
    order = channel_order(problem, plan)
    parts: list[tuple[int, NDArray[Any]]] = []
    if not isinstance(problem, (Dense, Mean)):
        parts.append((0, _depthwise(problem, plan, weights, order)))
    if not isinstance(problem, Depthwise):
        parts.append((layout.pointwise, _pointwise(problem, plan, layout, weights, order)))
        parts.append((layout.bias, _bias(problem, layout, weights)))
    for start, part in parts:
        flat = part.reshape(-1).view(np.uint8)
        memory[start : start + flat.size] = flat
    return memory


def channel_order(problem: Problem, plan: Plan) -> NDArray[np.int64]:
    """The middle channel at each place of a tile's row; -1 where there is none.

    Each of the multiplier's copies comes as a whole, so that the input is read in order. Where a
    load of bf16 gives even and odd channels apart, they stay so.
    """
    isa, multiplier = plan.isa, problem.channel_multiplier
    if isinstance(problem, Dense):
        places = np.arange(depth(problem, isa))
        return np.where(places < problem.mid_channels, places, -1)
    width = block_channels(problem, isa)
    inputs = np.arange(blocks(problem, isa) * width)
    if problem.dtype == "bf16":
        inputs = inputs.reshape(-1, isa.lanes, 2).transpose(0, 2, 1).reshape(-1)
    copies = [
        np.where(inputs < problem.in_channels, inputs * multiplier + copy, -1)
        for copy in range(multiplier)
    ]
    return np.concatenate(copies)


def _depthwise(
    problem: Problem, plan: Plan, weights: Weights, order: NDArray[np.int64]
) -> NDArray[np.float32]:
    """(blocks, taps + 1, channels of a block) in f32: the taps, then the bias."""
    taps = problem.kernel[0] * problem.kernel[1]
    rows = np.zeros((taps + 1, len(order)), np.float32)
    there = order >= 0
    rows[:taps, there] = weights.depthwise.reshape(-1, taps).T[:, order[there]]
    if weights.depthwise_bias is not None:
        rows[taps, there] = weights.depthwise_bias[order[there]]
    width = block_channels(problem, plan.isa)
    return np.ascontiguousarray(rows.reshape(taps + 1, -1, width).transpose(1, 0, 2))


def _pointwise(
    problem: Problem, plan: Plan, layout: Layout, weights: Weights, order: NDArray[np.int64]
) -> NDArray[Any]:
    """(panels, channels of a tile's row, channels of a panel); bf16 in pairs of a tile's channels.

    The last panel is only as wide as whole vectors hold its channels.
    """
    isa = plan.isa
    width = layout.panel_channels
    there = order >= 0
    matrix = np.zeros((len(order), layout.panels * width), np.float32)
    full = weights.pointwise.reshape(problem.out_channels, -1).T
    matrix[there, : problem.out_channels] = full[order[there]]
    parts: list[NDArray[Any]] = []
    for panel in range(layout.panels):
        last = panel == layout.whole_panels
        columns = -(-layout.tail_channels // isa.lanes) * isa.lanes if last else width
        part = matrix[:, panel * width : panel * width + columns]
        if tile_is_bf16(problem, isa):
            # Exact: the values are bf16 already.
            halves = (part.copy().view(np.uint32) >> 16).astype(np.uint16)
            parts.append(halves.reshape(-1, 2, columns).transpose(0, 2, 1).reshape(-1))
        else:
            parts.append(part.reshape(-1))
    return np.concatenate(parts)


def _bias(problem: Problem, layout: Layout, weights: Weights) -> NDArray[np.float32]:
    bias = np.zeros(layout.panels * layout.panel_channels, np.float32)
    if weights.pointwise_bias is not None:
        bias[: problem.out_channels] = weights.pointwise_bias
    return bias


def _up(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
