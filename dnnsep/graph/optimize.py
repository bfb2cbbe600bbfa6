"""Makes a model run as a network of generated kernels: ``dnnsep.optimize``.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from dnnsep.backends import get_backend
from dnnsep.codegen import tuner
from dnnsep.graph.account import kernels_of, kernels_of_size
from dnnsep.graph.difference import BOUNDS, QUANTIZED_BOUND, difference
from dnnsep.graph.dims import condition_of
from dnnsep.graph.parts import replace_parts
from dnnsep.graph.prepare import Options
from dnnsep.graph.quantized import is_quantized
from dnnsep.graph.report import Report
from dnnsep.graph.rewrite import CaptureError
from dnnsep.graph.runner import Runner
from dnnsep.host.turns import seconds_spent

# The module that checks sizes in what torch.export makes.
_CHECKS = "_guards_fn"


def optimize(
    model: nn.Module | ExportedProgram,
    example_inputs: Tensor | tuple[Any, ...],
    *,
    backend: str = "auto",
    dtype: torch.dtype | None = None,
    filter: Callable[[str], bool] | None = None,
    inplace: bool = False,
    tune: bool = True,
    dynamic_shapes: Any = None,
    cascades: bool = True,
) -> nn.Module:
    """Returns the model with a ``forward`` that runs it as a network of generated kernels.

    ``model`` must be in eval mode and on a CPU; a program of torch.export is taken, too, and a
    quantised model as ``dnnsep.quantize`` or PT2E makes it, whose layers then run on bytes. Its
    graph is captured by torch.export for ``example_inputs``, the model's arguments; normalisations
    are folded into weights, branches that are added up become one, and what the generator has
    kernels for is run by them, the rest by torch's operators. A model whose graph cannot be
    captured is taken part by part. In training, with gradients, and while torch traces or compiles,
    the result is the model as it was: its class, its parameters and its state are the same, and
    later changes of them are seen.

    With a ``backend`` other than "auto" and "fused" (see ``dnnsep.get_backend``) separable layers
    run on that one and all else by torch's operators.

    The result is compared with the original on the example and on a second, random input: a layer
    that differs by more than BOUNDS or QUANTIZED_BOUND, or fails, is left to torch and named in the
    report. ``dtype``
    torch.bfloat16 converts the whole model; inputs are then converted on the way in and outputs on
    the way out. ``filter`` takes the name of a module with a convolution or a linear layer and
    returns whether that may be run by a kernel. ``model`` itself is not changed, unless ``inplace``
    is true. ``tune`` says whether plans of kernels that no earlier process has measured are
    measured now, and later ones when another shape of the input comes; DNNSEP_TUNE=0 forbids it.

    A model of images (N, C, H, W) takes other numbers and sizes of them without being prepared for
    each, where its graph is the same for them and all of it runs by kernels; the report says if it
    does, or why not. Kernels are then told all sizes; for a size that comes often specialised ones
    are made in the background, or by ``dnnsep.warm_up``. ``dynamic_shapes``, as torch.export takes
    them, says which dimensions may differ, and in which range; by default all that can. Whatever
    else comes is prepared when it first does.

    ``cascades`` says whether layers that follow each other may run as a cascade, band by band, so
    that what is between them stays in the caches, where that was measured to be faster. Without it
    every layer is run on the whole of its input before the next one; the results are the same.

    The result has an attribute ``dnnsep_report``, a Report of what runs how.

    Raises ValueError if the model is in training mode, if the backend or the dtype is unknown, if
    DNNSEP_TUNE is neither 0 nor 1, if ``dynamic_shapes`` says what cannot be understood, or if the
    model fails on the example.
    """
    get_backend(backend)
    tuner.wanted()
    of_program = isinstance(model, ExportedProgram)
    if isinstance(model, ExportedProgram):
        # Not to be copied: a copy would not check the sizes that it was exported for.
        model = _module_of(model)
    if model.training and not _has_no_modes(model):
        raise ValueError("model: is in training mode, call eval() first")
    if dtype is not None and dtype not in BOUNDS:
        raise ValueError(f"dtype={dtype}: must be torch.float32 or torch.bfloat16")
    example = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    spent = seconds_spent()
    with torch.no_grad():
        inputs = [example, _another(example)]
        expected = [run_on_copy(model, inputs[0])]
        try:
            expected.append(run_on_copy(model, inputs[1]))
        except ValueError:  # values that the model does not take
            inputs.pop()
        optimized = model if inplace or of_program else copy.deepcopy(model)
        for (
            part
        ) in optimized.modules():  # of a graph that has no modes, the others are in eval mode
            part.training = False
        sizes = condition_of(dynamic_shapes, example)
        options = Options(backend, filter, tune, sizes, cascades=cascades)
        report = _replaced(optimized, inputs, expected, options, dtype)
    report.tuning_seconds = seconds_spent() - spent
    optimized.dnnsep_report = cast("Any", report)
    return optimized


def _module_of(program: ExportedProgram) -> nn.Module:
    """Returns an exported program as a module with parameters of its own. It has no modes: it is
    what was exported."""
    module = copy.deepcopy(program).module()
    for part in module.modules():
        part.training = False
    return module


def _has_no_modes(model: nn.Module) -> bool:
    """Returns whether a module is a graph of operators alone, as PT2E makes it: it computes the
    same whatever mode it says that it is in."""
    if not isinstance(model, fx.GraphModule):
        return False
    called = {str(node.target) for node in model.graph.nodes if node.op == "call_module"}
    return called <= {_CHECKS}


def _bound(model: nn.Module, dtype: torch.dtype) -> float:
    """Returns how far a model's outputs may differ from the original's."""
    if isinstance(model, fx.GraphModule) and is_quantized(model.graph):
        return QUANTIZED_BOUND
    return BOUNDS[dtype]


def _replaced(
    model: nn.Module,
    inputs: list[tuple[Any, ...]],
    expected: list[Any],
    options: Options,
    dtype: torch.dtype | None,
) -> Report:
    """Replaces a model's ``forward``, or those of its parts, and returns the report."""
    bound = _bound(model, dtype or _dtype_of(expected[0]))
    own = _Tensors(model)
    if dtype is not None:
        model.to(dtype)
    runner = Runner(model, options, dtype)
    notes: list[str] = []
    try:
        runner.prepare_for(inputs[0])
    except CaptureError as reason:
        notes.append(f"taken part by part: {reason}")
        if dtype is not None:
            model.forward = Runner(model, options, dtype, whole=False)
        runners = replace_parts(model, inputs[0], options)
    else:
        model.forward = runner
        runners = {"": runner}
    error, failure = _error(model, inputs, expected, bound)
    # What is left of a layer that was found to differ may differ, too.
    while failure or not error <= bound:
        found = [one.faulty_layers(bound) for one in runners.values()]
        new = {n: why for of_one in found for n, why in of_one.items() if n not in options.faulty}
        if not new:
            break
        options.faulty.update(new)
        notes += [f"left to torch: {name}: {why}" for name, why in new.items()]
        for one in runners.values():
            one.forget()
        error, failure = _error(model, inputs, expected, bound)
    if failure or not error <= bound:
        for one in (runner, *runners.values()):
            one.undo()
        own.restore()
        notes.append(f"left as it is: {failure or f'outputs differed by {error:.1e}'}")
        error, runners = 0.0, {}
    report = Report([], notes, error, bound)
    for one in runners.values():
        one.add_to_report(report)
    report.parameter_bytes = sum(own.nbytes for own in model.parameters())
    report.why_fixed = runners[""].why_fixed if "" in runners else "the model is not one network"
    return report


