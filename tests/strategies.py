"""Random problems for hypothesis: small, and touching every field."""

from __future__ import annotations

from hypothesis import strategies as st

from dnnsep.activations import ACTIVATIONS
from dnnsep.dtypes import DTYPES
from dnnsep.problem import KINDS, Problem


@st.composite
def problems(
    draw: st.DrawFn,
    activations: tuple[str, ...] = tuple(ACTIVATIONS),
    kinds: tuple[str, ...] = ("separable",),
    any_padding: bool = False,
) -> Problem:
    """Draws problems whose output has at least one pixel, with up to 40 channels and 12 pixels
    over.

    Each side is padded by less than the dilated kernel; with ``any_padding`` also by more, and
    below and right by less than nothing.
    """

    def integer(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    kind = draw(st.sampled_from(kinds))
    dtype = draw(st.sampled_from(tuple(DTYPES)))
    names = draw(st.tuples(*[st.sampled_from(activations)] * KINDS[kind]))
    bias, batch, channels = draw(st.booleans()), integer(1, 3), integer(1, 40)
    if kind == "mean":
        return Problem.mean(batch, channels, integer(1, 12), integer(1, 12), dtype)
    if kind == "linear":
        return Problem(
            *(batch, channels, integer(1, 40), 1, 1, (1, 1)),
            bias=bias,
            activations=names,
            dtype=dtype,
            kind=kind,
        )

    kernel = (integer(1, 7), integer(1, 7))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 3), (2, 1)]))
    sides: list[int] = []
    sizes: list[int] = []
    for k, d in zip(kernel, dilation, strict=True):
        reach = d * (k - 1) + 1
        low, high = (-3, reach + 3) if any_padding else (0, reach - 1)
        before = integer(0, high)
        after = integer(low, high) if draw(st.booleans()) else before
        sides += [before, after]
        sizes.append(max(1, reach - before - after) + integer(0, 12))
    multiplier = 1
    if kind in ("separable", "depthwise"):
        multiplier = draw(st.sampled_from([1, 1, 1, 2, 3]))
    if kind == "depthwise":
        channels = max(channels, 2)
    return Problem(
        batch=batch,
        in_channels=channels,
        out_channels=channels * multiplier if kind == "depthwise" else integer(1, 40),
        height=sizes[0],
        width=sizes[1],
        kernel=kernel,
        stride=(integer(1, 3), integer(1, 3)),
        padding=(sides[0], sides[1], sides[2], sides[3]),
        dilation=dilation,
        channel_multiplier=multiplier,
        bias=bias,
        activations=names,
        dtype=dtype,
        kind=kind,
    )
