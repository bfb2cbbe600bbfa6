"""Replaces the convolutions and linear layers of a model by packed ones: ``dnnsep.optimize``.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dnnsep.backends import get_backend
from dnnsep.backends.executor import TORCH_DTYPES
from dnnsep.codegen import tuner
from dnnsep.codegen.sources import Sources
from dnnsep.graph.difference import difference
from dnnsep.graph.link import link_chains
from dnnsep.graph.match import Match, match_layers, why_not_packed
from dnnsep.graph.report import Entry, Report
from dnnsep.graph.trace import UntraceableError, trace
from dnnsep.host.turns import seconds_spent
from dnnsep.nn.convolution import folded
from dnnsep.nn.layer import problem_of
from dnnsep.nn.module import SeparableConv2d
from dnnsep.nn.packed import FUSED_NAMES, PackedConv2d, PackedLayer, PackedLinear
from dnnsep.problem import Problem

# How far outputs may differ from the original's, relative to the largest one: sums in another order
# and folded normalisations add up through some fifty layers.
BOUNDS = {torch.float32: 1e-3, torch.bfloat16: 0.1}

Filter = Callable[[str], bool]


def optimize(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...],
    *,
    backend: str = "auto",
    dtype: torch.dtype | None = None,
    filter: Filter | None = None,
    inplace: bool = False,
    tune: bool = True,
) -> nn.Module:
    """Returns the model with its separable layers on a backend and its other layers packed.

    ``model`` must be in eval mode and on a CPU. Each depthwise convolution [batch norm]
    [activation] pointwise convolution [batch norm] [activation] [addition] becomes one
    SeparableConv2d and each other convolution a PackedConv2d. Where the backend is "auto" or
    "fused", each linear layer becomes a PackedLinear, and packed layers that feed each other
    become a PackedChain. Normalisations are folded into the weights.

    ``example_inputs`` are the model's arguments. The result is compared with the original on them:
    where it does not agree within BOUNDS, the model is returned as it was. ``dtype`` torch.bfloat16
    converts the whole model; inputs are then converted on the way in and outputs on the way out.
    ``filter`` takes the name of a convolution or linear layer and returns whether it may be
    replaced. ``model`` itself is not changed, unless ``inplace`` lets its modules be reused.
    ``tune`` says whether plans of the fused kernel that no earlier process has measured are
    measured now, and later ones when another shape of the input comes; DNNSEP_TUNE=0 forbids it.

    The result has an attribute ``dnnsep_report``, a Report of what was replaced and what was not.

    Raises ValueError if the model is in training mode, if the backend or dtype is unknown, if
    DNNSEP_TUNE is neither 0 nor 1, or if the model fails on the example.
    """
    get_backend(backend)
    tuner.wanted()
    if model.training:
        raise ValueError("model: is in training mode, call eval() first")
    if dtype is not None and dtype not in BOUNDS:
        raise ValueError(f"dtype={dtype}: must be torch.float32 or torch.bfloat16")
    example = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    spent = seconds_spent()
    with torch.no_grad():
        expected = _run(model, example)
        taken = model if inplace else copy.deepcopy(model)
        # What is converted afterwards is prepared again: nothing is measured before.
        rewriter = _Rewriter(backend, filter or (lambda name: True), tune and dtype is None)
        optimized, report = rewriter.rewrite(taken, example, expected)
        if dtype is not None:
            optimized = Converted(optimized, dtype)
        _let_tune(optimized, tune)
        report.bound = BOUNDS[dtype or torch.float32]
        report.error = _error(optimized, example, expected)
        report.plans = _plans(optimized)
        report.tuning_seconds = seconds_spent() - spent
        if not report.error <= report.bound:
            report = Report([], [f"left as it is: outputs differed by {report.error:.1e}"])
            optimized = model if inplace else copy.deepcopy(model)
    optimized.dnnsep_report = cast("Any", report)
    return optimized


def report_of(model: nn.Module) -> Report:
    """Returns what ``optimize`` did to the model that it returned."""
    return cast("Report", model.dnnsep_report)


def what_ran(model: nn.Module) -> list[str]:
    """Returns the kernels that each packed layer or chain of an optimized model ran on so far."""
    return [kernel for layer in _outermost(model) for kernel in layer.runs_on.values()]


class Converted(nn.Module):
    """A model that runs in another dtype than that of its inputs and outputs."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model.to(dtype)
        self.dtype = dtype
        self.train(model.training)

    def forward(self, *arguments: Any) -> Any:
        first = next(a for a in pytree.tree_leaves(arguments) if _is_float(a))
        return _cast(self.model(*_cast(arguments, self.dtype)), first.dtype)


