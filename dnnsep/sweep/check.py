"""Makes data whose right result is known, and judges a backend's result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dnnsep.activations import Exact
from dnnsep.backends.reference import error_bound, naive
from dnnsep.dtypes import Array
from dnnsep.problem import Problem
from dnnsep.quantization import Quantization
from dnnsep.weights import Weights, integer_data, random_data

# With a smaller share of nonzero outputs a wrong kernel could pass by writing nothing.
_MIN_NONZERO = 0.1

_QUANTIZATION = "quantization_"  # begins the names of a quantised problem's arrays in a file


@dataclass(frozen=True)
class CheckData:
    """Weights and an input (N, C, H, W) with the reference's output (N, OC, OH, OW).

    ``bound`` is None where a backend must agree to the bit.
    """

    weights: Weights
    x: Array
    expected: Exact
    bound: Exact | None

    @classmethod
    def exact(cls, problem: Problem, seed: int = 0) -> CheckData:
        """Makes data of small integers, on which a result must be right to the bit.

        Where an activation makes fractions of integers, the result is held to the error bound;
        where nearly all outputs would be zero, the data is random instead.
        """
        weights, x = integer_data(problem, seed)
        if not problem.keeps_integers:
            return cls._bounded(problem, weights, x)
        expected = problem.precision.destination.rounded(naive(problem, weights, x))
        if np.count_nonzero(expected) < _MIN_NONZERO * expected.size:
            return cls.random(problem, seed)
        return cls(weights, x, expected.astype(np.float64), None)

    @classmethod
    def random(cls, problem: Problem, seed: int = 0) -> CheckData:
        """Makes data of normally distributed numbers, whose result is held to the error bound."""
        return cls._bounded(problem, *random_data(problem, seed))

    @classmethod
    def _bounded(cls, problem: Problem, weights: Weights, x: Array) -> CheckData:
        """Adds the reference's output and its error bound to weights and an input."""
        expected = naive(problem, weights, x)
        return cls(weights, x, expected, error_bound(problem, weights, x))

    def save(self, path: Path) -> None:
        """Writes the data to a .npz file. Raises OSError where it cannot be written."""
        arrays = {**vars(self.weights), "x": self.x, "expected": self.expected, "bound": self.bound}
        quantization = arrays.pop("quantization")
        if quantization is not None:
            arrays |= {f"{_QUANTIZATION}{k}": v for k, v in quantization.arrays().items()}
        with open(path, "wb") as file:
            np.savez(file, **{k: v for k, v in arrays.items() if v is not None})

    @classmethod
    def load(cls, path: Path) -> CheckData:
        """Returns the data that ``save`` wrote to a file."""
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        x, expected, bound = arrays.pop("x"), arrays.pop("expected"), arrays.pop("bound", None)
        names = [name for name in arrays if name.startswith(_QUANTIZATION)]
        told = {name.removeprefix(_QUANTIZATION): arrays.pop(name) for name in names}
        arrays["quantization"] = Quantization.of_arrays(told) if told else None
        return cls(Weights(**arrays), x, expected, bound)

    def verdict(self, y: Array) -> tuple[bool, str]:
        """Returns whether y (N, OC, OH, OW) is right, and a line that says how right or wrong."""
        if y.shape != self.expected.shape:
            return False, f"shape {y.shape}, the reference has {self.expected.shape}"
        error = np.abs(y.astype(np.float64) - self.expected)
        if self.bound is None:
            wrong = ~(error == 0)
            allowed = "exactly equal to the reference"
        else:
            wrong = ~(error <= self.bound)
            share = float(np.max(error / np.maximum(self.bound, np.finfo(np.float64).tiny)))
            allowed = f"within the error bound (at most {share:.2g} of it)"
        if wrong.any():
            first = tuple(int(i) for i in np.argwhere(wrong)[0])
            return False, (
                f"{wrong.sum()} of {wrong.size} outputs are wrong, first at {first}: "
                f"{y[first]:g}, the reference has {self.expected[first]:g}"
            )
        return True, allowed
