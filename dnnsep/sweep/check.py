"""Data whose right answer is known, and whether a backend's answer is it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dnnsep.activations import Exact
from dnnsep.backends.reference import error_bound, naive
from dnnsep.problem import Problem
from dnnsep.dtypes import DTYPES, Array
from dnnsep.weights import Weights, integer_data, random_data

# With a smaller share of nonzero outputs a wrong kernel could pass by writing nothing.
_MIN_NONZERO = 0.1


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
        """Small integers and tolerance 0.

        The error bound instead where an activation makes integers fractions, and random data
        where nearly all outputs of the integers are zero.
        """
        weights, x = integer_data(problem, seed)
        if not problem.keeps_integers:
            return cls._bounded(problem, weights, x)
        expected = DTYPES[problem.dtype].rounded(naive(problem, weights, x))
        if np.count_nonzero(expected) < _MIN_NONZERO * expected.size:
            return cls.random(problem, seed)
        return cls(weights, x, expected.astype(np.float64), None)

    @classmethod
    def random(cls, problem: Problem, seed: int = 0) -> CheckData:
        """Normally distributed numbers, held to the error bound."""
        return cls._bounded(problem, *random_data(problem, seed))

    @classmethod
    def _bounded(cls, problem: Problem, weights: Weights, x: Array) -> CheckData:
        expected = naive(problem, weights, x)
        return cls(weights, x, expected, error_bound(problem, weights, x))

    def save(self, path: Path) -> None:
        arrays = {**vars(self.weights), "x": self.x, "expected": self.expected, "bound": self.bound}
        np.savez(path, **{k: v for k, v in arrays.items() if v is not None})

    @classmethod
    def load(cls, path: Path) -> CheckData:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        x, expected, bound = arrays.pop("x"), arrays.pop("expected"), arrays.pop("bound", None)
        return cls(Weights(**arrays), x, expected, bound)

    def verdict(self, y: Array) -> tuple[bool, str]:
        """Whether y (N, OC, OH, OW) is right, and what was found."""
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
            where = tuple(int(i) for i in np.argwhere(wrong)[0])
            return False, (
                f"{wrong.sum()} of {wrong.size} outputs are wrong, first at {where}: "
                f"{y[where]:g}, the reference has {self.expected[where]:g}"
            )
        return True, allowed
