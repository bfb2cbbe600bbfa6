"""Compiles loops that each keep one unit of a core busy, for the widest vectors of this CPU.

There are loops of multiply-adds, of products of tiles, of loads, of loads and stores, of multiplies
that wait for each other, and one that hands a token to another core. Imports llvmlite: import it
from inside functions.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from llvmlite import ir

from dnnsep.codegen.lang.jit import I64, POINTER, Program, cpu_features
from dnnsep.codegen.lang.tiles import ROW_BYTES, ROWS
from dnnsep.host import amx

# Sums that do not wait for each other: more than the latency (4 to 5 cycles) times two units, fewer
# than AVX2's 16 registers less two operands.
SUMS = 12
FMA_UNROLL = 4
VECTORS_PER_STEP = 8
MULTIPLIES_PER_STEP = 64

# Cycles from one 64-bit integer multiply to the next that needs it: 3 on every x86 core since 2008.
MULTIPLY_LATENCY = 3

_I8 = ir.IntType(8)

# dtype -> (instruction, LLVM features it needs, multiply-adds for each 32-bit lane).
_INSTRUCTIONS = {
    "f32": ("vfmadd231ps", (), 1),
    "bf16": ("vdpbf16ps", ("avx512bf16",), 2),
    "int8": ("vpdpbusd", ("avx512vnni",), 4),
}

# dtype -> (instruction, LLVM feature it needs beside amx-tile, multiply-adds for each 32-bit word).
_TILE_INSTRUCTIONS = {"bf16": ("tdpbf16ps", "amx-bf16", 2), "int8": ("tdpbssd", "amx-int8", 4)}
# The tiles of a step's products: two pairs of operands make four sums that do not wait for each
# other, which keep the unit of a Granite Rapids busy.
_SUM_TILES = (0, 1, 2, 3)
_OPERAND_TILES = (4, 5, 6, 7)
_TILE_PRODUCTS = ((0, 4, 6), (1, 4, 7), (2, 5, 6), (3, 5, 7))


def bytes_per_step() -> int:
    """Returns the bytes that ``read_loop`` reads, and ``copy_loop`` reads and writes, in a step."""
    return VECTORS_PER_STEP * vector_lanes() * 4


def vector_lanes() -> int:
    """Returns how many 32-bit lanes this CPU's widest vectors have.

    Raises RuntimeError where the CPU has neither AVX-512 nor AVX2 with FMA.
    """
    features = cpu_features()
    if features.get("avx512f"):
        return 16
    if features.get("avx2") and features.get("fma"):
        return 8
    raise RuntimeError("this CPU has neither AVX-512 nor AVX2 with FMA")


def multiply_add_dtypes() -> list[str]:
    """Returns the dtypes that this CPU multiplies and adds in one instruction."""
    features = cpu_features()
    return [
        dtype
        for dtype, (_, needed, _) in _INSTRUCTIONS.items()
        if all(features.get(feature) for feature in needed)
    ]


def operations_per_step(dtype: str) -> int:
    """Returns the operations, two for each multiply-add, of one step of ``multiply_add_loop``."""
    return 2 * _INSTRUCTIONS[dtype][2] * SUMS * FMA_UNROLL * vector_lanes()


def multiply_add_loop(dtype: str) -> Program:
    """Compiles f(steps, address), which multiplies and adds in registers only.

    At ``address`` there are 14 vectors: the two operands, and the 12 sums, written at the end.
    """
    instruction, lanes = _INSTRUCTIONS[dtype][0], vector_lanes()
    vector = ir.VectorType(ir.FloatType(), lanes)
    loop = _Loop([I64, POINTER], [vector] * SUMS)
    steps, address = loop.function.args
    before = loop.before
    operands = [_load(before, address, I64(i), vector) for i in range(2)]
    # Inline assembly, so that it is this instruction that is measured and nothing is folded.
    kind = ir.FunctionType(vector, [vector] * 3)
    multiply_add = ir.InlineAsm(kind, f"{instruction} $2, $1, $0", "=v,v,v,0")

    def body(builder: ir.IRBuilder, sums: list[ir.Value]) -> list[ir.Value]:
        for _ in range(FMA_UNROLL):
            sums = [builder.call(multiply_add, [*operands, total]) for total in sums]
        return sums

    after, sums = loop.build(steps, body)
    for index, total in enumerate(sums):
        _store(after, total, address, I64(2 + index))
    return loop.compile(ctypes.c_int64, ctypes.c_void_p)


def tile_dtypes() -> list[str]:
    """Returns the dtypes that the tile unit multiplies: none where the CPU has no such unit, or
    where the system refuses it."""
    features = cpu_features()
    dtypes = [
        dtype
        for dtype, (_, feature, _) in _TILE_INSTRUCTIONS.items()
        if features.get("amx-tile") and features.get(feature)
    ]
    return dtypes if dtypes and not amx.refusal() else []


def tile_operations_per_step(dtype: str) -> int:
    """Returns the operations, two for each multiply-add, of one step of ``tile_loop``."""
    words = ROW_BYTES // 4
    a_product = 2 * ROWS * words * words * _TILE_INSTRUCTIONS[dtype][2]
    return len(_TILE_PRODUCTS) * a_product


def tile_loop(dtype: str) -> Program:
    """Compiles f(steps, configuration, operand), which multiplies tiles in tile registers only.

    It shows the unit's own rate: the four operands are one tile, loaded from ``operand`` before the
    loop, and the sums are not stored. ``configuration`` is what ``ldtilecfg`` reads. The tiles are
    configured, and released at the end, by each call.
    """
    arguments = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p]
    return Program(tile_module(dtype), "run", arguments)


def tile_module(dtype: str) -> ir.Module:
    """Returns the module of ``tile_loop``, which any target with AMX compiles."""
    loop = _Loop([I64, POINTER, POINTER], [])
    steps, configuration, operand = loop.function.args
    _call_x86(loop.before, "ldtilecfg", configuration)
    for tile in _SUM_TILES:
        _call_x86(loop.before, "tilezero", _I8(tile))
    for tile in _OPERAND_TILES:
        _call_x86(loop.before, "tileloadd64", _I8(tile), operand, I64(ROW_BYTES))

    def body(builder: ir.IRBuilder, carried: list[ir.Value]) -> list[ir.Value]:
        for product in _TILE_PRODUCTS:
            _call_x86(builder, _TILE_INSTRUCTIONS[dtype][0], *map(_I8, product))
        return carried

    after, _ = loop.build(steps, body)
    _call_x86(after, "tilerelease")
    return loop.end()


def multiply_chain() -> Program:
    """Compiles f(steps), which does 64 integer multiplies a step, each waiting for the last.

    Their latency is known, so the time they take tells the clock rate.
    """
    loop = _Loop([I64], [I64])
    multiplies = "\n".join(["imulq $0, $0"] * MULTIPLIES_PER_STEP)
    multiply = ir.InlineAsm(ir.FunctionType(I64, [I64]), multiplies, "=r,0", side_effect=True)
    loop.build(loop.function.args[0], lambda b, values: [b.call(multiply, values)])
    return loop.compile(ctypes.c_int64)


def read_loop() -> Program:
    """Compiles f(steps, length, address, sink), which loads 8 vectors a step.

    It starts over at ``address`` after ``length`` steps, and writes one vector to ``sink``.
    """
    vector = ir.VectorType(I64, vector_lanes() // 2)
    loop = _Loop([I64, I64, POINTER, POINTER], [I64] + [vector] * VECTORS_PER_STEP)
    steps, length, address, sink = loop.function.args

    def body(builder: ir.IRBuilder, carried: list[ir.Value]) -> list[ir.Value]:
        at, *sums = carried
        return [
            _start_over(builder, at, length),
            *(
                builder.or_(total, _load(builder, address, index, vector))
                for total, index in zip(sums, _indices(builder, at), strict=True)
            ),
        ]

    after, (_, *sums) = loop.build(steps, body)
    for total in sums[1:]:
        sums[0] = after.or_(sums[0], total)
    _store(after, sums[0], sink, I64(0))
    return loop.compile(ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)


def copy_loop(streaming: bool) -> Program:
    """Compiles f(steps, length, source, target), which copies 8 vectors a step.

    It starts over after ``length`` steps. With ``streaming`` it stores past the caches. Both
    addresses must be aligned to a vector.
    """
    vector = ir.VectorType(I64, vector_lanes() // 2)
    loop = _Loop([I64, I64, POINTER, POINTER], [I64])
    steps, length, source, target = loop.function.args
    past_caches = loop.module.add_metadata([ir.IntType(32)(1)])

    def body(builder: ir.IRBuilder, carried: list[ir.Value]) -> list[ir.Value]:
        (at,) = carried
        for index in _indices(builder, at):
            value = _load(builder, source, index, vector)
            store = _store(builder, value, target, index, aligned=True)
            if streaming:
                store.set_metadata("nontemporal", past_caches)
        return [_start_over(builder, at, length)]

    loop.build(steps, body)
    return loop.compile(ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)


def _indices(builder: ir.IRBuilder, step: ir.Value) -> list[ir.Value]:
    """Returns the indices of the vectors of one step."""
    first = builder.mul(step, I64(VECTORS_PER_STEP))
    return [builder.add(first, I64(i)) for i in range(VECTORS_PER_STEP)]


def _start_over(builder: ir.IRBuilder, step: ir.Value, length: ir.Value) -> ir.Value:
    """Returns the number of the step after this one, which is 0 after the last."""
    following = builder.add(step, I64(1))
    return builder.select(builder.icmp_signed("<", following, length), following, I64(0))


def token_ring() -> Program:
    """Compiles f(turns, address, mine, threads), which passes a token on.

    It waits until the 64-bit token at ``address`` is ``mine``, adds 1 to it, and does so again
    each time the token has gone round all threads, in all ``turns`` times.
    """
    module = ir.Module()
    kind = ir.FunctionType(ir.VoidType(), [I64, POINTER, I64, I64])
    function = ir.Function(module, kind, "run")
    turns, address, mine, threads = function.args
    before = ir.IRBuilder(function.append_basic_block("before"))
    wait = ir.IRBuilder(function.append_basic_block("wait"))
    spin = ir.IRBuilder(function.append_basic_block("spin"))
    pass_on = ir.IRBuilder(function.append_basic_block("pass_on"))
    after = ir.IRBuilder(function.append_basic_block("after"))
    last = before.add(mine, before.mul(turns, threads))
    before.branch(wait.block)
    token = wait.phi(I64)
    token.add_incoming(mine, before.block)
    token.add_incoming(token, spin.block)
    current = wait.load_atomic(address, "acquire", 8, typ=I64)
    wait.cbranch(wait.icmp_signed("==", current, token), pass_on.block, spin.block)
    spin.call(ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), "pause", "", side_effect=True), [])
    spin.branch(wait.block)
    # An x86 store releases by itself (llvmlite's store_atomic takes no untyped pointer).
    store = ir.FunctionType(ir.VoidType(), [I64, POINTER])
    store_asm = ir.InlineAsm(store, "movq $0, ($1)", "r,r,~{memory}", side_effect=True)
    pass_on.call(store_asm, [pass_on.add(token, I64(1)), address])
    following = pass_on.add(token, threads)
    token.add_incoming(following, pass_on.block)
    pass_on.cbranch(pass_on.icmp_signed("<", following, last), wait.block, after.block)
    after.ret_void()
    return Program(module, "run", [ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64])


class _Loop:
    """A function with one counted loop that carries values from step to step."""

    def __init__(self, arguments: list[ir.Type], carried: list[ir.Type]) -> None:
        self.module = ir.Module()
        kind = ir.FunctionType(ir.VoidType(), arguments)
        self.function = ir.Function(self.module, kind, "run")
        self.before = ir.IRBuilder(self.function.append_basic_block("before"))
        self._carried = carried

    def build(
        self,
        steps: ir.Value,
        body: Callable[[ir.IRBuilder, list[ir.Value]], list[ir.Value]],
    ) -> tuple[ir.IRBuilder, list[ir.Value]]:
        """Emits the loop; returns the builder after it and the last carried values."""
        entry = self.before.block
        step_block = self.function.append_basic_block("step")
        after = ir.IRBuilder(self.function.append_basic_block("after"))
        self.before.branch(step_block)
        builder = ir.IRBuilder(step_block)
        step = builder.phi(I64)
        step.add_incoming(I64(0), entry)
        phis = [builder.phi(kind) for kind in self._carried]
        values = body(builder, list(phis))
        for phi, value in zip(phis, values, strict=True):
            phi.add_incoming(ir.Constant(phi.type, None), entry)
            phi.add_incoming(value, step_block)
        following = builder.add(step, I64(1))
        step.add_incoming(following, step_block)
        builder.cbranch(builder.icmp_signed("<", following, steps), step_block, after.block)
        self._after = after
        return after, values

    def compile(self, *arguments: type) -> Program:
        """Ends the function and compiles it; ``arguments`` are its ctypes types."""
        return Program(self.end(), "run", arguments)

    def end(self) -> ir.Module:
        """Ends the function and returns its module."""
        self._after.ret_void()
        return self.module


def _call_x86(builder: ir.IRBuilder, name: str, *arguments: ir.Value) -> None:
    """Calls one of LLVM's intrinsics for x86 that return nothing."""
    name = f"llvm.x86.{name}"
    kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    known = builder.module.globals.get(name)
    builder.call(known or ir.Function(builder.module, kind, name), arguments)


def _load(builder: ir.IRBuilder, address: ir.Value, index: ir.Value, kind: ir.Type) -> ir.Value:
    return builder.load(builder.gep(address, [index], source_etype=kind), typ=kind, align=4)


def _store(
    builder: ir.IRBuilder,
    value: ir.Value,
    address: ir.Value,
    index: ir.Value,
    aligned: bool = False,
) -> ir.Instruction:
    place = builder.gep(address, [index], source_etype=value.type)
    return builder.store(value, place, align=4 * vector_lanes() if aligned else 4)