class _Rewriter:
    """Replaces layers, for a backend, where the filter ``may_replace`` allows it; ``tune`` says
    whether plans are measured when the result is tried out."""

    def __init__(self, backend: str, may_replace: Filter, tune: bool) -> None:
        self._backend, self._may_replace, self._tune = backend, may_replace, tune

    def rewrite(
        self, model: nn.Module, example: tuple[Any, ...], expected: Any
    ) -> tuple[nn.Module, Report]:
        """Rewrites a model as a whole where it can be traced, else its modules one by one."""
        report = Report()
        try:
            return self._rewrite_whole(model, example, expected, "", report), report
        except UntraceableError as error:
            report.notes.append(f"taken part by part: {error}")
        calls = _Calls(model, example)
        self._rewrite_modules(model, "", calls, report)
        return model, report

    def _rewrite_whole(
        self, model: nn.Module, example: tuple[Any, ...], expected: Any, name: str, report: Report
    ) -> nn.Module:
        """Returns the traced model with its layers replaced, and adds them to the report.

        Raises UntraceableError, and leaves the model as it is, where it cannot be traced.
        """
        traced = trace(model, example)
        entries = self._replace(traced, name)
        _let_tune(traced, self._tune)
        error = _error(traced, example, expected)
        if not error <= BOUNDS[torch.float32]:
            raise UntraceableError(f"what was traced differs by {error:.1e}")
        report.entries += entries
        return traced

    def _rewrite_modules(self, module: nn.Module, path: str, calls: _Calls, report: Report) -> None:
        """Rewrites each submodule as a whole if the example calls it once, else its submodules."""
        for name, child in module.named_children():
            full = f"{path}.{name}" if path else name
            example = calls.only.get(child)
            if isinstance(child, nn.Conv2d):
                reason = self._why_left(child, full, example is not None)
                if not reason:
                    setattr(module, name, PackedConv2d(child, backend=self._backend))
                kind = "left" if reason else "convolution"
                report.entries.append(Entry((full,), kind, 0, reason or "in a module not traced"))
                continue
            if example is not None and any(isinstance(m, nn.Conv2d) for m in child.modules()):
                try:
                    expected = _run(child, example)
                    rewritten = self._rewrite_whole(child, example, expected, full, report)
                except UntraceableError:
                    pass
                else:
                    setattr(module, name, rewritten)
                    continue
            self._rewrite_modules(child, full, calls, report)

    def _why_left(self, layer: nn.Conv2d, name: str, called_once: bool) -> str:
        """Returns why a convolution outside of traced modules is left; empty if it is packed."""
        if not self._may_replace(name):
            return "filtered out"
        return why_not_packed(layer) if called_once else "the example calls it not once"

    def _replace(self, traced: fx.GraphModule, path: str) -> list[Entry]:
        """Replaces the layers of a traced module, whose name in the model is ``path``.

        Returns an entry for each match, in the order of the graph.
        """
        prefix = f"{path}." if path else ""
        order = {node: index for index, node in enumerate(traced.graph.nodes)}
        matches = match_layers(traced)
        entries: dict[fx.Node, Entry] = {}

        replacements: dict[fx.Node, fx.Node] = {}  # by the last node of each match

        def swap(layer: nn.Module, match: Match, last: Match | None = None) -> None:
            """Puts a layer in the place of a match, or of two that follow each other."""
            residual = (last or match).sources.residual
            sources = replace(match.sources, residual=residual)
            nodes = [*match.nodes, *(last.nodes if last else ())]
            replacements[nodes[-1]] = _swap(
                traced,
                layer,
                str(match.layer_node.target),
                nodes,
                sources.map(lambda node: replacements.get(node, node)),
            )

        def names(*of_layer: Match) -> tuple[str, ...]:
            return tuple(prefix + name for match in of_layer for name in match.names)

        for node, reason in matches.left:
            layer = traced.get_submodule(str(node.target))
            assert isinstance(layer, nn.Conv2d)
            entries[node] = Entry((f"{prefix}{node.target}",), "left", _flops(layer, node), reason)
        for first, second in matches.separable:
            flops = sum(_flops(match.layer, match.nodes[0]) for match in (first, second))
            node = first.nodes[0]
            if not self._may_replace(names(first)[0]):
                entries[node] = Entry(names(first, second), "left", flops, "filtered out")
                continue
            layer = SeparableConv2d.from_layers(
                cast("nn.Conv2d", first.layer),
                cast("nn.Conv2d", second.layer),
                (first.norm, second.norm),
                (first.activation, second.activation),
                self._backend,
            )
            problem = _problem(layer, node)
            swap(layer, first, second)
            entries[node] = Entry(names(first, second), "separable", flops, problem=problem)
        for match, reason in matches.single:
            node, flops = match.layer_node, _flops(match.layer, match.layer_node)
            if not self._may_replace(f"{prefix}{node.target}"):
                entries[node] = Entry(names(match), "left", flops, "filtered out")
                continue
            convolution = folded(cast("nn.Conv2d", match.layer), match.norm)
            packed = PackedConv2d(convolution, match.activation, self._backend, match.pooled)
            swap(packed, match)
            entries[node] = Entry(names(match), "convolution", flops, reason)
        for match in matches.linear if self._backend in FUSED_NAMES else ():
            node, flops = match.layer_node, _flops(match.layer, match.layer_node)
            if self._may_replace(f"{prefix}{node.target}"):
                linear = cast("nn.Linear", match.layer)
                swap(PackedLinear(linear, match.activation, match.pooled), match)
                entries[node] = Entry(names(match), "linear", flops)
        if self._backend in FUSED_NAMES:
            link_chains(traced)
        traced.graph.lint()  # type: ignore[no-untyped-call]
        traced.delete_all_unused_submodules()
        traced.recompile()
        return [entries[node] for node in sorted(entries, key=order.__getitem__)]


