"""Loads models by name: timm's, torchvision's, blocks, or those of a function in a file. Imports
torch."""

from __future__ import annotations

import importlib.util
import inspect
import runpy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dnnsep.block import Block, is_block
from dnnsep.host.inputs import read_text
from dnnsep.models.blocks import module_of

_DEFAULT_INPUT = (1, 3, 224, 224)

# A parameter whose values are no farther apart is a constant: some class tokens start so.
_CONSTANT = 1e-4

# What is scaled by less hardly reaches the output: layer scales start at 1e-6.
_SMALLEST_SCALE = 0.01

# Statistics are taken of so many times the example's number of images: some networks' values differ
# more between images than within one.
_IMAGES = 4

# The least deviation of a channel, of the root mean square of all channels. Less would make much of
# rounding errors.
_LEAST_DEVIATION = 0.3


def load(name: str, input_shape: tuple[int, ...] | None = None) -> tuple[nn.Module, Tensor]:
    """Returns a model in eval mode and an example input, both random but the same each time.

    ``name`` is a name that timm or torchvision know (``timm:NAME`` and ``torchvision:NAME`` say
    which), a block's descriptor (see dnnsep.block.Block), or ``path.py:factory``, a function
    without arguments in a file. No trained weights are fetched for a name. The input's shape is
    ``input_shape``, else the one that the model names, else (1, 3, 224, 224); detection models take
    such a tensor as a list of images. Of a block it may only have another number of images than the
    descriptor says.

    What a new model has as a constant, and by which parts of it would cancel out, is made random:
    see ``enliven``.

    Raises ValueError naming the model and the reason, also where it fails on such an input.
    """
    torch.manual_seed(0)
    block = _block(name, input_shape)
    factory = _factory(name) if block is None else partial(module_of, block)
    try:
        model = factory()
    except (Exception, SystemExit) as error:  # the model's own code may raise anything
        raise ValueError(f"model {name!r}: {type(error).__name__}: {error}") from None
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {name!r}: gives {type(model).__name__}, not a torch.nn.Module")
    model.eval()
    own_shape = _own_shape(model) if block is None else block.input_shape
    shape = input_shape or own_shape
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator)
    try:
        enliven(model, x)
    except (Exception, SystemExit) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"model {name!r} fails on an input of {list(shape)}: {reason}") from None
    return model, x


def _block(name: str, input_shape: tuple[int, ...] | None) -> Block | None:
    """Returns the block that a name is the descriptor of; None for any other name. Raises
    ValueError where it is a wrong one, says a dtype, or is of another size than the input."""
    if not is_block(name):
        return None
    block = Block.parse(name)
    if block.dtype != "f32":
        raise ValueError(f"model {name!r}: _{block.dtype}: the dtype of a model is given apart")
    if input_shape is not None and input_shape[1:] != block.input_shape[1:]:
        raise ValueError(
            f"model {name!r}: its input is {list(block.input_shape)}, not {list(input_shape)}"
        )
    return block


def _own_shape(model: nn.Module) -> tuple[int, ...]:
    """Returns the input's shape that a model names, or else the usual one."""
    image = getattr(model, "default_cfg", {}).get("input_size")
    return (1, *image) if image else _DEFAULT_INPUT


def enliven(model: nn.Module, x: Tensor) -> None:
    """Gives a new model random values, always the same, where it starts with constants.

    Zeros, and layer scales near zero, would hide what comes before them. Scales become 0.5 to 1.5
    times what they were, or 0.5 to 1.5 where that is near zero; other zeros are drawn with a
    deviation of 0.1. The statistics of batch norms are taken from images like ``x``, and changed
    somewhat, so that no signal fades or grows from layer to layer. What is not constant, as in a
    trained model, stays.
    """
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in model.modules():
            for name, parameter in layer.named_parameters(recurse=False):
                if parameter.is_floating_point() and parameter.numel():
                    _enliven_parameter(name, parameter, generator)
        new = {
            layer for layer in model.modules() if isinstance(layer, _BatchNorm) and _is_new(layer)
        }
        if new:
            count = (_IMAGES - 1) * len(x)
            more = torch.randn((count, *x.shape[1:]), generator=generator)
            _calibrate(model, new, torch.cat([x, more]), generator)


