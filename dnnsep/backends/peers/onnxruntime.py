"""ONNX Runtime's CPU provider, one session a layer, input and output bound beforehand."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnnsep.backends.base import Verdict
from dnnsep.backends.versions import installed_version
from dnnsep.problem import Problem
from dnnsep.weights import Array, Weights

if TYPE_CHECKING:
    from torch import Tensor

    from dnnsep.backends.executor import Executor

# Gelu is an operator of its own from 20 on.
_OPSET = 20


@dataclass(frozen=True)
class OnnxRuntimeBackend:
    name: str = "onnxruntime"

    def available(self) -> Verdict:
        for distribution in ("onnx", "onnxruntime"):
            found = installed_version(distribution)
            if found is None:
                return Verdict(False, f"{distribution} is not installed (extra: peers)")
        return Verdict(True, f"onnxruntime {found}")

    def supports(self, problem: Problem) -> Verdict:
        if problem.dtype == "bf16":
            return Verdict(False, "ONNX Runtime's CPU provider has no bf16 convolution")
        return Verdict(True, "ONNX Runtime has an operator for each part")

    def prepare(self, problem: Problem, weights: Weights) -> Executor:
        import onnxruntime
        import torch

        from dnnsep.backends.executor import EngineExecutor

        verdict = self.supports(problem)
        if not verdict:
            raise ValueError(verdict.reason)
        weights.check(problem)
        session, impls = session_of(_model(problem, weights), torch.get_num_threads())

        def bind(x: Tensor) -> Callable[[], Tensor]:
            # Its kernels take (N, C, H, W), or blocks of channels that they make themselves.
            images = x.contiguous().clone(memory_format=torch.contiguous_format)
            y = torch.empty(problem.output_shape)
            binding = session.io_binding()
            share = onnxruntime.OrtValue.ortvalue_from_numpy
            binding.bind_ortvalue_input("x", share(images.numpy()))
            binding.bind_ortvalue_output("y", share(y.numpy()))
            run = partial(session.run_with_iobinding, binding)

            # ONNX Runtime does not keep the memory that it shares.
            def call(_kept: tuple[Tensor, Tensor] = (images, y)) -> Tensor:
                run()
                return y

            return call

        return EngineExecutor(self.name, problem, bind, impls)


def session_of(model: bytes, threads: int) -> tuple[Any, list[str]]:
    """A session, and the operators left after its optimizations."""
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="dnnsep-") as folder:
        path = Path(folder) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # it warns that a saved optimized model is for this CPU only
        options.optimized_model_filepath = str(path)
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(path).graph.node
    return session, [f"{node.op_type}:{node.domain or 'ai.onnx'}" for node in nodes]


def _model(problem: Problem, weights: Weights) -> bytes:
    """The layer as an ONNX model from (N, C, H, W) to (N, OC, OH, OW)."""
    import onnx
    from onnx import helper, numpy_helper

    arrays = {name: array for name, array in vars(weights).items() if array is not None}
    top, bottom, left, right = problem.padding
    act_dw, act_pw = problem.activations
    nodes = [
        *_convolution(
            "x",
            "depthwise",
            "depthwise_bias" if problem.bias else None,
            act_dw,
            "mid",
            group=problem.in_channels,
            strides=problem.stride,
            pads=(top, left, bottom, right),
            dilations=problem.dilation,
        ),
        *_convolution("mid", "pointwise", "pointwise_bias" if problem.bias else None, act_pw, "y"),
    ]
    if "relu6" in problem.activations:
        arrays |= _clip_limits()
    f32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "separable",
        [helper.make_tensor_value_info("x", f32, problem.input_shape)],
        [helper.make_tensor_value_info("y", f32, problem.output_shape)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", _OPSET)]
    # IR version 10 came with opset 21's release: what every supported runtime reads.
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    serialized: bytes = model.SerializeToString()
    return serialized


def _clip_limits() -> dict[str, Array]:
    import numpy as np

    return {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}


def _convolution(
    x: str, weight: str, bias: str | None, activation: str, y: str, **sizes: Any
) -> list[Any]:
    """The nodes from tensor x to tensor y."""
    from onnx import helper

    raw = y if activation == "none" else f"{y}_raw"
    inputs = [x, weight, bias] if bias else [x, weight]
    nodes = [helper.make_node("Conv", inputs, [raw], **sizes)]
    if activation == "relu":
        nodes.append(helper.make_node("Relu", [raw], [y]))
    elif activation == "relu6":
        nodes.append(helper.make_node("Clip", [raw, "zero", "six"], [y]))
    elif activation == "silu":
        nodes.append(helper.make_node("Sigmoid", [raw], [f"{y}_gate"]))
        nodes.append(helper.make_node("Mul", [raw, f"{y}_gate"], [y]))
    elif activation == "hardswish":
        nodes.append(helper.make_node("HardSwish", [raw], [y]))
    elif activation == "gelu":
        nodes.append(helper.make_node("Gelu", [raw], [y]))
    return nodes
