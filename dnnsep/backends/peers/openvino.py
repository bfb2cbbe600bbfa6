"""OpenVINO's CPU plugin, as its latency guide sets it up: one stream that has all the threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from dnnsep.backends.base import Verdict
from dnnsep.backends.onednn_faults import grouped_verdict, padded_by_a_window
from dnnsep.backends.operations import Operation, operations
from dnnsep.backends.peers.onnxruntime import onnx_model
from dnnsep.host.packages import installed_version
from dnnsep.problem import Problem
from dnnsep.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor

    from dnnsep.backends.executor import Executor


@dataclass(frozen=True)
class OpenVinoBackend:
    name: str = "openvino"

    def available(self) -> Verdict:
        found = installed_version("openvino")
        if found is None:
            return Verdict(False, "openvino is not installed (extra: peers)")
        return Verdict(True, f"openvino {found}")

    def supports(self, problem: Problem) -> Verdict:
        if problem.dtype == "bf16":
            import openvino

            capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            if "BF16" not in capabilities:
                return Verdict(False, "OpenVINO does not compute in bf16 on this CPU")
        # The plugin runs on a oneDNN of its own, and takes a padding before into the convolution.
        if padded_by_a_window(problem):
            return Verdict(
                False,
                "OpenVINO ends the process or hangs on some convolutions that a side is padded of "
                "by a whole window or more",
            )
        return grouped_verdict(problem)

    def prepare(self, problem: Problem, weights: Weights) -> Executor:
        import openvino
        import torch

        from dnnsep.backends.executor import OUTPUT_DTYPES, EngineExecutor

        verdict = self.supports(problem)
        if not verdict:
            raise ValueError(verdict.reason)
        compiled = openvino.Core().compile_model(
            _model(problem, weights),
            "CPU",
            settings(problem.dtype),
        )
        batch, channels, height, width = problem.output_shape

        def bind(x: Tensor) -> Callable[[], Tensor]:
            rows = torch.empty((batch, height, width, channels), dtype=OUTPUT_DTYPES[problem.dtype])
            request = compiled.create_infer_request()
            request.set_input_tensor(shared(x.permute(0, 2, 3, 1)))
            request.set_output_tensor(shared(rows))
            # By default infer() answers with a copy of the output.
            infer = partial(request.infer, share_outputs=True)
            y = rows.permute(0, 3, 1, 2)

            # OpenVINO's tensors do not keep the memory that they share.
            def call(_kept: tuple[Tensor, Tensor] = (x, rows)) -> Tensor:
                infer()
                return y

            return call

        return EngineExecutor(self.name, problem, bind, _impls(compiled))


def settings(dtype: str) -> dict[str, Any]:
    """Of the CPU plugin, for single calls on torch's number of threads."""
    import torch

    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        # Its default is bf16 wherever the CPU has it, for f32 models too.
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bf16" else "f32",
        # It would choose cores without regard to those the process is held to.
        "ENABLE_CPU_PINNING": False,
        # It would make bytes of the f32 input of a linear layer with weights in bytes.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }


def _model(problem: Problem, weights: Weights) -> Any:
    """Returns the layer as a model from (N, H, W, C) to (N, OH, OW, OC).

    The plugin computes in that order too, so that the transposes at both ends cost nothing.
    Raises ValueError if the weights are not the problem's.
    """
    import openvino
    from openvino import opset13 as ops

    if problem.precision.quantized:
        return _quantized_model(problem, weights)
    dtype = getattr(openvino.Type, problem.dtype)
    batch, channels, height, width = problem.input_shape
    x = ops.parameter([batch, height, width, channels], dtype)
    y = ops.transpose(x, [0, 3, 1, 2])
    for operation in operations(problem, weights):
        y = _operation(operation, y, dtype)
    return openvino.Model([ops.transpose(y, [0, 2, 3, 1])], [x])


def _quantized_model(problem: Problem, weights: Weights) -> Any:
    """Returns the same of a quantised layer, from the model that ONNX Runtime is given.

    Its input is quantised anew: what is bytes from the start the plugin computes in f32, in up to
    three times as long.
    """
    import openvino
    from openvino.preprocess import PrePostProcessor

    model = openvino.Core().read_model(onnx_model(problem, weights, anew=True))
    process = PrePostProcessor(model)
    for end in (process.input(), process.output()):
        end.tensor().set_layout(openvino.Layout("NHWC"))
        end.model().set_layout(openvino.Layout("NCHW"))
    return process.build()


def _operation(operation: Operation, x: Any, dtype: Any) -> Any:
    """Returns the node (N, OC, OH, OW) of an operation on the node x: (N, C, H, W)."""
    from openvino import opset13 as ops

    if operation.name == "mean":
        return ops.reduce_mean(x, [2, 3], keep_dims=True)
    activate: dict[str, Callable[[Any], Any]] = {
        "none": lambda y: y,
        "relu": ops.relu,
        "relu6": lambda y: ops.clamp(y, 0.0, 6.0),
        "silu": lambda y: ops.swish(y, ops.constant(1.0, dtype)),
        "hardswish": ops.hswish,
        "gelu": lambda y: ops.gelu(y, "erf"),
        "sigmoid": ops.sigmoid,
        "hardsigmoid": ops.hsigmoid,
    }
    weight = operation.filters
    if operation.name == "linear":
        matrix = ops.constant(weight.reshape(weight.shape[:2]), dtype)
        rows = ops.reshape(x, list(operation.input_shape[:2]), False)
        y = ops.reshape(ops.matmul(rows, matrix, False, True), list(operation.output_shape), False)
    else:
        y = _convolution(operation, x, dtype)
    if operation.bias is not None:
        y = ops.add(y, ops.constant(operation.bias.reshape(1, -1, 1, 1), dtype))
    return activate[operation.activation](y)


def _convolution(operation: Operation, x: Any, dtype: Any) -> Any:
    from openvino import opset13 as ops

    top, bottom, left, right = operation.padding
    if min(bottom, right) < 0:
        x = ops.pad(x, [0, 0, top, left], [0, 0, bottom, right], "constant", ops.constant(0, dtype))
        top = bottom = left = right = 0
    weight, kind = operation.filters, ops.convolution
    if operation.groups > 1:
        by_group = (operation.groups, -1, *weight.shape[1:])
        weight, kind = weight.reshape(by_group), ops.group_convolution
    return kind(
        x,
        ops.constant(weight, dtype),
        list(operation.stride),
        [top, left],
        [bottom, right],
        list(operation.dilation),
    )


def shared(rows: Tensor) -> Any:
    """OpenVINO's tensor of the same memory; rows is contiguous, f32 or bf16."""
    import openvino
    import torch

    if rows.dtype is torch.bfloat16:  # NumPy has no bf16
        bits = rows.view(torch.int16).numpy()
        return openvino.Tensor(bits, openvino.Shape(rows.shape), openvino.Type.bf16)
    return openvino.Tensor(rows.numpy(), shared_memory=True)


def _impls(compiled: Any) -> list[str]:
    """What the plugin says it runs, such as "Convolution:brgconv_avx512_1x1_f32"."""
    facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    found = [(f["layerType"].astype(str), f["primitiveType"].astype(str)) for f in facts]
    ends = ("Input", "Output", "Const", "Parameter", "Result")
    return [f"{kind}:{impl}" for kind, impl in found if kind not in ends]