class _Tensors:
    """The parameters and buffers of a model as they were, which a change of dtype replaces."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [(parameter, parameter.data) for parameter in model.parameters()]
        self._buffers = [(module, dict(module._buffers)) for module in model.modules()]

    def restore(self) -> None:
        """Gives the model its tensors back."""
        for parameter, data in self._parameters:
            parameter.data = data
        for module, buffers in self._buffers:
            module._buffers.update(buffers)


def report_of(model: nn.Module) -> Report:
    """Returns what ``optimize`` did to the model that it returned."""
    return cast("Report", model.dnnsep_report)


def what_ran(model: nn.Module) -> list[str]:
    """Returns the kernels that each part of an optimized model ran on so far."""
    found = []
    for module in model.modules():
        runner = module.__dict__.get("forward")
        if isinstance(runner, Runner):
            found += [kernels_of(prepared) for prepared in runner.prepared]
            found += [kernels_of_size(sized) for sized in runner.sized]
    return found


def run_on_copy(model: nn.Module, example: tuple[Any, ...]) -> Any:
    """Runs the model on a copy of the example, since it may write into its arguments.

    Raises ValueError where the model fails.
    """
    copied = pytree.tree_map(lambda a: a.clone() if isinstance(a, Tensor) else a, example)
    try:
        return model(*copied)
    except Exception as error:
        raise ValueError(f"example_inputs: the model fails on them: {error}") from error


def _error(
    model: nn.Module, inputs: list[tuple[Any, ...]], expected: list[Any], bound: float
) -> tuple[float, str]:
    """Returns the largest difference from the expected results, and the exception that the model
    raised, if it did."""
    worst = 0.0
    for example, right in zip(inputs, expected, strict=True):
        try:
            worst = max(worst, difference(run_on_copy(model, example), right, bound))
        except Exception as error:
            cause = error.__cause__ or error
            return worst, f"{type(cause).__name__}: {cause}".splitlines()[0]
    return worst, ""


def _another(example: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns random inputs like the example's floating-point ones; the others stay."""
    generator = torch.Generator().manual_seed(0)

    def other(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        drawn = torch.randn(value.shape, generator=generator, dtype=torch.float32)
        like = torch.empty_like(value)
        return like.copy_(drawn)

    return cast("tuple[Any, ...]", pytree.tree_map(other, example))


def _dtype_of(outputs: Any) -> torch.dtype:
    """Returns the coarsest of the dtypes of outputs."""
    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return torch.bfloat16 if any(x.dtype == torch.bfloat16 for x in leaves) else torch.float32