def _enliven_parameter(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    lowest, highest = (float(end) for end in parameter.aminmax())
    if highest - lowest > _CONSTANT:
        return
    # Some networks start the scale of a block's last normalisation at 0.
    if highest == 0 and not (name == "weight" and parameter.dim() == 1):
        parameter.normal_(0, 0.1, generator=generator)
        return
    parameter.uniform_(0.5, 1.5, generator=generator)
    if abs(highest) >= _SMALLEST_SCALE:
        parameter *= highest


class _AllCalibrated(Exception):  # noqa: N818  (no error: ends a run of which no more is needed)
    pass


def _calibrate(
    model: nn.Module, new: set[_BatchNorm], x: Tensor, generator: torch.Generator
) -> None:
    """Runs the model on ``x`` and gives each new batch norm statistics when its input comes.

    Its results then lie around one and not zero: networks whose every activation cuts half of the
    values blow up small differences from layer to layer, rounding errors among them.
    """
    left = set(new)

    def calibrate(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert isinstance(layer, _BatchNorm)
        mean, variance = layer.running_mean, layer.running_var
        assert mean is not None
        assert variance is not None
        values = arguments[0].transpose(0, 1).flatten(1)
        least = _LEAST_DEVIATION**2 * values.square().mean()
        variance.copy_(values.var(1, correction=0).clamp(min=least))
        shift = torch.empty_like(mean).normal_(-1, 0.1, generator=generator)
        mean.copy_(values.mean(1) + shift * variance.sqrt())
        variance *= torch.empty_like(variance).uniform_(0.5, 1.5, generator=generator)
        left.discard(layer)

    def end(*_: Any) -> None:
        if not left:
            raise _AllCalibrated

    hooks = [layer.register_forward_pre_hook(calibrate) for layer in new]
    hooks += [layer.register_forward_hook(end) for layer in new]
    try:
        model(x)
    except _AllCalibrated:
        return
    finally:
        for hook in hooks:
            hook.remove()


def _is_new(layer: _BatchNorm) -> bool:
    """Returns whether a batch norm has the statistics that each starts with."""
    mean, variance = layer.running_mean, layer.running_var
    return (
        mean is not None and variance is not None and not mean.any() and bool((variance == 1).all())
    )


def _factory(name: str) -> Callable[[], nn.Module]:
    """Returns the function that makes the model. Raises ValueError naming the model."""
    origin, _, own_name = name.rpartition(":")
    if origin.endswith(".py"):
        return _from_file(Path(origin), own_name)
    known = {"timm": _timm, "torchvision": _torchvision}
    if origin and origin not in known:
        raise ValueError(
            f"model {name!r}: before the colon must be timm, torchvision or a .py file"
        )
    wanted = [origin] if origin else list(known)
    installed = [library for library in wanted if importlib.util.find_spec(library)]
    if not installed:
        raise ValueError(f"model {name!r}: {' and '.join(wanted)} not installed (extra: models)")
    for library in installed:
        try:
            factory = known[library](own_name)
        except (ImportError, RuntimeError) as error:  # as where it was built for another torch
            raise ValueError(f"model {name!r}: {library} does not load: {error}") from None
        if factory is not None:
            return factory
    raise ValueError(f"model {name!r}: {' and '.join(installed)} do not have it")


def _timm(name: str) -> Callable[[], nn.Module] | None:
    """Returns the function that makes a model of timm, or None if timm has none of that name."""
    import timm

    return (lambda: timm.create_model(name)) if timm.is_model(name) else None


def _torchvision(name: str) -> Callable[[], nn.Module] | None:
    """Returns the function that makes a model of torchvision, or None if it has none so named."""
    from torchvision import models

    if name not in models.list_models():
        return None
    options = {"weights": None}
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        options["weights_backbone"] = None  # its default is fetched
    return lambda: models.get_model(name, **options)


def _from_file(path: Path, name: str) -> Callable[[], nn.Module]:
    """Returns the function of that name in a Python file. Raises ValueError naming the file."""
    read_text(path)  # of a pipe or device Python would read for ever
    try:
        names = runpy.run_path(str(path))
    except (Exception, SystemExit) as error:  # the file's own code may raise anything
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from None
    factory: Any = names.get(name)
    if not callable(factory):
        raise ValueError(f"{path}: has no function {name!r}")
    return lambda: factory()
