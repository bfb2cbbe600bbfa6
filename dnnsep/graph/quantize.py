"""The short way to a quantised model: ``dnnsep.quantize``, with PT2E of torch or torchao beneath.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, fx, nn

# PT2E's home and that of its quantiser for x86: torchao's, and what torch had before it moved.
_TORCHAO = ("torchao.quantization.pt2e", "torchao.quantization.pt2e.quantizer")
_TORCH = (
    "torch.ao.quantization.quantize_pt2e",
    "torch.ao.quantization.quantizer.x86_inductor_quantizer",
)


def quantize(
    model: nn.Module, batches: Iterable[Tensor | tuple[Any, ...]], *, strict: bool = True
) -> fx.GraphModule:
    """Returns the model with convolutions and linear layers quantised, calibrated on some inputs.

    ``batches`` are arguments of the model, a tensor or a tuple each; the first one is the example
    that it is exported with, and more of them see more of what comes. Activations become u8 by one
    scale and zero point for each tensor, of the range that histograms of the batches give; weights
    s8 by output channel: the default of X86InductorQuantizer. The result is a graph in f32 with
    quantize and dequantize operators, as PT2E's convert_pt2e makes it: it computes what a quantised
    model does, slowly. ``dnnsep.optimize`` makes it fast.

    ``strict`` is torch.export's: that quantiser finds convolutions by names that only a strict
    export leaves, so without it layers may stay in f32.

    Raises ValueError without batches or where the model is in training mode, ImportError where
    neither torchao nor this torch has PT2E, and what torch.export raises.
    """
    if model.training:
        raise ValueError("model: is in training mode, call eval() first")
    given = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
    if not given:
        raise ValueError("batches: at least one is needed to calibrate with")
    flow, quantizers = _pt2e()
    quantizer = quantizers.X86InductorQuantizer()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's own say that they have moved
        exported = torch.export.export(model, given[0], strict=strict).module()
        quantizer.set_global(quantizers.get_default_x86_inductor_quantization_config())
        prepared = flow.prepare_pt2e(exported, quantizer)
        for batch in given:
            prepared(*batch)
        converted: fx.GraphModule = flow.convert_pt2e(prepared)
    return converted


def _pt2e() -> tuple[Any, Any]:
    """Returns the modules of the flow and of the quantiser."""
    if find_spec("torchao") is not None:
        home = import_module(_TORCHAO[0] + ".quantize_pt2e")
        return home, import_module(_TORCHAO[1] + ".x86_inductor_quantizer")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(_TORCH[0]), import_module(_TORCH[1])
    except ImportError:
        raise ImportError(
            "quantize: this torch has no PT2E any more, install torchao (extra: quantize)"
        ) from None
