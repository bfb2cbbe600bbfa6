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
from dnnsep.models.quantized import by_ipex, by_pt2e, qdq_onnx
from dnnsep.problem import Problem

if TYPE_CHECKING:
    from torch import Tensor, nn

    # A model bound to its input, and texts about what the engine runs: kind:text.
    Bound = tuple[Callable[[], Any], list[str]]


# What an engine says of this layer it says of all bf16.
_BF16_LAYER = "mb1ic64oc64ih56kh3ph1_bf16"

# What quantises models for an engine.
_QUANTIZERS = {"openvino": ("onnx", "onnxruntime")}

_LONGEST_REASON = 200


# Engines whose failures are the model's or ours, and no limits of a converter.
_CONVERT_NOTHING = ("dnnsep", "dnnsep:cascades=no", "eager")


class WrongResultError(Exception):
    """An engine found itself that its result is wrong; the text says how."""


class CannotRunError(Exception):
    """An engine cannot convert or run a model; the text says in one line why."""


def verdict(engine: str, dtype: str = "f32") -> Verdict:
    """Returns whether an engine of ENGINES runs models in a dtype here, with the reason if not."""
    if engine == "onnxruntime" and installed_version("onnx") is None:
        return Verdict(False, "onnx is not installed (extra: peers)")
    if engine.startswith("dnnsep"):
        return torch_verdict()
    if dtype == "int8":
        if engine == "eager":
            return Verdict(False, "eager torch computes a quantised model in f32")
        missing = [name for name in _QUANTIZERS.get(engine, ()) if installed_version(name) is None]
        if missing:
            return Verdict(False, f"{', '.join(missing)} is not installed (extra: peers)")
    backend = get_backend(engine)
    found = backend.available()
    return backend.supports(Problem.parse(_BF16_LAYER)) if found and dtype == "bf16" else found


def bind(
    engine: str, model: nn.Module, x: Tensor, dtype: str, inner: bool = False
) -> tuple[Bound, Any]:
    """Returns a model bound to its input on an engine of ENGINES, and its result there.

    An ``inner`` model is a part of a network: what it gets and gives is as between layers, images
    channels-last, in bf16 where it runs in that, if the engine can. Else it is as users have it.

    ``model`` and ``x`` are f32; the model may be changed. In int8 each engine gets the model from a
    quantiser that its users take (``models/quantized.py``). The result is a tree of tensors, which
    OpenVINO, ONNX Runtime and traced IPEX give as a list without what is no tensor.

    Raises CannotRunError where an engine fails to convert or to run the model, and
    WrongResultError where it finds itself that its result is wrong.
    """
    try:
        bound = ENGINES[engine](model, x, dtype, inner)
        return bound, bound[0]()
    except (CannotRunError, WrongResultError):
        raise
    except Exception as error:
        if engine in _CONVERT_NOTHING:
            raise
        raise CannotRunError(_refusal(engine, error)) from error


def _refusal(engine: str, error: Exception) -> str:
    """Returns in one line that an engine fails, with the beginning of its text, which is long."""
    text = " ".join(str(error).split())[:_LONGEST_REASON]
    return f"{engine} does not run it: {type(error).__name__}: {text}"


def _dnnsep(
    model: nn.Module, x: Tensor, dtype: str, inner: bool = False, cascades: bool = True
) -> Bound:
    from collections import Counter

    from dnnsep.backends.executor import TORCH_DTYPES
    from dnnsep.graph.optimize import optimize, report_of, what_ran

    model = by_pt2e(model, x) if dtype == "int8" else model
    whole, given = TORCH_DTYPES[dtype] if dtype == "bf16" else None, "f32"
    if inner:
        model, x = _converted(model, x, dtype)
        whole, given = None, dtype
    optimized = optimize(model, x, dtype=whole, cascades=cascades)
    if any(note.startswith("left as it is") for note in report_of(optimized).notes):
        raise WrongResultError(", ".join(report_of(optimized).notes))
    images = _channels_last(x)
    optimized(images)
    counts = Counter(what_ran(optimized))
    layers = [
        f"layers:{kernels}" if count == 1 else f"layers:{count} x {kernels}"
        for kernels, count in counts.items()
    ]
    return partial(optimized, images), layers + _input_text(dtype, given)


