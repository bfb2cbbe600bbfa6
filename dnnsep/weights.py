"""Weights and inputs of a problem: random ones, and small integers that make checks exact.

Arrays are float32 in NumPy whatever the problem's dtype; for bf16 every value is rounded to bf16
beforehand, so that a conversion later is exact. Those of a quantised problem hold whole numbers,
but for the biases.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np

from dnnsep.dtypes import DTYPES, Array, ByteDtype, TensorDtype
from dnnsep.problem import Problem
from dnnsep.quantization import MOST_STEPS, Affine, Quantization

# A depthwise sum of at most 60 products of integers up to 2 x 2, plus a bias up to 4, stays within
# 256, so it is exact in bf16 (8 significant bits); a pointwise sum of at most 16384 such values
# times 2 stays below 2**24, so it is exact in float32.
_MAX_TAPS = 60
_MAX_TERMS = 16384


@dataclass(frozen=True, eq=False)
class Weights:
    """A problem's parameters; None where the problem has none of them.

    ``depthwise`` is (C·m, 1, kh, kw), torch's shape of the 5-D grouped weights (groups=C, m, 1,
    kh, kw). ``pointwise`` is what sums over channels: (OC, C·m, 1, 1) after a depthwise stage,
    (OC, C, kh, kw) of an ordinary convolution, (OC, C, 1, 1) of a linear layer. The biases are
    (C·m,) and (OC,). Those of a quantised problem have a ``quantization``: the weights are whole
    numbers from -128 to 127, the biases the numbers themselves.
    """

    depthwise: Array | None = None
    depthwise_bias: Array | None = None
    pointwise: Array | None = None
    pointwise_bias: Array | None = None
    quantization: Quantization | None = None

    def check(self, problem: Problem) -> None:
        """Raises ValueError naming the array that does not fit the problem."""
        for name, expected in _shapes(problem).items():
            array = getattr(self, name)
            shape = None if array is None else array.shape
            if shape != expected:
                raise ValueError(f"{name}: shape {shape}, the problem has {expected}")
        self._check_quantization(problem)

    def _check_quantization(self, problem: Problem) -> None:
        precision, found = problem.precision, self.quantization
        if (found is None) == precision.quantized:
            rule = "has to be there" if precision.quantized else "must not be there"
            raise ValueError(f"quantization: {rule} for a problem in {problem.dtype}")
        if found is None:
            return
        there = {
            "middle": problem.kind == "separable",
            "destination": precision.destination.bytes == 1,
            "depthwise": self.depthwise is not None,
            "pointwise": self.pointwise is not None,
        }
        for name, wanted in there.items():
            if (getattr(found, name) is not None) != wanted:
                raise ValueError(f"quantization.{name}: {'missing' if wanted else 'not wanted'}")
        for name in ("depthwise", "pointwise"):
            weights, scales = getattr(self, name), getattr(found, name)
            if weights is None:
                continue
            if scales.shape != weights.shape[:1]:
                raise ValueError(f"quantization.{name}: shape {scales.shape}, not one of a channel")
            if not ((weights == np.rint(weights)) & (weights >= -128) & (weights <= 127)).all():
                raise ValueError(f"{name}: must be whole numbers from -128 to 127")
            target = found.target_of(name)
            if target is None:
                continue
            sums = np.abs(weights).sum(axis=(1, 2, 3), dtype=np.float64) * 255
            steps = sums * scales * found.input_of(name).scale / target.scale
            if not (steps < MOST_STEPS).all():
                raise ValueError(
                    f"quantization.{name}: sums could be more than 2^30 steps of {target.scale:g}"
                )

    def absolute(self) -> Weights:
        """Returns the absolute value of each array."""
        depthwise, bias, pointwise, second_bias = (
            None if array is None else np.abs(array) for array in self.arrays()
        )
        return Weights(depthwise, bias, pointwise, second_bias, self.quantization)

    def arrays(self) -> tuple[Array | None, ...]:
        """Returns depthwise, its bias, pointwise, its bias."""
        return (self.depthwise, self.depthwise_bias, self.pointwise, self.pointwise_bias)


def _shapes(problem: Problem) -> dict[str, tuple[int, ...] | None]:
    """Returns the shape of each of a problem's arrays, by its name in Weights."""
    shapes: dict[str, tuple[int, ...] | None] = {}
    for name, shape in (
        ("depthwise", problem.depthwise_shape),
        ("pointwise", problem.pointwise_shape),
    ):
        shapes[name] = shape
        shapes[f"{name}_bias"] = shape[:1] if shape and problem.bias else None
    return shapes


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """An inference-time batch normalisation: scale·(x - mean)/sqrt(variance + eps) + shift.

    All arrays are (channels,).
    """

    scale: Array
    shift: Array
    mean: Array
    variance: Array
    eps: float = 1e-5


