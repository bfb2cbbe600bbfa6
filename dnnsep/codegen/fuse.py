"""The stages of a layer in one pass: what a thread runs of it at a time."""

from __future__ import annotations

import ctypes

from llvmlite import ir

from dnnsep.codegen.convolution import ConvolutionPart
from dnnsep.codegen.extent import Extent
from dnnsep.codegen.extras import PLAIN, Extras
from dnnsep.codegen.lang.emit import I64, Code
from dnnsep.codegen.layer import Layer
from dnnsep.codegen.part import PART, Part
from dnnsep.codegen.plan import Plan
from dnnsep.codegen.stages.base import Image
from dnnsep.codegen.task import KERNEL_TYPES, Task, load_field, share
from dnnsep.codegen.tiled import TiledPart


def emit_kernel(layer: Layer, extent: Extent, plan: Plan, extras: Extras = PLAIN) -> ir.Module:
    """Returns a module with ``run(task, part, scratch)``, which does one of the plan's parts.

    ``task`` points to a Task. Raises ValueError where the layer cannot take the extras.
    """
    extras.check(layer)
    if plan.gathers or extras.scale:
        layer = layer.gathered(extras.scale)
    module = ir.Module()
    module.triple = ""
    tiled: TiledPart | None = None
    if layer.source is None and layer.product is None:
        part = _lone_stage(module, layer, extent, plan, extras)
    elif layer.product is not None and layer.dot.in_tiles:
        tiled = TiledPart(module, layer, extent, plan, extras)
        part = tiled.emit()
    else:
        kind = ConvolutionPart if layer.skips_taps else Part
        part = kind(module, layer, extent, plan, extras).emit()
    code = Code(module, "run", KERNEL_TYPES)
    (task, number, scratch), b = code.arguments, code.builder
    x, y, packed, residual, scale = (
        load_field(code, Task, task, name)
        for name, kind in Task._fields_
        if kind is ctypes.c_void_p
    )
    pieces, tile_bytes = (
        load_field(code, Task, task, name, I64) for name in ("tile", "tile_bytes")
    )
    unit = [tiled.unit.enter(code, tiled.shapes), tile_bytes] if tiled is not None else []
    b.call(part, [number, x, y, packed, scratch, residual, scale, pieces, *unit])
    if tiled is not None:
        tiled.unit.leave(code, unit[0])
    if plan.streaming:  # such stores may come after whatever tells others of the result
        code.fence()
    code.end()
    return module


def _lone_stage(
    module: ir.Module, layer: Layer, extent: Extent, plan: Plan, extras: Extras
) -> ir.Function:
    """Returns the part of a layer whose only stage goes through its pieces by itself."""
    (stage,) = layer.stages
    code = Code(module, "part", PART).internal()
    part, x, y, *_ = code.arguments
    first, last = share(code, I64(plan.pieces), part, I64(plan.pixel_parts))
    pitches = extras.pitches(layer)
    image = Image(extent.height * extent.width, pitches.x)
    stage.emit_pieces(code, layer.isa, image, pitches.y, x, y, first, last)
    return code.end()
