"""Models by name: timm's, torchvision's, or a function in a file. Imports torch."""

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
    """A model in eval mode with random weights, the same each time, and an example input.

    ``name`` is a name that timm or torchvision know (``timm:NAME`` and ``torchvision:NAME`` say
    which), or ``path.py:factory``, a function without arguments in a file. The input's shape is
    ``input_shape``, else the model's own where it says one, else 1x3x224x224.

    Raises ValueError naming the model and the reason.
    """
    torch.manual_seed(0)
    factory = _factory(name)
    try:
        model = factory()
    except Exception as error:  # the model's own code
        raise ValueError(f"model {name!r}: {type(error).__name__}: {error}") from None
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {name!r}: gives {type(model).__name__}, not a torch.nn.Module")
    model.eval()
    own = getattr(model, "default_cfg", {}).get("input_size")
    shape = input_shape or ((1, *own) if own else _DEFAULT_INPUT)
    _settle(model)
    return model, torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _settle(model: nn.Module) -> None:
    """Give normalisations statistics that are not those of doing nothing."""
    generator = torch.Generator().manual_seed(2)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None:
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)


def _factory(name: str) -> Callable[[], nn.Module]:
    origin, _, rest = name.rpartition(":")
    if origin.endswith(".py"):
        return _from_file(Path(origin), rest)
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
            found = known[library](rest)
        except (ImportError, RuntimeError) as error:  # such as one built for another torch
            raise ValueError(f"model {name!r}: {library} does not load: {error}") from None
        if found is not None:
            return found
    raise ValueError(f"model {name!r}: {' and '.join(installed)} do not have it")


def _timm(name: str) -> Callable[[], nn.Module] | None:
    import timm

    return (lambda: timm.create_model(name)) if timm.is_model(name) else None


def _torchvision(name: str) -> Callable[[], nn.Module] | None:
    from torchvision import models

    if name not in models.list_models():
        return None
    return lambda: models.get_model(name, weights=None)


def _from_file(path: Path, factory: str) -> Callable[[], nn.Module]:
    try:
        names = runpy.run_path(str(path))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except Exception as error:  # the file's own
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from None
    found: Any = names.get(factory)
    if not callable(found):
        raise ValueError(f"{path}: has no function {factory!r}")
    return lambda: found()
