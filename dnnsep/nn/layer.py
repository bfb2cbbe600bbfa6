"""A separable layer on torch tensors: in plain PyTorch, or on a backend with its weights packed.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from operator import attrgetter
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dnnsep.backends import get_backend
from dnnsep.backends.executor import TORCH_DTYPES, Executor
from dnnsep.problem import Pair, Problem
from dnnsep.weights import Array, Weights

ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
}

DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


class Parameters(NamedTuple):
    """Depthwise (C·m, 1, kh, kw), its bias (C·m,), pointwise (OC, C·m, 1, 1), its bias (OC,)."""

    depthwise: Tensor
    depthwise_bias: Tensor | None
    pointwise: Tensor
    pointwise_bias: Tensor | None


class Geometry(NamedTuple):
    """As in Problem; the padding is (top, bottom, left, right)."""

    stride: Pair
    padding: tuple[int, int, int, int]
    dilation: Pair
    activations: tuple[str, str]


def plain(x: Tensor, parameters: Parameters, geometry: Geometry) -> Tensor:
    """The layer by torch's own operators: any dtype and device, with gradients."""
    top, bottom, left, right = geometry.padding
    padding = (top, left)
    if padding != (bottom, right):
        x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
    after_depthwise, after_pointwise = (ACTIVATE[name] for name in geometry.activations)
    weight, bias = parameters.depthwise, parameters.depthwise_bias
    stride, dilation = geometry.stride, geometry.dilation
    y = after_depthwise(F.conv2d(x, weight, bias, stride, padding, dilation, x.shape[1]))
    return after_pointwise(F.conv2d(y, parameters.pointwise, parameters.pointwise_bias))


def problem_of(x: Tensor, parameters: Parameters, geometry: Geometry) -> Problem:
    """The layer on x: (N, C, H, W). Raises ValueError naming what a problem cannot have."""
    if x.dtype not in DTYPES:
        raise ValueError(f"dtype={x.dtype}: must be torch.float32 or torch.bfloat16")
    batch, channels, height, width = x.shape
    mid, _, kernel_height, kernel_width = parameters.depthwise.shape
    return Problem(
        batch=batch,
        in_channels=channels,
        out_channels=parameters.pointwise.shape[0],
        height=height,
        width=width,
        kernel=(kernel_height, kernel_width),
        stride=geometry.stride,
        padding=geometry.padding,
        dilation=geometry.dilation,
        channel_multiplier=mid // channels,
        bias=parameters.depthwise_bias is not None or parameters.pointwise_bias is not None,
        activations=geometry.activations,
        dtype=DTYPES[x.dtype],
    )


def prepare(x: Tensor, parameters: Parameters, geometry: Geometry, backend: str) -> Executor:
    """An executor for inputs like x. Raises ValueError if the backend cannot run the layer."""
    problem = problem_of(x, parameters, geometry)
    with torch.no_grad():
        return get_backend(backend).prepare(problem, weights_of(problem, parameters))


def weights_of(problem: Problem, parameters: Parameters) -> Weights:
    """A problem's weights; a stage without a bias gets zeros where the other one has one."""
    return Weights(
        array(parameters.depthwise),
        _bias(parameters.depthwise_bias, problem.mid_channels) if problem.bias else None,
        array(parameters.pointwise),
        _bias(parameters.pointwise_bias, problem.out_channels) if problem.bias else None,
    )


def array(tensor: Tensor) -> Array:
    """In f32."""
    # A copy: backends may keep what they are given, and the tensor may change.
    return tensor.detach().to(torch.float32, memory_format=torch.contiguous_format).numpy().copy()


def _bias(bias: Tensor | None, channels: int) -> Array:
    return array(torch.zeros(channels) if bias is None else bias)


_VERSION_AND_DTYPE = attrgetter("_version", "dtype")
_DTYPE = attrgetter("dtype")


def state_of(tensors: tuple[Tensor | None, ...]) -> tuple[Hashable, ...]:
    """Differs when tensors were replaced or written to, as long as the earlier ones are kept.

    Writing through ``.data`` into the same memory is what torch itself does not count.
    """
    # Mapped and not looped over: a model's call does this for a hundred tensors or more.
    there = [t for t in tensors if t is not None]
    places = (*map(Tensor.data_ptr, there), *map(Tensor.stride, there))
    try:
        return (*places, *map(_VERSION_AND_DTYPE, there))
    except RuntimeError:  # tensors made in inference mode count no versions
        return (*places, *map(_DTYPE, there))


Made = TypeVar("Made")


class Packed(Generic[Made]):
    """What was made of a layer's tensors, by a key such as the input's shape.

    Made when first asked for, and again after the tensors changed. May be asked from several
    threads at once. A copy, or what is unpickled, starts empty.
    """

    MOST = 32  # of a layer; a model that sees more shapes makes some of them again

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._lock = threading.Lock()
        self._state: tuple[Hashable, ...] = ()
        self._held: tuple[Tensor | None, ...] = ()
        self._made: dict[Hashable, Made] = {}

    def get(
        self, key: Hashable, tensors: tuple[Tensor | None, ...], make: Callable[[], Made]
    ) -> Made:
        state = state_of(tensors)
        made = self._made
        if state == self._state and key in made:
            return made[key]
        with self._lock:
            if state != self._state:
                # Kept, so that their addresses cannot become another tensor's.
                self._held = tuple(None if t is None else t.detach() for t in tensors)
                self._made, self._state = {}, state
            if key not in self._made:
                self._made = {**dict(list(self._made.items())[1 - self.MOST :]), key: make()}
            return self._made[key]

    @property
    def made(self) -> dict[Hashable, Made]:
        return dict(self._made)

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.clear()
