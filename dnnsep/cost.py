"""What a problem costs: operations, parameters, bytes moved, against an ordinary convolution.

One multiply-add is 1 MAC and 2 FLOPs everywhere. Other tools (fvcore, ptflops) print MACs, some
of them under the name FLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dnnsep.problem import Problem

# The kinds with a stage that sums within each channel.
_WITHIN_CHANNELS = ("separable", "depthwise", "mean")


@dataclass(frozen=True)
class Cost:
    """Cost of a problem and of the ordinary convolution with the same kernel, input and output.

    ``depthwise_macs`` and ``pointwise_macs`` are those of the stage within each channel and of the
    one that sums over channels; a mean counts as a depthwise stage, and an ordinary convolution's
    and a linear layer's are all of the second kind. Operations count multiply-adds only, neither
    biases nor activations.

    Bytes count each tensor once as it would cross the memory bus with cold caches, in the problem's
    dtype; ``bytes_staged`` counts the one between the two stages of a separable problem twice, out
    and in, and ``bytes_fused`` not at all. The two are equal for every other kind.
    """

    macs: int
    depthwise_macs: int
    pointwise_macs: int
    ordinary_macs: int
    weights: int
    biases: int
    ordinary_weights: int
    ordinary_biases: int
    bytes_staged: int
    bytes_fused: int

    @property
    def flops(self) -> int:
        """2 for each multiply-add: 2·bs·oh·ow·ic·m·(kh·kw + oc) of a separable problem. The
        yardstick of every GFLOP/s that dnnsep prints."""
        return 2 * self.macs

    @property
    def ordinary_flops(self) -> int:
        """2·bs·ic·oh·ow·kh·kw·oc."""
        return 2 * self.ordinary_macs

    @property
    def parameters(self) -> int:
        return self.weights + self.biases

    @property
    def ordinary_parameters(self) -> int:
        return self.ordinary_weights + self.ordinary_biases

    @property
    def parameter_reduction(self) -> float:
        """Share of the ordinary convolution's parameters that the problem saves, 0 to 1."""
        return 1 - self.parameters / self.ordinary_parameters

    @property
    def cost_ratio(self) -> float:
        """The problem's MACs over the ordinary convolution's."""
        return self.macs / self.ordinary_macs

    @property
    def intensity_staged(self) -> float:
        """FLOPs per byte when the intermediate tensor goes through memory."""
        return self.flops / self.bytes_staged

    @property
    def intensity_fused(self) -> float:
        """FLOPs per byte when the intermediate tensor never leaves the caches."""
        return self.flops / self.bytes_fused


def closed_form_ratio(problem: Problem) -> float:
    """The MobileNet paper's 1/N + 1/D_K², times the channel multiplier.

    For a separable problem it equals Cost.cost_ratio; it says nothing of other kinds. N is the
    number of output channels and D_K² the kernel's area (arXiv 1704.04861, section 3.1).
    """
    area = prod(problem.kernel)
    return problem.channel_multiplier * (1 / problem.out_channels + 1 / area)


def cost(problem: Problem) -> Cost:
    """Counts a problem's operations, parameters and bytes."""
    area, pixels = prod(problem.kernel), problem.out_pixels
    shapes = [s for s in (problem.depthwise_shape, problem.pointwise_shape) if s is not None]
    weights = sum(map(prod, shapes))
    biases = sum(shape[0] for shape in shapes) if problem.bias else 0
    depthwise = problem.mid_channels * area if problem.kind in _WITHIN_CHANNELS else 0
    pointwise = prod(problem.pointwise_shape) if problem.pointwise_shape else 0
    ordinary = problem.in_channels * area * problem.out_channels
    precision = problem.precision
    ends = prod(problem.input_shape) * precision.source.bytes
    ends += prod(problem.output_shape) * precision.destination.bytes
    ends += weights * precision.source.bytes + biases * (
        4 if precision.quantized else precision.source.bytes
    )
    between = prod(problem.mid_shape) if problem.kind == "separable" else 0
    return Cost(
        macs=pixels * (depthwise + pointwise),
        depthwise_macs=pixels * depthwise,
        pointwise_macs=pixels * pointwise,
        ordinary_macs=pixels * ordinary,
        weights=weights,
        biases=biases,
        ordinary_weights=ordinary,
        ordinary_biases=problem.out_channels if problem.bias else 0,
        bytes_staged=ends + 2 * between * precision.between.bytes,
        bytes_fused=ends,
    )
