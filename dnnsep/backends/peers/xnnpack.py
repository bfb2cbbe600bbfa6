"""Google's XNNPACK, as LiteRT (once TensorFlow Lite) runs it: its interpreter's CPU delegate."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dnnsep.backends.base import Verdict
from dnnsep.backends.operations import Operation, operations
from dnnsep.host.packages import installed_version
from dnnsep.problem import Problem
from dnnsep.quantization import Affine, Quantization
from dnnsep.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor

    from dnnsep.backends.executor import Executor

# What a convolution can have as its own; the other activations are operators after it.
_FUSED = {"relu": "RELU", "relu6": "RELU6"}


@dataclass(frozen=True)
class XnnpackBackend:
    name: str = "xnnpack"

    def available(self) -> Verdict:
        for distribution in ("flatbuffers", "ai-edge-litert"):
            found = installed_version(distribution)
            if found is None:
                return Verdict(False, f"{distribution} is not installed (extra: peers)")
        return Verdict(True, f"ai-edge-litert {found}")

    def supports(self, problem: Problem) -> Verdict:
        if problem.dtype == "bf16":
            return Verdict(False, "LiteRT has no operators in bf16")
        if problem.precision.quantized:
            if problem.dtype != "s8s8":
                reason = f"LiteRT has weights by channel for s8 to s8 only, not {problem.dtype}"
                return Verdict(False, reason)
            if set(problem.activations) - {"none", *_FUSED}:
                return Verdict(False, "LiteRT is given no quantised problems with such activations")
        # What XNNPACK takes does not depend on the weights' values.
        interpreter = _interpreter(_model(problem, _zero_weights(problem)), threads=1)
        if not _runs_on_xnnpack(interpreter):
            return Verdict(False, "LiteRT gives XNNPACK only a part of this layer's operators")
        return Verdict(True, "XNNPACK has an operator for each part")

    def prepare(self, problem: Problem, weights: Weights) -> Executor:
        import torch

        from dnnsep.backends.executor import EngineExecutor

        verdict = self.supports(problem)
        if not verdict:
            raise ValueError(verdict.reason)
        model, threads = _model(problem, weights), torch.get_num_threads()

        def bind(x: Tensor) -> Callable[[], Tensor]:
            interpreter = _interpreter(model, threads)
            _memory(interpreter, interpreter.get_input_details()).copy_(x.permute(0, 2, 3, 1))
            y = _memory(interpreter, interpreter.get_output_details()).permute(0, 3, 1, 2)
            invoke = interpreter.invoke

            def call() -> Tensor:
                invoke()
                return y

            return call

        return EngineExecutor(self.name, problem, bind, _impls(_interpreter(model, threads)))


def _interpreter(model: bytes, threads: int) -> Any:
    """LiteRT's interpreter with memory for its tensors and XNNPACK's packed weights."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model, num_threads=threads)
    interpreter.allocate_tensors()
    return interpreter


def _runs_on_xnnpack(interpreter: Any) -> bool:
    """Whether one node of the delegate stands for the whole graph."""
    delegates = [op for op in interpreter._get_ops_details() if op["op_name"] == "DELEGATE"]
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    return (
        len(delegates) == 1
        and source["index"] in delegates[0]["inputs"]
        and result["index"] in delegates[0]["outputs"]
    )


def _impls(interpreter: Any) -> list[str]:
    """The operators that the delegate's node stands for; LiteRT does not name its kernels."""
    names = [op["op_name"].lower() for op in interpreter._get_ops_details()]
    return [f"{name}:xnnpack" for name in names if name != "delegate"]


def _memory(interpreter: Any, details: list[dict[str, Any]]) -> Tensor:
    """The only input or output's own memory in the interpreter: f32 or s8 (N, H, W, C).

    The interpreter refuses to run while a NumPy array of its own is alive, so only the address is
    taken from that.
    """
    import torch

    array = interpreter.tensor(details[0]["index"])()
    bytes_only = array.dtype == np.int8
    element: Any = ctypes.c_int8 if bytes_only else ctypes.c_float
    dtype = torch.int8 if bytes_only else torch.float32
    values: Any = (element * array.size).from_address(array.ctypes.data)
    values.owner = interpreter  # the tensor may outlive the bound call
    return torch.frombuffer(values, dtype=dtype).view(array.shape)


