"""Captures a model as a graph of ATen operators, by torch.export.

The graph is for the example's shapes, and its constants are the model's own tensors.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, OutputKind
from torch.utils import _pytree as pytree

from dnnsep.graph.contexts import inline_contexts
from dnnsep.graph.functional import complex_write, drop_dropouts, rename_writes
from dnnsep.graph.rewrite import CaptureError, arguments

# Of the text of an exception: torch names every expression that it cannot decide.
_MOST_CHARACTERS = 200

_CONSTANTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
_aten = torch.ops.aten


@dataclass(frozen=True)
class Captured:
    """A model as a graph, and how it is called.

    ``graph_module`` takes the tensors of ``flatten`` one by one and returns a flat tuple, of which
    ``unflatten`` makes what the model returns. Its constants are attributes that are the model's
    tensors, by the model's names for them. Each node has meta["val"], its value on the example as
    a FakeTensor, and meta["layer"], the path of the innermost module that it comes from.
    ``keywords`` are the names of the keyword arguments, and ``leaves`` the flattened arguments of
    the example, with ... in the place of each tensor.
    """

    graph_module: fx.GraphModule
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    keywords: tuple[str, ...]
    leaves: tuple[Any, ...]

    def flatten(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
    ) -> list[Tensor]:
        """Returns the tensors in a model's arguments, in the order of the graph's inputs.

        Raises ValueError if the arguments are nested otherwise than the example's, or differ from
        them in what is not a tensor: the graph is for the example's values.
        """
        given = dict(kwargs or {})
        if set(given) == set(self.keywords):
            given = {name: given[name] for name in self.keywords}
        leaves, spec = pytree.tree_flatten((args, given))
        if spec != self.in_spec:
            raise ValueError("arguments: nested otherwise than the example's")
        tensors = []
        for leaf, expected in zip(leaves, self.leaves, strict=True):
            if (expected is ...) != isinstance(leaf, Tensor):
                raise ValueError("arguments: not tensors where the example's are")
            if expected is ...:
                tensors.append(leaf)
            elif type(leaf) is not type(expected) or leaf != expected:
                raise ValueError(f"arguments: {leaf!r} where the example has {expected!r}")
        return tensors

    def unflatten(self, outputs: tuple[Any, ...] | list[Any]) -> Any:
        """Returns the flat outputs nested as the model returns them."""
        return pytree.tree_unflatten(list(outputs), self.out_spec)


def capture(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> Captured:
    """Returns a model in eval mode as a graph of ATen operators that write into none of their
    arguments, for the shapes of the example arguments. The model itself is not changed.

    Raises CaptureError, with the reason in one line, if there is no such graph: if the model's
    code fails, if shapes or control flow depend on data, or if it writes into its inputs or its
    own tensors.
    """
    if any(module.training for module in model.modules()):
        raise CaptureError("a module is in training mode")
    keywords = dict(kwargs or {})
    leaves, in_spec = pytree.tree_flatten((args, keywords))
    program = _export(model, args, keywords)
    inline_contexts(program.graph_module)
    _refuse_training(program.graph)
    drop_dropouts(program.graph)
    if complex_write(program.graph) is not None:
        program = _functionalized(program)
    graph_module = _graph_module(program, model)
    rename_writes(graph_module.graph)
    graph_module.recompile()
    return Captured(
        graph_module,
        in_spec,
        program.call_spec.out_spec,
        tuple(keywords),
        tuple(... if isinstance(leaf, Tensor) else leaf for leaf in leaves),
    )


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    """Returns what torch.export makes of a copy of a model, whose code may keep things in it.

    torch.export refuses to do so while it looks: then the copy has been called before.
    """
    with warnings.catch_warnings(), _silent(), torch.no_grad():
        warnings.simplefilter("ignore")
        for called in (False, True):
            try:
                own = copy.deepcopy(model, tensors_of(model))
                if called:
                    own(*args, **kwargs)
                return torch.export.export(own, args, kwargs, strict=False)
            except Exception as error:  # the model's own code may raise anything
                reason = f"{type(error).__name__}: {_first_line(error)}"
    raise CaptureError(reason)


def _functionalized(program: ExportedProgram) -> ExportedProgram:
    """Returns a program whose operators write into none of their arguments."""
    try:
        with warnings.catch_warnings(), _silent(), torch.no_grad():
            warnings.simplefilter("ignore")
            functional: ExportedProgram = program.run_decompositions({})
            return functional
    except Exception as error:  # torch's own refusals are of many types
        raise CaptureError(f"{type(error).__name__}: {_first_line(error)}") from None


def _silent() -> contextlib.redirect_stderr[io.StringIO]:
    """What torch.export prints when it fails: the whole graph."""
    return contextlib.redirect_stderr(io.StringIO())


def _first_line(error: Exception) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]}..."


def tensors_of(model: nn.Module) -> dict[int, Any]:
    """Returns deepcopy's memo that keeps a model's tensors the same in its copy."""
    tensors: list[Any] = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        tensors += [value for value in vars(module).values() if isinstance(value, Tensor)]
    return {id(tensor): tensor for tensor in tensors}


def _refuse_training(graph: fx.Graph) -> None:
    """Raises CaptureError if a normalisation counts on what it sees, as in training."""
    for node in graph.nodes:
        if node.target in (_aten.batch_norm.default, _aten.instance_norm.default):
            given = arguments(node)
            training = given.get("training", given.get("use_input_stats"))
            if training and given["running_mean"] is not None:
                raise CaptureError(f"{node.target} in training mode")


def _graph_module(program: ExportedProgram, model: nn.Module) -> fx.GraphModule:
    """Returns an exported program as a module that has its constants as attributes."""
    signature = program.graph_signature
    for output in signature.output_specs:
        if output.kind is not OutputKind.USER_OUTPUT:
            raise CaptureError(f"the model writes into {output.target or output.arg}")
    specs = {spec.arg.name: spec for spec in signature.input_specs}
    root, graph = nn.Module(), fx.Graph()
    nodes: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        spec = specs.get(node.name) if node.op == "placeholder" else None
        if spec is not None and spec.kind in _CONSTANTS:
            if not node.users:
                continue
            target = _set_constant(root, spec, program, model)
            nodes[node] = graph.get_attr(target)
        elif spec is not None and not isinstance(node.meta.get("val"), Tensor):
            if spec.kind is not InputKind.USER_INPUT or node.users:
                raise CaptureError(f"input {node.name} is a {spec.kind.name.lower()}")
            continue
        else:
            if node.op == "get_attr":
                _set(root, str(node.target), _attribute(program, str(node.target)))
            nodes[node] = graph.node_copy(node, nodes.__getitem__)
        nodes[node].meta = _meta(node)
    return fx.GraphModule(root, graph)


def _meta(node: fx.Node) -> dict[str, Any]:
    """Returns a node's value on the example and its layer. Raises CaptureError if the value's
    shape depends on data."""
    if node.op == "output":
        return {}
    value = node.meta.get("val")
    for item in value if isinstance(value, (list, tuple)) else (value,):
        numbers = (*item.shape, *item.stride()) if isinstance(item, Tensor) else (item,)
        if any(isinstance(n, (torch.SymInt, torch.SymFloat, torch.SymBool)) for n in numbers):
            raise CaptureError(f"{node.target}: its shape or value depends on data")
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    # A module that is called again has @1 after its path.
    return {"val": value, "layer": stack[-1][0].split("@")[0] if stack else ""}


def _set_constant(
    root: nn.Module, spec: InputSpec, program: ExportedProgram, model: nn.Module
) -> str:
    """Gives the root a parameter, buffer or lifted constant, and returns its name."""
    name = str(spec.target)
    path, _, last = name.rpartition(".")
    tensor: Any = None
    with contextlib.suppress(AttributeError):
        tensor = getattr(model.get_submodule(path), last, None)
    if spec.kind is InputKind.CONSTANT_TENSOR and not isinstance(tensor, Tensor):
        tensor = program.constants[name]
    if not isinstance(tensor, Tensor):
        raise CaptureError(f"{name} is not a tensor of the model")
    _set(root, name, tensor)
    return name


def _attribute(program: ExportedProgram, name: str) -> Tensor:
    value: Any = program.graph_module
    for part in name.split("."):
        value = getattr(value, part, None)
    if not isinstance(value, Tensor):
        raise CaptureError(f"{name}: control flow in the graph")
    return value


def _set(root: nn.Module, name: str, tensor: Tensor) -> None:
    """Gives a module an attribute, by its path."""
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    if isinstance(tensor, nn.Parameter):
        root.register_parameter(last, tensor)
    else:
        root.register_buffer(last, tensor)
