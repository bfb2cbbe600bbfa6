"""Whole numbers of 32 bits as bytes without a sign, by the instructions that saturate."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from dnnsep.codegen.lang.emit import BYTE, I16, I32, Code

# Elements of 32 bits in each lane of a vector, which these instructions do not leave.
_OF_LANE = 4
_NAMES = {4: "sse2", 8: "avx2", 16: "avx512"}


def packed(code: Code, words: Sequence[ir.Value]) -> ir.Value:
    """Returns four vectors of numbers as one of bytes: in each lane those of the first vector's
    lane come first, then those of the second's."""
    count = words[0].type.count
    halves, whole = ir.VectorType(I16, 2 * count), ir.VectorType(BYTE, 4 * count)
    start = f"llvm.x86.{_NAMES[count]}"
    end = "" if count == 8 else f".{32 * count}"  # of AVX2 alone the names do not say how wide
    pairs = [code.call(f"{start}.packssdw{end}", halves, *words[n : n + 2]) for n in (0, 2)]
    return code.call(f"{start}.packuswb{end}", whole, *pairs)


def as_bytes(code: Code, words: Sequence[ir.Value]) -> ir.Value:
    """Returns up to four vectors of numbers as one vector of as many bytes, in their order."""
    b, count, many = code.builder, words[0].type.count, len(words)
    if many == 1:
        kind = words[0].type
        low, high = code.splat(0, kind), code.splat(255, kind)
        limited = code.intrinsic("llvm.smin", code.intrinsic("llvm.smax", words[0], low), high)
        return b.trunc(limited, ir.VectorType(BYTE, count))
    four = [*words, *words, *words][:4]
    fours = b.bitcast(packed(code, four), ir.VectorType(I32, count))
    lanes = count // _OF_LANE
    order = [I32(lane * _OF_LANE + vector) for vector in range(many) for lane in range(lanes)]
    mask = ir.Constant(ir.VectorType(I32, len(order)), order)
    chosen = b.shuffle_vector(fours, fours, mask)
    return b.bitcast(chosen, ir.VectorType(BYTE, many * count))
