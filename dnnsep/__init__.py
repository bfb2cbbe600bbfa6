"""dnnsep: depthwise-separable convolution inference on x86 CPUs through oneDNN."""

from dnnsep.backends import Backend, Verdict, get_backend
from dnnsep.cost import Cost, cost
from dnnsep.problem import Problem
from dnnsep.weights import BatchNorm, Weights, fold_batchnorm

__version__ = "0.1.0"
__all__ = [
    "Backend",
    "BatchNorm",
    "Cost",
    "Problem",
    "Verdict",
    "Weights",
    "cost",
    "fold_batchnorm",
    "get_backend",
]
