"""What the tasks of these kernels begin with, and how a kernel finds its share of the work."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Protocol, TypeVar

from llvmlite import ir

from dnnsep.codegen import team
from dnnsep.codegen.lang.emit import BYTE, I32, I64, POINTER, Code
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.lang.jit import Function, machine_code
from dnnsep.codegen.rowwise.task import share
from dnnsep.codegen.task import load_field
from dnnsep.codegen.version import generator
from dnnsep.host import cachefiles


class SharedTask(ctypes.Structure):
    """What every task begins with.

    ``units`` of work are cut into ``parts`` equal shares, each of which has ``part_bytes`` of the
    scratch memory. ``thread_number`` and ``thread_count`` are OpenMP's functions that tell a thread
    its number and its team's size.
    """

    _fields_: ClassVar[Sequence[tuple[str, Any]]] = (
        ("scratch", ctypes.c_void_p),
        ("thread_number", ctypes.c_void_p),
        ("thread_count", ctypes.c_void_p),
        ("units", ctypes.c_int64),
        ("parts", ctypes.c_int64),
        ("part_bytes", ctypes.c_int64),
    )

    @classmethod
    def of(cls, scratch: int, units: int, parts: int, part_bytes: int = 0, **more: float) -> Any:
        """Returns a task of this class; its operands are still 0."""
        number, count = (
            team.address_of(f"omp_get_{name}") for name in ("thread_num", "num_threads")
        )
        return cls(
            scratch=scratch,
            thread_number=number,
            thread_count=count,
            units=units,
            parts=parts,
            part_bytes=part_bytes,
            **more,
        )


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
    return Function(code, "run", [ctypes.c_void_p])


def new_module() -> ir.Module:
    """Returns a module for any system that has this CPU."""
    module = ir.Module()
    module.triple = ""
    return module


class PartCode:
    """Begins ``part(task, number)``, one share of a kernel's work, and the kernel around it."""

    def __init__(self, module: ir.Module, structure: type[SharedTask]) -> None:
        self.module, self.structure = module, structure
        self.code = Code(module, "part", [POINTER, I64]).internal()
        task, number = self.code.arguments
        self.fields = fields = Fields(self.code, structure, task)
        units, parts, size = fields.counts("units", "parts", "part_bytes")
        self.first, self.last = share(self.code, units, number, parts)
        room = self.code.builder.mul(number, size)
        self.scratch = self.code.at(fields.address("scratch"), room, BYTE)

    def end(self) -> ir.Module:
        """Ends the part, and emits ``run(task)``, which a team of threads calls at once: each does
        every n-th part, so that a team of any size does all of them."""
        part = self.code.end()
        code = Code(self.module, "run", [POINTER])
        (task,), b = code.arguments, code.builder
        fields = Fields(code, self.structure, task)
        number, count = (fields.address(name) for name in ("thread_number", "thread_count"))
        mine, team_size = (b.sext(code.call_address(f, [], I32), I64) for f in (number, count))
        code.for_each(
            mine, fields.count("parts"), lambda at: b.call(part, [task, at]), step=team_size
        )
        code.end()
        return self.module
