"""Compiles LLVM IR for this CPU and calls it. Imports llvmlite: import it from inside functions."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

I32, I64 = ir.IntType(32), ir.IntType(64)
POINTER = ir.PointerType()


class Function:
    """A compiled function, called with addresses and counts; releases the GIL while it runs.

    Holds the machine code: it must outlive every call.
    """

    def __init__(
        self,
        module: ir.Module,
        name: str,
        arguments: Sequence[type],
        cpu: str | None = None,
        features: str | None = None,
    ) -> None:
        """Compile ``name`` of the module: a void function of ctypes ``arguments``.

        ``cpu`` and ``features`` are LLVM's; without them, all that this CPU has. Raises
        RuntimeError with LLVM's message if the module is not valid.
        """
        machine = _target_machine(cpu, features)
        parsed = llvm.parse_assembly(str(module))
        parsed.verify()
        options = llvm.create_pipeline_tuning_options(speed_level=3)
        options.loop_unrolling = False  # the loops here say themselves how far they are unrolled
        builder = llvm.create_pass_builder(machine, options)
        builder.getModulePassManager().run(parsed, builder)
        self.assembly: str = machine.emit_assembly(parsed)
        self._engine = llvm.create_mcjit_compiler(parsed, machine)  # owns the machine from here on
        self._engine.finalize_object()
        prototype: Any = ctypes.CFUNCTYPE(None, *arguments)
        self.address: int = self._engine.get_function_address(name)
        self._call: Callable[..., None] = prototype(self.address)

    def __call__(self, *arguments: int) -> None:
        self._call(*arguments)


def cpu_features() -> dict[str, bool]:
    """What LLVM finds this CPU to have, by LLVM's names, e.g. ``avx512bf16``."""
    return dict(llvm.get_host_cpu_features())


def _target_machine(cpu: str | None, features: str | None) -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()  # for inline assembly
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name() if cpu is None else cpu,
        features=llvm.get_host_cpu_features().flatten() if features is None else features,
        opt=3,
    )
