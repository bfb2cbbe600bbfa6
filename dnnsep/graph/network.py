"""A whole network as it runs: generated kernels, calls of torch's operators, and the memory between
them.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dnnsep.codegen.arena import Lifetime, offsets
from dnnsep.codegen.phases import Used, last_uses, phases
from dnnsep.codegen.program import Frame, Place, Placed, Program
from dnnsep.codegen.step import Step
from dnnsep.graph import layout
from dnnsep.host.pages import ask_for_large_pages

_ALIGN = 64
_ARENA = 0


@dataclass(eq=False)
class Buffer:
    """Memory that values lie in.

    ``kind`` says whose it is: "arena" the network's own, taken again when nothing in it is needed;
    "input" the ``index``-th argument's; "constant" a tensor's; "fresh" a result's, made by each
    call; "torch" what an operator of torch returned. ``bytes`` is as far as values in it reach, and
    ``first`` and ``last`` are the numbers of the actions that use it first and last.
    """

    kind: str
    index: int = 0
    tensor: Tensor | None = None
    bytes: int = 0
    first: int = 1 << 60
    last: int = -1


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor: where its elements lie in a buffer is said by a tensor on the meta device."""

    buffer: Buffer
    like: Tensor

    def seen(self, like: Tensor) -> Value:
        """Returns another view of the same memory."""
        return Value(self.buffer, like)


@dataclass(eq=False)
class Native:
    """A generated kernel on values, by the fields of its task."""

    name: str
    step: Step
    operands: dict[str, Value]
    waits: bool = True


