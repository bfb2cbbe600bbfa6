"""Reads a model that was saved in a file: ``dnnsep.load``.

Imports torch: import it from inside functions. It does not import what captures models, which takes
torch longer to import than this takes to load one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dnnsep.codegen.version import generator
from dnnsep.graph import nodes
from dnnsep.graph.build import Settings
from dnnsep.graph.encode import decoded
from dnnsep.graph.inputs import are_data, converted, described, floating_dtype
from dnnsep.graph.kept import Kept
from dnnsep.graph.lower import Lowered, lower
from dnnsep.graph.opened import Opened, Sized
from dnnsep.graph.sizes import Sizes
from dnnsep.graph.template import Template
from dnnsep.host import cachefiles, container, signing
from dnnsep.host.container import Block

# So many other sizes than those that were saved stay ready.
_MOST = 32

# What constants may be: no bytes are invalid values of these.
_DTYPES = frozenset(
    {
        torch.float32,
        torch.float64,
        torch.bfloat16,
        torch.float16,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.uint8,
        torch.bool,
        torch.complex64,
        torch.complex128,
    }
)


def load(path: str | os.PathLike[str], *, tune: bool = True, trusted: bool = False) -> LoadedModel:
    """Returns the model that ``dnnsep.save`` wrote into a file, for inference: with gradients
    enabled, too, its outputs need none.

    It takes what the model took, for the kinds of inputs that it was prepared for when it was
    saved: their shapes, their dtypes, and the values of what is no tensor; images of other sizes
    and numbers, too, where the model did without being prepared for each. Its outputs are those of
    the saved one, to the bit on the CPU that it was saved on.

    Neither the model's class nor what it was made with has to be there, and nothing is unpickled.
    The file has machine code for the CPU that it was saved on. That is used only if this user made
    it on this machine, which a signature proves, or if the file is ``trusted``: who could have
    written such a file can run whatever they like. Whatever in the file may not be used, or is for
    another CPU, another number of threads or another version of the generator, is made anew from
    the graph and the constants; ``tune`` says whether plans of kernels may be measured then, which
    DNNSEP_TUNE=0 forbids.

    Raises ValueError, which names the file and what is wrong with it, for one that is cut off,
    damaged, of a newer format or no model at all, and OSError where it cannot be read.
    """
    file = Path(path)
    content, blocks = container.read(file)
    try:
        with torch.no_grad(), cachefiles.given(_kept(content, blocks, trusted)):
            ready = Contents.of(content, blocks).prepared(tune)
    except Exception as error:  # a forged file may make anything fail anywhere
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{file}: cannot be prepared: {reason}") from error
    return ready


@dataclass(frozen=True)
class Graph:
    """A model's graph for one kind of arguments.

    ``arguments`` are nested as the model's are, the positional and the named ones, with an ellipsis
    for each of the ``leaves``: tensors without data, and what else there is. ``outputs`` says how
    its results nest, and ``sizes`` for which other sizes of its images it is the same graph.
    """

    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    leaves: tuple[Any, ...]
    outputs: pytree.TreeSpec
    graph: fx.Graph
    constants: dict[fx.Node, Tensor]
    sizes: Sizes | None

    @property
    def tensors(self) -> list[Tensor]:
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    def lowered(self, packings: Packings, tune: bool, cascades: bool) -> Lowered:
        """Returns what runs it."""
        settings = Settings(
            torch.get_num_threads(),
            tune=tune,
            packings=packings,
            why_not=lambda node: str(node.meta[nodes.WHY_NOT]),
            cascades=cascades,
        )
        opened = self.sizes is not None
        return lower(self.graph, self.tensors, self.constants, settings, opened)


@dataclass(frozen=True)
class Contents:
    """A file's graphs, the dtype that they run in where it is another one than their inputs', its
    packed weights, and whether layers may run as cascades."""

    graphs: list[Graph]
    dtype: torch.dtype | None
    packings: Packings
    cascades: bool = True

    @classmethod
    def of(cls, content: Any, blocks: Sequence[Block]) -> Contents:
        """Returns what some JSON and blocks of bytes say."""
        constants = [_constant(fields, blocks) for fields in content["constants"]]
        graphs = [_graph(fields, constants) for fields in content["graphs"]]
        packings = Packings({name: blocks[number] for name, number in content["packed"]})
        dtype = decoded(content["dtype"])
        if dtype not in (None, torch.float32, torch.bfloat16):
            raise ValueError(f"dtype={dtype}: must be torch.float32 or torch.bfloat16")
        # Files of earlier versions do not say it: their models were not asked to do without.
        return cls(graphs, dtype, packings, bool(content.get("cascades", True)))

    def prepared(self, tune: bool) -> LoadedModel:
        """Returns the model ready to run."""
        return LoadedModel(list(zip(self.graphs, self.lowered(tune), strict=True)), self.dtype)

    def lowered(self, tune: bool) -> list[Lowered]:
        """Returns what runs each graph."""
        return [graph.lowered(self.packings, tune, self.cascades) for graph in self.graphs]


class Packings(dict[Any, NDArray[np.uint8]]):
    """Packed weights, as ``lower`` asks for them, found among those of a file."""

    def __init__(self, of_file: Mapping[str, Block]) -> None:
        super().__init__()
        self._of_file = of_file

    def __contains__(self, key: object) -> bool:
        if super().__contains__(key):
            return True
        found = self._of_file.get(packing_name(key))
        # Kernels read as much as a Packing says.
        if found is None or found.size != key[2].size:  # type: ignore[index]
            return False
        self[key] = found
        return True


def packing_name(key: object) -> str:
    """Returns what packed weights are called in files by what ``lower`` knows them by."""
    return cachefiles.digest(f"{generator()} {key}")


class LoadedModel(nn.Module):
    """A model from a file. It has no parameters, and is always in inference."""

    def __init__(
        self, prepared: Sequence[tuple[Graph, Lowered]], dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.eval()
        self._dtype = dtype
        self._ready: dict[Any, list[_Ready]] = {}
        self._keywords: dict[frozenset[str], list[tuple[str, ...]]] = {}
        self._opened: list[tuple[pytree.TreeSpec, Opened]] = []
        self._sized: Kept[Sized] = Kept(_MOST)
        self._lock = threading.Lock()
        for graph, lowered in prepared:
            _, spec = pytree.tree_flatten(graph.arguments)
            if graph.sizes is not None and isinstance(lowered.opened, Template):
                unflatten = partial(pytree.tree_unflatten, treespec=graph.outputs)
                self._opened.append((spec, Opened(lowered.opened, graph.sizes, unflatten)))
            alike = self._ready.setdefault(_key(spec, graph.leaves), [])
            alike.append(_Ready(graph, lowered))
            names = tuple(graph.arguments[1])
            self._keywords.setdefault(frozenset(names), []).append(names)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Returns the model's result. Raises ValueError for arguments of another kind than those
        that it was saved for, which it lists."""
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return self.forward(*arguments, **named)
        with torch.no_grad():
            leaves, ready = self._found(arguments, named)
            given = floating_dtype(leaves)
            tensors = [leaf for leaf in converted(leaves, self._dtype) if isinstance(leaf, Tensor)]
            results: Any = ready.run(tensors)
            return results if self._dtype is None else converted(results, given)

    def _found(
        self, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[list[Any], _Ready | Sized]:
        """Returns the leaves of arguments, and what runs arguments like these: those that lie so
        in memory, or else the first."""
        for names in self._keywords.get(frozenset(named), ()):
            ordered = {name: named[name] for name in names}
            leaves, spec = pytree.tree_flatten((arguments, ordered))
            found = self._ready.get(_key(spec, converted(leaves, self._dtype)))
            if found is not None and are_data(leaves):
                lies = [leaf.stride() for leaf in leaves if isinstance(leaf, Tensor)]
                return leaves, next((one for one in found if one.strides == lies), found[0])
            sized = self._of_size(spec, leaves) if are_data(leaves) else None
            if sized is not None:
                return leaves, sized
        leaves = pytree.tree_leaves((arguments, named))
        if not are_data(leaves):
            raise ValueError("arguments: must be plain tensors with data in a CPU's memory")
        raise ValueError(
            f"arguments: nothing was saved for {described(leaves) or 'none'}, but for "
            + "; for ".join(self._kinds())
        )

    def _kinds(self) -> list[str]:
        """Returns the kinds of inputs that it takes, as text."""
        saved = [ready.graph for alike in self._ready.values() for ready in alike]
        more = " and other sizes of its images"
        texts = [described(one.leaves) + (more if one.sizes is not None else "") for one in saved]
        return list(dict.fromkeys(texts))

    def _of_size(self, spec: pytree.TreeSpec, leaves: list[Any]) -> Sized | None:
        """Returns the model for images of another size than those that it was saved for."""
        if not self._opened or len(leaves) != 1 or not isinstance(leaves[0], Tensor):
            return None
        (x,) = converted(leaves, self._dtype)
        key = (spec, x.shape, x.stride(), x.dtype)
        try:
            return self._sized[key]
        except KeyError:
            pass
        with self._lock:
            for own, opened in self._opened:
                if own == spec and (sized := opened.at(x)) is not None:
                    self._sized.keep(key, sized)
                    return sized
        return None

    def extra_repr(self) -> str:
        """Returns the kinds of inputs that it takes."""
        return "; ".join(self._kinds())


@dataclass(eq=False)
class _Ready:
    """A graph and what runs it."""

    graph: Graph
    lowered: Lowered
    strides: list[tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self.strides = [like.stride() for like in self.graph.tensors]

    def run(self, tensors: Sequence[Tensor]) -> Any:
        """Returns the results for tensors, which are copied where they lie otherwise in memory."""
        placed = [
            x if x.stride() == strides else _lying(x, strides)
            for x, strides in zip(tensors, self.strides, strict=True)
        ]
        return pytree.tree_unflatten(self.lowered.network.run(placed), self.graph.outputs)


def _lying(x: Tensor, strides: Sequence[int]) -> Tensor:
    return torch.empty_strided(x.shape, strides, dtype=x.dtype).copy_(x)


def _key(spec: pytree.TreeSpec, leaves: Sequence[Any]) -> Any:
    """Returns what of arguments decides what runs them."""
    kinds = [
        (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else (type(leaf), leaf)
        for leaf in leaves
    ]
    return (spec, *kinds)


def _graph(fields: Any, constants: Sequence[Tensor]) -> Graph:
    leaves = tuple(_leaf(leaf) for leaf in fields["leaves"])
    inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    _, outputs = pytree.tree_flatten(decoded(fields["outputs"]))
    graph, of_nodes = nodes.read(fields["nodes"], constants, inputs)
    sizes = None if fields["sizes"] is None else Sizes(str(fields["sizes"]))
    return Graph(decoded(fields["arguments"]), leaves, outputs, graph, of_nodes, sizes)


def _leaf(leaf: Any) -> Any:
    """Returns a leaf of arguments; of a tensor, one without data that lies as it does."""
    if not isinstance(leaf, dict) or "tensor" not in leaf:
        return decoded(leaf)
    dtype, shape, stride = leaf["tensor"]
    if min(stride, default=0) < 0:
        raise ValueError(f"strides {stride}: no tensor has negative ones")
    return torch.empty_strided(shape, stride, dtype=decoded(dtype), device="meta")


def _constant(fields: Any, blocks: Sequence[Block]) -> Tensor:
    """Returns a tensor in a block's memory; torch checks that it does not reach beyond that."""
    number, dtype, shape, stride = fields
    if decoded(dtype) not in _DTYPES:
        raise ValueError(f"constants of {dtype}: there are none")
    return torch.from_numpy(blocks[number]).view(decoded(dtype)).as_strided(shape, stride)


def _kept(content: Any, blocks: Sequence[Block], trusted: bool) -> cachefiles.Kept:
    """Returns the machine code, the plans and the measurements of a file that may be used."""
    try:
        kept = {(kind, name): blocks[number] for kind, name, number in content["kept"]}
        if not trusted and not signing.is_signed(signed_parts(kept), str(content["signature"])):
            return {}
        return {key: block.tobytes() for key, block in kept.items()}
    except Exception:
        return {}


def signed_parts(kept: Mapping[tuple[str, str], Block]) -> list[Any]:
    """Returns what of machine code, plans and measurements is signed."""
    ordered = sorted(kept)
    return [part for key in ordered for part in (" ".join(key).encode(), kept[key])]
