"""Models in int8, for each engine in the form that it takes: all calibrated on the same inputs.

Imports torch and each engine's own quantiser only when it is used.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, fx, nn

_BATCHES = 8


def calibration(x: Tensor) -> list[Tensor]:
    """Returns inputs like x, the same ones each time, normally distributed: weights of models by
    name may be random, and no image means anything to them."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return [torch.randn(x.shape, generator=generator) for _ in range(_BATCHES)]


def by_pt2e(model: nn.Module, x: Tensor) -> fx.GraphModule:
    """Returns the model as ``dnnsep.quantize`` makes it: activations u8 by tensor, weights s8 by
    channel."""
    from dnnsep.graph.quantize import quantize

    return quantize(model, calibration(x))


def by_ipex(model: nn.Module, x: Tensor) -> nn.Module:
    """Returns the model by IPEX's static quantisation, in its default configuration."""
    from intel_extension_for_pytorch import quantization

    settings = quantization.default_static_qconfig_mapping
    prepared = quantization.prepare(model, settings, example_inputs=x, inplace=False)
    for batch in calibration(x):
        prepared(batch)
    converted: nn.Module = quantization.convert(prepared)
    return converted


def qdq_onnx(model: bytes, x: Tensor) -> bytes:
    """Returns an ONNX model with quantise and dequantise operators: by ONNX Runtime's static
    quantisation, activations u8 by tensor, weights s8 by channel, as its guide advises for x86 with
    products of bytes. Its input is called x."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.getLogger().setLevel(logging.ERROR)  # it advises to do what is done here
    with tempfile.TemporaryDirectory() as folder:
        given, simplified, made = (Path(folder) / f"{name}.onnx" for name in "abc")
        given.write_bytes(model)
        quant_pre_process(str(given), str(simplified))
        quantize_static(
            str(simplified),
            str(made),
            _Reader(x),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return made.read_bytes()


class _Reader:
    """What ONNX Runtime calibrates with."""

    def __init__(self, x: Tensor) -> None:
        self._batches: Iterator[Tensor] = iter(calibration(x))

    def get_next(self) -> dict[str, Any] | None:
        """Returns the next batch by the input's name; None after the last one."""
        batch = next(self._batches, None)
        return None if batch is None else {"x": batch.numpy()}
