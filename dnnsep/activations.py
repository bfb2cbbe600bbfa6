"""The activations that may follow a stage: one table for all that asks about them.

What torch calls them is in backends/tensors.py, how they are emitted in codegen/lang/activate.py;
both have an entry for each name here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Exact = NDArray[np.float64]


@dataclass(frozen=True)
class Activation:
    """A function of one number, elementwise.

    ``naive`` computes it in float64; ``at_zero`` is its value at 0, and nowhere is it further than
    |x| from that. ``lipschitz`` is how much it stretches a difference at most.
    ``approximation`` is the absolute error that an engine's polynomial form may add, in units of
    the f32 roundoff times (1 + |x|): engines evaluate exp, erf and tanh by polynomials.
    ``keeps_integers`` says whether integers stay integers, so that a right answer is right to the
    bit.
    """

    name: str
    naive: Callable[[Exact], Exact]
    lipschitz: float = 1.0
    at_zero: float = 0.0
    approximation: int = 0
    keeps_integers: bool = False


def _sigmoid(x: Exact) -> Exact:
    # tanh does not overflow where exp would.
    return 0.5 * (1 + np.tanh(0.5 * x))


def _gelu(x: Exact) -> Exact:
    from scipy.special import erf  # takes a while to import

    value: Exact = 0.5 * x * (1 + erf(x / np.sqrt(2)))
    return value


# hardswish reaches its steepest slope, 1.5, at x = 3; silu's is 1.0998, gelu's 1.1289.
ACTIVATIONS: dict[str, Activation] = {
    activation.name: activation
    for activation in (
        Activation("none", lambda x: x, keeps_integers=True),
        Activation("relu", lambda x: np.maximum(x, 0), keeps_integers=True),
        Activation("relu6", lambda x: np.clip(x, 0, 6), keeps_integers=True),
        Activation("silu", lambda x: x * _sigmoid(x), lipschitz=1.1, approximation=16),
        Activation(
            "hardswish", lambda x: x * np.clip(x + 3, 0, 6) / 6, lipschitz=1.5, approximation=4
        ),
        Activation("gelu", _gelu, lipschitz=1.13, approximation=16),
        Activation("sigmoid", _sigmoid, lipschitz=0.25, at_zero=0.5, approximation=16),
        Activation(
            "hardsigmoid",
            lambda x: np.clip(x + 3, 0, 6) / 6,
            lipschitz=1 / 6,
            at_zero=0.5,
            approximation=4,
        ),
    )
}
