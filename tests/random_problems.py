"""Problems drawn at random, small enough for the reference, over everything a problem can be."""

from __future__ import annotations

import numpy as np

from dnnsep.problem import ACTIVATIONS, Problem


def random_problem(rng: np.random.Generator) -> Problem:
    """Small ones often, so that tails and borders come up as often as the plain case."""
    while True:
        try:
            return _draw(rng)
        except ValueError:  # the kernel does not fit the padded image
            continue


def _draw(rng: np.random.Generator) -> Problem:
    def size(most: int) -> int:
        return int(min(most, 1 + rng.geometric(2.5 / most)))

    kernel = (size(7), size(7)) if rng.random() < 0.9 else (1, size(31))
    dilation = (1, 1) if rng.random() < 0.7 else (size(3), size(3))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    top, bottom = (int(rng.integers(0, reach[0])) for _ in range(2))
    left, right = (int(rng.integers(0, reach[1])) for _ in range(2))
    activations = ACTIVATIONS if rng.random() < 0.3 else ("none", "relu", "relu6")
    return Problem(
        batch=size(3),
        in_channels=size(70),
        out_channels=size(90),
        height=size(20),
        width=size(60),
        kernel=kernel,
        stride=(1, 1) if rng.random() < 0.6 else (size(3), size(3)),
        padding=(top, bottom, left, right),
        dilation=dilation,
        channel_multiplier=1 if rng.random() < 0.8 else size(3),
        bias=bool(rng.random() < 0.7),
        activations=(str(rng.choice(activations)), str(rng.choice(activations))),
        dtype="f32" if rng.random() < 0.6 else "bf16",
    )
