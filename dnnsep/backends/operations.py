"""What a problem is to a framework: one operation, or two of a separable layer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dnnsep.dtypes import Array, TensorDtype
from dnnsep.problem import Pair, Problem
from dnnsep.quantization import Affine
from dnnsep.weights import Weights

Shape = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Bytes:
    """What a quantised operation's tensors hold: ``source`` what the bytes of its input stand for,
    ``scales`` (OC,) of its weights, ``target`` what the bytes of its output stand for, None where
    that is f32. Its activation comes before the output is made bytes."""

    source: Affine
    source_dtype: TensorDtype
    scales: Array
    target: Affine | None
    target_dtype: TensorDtype

    @classmethod
    def of(cls, problem: Problem, weights: Weights, stage: str) -> Bytes | None:
        """Returns that of a stage, ``depthwise`` or ``pointwise``; None where nothing is
        quantised."""
        precision, told = problem.precision, weights.quantization
        if told is None:
            return None
        between = stage == "depthwise" and problem.kind == "separable"
        target = precision.between if between else precision.destination
        scales = told.depthwise if stage == "depthwise" else told.pointwise
        assert scales is not None
        return cls(told.input_of(stage), precision.source, scales, told.target_of(stage), target)


@dataclass(frozen=True, eq=False)
class Operation:
    """A convolution, a linear layer or a mean, with the activation after it.

    ``name`` is

    - ``depthwise``: a convolution with as many groups as its input has channels;
    - ``pointwise``: a convolution with a 1x1 kernel, stride 1 and no padding;
    - ``convolution``: any other convolution of one group;
    - ``linear``: a linear layer on the rows of an input (rows, C, 1, 1);
    - ``mean``: the mean over all pixels of an image; it has no weights.

    ``input_shape`` and ``output_shape`` are (N, C, H, W). ``weight`` is (OC, C / groups, kh, kw)
    and ``bias`` (OC,), float32. ``padding`` is (top, bottom, left, right); bottom and right may be
    negative. Of a quantised problem ``quantized`` says what the tensors hold.
    """

    name: str
    input_shape: Shape
    output_shape: Shape
    weight: Array | None = None
    bias: Array | None = None
    activation: str = "none"
    stride: Pair = (1, 1)
    padding: Shape = (0, 0, 0, 0)
    dilation: Pair = (1, 1)
    quantized: Bytes | None = None

    @property
    def filters(self) -> Array:
        """The weight of any operation but a mean."""
        assert self.weight is not None, f"a {self.name} has no weight"
        return self.weight

    @property
    def kernel(self) -> Pair:
        """The kernel's (h, w); a mean's is the image."""
        height, width = (self.input_shape if self.weight is None else self.weight.shape)[2:]
        return height, width

    @property
    def groups(self) -> int:
        """Groups of the convolution: as many as input channels where it is depthwise."""
        return self.input_shape[1] if self.name == "depthwise" else 1


def is_pointwise(problem: Problem) -> bool:
    """Returns whether a problem is an ordinary 1x1 convolution with stride 1 and no padding."""
    geometry = (problem.kernel, problem.stride, problem.padding)
    return problem.kind == "convolution" and geometry == ((1, 1), (1, 1), (0, 0, 0, 0))


def operations(problem: Problem, weights: Weights) -> list[Operation]:
    """Returns a problem's operations in their order.

    Raises ValueError if the weights are not the problem's.
    """
    weights.check(problem)
    if problem.kind == "mean":
        return [Operation("mean", problem.input_shape, problem.output_shape)]
    first, *after = problem.activations
    if problem.kind in ("separable", "depthwise"):
        name, shape = "depthwise", problem.mid_shape
        weight, bias = weights.depthwise, weights.depthwise_bias
    else:
        name, shape = "pointwise" if is_pointwise(problem) else problem.kind, problem.output_shape
        weight, bias = weights.pointwise, weights.pointwise_bias
    found = [
        Operation(
            name,
            problem.input_shape,
            shape,
            weight,
            bias,
            first,
            problem.stride,
            problem.padding,
            problem.dilation,
            Bytes.of(problem, weights, "depthwise" if name == "depthwise" else "pointwise"),
        )
    ]
    for activation in after:
        weight, bias = weights.pointwise, weights.pointwise_bias
        quantized = Bytes.of(problem, weights, "pointwise")
        pointwise = Operation("pointwise", shape, problem.output_shape, weight, bias, activation)
        found.append(replace(pointwise, quantized=quantized))
    return found
