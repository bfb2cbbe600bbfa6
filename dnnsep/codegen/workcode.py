"""How threads share a call's work: the generated code that claims parts, waits and wakes.

A call's steps are in *groups*, of which each needs all of the one before it, and nothing within one
needs anything of it. The units of a group (a part of a step each) lie in queues, one for each
thread. A thread claims the units of its own queue, so that it meets the same pixels layer after
layer, and then those of others: a group is done when its units are done, and waits for no thread
that has none of them. Whoever does the last one opens the next group.

Threads are those of OpenMP that torch has, so that there is no second pool for them to fight with.
While it waits the caller sleeps soon, and calls that had to wait for long are followed by some that
go without other threads: then the CPUs have other work to do.
"""

from __future__ import annotations

import ctypes
from functools import cache

from llvmlite import ir

from dnnsep.codegen.lang.emit import BYTE, I32, I64, POINTER, VOID, Code
from dnnsep.codegen.lang.jit import Function, machine_code
from dnnsep.codegen.task import load_field

# All times are in cycles of the CPU's clock counter, of which 2 to 4 are a nanosecond.

# How long a thread looks for work before it sleeps.
_SPIN = 100_000

# A thread that did not come back for so long may have been put aside by Linux for another process:
# then it leaves the call. A call is long if it takes as long as that.
_LONG = 1_000_000

# A long call whose caller had no CPU for so many nanoseconds, and for more than one part in so many
# of its time, because it slept until another thread was there, or was put aside itself, is followed
# by calls with fewer threads: at first for so long, where that does not help for so long, then for
# twice as long each time until calls have gone well for a while.
_LOST, _SHARE = 1_500_000, 3
_FIRST, _SECOND, _LONGEST, _WELL = 30_000_000, 1_500_000_000, 12_000_000_000, 120_000_000

# Linux's numbers, and where getrusage says how often a thread was put aside for another.
_FUTEX, _WAIT_PRIVATE, _WAKE_PRIVATE, _ALL = 202, 128, 129, 0x7FFFFFFF
_GETRUSAGE, _OF_THREAD, _USAGE_BYTES, _PUT_ASIDE = 98, 1, 144, 136
_SETAFFINITY, _GETAFFINITY = 203, 204
_CLOCK_GETTIME, _WALL, _CPU, _NANOSECONDS = 228, 1, 3, 1_000_000_000

# Linux keeps the number of the CPU in the limit of this segment, with the node's above 12 bits.
_CPU_SEGMENT, _CPU_BITS = 0x7B, 12
# The bytes of a set of CPUs.
_CPU_SET = 1 << _CPU_BITS >> 3

# Threads of a team beyond so many are not asked how often they were put aside.
_WATCHED = 64