def _eager(model: nn.Module, x: Tensor, dtype: str, inner: bool = False) -> Bound:
    import torch

    model, images = _converted(model, x, dtype)
    network: Any = model
    call = partial(network.to(memory_format=torch.channels_last), images)
    return call, [_version("torch"), *_input_text(dtype, dtype)]


def _inductor(model: nn.Module, x: Tensor, dtype: str, inner: bool = False) -> Bound:
    import torch

    from dnnsep.backends.peers.inductor import CONFIG

    # Past eight compilations of one class's code torch runs it eagerly, and says so in its log.
    torch.compiler.reset()
    config: Any = torch._inductor.config
    for name, value in CONFIG.items():
        setattr(config, name, value)
    model, images = _converted(by_pt2e(model, x) if dtype == "int8" else model, x, dtype)
    compiled: Any = torch.compile(model, dynamic=False)
    compiled(images)
    return partial(compiled, images), [_version("torch"), *_input_text(dtype, dtype)]


def _ipex_trace(model: nn.Module, x: Tensor, dtype: str, inner: bool = False) -> Bound:
    """In bf16 as IPEX's guide does it: traced on an f32 input under autocast, which puts the
    conversions into the trace.

    IPEX adds a residual into the memory of what is added, the caller's input where that is added.
    Then the model gets a copy of the input, which belongs to the call and its time.
    """
    import intel_extension_for_pytorch
    import torch

    from dnnsep.backends.executor import TORCH_DTYPES

    images = _channels_last(x)
    if dtype == "int8":
        ready = by_ipex(model, x)
    else:
        ready = intel_extension_for_pytorch.optimize(
            model, dtype=TORCH_DTYPES[dtype], sample_input=images
        )
    trace: Callable[..., Any] = torch.jit.trace

    def traced(flat: nn.Module) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            found = torch.jit.freeze(trace(flat, images))
        for _ in range(3):  # the first calls compile it
            found(images)
        return found

    before, copied = images.clone(), []
    ran = traced(_flat(ready))
    if not torch.equal(images, before):
        images, copied = before, ["input:a copy of the input, since traced IPEX writes into it"]
        ran = traced(_flat(ready, copies=True))
    texts = [_version("intel-extension-for-pytorch"), *_input_text(dtype, "f32"), *copied]
    return partial(ran, images), texts


def _openvino(model: nn.Module, x: Tensor, dtype: str, inner: bool = False) -> Bound:
    import openvino
    import torch

    from dnnsep.backends.peers.openvino import settings

    if dtype == "int8":
        made = qdq_onnx(_onnx(_flat(model), x), x)
        converted = openvino.Core().read_model(made)
    else:
        converted = openvino.convert_model(_flat(model), example_input=x, input=[tuple(x.shape)])
    if inner and dtype != "int8":
        return _openvino_between_layers(converted, x, dtype)
    compiled = openvino.Core().compile_model(converted, "CPU", settings(dtype))
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(x.numpy(), shared_memory=True))
    infer = partial(request.infer, share_outputs=True)

    # OpenVINO's tensors do not keep the memory alive that they share.
    def call(_kept: Tensor = x) -> list[Tensor]:
        return [torch.from_numpy(values) for values in infer().values()]

    return call, [_version("openvino"), *_input_text(dtype, "f32")]


