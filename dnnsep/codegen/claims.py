"""How threads claim the parts of a call's steps: generated code.

A call's steps are in *phases*, of which each needs all of the one before it, and nothing within one
needs anything of it, but for parts that one thread does in order: a chain (phases.py). The chains
of a phase lie in queues, one for each thread. A thread claims those in its own queue, so that it
meets the same pixels layer after layer, and then those in others: a phase is done when its chains
are done, and waits for no thread that has none of them. Whoever does the last one opens the next
phase.
"""

from __future__ import annotations

import ctypes

from llvmlite import ir

from dnnsep.codegen.lang.emit import BYTE, I32, I64, POINTER, VOID
from dnnsep.codegen.shared import (
    CPU,
    WALL,
    WATCHED,
    Cores,
    Entry,
    Job,
    Queue,
    QueuedPart,
    SharedCode,
)
from dnnsep.codegen.task import load_field

# How long a thread looks for work before it sleeps, in cycles of the clock counter: about as long
# as Linux takes to wake it.
_SPIN = 100_000

# A chain, or a call, is long if it took so many cycles. A thread whose long chain had no CPU for so
# many nanoseconds, and for more than one part in so many of its time, shares its CPU with another
# process, and leaves the call. Half of what Linux gives a process at a time is the least that is
# lost to one; what Linux itself does now and then takes microseconds.
LONG = 1_000_000
LOST, SHARE = 1_500_000, 3


def emit_wait(shared: SharedCode) -> ir.Function:
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
    shared.sleep(word, seen)
    shared.add(sleepers, I32(-1))
    b.branch(leave)
    b.position_at_end(leave)
    return code.end()


def emit_wake(shared: SharedCode) -> ir.Function:
    """Emits ``wake(word, sleepers)``, after a change of the word."""
    code = shared.begin("wake", [POINTER, POINTER])
    b, (word, sleepers) = code.builder, code.arguments
    asleep = b.icmp_signed(">", shared.load(sleepers, I32), I32(0))
    code.when(asleep, lambda: shared.wake(word))
    return code.end()


def _emit_advance(shared: SharedCode, wake: ir.Function) -> ir.Function:
    """Emits ``advance(job, phase)``: opens a phase, or ends the call after the last one."""
    code = shared.begin("advance", [POINTER, I64])
    b, (job, phase) = code.builder, code.arguments
    queues = load_field(code, Job, job, "queues", I64)
    last = b.icmp_signed("==", phase, load_field(code, Job, job, "phases", I64))
    turn, sleepers = (shared.place(job, Job, name) for name in ("turn", "sleepers"))
    with b.if_else(last) as (end, more):
        with end:
            shared.store(I32(1), shared.place(job, Job, "finished"))
        with more:
            limits = load_field(code, Job, job, "limits")
            row = code.at(limits, b.mul(phase, queues), I64)

            def one(queue: ir.Value) -> None:
                # Once the first queue is open others may end the phase and open the next one before
                # this thread comes to the second queue, whose limit must not go back then.
                limit = code.load(code.at(row, queue, I64), I64)
                shared.raise_to(limit, shared.place(shared.queue(job, queue), Queue, "limit"))

            code.for_each(I64(0), queues, one)
    shared.add(turn, I32(1))
    b.call(wake, [turn, sleepers])
    return code.end()


def emit_note(shared: SharedCode) -> ir.Function:
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

    code.when(b.icmp_signed("<", thread, I64(WATCHED)), ask)
    return code.end()


def emit_work(shared: SharedCode, wait: ir.Function, wake: ir.Function) -> ir.Function:
    """Emits ``work(job, thread, aside)``: chains, as long as there are any, until the call
    ends, or until a thread other than the caller, which is number 0, has lost so much time to other
    processes that it is ``aside``. Its clocks are read where the chain before was a long one."""
    advance = _emit_advance(shared, wake)
    code = shared.begin("work", [POINTER, I64, POINTER])
    b, (job, thread, aside) = code.builder, code.arguments
    top, each, look, claim, do, link, end, following, idle, leave = (
        code.function.append_basic_block() for _ in range(10)
    )
    start, is_timed, wall, cpu = (code.stack(8) for _ in range(4))
    b.store(I64(0), aside)
    b.store(I64(0), is_timed)
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
    parts = code.load(code.at(load_field(code, Job, job, "parts"), number, POINTER), POINTER)
    queued = code.at(parts, b.mul(index, I64(ctypes.sizeof(QueuedPart))), BYTE)
    phase, expected = (
        load_field(code, QueuedPart, queued, name, I64) for name in ("phase", "done")
    )
    scratch, size = (
        load_field(code, Job, job, "scratch"),
        load_field(code, Job, job, "thread_bytes", I64),
    )
    own = code.at(scratch, b.mul(thread, size), BYTE)
    b.store(shared.clock(), start)
    clocks = ((wall, WALL), (cpu, CPU))

    def note_clocks() -> None:
        for place, clock in clocks:
            b.store(shared.time(clock), place)

    timed = b.icmp_signed("!=", code.load(is_timed, I64), I64(0))
    code.when(timed, note_clocks)
    begun = b.block
    b.branch(link)

    b.position_at_end(link)
    now = b.phi(POINTER)
    now.add_incoming(queued, begun)
    entry = load_field(code, QueuedPart, now, "entry")
    function, task = (load_field(code, Entry, entry, name) for name in ("function", "task"))
    part = load_field(code, QueuedPart, now, "part", I64)
    code.call_address(function, [task, part, own], VOID)
    follows = load_field(code, QueuedPart, now, "follows")
    now.add_incoming(follows, link)
    is_last = b.icmp_unsigned("==", b.ptrtoint(follows, I64), I64(0))
    b.cbranch(is_last, end, link)

    b.position_at_end(end)
    done = b.add(shared.add(shared.place(job, Job, "done"), I64(1)), I64(1))
    opens = b.icmp_signed("==", done, expected)
    code.when(opens, lambda: b.call(advance, [job, b.add(phase, I64(1))]))
    long = b.icmp_signed(">", b.sub(shared.clock(), code.load(start, I64)), I64(LONG))
    long = b.and_(long, b.icmp_signed("!=", thread, I64(0)))

    def judge() -> None:
        passed, had = (b.sub(shared.time(clock), code.load(at, I64)) for at, clock in clocks)
        lost = b.sub(passed, had)
        much = b.icmp_signed(">", lost, I64(LOST))
        much = b.and_(much, b.icmp_signed(">", b.mul(lost, I64(SHARE)), passed))
        b.store(b.zext(much, I64), aside)

    code.when(b.and_(long, timed), judge)
    b.store(b.zext(long, I64), is_timed)
    b.cbranch(b.icmp_signed("!=", code.load(aside, I64), I64(0)), leave, top)

    b.position_at_end(following)
    offset.add_incoming(b.add(offset, I64(1)), following)
    b.branch(each)

    b.position_at_end(idle)
    b.call(wait, [turn, seen, sleepers])
    b.branch(top)

    b.position_at_end(leave)
    return code.end()
