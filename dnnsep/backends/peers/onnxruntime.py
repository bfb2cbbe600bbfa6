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

from dnnsep.backends.base import Verdict
from dnnsep.backends.operations import Operation, operations
from dnnsep.dtypes import TensorDtype
from dnnsep.host.packages import installed_version
from dnnsep.problem import Problem
from dnnsep.quantization import Affine
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
        if problem.dtype == "bf16":
            return Verdict(False, "ONNX Runtime's CPU provider has no bf16 kernels for x86")
        return Verdict(True, "ONNX Runtime has an operator for each part")

    def prepare(self, problem: Problem, weights: Weights) -> Executor:
        import onnxruntime
        import torch

        from dnnsep.backends.executor import OUTPUT_DTYPES, EngineExecutor

        verdict = self.supports(problem)
        if not verdict:
            raise ValueError(verdict.reason)
        session, impls = session_of(onnx_model(problem, weights), torch.get_num_threads())

        def bind(x: Tensor) -> Callable[[], Tensor]:
            # Its kernels take (N, C, H, W), or blocks of channels that they make themselves.
            images = x.contiguous().clone(memory_format=torch.contiguous_format)
            y = torch.empty(problem.output_shape, dtype=OUTPUT_DTYPES[problem.dtype])
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


def onnx_model(problem: Problem, weights: Weights, anew: bool = False) -> bytes:
    """Returns the layer as an ONNX model from (N, C, H, W) to (N, OC, OH, OW).

    A quantised one is its operations in f32 between DequantizeLinear and QuantizeLinear, as
    quantisers for ONNX write it, which runtimes make operators of bytes of. With ``anew`` its input
    is made f32 and quantised once more first, as inside of a model whose input is f32.

    Raises ValueError if the weights are not the problem's.
    """
    import onnx
    from onnx import helper, numpy_helper

    nodes: list[Any] = []
    arrays: dict[str, NDArray[Any]] = {}
    x = "x"
    if anew:
        x = _quantized_anew(operations(problem, weights)[0], nodes, arrays)
    for operation in operations(problem, weights):
        x = _add(operation, x, nodes, arrays)
    nodes[-1].output[0] = "y"
    precision = problem.precision
    kinds = {"u8": onnx.TensorProto.UINT8, "s8": onnx.TensorProto.INT8}
    source, target = (
        kinds.get(dtype.name, onnx.TensorProto.FLOAT)
        for dtype in (precision.source, precision.destination)
    )
    graph = helper.make_graph(
        nodes,
        problem.kind,
        [helper.make_tensor_value_info("x", source, problem.input_shape)],
        [helper.make_tensor_value_info("y", target, problem.output_shape)],
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
    told, weight = operation.quantized, operation.filters
    if operation.name == "linear":
        weight = weight.reshape(weight.shape[:2])
    if told is None:
        inputs = [constant("weight", weight)]
        if operation.bias is not None:
            inputs.append(constant("bias", operation.bias))
    else:
        x = node("DequantizeLinear", [x, *_affine(constant, "x", told.source, told.source_dtype)])
        zeros = constant("zeros", np.zeros(len(weight), np.int8))
        scales = constant("scales", told.scales)
        whole = constant("weight", weight.astype(np.int8))
        inputs = [node("DequantizeLinear", [whole, scales, zeros], axis=0)]
        if operation.bias is not None:
            # Biases of such operators are whole numbers of what their sums count.
            units = (told.scales * told.source.scale).astype(np.float32)
            whole = constant("bias", np.rint(operation.bias / units).astype(np.int32))
            inputs.append(node("DequantizeLinear", [whole, constant("units", units)], axis=0))
    if operation.name == "linear":
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
    if told is not None and told.target is not None:
        y = node("QuantizeLinear", [y, *_affine(constant, "y", told.target, told.target_dtype)])
    if operation.name == "linear":
        y = node("Reshape", [y, constant("shape", np.array(operation.output_shape))])
    return y


def _quantized_anew(first: Operation, nodes: list[Any], arrays: dict[str, NDArray[Any]]) -> str:
    """Adds making the input f32 and quantising it again; returns the result's name."""
    from onnx import helper

    def constant(name: str, array: NDArray[Any]) -> str:
        arrays[f"input_{name}"] = array
        return f"input_{name}"

    assert first.quantized is not None
    affine = _affine(constant, "x", first.quantized.source, first.quantized.source_dtype)
    nodes.append(helper.make_node("DequantizeLinear", ["x", *affine], ["input_f32"]))
    nodes.append(helper.make_node("QuantizeLinear", ["input_f32", *affine], ["input_bytes"]))
    return "input_bytes"


def _affine(
    constant: Callable[[str, NDArray[Any]], str], name: str, affine: Affine, dtype: TensorDtype
) -> tuple[str, str]:
    """Adds the constants of a tensor's scale and zero point; returns their names."""
    zero = dtype.stored(np.array(affine.zero_point, np.float32))
    scale = constant(f"{name}_scale", np.array(affine.scale, np.float32))
    return scale, constant(f"{name}_zero", zero)
