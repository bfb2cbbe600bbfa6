"""Writes an optimized model into a file: ``dnnsep.save``.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import dnnsep
from dnnsep.codegen import choose, kernel
from dnnsep.codegen.cascade import choose as cascades
from dnnsep.codegen.cascade.links import Member
from dnnsep.codegen.cascade.step import CascadeStep
from dnnsep.codegen.generalstep import compiled_general
from dnnsep.codegen.lang.isa import this_isa
from dnnsep.codegen.rates import measured_on, rates
from dnnsep.codegen.rowwise import kernel as rowwise
from dnnsep.graph import layout, nodes
from dnnsep.graph.constants import evaluate_constants
from dnnsep.graph.encode import encoded
from dnnsep.graph.loaded import Contents, Graph, packing_name, signed_parts
from dnnsep.graph.lower import Lowered
from dnnsep.graph.network import Native
from dnnsep.graph.prepare import Prepared
from dnnsep.graph.runner import Runner
from dnnsep.graph.template import Template
from dnnsep.host import cachefiles, container, signing
from dnnsep.host.container import Blocks


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Writes a model that ``dnnsep.optimize`` returned into a file, for ``dnnsep.load``.

    For each kind of inputs that the model is prepared for, the example's and those that came since,
    the file has its graph, and for which other sizes that is the same, where it is for any; of all
    together the constants, the packed weights, and the machine code and the plans for this CPU and
    this number of threads. It has a hash of its content, and takes another file's place only when
    it is whole.

    Raises ValueError, which says why, for a model that is not run as one graph, that has operators
    or values which files cannot have, or that is in training mode or has hooks; OSError where the
    file cannot be written.
    """
    runner = _runner(model)
    blocks = Blocks()
    content: dict[str, Any] = {
        "dnnsep": dnnsep.__version__,
        "dtype": encoded(runner.dtype),
        "cascades": runner.options.cascades,
    }
    constants = _Constants(blocks)
    with torch.no_grad():
        graphs = [
            _graph(key, made, runner, constants)
            for key, made in runner._prepared.items()
            if isinstance(made, Prepared)
        ]
        content["graphs"] = [fields for fields, _ in graphs]
        content |= {"constants": constants.written, "packed": []}
        contents = Contents.of(content, blocks.written)
        for (_, live), graph in zip(graphs, contents.graphs, strict=True):
            _check(live, graph)
        content |= _for_this_cpu(contents, blocks)
    container.write(Path(path), content, blocks.written)


def _runner(model: nn.Module) -> Runner:
    """Returns what runs a model. Raises ValueError if that is not one that can be saved."""
    runner = model.__dict__.get("forward")
    notes = getattr(getattr(model, "dnnsep_report", None), "notes", [])
    if not isinstance(runner, Runner) or not runner._whole:
        if not hasattr(model, "dnnsep_report"):
            raise ValueError("model: is not one that dnnsep.optimize returned")
        raise ValueError(f"model: cannot be saved: {'; '.join(notes) or 'it runs as it was'}")
    if model._forward_hooks or model._forward_pre_hooks:
        raise ValueError("model: has hooks, which cannot be saved")
    if not runner._is_current():
        raise ValueError("model: is in training mode, call eval() first")
    if not runner.prepared:
        raise ValueError(
            "model: is not prepared for any input, or its parameters have changed since: call it "
            "first, in torch.no_grad()"
        )
    return runner


