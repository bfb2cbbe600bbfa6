"""Problem: one depthwise-separable convolution layer applied to one input.

A problem parses and prints itself in benchdnn's descriptor grammar with what a separable layer
adds (``mb1ic32oc64ih112kh3sh1ph1``), and ``Problem.parse(str(p)) == p`` holds for every problem.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

ACTIVATIONS = ("none", "relu", "relu6", "silu", "hardswish", "gelu")
DTYPES = ("f32", "bf16")
DTYPE_BYTES = {"f32": 4, "bf16": 2}

Pair = tuple[int, int]

_KEYS = "mb ic oc ih iw kh kw sh sw ph pw pb pr dh dw cm g oh ow"
_GRAMMAR = f"the grammar is: {_KEYS}, then _nobias _act:A,B _bf16"


@dataclass(frozen=True)
class Problem:
    """A depthwise convolution with ``kernel`` followed by a 1x1 (pointwise) convolution.

    The input is (batch, in_channels, height, width); the depthwise stage gives
    (batch, in_channels * channel_multiplier, out_height, out_width); the pointwise stage gives
    (batch, out_channels, out_height, out_width). Sizes are in elements.

    ``kernel``, ``stride`` and ``dilation`` are (h, w) pairs. ``padding`` is kept as
    (top, bottom, left, right) and may be given as an (h, w) pair. A single int stands for a pair
    of equals. ``bias`` says whether both stages have one. ``activations`` follow the depthwise and
    the pointwise stage.

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
    activations: tuple[str, str] = ("none", "none")
    dtype: str = "f32"

    known_activations: ClassVar[tuple[str, ...]] = ACTIVATIONS

    def __post_init__(self) -> None:
        for field in ("batch", "in_channels", "out_channels", "height", "width"):
            _require_int(field, getattr(self, field), 1)
        _require_int("channel_multiplier", self.channel_multiplier, 1)
        for field in ("kernel", "stride", "dilation"):
            value = _tuple(field, getattr(self, field), (1, 2), 1)
            object.__setattr__(self, field, value * 2 if len(value) == 1 else value)
        object.__setattr__(self, "padding", _four_sides(self.padding))
        if not isinstance(self.bias, bool):
            raise ValueError(f"bias={self.bias!r}: must be true or false")
        _check_choices("activations", tuple(self.activations), self.known_activations, 2)
        object.__setattr__(self, "activations", tuple(self.activations))
        _check_choices("dtype", (self.dtype,), DTYPES, 1)
        self._check_geometry()

    def _check_geometry(self) -> None:
        top, bottom, left, right = self.padding
        for axis, size, before, after, kernel, dilation in (
            ("height", self.height, top, bottom, self.kernel[0], self.dilation[0]),
            ("width", self.width, left, right, self.kernel[1], self.dilation[1]),
        ):
            reach = dilation * (kernel - 1) + 1
            if max(before, after) >= reach:
                raise ValueError(
                    f"padding={max(before, after)}: must be less than the dilated kernel's "
                    f"{axis} of {reach}"
                )
            if size + before + after < reach:
                raise ValueError(
                    f"{axis}={size}: with padding {before}+{after} it must be at least the "
                    f"dilated kernel's {reach}"
                )

    @property
    def mid_channels(self) -> int:
        """Channels between the stages: in_channels * channel_multiplier."""
        return self.in_channels * self.channel_multiplier

    @property
    def depthwise_shape(self) -> tuple[int, int, int, int]:
        """(C·m, 1, kh, kw): of the depthwise weights."""
        return (self.mid_channels, 1, *self.kernel)

    @property
    def pointwise_shape(self) -> tuple[int, int, int, int]:
        """(OC, C·m, 1, 1): of the pointwise weights."""
        return (self.out_channels, self.mid_channels, 1, 1)

    @property
    def out_height(self) -> int:
        return _out_size(
            self.height, self.padding[:2], self.kernel[0], self.stride[0], self.dilation[0]
        )

    @property
    def out_width(self) -> int:
        return _out_size(
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
        """(N, C, OH, OW) between the stages, logical."""
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

    def __str__(self) -> str:
        top, bottom, left, right = self.padding
        text = f"mb{self.batch}ic{self.in_channels}oc{self.out_channels}ih{self.height}"
        text += f"iw{self.width}" if self.width != self.height else ""
        text += _pair_text("k", *self.kernel) + _pair_text("s", *self.stride)
        text += _pair_text("p", top, left)
        text += f"pb{bottom}" if bottom != top else ""
        text += f"pr{right}" if right != left else ""
        if self.dilation != (1, 1):
            text += _pair_text("d", self.dilation[0] - 1, self.dilation[1] - 1)
        text += f"cm{self.channel_multiplier}" if self.channel_multiplier != 1 else ""
        text += "" if self.bias else "_nobias"
        text += f"_act:{','.join(self.activations)}" if self.activations != ("none", "none") else ""
        text += f"_{self.dtype}" if self.dtype != "f32" else ""
        return text

    @classmethod
    def parse(cls, text: str) -> Problem:
        """Read a descriptor. Raises ValueError naming the descriptor, the key and the rule.

        As in benchdnn a missing w-key takes the h-key's value, ``dh0`` means not dilated, ``ph``
        and ``pw`` are the padding above and left, and ``oh``/``ow`` settle the padding below and
        right where they differ; ``pb`` and ``pr`` give those outright.
        """
        try:
            numbers, words = _tokens(text)
            return cls(**_sizes(numbers), **words)
        except ValueError as error:
            raise ValueError(f"descriptor {text!r}: {error}") from None


def _tokens(text: str) -> tuple[dict[str, int], dict[str, Any]]:
    """Split a descriptor into its numbers by key and its words as Problem fields."""
    numbers: dict[str, int] = {}
    words: dict[str, Any] = {}
    for piece in text.strip().split("_"):
        if piece in DTYPES:
            words["dtype"] = piece
        elif piece in ("bias", "nobias"):
            words["bias"] = piece == "bias"
        elif piece.startswith("act:"):
            words["activations"] = tuple(piece.removeprefix("act:").split(","))
        elif re.fullmatch(r"([a-z]+\d+)+", piece):
            for key, value in re.findall(r"([a-z]+)(\d+)", piece):
                if key in numbers:
                    raise ValueError(f"{key}: given twice")
                if key not in _KEYS.split():
                    raise ValueError(f"{key}: unknown key, {_GRAMMAR}")
                numbers[key] = int(value)
        else:
            raise ValueError(f"{piece!r}: not understood, {_GRAMMAR}")
    return numbers, words


def _sizes(numbers: dict[str, int]) -> dict[str, Any]:
    """Problem's sizes from a descriptor's numbers, with benchdnn's defaults."""
    for key in ("ic", "oc", "ih", "kh"):
        other = {"ih": "iw", "kh": "kw"}.get(key, key)
        if key not in numbers and other not in numbers:
            raise ValueError(f"{key}: missing")
    if numbers.get("g", numbers["ic"]) != numbers["ic"]:
        raise ValueError(f"g={numbers['g']}: must equal ic={numbers['ic']} (depthwise)")

    def pair(h: str, w: str, default: int) -> Pair:
        first = numbers.get(h, numbers.get(w, default))
        return first, numbers.get(w, first)

    height, width = pair("ih", "iw", 0)
    kernel, stride, (dh, dw) = pair("kh", "kw", 0), pair("sh", "sw", 1), pair("dh", "dw", 0)
    top, left = pair("ph", "pw", 0)
    sides = []
    for axis, size, before, k, s, d, side, out in (
        ("h", height, top, kernel[0], stride[0], dh + 1, "pb", numbers.get("oh")),
        ("w", width, left, kernel[1], stride[1], dw + 1, "pr", numbers.get("ow")),
    ):
        after = numbers.get(side, before)
        if out is not None and s > 0 and _out_size(size, (before, after), k, s, d) != out:
            after = (out - 1) * s + d * (k - 1) + 1 - size - before
            if not 0 <= after <= d * (k - 1) or side in numbers:
                raise ValueError(f"o{axis}={out}: does not follow from the other sizes")
        sides += [before, after]
    return {
        "batch": numbers.get("mb", 1),
        "in_channels": numbers["ic"],
        "out_channels": numbers["oc"],
        "height": height,
        "width": width,
        "kernel": kernel,
        "stride": stride,
        "padding": tuple(sides),
        "dilation": (dh + 1, dw + 1),
        "channel_multiplier": numbers.get("cm", 1),
    }


def _out_size(size: int, padding: tuple[int, ...], kernel: int, stride: int, dilation: int) -> int:
    return (size + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1


def _pair_text(key: str, h: int, w: int) -> str:
    return f"{key}h{h}" + (f"{key}w{w}" if w != h else "")


def _require_int(field: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{field}={value!r}: must be a whole number of at least {least}")


def _tuple(field: str, value: Any, lengths: tuple[int, ...], least: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(values) not in lengths:
        raise ValueError(f"{field}={value!r}: must have {' or '.join(map(str, lengths))} numbers")
    for number in values:
        _require_int(field, number, least)
    return values


def _four_sides(value: Any) -> tuple[int, ...]:
    sides = _tuple("padding", value, (1, 2, 4), 0)
    if len(sides) == 1:
        return sides * 4
    if len(sides) == 2:
        return (sides[0], sides[0], sides[1], sides[1])
    return sides


def _check_choices(
    field: str, values: tuple[Any, ...], choices: tuple[str, ...], count: int
) -> None:
    if len(values) != count:
        raise ValueError(f"{field}={values!r}: must name {count}, one a stage")
    for value in values:
        if value not in choices:
            raise ValueError(f"{field}={value!r}: must be one of {', '.join(choices)}")
