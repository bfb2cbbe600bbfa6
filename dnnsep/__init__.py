"""dnnsep: depthwise-separable convolution inference on x86 CPUs through oneDNN."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Its module has the function's name, and would take its place when it is imported later.
from dnnsep.cost import Cost, cost

if TYPE_CHECKING:
    from dnnsep.backends import Backend, Verdict, get_backend
    from dnnsep.graph.loaded import load
    from dnnsep.graph.optimize import optimize, what_ran
    from dnnsep.graph.quantize import quantization_report, quantize
    from dnnsep.graph.repack import repack
    from dnnsep.graph.saved import save
    from dnnsep.graph.warm import warm_up
    from dnnsep.nn.functional import separable_conv2d
    from dnnsep.nn.module import SeparableConv2d
    from dnnsep.problem import Problem
    from dnnsep.weights import BatchNorm, Weights, fold_batchnorm

__version__ = "0.1.0"
__all__ = [
    "Backend",
    "BatchNorm",
    "Cost",
    "Problem",
    "SeparableConv2d",
    "Verdict",
    "Weights",
    "cost",
    "fold_batchnorm",
    "get_backend",
    "load",
    "optimize",
    "quantization_report",
    "quantize",
    "repack",
    "save",
    "separable_conv2d",
    "warm_up",
    "what_ran",
]

# Their modules import torch or numpy, so they are imported only when a name is asked for: every run
# of pytest where dnnsep is installed imports this package, for its plugin.
_MODULES = {
    "Backend": "dnnsep.backends",
    "BatchNorm": "dnnsep.weights",
    "Problem": "dnnsep.problem",
    "SeparableConv2d": "dnnsep.nn.module",
    "Verdict": "dnnsep.backends",
    "Weights": "dnnsep.weights",
    "fold_batchnorm": "dnnsep.weights",
    "get_backend": "dnnsep.backends",
    "load": "dnnsep.graph.loaded",
    "optimize": "dnnsep.graph.optimize",
    "quantization_report": "dnnsep.graph.quantize",
    "quantize": "dnnsep.graph.quantize",
    "repack": "dnnsep.graph.repack",
    "save": "dnnsep.graph.saved",
    "separable_conv2d": "dnnsep.nn.functional",
    "warm_up": "dnnsep.graph.warm",
    "what_ran": "dnnsep.graph.optimize",
}


def __getattr__(name: str) -> Any:
    """Imports a name's module on first use. Raises AttributeError for unknown names."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
