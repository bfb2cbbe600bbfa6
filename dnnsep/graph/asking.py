"""For which sizes of its input a model is the same graph, whatever its code asks of them.

The model's code is run once on numbers that have no values, with the number of images, their height
and their width as symbols, by torch's own means for that: every question that the code or an
operator asks about them is noted with its answer. Where all answers are the same, so is the graph.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import LocalSource
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._sympy.printers import PythonPrinter

from dnnsep.graph import layout
from dnnsep.graph.capture import tensors_of
from dnnsep.graph.sizes import Sizes

# Operators that do the same to images of any size and number, if no argument says otherwise.
# What of each of its first argument's elements makes one of the result's:
_EACH = frozenset(
    (
        *("relu", "relu6", "hardtanh", "silu", "hardswish", "hardsigmoid", "sigmoid", "gelu"),
        *("elu", "leaky_relu", "tanh", "clamp", "clamp_min", "clamp_max", "threshold"),
        *("dropout", "alias", "detach", "clone", "contiguous"),
    )
)
_NORMS = frozenset(
    ("_native_batch_norm_legit_no_training", "native_batch_norm", "cudnn_batch_norm")
)
_POOLS = frozenset(("max_pool2d", "max_pool2d_with_indices", "avg_pool2d"))
# Views are among them: a template has none whose memory differs from size to size.
_VIEWS = frozenset(("view", "_unsafe_view", "reshape"))
_OTHERS = frozenset(
    (
        *("convolution", "add", "sub", "mul", "div", "mean", "cat", *_POOLS),
        *("t", "addmm", "mm", "linear", "squeeze", "unsqueeze"),
        *("permute", "empty"),
    )
)


class SizesError(Exception):
    """Why a model is not known to be the same graph for other sizes."""


def sizes_of(model: nn.Module, x: Tensor) -> Sizes:
    """Returns for which sizes of images (N, C, H, W) a model, which takes them alone, is the graph
    that it is for ``x``. Raises SizesError, which says why, where that cannot be told.

    Of a single image torch takes much for granted that does not hold for several: both are asked
    for, and must come to the same operators.
    """
    one, several = (_asked(model, x, images) for images in (1, max(2, x.shape[0])))
    mine = one if x.shape[0] == 1 else several
    if not mine.sizes.allows(x.shape[0], x.shape[2], x.shape[3]):
        raise SizesError("its code asks for the very size of the example")
    if one.operators != several.operators:
        return mine.sizes
    return Sizes(f"({one.sizes.text}) if images == 1 else ({several.sizes.text})")


@dataclass(frozen=True)
class _Answers:
    """The sizes for which all questions are answered alike, and the operators that a model then
    comes to."""

    sizes: Sizes
    operators: Sequence[Any]


def _asked(model: nn.Module, x: Tensor, images: int) -> _Answers:
    """Returns what holds for a single image, or else for any number of them that is answered like
    ``images``; height and width are open."""
    environment = ShapeEnv(specialize_zero_one=False, duck_shape=False)
    mode = FakeTensorMode(shape_env=environment, allow_non_fake_inputs=True)
    dims = {"images": 0, "height": 2, "width": 3}
    is_open = [images > 1, False, True, True]
    kinds = [DimDynamic.DYNAMIC if yes else DimDynamic.STATIC for yes in is_open]
    size = (images, *x.shape[1:])
    like = torch.empty(size, dtype=x.dtype, memory_format=layout.memory_format_of(x))
    own = copy.deepcopy(model, tensors_of(model))  # its code may keep what it is given
    watched = _Watched()
    with warnings.catch_warnings(), torch.no_grad(), mode:
        warnings.simplefilter("ignore")
        context: Any = StatelessSymbolicContext(dynamic_sizes=kinds)
        given = mode.from_tensor(like, symbolic_context=context, source=LocalSource("x"))
        names = {
            str(given.shape[dim].node.expr): name  # type: ignore[attr-defined]
            for name, dim in dims.items()
            if is_open[dim]
        }
        try:
            with watched:
                own(given)
        except Exception as error:  # the model's own code may raise anything
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            raise SizesError(f"with open sizes: {text}") from None
    if watched.refused:
        raise SizesError(f"{watched.refused} may do something else for each size")
    fixed = [] if images > 1 else ["images == 1"]
    return _Answers(_conditions(environment, names, fixed), watched.operators)


class _Watched(TorchDispatchMode):
    """Notes the operators with what they are given, sizes aside, and the first that may do
    something else for each size."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.refused = ""
        self.operators: list[Any] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        space, _, name = str(function.name()).partition(".")[0].partition("::")
        if space == "prim":  # asks a tensor what it is
            return function(*args, **kwargs)
        name = name.removesuffix("_")
        if not self.refused and not _is_same(name, args, kwargs):
            self.refused = str(function)
        given = [] if name in _VIEWS else pytree.tree_leaves((args, kwargs))
        self.operators.append((name, *map(_named, given)))
        # Torch itself asks much about sizes that is nothing to the graph, and takes long for it.
        if name in _EACH:
            return args[0]
        if name in _NORMS:
            nothing = args[0].new_empty((0,))
            return args[0], nothing, nothing
        if name == "convolution":
            return _convolved(*args, **kwargs)
        if name in _VIEWS:
            return _viewed(*args, **kwargs)
        if name in _POOLS and (pooled := _pooled(name, *args, **kwargs)) is not None:
            return (pooled, pooled) if name.endswith("indices") else pooled
        with enable_python_dispatcher():
            return function(*args, **kwargs)