def _swap(
    traced: fx.GraphModule,
    layer: nn.Module,
    name: str,
    nodes: list[fx.Node],
    sources: Sources[fx.Node],
) -> fx.Node:
    """Puts a layer, on its sources, in the place of nodes that follow each other."""
    last = nodes[-1]
    inputs: tuple[fx.Node | None, ...] = (sources.x, sources.residual, sources.scale)
    while inputs[-1] is None:
        inputs = inputs[:-1]
    with traced.graph.inserting_after(last):
        new = traced.graph.call_module(name, inputs)
    new.meta = dict(last.meta)
    last.replace_all_uses_with(new)
    for node in reversed(nodes):
        traced.graph.erase_node(node)
    traced.set_submodule(name, layer)
    return new


class _Calls:
    """Runs an example and keeps the arguments of each module that it calls just once.

    Modules whose arguments are named, or not tensors, are left out of ``only``.
    """

    def __init__(self, model: nn.Module, example: tuple[Any, ...]) -> None:
        self.only: dict[nn.Module, tuple[Any, ...]] = {}
        seen: set[nn.Module] = set()

        def note(module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            if module in seen or named or not all(isinstance(a, Tensor) for a in arguments):
                self.only.pop(module, None)
            else:
                self.only[module] = tuple(a.clone() for a in arguments)
            seen.add(module)

        hooks = [m.register_forward_pre_hook(note, with_kwargs=True) for m in model.modules()]
        try:
            _run(model, example)
        finally:
            for hook in hooks:
                hook.remove()


def _outermost(model: nn.Module) -> list[PackedLayer]:
    """Returns the packed layers and chains of a model, without those inside of others."""
    layers: list[PackedLayer] = []
    inside: set[nn.Module] = set()
    for layer in model.modules():
        if isinstance(layer, PackedLayer) and layer not in inside:
            layers.append(layer)
            inside.update(layer.modules())
    return layers


def _let_tune(model: nn.Module, tune: bool) -> None:
    """Says to each packed layer of a model whether it may measure plans."""
    for layer in model.modules():
        if isinstance(layer, PackedLayer):
            layer.tune = tune


def _plans(model: nn.Module) -> Counter[str]:
    """Returns how many of the layers run by the fused kernel have their plan by what."""
    threads = torch.get_num_threads()
    steps = [step for layer in _outermost(model) for step in layer.steps_made]
    return Counter(tuner.step_chosen_by(step, threads) for step in steps)


def _run(model: nn.Module, example: tuple[Any, ...]) -> Any:
    """Runs the model on a copy of the example, since it may write into its arguments.

    Raises ValueError where the model fails.
    """
    copied = pytree.tree_map(lambda a: a.clone() if isinstance(a, Tensor) else a, example)
    try:
        return model(*copied)
    except Exception as error:
        raise ValueError(f"example_inputs: the model fails on them: {error}") from error


def _error(model: nn.Module, example: tuple[Any, ...], expected: Any) -> float:
    """Returns the difference from the expected result; infinity where the model fails."""
    try:
        return difference(_run(model, example), expected)
    except ValueError:
        return float("inf")


def _problem(layer: SeparableConv2d, node: fx.Node) -> Problem:
    """Returns the problem that a layer is on the example."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    meta = source.meta["tensor_meta"]
    x = torch.empty(meta.shape, dtype=meta.dtype, device="meta")
    x, geometry = layer.padded(x)
    return problem_of(x, layer.tensors(), geometry)


def _flops(layer: nn.Conv2d | nn.Linear, node: fx.Node) -> int:
    """Returns a layer's FLOPs on the example, two for each multiply-add."""
    outputs = prod(node.meta["tensor_meta"].shape)
    if isinstance(layer, nn.Linear):
        return int(2 * outputs * layer.in_features)
    return int(2 * outputs * (layer.in_channels // layer.groups) * prod(layer.kernel_size))


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (*TORCH_DTYPES.values(), torch.float64)


def _cast(values: Any, dtype: torch.dtype) -> Any:
    """Returns a tree of values with its floating-point tensors in ``dtype``."""
    return pytree.tree_map(lambda v: v.to(dtype) if _is_float(v) else v, values)
