"""Problem: one layer applied to one input. Most are depthwise-separable convolutions.

A problem parses and prints itself in benchdnn's descriptor grammar with what a separable layer
adds (``mb1ic32oc64ih112kh3sh1ph1``), and ``Problem.parse(str(p)) == p`` holds for every problem.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dnnsep.activations import ACTIVATIONS
from dnnsep.descriptor import Pair, fields_of, out_size
from dnnsep.dtypes import PRECISIONS, Precision

__all__ = ["KINDS", "Pair", "Problem"]

# What a problem can be, and how many of its stages an activation may follow.
KINDS: dict[str, int] = {"separable": 2, "convolution": 1, "depthwise": 1, "linear": 1, "mean": 0}


@dataclass(frozen=True)
class Problem:
    """A layer with the shape of its input.

    ``kind`` is one of

    - ``separable``: a depthwise convolution with ``kernel``, then a pointwise (1x1) convolution;
    - ``convolution``: an ordinary convolution (one group), pointwise ones among them;
    - ``depthwise``: a depthwise convolution alone, of at least two channels;
    - ``linear``: a linear layer on ``batch`` rows, height and width being 1;
    - ``mean``: the mean of each channel over all pixels of an image.

    The input is (batch, in_channels, height, width) and the output (batch, out_channels,
    out_height, out_width). A depthwise stage gives in_channels * channel_multiplier channels, of
    which output channel c * channel_multiplier + k reads input channel c. Sizes are in elements.

    ``kernel``, ``stride`` and ``dilation`` are (h, w) pairs. ``padding`` is kept as
    (top, bottom, left, right) and may be given as an (h, w) pair. A single int stands for a pair of
    equals. Bottom and right may be negative: that many rows or columns of the image are not read.
    ``bias`` says whether each stage that has weights also has a bias. ``activations`` names one for
    each stage that an activation may follow, which KINDS counts; empty means "none" for all.
    ``dtype`` is a key of PRECISIONS: f32, bf16, or of a quantised problem such as u8s8.

    Raises ValueError naming the field, the value and the rule it breaks.
    """

    batch: int
    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel: Pair
    stride: Pair = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: Pair = (1, 1)
    channel_multiplier: int = 1
    bias: bool = True
    activations: tuple[str, ...] = ()
    dtype: str = "f32"
    kind: str = "separable"

    def __post_init__(self) -> None:
        _check_choice("kind", self.kind, KINDS)
        for field in ("batch", "in_channels", "out_channels", "height", "width"):
            _require_int(field, getattr(self, field), 1)
        _require_int("channel_multiplier", self.channel_multiplier, 1)
        for field in ("kernel", "stride", "dilation"):
            value = _tuple(field, getattr(self, field), (1, 2), 1)
            object.__setattr__(self, field, value * 2 if len(value) == 1 else value)
        object.__setattr__(self, "padding", _four_sides(self.padding))
        if not isinstance(self.bias, bool):
            raise ValueError(f"bias={self.bias!r}: must be true or false")
        count = KINDS[self.kind]
        activations = tuple(self.activations) or ("none",) * count
        if len(activations) != count:
            raise ValueError(f"activations={activations!r}: must name {count} for a {self.kind}")
        for activation in activations:
            _check_choice("activations", activation, ACTIVATIONS)
        object.__setattr__(self, "activations", activations)
        _check_choice("dtype", self.dtype, PRECISIONS)
        self._check_geometry()
        self._check_kind()

    def _check_geometry(self) -> None:
        """Checks that a kernel fits the padded image, and gives a negative padding its one form."""
        top, bottom, left, right = self.padding
        sides = []
        for axis, size, before, after, kernel, stride, dilation in (
            ("height", self.height, top, bottom, self.kernel[0], self.stride[0], self.dilation[0]),
            ("width", self.width, left, right, self.kernel[1], self.stride[1], self.dilation[1]),
        ):
            reach = dilation * (kernel - 1) + 1
            if size + before + after < reach:
                raise ValueError(
                    f"{axis}={size}: with padding {before}+{after} it must be at least the "
                    f"dilated kernel's {reach}"
                )
            if after < 0:  # several give as many outputs: none, or else the one that oh stands for
                out = out_size(size, (before, after), kernel, stride, dilation)
                whole = out_size(size, (before, 0), kernel, stride, dilation)
                after = 0 if out == whole else (out - 1) * stride + reach - size - before
            sides += [before, after]
        object.__setattr__(self, "padding", tuple(sides))

    def _check_kind(self) -> None:
        plain = (self.stride, self.dilation, self.padding) == ((1, 1), (1, 1), (0, 0, 0, 0))
        if self.kind == "mean" and self.precision.quantized:
            raise ValueError(f"dtype={self.dtype!r}: a mean is not quantised")
        if self.kind not in ("separable", "depthwise") and self.channel_multiplier != 1:
            raise ValueError(f"channel_multiplier={self.channel_multiplier}: a {self.kind} has 1")
        if self.kind == "depthwise":
            if self.in_channels == 1:
                raise ValueError("in_channels=1: depthwise needs 2, with 1 it is an ordinary one")
            if self.out_channels != self.mid_channels:
                raise ValueError(
                    f"out_channels={self.out_channels}: must be in_channels * channel_multiplier, "
                    f"{self.mid_channels}"
                )
        if self.kind == "linear" and not (
            plain and self.kernel == (self.height, self.width) == (1, 1)
        ):
            raise ValueError("kind='linear': has 1x1 images, a 1x1 kernel and no padding")
        if self.kind == "mean":
            if not plain or self.kernel != (self.height, self.width) or self.bias:
                raise ValueError("kind='mean': its kernel is the image, it has no padding or bias")
            if self.out_channels != self.in_channels:
                raise ValueError(f"out_channels={self.out_channels}: must be {self.in_channels}")

    @classmethod
    def mean(
        cls, batch: int, channels: int, height: int, width: int, dtype: str = "f32"
    ) -> Problem:
        """Returns the mean over all pixels of (batch, channels, height, width)."""
        size = (height, width)
        return cls(
            batch, channels, channels, height, width, size, bias=False, dtype=dtype, kind="mean"
        )

    @property
    def precision(self) -> Precision:
        """What the input and the output hold."""
        return PRECISIONS[self.dtype]

    @property
    def mid_channels(self) -> int:
        """Channels that a depthwise stage gives: in_channels * channel_multiplier."""
        return self.in_channels * self.channel_multiplier

    @property
    def depthwise_shape(self) -> tuple[int, int, int, int] | None:
        """Shape (C·m, 1, kh, kw) of the depthwise stage's weights; None without such a stage."""
        if self.kind not in ("separable", "depthwise"):
            return None
        return (self.mid_channels, 1, *self.kernel)

    @property
    def pointwise_shape(self) -> tuple[int, int, int, int] | None:
        """Shape (OC, C, kh, kw) of the weights of the stage that sums over channels, where C is its
        input's channels and the kernel 1x1 after a depthwise stage; None without such a stage."""
        if self.kind in ("depthwise", "mean"):
            return None
        kernel = (1, 1) if self.kind == "separable" else self.kernel
        return (self.out_channels, self.mid_channels, *kernel)

    @property
    def sums_over_channels(self) -> bool:
        """Whether the last stage multiplies by a matrix."""
        return self.pointwise_shape is not None

    @property
    def out_height(self) -> int:
        return out_size(
            self.height, self.padding[:2], self.kernel[0], self.stride[0], self.dilation[0]
        )

    @property
    def out_width(self) -> int:
        return out_size(
            self.width, self.padding[2:], self.kernel[1], self.stride[1], self.dilation[1]
        )

    @property
    def out_pixels(self) -> int:
        """Pixels of the whole batch's output: the rows of the pointwise matrix product."""
        return self.batch * self.out_height * self.out_width

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W), logical."""
        return (self.batch, self.in_channels, self.height, self.width)

    @property
    def mid_shape(self) -> tuple[int, int, int, int]:
        """(N, C·m, OH, OW): what a depthwise stage gives, logical."""
        return (self.batch, self.mid_channels, self.out_height, self.out_width)

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """(N, OC, OH, OW), logical."""
        return (self.batch, self.out_channels, self.out_height, self.out_width)

    @property
    def symmetric_padding(self) -> Pair | None:
        """(h, w) where both sides of each axis are padded alike, otherwise None."""
        top, bottom, left, right = self.padding
        return (top, left) if (top, left) == (bottom, right) else None

    @property
    def keeps_integers(self) -> bool:
        """Whether integers in the input and the weights make integers in the output."""
        kept = all(ACTIVATIONS[name].keeps_integers for name in self.activations)
        return kept and self.kind != "mean"

    def __str__(self) -> str:
        words = "" if self.bias or self.kind == "mean" else "_nobias"
        if set(self.activations) - {"none"}:
            words += f"_act:{','.join(self.activations)}"
        words += f"_{self.dtype}" if self.dtype != "f32" else ""
        if self.kind == "linear":
            return f"linear_mb{self.batch}ic{self.in_channels}oc{self.out_channels}{words}"
        size = f"ih{self.height}" + (f"iw{self.width}" if self.width != self.height else "")
        if self.kind == "mean":
            return f"mean_mb{self.batch}ic{self.in_channels}{size}{words}"
        groups = {"convolution": "g1", "depthwise": f"g{self.in_channels}"}.get(self.kind, "")
        text = f"{groups}mb{self.batch}ic{self.in_channels}oc{self.out_channels}{size}"
        text += _pair_text("k", *self.kernel) + _pair_text("s", *self.stride)
        top, bottom, left, right = self.padding
        text += _pair_text("p", top, left)
        for after, before, side, out in (
            (bottom, top, "pb", f"oh{self.out_height}"),
            (right, left, "pr", f"ow{self.out_width}"),
        ):
            if after != before:
                text += out if after < 0 else f"{side}{after}"
        if self.dilation != (1, 1):
            text += _pair_text("d", self.dilation[0] - 1, self.dilation[1] - 1)
        text += f"cm{self.channel_multiplier}" if self.channel_multiplier != 1 else ""
        return text + words

    @classmethod
    def parse(cls, text: str) -> Problem:
        """Reads a descriptor. Raises ValueError naming the descriptor, the key and the rule.

        Without ``g`` it is a separable layer. As in benchdnn ``g1`` is an ordinary convolution and
        ``g`` equal to ``ic`` a depthwise one; ``linear_`` and ``mean_`` begin those layers'. As in
        benchdnn an image without any h-key has one row, ``dh0`` means not dilated, ``ph`` and
        ``pw`` are the padding above and left, and ``oh``/``ow`` settle the padding below and right
        where they differ; ``pb`` and ``pr`` give those outright. Each missing w-key takes its
        h-key's value, where benchdnn takes either all of them or none.
        """
        try:
            return cls(**fields_of(text))
        except ValueError as error:
            raise ValueError(f"descriptor {text!r}: {error}") from None


def _pair_text(key: str, h: int, w: int) -> str:
    return f"{key}h{h}" + (f"{key}w{w}" if w != h else "")


def _require_int(field: str, value: Any, least: int | None) -> None:
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if not is_int or (least is not None and value < least):
        rule = "" if least is None else f" of at least {least}"
        raise ValueError(f"{field}={value!r}: must be a whole number{rule}")


def _tuple(field: str, value: Any, lengths: tuple[int, ...], least: int | None) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(values) not in lengths:
        raise ValueError(f"{field}={value!r}: must have {' or '.join(map(str, lengths))} numbers")
    for number in values:
        _require_int(field, number, least)
    return values


def _four_sides(value: Any) -> tuple[int, ...]:
    sides = _tuple("padding", value, (1, 2, 4), None)
    if len(sides) == 1:
        sides = sides * 4
    elif len(sides) == 2:
        sides = (sides[0], sides[0], sides[1], sides[1])
    for side in (sides[0], sides[2]):  # above and left
        _require_int("padding", side, 0)
    return sides


def _check_choice(field: str, value: Any, choices: dict[str, Any]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{field}={value!r}: must be one of {', '.join(choices)}")
