"""What the threads of a call share in memory, and how generated code reads and changes it."""

from __future__ import annotations

import ctypes

from llvmlite import ir

from dnnsep.codegen.lang.emit import BYTE, I64, VOID, Code

# Linux's numbers, and where getrusage says how often a thread was put aside for another.
_FUTEX, _WAIT_PRIVATE, _WAKE_PRIVATE, _ALL = 202, 128, 129, 0x7FFFFFFF
_GETRUSAGE, _OF_THREAD, _USAGE_BYTES, _PUT_ASIDE = 98, 1, 144, 136
_SETAFFINITY, _GETAFFINITY = 203, 204
_CLOCK_GETTIME, _NANOSECONDS = 228, 1_000_000_000

# Linux's clocks: the time that passes, and the time that a thread has a CPU.
WALL, CPU = 1, 3

# Linux keeps the number of the CPU in the limit of this segment, with the node's above 12 bits.
_CPU_SEGMENT, _CPU_BITS = 0x7B, 12
# The bytes of a set of CPUs.
CPU_SET = 1 << _CPU_BITS >> 3

# Threads of a team beyond so many are not asked how often they were put aside.
WATCHED = 64


class QueuedPart(ctypes.Structure):
    """A part of a step in a queue: the address of the step's Entry, the part's number, the number
    of its phase, how many chains of the call are done when that phase is, and the address of the
    part that ``follows`` it in its chain, or 0."""

    _fields_ = (
        ("entry", ctypes.c_void_p),
        ("part", ctypes.c_int64),
        ("phase", ctypes.c_int64),
        ("done", ctypes.c_int64),
        ("follows", ctypes.c_void_p),
    )


class Entry(ctypes.Structure):
    """A step: the addresses of its kernel and of its task."""

    _fields_ = (("function", ctypes.c_void_p), ("task", ctypes.c_void_p))


class Job(ctypes.Structure):
    """A call, shared by the threads that work on it; queues follow it in memory.

    ``parts`` points to the addresses of each queue's first part, ``limits`` to how far each queue
    may be claimed in each phase. Each thread has ``thread_bytes`` of the memory at ``scratch``.
    The last call with several threads ``took`` so many cycles. ``turn`` changes when there is
    something new to claim or the call is ``finished``, for which ``sleepers`` wait; so many chains
    are ``done``.
    """

    _fields_ = (
        ("parts", ctypes.c_void_p),
        ("limits", ctypes.c_void_p),
        ("phases", ctypes.c_int64),
        ("queues", ctypes.c_int64),
        ("scratch", ctypes.c_void_p),
        ("thread_bytes", ctypes.c_int64),
        ("took", ctypes.c_int64),
        ("_line0", ctypes.c_byte * 8),
        ("turn", ctypes.c_int32),
        ("sleepers", ctypes.c_int32),
        ("finished", ctypes.c_int32),
        ("_line1", ctypes.c_byte * 52),
        ("done", ctypes.c_int64),
        ("_line2", ctypes.c_byte * 56),
    )


class Queue(ctypes.Structure):
    """How many of a queue's parts are ``claimed``, and how many may be: the ``limit``."""

    _fields_ = (
        ("claimed", ctypes.c_int64),
        ("limit", ctypes.c_int64),
        ("_line", ctypes.c_byte * 48),
    )


class Cores(ctypes.Structure):
    """What all calls of a process know of its cores.

    ``callers`` is how many calls are running, ``cpus`` how many CPUs they may use together. Until
    the clock counter is at ``until`` calls go with ``fewer`` threads: they were held up for too
    long. The last such ``time`` was so long, or is 0; calls have gone well for ``well`` since, all
    in cycles. The last timed calls took ``wall`` nanoseconds, of which ``lost`` were lost.
    ``put_aside`` is how often the threads of teams have been, as far as is known.
    ``parallel``, ``number`` and ``count`` are addresses of OpenMP's GOMP_parallel,
    omp_get_thread_num and omp_get_num_threads.
    """

    _fields_ = (
        ("callers", ctypes.c_int64),
        ("_line0", ctypes.c_byte * 56),
        ("until", ctypes.c_int64),
        ("fewer", ctypes.c_int64),
        ("time", ctypes.c_int64),
        ("well", ctypes.c_int64),
        ("wall", ctypes.c_int64),
        ("lost", ctypes.c_int64),
        ("cpus", ctypes.c_int64),
        ("parallel", ctypes.c_void_p),
        ("number", ctypes.c_void_p),
        ("count", ctypes.c_void_p),
        ("put_aside", ctypes.c_int64 * WATCHED),
    )


