"""OpenVINO's CPU plugin, as its latency guide sets it up: one stream that has all the threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from dnnsep.backends.base import Verdict
from dnnsep.backends.onednn_faults import grouped_verdict
from dnnsep.backends.versions import installed_version
from dnnsep.problem import Problem
from dnnsep.weights import Array, Weights

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
        return grouped_verdict(problem)  # the plugin runs on a oneDNN of its own

    def prepare(self, problem: Problem, weights: Weights) -> Executor:
        import openvino
        import torch

        from dnnsep.backends.executor import TORCH_DTYPES, EngineExecutor

        verdict = self.supports(problem)
        if not verdict:
            raise ValueError(verdict.reason)
        weights.check(problem)
        compiled = openvino.Core().compile_model(
            _model(problem, weights),
            "CPU",
            settings(problem.dtype),
        )
        batch, channels, height, width = problem.output_shape

        def bind(x: Tensor) -> Callable[[], Tensor]:
            rows = torch.empty((batch, height, width, channels), dtype=TORCH_DTYPES[problem.dtype])
            request = compiled.create_infer_request()
            request.set_input_tensor(_shared(x.permute(0, 2, 3, 1)))
            request.set_output_tensor(_shared(rows))
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
        "INFERENCE_PRECISION_HINT": dtype,
        # It would choose cores without regard to those the process is held to.
        "ENABLE_CPU_PINNING": False,
    }


def _model(problem: Problem, weights: Weights) -> Any:
    """The layer as a model from (N, H, W, C) to (N, OH, OW, OC).

    The plugin computes in that order too, so that the transposes at both ends cost nothing.
    """
    import openvino
    from openvino import opset13 as ops

    dtype = getattr(openvino.Type, problem.dtype)
    activate: dict[str, Callable[[Any], Any]] = {
        "none": lambda y: y,
        "relu": ops.relu,
        "relu6": lambda y: ops.clamp(y, 0.0, 6.0),
        "silu": lambda y: ops.swish(y, ops.constant(1.0, dtype)),
        "hardswish": ops.hswish,
        "gelu": lambda y: ops.gelu(y, "erf"),
    }

    def finish(y: Any, bias: Array | None, activation: str) -> Any:
        if bias is not None:
            y = ops.add(y, ops.constant(bias.reshape(1, -1, 1, 1), dtype))
        return activate[activation](y)

    batch, channels, height, width = problem.input_shape
    top, bottom, left, right = problem.padding
    by_group = weights.depthwise.reshape(channels, problem.channel_multiplier, 1, *problem.kernel)
    x = ops.parameter([batch, height, width, channels], dtype)
    y = ops.transpose(x, [0, 3, 1, 2])
    y = ops.group_convolution(
        y,
        ops.constant(by_group, dtype),
        list(problem.stride),
        [top, left],
        [bottom, right],
        list(problem.dilation),
    )
    y = finish(y, weights.depthwise_bias, problem.activations[0])
    y = ops.convolution(y, ops.constant(weights.pointwise, dtype), [1, 1], [0, 0], [0, 0], [1, 1])
    y = finish(y, weights.pointwise_bias, problem.activations[1])
    return openvino.Model([ops.transpose(y, [0, 2, 3, 1])], [x])


def _shared(rows: Tensor) -> Any:
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
