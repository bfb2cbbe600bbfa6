"""Loads models by name: timm's, torchvision's, or those of a function in a file. Imports torch."""

from __future__ import annotations

import importlib.util
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

_DEFAULT_INPUT = (1, 3, 224, 224)


def load(name: str, input_shape: tuple[int, ...] | None = None) -> tuple[nn.Module, torch.Tensor]:
    """Returns a model in eval mode and an example input, both random but the same each time.

    ``name`` is a name that timm or torchvision know (``timm:NAME`` and ``torchvision:NAME`` say
    which), or ``path.py:factory``, a function without arguments in a file. The input's shape is
    ``input_shape``, else the one that the model names, else (1, 3, 224, 224).

    Raises ValueError naming the model and the reason.
    """
    torch.manual_seed(0)
    factory = _factory(name)
    try:
        model = factory()
    except Exception as error:  # the model's own code may raise anything
        raise ValueError(f"model {name!r}: {type(error).__name__}: {error}") from None
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {name!r}: gives {type(model).__name__}, not a torch.nn.Module")
    model.eval()
    image = getattr(model, "default_cfg", {}).get("input_size")
    shape = input_shape or ((1, *image) if image else _DEFAULT_INPUT)
    _randomize_statistics(model)
    return model, torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _randomize_statistics(model: nn.Module) -> None:
    """Gives batch norms random means and variances: those of a new model change nothing."""
    generator = torch.Generator().manual_seed(2)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None:
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)


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
    return lambda: models.get_model(name, weights=None)


def _from_file(path: Path, name: str) -> Callable[[], nn.Module]:
    """Returns the function of that name in a Python file. Raises ValueError naming the file."""
    try:
        names = runpy.run_path(str(path))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except Exception as error:  # the file's own code may raise anything
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from None
    factory: Any = names.get(name)
    if not callable(factory):
        raise ValueError(f"{path}: has no function {name!r}")
    return lambda: factory()
