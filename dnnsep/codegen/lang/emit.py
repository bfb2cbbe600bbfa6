"""What every generated loop is written with: a builder that knows loops and vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

from dnnsep.codegen.lang.jit import I32, I64, POINTER

F32, I1, I16, BYTE = ir.FloatType(), ir.IntType(1), ir.IntType(16), ir.IntType(8)
VOID = ir.VoidType()


class Code:
    """Writes a function from top to bottom; ``for_range`` and ``when`` open and close blocks."""

    def __init__(self, module: ir.Module, name: str, arguments: Sequence[ir.Type]) -> None:
        self.module = module
        self.function = ir.Function(module, ir.FunctionType(VOID, arguments), name)
        self.builder = ir.IRBuilder(self.function.append_basic_block())
        self._splats: dict[tuple[float, str], ir.Value] = {}

    @property
    def arguments(self) -> tuple[ir.Value, ...]:
        return tuple(self.function.args)

    def internal(self) -> Code:
        """Makes the function one that only this module calls, but not a part of its callers."""
        self.function.linkage = "internal"
        self.function.attributes.add("noinline")
        return self

    def end(self) -> ir.Function:
        self.builder.ret_void()
        return self.function

    def for_range(
        self,
        start: ir.Value,
        stop: ir.Value,
        body: Callable[[ir.Value, list[ir.Value]], Sequence[ir.Value]],
        carried: Sequence[ir.Value] = (),
        step: int | ir.Value = 1,
    ) -> list[ir.Value]:
        """Emits ``carried = body(at, carried)`` for at in range(start, stop, step).

        Returns the carried values after the loop.
        """
        b = self.builder
        entry = b.block
        head, inside, after = (self.function.append_basic_block() for _ in range(3))
        b.branch(head)
        b.position_at_end(head)
        at = b.phi(I64)
        at.add_incoming(start, entry)
        phis = [b.phi(value.type) for value in carried]
        b.cbranch(b.icmp_signed("<", at, stop), inside, after)
        b.position_at_end(inside)
        values = body(at, list(phis))
        at.add_incoming(b.add(at, I64(step) if isinstance(step, int) else step), b.block)
        for phi, first, following in zip(phis, carried, values, strict=True):
            phi.add_incoming(first, entry)
            phi.add_incoming(following, b.block)
        b.branch(head)
        b.position_at_end(after)
        return phis

    def for_each(
        self,
        start: int | ir.Value,
        stop: int | ir.Value,
        body: Callable[[ir.Value], None],
        step: int | ir.Value = 1,
    ) -> None:
        """Emits ``body(at)`` for at in range(start, stop, step), as a loop."""

        def one(at: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            body(at)
            return []

        if isinstance(start, int) and isinstance(stop, int):
            if start >= stop:
                return
            start, stop = I64(start), I64(stop)
        self.for_range(start, stop, one, step=step)

    def for_rows(
        self, rows: Sequence[Sequence[ir.Value]], body: Callable[[ir.Value, list[ir.Value]], None]
    ) -> None:
        """Emits ``body(i, rows[i])`` as a loop, for bodies too long to be written out each time.

        The values, vectors all of one type, go through the stack.
        """
        kind, width = rows[0][0].type, len(rows[0])
        with self.builder.goto_entry_block():
            stack = self.builder.alloca(kind, len(rows) * width)
        for index, value in enumerate(value for row in rows for value in row):
            self.builder.store(value, self.at(stack, index, kind), align=4)

        def one(i: ir.Value) -> None:
            row = self.at(stack, self.builder.mul(i, I64(width)), kind)
            body(i, [self.load(self.at(row, v, kind), kind) for v in range(width)])

        self.for_each(0, len(rows), one)

    def when(self, condition: ir.Value, then: Callable[[], None]) -> None:
        with self.builder.if_then(condition):
            then()

    def least(self, first: ir.Value, second: ir.Value) -> ir.Value:
        return self.builder.select(self.builder.icmp_signed("<", first, second), first, second)

    def most(self, first: ir.Value, second: ir.Value) -> ir.Value:
        return self.builder.select(self.builder.icmp_signed(">", first, second), first, second)

    def at(self, pointer: ir.Value, index: ir.Value | int, kind: ir.Type) -> ir.Value:
        """Returns the address of the index-th value of a type from a pointer on."""
        return self.builder.gep(
            pointer, [I64(index) if isinstance(index, int) else index], source_etype=kind
        )

    def load(self, pointer: ir.Value, kind: ir.Type, lanes: int | None = None) -> ir.Value:
        """Returns what is at an address of any alignment; of a vector only the first ``lanes`` are
        read, and the others are zero."""
        if lanes is None or lanes == kind.count:
            return self.builder.load(pointer, typ=kind, align=_element_bytes(kind))
        mask = _lane_mask(lanes, kind.count)
        arguments = [pointer, I32(_element_bytes(kind)), mask, ir.Constant(kind, None)]
        function = self._intrinsic(f"llvm.masked.load.{_name(kind)}.p0", kind, arguments)
        return self.builder.call(function, arguments)

    def store(
        self,
        value: ir.Value,
        pointer: ir.Value,
        lanes: int | None = None,
        streaming: bool = False,
    ) -> None:
        """Writes a value to an address of any alignment; of a vector only the first ``lanes``.
        A ``streaming`` store goes past the caches and needs the alignment of the whole value."""
        if lanes == 1:
            # LLVM 22 makes of a masked store of one narrowed lane a store of the wide one.
            value = self.builder.extract_element(value, I32(0))
            self.builder.store(value, pointer, align=_element_bytes(value.type))
            return
        if lanes is not None and lanes != value.type.count:
            mask = _lane_mask(lanes, value.type.count)
            arguments = [value, pointer, I32(_element_bytes(value.type)), mask]
            name = f"llvm.masked.store.{_name(value.type)}.p0"
            self.builder.call(self._intrinsic(name, VOID, arguments), arguments)
            return
        elements = value.type.count if streaming else 1
        stored = self.builder.store(value, pointer, align=_element_bytes(value.type) * elements)
        if streaming:
            stored.set_metadata("nontemporal", self.module.add_metadata([I32(1)]))

    def stack(self, size: int) -> ir.Value:
        """Returns the address of so many bytes on the function's stack, aligned to a line."""
        b = self.builder
        with b.goto_entry_block():
            room = b.alloca(ir.ArrayType(BYTE, size))
            room.align = 64
            return b.inttoptr(b.ptrtoint(room, I64), POINTER)

    def prefetch(self, pointer: ir.Value, level: int = 1) -> None:
        """Fetches the line at an address, which need not exist, into a level of the caches."""
        arguments = [pointer, I32(0), I32(4 - level), I32(1)]  # to be read; data
        self.builder.call(self._intrinsic("llvm.prefetch.p0", VOID, arguments), arguments)

    def call_address(
        self, pointer: ir.Value, arguments: Sequence[ir.Value], gives: ir.Type
    ) -> ir.Value:
        """Calls the function at an address; returns what it gives."""
        signature = ir.FunctionType(gives, [value.type for value in arguments])
        return self.builder.call(_Callee(pointer, signature), arguments)

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        return self.intrinsic("llvm.fma", a, b, c)

    def intrinsic(self, name: str, *arguments: ir.Value) -> ir.Value:
        """Calls an intrinsic that is named for its arguments' type and returns the same type."""
        kind = arguments[0].type
        function = self._intrinsic(f"{name}.{_name(kind)}", kind, arguments)
        return self.builder.call(function, arguments)

    def call(self, name: str, gives: ir.Type, *arguments: ir.Value) -> ir.Value:
        """Calls an intrinsic by its whole name; returns what it gives."""
        return self.builder.call(self._intrinsic(name, gives, arguments), arguments)

    def _intrinsic(self, name: str, kind: ir.Type, arguments: Sequence[ir.Value]) -> ir.Function:
        known = self.module.globals.get(name)
        signature = ir.FunctionType(kind, [argument.type for argument in arguments])
        return known or ir.Function(self.module, signature, name)

    def instruction(self, text: str, kind: ir.Type, *arguments: ir.Value) -> ir.Value:
        """Emits an instruction that LLVM's IR has no word for; in its text ``$0`` is the result."""
        signature = ir.FunctionType(kind, [argument.type for argument in arguments])
        constraints = ",".join(["=v", *("v" for _ in arguments)])
        return self.builder.call(ir.InlineAsm(signature, text, constraints), arguments)

    def fence(self) -> None:
        """Makes streaming stores before it visible before any store after it."""
        asm = ir.InlineAsm(ir.FunctionType(VOID, []), "sfence", "~{memory}", side_effect=True)
        self.builder.call(asm, [])

    def splat(self, value: float, kind: ir.VectorType) -> ir.Value:
        """Returns a vector of a number in every lane; it is written once, since the text of a
        constant names each lane."""
        key = (value, str(kind))
        if key not in self._splats:
            with self.builder.goto_entry_block():
                number = ir.Constant(kind.element, value)
                self._splats[key] = self.broadcast(number, kind.count)
        return self._splats[key]

    def broadcast(self, value: ir.Value, lanes: int) -> ir.Value:
        kind = ir.VectorType(value.type, lanes)
        undefined = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(undefined, value, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, lanes), None)
        return self.builder.shuffle_vector(first, undefined, zeros)


def _lane_mask(count: int, lanes: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(I1, lanes), [I1(int(i < count)) for i in range(lanes)])


def _element_bytes(kind: ir.Type) -> int:
    element = kind.element if isinstance(kind, ir.VectorType) else kind
    if isinstance(element, ir.PointerType):
        return 8
    return 4 if isinstance(element, ir.FloatType) else element.width // 8


def _name(kind: ir.Type) -> str:
    element = kind.element if isinstance(kind, ir.VectorType) else kind
    name = "f32" if isinstance(element, ir.FloatType) else f"i{element.width}"
    return f"v{kind.count}{name}" if isinstance(kind, ir.VectorType) else name


__all__ = ["BYTE", "F32", "I16", "I32", "I64", "POINTER", "VOID", "Code"]


class _Callee:
    """An untyped pointer as something to call: llvmlite looks for the signature in the type."""

    def __init__(self, pointer: ir.Value, signature: ir.FunctionType) -> None:
        self.type, self.function_type = pointer.type, signature
        self.get_reference: Callable[[], str] = pointer.get_reference
