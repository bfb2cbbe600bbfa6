"""Which nodes of a graph are attention of heads, and its kernel.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import torch
from torch import Tensor, fx

from dnnsep.codegen.heads.special import MOST_BIASES, Heads
from dnnsep.codegen.heads.step import HeadsStep
from dnnsep.codegen.heads.task import Strides
from dnnsep.codegen.lang.isa import this_isa
from dnnsep.graph.build import Builder, constant_value
from dnnsep.graph.network import Buffer, Native, Value
from dnnsep.graph.rewrite import arguments, dtype_of, only_user, shape_of
from dnnsep.nn.layer import DTYPES

aten = torch.ops.aten


@dataclass(eq=False)
class AttentionGroup:
    """Nodes that compute softmax(q @ kt * scale + biases) @ v, in order; the last one's value is
    the result.

    ``q`` is (B, H, Nq, D) and ``v`` (B, H, Nk, Dv), or without H; ``kt`` is (B, H, D, Nk) or, where
    ``k_has_rows``, (B, H, Nk, D). Where ``turned``, v is (B, H, Dv, Nk) and so the result
    (B, H, Dv, Nq). Biases broadcast to (B, H, Nq, Nk).
    """

    nodes: list[fx.Node]
    q: fx.Node
    kt: fx.Node
    v: fx.Node
    scale: float
    biases: list[fx.Node] = field(default_factory=list)
    k_has_rows: bool = False
    turned: bool = False

    @property
    def result(self) -> fx.Node:
        return self.nodes[-1]

    @property
    def inputs(self) -> list[fx.Node]:
        """The nodes whose values it reads."""
        return list(dict.fromkeys([self.q, self.kt, self.v, *self.biases]))


def attention_groups(
    nodes: Collection[fx.Node], constants: Mapping[fx.Node, Tensor]
) -> list[AttentionGroup]:
    """Returns the attention among a graph's nodes; ``constants`` has tensors of constant ones."""
    found = []
    for node in nodes:
        group = None
        if node.target is aten.scaled_dot_product_attention.default:
            group = _fused(node, constants)
        elif node.target is aten.matmul.default:
            group = _spelled_out(node, constants)
        if group is not None and _has_kernel(group):
            found.append(group)
    return found


def _fused(node: fx.Node, constants: Mapping[fx.Node, Tensor]) -> AttentionGroup | None:
    """torch's operator for all of it.

    Where a mask leaves a query no key torch gives zeros and not, as a softmax does, NaN.
    """
    given = arguments(node)
    if given["is_causal"] or given.get("enable_gqa") or given["dropout_p"]:
        return None
    q, k, v, mask = (given[name] for name in ("query", "key", "value", "attn_mask"))
    if mask is not None:
        known = constants.get(mask)
        if known is None or bool((known == -torch.inf).all(-1).any()):
            return None
    scale = given.get("scale")
    scale = 1 / sqrt(shape_of(q)[-1]) if scale is None else float(scale)
    return AttentionGroup([node], q, k, v, scale, [mask] if mask is not None else [], True)


def _spelled_out(node: fx.Node, constants: Collection[fx.Node]) -> AttentionGroup | None:
    """A product with a softmax of another product."""
    left, right = node.args
    assert isinstance(left, fx.Node)
    assert isinstance(right, fx.Node)
    nodes, turned = [node], False
    softmax, v = left, right
    if not _is_softmax(softmax):
        if not _swaps_last(right) or only_user(right) is None:
            return None
        softmax, v, turned = right.args[0], left, True  # type: ignore[assignment]
        nodes.insert(0, right)
    if not _is_softmax(softmax) or only_user(softmax) is None:
        return None
    nodes.insert(0, softmax)
    scores: Any = softmax.args[0]
    scale, biases = 1.0, list[fx.Node]()
    while isinstance(scores, fx.Node) and only_user(scores) is not None:
        nodes.insert(0, scores)
        if scores.target is aten.matmul.default:
            q, kt = scores.args
            return AttentionGroup(nodes, q, kt, v, scale, biases, turned=turned)  # type: ignore[arg-type]
        if _leads_one(scores):  # swin's windows of one image, to tell them apart by masks
            scores = scores.args[0]
            continue
        if scores.kwargs or len(scores.args) != 2:
            return None
        first, second = scores.args
        if scores.target is aten.mul.Tensor and isinstance(second, (int, float)):
            scores, scale = first, scale * float(second)
        elif scores.target is aten.div.Tensor and isinstance(second, (int, float)):
            scores, scale = first, scale / float(second)
        elif scores.target is aten.add.Tensor and scale == 1.0:
            if not (isinstance(first, fx.Node) and isinstance(second, fx.Node)):
                return None
            scores, bias = (second, first) if first in constants else (first, second)
            biases.append(bias)
        else:
            return None
    return None


def _leads_one(node: fx.Node) -> bool:
    """Returns whether a node only adds or takes away a first dimension of 1."""
    if node.target not in (aten.view.default, aten.reshape.default):
        return False
    before, after = shape_of(node.args[0]), shape_of(node)  # type: ignore[arg-type]
    return after in ((1, *before), before[1:]) and (len(before) < len(after) or before[0] == 1)


def _is_softmax(node: Any) -> bool:
    if not isinstance(node, fx.Node) or node.target is not aten.softmax.int:
        return False
    dim, rank = node.args[1], len(shape_of(node))
    return len(node.args) == 2 and not node.kwargs and dim in (-1, rank - 1)


