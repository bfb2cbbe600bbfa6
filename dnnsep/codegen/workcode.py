"""How a call is shared by threads: the generated code around the claiming of parts.

Threads are those of OpenMP that torch has, so that there is no second pool for them to fight with.
While it waits the caller sleeps soon, and calls that were held up for long are followed by some
with fewer threads: then the CPUs have other work to do.
"""

from __future__ import annotations

import ctypes
from functools import cache

from llvmlite import ir

from dnnsep.codegen.claims import LONG, SHARE, emit_note, emit_wait, emit_wake, emit_work
from dnnsep.codegen.lang.emit import I32, I64, POINTER, VOID
from dnnsep.codegen.lang.jit import Function, machine_code
from dnnsep.codegen.shared import CPU, CPU_SET, WALL, Cores, Job, Queue, SharedCode
from dnnsep.codegen.task import load_field

# Where the callers of long calls had no CPU for more than one part in SHARE of their time lately,
# because they slept until another thread was there, or were put aside themselves, and for so many
# nanoseconds in all, the next calls go with fewer threads. One call says little: also on a quiet
# machine something else runs for some milliseconds now and then. What is older than so many
# nanoseconds counts half; after calls with fewer threads one bad call is enough. Tried beside none,
# one and two busy loops, on 2 cores of an Intel Xeon of family 6, model 167.
_MUCH, _LATELY, _KNOWN = 5_000_000, 60_000_000, 3_000_000

# They do so at first for so many cycles of the clock counter, then for so many times as long each
# time up to a limit, until calls have gone well for a while. Chosen beside one and two busy loops,
# on 2 cores of an AMD EPYC of family 25.
_FIRST, _LONGER, _LONGEST, _WELL = 30_000_000, 4, 12_000_000_000, 120_000_000

# A call is timed after one that took so many cycles, so that asking for the time costs little.
_LONG_CALL = 4_000_000


class _Region(ctypes.Structure):
    """A call as the threads of OpenMP's team for it find it: when and on which CPU it began, how
    many of the others have ``left`` it and how many were ``put_aside``. Of one that is timed the
    caller's clocks were at ``wall`` and ``cpu`` then, in nanoseconds."""

    _fields_ = (
        ("job", ctypes.c_void_p),
        ("cores", ctypes.c_void_p),
        ("start", ctypes.c_int64),
        ("caller_cpu", ctypes.c_int64),
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
    code = SharedCode(module)
    wait, wake, note = emit_wait(code), emit_wake(code), emit_note(code)
    work = emit_work(code, wait, wake)
    _emit_run(code, work, _emit_together(code, work, wait, wake, note, _emit_leave(code)))
    return machine_code(module)


def _emit_run(shared: SharedCode, work: ir.Function, together: ir.Function) -> None:
    """Emits what ``run_function`` returns. A call is timed where the last one of its job was long:
    asking for the time would cost a short one too much."""
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
        timed = b.icmp_signed(">", load_field(code, Job, job, "took", I64), I64(_LONG_CALL))
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
            b.call(work, [job, I64(0), code.stack(8)])
    shared.add(callers, I64(-1))
    code.end()


def _note_clocks(shared: SharedCode, region: ir.Value) -> None:
    """Emits writing down what a call's clocks are at."""
    for name, clock in (("wall", WALL), ("cpu", CPU)):
        shared.b.store(shared.time(clock), shared.place(region, _Region, name))


def _judge(shared: SharedCode, cores: ir.Value, region: ir.Value, took: ir.Value) -> None:
    """Emits what a timed call, which ``took`` so many cycles, tells the next ones, together with
    those before it, by how long their callers had no CPU."""
    code, b = shared.code, shared.b
    wall, cpu = (
        b.sub(shared.time(clock), load_field(code, _Region, region, name, I64))
        for name, clock in (("wall", WALL), ("cpu", CPU))
    )
    put_aside = load_field(code, _Region, region, "put_aside", I64)
    fewer, time, until, well = (
        shared.place(cores, Cores, name) for name in ("fewer", "time", "until", "well")
    )
    walls, losses = (shared.place(cores, Cores, name) for name in ("wall", "lost"))
    in_all, lost = b.add(shared.load(walls), wall), b.add(shared.load(losses), b.sub(wall, cpu))
    much = b.icmp_signed(">", lost, I64(_MUCH))
    much = b.and_(much, b.icmp_signed(">", b.mul(lost, I64(SHARE)), in_all))

    def keep(wall: ir.Value, lost: ir.Value) -> None:
        shared.store(wall, walls)
        shared.store(lost, losses)

    def go_with_fewer() -> None:
        last = shared.load(time)
        again = b.icmp_signed(">", last, I64(0))
        longer = code.most(b.mul(last, I64(_LONGER)), I64(_FIRST))
        longer = code.least(longer, I64(_LONGEST))
        before = b.select(again, shared.load(fewer), I64(0))
        shared.store(b.add(before, code.most(put_aside, I64(1))), fewer)
        shared.store(longer, time)
        shared.store(b.add(shared.clock(), longer), until)
        shared.store(I64(0), well)
        keep(I64(2 * _KNOWN), I64(_KNOWN))

    def go_on() -> None:
        old = b.zext(b.icmp_signed(">", in_all, I64(_LATELY)), I64)
        keep(b.ashr(in_all, old), b.ashr(lost, old))
        enough = b.icmp_signed(">", b.add(shared.add(well, took), took), I64(_WELL))
        code.when(enough, lambda: shared.store(I64(0), time))

    with b.if_else(much) as (yes, no):
        with yes:
            go_with_fewer()
        with no:
            go_on()


def _emit_leave(shared: SharedCode) -> ir.Function:
    """Emits ``leave(cpu)``: moves the thread to another CPU if it may run on another."""
    code = shared.begin("leave", [I64])
    b, (cpu,) = code.builder, code.arguments
    cpus = code.stack(CPU_SET)
    code.for_each(0, CPU_SET // 8, lambda at: b.store(I64(0), code.at(cpus, at, I64)))
    shared.read_affinity(cpus)
    place = code.at(cpus, b.lshr(cpu, I64(6)), I64)
    before = code.load(place, I64)
    b.store(b.and_(before, b.not_(b.shl(I64(1), b.and_(cpu, I64(63))))), place)
    shared.set_affinity(cpus)
    b.store(before, place)
    shared.set_affinity(cpus)
    return code.end()


def _emit_together(
    shared: SharedCode,
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
        b.call(work, [job, thread, aside])
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
        b.call(work, [job, thread, aside])
        took = b.sub(shared.clock(), load_field(code, _Region, region, "start", I64))
        long = b.icmp_signed(">", took, I64(LONG))
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