def _zero_weights(problem: Problem) -> Weights:
    depthwise, pointwise = (
        None if shape is None else np.zeros(shape, np.float32)
        for shape in (problem.depthwise_shape, problem.pointwise_shape)
    )
    depthwise_bias, pointwise_bias = (
        None if weight is None or not problem.bias else np.zeros(len(weight), np.float32)
        for weight in (depthwise, pointwise)
    )
    quantization = None
    if problem.precision.quantized:
        one = Affine(1.0, 0)
        first, second = (
            None if weight is None else np.full(len(weight), 2.0**-16, np.float32)
            for weight in (depthwise, pointwise)
        )
        middle = one if problem.kind == "separable" else None
        quantization = Quantization(one, one, middle, first, second)
    return Weights(depthwise, depthwise_bias, pointwise, pointwise_bias, quantization)


def _model(problem: Problem, weights: Weights) -> bytes:
    """Returns the layer as a TFLite model from (N, H, W, C) to (N, OH, OW, OC), f32 or s8.

    Raises ValueError if the weights are not the problem's.
    """
    graph = _Graph()
    batch, channels, height, width = problem.input_shape
    found = operations(problem, weights)
    x = y = graph.tensor((batch, height, width, channels), **_input(found[0]))
    for operation in found:
        y = _operation(graph, operation, y)
    return graph.serialize(x, y)


def _operation(graph: _Graph, operation: Operation, x: int) -> int:
    """Adds an operation with its activation; returns its result's tensor."""
    batch, channels, height, width = operation.output_shape
    shape = (batch, height, width, channels)
    if operation.name == "mean":
        axes = graph.constant(np.array([1, 2], np.int32))
        return graph.add("MEAN", [x, axes], shape, "ReducerOptions", keepDims=True)
    weight, bias = operation.filters.transpose(0, 2, 3, 1), operation.bias
    # LiteRT refuses a convolution without a bias; its own converter writes zeros as well.
    bias = np.zeros(channels, np.float32) if bias is None else bias
    (stride_h, stride_w), (dilation_h, dilation_w) = operation.stride, operation.dilation
    kind, options = "Conv2DOptions", {"strideH": stride_h, "strideW": stride_w}
    options |= {"dilationHFactor": dilation_h, "dilationWFactor": dilation_w}
    options["padding"] = graph.number("Padding", "VALID")
    if operation.name == "linear":
        operator, kind, options = "FULLY_CONNECTED", "FullyConnectedOptions", {"keepNumDims": True}
        weight = weight.reshape(channels, -1)
    elif operation.name == "depthwise":
        operator, kind = "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions"
        options["depthMultiplier"] = channels // operation.groups
        weight = operation.filters.transpose(1, 2, 3, 0)
    else:
        operator = "CONV_2D"
    fused = _FUSED.get(operation.activation, "NONE")
    options["fusedActivationFunction"] = graph.number("ActivationFunctionType", fused)
    padded, told = _padded(graph, operation, x), operation.quantized
    if told is not None:
        assert told.target is not None
        axis = weight.ndim - 1 if operation.name == "depthwise" else 0
        units = (told.scales * told.source.scale).astype(np.float32)
        inputs = [
            padded,
            graph.constant(weight.astype(np.int8), told.scales, axis),
            graph.constant(np.rint(bias / units).astype(np.int32), units),
        ]
        return graph.add(operator, inputs, shape, kind, told.target, **options)
    inputs = [padded, graph.constant(weight), graph.constant(bias)]
    y = graph.add(operator, inputs, shape, kind, None, **options)
    return _activated(graph, y, operation)


def _input(operation: Operation) -> dict[str, Any]:
    """Returns what the tensor that an operation reads is, beside its shape."""
    return {} if operation.quantized is None else {"affine": operation.quantized.source}


def _padded(graph: _Graph, operation: Operation, x: int) -> int:
    """Adds what pads and crops an operation's input, the tensor x; returns the tensor it reads."""
    if not any(operation.padding):
        return x
    batch, channels, height, width = operation.input_shape
    top, bottom, left, right = operation.padding
    # XNNPACK takes it into the convolution, even if one-sided: nothing is copied.
    sides = np.array([[0, 0], [top, max(bottom, 0)], [left, max(right, 0)], [0, 0]], np.int32)
    shape = (batch, height + sum(sides[1]), width + sum(sides[2]), channels)
    if sides.any():
        x = graph.add("PAD", [x, graph.constant(sides)], shape, "PadOptions", **_input(operation))
    if min(bottom, right) < 0:
        shape = (batch, height + top + bottom, width + left + right, channels)
        begin, size = (graph.constant(np.array(v, np.int32)) for v in ((0, 0, 0, 0), shape))
        x = graph.add("SLICE", [x, begin, size], shape, "SliceOptions", **_input(operation))
    return x


