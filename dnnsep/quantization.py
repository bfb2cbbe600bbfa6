"""What the whole numbers of a quantised layer stand for, and how its sums become whole numbers.

A number is stored as a byte q that stands for ``scale * (q - zero_point)``. Sums of products are
exact, in int32; each becomes an output by one multiply-add in f32 for its channel and one rounding,
to nearest even. Numbers s8 are those of u8 less 128, so all below is told of u8.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dnnsep.activations import ACTIVATIONS, Exact
from dnnsep.dtypes import PRECISIONS, S8, Array, TensorDtype

# Sums may be so many steps of the output at most, so that they are whole numbers of 32 bits.
MOST_STEPS = 2.0**30
# Activations that are limits: they can be applied to an output's steps.
LIMITS = ("none", "relu", "relu6")


@dataclass(frozen=True)
class Affine:
    """A stored number q stands for ``scale * (q - zero_point)``."""

    scale: float
    zero_point: int

    def unsigned(self, dtype: TensorDtype) -> Affine:
        """Returns the same of numbers of a dtype that are stored as u8."""
        return Affine(self.scale, self.zero_point + (128 if dtype == S8 else 0))


@dataclass(frozen=True, eq=False)
class Quantization:
    """The scales and zero points of a layer's tensors.

    ``destination`` is None where the output is f32, ``middle`` (what is between two stages) where
    there is one stage. Weights are symmetric: ``depthwise`` (C·m,) and ``pointwise`` (OC,) are
    their scales by output channel of the stage, None without such a stage. ``residual`` is of bytes
    like the output's, which a layer adds before its last activation; None where it adds none.
    """

    source: Affine
    destination: Affine | None
    middle: Affine | None = None
    depthwise: Array | None = None
    pointwise: Array | None = None
    residual: Affine | None = None

    def input_of(self, stage: str) -> Affine:
        """Returns what the input of a stage, ``depthwise`` or ``pointwise``, stands for."""
        return (self.middle if stage == "pointwise" else None) or self.source

    def target_of(self, stage: str) -> Affine | None:
        """Returns what the output of a stage stands for; None where it is f32."""
        return (self.middle if stage == "depthwise" else None) or self.destination

    def of_stage(
        self, stage: str, dtype: str, bias: Array | None, activation: str
    ) -> Requantization:
        """Returns how the sums of a stage, ``depthwise`` or ``pointwise``, become its output."""
        precision, target = PRECISIONS[dtype], self.target_of(stage)
        between = target is self.middle and target is not None
        kind = precision.between if between else precision.destination
        unsigned = None if target is None else target.unsigned(kind)
        residual = None if between or self.residual is None else self.residual.unsigned(kind)
        source, scales = self.input_of(stage), getattr(self, stage)
        return Requantization.of(source, scales, bias, unsigned, activation, kind, residual)

    def arrays(self) -> dict[str, NDArray[np.floating]]:
        """Returns all that there is as arrays, by field; ``of_arrays`` takes them."""
        found: dict[str, NDArray[np.floating]] = {}
        for name, value in vars(self).items():
            if isinstance(value, Affine):
                found[name] = np.array([value.scale, value.zero_point], np.float64)
            elif value is not None:
                found[name] = value
        return found

    @classmethod
    def of_arrays(cls, arrays: dict[str, NDArray[np.floating]]) -> Quantization:
        """Returns what ``arrays`` told."""
        fields = {
            name: value if value.dtype == np.float32 else Affine(float(value[0]), int(value[1]))
            for name, value in arrays.items()
        }
        return cls(**{"destination": None, **fields})  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Requantization:
    """How a stage's sums become its output: v = sum · ``multiplier`` + ``offset``, one fused
    multiply-add in f32 for each of its output channels.

    Where the output is f32, or its activation is no limit, v is the number that is activated, and
    an f32 output is that. Otherwise v counts steps of the output, zero point included. Of an
    activation that is no limit they are made by a second multiply-add, with ``steps`` (the steps
    in 1, the zero point). Steps are rounded to nearest even and limited to ``limits``. ``target``
    is the output's dtype. Where bytes are added, v + byte · ``added`` takes the place of v: one
    more multiply-add.
    """

    multiplier: Array
    offset: Array
    steps: tuple[float, float]
    limits: tuple[int, int]
    target: TensorDtype
    added: float = 0.0

    @classmethod
    def of(
        cls,
        source: Affine,
        scales: Array,
        bias: Array | None,
        destination: Affine | None,
        activation: str,
        target: TensorDtype,
        residual: Affine | None = None,
    ) -> Requantization:
        """Returns that of a stage; ``destination`` and what is added are of u8, None of f32."""
        factors = source.scale * scales.astype(np.float64)
        offsets = np.zeros(len(scales)) if bias is None else bias.astype(np.float64)
        added = 0.0
        if residual is not None:
            added = residual.scale
            offsets -= added * residual.zero_point
        steps, limits = (1.0, 0.0), (0, 255)
        if destination is not None:
            zero = destination.zero_point
            if activation in LIMITS:
                factors, offsets = factors / destination.scale, offsets / destination.scale + zero
                added /= destination.scale
                low = zero if activation != "none" else 0
                six = int(np.rint(min(6 / destination.scale + zero, 255.0)))
                limits = (min(low, 255), six if activation == "relu6" else 255)
            else:
                steps = (1 / destination.scale, float(zero))
        numbers = factors.astype(np.float32), offsets.astype(np.float32)
        return cls(*numbers, steps, limits, target, added)

    def naive(self, sums: Exact, activation: str, residual: Exact | None = None) -> Exact:
        """Returns the output (N, C, H, W) of sums, which are whole numbers; ``residual`` is what is
        added before the activation, stored like the output."""
        channels = (slice(None), None, None)
        rounded = sums.astype(np.float32)
        v = fma(rounded, self.multiplier[channels], self.offset[channels])
        if residual is not None and self.target.bytes > 1:
            v = v + residual.astype(np.float32)
        elif residual is not None:
            stored = residual + (128 if self.target == S8 else 0)
            v = fma(stored.astype(np.float32), np.float32(self.added), v)
        if self.target.bytes > 1:
            return ACTIVATIONS[activation].naive(v.astype(np.float64))
        if activation not in LIMITS:
            active = ACTIVATIONS[activation].naive(v.astype(np.float64)).astype(np.float32)
            v = fma(active, *map(np.float32, self.steps))
        unsigned: Exact = np.clip(np.rint(v.astype(np.float64)), *self.limits)
        return unsigned - (128 if self.target == S8 else 0)

    def bound(self, size: Exact, error: Exact, activation: str) -> Exact:
        """Returns how far a right output may be off for sums of a size at most that are so far off:
        of bytes by one step more, for engines round in ways of their own."""
        follows, channels = ACTIVATIONS[activation], (slice(None), None, None)
        factor = self.multiplier.astype(np.float64)[channels] * follows.lipschitz
        if self.target.bytes > 1:
            size = size * factor + np.abs(self.offset.astype(np.float64))[channels]
            # Engines may round the bias to a whole number of what sums count.
            rounding = (4 + follows.approximation) * 2.0**-24 * (1 + size)
            return (error + 0.5) * factor + rounding
        return np.ceil(error * factor * (self.steps[0] if activation not in LIMITS else 1)) + 1


def fma(a: Array, b: Array | np.float32, c: Array | np.float32) -> Array:
    """Returns a·b + c in f32, rounded once, to nearest even.

    The product is exact in f64. The sum is rounded to odd there, so that rounding it again to f32
    is as if it had not been rounded before. Source: Boldo and Melquiond, Emulation of FMA and
    correctly rounded sums, IEEE Transactions on Computers 57 (2008).
    """
    product = np.multiply(a, b, dtype=np.float64)
    addend = np.asarray(c, np.float64)
    total = np.asarray(product + addend)
    part = total - product
    error = (product - (total - part)) + (addend - part)
    bits = np.array(total).view(np.int64)
    towards_zero = (error != 0) & ((error > 0) != (total > 0))
    # What was rounded up in size goes back by one unit; then the last bit says that there was more.
    bits = np.where(towards_zero, bits - 1, bits)
    bits = np.where(error != 0, bits | 1, bits)
    return bits.view(np.float64).astype(np.float32)