def fold_batchnorm(
    weights: Weights,
    after_depthwise: BatchNorm | None = None,
    after_pointwise: BatchNorm | None = None,
) -> Weights:
    """Returns the weights with the normalisations folded in; each stage of them then has a bias.

    The activations stay where they were, after the normalisations: MobileNet's depthwise -> BN ->
    ReLU -> pointwise -> BN -> ReLU is a problem with bias and activations (relu, relu).

    Raises ValueError where a normalisation follows a stage that the weights do not have.
    """
    depthwise, depthwise_bias = _fold(weights.depthwise, weights.depthwise_bias, after_depthwise)
    pointwise, pointwise_bias = _fold(weights.pointwise, weights.pointwise_bias, after_pointwise)
    return Weights(depthwise, depthwise_bias, pointwise, pointwise_bias)


def _fold(
    weight: Array | None, bias: Array | None, norm: BatchNorm | None
) -> tuple[Array | None, Array | None]:
    if weight is None:
        if norm is not None:
            raise ValueError("a normalisation follows a stage that has no weights")
        return None, None
    start = np.zeros(len(weight), np.float32) if bias is None else bias
    if norm is None:
        return weight, start
    factor = norm.scale / np.sqrt(norm.variance.astype(np.float64) + norm.eps)
    folded = weight * factor[:, None, None, None]
    return folded.astype(np.float32), (norm.shift + (start - norm.mean) * factor).astype(np.float32)


def random_data(problem: Problem, seed: int = 0) -> tuple[Weights, Array]:
    """Returns normally distributed weights and input (N, C, H, W), scaled so that outputs are near
    1."""
    rng = np.random.default_rng(seed)
    if problem.precision.quantized:
        return quantized_data(problem, rng, exact=False)
    dtype = DTYPES[problem.dtype]

    def normal(shape: tuple[int, ...], terms: int, limit: int) -> Array:
        values = rng.standard_normal(shape, dtype=np.float32) / np.float32(max(terms, 1)) ** 0.5
        return dtype.rounded(values)

    return _fill(problem, normal), normal(problem.input_shape, 1, 1)


def integer_data(problem: Problem, seed: int = 0) -> tuple[Weights, Array]:
    """Returns small integers, for which every partial sum is exact in f32 and what is between two
    stages in bf16.

    With activations none, relu or relu6 a correct backend agrees with the reference to the bit.
    """
    rng = np.random.default_rng(seed)
    if problem.precision.quantized:
        return quantized_data(problem, rng, exact=True)

    def integers(shape: tuple[int, ...], terms: int, limit: int) -> Array:
        if terms == 0:
            return rng.integers(-4, 5, shape).astype(np.float32)
        values = rng.integers(-2, 3, shape).astype(np.float32)
        if terms > limit:
            keep = rng.permuted(np.arange(terms) < limit * np.ones((shape[0], 1)), axis=1)
            values *= keep.reshape(shape)
        return values

    x = rng.integers(-2, 3, problem.input_shape).astype(np.float32)
    return _fill(problem, integers), x


