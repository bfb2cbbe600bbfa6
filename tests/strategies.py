"""Random problems for hypothesis: small, and touching every field."""

from __future__ import annotations

from hypothesis import strategies as st

from dnnsep.problem import ACTIVATIONS, DTYPES, Problem


@st.composite
def problems(draw: st.DrawFn, activations: tuple[str, ...] = ACTIVATIONS) -> Problem:
    """Problems whose output has at least one pixel, with up to 40 channels and 12 pixels over."""

    def integer(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    kernel = (integer(1, 7), integer(1, 7))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 3), (2, 1)]))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    top, left = integer(0, reach[0] - 1), integer(0, reach[1] - 1)
    asymmetric = draw(st.booleans())
    bottom = integer(0, reach[0] - 1) if asymmetric else top
    right = integer(0, reach[1] - 1) if asymmetric else left
    return Problem(
        batch=integer(1, 3),
        in_channels=integer(1, 40),
        out_channels=integer(1, 40),
        height=max(1, reach[0] - top - bottom) + integer(0, 12),
        width=max(1, reach[1] - left - right) + integer(0, 12),
        kernel=kernel,
        stride=(integer(1, 3), integer(1, 3)),
        padding=(top, bottom, left, right),
        dilation=dilation,
        channel_multiplier=draw(st.sampled_from([1, 1, 1, 2, 3])),
        bias=draw(st.booleans()),
        activations=draw(st.tuples(*[st.sampled_from(activations)] * 2)),
        dtype=draw(st.sampled_from(DTYPES)),
    )