def _activated(graph: _Graph, y: int, operation: Operation) -> int:
    """Adds the operators of an activation that is not fused."""
    batch, channels, height, width = operation.output_shape
    shape = (batch, height, width, channels)
    if operation.activation == "silu":
        return graph.add("MUL", [y, graph.add("LOGISTIC", [y], shape)], shape, "MulOptions")
    if operation.activation == "hardswish":
        return graph.add("HARD_SWISH", [y], shape, "HardSwishOptions")
    if operation.activation == "gelu":
        return graph.add("GELU", [y], shape, "GeluOptions", approximate=False)
    if operation.activation == "sigmoid":
        return graph.add("LOGISTIC", [y], shape)
    if operation.activation == "hardsigmoid":  # TFLite has none: relu6(y + 3) / 6
        three, sixth = (graph.constant(np.array([v], np.float32)) for v in (3, 1 / 6))
        relu6 = graph.number("ActivationFunctionType", "RELU6")
        y = graph.add("ADD", [y, three], shape, "AddOptions", fusedActivationFunction=relu6)
        return graph.add("MUL", [y, sixth], shape, "MulOptions")
    return y


class _Graph:
    """A TFLite model that is being put together; its tensors go by their indices."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated

        self._schema: Any = schema_py_generated
        self._buffers = [self._schema.BufferT()]  # the first one means that there is no data
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._names: list[str] = []

    def number(self, enumeration: str, name: str) -> int:
        value: int = getattr(getattr(self._schema, enumeration), name)
        return value

    def tensor(self, shape: Sequence[int], affine: Affine | None = None) -> int:
        """A tensor that is computed: of f32, or of s8 that stand for what ``affine`` says."""
        if affine is None:
            return self._tensor(shape, "FLOAT32")
        return self._tensor(shape, "INT8", 0, [affine.scale], [affine.zero_point])

    def constant(
        self, array: NDArray[Any], scales: NDArray[np.float32] | None = None, axis: int = 0
    ) -> int:
        """A tensor of these values, which stand for as many ``scales`` along an axis."""
        data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        self._buffers.append(self._table("Buffer", data=data))
        told = () if scales is None else (scales.tolist(), [0] * len(scales), axis)
        return self._tensor(array.shape, array.dtype.name.upper(), len(self._buffers) - 1, *told)

    def _tensor(
        self,
        shape: Sequence[int],
        dtype: str,
        buffer: int = 0,
        scales: Sequence[float] = (),
        zero_points: Sequence[int] = (),
        axis: int = 0,
    ) -> int:
        fields: dict[str, Any] = {"type": self.number("TensorType", dtype), "buffer": buffer}
        if scales:
            fields["quantization"] = self._table(
                "QuantizationParameters",
                scale=list(scales),
                zeroPoint=list(zero_points),
                quantizedDimension=axis,
            )
        self._tensors.append(self._table("Tensor", shape=list(shape), **fields))
        return len(self._tensors) - 1

    def add(
        self,
        operator: str,
        inputs: list[int],
        shape: Sequence[int],
        kind: str = "",
        affine: Affine | None = None,
        **options: int,
    ) -> int:
        """An operator with options of the kind; its result's tensor, of the shape."""
        y = self.tensor(shape, affine)
        if operator not in self._names:
            self._names.append(operator)
        fields = {"opcodeIndex": self._names.index(operator), "inputs": inputs, "outputs": [y]}
        if kind:
            fields["builtinOptionsType"] = self.number("BuiltinOptions", kind)
            fields["builtinOptions"] = self._table(kind, **options)
        self._operators.append(self._table("Operator", **fields))
        return y

    def serialize(self, x: int, y: int) -> bytes:
        """The model's bytes, from input x to output y."""
        import flatbuffers

        codes = []
        for name in self._names:
            code = self.number("BuiltinOperator", name)
            # The old field is one byte; 127 in it points to the new one.
            codes.append(
                self._table("OperatorCode", builtinCode=code, deprecatedBuiltinCode=min(code, 127))
            )
        graph = self._table(
            "SubGraph", tensors=self._tensors, operators=self._operators, inputs=[x], outputs=[y]
        )
        model = self._table(
            "Model", version=3, subgraphs=[graph], operatorCodes=codes, buffers=self._buffers
        )
        builder = flatbuffers.Builder(0)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _table(self, name: str, **fields: Any) -> Any:
        table = getattr(self._schema, f"{name}T")()
        for field, value in fields.items():
            setattr(table, field, value)
        return table