def _fill(problem: Problem, draw: Callable[[tuple[int, ...], int, int], Array]) -> Weights:
    """Draws each array as draw(shape, terms, limit): terms are what an output sums up, 0 for a
    bias; with more than ``limit`` of them integers would not stay exact."""
    arrays = {}
    for name, shape in _shapes(problem).items():
        if shape is None:
            continue
        terms = prod(shape[1:]) if len(shape) > 1 else 0
        arrays[name] = draw(shape, terms, _MAX_TAPS if "depthwise" in name else _MAX_TERMS)
    depthwise, bias, pointwise, second_bias = (arrays.get(name) for name in _shapes(problem))
    return Weights(depthwise, bias, pointwise, second_bias)


# Steps of an output's standard deviation, about.
_SPREAD_STEPS = 50.0
# Of numbers that are all as likely: of a byte, and of a weight.
_BYTE_DEVIATION, _WEIGHT_DEVIATION = 74.0, 73.0


def quantized_data(
    problem: Problem, rng: np.random.Generator, exact: bool
) -> tuple[Weights, Array]:
    """Returns weights, scales and an input of bytes, all as likely, of a quantised problem.

    Where they are ``exact`` scales are powers of 2, zero points even, and sums and biases small
    enough that no engine rounds anything but its outputs, however it computes: engines that round
    before they add the zero point, or that have it in their multiply-add, agree.
    """
    precision, arrays = problem.precision, {}
    source = _affine(precision.source, rng, exact, problem.activations[-1])
    fields: dict[str, Affine | Array | None] = {"source": source, "destination": None}
    shapes = _shapes(problem)
    target_of = {"depthwise": "middle", "pointwise": "destination"}
    if problem.kind != "separable":
        target_of["depthwise"] = "destination"
    last = problem.activations[-1]
    activations = {"depthwise": problem.activations[0], "pointwise": last}
    for name, target in target_of.items():
        shape = shapes[name]
        if shape is None:
            continue
        kind = precision.between if target == "middle" else precision.destination
        terms, channels = prod(shape[1:]), shape[0]
        most = min(127, int(2**24 / (255 * terms))) if exact else 127
        arrays[name] = rng.integers(-most, most + 1, shape).astype(np.float32)
        out = None
        if isinstance(kind, ByteDtype):
            out = _affine(kind, rng, exact, activations[name])
        fields[target] = out
        step = out.scale if out is not None else 0.02
        deviation = terms**0.5 * _BYTE_DEVIATION * max(1.0, _WEIGHT_DEVIATION * most / 127)
        scales = step * _SPREAD_STEPS / deviation / source.scale * rng.uniform(0.5, 2, channels)
        if exact:
            scales = 2.0 ** np.rint(np.log2(scales))
        fields[name] = scales.astype(np.float32)
        if problem.bias:
            bias = rng.standard_normal(channels) * step * _SPREAD_STEPS
            if exact:
                unit = scales * source.scale
                bias = np.rint(bias / unit) * unit
            arrays[f"{name}_bias"] = bias.astype(np.float32)
        source = out or source
    dtype = precision.source
    assert isinstance(dtype, ByteDtype)
    x = rng.integers(dtype.low, dtype.high + 1, problem.input_shape).astype(np.float32)
    return Weights(**arrays, quantization=Quantization(**fields)), x  # type: ignore[arg-type]


def _affine(dtype: TensorDtype, rng: np.random.Generator, exact: bool, activation: str) -> Affine:
    """Returns what bytes stand for after an activation (of an input, that of a layer like this
    one). After a limit at 0 they begin there, as quantisers have it; where data is not ``exact``
    that is so in one case of two."""
    assert isinstance(dtype, ByteDtype)
    zero = int(rng.integers(dtype.low // 4, dtype.low // 4 + 100))
    if activation in ("relu", "relu6") and (exact or rng.random() < 0.5):
        zero = dtype.low
    if exact:
        return Affine(2.0 ** float(rng.integers(-8, -5)), zero // 2 * 2)
    return Affine(float(np.float32(rng.uniform(0.01, 0.05))), zero)
