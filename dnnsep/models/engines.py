"""Runs whole models on the engines they are measured on.

Each engine is imported only when it is used.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from dnnsep.backends import get_backend
from dnnsep.backends.base import Verdict
from dnnsep.backends.versions import torch_verdict
from dnnsep.host.packages import installed_version

if TYPE_CHECKING:
    from torch import Tensor, nn

    # A model bound to its input, and texts about what the engine runs: kind:text.
    Bound = tuple[Callable[[], Any], list[str]]


def verdict(engine: str) -> Verdict:
    """Returns whether an engine of ENGINES is installed, with the reason if not."""
    if engine == "onnxruntime" and installed_version("onnx") is None:
        return Verdict(False, "onnx is not installed (extra: peers)")
    return torch_verdict() if engine == "dnnsep" else get_backend(engine).available()


def _dnnsep(model: nn.Module, x: Tensor) -> Bound:
    from collections import Counter

    from dnnsep.graph.optimize import optimize, what_ran

    optimized = optimize(model, x)
    images = _channels_last(x)
    optimized(images)
    counts = Counter(what_ran(optimized))
    return partial(optimized, images), [
        f"layers:{kernels}" if count == 1 else f"layers:{count} x {kernels}"
        for kernels, count in counts.items()
    ]


def _eager(model: nn.Module, x: Tensor) -> Bound:
    import torch

    converted: Any = model
    return partial(converted.to(memory_format=torch.channels_last), _channels_last(x)), [
        _version("torch")
    ]


def _inductor(model: nn.Module, x: Tensor) -> Bound:
    import torch

    from dnnsep.backends.peers.inductor import CONFIG

    config: Any = torch._inductor.config
    for name, value in CONFIG.items():
        setattr(config, name, value)
    compiled: Any = torch.compile(model, dynamic=False)
    images = _channels_last(x)
    compiled(images)
    return partial(compiled, images), [_version("torch")]


def _ipex_trace(model: nn.Module, x: Tensor) -> Bound:
    import intel_extension_for_pytorch
    import torch

    images = _channels_last(x)
    ready = intel_extension_for_pytorch.optimize(model, dtype=x.dtype, sample_input=images)
    trace: Callable[..., Any] = torch.jit.trace
    traced = torch.jit.freeze(trace(ready, images))
    for _ in range(3):  # the first calls compile it
        traced(images)
    return partial(traced, images), [_version("intel-extension-for-pytorch")]


def _openvino(model: nn.Module, x: Tensor) -> Bound:
    import openvino
    import torch

    from dnnsep.backends.peers.openvino import settings

    converted = openvino.convert_model(model, example_input=x, input=[tuple(x.shape)])
    compiled = openvino.Core().compile_model(converted, "CPU", settings("f32"))
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(x.numpy(), shared_memory=True))
    infer = partial(request.infer, share_outputs=True)

    # OpenVINO's tensors do not keep the memory alive that they share.
    def call(_kept: Tensor = x) -> list[Tensor]:
        return [torch.from_numpy(values) for values in infer().values()]

    return call, [_version("openvino")]


def _onnxruntime(model: nn.Module, x: Tensor) -> Bound:
    import torch

    from dnnsep.backends.peers.onnxruntime import session_of

    exported = io.BytesIO()
    torch.onnx.export(model, (x,), exported, input_names=["x"], dynamo=False)  # type: ignore[arg-type]
    session, _ = session_of(exported.getvalue(), torch.get_num_threads())
    feed = {"x": x.numpy()}

    def call() -> list[Tensor]:
        return [torch.from_numpy(values) for values in session.run(None, feed)]

    return call, [_version("onnxruntime")]


def _version(distribution: str) -> str:
    return f"version:{distribution} {installed_version(distribution)}"


def _channels_last(x: Tensor) -> Tensor:
    """Returns images (N, C, H, W) in the channels-last layout, and other tensors as they are."""
    import torch

    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


# Each takes a model and its input and returns a Bound: a call without arguments, and texts.
ENGINES: dict[str, Callable[[Any, Any], Any]] = {
    "dnnsep": _dnnsep,
    "eager": _eager,
    "ipex-trace": _ipex_trace,
    "inductor": _inductor,
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
}