class SharedCode:
    """Emits into the function that was begun last: what threads do to memory that they share, each
    in one piece and in order, and what they ask of Linux."""

    def __init__(self, module: ir.Module) -> None:
        self.module = module

    def begin(self, name: str, arguments: list[ir.Type], internal: bool = True) -> Code:
        """Begins a function, which only the module itself calls where it is internal."""
        code = Code(self.module, name, arguments)
        self.code, self.b = (code.internal() if internal else code), code.builder
        return code

    def place(self, start: ir.Value, structure: type[ctypes.Structure], name: str) -> ir.Value:
        """Returns the address of a field of a structure at an address."""
        return self.code.at(start, getattr(structure, name).offset, BYTE)

    def load(self, place: ir.Value, kind: ir.Type = I64) -> ir.Value:
        return self.b.load_atomic(place, "seq_cst", kind.width // 8, typ=kind)

    def store(self, value: ir.Value, place: ir.Value) -> None:
        self.b.atomic_rmw("xchg", place, value, "seq_cst")

    def add(self, place: ir.Value, value: ir.Value) -> ir.Value:
        """Adds to what is at a place; returns what was there."""
        return self.b.atomic_rmw("add", place, value, "seq_cst")

    def raise_to(self, value: ir.Value, place: ir.Value) -> None:
        """Replaces what is at a place by a value if that is larger."""
        self.b.atomic_rmw("max", place, value, "seq_cst")

    def exchanged(self, place: ir.Value, old: ir.Value, new: ir.Value) -> ir.Value:
        """Replaces what is at a place if it is ``old``; returns whether it was."""
        both = self.b.cmpxchg(place, old, new, "seq_cst", "seq_cst")
        return self.b.extract_value(both, 1)

    def queue(self, job: ir.Value, number: ir.Value) -> ir.Value:
        """Returns the address of one of a job's queues."""
        queues = self.code.at(job, ctypes.sizeof(Job), BYTE)
        return self.code.at(queues, self.b.mul(number, I64(ctypes.sizeof(Queue))), BYTE)

    def sleep(self, place: ir.Value, value: ir.Value) -> None:
        """Sleeps while there is a value, an I32, at a place, until somebody wakes it."""
        self._system(_FUTEX, place, I64(_WAIT_PRIVATE), self.b.zext(value, I64))

    def wake(self, place: ir.Value) -> None:
        """Wakes all who sleep at a place."""
        self._system(_FUTEX, place, I64(_WAKE_PRIVATE), I64(_ALL))

    def cpu_number(self) -> ir.Value:
        """Returns the number of the CPU that the thread runs on."""
        asm = ir.InlineAsm(ir.FunctionType(I64, [I64]), "lsl $1, $0", "=r,r,~{flags}", True)
        found = self.b.call(asm, [I64(_CPU_SEGMENT)])
        return self.b.and_(found, I64((1 << _CPU_BITS) - 1))

    def read_affinity(self, cpus: ir.Value) -> None:
        """Writes the set of CPUs that the thread may run on into memory of CPU_SET bytes."""
        self._system(_GETAFFINITY, I64(0), I64(CPU_SET), self.b.ptrtoint(cpus, I64))

    def set_affinity(self, cpus: ir.Value) -> None:
        """Sets the CPUs that the thread may run on; nothing changes where it may run on none."""
        self._system(_SETAFFINITY, I64(0), I64(CPU_SET), self.b.ptrtoint(cpus, I64))

    def time(self, clock: int) -> ir.Value:
        """Returns the time of one of Linux's clocks in nanoseconds."""
        both = self.code.stack(16)
        self._system(_CLOCK_GETTIME, I64(clock), self.b.ptrtoint(both, I64), I64(0))
        seconds, rest = (self.code.load(self.code.at(both, n, I64), I64) for n in range(2))
        return self.b.add(self.b.mul(seconds, I64(_NANOSECONDS)), rest)

    def times_put_aside(self) -> ir.Value:
        """Returns how often Linux has put the thread aside for another one."""
        usage = self.code.stack(_USAGE_BYTES)
        self._system(_GETRUSAGE, I64(_OF_THREAD), self.b.ptrtoint(usage, I64), I64(0))
        return self.code.load(self.code.at(usage, _PUT_ASIDE, BYTE), I64)

    def _system(self, number: int, *arguments: ir.Value) -> None:
        kinds = [I64, *(value.type for value in arguments), I64]
        asm = ir.InlineAsm(
            ir.FunctionType(I64, kinds),
            "syscall",
            "={rax},{rax},{rdi},{rsi},{rdx},{r10},~{rcx},~{r11},~{memory}",
            side_effect=True,
        )
        self.b.call(asm, [I64(number), *arguments, I64(0)])

    def pause(self) -> None:
        asm = ir.InlineAsm(ir.FunctionType(VOID, []), "pause", "~{memory}", side_effect=True)
        self.b.call(asm, [])

    def clock(self) -> ir.Value:
        """Returns the CPU's clock counter, which counts 2 to 4 times in a nanosecond."""
        return self.code.call("llvm.readcyclecounter", I64)
