"""Compiles LLVM IR for this CPU and calls it. Imports llvmlite: import it from inside functions."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

I32, I64 = ir.IntType(32), ir.IntType(64)
POINTER = ir.PointerType()


@dataclass(frozen=True)
class Target:
    """A CPU and its features, as LLVM names them."""

    cpu: str
    features: str


class Function:
    """A compiled function, called with addresses and counts; releases the GIL while it runs.

    Holds the machine code: it must outlive every call.
    """

    def __init__(self, code: bytes, name: str, arguments: Sequence[type]) -> None:
        """``code`` is what ``machine_code`` returned; ``name`` is a function in it that takes
        arguments of these ctypes and returns nothing."""
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine(this_cpu()))
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        self.address: int = self._engine.get_function_address(name)
        prototype: Any = ctypes.CFUNCTYPE(None, *arguments)
        self._call: Callable[..., None] = prototype(self.address)

    def __call__(self, *arguments: int) -> None:
        self._call(*arguments)


class Program(Function):
    """A module compiled for this CPU, which can show its assembly."""

    def __init__(self, module: ir.Module, name: str, arguments: Sequence[type]) -> None:
        super().__init__(machine_code(module), name, arguments)
        self._module = module

    @property
    def assembly(self) -> str:
        return assembly(self._module)


def machine_code(module: ir.Module, target: Target | None = None) -> bytes:
    """Returns the module as an object file, for this CPU or another target.

    Raises RuntimeError with LLVM's message if the module is not valid.
    """
    optimized, machine = _optimized(module, target)
    return bytes(machine.emit_object(optimized))


def assembly(module: ir.Module, target: Target | None = None) -> str:
    """Returns the machine code of a module as text."""
    optimized, machine = _optimized(module, target)
    return str(machine.emit_assembly(optimized))


def _optimized(
    module: ir.Module, target: Target | None
) -> tuple[llvm.ModuleRef, llvm.TargetMachine]:
    machine = _machine(target or this_cpu())
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_unrolling = False  # the loops here say themselves how far they are unrolled
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(parsed, builder)
    return parsed, machine


@cache
def this_cpu() -> Target:
    """Returns this CPU with all its features."""
    return Target(llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())


@cache
def cpu_features() -> dict[str, bool]:
    """Returns which features LLVM finds this CPU to have, by LLVM's names, e.g. ``avx512bf16``."""
    return dict(llvm.get_host_cpu_features())


def _machine(target: Target) -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()  # for inline assembly
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=target.cpu, features=target.features, opt=3
    )
