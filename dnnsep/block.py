"""Block: what a network repeats, several layers and maybe a residual, applied to one input.

A block parses and prints itself as a problem does, with a word of its own at the beginning
(``mbconv_mb1ic16ex96oc24ih112kh3sh2_act:relu6``), and ``Block.parse(str(b)) == b`` holds for every
block.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import prod
from typing import Any

from dnnsep.activations import ACTIVATIONS
from dnnsep.cost import cost
from dnnsep.descriptor import Pair
from dnnsep.dtypes import PRECISIONS
from dnnsep.problem import Problem

# The kinds of blocks, with the keys that the descriptor of each takes.
BLOCK_KINDS: dict[str, tuple[str, ...]] = {
    "mbconv": ("mb", "ic", "ex", "oc", "ih", "iw", "kh", "kw", "sh", "sw", "se"),
    "convnext": ("mb", "ic", "ex", "ih", "iw", "kh", "kw"),
}
# What a block can run in, and the dtype of its layers as problems.
BLOCK_DTYPES = {"f32": "f32", "bf16": "bf16", "int8": "u8s8"}
_OPTIONAL = ("mb", "iw", "kw", "sh", "sw", "se")
_MOST_DIGITS = 9


@dataclass(frozen=True)
class Block:
    """A block with the shape of its input.

    ``kind`` is one of

    - ``mbconv``: an inverted residual (MobileNet V2, V3, EfficientNet): a 1x1 convolution from
      ``in_channels`` to ``expanded``, left out where these are equal; a depthwise convolution with
      ``kernel`` and ``stride``; where ``squeezed`` is not 0 squeeze-and-excitation (the mean over
      all pixels, a 1x1 convolution to ``squeezed`` channels and one back, whose result scales the
      channels); a 1x1 convolution to ``out_channels``; and the input added where the stride is 1
      and ``in_channels`` equals ``out_channels``. ``activation`` follows the first two, none the
      last one; ``squeezed_activations`` are those within squeeze-and-excitation. Each convolution
      of the first three has a batch norm, which engines fold.
    - ``convnext``: a depthwise convolution with ``kernel``, LayerNorm over channels, linear layers
      from ``in_channels`` to ``expanded`` and back with GELU between them, a scale for each
      channel, and the input added.

    Depthwise convolutions are padded on all sides by half the kernel, rounded down, as these
    networks are in torch; with a stride of 2 TensorFlow's "same" pads otherwise. The input is
    (batch, in_channels, height, width); ``kernel`` and ``stride`` are (h, w) pairs. ``dtype`` is
    ``f32``, ``bf16`` or ``int8`` (quantised by each engine's own quantiser).

    Raises ValueError naming the field, the value and the rule it breaks.
    """

    kind: str
    batch: int
    in_channels: int
    expanded: int
    out_channels: int
    height: int
    width: int
    kernel: Pair
    stride: Pair = (1, 1)
    activation: str = "none"
    squeezed: int = 0
    squeezed_activations: tuple[str, ...] = field(default=())
    dtype: str = "f32"

    def __post_init__(self) -> None:
        _check_choice("kind", self.kind, BLOCK_KINDS)
        _check_choice("activation", self.activation, ACTIVATIONS)
        _check_choice("dtype", self.dtype, BLOCK_DTYPES)
        for name in ("batch", "in_channels", "out_channels", "height", "width"):
            _require_int(name, getattr(self, name), 1)
        _require_int("expanded", self.expanded, 2)
        _require_int("squeezed", self.squeezed, 0)
        for name in ("kernel", "stride"):
            pair = getattr(self, name)
            if len(pair) != 2:
                raise ValueError(f"{name}={pair!r}: must have 2 numbers")
            for number in pair:
                _require_int(name, number, 1)
        if not all(size % 2 for size in self.kernel):
            raise ValueError(f"kernel={self.kernel}: must be odd, half of it is the padding")
        self._check_squeezed()
        if self.kind == "convnext":
            self._check_convnext()

    def _check_squeezed(self) -> None:
        names = tuple(self.squeezed_activations)
        if names and not self.squeezed:
            raise ValueError("squeezed_activations: only with se, squeeze-and-excitation")
        if self.squeezed and not names:
            names = (self.activation, "sigmoid")
        if len(names) not in (0, 2):
            raise ValueError(f"squeezed_activations={names!r}: must name 2, between and after")
        for name in names:
            _check_choice("squeezed_activations", name, ACTIVATIONS)
        object.__setattr__(self, "squeezed_activations", names)

    def _check_convnext(self) -> None:
        if self.out_channels != self.in_channels:
            raise ValueError(f"out_channels={self.out_channels}: must be {self.in_channels}")
        if self.in_channels == 1:
            raise ValueError("in_channels=1: must be at least 2")
        if self.stride != (1, 1) or self.squeezed or self.activation != "gelu":
            raise ValueError("kind='convnext': has a stride of 1, gelu, and no squeezed channels")

    @classmethod
    def parse(cls, text: str) -> Block:
        """Reads a descriptor. Raises ValueError naming the descriptor, the key and the rule.

        Each missing w-key takes its h-key's value; without ``mb`` the batch is 1, without ``sh``
        the stride, and without ``se`` there is no squeeze-and-excitation. With it ``_se:A,B`` are
        its activations, by default the block's own and sigmoid.
        """
        try:
            return cls(**_fields_of(text))
        except ValueError as error:
            raise ValueError(f"descriptor {text!r}: {error}") from None

    @property
    def has_expansion(self) -> bool:
        """Whether an ``mbconv`` begins with a 1x1 convolution."""
        return self.kind == "mbconv" and self.expanded != self.in_channels

    @property
    def has_residual(self) -> bool:
        """Whether the input is added at the end."""
        return self.stride == (1, 1) and self.in_channels == self.out_channels

    @property
    def padding(self) -> Pair:
        """(h, w), on both sides of the depthwise convolution's input."""
        return (self.kernel[0] // 2, self.kernel[1] // 2)

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W), logical."""
        return (self.batch, self.in_channels, self.height, self.width)

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """(N, OC, OH, OW), logical."""
        _, _, height, width = self._depthwise().output_shape
        return (self.batch, self.out_channels, height, width)

    @property
    def layers(self) -> tuple[Problem, ...]:
        """The block's layers with weights, and the mean of squeeze-and-excitation, in the order in
        which they run; normalisations, scales and the residual are in none of them."""
        _, _, height, width = self.output_shape
        depthwise = self._depthwise()
        if self.kind == "convnext":
            pixels = self.batch * height * width
            return (
                depthwise,
                self._linear(pixels, self.in_channels, self.expanded, "gelu"),
                self._linear(pixels, self.expanded, self.in_channels, "none"),
            )
        size = (self.height, self.width)
        found = [depthwise]
        if self.has_expansion:
            expansion = self._pointwise(self.in_channels, self.expanded, size, self.activation)
            found.insert(0, expansion)
        if self.squeezed:
            dtype = "f32" if self.dtype == "int8" else self.dtype
            between, gate = self.squeezed_activations
            found += [
                Problem.mean(self.batch, self.expanded, height, width, dtype),
                self._linear(self.batch, self.expanded, self.squeezed, between),
                self._linear(self.batch, self.squeezed, self.expanded, gate),
            ]
        found.append(self._pointwise(self.expanded, self.out_channels, (height, width), "none"))
        return tuple(found)

    @property
    def flops(self) -> int:
        """Floating-point operations of one call: 2 for each multiply-add of its convolutions and
        linear layers."""
        return sum(cost(layer).flops for layer in self.layers if layer.kind != "mean")

    @property
    def bytes_fused(self) -> int:
        """Bytes of the input, the output, and the weights and biases of all layers, each once, in
        the block's dtype: as if nothing between the layers left the caches."""
        size = PRECISIONS[BLOCK_DTYPES[self.dtype]].source.bytes
        parameters = sum(cost(layer).parameters for layer in self.layers)
        return size * (prod(self.input_shape) + prod(self.output_shape) + parameters)

    def _depthwise(self) -> Problem:
        channels = self.in_channels if self.kind == "convnext" else self.expanded
        activation = "none" if self.kind == "convnext" else self.activation
        return Problem(
            self.batch,
            channels,
            channels,
            self.height,
            self.width,
            self.kernel,
            self.stride,
            (self.padding[0], self.padding[0], self.padding[1], self.padding[1]),
            activations=(activation,),
            dtype=BLOCK_DTYPES[self.dtype],
            kind="depthwise",
        )

    def _pointwise(self, channels: int, out: int, size: Pair, activation: str) -> Problem:
        return Problem(
            self.batch,
            channels,
            out,
            *size,
            (1, 1),
            activations=(activation,),
            dtype=BLOCK_DTYPES[self.dtype],
            kind="convolution",
        )

    def _linear(self, rows: int, channels: int, out: int, activation: str) -> Problem:
        return Problem(
            rows,
            channels,
            out,
            1,
            1,
            (1, 1),
            activations=(activation,),
            dtype=BLOCK_DTYPES[self.dtype],
            kind="linear",
        )

    @property
    def plain(self) -> str:
        """The descriptor without activations, for where there is little room."""
        return re.sub("_(act|se):[a-z0-9,]+", "", str(self))

    def __str__(self) -> str:
        text = f"{self.kind}_mb{self.batch}ic{self.in_channels}ex{self.expanded}"
        text += f"oc{self.out_channels}" if self.kind == "mbconv" else ""
        for key, (h, w) in (("i", (self.height, self.width)), ("k", self.kernel)):
            text += f"{key}h{h}" + (f"{key}w{w}" if w != h else "")
        if self.kind == "mbconv":
            h, w = self.stride
            text += f"sh{h}" + (f"sw{w}" if w != h else "")
            text += f"se{self.squeezed}" if self.squeezed else ""
            text += f"_act:{self.activation}" if self.activation != "none" else ""
            if self.squeezed_activations not in ((), (self.activation, "sigmoid")):
                text += f"_se:{','.join(self.squeezed_activations)}"
        return text + (f"_{self.dtype}" if self.dtype != "f32" else "")


def is_block(text: str) -> bool:
    """Returns whether a text is a block's descriptor, right or wrong, by the word and the numbers
    that it begins with: networks have names such as convnext_tiny."""
    return re.match(rf"\s*({'|'.join(BLOCK_KINDS)})_([a-z]+[0-9]+)+(_|\s*$)", text) is not None


def _fields_of(text: str) -> dict[str, Any]:
    """Returns the fields of the Block that a descriptor stands for; Block checks their values."""
    kind, *pieces = text.strip().split("_")
    if kind not in BLOCK_KINDS:
        raise ValueError(f"{kind[:60]!r}: a block begins with {' or '.join(BLOCK_KINDS)}")
    numbers, words = _tokens(kind, pieces)
    for key in BLOCK_KINDS[kind]:
        if key not in numbers and key not in _OPTIONAL:
            raise ValueError(f"{key}: missing")
    if kind == "convnext":
        if set(words) - {"dtype"}:
            raise ValueError("act: a convnext's activation is always gelu")
        words["activation"] = "gelu"
    channels, height, kernel = numbers["ic"], numbers["ih"], numbers["kh"]
    stride = numbers.get("sh", numbers.get("sw", 1))
    return {
        "kind": kind,
        "batch": numbers.get("mb", 1),
        "in_channels": channels,
        "expanded": numbers["ex"],
        "out_channels": numbers.get("oc", channels),
        "height": height,
        "width": numbers.get("iw", height),
        "kernel": (kernel, numbers.get("kw", kernel)),
        "stride": (stride, numbers.get("sw", stride)),
        "squeezed": numbers.get("se", 0),
        **words,
    }


def _tokens(kind: str, pieces: list[str]) -> tuple[dict[str, int], dict[str, Any]]:
    """Splits what follows a descriptor's first word into its numbers by key, and its words as
    Block's fields."""
    keys = BLOCK_KINDS[kind]
    grammar = f"the grammar is: {kind}_ {' '.join(keys)}, then _act:A _se:A,B _bf16 or _int8"
    numbers: dict[str, int] = {}
    words: dict[str, Any] = {}
    for piece in pieces:
        name, _, value = piece.partition(":")
        if piece in BLOCK_DTYPES or piece in PRECISIONS:
            words["dtype"] = piece
        elif name == "act" and value:
            words["activation"] = value
        elif name == "se" and value:
            words["squeezed_activations"] = tuple(value.split(","))
        elif re.fullmatch(r"([a-z]+[0-9]+)+", piece):
            for key, digits in re.findall(r"([a-z]+)([0-9]+)", piece):
                if len(digits.lstrip("0")) > _MOST_DIGITS:
                    raise ValueError(f"{key:.20}: a number of {len(digits)} digits is too large")
                if key not in keys:
                    raise ValueError(f"{key}: unknown key, {grammar}")
                if numbers.get(key, int(digits)) != int(digits):
                    raise ValueError(f"{key}: given twice")
                numbers[key] = int(digits)
        else:
            raise ValueError(f"{piece[:60]!r}: not understood, {grammar}")
    return numbers, words


def _check_choice(name: str, value: Any, choices: Any) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(choices)}")


def _require_int(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r}: must be a whole number of at least {least}")
