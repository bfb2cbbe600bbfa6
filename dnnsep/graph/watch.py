"""Whether hundreds of dictionaries and tensors are still as they were, asked before every call of
a model. Since the last call the network's weights have gone through the caches and pushed these
objects out, and Python waits for memory at each of them, one after the other: a tenth of the time
of a small network, on an AMD EPYC of family 25. Generated code asks the same functions of Python
and torch, and fetches the objects beforehand.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from torch import Tensor

from dnnsep.codegen.lang.emit import I16, I32, I64, POINTER, Code
from dnnsep.codegen.lang.jit import Function, machine_code
from dnnsep.codegen.task import load_field
from dnnsep.nn.samples import Samples

# Objects are fetched in steps, each so many rows ahead of the next: what a pointer in an object
# refers to is fetched when the object is there.
_AHEAD = 12

# Where CPython 3.11 and torch 2.8 keep pointers in a dictionary (its keys and values) and in what
# is behind a tensor (its storage and version counter). They are fetched from and not used: with
# other versions some time is lost and nothing else.
_DICTIONARY, _TENSOR = (32, 40), (16, 40)
_TENSOR_LINES = (0, 64, 128)

Fetch = Callable[[ir.Value], Any]

# Where a tensor of Python may hold the pointer that torch's functions take the address of: in
# torch 2.13 and in 2.8.
_HANDLES = (16, 24)


class Watch:
    """What is watched: entries of dictionaries, the sizes of dictionaries, and of tensors where
    their elements are, how often they were written to, and one element (see Samples).

    Raises ValueError where a dictionary is of another kind than Python's own or a tensor than this
    torch's, and AttributeError where this torch lacks the functions that are asked.
    """

    def __init__(
        self,
        entries: Sequence[tuple[Mapping[str, Any], str]],
        sized: Sequence[Mapping[Any, Any]] = (),
        tensors: Sequence[Tensor] = (),
    ) -> None:
        owners = [owner for owner, _ in entries]
        if not all(isinstance(owner, dict) for owner in (*owners, *sized)):
            raise ValueError("only Python's dictionaries can be watched")
        handles = [_handle(tensor) for tensor in tensors]
        # An object must live for as long as its address is asked about.
        self._kept = (entries, [owner[name] for owner, name in entries], sized, tensors)
        counting = [tensor for tensor in tensors if not tensor.is_inference()]
        samples = Samples(tensors).halves
        self._arrays = (
            _padded([(id(o), id(n), id(o[n])) for o, n in entries], 3),
            _padded([(id(owner),) for owner in sized], 1),
            _padded([(at, t.data_ptr()) for at, t in zip(handles, tensors, strict=True)], 2),
            _padded([(_handle(tensor),) for tensor in counting], 1),
            _padded(samples, 2),
        )
        self._watched = _Watched(
            *(array.ctypes.data for array in self._arrays),
            *map(len, (entries, sized, tensors, counting, samples)),
            sum(map(len, sized)),
            sum(t._version for t in counting),
            *_addresses(),
        )
        self._call = _function()
        self._address = ctypes.addressof(self._watched)

    def holds(self) -> bool:
        """Returns whether all is as it was when this was made."""
        # Another thread may ask in between: both look at the same, so either answer is one of now.
        self._call(self._address)
        return not self._watched.changed


class _Watched(ctypes.Structure):
    """What the generated code reads, and where it leaves what it found."""

    _fields_ = (
        ("entries", ctypes.c_void_p),
        ("sized", ctypes.c_void_p),
        ("tensors", ctypes.c_void_p),
        ("counting", ctypes.c_void_p),
        ("samples", ctypes.c_void_p),
        ("entry_count", ctypes.c_int64),
        ("sized_count", ctypes.c_int64),
        ("tensor_count", ctypes.c_int64),
        ("counting_count", ctypes.c_int64),
        ("sample_count", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("version", ctypes.c_int64),
        ("get_item", ctypes.c_void_p),
        ("get_size", ctypes.c_void_p),
        ("get_data", ctypes.c_void_p),
        ("get_version", ctypes.c_void_p),
        ("changed", ctypes.c_int64),
    )


def _handle(tensor: Tensor) -> int:
    """Returns the address of a tensor as torch's functions take it. Raises ValueError."""
    for offset in _HANDLES:
        if ctypes.c_int64.from_address(id(tensor) + offset).value == tensor._cdata:
            return id(tensor) + offset
    raise ValueError("this torch's tensors are laid out in another way")