def _openvino_between_layers(converted: Any, x: Tensor, dtype: str) -> Bound:
    """Returns a model of one output, both images, on what is between layers: images in the model's
    dtype, channels-last."""
    import openvino
    import torch

    from dnnsep.backends.executor import TORCH_DTYPES
    from dnnsep.backends.peers.openvino import settings, shared

    prepared = openvino.preprocess.PrePostProcessor(converted)
    for end in (prepared.input(), prepared.output()):
        end.tensor().set_element_type(getattr(openvino.Type, dtype))
        end.tensor().set_layout(openvino.Layout("NHWC"))
        end.model().set_layout(openvino.Layout("NCHW"))
    compiled = openvino.Core().compile_model(prepared.build(), "CPU", settings(dtype))
    rows = x.permute(0, 2, 3, 1).to(TORCH_DTYPES[dtype]).contiguous()
    y = torch.empty(list(compiled.output(0).shape), dtype=TORCH_DTYPES[dtype])
    request = compiled.create_infer_request()
    request.set_input_tensor(shared(rows))
    request.set_output_tensor(shared(y))
    infer, images = partial(request.infer, share_outputs=True), y.permute(0, 3, 1, 2)

    # OpenVINO's tensors do not keep the memory alive that they share.
    def call(_kept: Tensor = rows) -> list[Tensor]:
        infer()
        return [images]

    return call, [_version("openvino"), *_input_text(dtype, dtype)]


def _onnxruntime(model: nn.Module, x: Tensor, dtype: str, inner: bool = False) -> Bound:
    import torch

    from dnnsep.backends.peers.onnxruntime import session_of

    assert dtype != "bf16", "verdict refuses it"
    exported = _onnx(_flat(model), x)
    made = qdq_onnx(exported, x) if dtype == "int8" else exported
    session, _ = session_of(made, torch.get_num_threads())
    feed = {session.get_inputs()[0].name: x.numpy()}

    def call() -> list[Tensor]:
        return [torch.from_numpy(values) for values in session.run(None, feed)]

    return call, [_version("onnxruntime")]


def _onnx(model: nn.Module, x: Tensor) -> bytes:
    """Returns the model as ONNX, by torch's exporter of traces, else by its exporter of graphs.

    Raises CannotRunError where the first fails and what the second needs is not installed.
    """
    import torch

    exported = io.BytesIO()
    try:
        torch.onnx.export(model, (x,), exported, input_names=["x"], dynamo=False)  # type: ignore[arg-type]
        return exported.getvalue()
    except Exception as error:
        if installed_version("onnxscript") is None:
            missing = "torch's other exporter needs onnxscript, which is not installed"
            raise CannotRunError(f"{_refusal('onnxruntime', error)}; {missing}") from error
    program = torch.onnx.export(model, (x,), input_names=["x"], dynamo=True)
    assert program is not None
    serialized: bytes = program.model_proto.SerializeToString()
    return serialized


def _flat(model: nn.Module, copies: bool = False) -> nn.Module:
    """Returns the model with the tensors of its result as a tuple: all that converters take. With
    ``copies`` it is given a copy of the input."""
    from torch import Tensor, nn
    from torch.utils import _pytree as pytree

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            results = self.model(x.clone() if copies else x)
            return tuple(y for y in pytree.tree_leaves(results) if isinstance(y, Tensor))

    return Flat().eval()


def _version(distribution: str) -> str:
    return f"version:{distribution} {installed_version(distribution)}"


def _input_text(dtype: str, given: str) -> list[str]:
    """Returns a text with the dtype of the input that an engine is given, where all is bf16."""
    return [f"input:{given} input"] if dtype == "bf16" else []


def _converted(model: nn.Module, x: Tensor, dtype: str) -> tuple[nn.Module, Tensor]:
    """Returns a model and its input in a dtype, images channels-last. The model is changed."""
    images = _channels_last(x)
    return (model.bfloat16(), images.bfloat16()) if dtype == "bf16" else (model, images)


def _channels_last(x: Tensor) -> Tensor:
    """Returns images (N, C, H, W) in the channels-last layout, and other tensors as they are."""
    import torch

    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


# Each takes a model and its input, both in f32, the dtype to run in, and whether the model is a
# part of a network. It returns a Bound: a call without arguments, and texts.
ENGINES: dict[str, Callable[..., Any]] = {
    "dnnsep": _dnnsep,
    "dnnsep:cascades=no": partial(_dnnsep, cascades=False),
    "eager": _eager,
    "ipex-trace": _ipex_trace,
    "inductor": _inductor,
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
}
