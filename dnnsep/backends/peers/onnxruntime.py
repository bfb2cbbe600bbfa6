"""ONNX Runtime's CPU provider, one session a layer, input and output bound beforehand."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dnnsep.backends.base import Verdict, unquantized_verdict
from dnnsep.backends.operations import Operation, operations
from dnnsep.host.packages import installed_version
from dnnsep.problem import Problem
from dnnsep.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor

    from dnnsep.backends.executor import Executor

# Gelu is an operator of its own from 20 on.
_OPSET = 20

# The activations that are an operator of their own without attributes.
_ACTIVATIONS = {"relu": "Relu", "hardswish": "HardSwish", "gelu": "Gelu", "sigmoid": "Sigmoid"}


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
        known = unquantized_verdict(problem, "ONNX Runtime")
        if not known:
            return known
        if problem.dtype == "bf16":
            return Verdict(False, "ONNX Runtime's CPU provider has no bf16 kernels for x86")
        return Verdict(True, "ONNX Runtime has an operator for each part")

    def prepare(self, problem: Problem, weights: Weights) -> Executor:
        import onnxruntime
        import torch

        from dnnsep.backends.executor import EngineExecutor

        verdict = self.supports(problem)
        if not verdict:
            raise ValueError(verdict.reason)
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
    """Returns the layer as an ONNX model from (N, C, H, W) to (N, OC, OH, OW).

    Raises ValueError if the weights are not the problem's.
    """
    import onnx
    from onnx import helper, numpy_helper

    nodes: list[Any] = []
    arrays: dict[str, NDArray[Any]] = {}
    x = "x"
    for operation in operations(problem, weights):
        x = _add(operation, x, nodes, arrays)
    nodes[-1].output[0] = "y"
    f32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        problem.kind,
        [helper.make_tensor_value_info("x", f32, problem.input_shape)],
        [helper.make_tensor_value_info("y", f32, problem.output_shape)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", _OPSET)]
    # IR version 10 came with opset 21's release: what every supported runtime reads.
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    serialized: bytes = model.SerializeToString()
    return serialized


def _add(operation: Operation, x: str, nodes: list[Any], arrays: dict[str, NDArray[Any]]) -> str:
    """Adds an operation's nodes and constants, which read tensor x; returns its result's name."""
    from onnx import helper

    def node(kind: str, inputs: list[str], **attributes: Any) -> str:
        y = f"{operation.name}_{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [y], **attributes))
        return y

    def constant(name: str, array: NDArray[Any]) -> str:
        arrays[f"{operation.name}_{name}"] = array
        return f"{operation.name}_{name}"

    if operation.name == "mean":
        return node("GlobalAveragePool", [x])
    inputs = [constant("weight", operation.filters)]
    if operation.bias is not None:
        inputs.append(constant("bias", operation.bias))
    if operation.name == "linear":
        arrays[inputs[0]] = operation.filters.reshape(operation.filters.shape[:2])
        y = node("Gemm", [node("Flatten", [x]), *inputs], transB=1)
    else:
        top, bottom, left, right = operation.padding
        if min(bottom, right) < 0:
            x = node("Pad", [x, constant("pads", np.array([0, 0, top, left, 0, 0, bottom, right]))])
            top = bottom = left = right = 0
        y = node(
            "Conv",
            [x, *inputs],
            group=operation.groups,
            strides=operation.stride,
            pads=(top, left, bottom, right),
            dilations=operation.dilation,
        )
    if operation.activation == "relu6":
        low, high = (np.array(limit, np.float32) for limit in (0, 6))
        y = node("Clip", [y, constant("low", low), constant("high", high)])
    elif operation.activation == "silu":
        y = node("Mul", [y, node("Sigmoid", [y])])
    elif operation.activation == "hardsigmoid":
        y = node("HardSigmoid", [y], alpha=1 / 6, beta=0.5)
    elif operation.activation != "none":
        y = node(_ACTIVATIONS[operation.activation], [y])
    if operation.name == "linear":
        y = node("Reshape", [y, constant("shape", np.array(operation.output_shape))])
    return y
