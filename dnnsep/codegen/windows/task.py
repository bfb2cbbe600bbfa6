"""What the tasks of these kernels begin with, and how a kernel finds its share of the work."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Protocol, TypeVar

from llvmlite import ir

from dnnsep.codegen.lang.emit import I64, Code
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.lang.jit import Function, machine_code
from dnnsep.codegen.task import KERNEL, KERNEL_TYPES, load_field, share
from dnnsep.codegen.version import generator
from dnnsep.host import cachefiles


class SharedTask(ctypes.Structure):
    """What every task begins with.

    ``units`` of work are cut into ``parts`` equal shares.
    """

    _fields_: ClassVar[Sequence[tuple[str, Any]]] = (
        ("units", ctypes.c_int64),
        ("parts", ctypes.c_int64),
    )

    @classmethod
    def of(cls, units: int, parts: int, **more: float) -> Any:
        """Returns a task of this class; its operands are still 0."""
        return cls(units=units, parts=parts, **more)


class Fields:
    """Emits reading the fields of a task, each once, at the start of a function."""

    def __init__(self, code: Code, structure: type[ctypes.Structure], task: ir.Value) -> None:
        self._code, self._structure, self._task = code, structure, task

    def address(self, name: str) -> ir.Value:
        return load_field(self._code, self._structure, self._task, name)

    def count(self, name: str) -> ir.Value:
        return load_field(self._code, self._structure, self._task, name, I64)

    def counts(self, *names: str) -> list[ir.Value]:
        return [self.count(name) for name in names]


class Special(Hashable, Protocol):
    """All that decides a kernel's code; prints itself as what tells it from others."""

    @property
    def isa(self) -> Isa:
        """The vectors that the kernel is made of."""


_Special = TypeVar("_Special", bound=Special)


# So many stay for the next step; one that is in use stays with its step.
@lru_cache(256)
def compiled(special: _Special, emit: Callable[[_Special], ir.Module]) -> Function:
    """Returns the kernel ``run(task)``, from the disk where it is there; otherwise by what emits
    its code."""
    key = f"{generator()} {special}"
    code = cachefiles.load("kernels", key)
    if code is None:
        code = machine_code(emit(special), special.isa.target)
        cachefiles.save("kernels", key, code)
    return Function(code, "run", KERNEL)


def new_module() -> ir.Module:
    """Returns a module for any system that has this CPU."""
    module = ir.Module()
    module.triple = ""
    return module


class PartCode:
    """Begins ``run(task, number, scratch)``, which does one share of a kernel's work."""

    def __init__(self, module: ir.Module, structure: type[SharedTask]) -> None:
        self.module, self.structure = module, structure
        self.code = Code(module, "run", KERNEL_TYPES)
        task, number, self.scratch = self.code.arguments
        self.fields = fields = Fields(self.code, structure, task)
        units, parts = fields.counts("units", "parts")
        self.first, self.last = share(self.code, units, number, parts)

    def end(self) -> ir.Module:
        """Ends the part, which is the kernel."""
        self.code.end()
        return self.module