def _padded(rows: Sequence[tuple[int, ...]], width: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Returns rows as an array, with the last ones again behind it for what is fetched ahead."""
    more = [rows[-1]] * (3 * _AHEAD) if rows else []
    return np.array([*rows, *more], np.int64).reshape(-1, width)


@cache
def _addresses() -> tuple[int, ...]:
    """Returns the addresses of the functions of Python and torch that are asked."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    functions = (
        ctypes.pythonapi.PyDict_GetItem,
        ctypes.pythonapi.PyDict_Size,
        library.aoti_torch_get_data_ptr,
        library._ZNK2at10TensorBase8_versionEv,  # at::TensorBase::_version() const
    )
    return tuple(ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions)


@cache
def _function() -> Callable[[int], None]:
    """Returns the compiled function, called with the address of what is watched. It keeps Python's
    lock: it asks Python."""
    compiled = Function(machine_code(_emit()), "watch", [ctypes.c_void_p])
    call = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(compiled.address)
    call.compiled = compiled  # type: ignore[attr-defined]  # it must live as long
    return call


def _emit() -> ir.Module:
    module = ir.Module()
    module.triple = ""
    code = Code(module, "watch", [POINTER])
    b, (watched,) = code.builder, code.arguments

    def field(name: str, kind: ir.Type = POINTER) -> ir.Value:
        return load_field(code, _Watched, watched, name, kind)

    def over(
        rows: str, count: str, width: int, one: Fetch, fetches: Sequence[Fetch] = ()
    ) -> ir.Value:
        """Emits a loop over rows, for which each of ``fetches`` is emitted for an earlier one than
        the next; returns the sum of what ``one`` gives."""
        start = field(rows)

        def row(at: ir.Value, ahead: int) -> ir.Value:
            return code.at(start, b.mul(b.add(at, I64(ahead)), I64(width)), I64)

        def body(at: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            for number, fetch in enumerate(fetches):
                fetch(row(at, (len(fetches) - number) * _AHEAD))
            return [b.add(carried[0], one(row(at, 0)))]

        return code.for_range(I64(0), field(count, I64), body, [I64(0)])[0]

    def pointer(place: ir.Value, offset: int = 0) -> ir.Value:
        return code.load(code.at(place, offset // 8, I64), POINTER)

    def fetch_object(row: ir.Value) -> None:
        code.prefetch(pointer(row))

    def fetch_items(row: ir.Value) -> None:
        for offset in _DICTIONARY:
            code.prefetch(pointer(pointer(row), offset))

    def fetch_tensor(row: ir.Value) -> None:
        for line in _TENSOR_LINES:
            code.prefetch(code.at(pointer(pointer(row)), line // 8, I64))

    def fetch_storage(row: ir.Value) -> None:
        for offset in _TENSOR:
            code.prefetch(pointer(pointer(pointer(row)), offset))

    get_item, get_size, get_data, get_version = (
        field(f"get_{name}") for name in ("item", "size", "data", "version")
    )
    found = b.alloca(POINTER)

    def differs(value: ir.Value, expected: ir.Value) -> ir.Value:
        return b.zext(b.icmp_unsigned("!=", value, expected), I64)

    def entry(row: ir.Value) -> ir.Value:
        value = code.call_address(get_item, [pointer(row), pointer(row, 8)], POINTER)
        return differs(value, pointer(row, 16))

    def size(row: ir.Value) -> ir.Value:
        return code.call_address(get_size, [pointer(row)], I64)

    def place(row: ir.Value) -> ir.Value:
        failed = code.call_address(get_data, [pointer(row), found], I32)
        return b.or_(differs(pointer(found), pointer(row, 8)), b.zext(failed, I64))

    def version(row: ir.Value) -> ir.Value:
        return code.call_address(get_version, [pointer(row)], I64)

    changed = [
        over("entries", "entry_count", 3, entry, [fetch_object, fetch_items]),
        b.sub(over("sized", "sized_count", 1, size, [fetch_object]), field("size", I64)),
        over("tensors", "tensor_count", 2, place, [fetch_object, fetch_tensor, fetch_storage]),
        b.sub(over("counting", "counting_count", 1, version), field("version", I64)),
    ]
    result = changed[0]
    for value in changed[1:]:
        result = b.or_(result, value)
    place_of_result = code.at(watched, _Watched.changed.offset // 8, I64)
    b.store(result, place_of_result)

    def sample(row: ir.Value) -> ir.Value:
        now = b.sext(code.load(pointer(row), I16), I64)
        return differs(now, code.load(code.at(row, 1, I64), I64))

    # Only if all tensors are where they were is there something to read.
    code.when(
        b.icmp_signed("==", result, I64(0)),
        lambda: b.store(
            over("samples", "sample_count", 2, sample, [fetch_object]), place_of_result
        ),
    )
    code.end()
    return module
