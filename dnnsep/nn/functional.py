"""TensorFlow's ``tf.nn.separable_conv2d`` on torch tensors.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dnnsep.backends import get_backend
from dnnsep.backends.executor import TORCH_DTYPES
from dnnsep.nn.layer import Geometry, Parameters, plain
from dnnsep.nn.operator import separable_conv2d as run
from dnnsep.problem import Pair

_FORMATS = ("NHWC", "NCHW")


def separable_conv2d(
    input: Tensor,
    depthwise_filter: Tensor,
    pointwise_filter: Tensor,
    strides: Sequence[int],
    padding: str | Sequence[Sequence[int]],
    data_format: str | None = None,
    dilations: Sequence[int] | None = None,
    name: str | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Returns a depthwise convolution followed by a pointwise one, the arguments meaning what they
    mean in TensorFlow.

    ``input`` is (N, H, W, C), or (N, C, H, W) with ``data_format`` "NCHW"; ``depthwise_filter``
    (kh, kw, C, m); ``pointwise_filter`` (1, 1, C·m, OC); ``strides`` four numbers, one for each
    axis of the data format; ``padding`` "SAME", "VALID" or a (before, after) pair for each axis;
    ``dilations`` (h, w), None for none. ``name`` means nothing here. The result has the data
    format of the input.

    f32 and bf16 run on the backend, which packs the filters once for as long as they do not change;
    f64 and f16 in plain PyTorch. Gradients are recorded where torch wants them.

    Raises ValueError for what TensorFlow refuses, naming the argument and the rule.
    """
    get_backend(backend)
    data_format = data_format or "NHWC"
    if data_format not in _FORMATS:
        raise ValueError(f"data_format={data_format!r}: must be NHWC or NCHW")
    _check_filters(input, depthwise_filter, pointwise_filter, data_format)
    dilation = _dilation(dilations)
    stride = _stride(strides, data_format)
    if max(dilation) > 1 and max(stride) > 1:
        raise ValueError(f"strides={strides!r}: must all be 1 where dilations are greater than 1")
    x = input if data_format == "NCHW" else input.permute(0, 3, 1, 2)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, depthwise_filter.shape[:2], strict=True)]
    sides = _padding(padding, data_format, tuple(x.shape[2:]), reach, stride)
    kernel_height, kernel_width, channels, multiplier = depthwise_filter.shape
    depthwise = depthwise_filter.permute(2, 3, 0, 1).reshape(
        channels * multiplier, 1, kernel_height, kernel_width
    )
    parameters = Parameters(depthwise, None, pointwise_filter.permute(3, 2, 0, 1), None)
    geometry = Geometry(stride, sides, dilation, ("none", "none"))
    on_backend = x.dtype in TORCH_DTYPES.values() and x.device.type in ("cpu", "meta")
    if on_backend:
        y = run(x, parameters, geometry, backend)
    else:
        y = plain(x, parameters, geometry, x.shape[1])
    return y if data_format == "NCHW" else y.permute(0, 2, 3, 1)


def _check_filters(x: Tensor, depthwise: Tensor, pointwise: Tensor, data_format: str) -> None:
    tensors = {"input": x, "depthwise_filter": depthwise, "pointwise_filter": pointwise}
    for name, tensor in tensors.items():
        if tensor.dim() != 4:
            raise ValueError(f"{name}: must have 4 dimensions, it has {tensor.dim()}")
        if tensor.dtype != x.dtype:
            raise ValueError(f"{name}: dtype {tensor.dtype}, the input has {x.dtype}")
    channels = x.shape[data_format.index("C")]
    if depthwise.shape[2] != channels:
        raise ValueError(
            f"depthwise_filter: for {depthwise.shape[2]} channels, the input has {channels}"
        )
    if tuple(pointwise.shape[:2]) != (1, 1):
        raise ValueError(f"pointwise_filter: shape {tuple(pointwise.shape)}, must be (1, 1, …)")
    between = channels * depthwise.shape[3]
    if pointwise.shape[2] != between:
        raise ValueError(
            f"pointwise_filter: for {pointwise.shape[2]} channels, the depthwise stage gives "
            f"{between}"
        )


def _stride(strides: Sequence[int], data_format: str) -> Pair:
    if len(strides) != 4 or any(s < 1 for s in strides):
        raise ValueError(f"strides={strides!r}: must be four numbers of at least 1")
    by_axis = dict(zip(data_format, strides, strict=True))
    if by_axis["N"] != 1 or by_axis["C"] != 1:
        raise ValueError(f"strides={strides!r}: must be 1 along the batch and the channels")
    if by_axis["H"] != by_axis["W"]:
        raise ValueError(f"strides={strides!r}: must be the same along height and width")
    return by_axis["H"], by_axis["W"]


def _dilation(dilations: Sequence[int] | None) -> Pair:
    values = (1, 1) if dilations is None else tuple(dilations)
    if len(values) != 2 or any(d < 1 for d in values):
        raise ValueError(f"dilations={dilations!r}: must be two numbers of at least 1")
    return values[0], values[1]


def _padding(
    padding: Any,
    data_format: str,
    size: tuple[int, ...],
    reach: Sequence[int],
    stride: Pair,
) -> tuple[int, int, int, int]:
    """Returns the padding as (top, bottom, left, right)."""
    if padding == "VALID":
        return 0, 0, 0, 0
    if padding == "SAME":
        # As many outputs as inputs over the stride, rounded up; an odd one goes below and right.
        missing = [
            max(0, (-(-n // s) - 1) * s + r - n)
            for n, s, r in zip(size, stride, reach, strict=True)
        ]
        top, left = (n // 2 for n in missing)
        return top, missing[0] - top, left, missing[1] - left
    if isinstance(padding, str) or len(padding) != 4 or any(len(p) != 2 for p in padding):
        raise ValueError(f"padding={padding!r}: must be SAME, VALID or four (before, after) pairs")
    by_axis = dict(zip(data_format, padding, strict=True))
    if any(by_axis["N"]) or any(by_axis["C"]):
        raise ValueError(f"padding={padding!r}: must be 0 along the batch and the channels")
    if any(n < 0 for sides in padding for n in sides):
        raise ValueError(f"padding={padding!r}: must not be negative")
    (top, bottom), (left, right) = by_axis["H"], by_axis["W"]
    return top, bottom, left, right