@dataclass(eq=False)
class Call:
    """A call of one of torch's operators: its arguments are trees with Values in them, its results
    Values in buffers of the kind "torch", or None for what is no tensor."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    results: list[Value | None] = field(default_factory=list)


Action = Native | Call


class Network:
    """Actions in order, from inputs to outputs. May be called from several threads at once."""

    def __init__(
        self, actions: Sequence[Action], outputs: Sequence[Any], cuts: Collection[int] = ()
    ) -> None:
        """``outputs`` are Values, and what is no tensor as it is. Those actions whose numbers are
        ``cuts`` begin when all before them have ended, so that what is between can be timed."""
        self.actions = tuple(actions)
        self.outputs = tuple(outputs)
        places, self._arena_bytes = self._plan()
        self._numbers: dict[Buffer, int] = {}
        self.parts: list[Program | Call] = []
        for group in _runs(actions, cuts):
            if isinstance(group, Call):
                self.parts.append(group)
                continue
            placed = [
                Placed(
                    native.step,
                    {name: self._place(value, places) for name, value in native.operands.items()},
                    native.waits,
                )
                for native in group
            ]
            self.parts.append(Program(placed))
        self._places = places
        self._fresh = _fresh(self.outputs)
        self._idle: list[_Frame] = []

    def run(self, inputs: Sequence[Tensor]) -> list[Any]:
        """Returns the outputs for inputs that lie in memory as they did when this was made."""
        try:
            frame = self._idle.pop()
        except IndexError:
            frame = _Frame(self)
        results = frame.run(inputs)
        self._idle.append(frame)
        return results

    def time_of_calls(self, inputs: Sequence[Tensor]) -> tuple[dict[str, float], float]:
        """Returns the seconds that torch's operators took in one call, by name, and those of all of
        it."""
        frame = _Frame(self)
        frame.run(inputs)
        spent: list[float] = []
        start = perf_counter()
        frame.run(inputs, spent)
        total = perf_counter() - start
        seconds: dict[str, float] = {}
        for part, of_part in zip(self.parts, spent, strict=True):
            if isinstance(part, Call):
                seconds[part.name] = seconds.get(part.name, 0.0) + of_part
        return seconds, total

    def timer(self, inputs: Sequence[Tensor], cuts: Collection[int]) -> Callable[[], list[float]]:
        """Returns what runs the network on inputs, with ``cuts`` as of a network, and returns
        seconds by action: what runs without a cut counts for its first action."""
        network = Network(self.actions, self.outputs, cuts)
        frame = _Frame(network)
        frame.run(inputs)

        def timed() -> list[float]:
            spent: list[float] = []
            frame.run(inputs, spent)
            seconds = [0.0] * len(self.actions)
            first = 0
            for part, of_part in zip(network.parts, spent, strict=True):
                seconds[first] = of_part
                first += len(part.steps) if isinstance(part, Program) else 1
            return seconds

        return timed

    def times_of_actions(self, inputs: Sequence[Tensor], calls: int) -> list[float]:
        """Returns the seconds that each action takes, all threads waiting for its end: the median
        of so many calls of all of them in order."""
        timed = self.timer(inputs, range(len(self.actions)))
        return [median(column) for column in zip(*(timed() for _ in range(calls)), strict=True)]

    def _plan(self) -> tuple[dict[Buffer, int], int]:
        """Returns where in the arena each of its buffers starts, and the bytes of all of it."""
        for action in self.actions:
            for value in values_of(action):  # other networks may have the same actions
                value.buffer.first, value.buffer.last = Buffer.first, Buffer.last
        for output in self.outputs:
            if isinstance(output, Value) and output.buffer.kind == "arena":
                output.buffer.kind = "fresh"
        for number, action in enumerate(self.actions):
            for value in values_of(action):
                buffer = value.buffer
                buffer.bytes = max(buffer.bytes, layout.extent_bytes(value.like))
                buffer.first, buffer.last = min(buffer.first, number), max(buffer.last, number)
        for output in self.outputs:
            if isinstance(output, Value):
                reach = layout.extent_bytes(output.like)
                output.buffer.bytes = max(output.buffer.bytes, reach)
        self._keep_within_phases()
        used = {value.buffer: None for action in self.actions for value in values_of(action)}
        own = sorted((b for b in used if b.kind == "arena"), key=lambda buffer: buffer.first)
        starts, size = offsets([Lifetime(b.bytes, b.first, b.last) for b in own])
        return dict(zip(own, starts, strict=True)), size

    def _keep_within_phases(self) -> None:
        """Has what kernels use kept until the last one is done that may run beside them."""
        number = 0
        for group in _runs(self.actions):
            if isinstance(group, Call):
                number += 1
                continue
            used = [_used(native) for native in group]
            for buffer, last in last_uses(used, phases(used)).items():
                assert isinstance(buffer, Buffer)
                buffer.last = max(buffer.last, number + last)
            number += len(group)

    def _place(self, value: Value, places: dict[Buffer, int]) -> Place:
        offset = layout.offset_of(value.like) * value.like.element_size()
        if value.buffer.kind == "arena":
            return Place(_ARENA, places[value.buffer] + offset)
        return Place(self.number(value.buffer), offset)

    def number(self, buffer: Buffer) -> int:
        """Returns the number that programs know a buffer by that is not in the arena."""
        return self._numbers.setdefault(buffer, len(self._numbers) + 1)


class _Frame:
    """The memory of a network, and its programs' tasks, for one call at a time."""

    @torch.inference_mode(False)  # else only inference mode might write into the memory later
    def __init__(self, network: Network) -> None:
        self._network = network
        programs = [part for part in network.parts if isinstance(part, Program)]
        scratch = max((program.scratch_bytes for program in programs), default=0)
        arena = -(-network._arena_bytes // _ALIGN) * _ALIGN
        self._memory = new_memory(arena + scratch + 2 * _ALIGN)
        first = -self._memory.data_ptr() % _ALIGN
        start = self._memory.data_ptr() + first
        self._arena = self._memory[first : first + arena]
        self._tensors: dict[Buffer, Tensor] = {}
        self._programs: dict[int, list[Frame]] = {}
        self._steps: list[Callable[[], None]] = []
        for part in network.parts:
            if isinstance(part, Program):
                frame = Frame(part, start + arena)
                frame.bind(_ARENA, start)
                for number in {place.buffer for s in part.steps for place in s.operands.values()}:
                    self._programs.setdefault(number, []).append(frame)
                self._steps.append(frame.run)
            else:
                self._steps.append(self._call(part))
        for buffer, number in network._numbers.items():
            if buffer.tensor is not None:
                self._bind(number, buffer.tensor)
        self._inputs = [
            (buffer.index, buffer, network._numbers.get(buffer))
            for buffer in _buffers(network, "input")
        ]

    def run(self, inputs: Sequence[Tensor], seconds: list[float] | None = None) -> list[Any]:
        """Runs on inputs; to ``seconds``, where it is given, adds what each part takes."""
        tensors = self._tensors
        for index, buffer, number in self._inputs:
            tensors[buffer] = inputs[index]
            if number is not None:
                self._bind(number, inputs[index])
        for buffer, make in self._network._fresh:
            tensors[buffer] = made = make()
            number = self._network._numbers.get(buffer)
            if number is not None:
                self._bind(number, made)
        for step in self._steps:
            if seconds is None:
                step()
            else:
                start = perf_counter()
                step()
                seconds.append(perf_counter() - start)
        results = [self._tensor(v) if isinstance(v, Value) else v for v in self._network.outputs]
        tensors.clear()
        return results

    def _bind(self, number: int, tensor: Tensor) -> None:
        for frame in self._programs.get(number, ()):
            frame.bind(number, tensor.data_ptr())

    def _call(self, call: Call) -> Callable[[], None]:
        """Returns what calls an operator, with as much as possible looked up beforehand."""
        leaves, spec = pytree.tree_flatten((call.arguments, call.named))
        getters = [self._getter(leaf) for leaf in leaves]
        function, tensors = call.function, self._tensors
        results = [
            (value.buffer, self._network._numbers.get(value.buffer), value.like) if value else None
            for value in call.results
        ]
        fixed: tuple[Any, dict[str, Any]] | None = None
        if all(getter is None for getter in getters):
            static = [self._static(leaf) for leaf in leaves]
            fixed = pytree.tree_unflatten(static, spec)
        else:
            statics = [
                self._static(leaf) if g is None else None
                for leaf, g in zip(leaves, getters, strict=True)
            ]

        def keep(found: Any) -> None:
            flat = [found] if isinstance(found, Tensor) else pytree.tree_leaves(found)
            for tensor, result in zip(flat, results, strict=True):
                if result is not None:
                    buffer, number, like = result
                    if tensor.stride() != like.stride():  # another kernel of torch's was chosen
                        tensor = _maker(like.shape, like.stride(), like.dtype)().copy_(tensor)
                    tensors[buffer] = tensor
                    if number is not None:
                        self._bind(number, tensor)

        def run_fixed() -> None:
            assert fixed is not None
            keep(function(*fixed[0], **fixed[1]))

        def run() -> None:
            now = [s if g is None else g() for g, s in zip(getters, statics, strict=True)]
            arguments, named = pytree.tree_unflatten(now, spec)
            keep(function(*arguments, **named))

        return run_fixed if fixed is not None else run

    def _static(self, leaf: Any) -> Any:
        return self._tensor(leaf) if isinstance(leaf, Value) else leaf

    def _getter(self, leaf: Any) -> Callable[[], Tensor] | None:
        """Returns what gives a tensor that is another one in each call; None for the others."""
        if not isinstance(leaf, Value) or leaf.buffer.kind in ("arena", "constant"):
            return None
        return lambda: self._tensor(leaf)

    def _tensor(self, value: Value) -> Tensor:
        """Returns a value as a tensor."""
        like, buffer = value.like, value.buffer
        if buffer.kind == "arena":
            place = self._network._places[buffer]
            flat = self._arena[place : place + buffer.bytes].view(like.dtype)
            return flat.as_strided(
                like.shape, like.stride(), flat.storage_offset() + like.storage_offset()
            )
        base = buffer.tensor if buffer.tensor is not None else self._tensors[buffer]
        if base.shape == like.shape and base.stride() == like.stride():
            return base
        offset = base.storage_offset() + like.storage_offset()
        return base.as_strided(like.shape, like.stride(), offset)


def new_memory(size: int) -> Tensor:
    """Returns so many bytes, which nobody has written to, in large pages if there are some."""
    memory = torch.empty(size, dtype=torch.uint8)
    ask_for_large_pages(memory.data_ptr(), size)
    return memory


def _runs(actions: Sequence[Action], cuts: Collection[int] = ()) -> Iterator[list[Native] | Call]:
    """Yields the actions, generated kernels that follow each other together but for those at
    ``cuts``."""
    run: list[Native] = []
    for number, action in enumerate(actions):
        if run and (isinstance(action, Call) or number in cuts):
            yield run
            run = []
        if isinstance(action, Call):
            yield action
        else:
            run.append(action)
    if run:
        yield run


def _used(native: Native) -> Used:
    places = {
        name: (value.buffer, layout.offset_of(value.like) * value.like.element_size())
        for name, value in native.operands.items()
    }
    return Used(native.step, places, native.waits)


def values_of(action: Action) -> list[Value]:
    """Returns the values that an action reads and writes."""
    if isinstance(action, Native):
        return list(action.operands.values())
    leaves = [*pytree.tree_leaves((action.arguments, action.named)), *action.results]
    return [leaf for leaf in leaves if isinstance(leaf, Value)]


def _buffers(network: Network, kind: str) -> list[Buffer]:
    """Returns the buffers of a kind that actions or outputs use."""
    values = [value for action in network.actions for value in values_of(action)]
    values += [value for value in network.outputs if isinstance(value, Value)]
    return list({v.buffer: None for v in values if v.buffer.kind == kind})


def _fresh(outputs: Sequence[Any]) -> list[tuple[Buffer, Callable[[], Tensor]]]:
    """Returns the buffers that each call makes, and what makes them."""
    made: dict[Buffer, Callable[[], Tensor]] = {}
    for value in outputs:
        if not isinstance(value, Value) or value.buffer.kind != "fresh" or value.buffer in made:
            continue
        like = value.like
        whole = like.numel() * like.element_size() == value.buffer.bytes
        made[value.buffer] = (
            _maker(like.shape, like.stride(), like.dtype)
            if whole and not like.storage_offset()
            else _maker((-(-value.buffer.bytes // like.element_size()),), (1,), like.dtype)
        )
    return list(made.items())


def _maker(size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Callable[[], Tensor]:
    return lambda: torch.empty_strided(tuple(size), tuple(stride), dtype=dtype)
