"""Turns a canonical graph into a network: layers into kernels of the generator, other nodes into
other kernels or calls of torch's operators, views into nothing.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from dnnsep.backends import Backend, get_backend
from dnnsep.codegen.extras import Extras
from dnnsep.codegen.lang.isa import this_isa
from dnnsep.codegen.layerstep import LayerStep, chosen_step
from dnnsep.codegen.pack import Packing
from dnnsep.codegen.rowwise.special import Rowwise
from dnnsep.codegen.rowwise.step import RowwiseStep
from dnnsep.codegen.windows.pool import Pool, PoolStep
from dnnsep.graph import layout
from dnnsep.graph.constants import constants as constant_nodes
from dnnsep.graph.groups import LayerGroup, LayerMatcher, dtype_of, shape_of
from dnnsep.graph.keys import constant_keys
from dnnsep.graph.network import Action, Buffer, Call, Native, Network, Value
from dnnsep.graph.pooling import pooling_of
from dnnsep.graph.predict import by_torch, copied, is_view, predict, predicted, view_of
from dnnsep.graph.rows import RowGroup, expression_of, row_groups
from dnnsep.graph.slots import Slot, parts_of, slots
from dnnsep.nn.layer import DTYPES, array
from dnnsep.problem import Problem
from dnnsep.weights import Weights

aten = torch.ops.aten

Group = LayerGroup | RowGroup

Packings = dict[Any, NDArray[np.uint8]]


@dataclass
class Settings:
    """How a graph is lowered: for so many threads; whether plans may be measured; packed weights
    that are there already; and of a node why it has to stay with torch, empty if it has not.

    With a backend other than "auto" and "fused" separable layers run on that one, and all else by
    torch.
    """

    threads: int
    backend: str = "fused"
    tune: bool = True
    packings: Packings = field(default_factory=dict)
    why_not: Callable[[fx.Node], str] = lambda node: ""


@dataclass
class Lowered:
    """A network, the layers in it with their steps, why other convolutions and linear layers are
    not in it, and the nodes that kernels compute, kernel by kernel."""

    network: Network
    layers: list[tuple[LayerGroup, list[LayerStep]]]
    left: dict[fx.Node, str]
    groups: list[Group]


def lower(
    graph: fx.Graph,
    inputs: Sequence[Tensor],
    constants: Mapping[fx.Node, Tensor],
    settings: Settings,
) -> Lowered:
    """Returns the network of a canonical graph for inputs that lie in memory as these do.

    ``constants`` has the tensors of the nodes that depend on parameters only and that others read.
    """
    return _Lowering(graph, inputs, constants, settings).lowered()


class _Lowering:
    def __init__(
        self,
        graph: fx.Graph,
        inputs: Sequence[Tensor],
        constants: Mapping[fx.Node, Tensor],
        settings: Settings,
    ) -> None:
        self._graph, self._constants, self._settings = graph, constants, settings
        inner = constant_nodes(graph)
        self._nodes = [node for node in graph.nodes if node not in inner]
        self._values: dict[fx.Node, Any] = {}
        self._actions: list[Action] = []
        self._layers: list[tuple[LayerGroup, list[LayerStep]]] = []
        self._groups: list[Group] = []
        known = dict(constants)
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        for index, (node, x) in enumerate(zip(placeholders, inputs, strict=True)):
            known[node] = x
            self._values[node] = Value(Buffer("input", index), _like(x))
        for node, tensor in constants.items():
            self._values[node] = Value(Buffer("constant", tensor=tensor), _like(tensor))
        predict(self._nodes, known)
        self._keys = constant_keys(graph, inner)
        fused = settings.backend in ("auto", "fused")
        self._engine = None if fused else get_backend(settings.backend)
        self._matcher = LayerMatcher(self._nodes, constants, settings.why_not, self._engine)
        groups = self._matcher.groups()
        taken = {node for group in groups for node in group.nodes}
        rows = row_groups(self._nodes, constants, taken) if fused else []
        rows = [g for g in rows if not any(settings.why_not(node) for node in g.nodes)]
        self._group_of: dict[fx.Node, Group] = {
            node: group for group in (*groups, *rows) for node in group.nodes
        }
        self._slots = slots(self._nodes, constants)

    def lowered(self) -> Lowered:
        outputs: Sequence[Any] = ()
        for node in self._nodes:
            if node.op == "output":
                outputs = fx.map_arg(node.args[0], self._values.__getitem__)
            elif node.op == "call_function":
                self._node(node)
        network = Network(self._actions, list(outputs))
        return Lowered(network, self._layers, self._matcher.left, self._groups)

    def _node(self, node: fx.Node) -> None:
        group = self._group_of.get(node)
        if group is not None:
            if node is group.result:
                self._layer(group) if isinstance(group, LayerGroup) else self._rows(group)
                self._groups.append(group)
        elif is_view(node) and isinstance(self._values[node.args[0]], Value):
            self._view(node)
        elif node.target is aten.cat.default:
            self._concatenation(node)
        elif self._engine is not None or not (self._mean(node) or self._pool(node)):
            self._by_torch(node)

    # Layers.

    def _layer(self, group: LayerGroup) -> None:
        channel_dim = -1 if group.problem.kind == "linear" else 1
        x = self._as_rows(group.x, channel_dim)
        if self._engine is not None:
            self._on_engine(group, self._engine, x)
            return
        base = predicted(group.anchors[-1])
        y = self._result(group.result, base, group.views)
        operands = {"x": x, "y": y}
        if group.residual is not None:
            operands["residual"] = self._residual(group)
        if group.scale is not None:
            operands["scale"] = self._as_rows(group.scale, 1)
        steps = self._steps(group, operands)
        self._layers.append((group, steps))
        seen = y.like
        for view in group.views:
            after = view_of(view, seen)
            assert after is not None, view
            seen = after
        self._values[group.result] = y.seen(seen)

    def _on_engine(self, group: LayerGroup, engine: Backend, x: Value) -> None:
        """Adds a call of another backend's executor."""
        executor = engine.prepare(group.problem, self._weights(group, 0))
        rows = layout.rows_of(x.like, 1)
        if rows is None or not rows.dense:
            like = layout.images(x.like.shape, x.like.dtype)
            x = self._copied(x, Value(Buffer("arena"), like))
        y = Value(Buffer("torch"), layout.images(shape_of(group.result), x.like.dtype))
        name = " ".join((executor.backend, *executor.impls))
        self._actions.append(Call(name, executor.run, (x,), {}, [y]))
        self._layers.append((group, []))
        self._values[group.result] = y

    def _residual(self, group: LayerGroup) -> Value:
        assert group.residual is not None
        minor = layout.minor_dim(predicted(group.residual))
        return self._as_rows(group.residual, minor)

    def _steps(self, group: LayerGroup, operands: Mapping[str, Value]) -> list[LayerStep]:
        """Adds the steps of a layer: one, or of a grouped convolution one for each group."""
        problem, steps = group.problem, []
        minor = {name: layout.minor_dim(value.like) for name, value in operands.items()}
        if problem.kind == "linear":
            minor |= {"x": -1, "y": -1}
        else:
            minor |= {"x": 1, "y": 1}
        if group.residual is not None:
            minor["residual"] = layout.minor_dim(predicted(group.residual))
        rows = {name: layout.rows_of(v.like, minor[name]) for name, v in operands.items()}
        pitches = {
            f"{name}_pitch": 0 if row.pitch == channels else row.pitch
            for name, channels in (
                ("x", problem.in_channels),
                ("y", problem.out_channels),
                ("residual", problem.out_channels),
            )
            if (row := rows.get(name)) is not None
        }
        extras = Extras(
            residual="residual" in operands,
            scale="scale" in operands,
            after=group.after,
            **pitches,
        )
        for number in range(group.groups):
            step = chosen_step(
                problem,
                self._packed(group, number),
                self._settings.threads,
                extras,
                self._settings.tune,
            )
            moved = {
                name: self._group_part(value, minor[name], number, group)
                for name, value in operands.items()
            }
            waits = number == group.groups - 1
            self._actions.append(Native(_name(group), step, moved, waits))
            steps.append(step)
        return steps

    def _group_part(self, value: Value, dim: int, number: int, group: LayerGroup) -> Value:
        """Returns the channels of one of a grouped convolution's groups."""
        if group.groups == 1:
            return value
        channels = value.like.shape[dim] // group.groups
        return value.seen(value.like.narrow(dim, number * channels, channels))

    def _packed(self, group: LayerGroup, number: int) -> Callable[[Packing], NDArray[np.uint8]]:
        names = [self._keys[n] for f in group.filters for n in (f.weight, f.bias) if n is not None]
        packings = self._settings.packings

        def packed(packing: Packing) -> NDArray[np.uint8]:
            key = (tuple(names), number, packing)
            if key not in packings:
                packings[key] = packing.pack(self._weights(group, number))
            return packings[key]

        return packed

    def _weights(self, group: LayerGroup, number: int) -> Weights:
        def part(node: fx.Node | None) -> Any:
            if node is None:
                return None
            values = array(self._constants[node])
            each = len(values) // group.groups
            return values[number * each : (number + 1) * each]

        problem = group.problem
        arrays = [(part(f.weight), part(f.bias)) for f in group.filters]
        if problem.kind == "separable":
            (depthwise, its_bias), (pointwise, bias) = arrays
            if problem.bias:
                its_bias = (
                    np.zeros(problem.mid_channels, np.float32) if its_bias is None else its_bias
                )
                bias = np.zeros(problem.out_channels, np.float32) if bias is None else bias
            return Weights(depthwise, its_bias, pointwise, bias)
        ((weight, bias),) = arrays
        if problem.kind == "depthwise":
            return Weights(weight, bias)
        if problem.kind == "linear":
            weight = weight[:, :, None, None]
        return Weights(pointwise=weight, pointwise_bias=bias)

    # Row-wise kernels and means over pixels.

    def _rows(self, group: RowGroup) -> None:
        dtype = DTYPES[dtype_of(group.result)]
        dim = group.channel_dim
        y = self._result(group.result, predicted(group.result))
        operands = {
            f"x{number}": self._operand(node, group) for number, node in enumerate(group.inputs)
        }
        rows = layout.rows_of(y.like, dim)
        assert rows is not None
        pitches = [layout.rows_of(value.like, dim) for value in operands.values()]
        step = RowwiseStep(
            Rowwise(expression_of(group), rows.channels, dtype, this_isa()),
            images=group.images,
            pixels=rows.pixels // group.images,
            pitches=tuple(rows.channels if of is None else of.pitch for of in pitches),
            y_pitch=rows.pitch,
            threads=self._settings.threads,
        )
        self._actions.append(Native("row-wise", step, operands | {"y": y}))
        self._values[group.result] = y

    def _operand(self, node: fx.Node, group: RowGroup) -> Value:
        """Returns an operand of a row-wise kernel as it reads it."""
        kind, dim, whole = group.kinds[node][0], group.channel_dim, group.whole
        if kind == "channels" and node in self._constants and prod(shape_of(node)) == 1:
            return _constant(self._constants[node].reshape(1).expand(whole[dim]).contiguous())
        if kind == "pixels":
            if shape_of(node) != whole and node in self._constants:
                spread = self._constants[node].expand(whole).movedim(dim, -1).contiguous()
                return _constant(spread.movedim(-1, dim))
            return self._as_rows(node, dim)
        value = self._as_rows(node, dim)
        rows = layout.rows_of(value.like, dim)
        assert rows is not None
        if rows.dense or rows.pixels == 1:
            return value
        like = layout.dense(value.like.shape, dim, value.like.dtype)
        return self._copied(value, Value(Buffer("arena"), like))

    def _mean(self, node: fx.Node) -> bool:
        """Adds the mean over all pixels of images, if a node is that and there is a kernel."""
        if node.target is not aten.mean.dim or node.kwargs or dtype_of(node) not in DTYPES:
            return False
        source, over = node.args[:2]
        keeps = len(node.args) > 2 and bool(node.args[2])
        shape = shape_of(source)
        taken = sorted(dim % len(shape) for dim in over)  # type: ignore[union-attr]
        left = [dim for dim in range(len(shape)) if dim not in taken]
        if len(left) != 2 or left[0] != 0 or not keeps or source in self._constants:
            return False
        x = self._as_rows(source, left[1])  # type: ignore[arg-type]
        rows = layout.rows_of(x.like, left[1])
        assert rows is not None
        pixels = rows.pixels // shape[0]
        problem = Problem.mean(shape[0], rows.channels, pixels, 1, DTYPES[dtype_of(node)])
        extras = Extras(x_pitch=0 if rows.dense else rows.pitch)
        threads, tune = self._settings.threads, self._settings.tune
        step = chosen_step(problem, lambda by: by.pack(Weights()), threads, extras, tune)
        y = Value(Buffer("arena"), layout.dense(shape_of(node), left[1], dtype_of(node)))
        self._actions.append(Native("mean", step, {"x": x, "y": y}))
        self._values[node] = y
        return True

    def _pool(self, node: fx.Node) -> bool:
        """Adds a max or average pooling, if a node is one and there is a kernel."""
        pooling = pooling_of(node)
        if pooling is None or dtype_of(node) not in DTYPES:
            return False
        x = self._as_rows(pooling.x, 1)
        y = self._result(node, predicted(node))
        batch, channels, height, width = shape_of(pooling.x)
        rows, out_rows = layout.rows_of(x.like, 1), layout.rows_of(y.like, 1)
        assert rows is not None
        assert out_rows is not None
        special = Pool(
            pooling.kind,
            pooling.kernel,
            pooling.stride,
            pooling.padding,
            pooling.dilation,
            pooling.counts_padding,
            channels,
            DTYPES[dtype_of(node)],
            this_isa(),
        )
        _, _, *out_size = shape_of(node)
        step = PoolStep(
            special,
            batch,
            (height, width),
            (out_size[0], out_size[1]),
            rows.pitch,
            out_rows.pitch,
            self._settings.threads,
        )
        self._actions.append(Native("pool", step, {"x": x, "y": y}))
        self._values[node] = y
        return True

    # Places.

    def _result(self, node: fx.Node, base: Tensor, views: Sequence[fx.Node] = ()) -> Value:
        """Returns where a kernel writes the value of a node, which lies like ``base`` before some
        views: in its slot of a concatenation, if rows can be written there."""
        if not views and node in self._slots:
            value = self._slot(node)
            if layout.rows_of(value.like, layout.minor_dim(base)) is not None:
                return value
        return Value(Buffer("arena"), base)

    def _slot(self, node: fx.Node) -> Value:
        """Returns the place of a value in the concatenation that it has a slot in."""
        slot: Slot = self._slots[node]
        whole = self._whole(slot.whole)
        length = shape_of(node)[slot.dim]
        return whole.seen(whole.like.narrow(slot.dim, slot.start, length))

    def _whole(self, node: fx.Node) -> Value:
        """Returns the place of a concatenation."""
        if node not in self._values:
            inside = node in self._slots
            value = self._slot(node) if inside else Value(Buffer("arena"), predicted(node))
            self._values[node] = value
        found: Value = self._values[node]
        return found

    def _as_rows(self, node: fx.Node, channel_dim: int) -> Value:
        """Returns a value as rows of channels, copied if it does not lie so."""
        value: Value = self._values[node]
        if layout.rows_of(value.like, channel_dim) is not None:
            return value
        like = layout.dense(value.like.shape, channel_dim % value.like.dim(), value.like.dtype)
        return self._copied(value, Value(Buffer("arena"), like))

    def _copied(self, source: Value, target: Value) -> Value:
        """Adds a copy of a value to another place."""
        copy = Call("copy", aten.copy_.default, (target, source), {}, [None])
        self._actions.append(copy)
        return target

    # Views and concatenations.

    def _view(self, node: fx.Node) -> None:
        value: Value = self._values[node.args[0]]
        like = view_of(node, value.like)
        if like is None:
            value, like = self._copied_for(node, value)
        self._values[node] = value.seen(like)

    def _copied_for(self, node: fx.Node, value: Value) -> tuple[Value, Tensor]:
        """Returns a copy of a value that lies so that a reshape of it is a view, and that view."""
        after = copied(node, value.like)
        for like in (after, layout.dense(after.shape, -1, after.dtype)):
            try:
                before = like.view(value.like.shape)
            except RuntimeError:
                continue
            copy = self._copied(value, Value(Buffer("arena"), before))
            return copy, like
        raise AssertionError(node.format_node())

    def _concatenation(self, node: fx.Node) -> None:
        parts, dim = parts_of(node)
        whole = self._whole(node)
        start = 0
        for part in parts:
            length = shape_of(part)[dim]
            place = whole.seen(whole.like.narrow(dim, start, length))
            value: Value = self._values[part]
            start += length
            if value.buffer is not place.buffer or not _same(value.like, place.like):
                copy = self._copied(value, place)
                if part in self._slots and self._slots[part].whole in (node, self._outer(node)):
                    self._values[part] = copy  # for the concatenations around this one

    def _outer(self, node: fx.Node) -> fx.Node | None:
        """Returns the concatenation that another one is a part of."""
        return self._slots[node].whole if node in self._slots else None

    # Torch.

    def _by_torch(self, node: fx.Node) -> None:
        """Adds a call of a node's own operator; what only views its arguments needs none."""
        if node.target is operator.getitem:
            source, index = node.args
            self._values[node] = self._values[source][index]  # type: ignore[index]
            return
        likes = by_torch(node, lambda n: pytree.tree_map(_like_of, self._values[n]))
        arguments, named = fx.map_arg((node.args, node.kwargs), self._values.__getitem__)
        sources = [
            leaf for leaf in pytree.tree_leaves((arguments, named)) if isinstance(leaf, Value)
        ]
        flat, spec = pytree.tree_flatten(likes)
        values = [_alias(like, sources) for like in flat]
        if not flat or any(value is None for value in values):
            values = [
                Value(Buffer("torch"), _detached(like)) if isinstance(like, Tensor) else None
                for like in flat
            ]
            name = getattr(node.target, "__name__", f"{node.target}").removesuffix(".default")
            self._actions.append(Call(name, node.target, arguments, named, values))  # type: ignore[arg-type]
        self._values[node] = pytree.tree_unflatten(values, spec)


def _constant(tensor: Tensor) -> Value:
    return Value(Buffer("constant", tensor=tensor), _like(tensor))


def _alias(like: Any, sources: Sequence[Value]) -> Value | None:
    """Returns the value that a result is, if it shares the memory of an argument."""
    if not isinstance(like, Tensor):
        return None
    for source in sources:
        if layout.is_alias(like, source.like):
            return source.seen(like)
    return None


def _same(one: Tensor, other: Tensor) -> bool:
    return (one.stride(), one.storage_offset()) == (other.stride(), other.storage_offset())


def _like(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def _detached(like: Tensor) -> Tensor:
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="meta")


def _like_of(value: Any) -> Any:
    return value.like if isinstance(value, Value) else value


def _name(group: LayerGroup) -> str:
    return str(group.anchors[0].meta.get("layer") or group.anchors[0].name)