class Unit(ctypes.Structure):
    """A part of a step: the address of the step's Entry, the part's number, the number of its
    group, and how many units of the call are done when that group is."""

    _fields_ = (
        ("entry", ctypes.c_void_p),
        ("part", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("done", ctypes.c_int64),
    )


class Entry(ctypes.Structure):
    """A step: the addresses of its kernel and of its task."""

    _fields_ = (("function", ctypes.c_void_p), ("task", ctypes.c_void_p))


class Job(ctypes.Structure):
    """A call, shared by the threads that work on it; queues follow it in memory.

    ``units`` points to the addresses of each queue's first unit, ``limits`` to how far each queue
    may be claimed in each group. Each thread has ``thread_bytes`` of the memory at ``scratch``.
    The last call with several threads ``took`` so many cycles.
    ``turn`` changes when there is something new to claim or the call is ``finished``, for which
    ``sleepers`` wait.
    """

    _fields_ = (
        ("units", ctypes.c_void_p),
        ("limits", ctypes.c_void_p),
        ("groups", ctypes.c_int64),
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
    """How many of a queue's units are ``claimed``, and how many may be: the ``limit``."""

    _fields_ = (
        ("claimed", ctypes.c_int64),
        ("limit", ctypes.c_int64),
        ("_line", ctypes.c_byte * 48),
    )


class Cores(ctypes.Structure):
    """What all calls of a process know of its cores.

    ``callers`` is how many calls are running, ``cpus`` how many CPUs they may use together. Until
    the clock counter is at ``until`` calls go with ``fewer`` threads: one was held up for too long.
    The last such ``time`` was so long; calls have gone well for ``well`` since, all
    in cycles. ``put_aside`` is how often the threads of teams have been, as far as is known.
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
        ("cpus", ctypes.c_int64),
        ("parallel", ctypes.c_void_p),
        ("number", ctypes.c_void_p),
        ("count", ctypes.c_void_p),
        ("put_aside", ctypes.c_int64 * _WATCHED),
    )


class _Region(ctypes.Structure):
    """A call as the threads of OpenMP's team for it find it: when and on which CPU it began, how
    many of them have ``left`` it, and how many of the others were ``put_aside``. Where it is
    ``timed`` the caller's clocks were at ``wall`` and ``cpu`` then, in nanoseconds."""

    _fields_ = (
        ("job", ctypes.c_void_p),
        ("cores", ctypes.c_void_p),
        ("start", ctypes.c_int64),
        ("caller_cpu", ctypes.c_int64),
        ("timed", ctypes.c_int64),
        ("wall", ctypes.c_int64),
        ("cpu", ctypes.c_int64),
        ("put_aside", ctypes.c_int64),
        ("left", ctypes.c_int32),
        ("sleepers", ctypes.c_int32),
    )


@cache
def run_function() -> Function:
    """Returns ``run(job, cores, threads)``, which does all of a job, on as many threads, the
    caller's among them, as there are cores for."""
    return Function(_compiled(), "run", [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64])


@cache
def _compiled() -> bytes:
    module = ir.Module()
    module.triple = ""
    code = _Shared(module)
    wait, wake = _emit_wait(code), _emit_wake(code)
    note = _emit_note(code)
    work = _emit_work(code, wait, _emit_advance(code, wake), note)
    _emit_run(code, work, _emit_together(code, work, wait, wake, note, _emit_leave(code)))
    return machine_code(module)


class _Shared:
    """Emits what threads do to memory that they share, each in one piece and in order."""

    def __init__(self, module: ir.Module) -> None:
        self.module = module

    def begin(self, name: str, arguments: list[ir.Type], internal: bool = True) -> Code:
        code = Code(self.module, name, arguments)
        self.code, self.b = (code.internal() if internal else code), code.builder
        return code

    def place(self, start: ir.Value, structure: type[ctypes.Structure], name: str) -> ir.Value:
        return self.code.at(start, getattr(structure, name).offset, BYTE)

    def load(self, place: ir.Value, kind: ir.Type = I64) -> ir.Value:
        return self.b.load_atomic(place, "seq_cst", kind.width // 8, typ=kind)

    def store(self, value: ir.Value, place: ir.Value) -> None:
        self.b.atomic_rmw("xchg", place, value, "seq_cst")

    def add(self, place: ir.Value, value: ir.Value) -> ir.Value:
        """Adds to what is at a place; returns what was there."""
        return self.b.atomic_rmw("add", place, value, "seq_cst")

    def exchanged(self, place: ir.Value, old: ir.Value, new: ir.Value) -> ir.Value:
        """Replaces what is at a place if it is ``old``; returns whether it was."""
        both = self.b.cmpxchg(place, old, new, "seq_cst", "seq_cst")
        return self.b.extract_value(both, 1)

    def queue(self, job: ir.Value, number: ir.Value) -> ir.Value:
        queues = self.code.at(job, ctypes.sizeof(Job), BYTE)
        return self.code.at(queues, self.b.mul(number, I64(ctypes.sizeof(Queue))), BYTE)

    def futex(self, place: ir.Value, operation: int, value: ir.Value) -> None:
        """Calls Linux: to sleep while there is a value at a place, or to wake who does."""
        self._system(_FUTEX, place, I64(operation), self.b.zext(value, I64))

    def cpu_number(self) -> ir.Value:
        """Returns the number of the CPU that the thread runs on."""
        asm = ir.InlineAsm(ir.FunctionType(I64, [I64]), "lsl $1, $0", "=r,r,~{flags}", True)
        found = self.b.call(asm, [I64(_CPU_SEGMENT)])
        return self.b.and_(found, I64((1 << _CPU_BITS) - 1))

    def affinity(self, call: int, cpus: ir.Value) -> None:
        """Reads or sets the CPUs that the thread may run on."""
        self._system(call, I64(0), I64(_CPU_SET), self.b.ptrtoint(cpus, I64))

    def time(self, clock: int) -> ir.Value:
        """Returns a clock's time in nanoseconds."""
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
        return self.code.call("llvm.readcyclecounter", I64)


def _emit_wait(shared: _Shared) -> ir.Function:
    """Emits ``wait(word, seen, sleepers)``: until the word is another one, at first awake."""
    code = shared.begin("wait", [POINTER, I32, POINTER])
    b, (word, seen, sleepers) = code.builder, code.arguments
    look, again, sleep, leave = (code.function.append_basic_block() for _ in range(4))
    start = shared.clock()
    b.branch(look)
    b.position_at_end(look)
    shared.pause()
    b.cbranch(b.icmp_signed("!=", shared.load(word, I32), seen), leave, again)
    b.position_at_end(again)
    spent = b.sub(shared.clock(), start)
    b.cbranch(b.icmp_signed("<", spent, I64(_SPIN)), look, sleep)
    b.position_at_end(sleep)
    shared.add(sleepers, I32(1))
    shared.futex(word, _WAIT_PRIVATE, seen)
    shared.add(sleepers, I32(-1))
    b.branch(leave)
    b.position_at_end(leave)
    return code.end()


def _emit_wake(shared: _Shared) -> ir.Function:
    """Emits ``wake(word, sleepers)``, after a change of the word."""
    code = shared.begin("wake", [POINTER, POINTER])
    b, (word, sleepers) = code.builder, code.arguments
    asleep = b.icmp_signed(">", shared.load(sleepers, I32), I32(0))
    code.when(asleep, lambda: shared.futex(word, _WAKE_PRIVATE, I32(_ALL)))
    return code.end()


def _emit_advance(shared: _Shared, wake: ir.Function) -> ir.Function:
    """Emits ``advance(job, group)``: opens a group, or ends the call after the last one."""
    code = shared.begin("advance", [POINTER, I64])
    b, (job, group) = code.builder, code.arguments
    queues = load_field(code, Job, job, "queues", I64)
    last = b.icmp_signed("==", group, load_field(code, Job, job, "groups", I64))
    turn, sleepers = (shared.place(job, Job, name) for name in ("turn", "sleepers"))
    with b.if_else(last) as (end, more):
        with end:
            shared.store(I32(1), shared.place(job, Job, "finished"))
        with more:
            limits = load_field(code, Job, job, "limits")
            row = code.at(limits, b.mul(group, queues), I64)

            def one(queue: ir.Value) -> None:
                limit = code.load(code.at(row, queue, I64), I64)
                shared.store(limit, shared.place(shared.queue(job, queue), Queue, "limit"))

            code.for_each(I64(0), queues, one)
    shared.add(turn, I32(1))
    b.call(wake, [turn, sleepers])
    return code.end()


def _emit_note(shared: _Shared) -> ir.Function:
    """Emits ``note(cores, thread, aside)``: ``aside`` becomes 1 if Linux has put the thread aside
    since it was asked last."""
    code = shared.begin("note", [POINTER, I64, POINTER])
    b, (cores, thread, aside) = code.builder, code.arguments

    def ask() -> None:
        known = code.at(shared.place(cores, Cores, "put_aside"), thread, I64)
        now = shared.times_put_aside()
        is_new = b.icmp_signed("!=", now, shared.load(known))
        shared.store(now, known)
        code.when(is_new, lambda: b.store(I64(1), aside))

    code.when(b.icmp_signed("<", thread, I64(_WATCHED)), ask)
    return code.end()


def _emit_work(
    shared: _Shared, wait: ir.Function, advance: ir.Function, note: ir.Function
) -> ir.Function:
    """Emits ``work(job, cores, thread, aside)``: units, as long as there are any, until the call
    ends, or until a thread other than the caller, which is the first, was put ``aside``."""
    code = shared.begin("work", [POINTER, POINTER, I64, POINTER])
    b, (job, cores, thread, aside) = code.builder, code.arguments
    top, each, look, claim, do, following, idle, leave = (
        code.function.append_basic_block() for _ in range(8)
    )
    start = code.stack(8)
    b.store(I64(0), aside)
    turn, sleepers = (shared.place(job, Job, name) for name in ("turn", "sleepers"))
    b.branch(top)

    b.position_at_end(top)
    seen = shared.load(turn, I32)
    queues = load_field(code, Job, job, "queues", I64)
    finished = shared.load(shared.place(job, Job, "finished"), I32)
    b.cbranch(b.icmp_signed("!=", finished, I32(0)), leave, each)

    b.position_at_end(each)
    offset = b.phi(I64)
    offset.add_incoming(I64(0), top)
    b.cbranch(b.icmp_signed("<", offset, queues), look, idle)

    b.position_at_end(look)
    number = b.urem(b.add(thread, offset), queues)
    queue = shared.queue(job, number)
    claimed_place = shared.place(queue, Queue, "claimed")
    index = shared.load(claimed_place)
    limit = shared.load(shared.place(queue, Queue, "limit"))
    b.cbranch(b.icmp_signed("<", index, limit), claim, following)

    b.position_at_end(claim)
    is_mine = shared.exchanged(claimed_place, index, b.add(index, I64(1)))
    b.cbranch(is_mine, do, look)

    b.position_at_end(do)
    units = code.load(code.at(load_field(code, Job, job, "units"), number, POINTER), POINTER)
    unit = code.at(units, b.mul(index, I64(ctypes.sizeof(Unit))), BYTE)
    entry = load_field(code, Unit, unit, "entry")
    part, group, expected = (
        load_field(code, Unit, unit, name, I64) for name in ("part", "group", "done")
    )
    function, task = (load_field(code, Entry, entry, name) for name in ("function", "task"))
    scratch, size = (
        load_field(code, Job, job, "scratch"),
        load_field(code, Job, job, "thread_bytes", I64),
    )
    own = code.at(scratch, b.mul(thread, size), BYTE)
    b.store(shared.clock(), start)
    code.call_address(function, [task, part, own], VOID)
    done = b.add(shared.add(shared.place(job, Job, "done"), I64(1)), I64(1))
    opens = b.icmp_signed("==", done, expected)
    code.when(opens, lambda: b.call(advance, [job, b.add(group, I64(1))]))
    long = b.icmp_signed(">", b.sub(shared.clock(), code.load(start, I64)), I64(_LONG))
    long = b.and_(long, b.icmp_signed("!=", thread, I64(0)))
    code.when(long, lambda: b.call(note, [cores, thread, aside]))
    b.cbranch(b.icmp_signed("!=", code.load(aside, I64), I64(0)), leave, top)

    b.position_at_end(following)
    offset.add_incoming(b.add(offset, I64(1)), following)
    b.branch(each)

    b.position_at_end(idle)
    b.call(wait, [turn, seen, sleepers])
    b.branch(top)

    b.position_at_end(leave)
    return code.end()


def _emit_run(shared: _Shared, work: ir.Function, together: ir.Function) -> None:
    code = shared.begin("run", [POINTER, POINTER, I64], internal=False)
    b, (job, cores, threads) = code.builder, code.arguments
    queues = load_field(code, Job, job, "queues", I64)
    shared.store(I64(0), shared.place(job, Job, "done"))
    shared.store(I32(0), shared.place(job, Job, "finished"))
    limits = load_field(code, Job, job, "limits")

    def begin(number: ir.Value) -> None:
        queue = shared.queue(job, number)
        shared.store(I64(0), shared.place(queue, Queue, "claimed"))
        limit = code.load(code.at(limits, number, I64), I64)
        shared.store(limit, shared.place(queue, Queue, "limit"))

    code.for_each(I64(0), queues, begin)
    callers = shared.place(cores, Cores, "callers")
    others = shared.add(callers, I64(1))
    share = b.sdiv(load_field(code, Cores, cores, "cpus", I64), b.add(others, I64(1)))
    start = shared.clock()
    until, fewer = (shared.load(shared.place(cores, Cores, name)) for name in ("until", "fewer"))
    less = b.select(b.icmp_signed("<", start, until), fewer, I64(0))
    count = code.least(b.sub(threads, less), share)
    region = code.stack(ctypes.sizeof(_Region))

    def with_others() -> None:
        cpu = shared.cpu_number()
        given = (("job", job), ("cores", cores), ("start", start), ("caller_cpu", cpu))
        for name, value in given:
            b.store(value, shared.place(region, _Region, name))
        b.store(I64(0), shared.place(region, _Region, "put_aside"))
        timed = b.icmp_signed(">", load_field(code, Job, job, "took", I64), I64(_LONG))
        b.store(b.zext(timed, I64), shared.place(region, _Region, "timed"))
        code.when(timed, lambda: _note_clocks(shared, region))
        for name in ("left", "sleepers"):
            b.store(I32(0), shared.place(region, _Region, name))
        function = b.inttoptr(b.ptrtoint(together, I64), POINTER)
        parallel = load_field(code, Cores, cores, "parallel")
        code.call_address(parallel, [function, region, b.trunc(count, I32), I32(0)], VOID)
        took = b.sub(shared.clock(), start)
        b.store(took, shared.place(job, Job, "took"))
        code.when(timed, lambda: _judge(shared, cores, region, took))

    with b.if_else(b.icmp_signed(">", count, I64(1))) as (yes, no):
        with yes:
            with_others()
        with no:
            b.call(work, [job, cores, I64(0), code.stack(8)])
    shared.add(callers, I64(-1))
    code.end()


def _note_clocks(shared: _Shared, region: ir.Value) -> None:
    for name, clock in (("wall", _WALL), ("cpu", _CPU)):
        shared.b.store(shared.time(clock), shared.place(region, _Region, name))


def _judge(shared: _Shared, cores: ir.Value, region: ir.Value, took: ir.Value) -> None:
    """Emits what a timed call, which ``took`` so many cycles, tells the next ones by how long its
    caller had no CPU."""
    code, b = shared.code, shared.b
    wall, cpu = (
        b.sub(shared.time(clock), load_field(code, _Region, region, name, I64))
        for name, clock in (("wall", _WALL), ("cpu", _CPU))
    )
    put_aside = load_field(code, _Region, region, "put_aside", I64)
    fewer, time, until, well = (
        shared.place(cores, Cores, name) for name in ("fewer", "time", "until", "well")
    )
    lost = b.sub(wall, cpu)
    much = b.icmp_signed(">", lost, I64(_LOST))
    much = b.and_(much, b.icmp_signed(">", b.mul(lost, I64(_SHARE)), wall))

    def go_with_fewer() -> None:
        last = shared.load(time)
        again = b.icmp_signed(">", last, I64(0))
        longer = code.most(b.mul(last, I64(2)), I64(_SECOND))
        longer = b.select(again, code.least(longer, I64(_LONGEST)), I64(_FIRST))
        before = b.select(again, shared.load(fewer), I64(0))
        shared.store(b.add(before, code.most(put_aside, I64(1))), fewer)
        shared.store(longer, time)
        shared.store(b.add(shared.clock(), longer), until)
        shared.store(I64(0), well)

    def go_on() -> None:
        enough = b.icmp_signed(">", b.add(shared.add(well, took), took), I64(_WELL))
        code.when(enough, lambda: shared.store(I64(0), time))

    with b.if_else(much) as (yes, no):
        with yes:
            go_with_fewer()
        with no:
            go_on()


def _emit_leave(shared: _Shared) -> ir.Function:
    """Emits ``leave(cpu)``: moves the thread to another CPU if it may run on another."""
    code = shared.begin("leave", [I64])
    b, (cpu,) = code.builder, code.arguments
    cpus = code.stack(_CPU_SET)
    code.for_each(0, _CPU_SET // 8, lambda at: b.store(I64(0), code.at(cpus, at, I64)))
    shared.affinity(_GETAFFINITY, cpus)
    place = code.at(cpus, b.lshr(cpu, I64(6)), I64)
    before = code.load(place, I64)
    b.store(b.and_(before, b.not_(b.shl(I64(1), b.and_(cpu, I64(63))))), place)
    shared.affinity(_SETAFFINITY, cpus)
    b.store(before, place)
    shared.affinity(_SETAFFINITY, cpus)
    return code.end()


def _emit_together(
    shared: _Shared,
    work: ir.Function,
    wait: ir.Function,
    wake: ir.Function,
    note: ir.Function,
    leave: ir.Function,
) -> ir.Function:
    """Emits ``together(region)``, which each thread of a team runs.

    OpenMP's barrier at the end of a team spins, for milliseconds, also where the thread that is
    waited for has no other CPU to run on than the one that waits. So the caller comes to it last,
    and sleeps before it.
    """
    code = shared.begin("together", [POINTER])
    b, (region,) = code.builder, code.arguments
    cores = load_field(code, _Region, region, "cores")
    thread, count = (
        b.sext(code.call_address(load_field(code, Cores, cores, name), [], I32), I64)
        for name in ("number", "count")
    )
    job = load_field(code, _Region, region, "job")
    left, sleepers = (shared.place(region, _Region, name) for name in ("left", "sleepers"))
    aside = code.stack(8)

    def as_caller() -> None:
        b.call(work, [job, cores, thread, aside])
        others = b.trunc(b.sub(count, I64(1)), I32)
        top, again, end = (code.function.append_basic_block() for _ in range(3))
        b.branch(top)
        b.position_at_end(top)
        seen = shared.load(left, I32)
        b.cbranch(b.icmp_signed("<", seen, others), again, end)
        b.position_at_end(again)
        b.call(wait, [left, seen, sleepers])
        b.branch(top)
        b.position_at_end(end)

    def as_other() -> None:
        # Linux may wake a thread on the CPU of the one that woke it, and leaves it there while they
        # take turns to sleep.
        caller_cpu = load_field(code, _Region, region, "caller_cpu", I64)
        together = b.icmp_signed("==", shared.cpu_number(), caller_cpu)
        code.when(together, lambda: b.call(leave, [caller_cpu]))
        b.call(work, [job, cores, thread, aside])
        took = b.sub(shared.clock(), load_field(code, _Region, region, "start", I64))
        long = b.icmp_signed(">", took, I64(_LONG))
        code.when(long, lambda: b.call(note, [cores, thread, aside]))
        shared.add(shared.place(region, _Region, "put_aside"), code.load(aside, I64))
        shared.add(left, I32(1))
        b.call(wake, [left, sleepers])

    with b.if_else(b.icmp_signed("==", thread, I64(0))) as (yes, no):
        with yes:
            as_caller()
        with no:
            as_other()
    return code.end()
