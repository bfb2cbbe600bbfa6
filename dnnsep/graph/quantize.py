"""The short way to a quantised model: ``dnnsep.quantize``, with PT2E of torch or torchao beneath.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, fx, nn

from dnnsep.graph.sqnr import (
    FloatRun,
    QuantizationReport,
    name_layers,
    report_of_quantized,
)

# PT2E's home and that of its quantiser for x86: torchao's, and what torch had before it moved.
_TORCHAO = ("torchao.quantization.pt2e", "torchao.quantization.pt2e.quantizer")
_TORCH = (
    "torch.ao.quantization.quantize_pt2e",
    "torch.ao.quantization.quantizer.x86_inductor_quantizer",
)


def quantize(
    model: nn.Module,
    batches: Iterable[Tensor | tuple[Any, ...]],
    *,
    keep: Collection[str] = (),
    strict: bool = True,
) -> fx.GraphModule:
    """Returns the model with convolutions and linear layers quantised, calibrated on some inputs.

    ``batches`` are arguments of the model, a tensor or a tuple each; the first one is the example
    that it is exported with, and more of them see more of what comes. Activations become u8 by one
    scale and zero point for each tensor, of the range that histograms of the batches give; weights
    s8 by output channel: the default of X86InductorQuantizer. The result is a graph in f32 with
    quantize and dequantize operators, as PT2E's convert_pt2e makes it: it computes what a quantised
    model does, slowly. ``dnnsep.optimize`` makes it fast.

    ``dnnsep.quantization_report`` gives what quantising takes from each layer's output. ``keep``
    names modules, as that does, whose layers stay in f32; of a module with parts all.

    ``strict`` is torch.export's: that quantiser finds convolutions by names that only a strict
    export leaves, so without it layers may stay in f32.

    Raises ValueError without batches, where the model is in training mode or where it has no module
    that ``keep`` names, ImportError where neither torchao nor this torch has PT2E, and what
    torch.export raises.
    """
    if model.training:
        raise ValueError("model: is in training mode, call eval() first")
    given = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
    if not given:
        raise ValueError("batches: at least one is needed to calibrate with")
    modules = dict(model.named_modules())
    for name in keep:
        if name not in modules:
            raise ValueError(f"keep: the model has no module {name!r}")
    flow, quantizers = _pt2e()
    quantizer = quantizers.X86InductorQuantizer()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's own say that they have moved
        exported: Any = torch.export.export(model, given[0], strict=strict).module()
        name_layers(exported.graph)
        quantizer.set_global(quantizers.get_default_x86_inductor_quantization_config())
        for name in keep:
            for path, part in modules[name].named_modules(prefix=name):
                if not list(part.children()):
                    quantizer.set_module_name_qconfig(path, None)
        prepared = flow.prepare_pt2e(exported, quantizer)
        for batch in given:
            prepared(*batch)
        run = FloatRun(prepared, given[0])
        converted: Any = flow.convert_pt2e(prepared)
        converted.dnnsep_report = report_of_quantized(converted, run, given[0])
    found: fx.GraphModule = converted
    return found


def quantization_report(quantized: fx.GraphModule) -> QuantizationReport:
    """Returns what quantising took from the layers of a model that ``quantize`` returned, and from
    its outputs, on the first batch. Raises ValueError for any other model."""
    found = getattr(quantized, "dnnsep_report", None)
    if not isinstance(found, QuantizationReport):
        raise ValueError("model: is not what dnnsep.quantize returned")
    return found


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