def _swaps_last(node: Any) -> bool:
    """Returns whether a node swaps the last two dimensions of another."""
    if not isinstance(node, fx.Node):
        return False
    rank = len(shape_of(node))
    if node.target is aten.transpose.int:
        return {dim % rank for dim in node.args[1:]} == {rank - 2, rank - 1}  # type: ignore[operator]
    if node.target is aten.permute.default:
        order = [*range(rank - 2), rank - 1, rank - 2]
        return [dim % rank for dim in node.args[1]] == order  # type: ignore[union-attr, operator]
    return False


def _has_kernel(group: AttentionGroup) -> bool:
    shapes = [shape_of(node) for node in (group.q, group.kt, group.v)]
    batches = {shape[:-2] for shape in shapes}
    dtypes = {dtype_of(node) for node in group.inputs}
    (dtype,) = dtypes if len(dtypes) == 1 else (None,)
    of_biases = [shape_of(node) for node in group.biases]
    if any(len(shape) > 5 or (len(shape) == 5 and shape[0] != 1) for shape in of_biases):
        return False
    return (
        len(batches) == 1
        and len(shapes[0]) in (3, 4)
        and all(0 not in shape for shape in shapes)
        and dtype in DTYPES
        and dtype_of(group.result) == dtype
        and len(group.biases) <= MOST_BIASES
    )


def place_of_result(group: AttentionGroup) -> Tensor:
    """Returns where a group's result lies: (B, Nq, H, Dv) in memory, as a linear layer reads it."""
    shape = shape_of(group.result)
    if group.turned:
        shape = (*shape[:-2], shape[-1], shape[-2])
    *outer, queries, depth = shape
    dtype = dtype_of(group.result)
    if len(outer) == 1:
        like = torch.empty((*outer, queries, depth), dtype=dtype, device="meta")
    else:
        batch, heads = outer
        memory = torch.empty((batch, queries, heads, depth), dtype=dtype, device="meta")
        like = memory.transpose(1, 2)
    return like.transpose(-2, -1) if group.turned else like


def add_attention(build: Builder, group: AttentionGroup) -> None:
    """Adds the kernel of a group."""
    q, q_turned = _operand(build, group.q)
    k, k_turned = _operand(build, group.kt)
    v, v_turned = _operand(build, group.v)
    if not group.k_has_rows:  # it came as (D, Nk)
        k, k_turned = k.seen(k.like.transpose(-2, -1)), not k_turned
    if group.turned:
        v, v_turned = v.seen(v.like.transpose(-2, -1)), not v_turned
    y = Value(Buffer("arena"), place_of_result(group))
    result = y.seen(y.like.transpose(-2, -1)) if group.turned else y
    batch, heads, queries, depth = _four(q.like).shape
    keys = _four(k.like).shape[2]
    biases = [_bias(build, node, (batch, heads, queries, keys)) for node in group.biases]
    special = Heads(
        depth,
        _four(v.like).shape[3],
        DTYPES[dtype_of(group.result)],
        this_isa(),
        len(biases),
        q_transposed=q_turned,
        k_transposed=k_turned,
        v_transposed=v_turned,
    )
    step = HeadsStep(
        special,
        batch,
        heads,
        queries,
        keys,
        group.scale,
        q=_strides(q.like, q_turned),
        k=_strides(k.like, k_turned),
        v=_strides(v.like, v_turned),
        y=_strides(result.like, False),
        threads=build.settings.threads,
        biases=tuple(_strides(bias.like, False) for bias in biases),
    )
    operands = {"q": q, "k": k, "v": v, "y": result}
    operands |= {f"bias{number}": bias for number, bias in enumerate(biases)}
    build.actions.append(Native("attention", step, operands))
    build.values[group.result] = y


def _operand(build: Builder, node: fx.Node) -> tuple[Value, bool]:
    """Returns an operand, and whether the last dimension but one is what lies next to each
    other."""
    value: Value = build.values[node]
    size, strides = value.like.shape, value.like.stride()
    if strides[-1] == 1 or size[-1] == 1:
        return value, False
    if strides[-2] == 1 or size[-2] == 1:
        return value, True
    return build.copied_densely(value, -1), False


def _bias(build: Builder, node: fx.Node, shape: tuple[int, int, int, int]) -> Value:
    """Returns a bias as (B, H, Nq, Nk), with strides of 0 where it is the same for all."""
    constant = build.constants.get(node)
    value: Value = build.values[node]
    while value.like.dim() > len(shape):
        value = value.seen(value.like.squeeze(0))
        constant = constant if constant is None else constant.squeeze(0)
    if constant is not None:
        own = constant.expand((*constant.shape[:-1], shape[-1])).contiguous()
        value = constant_value(own)
    elif value.like.stride(-1) != 1 or value.like.shape[-1] != shape[-1]:
        value = build.copied_densely(value, -1)
    return value.seen(value.like.expand(shape))


def _four(like: Tensor) -> Tensor:
    """Returns (B, N, D) as (B, 1, N, D)."""
    return like.unsqueeze(1) if like.dim() == 3 else like


def _strides(like: Tensor, turned: bool) -> Strides:
    batch, head, row, column = _four(like).stride()
    return Strides(batch, head, column if turned else row)