class _Constants:
    """The constants of all graphs, equal ones once."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks, self._numbers = blocks, dict[str, int]()
        self.written: list[list[Any]] = []

    def number_of(self, value: Any) -> int:
        """Returns the number of a constant, which is added if it is new."""
        if not isinstance(value, Tensor) or not value.is_cpu or value.layout is not torch.strided:
            raise ValueError(f"a constant of the type {type(value).__name__}: cannot be saved")
        x = value.detach().resolve_conj().resolve_neg()
        if layout.extent_bytes(x) - x.storage_offset() * x.element_size() != x.nbytes:
            x = x.contiguous()  # there is other memory between its elements, or none of its own
        flat = x.as_strided((x.numel(),), (1,)).view(torch.uint8).numpy()
        block = self._blocks.add(np.ascontiguousarray(flat))
        fields = [block, encoded(x.dtype), list(x.shape), list(x.stride())]
        number = self._numbers.setdefault(str(fields), len(self.written))
        if number == len(self.written):
            self.written.append(fields)
        return number


def _graph(
    key: Hashable, made: Prepared, runner: Runner, constants: _Constants
) -> tuple[dict[str, Any], list[fx.Node]]:
    """Returns the graph of one kind of inputs as JSON, and its nodes that are in it."""
    spec, *kinds = cast("tuple[Any, ...]", key)
    if spec is None:  # a single tensor
        _, spec = pytree.tree_flatten(((...,), {}))
    values = evaluate_constants(made.captured.graph_module)
    live = nodes.live_nodes(made.graph, values)
    fields = {
        "arguments": encoded(pytree.tree_unflatten([...] * len(kinds), spec)),
        "leaves": [*map(_leaf, kinds)],
        "outputs": encoded(_nested(made.captured.out_spec)),
        "nodes": nodes.written(live, values, constants.number_of, runner.options.why_not),
        "sizes": None if made.sizes is None else made.sizes.text,
    }
    return fields, live


def _nested(spec: pytree.TreeSpec) -> Any:
    """Returns what results nest in, with an ellipsis for each of them."""
    return pytree.tree_unflatten([...] * spec.num_leaves, spec)


def _leaf(kind: Any) -> Any:
    """Returns a leaf of a runner's key as JSON: of a tensor its dtype, size and strides."""
    if len(kind) == 3:
        shape, stride, dtype = kind
        return {"tensor": [encoded(dtype), list(shape), list(stride)]}
    _, value = kind
    return encoded(value)


def _check(live: Sequence[fx.Node], read: Graph) -> None:
    """Raises ValueError if the values of nodes read from a file do not look as they did."""
    for node, again in zip(live, read.graph.nodes, strict=True):
        if node.op == "call_function" and _looks(node) != _looks(again):
            raise ValueError(f"operator {node.target}: cannot be saved with these arguments")


def _looks(node: fx.Node) -> list[Any]:
    leaves = pytree.tree_leaves(node.meta["val"])
    return [(x.shape, x.dtype) if isinstance(x, Tensor) else type(x) for x in leaves]


def _cascades_of(lowered: Lowered) -> Iterator[Sequence[Member]]:
    """Yields the members of each cascade of a network and of what it is for other sizes."""
    for action in lowered.network.actions:
        if isinstance(action, Native) and isinstance(action.step, CascadeStep):
            yield action.step.members
    if isinstance(lowered.opened, Template):
        for joined in lowered.opened.joined:
            yield joined.members


def _for_this_cpu(contents: Contents, blocks: Blocks) -> dict[str, Any]:
    """Returns, as JSON, what makes loading fast here: packed weights, machine code, plans, and
    measurements that decide these."""
    for compiled in (kernel.compiled, rowwise.compiled, compiled_general):
        compiled.cache_clear()  # what is loaded again is noted
    with cachefiles.noting() as noted:
        lowered = contents.lowered(tune=False)
        for one in lowered:
            if isinstance(one.opened, Template):
                one.opened.compile()
    threads, isa = torch.get_num_threads(), this_isa()
    for step in (step for one in lowered for _, steps in one.layers for step in steps):
        key, plan = choose.entry(step.problem, threads, step.plan, step.extras)
        noted["plans", cachefiles.digest(key)] = plan
    for members in (members for one in lowered for members in _cascades_of(one)):
        entry = cascades.kept_entry(members, threads)
        if entry is not None:
            noted[cascades.KIND, cachefiles.digest(entry[0])] = entry[1]
    known = rates(isa)
    fields = {"dots": {n: vars(rate) for n, rate in known.dots.items()}, "line_ns": known.line_ns}
    noted["rates", cachefiles.digest(measured_on(isa))] = json.dumps(fields).encode()
    kept = [(*key, blocks.add(noted[key])) for key in sorted(noted)]
    parts = signed_parts({(kind, name): blocks.written[number] for kind, name, number in kept})
    packed = [
        (packing_name(key), blocks.add(weights)) for key, weights in contents.packings.items()
    ]
    return {"kept": kept, "signature": signing.signature(parts), "packed": packed}
