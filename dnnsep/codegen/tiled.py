"""A part on a tile unit: while a tile is multiplied, the sums before are drained and the next tile
is computed."""

from __future__ import annotations

from llvmlite import ir

from dnnsep.codegen.dots.amx import AmxDot
from dnnsep.codegen.extent import Extent
from dnnsep.codegen.extras import Extras
from dnnsep.codegen.lang.emit import BYTE, I64, POINTER, Code
from dnnsep.codegen.lang.tiles import ROWS, TileShape, tile_unit
from dnnsep.codegen.layer import Layer
from dnnsep.codegen.part import PART, Part
from dnnsep.codegen.places import Places
from dnnsep.codegen.plan import Plan
from dnnsep.codegen.stages.matmul import Met
from dnnsep.codegen.stages.tileproduct import (
    CHORE,
    SHADOW_BYTES,
    SUMS_BYTES,
    TileProduct,
    field,
    set_field,
)

# Of a part's scratch memory, before its tiles.
SHADOW_ROOM = SHADOW_BYTES + 2 * SUMS_BYTES


class TiledPart(Part):
    """A part whose products are on a tile unit. Its scratch memory begins with its Shadow, then two
    places for sums; then comes a tile, and where stages overlap another one.

    The function of the part also takes the tile unit, and the bytes of a tile.
    """

    signature = (*PART, POINTER, I64)

    def __init__(
        self, module: ir.Module, layer: Layer, extent: Extent, plan: Plan, extras: Extras
    ) -> None:
        super().__init__(module, layer, extent, plan, extras)
        stage, dot = layer.product, layer.dot
        assert stage is not None
        assert isinstance(dot, AmxDot)
        self.unit = tile_unit(layer.isa)
        *_, self.tiles, self.tile_bytes = self.code.arguments
        self.tile = self.code.at(self.scratch, SHADOW_ROOM, BYTE)
        least = self.places.out_pixels // plan.pieces
        if not plan.short_rows:
            least = min(row.width for row in plan.rows)
        whole = self.packing.panel_channels if self.packing.whole_panels else 0
        self.product = TileProduct(
            stage,
            layer.isa,
            dot,
            self.unit,
            **self._rows(),
            least=least,
            panels=(whole, self.packing.tail_channels),
            y_pitch=self.pitches.y,
            residual=self.added,
            streaming=plan.streaming,
            overlap=plan.overlap,
        )
        self.source_chore = self._source_chore() if plan.overlap and layer.source else None
        self.beside = self.product.emit_beside(module, self.source_chore)

    @property
    def shapes(self) -> list[TileShape]:
        """The configuration that the tiles have while parts run."""
        return self.product.shapes()

    def _tiles(self, first: ir.Value, last: ir.Value, panels: tuple[ir.Value, ir.Value]) -> None:
        code, b, shadow = self.code, self.code.builder, self.scratch
        set_field(code, shadow, "free", code.at(shadow, SHADOW_BYTES, BYTE))
        for name in ("rows", "chore", "chores", "rate", "credit"):
            set_field(code, shadow, name, 0)
        for name, value in (("x", self.x), ("packed", self.packed), ("scale", self.scale)):
            set_field(code, shadow, name, value)
        if self.source_chore is not None:
            self._overlapped(first, last, panels)
        else:
            super()._tiles(first, last, panels)
        b.call(self.product.emit_drain(self.module), [shadow, I64(2 * ROWS)])

    def _overlapped(
        self,
        first: ir.Value,
        last: ir.Value,
        panels: tuple[ir.Value, ir.Value],
    ) -> None:
        """Emits the pieces [first, last) times the range of panels, each tile being filled while
        the one before it is multiplied."""
        code, b = self.code, self.code.builder

        def end_of(at: ir.Value) -> ir.Value:
            return code.least(b.add(at, self.pieces), last)

        self._start(first, end_of(first), self.tile)
        self._finish()

        def one_tile(at: ir.Value, tiles: list[ir.Value]) -> list[ir.Value]:
            this, following = tiles
            stop = end_of(at)
            self._start(stop, end_of(stop), following)
            steps = self._steps(b.sub(stop, at), b.sub(panels[1], panels[0]))
            chores = b.mul(field(code, self.scratch, "chores"), I64(CHORE))
            set_field(code, self.scratch, "rate", b.add(b.sdiv(chores, steps), I64(1)))
            begin, _ = self._runs(at, stop)
            self._multiply(at, stop, panels, self._in_tile(begin, this))
            self._finish()
            return [following, this]

        other = code.at(self.tile, self.tile_bytes, BYTE)
        code.for_range(first, last, one_tile, [self.tile, other], step=self.pieces)

    def _steps(self, pieces: ir.Value, panels: ir.Value) -> ir.Value:
        """Returns about how many steps the products of so many pieces and panels are; at least
        1."""
        b = self.code.builder
        groups = len(self.product.groups(self.plan.pixels, self.packing.panel_channels))
        steps = b.mul(b.mul(pieces, panels), I64(self.product.steps * groups))
        return self.code.most(steps, I64(1))

    def _start(self, first: ir.Value, last: ir.Value, target: ir.Value) -> None:
        """Emits making the source of the pieces [first, last), maybe none, what is to be done
        beside products."""
        code, b = self.code, self.code.builder
        begin, end = self._runs(first, last)
        there = b.icmp_signed("<", first, last)
        chores = b.mul(b.sub(end, begin), I64(self._groups))
        set_field(code, self.scratch, "chores", b.select(there, chores, I64(0)))
        set_field(code, self.scratch, "chore", 0)
        set_field(code, self.scratch, "credit", 0)
        set_field(code, self.scratch, "begin", begin)
        set_field(code, self.scratch, "target", target)

    def _finish(self) -> None:
        """Emits doing the chores of the source that are left."""
        code, b = self.code, self.code.builder
        chore, chores = (field(code, self.scratch, name) for name in ("chore", "chores"))
        code.for_each(chore, chores, lambda _: b.call(self.source_chore, [self.scratch]))

    @property
    def _groups(self) -> int:
        """Groups of channels that a run of the source is computed by, each a chore."""
        source = self.layer.source
        assert source is not None
        return source.groups(self.layer.isa)

    def _source_chore(self) -> ir.Function:
        """Returns f(shadow), which does the next chore of the source."""
        code = Code(self.module, "source_chore", [POINTER]).internal()
        (shadow,), b = code.arguments, code.builder
        number, begin = field(code, shadow, "chore"), field(code, shadow, "begin")
        set_field(code, shadow, "chore", b.add(number, I64(1)))
        run = b.sdiv(number, I64(self._groups))
        slot = self._slot(code, field(code, shadow, "target"), run)
        given = tuple(field(code, shadow, name) for name in ("x", "packed", "scale"))
        places = Places(code, self.layer, self.extent, self.plan, self.pitches)
        group = b.srem(number, I64(self._groups))
        self._run(places, self.sources, given, b.add(begin, run), slot, group)
        return code.end()

    def _emit_product(self, pixels: int, columns: int, met: Met | None) -> ir.Function:
        return self.product.emit(self.module, pixels, columns, self.beside)

    def _beside(self, fetched: ir.Value, ahead: ir.Value) -> list[ir.Value]:
        return [self.scratch, self.tiles]