def _named(leaf: Any) -> Any:
    """Returns what tells an operator's argument from others, apart from sizes."""
    if isinstance(leaf, FakeTensor):
        return FakeTensor
    return id(leaf) if isinstance(leaf, Tensor) else repr(leaf)


def _is_same(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Returns whether an operator does the same to images of any size and number."""
    if name in _VIEWS:
        return True
    if name not in _EACH and name not in _NORMS and name not in _OTHERS:
        return False
    if name == "mean":
        images = args[0].dim() == 4 and len(args) > 1
        return bool(images and sorted(d % 4 for d in args[1]) == [2, 3])
    if name == "cat":
        dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
        return bool(dim % args[0][0].dim() == 1)
    if name == "squeeze":  # of a single image it may leave out more
        dims = args[1] if len(args) > 1 else ()
        dims = [dims] if isinstance(dims, int) else list(dims)
        return bool(dims) and all(d % args[0].dim() in (2, 3) for d in dims)
    symbols = (torch.SymInt, torch.SymFloat, torch.SymBool)
    return not any(isinstance(leaf, symbols) for leaf in pytree.tree_leaves((args, kwargs)))


def _pooled(name: str, x: Tensor, kernel_size: Sequence[int], *given: Any) -> Tensor | None:
    """Returns what a pooling gives; None with ceil_mode, where torch has to ask."""
    names = ["stride", "padding", "dilation", "ceil_mode"]
    if name == "avg_pool2d":
        names.remove("dilation")
    told: dict[str, Any] = {"stride": [], "padding": 0, "dilation": 1, "ceil_mode": False}
    told |= dict(zip(names, given, strict=False))
    stride, padding, dilation, ceil_mode = told.values()
    if ceil_mode:
        return None
    window = (kernel_size, padding, dilation, stride or kernel_size)
    return x.new_empty((*x.shape[:-2], *_after_window(x.shape[-2:], *window)))


def _after_window(sizes: Sequence[Any], *window: Any) -> list[Any]:
    """Returns what a window leaves of sizes: its taps, padding, dilation and stride, each of them
    one number for all or one for each."""
    each = [
        [values] * len(sizes)
        if isinstance(values, int)
        else [*values] * (len(sizes) if len(values) == 1 else 1)
        for values in window
    ]
    return [
        (size + 2 * p - d * (taps - 1) - 1) // s + 1
        for size, taps, p, d, s in zip(sizes, *each, strict=True)
    ]


def _viewed(x: Tensor, size: Sequence[Any]) -> Tensor:
    """Returns what a view gives."""
    if not any(isinstance(n, int) and n == -1 for n in size):
        return x.new_empty(size)
    others = prod(n for n in size if not (isinstance(n, int) and n == -1))
    return x.new_empty([x.numel() // others if isinstance(n, int) and n == -1 else n for n in size])


def _convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    """Returns what a convolution gives, without torch's questions about the kernel to choose.
    Raises NotImplementedError for a transposed one."""
    if transposed:
        raise NotImplementedError("a transposed convolution")
    sizes = _after_window(x.shape[2:], weight.shape[2:], padding, dilation, stride)
    return x.new_empty((x.shape[0], weight.shape[0], *sizes))


def _conditions(environment: ShapeEnv, names: dict[str, str], fixed: Sequence[str]) -> Sizes:
    """Returns the sizes that fulfil what an environment noted; ``names`` are those of its symbols,
    and ``fixed`` what holds besides."""
    printer = PythonPrinter()
    texts = [*fixed]
    texts += [
        f"{symbol} == {printer.doprint(by)}" for symbol, by in environment.replacements.items()
    ]
    texts += [printer.doprint(guard.expr) for guard in environment.guards]
    condition = " and ".join(f"({text})" for text in dict.fromkeys(texts)) or "True"
    for symbol, name in names.items():
        condition = re.sub(rf"\b{symbol}\b", name, condition)
    try:
        return Sizes(condition)
    except ValueError as error:  # torch words a question in another way
        raise SizesError(str(error)) from None
