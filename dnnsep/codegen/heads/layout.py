"""How an attention kernel cuts its work up, and how what it packs lies in its scratch memory."""

from __future__ import annotations

from dataclasses import dataclass

from dnnsep.codegen.heads.special import Heads

# How many query rows are computed at once at most, and how many vectors of sums each has, by the
# lanes of a vector: the sums, a row of factors and one value of a query are in registers.
_BLOCKS = {16: (8, 3), 8: (6, 2)}

# Between the scratch memory of two parts, in bytes: what the hardware fetches ahead of one thread
# must not be the other's.
_GAP = 4096

# Transposing writes whole groups of so many columns.
GROUP = 4


@dataclass(frozen=True)
class Layout:
    """Queries in blocks of so many ``rows`` each: one number, or two whose difference is 1, the
    larger one first.

    The scratch memory of a part, in f32: a block's queries, times the scale and LOG2_E; a vector
    for each row, of its largest scores; the block's results, where they are transposed after that;
    its scores as (vectors of keys, rows, lanes); the head's keys as (vectors of keys, depth,
    lanes); its values as (keys, padded value depth).
    """

    special: Heads
    rows: tuple[int, ...]

    @classmethod
    def of(cls, special: Heads, queries: int) -> Layout:
        """Returns the one with as few blocks as there can be, of nearly equal size."""
        blocks = -(-queries // _BLOCKS[special.isa.lanes][0])
        least, more = divmod(queries, blocks)
        return cls(special, (least + 1, least) if more else (least,))

    @property
    def lanes(self) -> int:
        return self.special.isa.lanes

    @property
    def most_rows(self) -> int:
        """How many rows a block has at most, on these vectors."""
        return _BLOCKS[self.lanes][0]

    def blocks(self, queries: int) -> int:
        """Returns how many blocks so many queries are."""
        return -(-queries // self.most_rows)

    @property
    def vectors(self) -> int:
        """How many vectors of sums a row has at most."""
        return _BLOCKS[self.lanes][1]

    @property
    def query_apart(self) -> tuple[int, int]:
        """How far apart two rows of packed queries, and two channels of a row, are."""
        if self.special.q_transposed:
            return 1, self.lanes
        return -(-self.special.depth // self.lanes) * self.lanes, 1

    @property
    def value_row(self) -> int:
        """The f32 of a row of packed values: whole vectors."""
        return -(-self.special.value_depth // self.lanes) * self.lanes

    @property
    def query_floats(self) -> int:
        """The f32 of a block's packed queries, which are whole vectors of channels or of rows."""
        return -(-self.special.depth // self.lanes) * self.lanes * max(self.rows[0], self.lanes)

    @property
    def fixed_floats(self) -> tuple[int, int, int]:
        """The f32 of what does not depend on the keys: queries, largest scores, results."""
        results = self.rows[0] * self.value_row if self.special.y_transposed else 0
        return self.query_floats, self.rows[0] * self.lanes, results

    @property
    def floats_of_vector(self) -> tuple[int, int, int]:
        """The f32 that each vector of keys takes of scores, keys and values."""
        return (
            self.rows[0] * self.lanes,
            self.special.depth * self.lanes,
            self.lanes * self.value_row,
        )

    @property
    def spare_floats(self) -> int:
        """The f32 that are written after the keys and after the values, and never read."""
        return (GROUP - 1) * max(self.lanes, self.value_row)

    def part_bytes(self, keys: int) -> int:
        """Returns the bytes that a part takes, a multiple of 64."""
        vectors = -(-keys // self.lanes)
        floats = sum(self.fixed_floats) + vectors * sum(self.floats_of_vector)
        whole = 4 * (floats + 2 * self.spare_floats) + _GAP
        return -(-whole // 64) * 64
