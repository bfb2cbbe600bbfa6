"""The descriptors' grammar: from a text such as ``mb1ic32oc64ih112kh3`` to a Problem's fields.

It is benchdnn's, with what a separable layer, a linear one and a mean add. ``Problem.parse`` says
what the keys mean; ``Problem.__str__`` prints them.
"""

from __future__ import annotations

import re
from typing import Any

from dnnsep.dtypes import PRECISIONS

Pair = tuple[int, int]

_KEYS = (
    *("mb", "ic", "oc", "ih", "iw", "kh", "kw", "sh", "sw", "ph", "pw", "pb", "pr", "dh", "dw"),
    *("cm", "g", "oh", "ow"),
)
# The kinds that a word at a descriptor's beginning names, with the keys that each of them takes.
_WORDS: dict[str, tuple[str, ...]] = {
    "linear": ("mb", "ic", "oc"),
    "mean": ("mb", "ic", "ih", "iw"),
}
_MOST_DIGITS = 9
_GRAMMAR = f"the grammar is: {' '.join(_KEYS)}, then _nobias _act:A,B _bf16 or another dtype"


def fields_of(text: str) -> dict[str, Any]:
    """Returns the fields of the Problem that a descriptor stands for; Problem checks their values.

    Raises ValueError naming the key and the rule.
    """
    kind, numbers, words = _tokens(text)
    sizes = _sizes_of_word(kind, numbers) if kind else _sizes(numbers)
    return sizes | words


def out_size(size: int, padding: tuple[int, ...], kernel: int, stride: int, dilation: int) -> int:
    """Returns how many places a dilated kernel has along an axis, padded on both sides."""
    return (size + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1


def _tokens(text: str) -> tuple[str, dict[str, int], dict[str, Any]]:
    """Splits a descriptor into the word it begins with ("" for none), its numbers by key, and its
    other words as Problem fields."""
    numbers: dict[str, int] = {}
    words: dict[str, Any] = {}
    kind, *pieces = text.strip().split("_")
    if kind not in _WORDS:
        kind, pieces = "", [kind, *pieces]
    for piece in pieces:
        if piece in PRECISIONS:
            words["dtype"] = piece
        elif piece in ("bias", "nobias"):
            words["bias"] = piece == "bias"
        elif piece.startswith("act:"):
            words["activations"] = tuple(piece.removeprefix("act:").split(","))
        elif re.fullmatch(r"([a-z]+[0-9]+)+", piece):
            for key, value in re.findall(r"([a-z]+)([0-9]+)", piece):
                if len(value.lstrip("0")) > _MOST_DIGITS:
                    raise ValueError(f"{key:.20}: a number of {len(value)} digits is too large")
                if numbers.get(key, int(value)) != int(value):
                    raise ValueError(f"{key}: given twice")
                if key not in _KEYS:
                    raise ValueError(f"{key}: unknown key, {_GRAMMAR}")
                numbers[key] = int(value)
        else:
            raise ValueError(f"{piece[:60]!r}: not understood, {_GRAMMAR}")
    return kind, numbers, words


def _sizes_of_word(kind: str, numbers: dict[str, int]) -> dict[str, Any]:
    """Returns Problem's fields of a linear layer or a mean."""
    for key in numbers:
        if key not in _WORDS[kind]:
            raise ValueError(f"{key}: a {kind} has only {' '.join(_WORDS[kind])}")
    for key in _WORDS[kind]:
        if key not in numbers and key not in ("mb", "iw"):
            raise ValueError(f"{key}: missing")
    channels = numbers["ic"]
    size = (numbers.get("ih", 1), numbers.get("iw", numbers.get("ih", 1)))
    return {
        "batch": numbers.get("mb", 1),
        "in_channels": channels,
        "out_channels": numbers.get("oc", channels),
        "height": size[0],
        "width": size[1],
        "kernel": size,
        "bias": kind != "mean",
        "kind": kind,
    }


def _sizes(numbers: dict[str, int]) -> dict[str, Any]:
    """Returns Problem's fields from a convolution's numbers, with benchdnn's defaults."""
    for key in ("ic", "oc", "ih", "kh"):
        other = {"ih": "iw", "kh": "kw"}.get(key, key)
        if key not in numbers and other not in numbers:
            raise ValueError(f"{key}: missing")
    one_row = not {"ih", "kh", "sh", "ph", "dh", "oh", "pb"} & set(numbers)

    def pair(h: str, w: str, default: int) -> Pair:
        if one_row:
            return default, numbers.get(w, default)
        first = numbers.get(h, numbers.get(w, default))
        return first, numbers.get(w, first)

    (height, width), kernel = pair("ih", "iw", 1), pair("kh", "kw", 1)
    stride, (dh, dw), (top, left) = pair("sh", "sw", 1), pair("dh", "dw", 0), pair("ph", "pw", 0)
    sides = []
    for axis, size, before, k, s, d, side, out in (
        ("h", height, top, kernel[0], stride[0], dh + 1, "pb", numbers.get("oh")),
        ("w", width, left, kernel[1], stride[1], dw + 1, "pr", numbers.get("ow")),
    ):
        after = numbers.get(side, before)
        if out is not None and s > 0 and out_size(size, (before, after), k, s, d) != out:
            if side in numbers or out < 1:
                raise ValueError(f"o{axis}={out}: does not follow from the other sizes")
            after = (out - 1) * s + d * (k - 1) + 1 - size - before
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
        **_groups(numbers),
    }


def _groups(numbers: dict[str, int]) -> dict[str, Any]:
    """Returns Problem's kind and channel multiplier, as ``g`` and ``cm`` say."""
    multiplier = numbers.get("cm", 1)
    groups, ic, oc = numbers.get("g"), numbers["ic"], numbers["oc"]
    if groups is None:
        return {"kind": "separable", "channel_multiplier": multiplier}
    if groups == 1:
        return {"kind": "convolution", "channel_multiplier": multiplier}
    if groups != ic:
        raise ValueError(f"g={groups}: must equal ic={ic} (depthwise), or be 1 (ordinary)")
    if oc % ic or numbers.get("cm", oc // ic) != oc // ic:
        raise ValueError(f"oc={oc}: a depthwise convolution gives a multiple of g={groups}")
    return {"kind": "depthwise", "channel_multiplier": oc // ic}
