from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from dnnsep.problem import KINDS, Problem
from tests.strategies import problems


@settings(max_examples=500)
@given(problems(kinds=tuple(KINDS), any_padding=True))
def test_descriptor_round_trip(problem: Problem) -> None:
    assert Problem.parse(str(problem)) == problem


def test_missing_width_keys_take_the_height_keys() -> None:
    problem = Problem.parse("mb2ic32oc64ih112kh3sh2ph1")
    assert problem == Problem(2, 32, 64, 112, 112, (3, 3), (2, 2), (1, 1, 1, 1))
    assert str(problem) == "mb2ic32oc64ih112kh3sh2ph1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # oneDNN counts dilation from 0.
        ("ic4oc4ih9kh3dh1", {"dilation": (2, 2), "padding": (0, 0, 0, 0), "batch": 1}),
        ("ic4oc4ih1iw9kh1kw3pw1ph0", {"kernel": (1, 3), "padding": (0, 0, 1, 1), "width": 9}),
        # TensorFlow's SAME at stride 2, as benchdnn writes it: oh settles the padding below.
        ("ic4oc4ih8oh4kh3sh2ph0", {"padding": (0, 1, 0, 0)}),
        ("ic4oc4ih8ow4oh4kh3sh2ph0", {"padding": (0, 1, 0, 1)}),
        ("ic4oc4ih8kh3ph0pb2pw1pr0", {"padding": (0, 2, 1, 0)}),
        ("g4mb1_ic4oc8_ih8oh6kh3sh1dh0ph0_cm2_nobias", {"channel_multiplier": 2, "bias": False}),
        ("ic4oc4ih8kh3_act:relu6,none_bf16", {"activations": ("relu6", "none"), "dtype": "bf16"}),
        # oh settles any padding: more than the kernel, or rows that are not read.
        ("ic4oc4ih8oh20kh3ph0", {"padding": (0, 14, 0, 0), "out_height": 20}),
        ("ic4oc4ih8oh2kh3ph1pw0", {"padding": (1, -5, 0, 0), "out_height": 2}),
        ("ic4oc4ih8kh3ph7", {"padding": (7, 7, 7, 7), "out_height": 20}),
        ("g1ic4oc6ih8kh3_act:relu", {"kind": "convolution", "activations": ("relu",)}),
        ("g1ic1oc6ih8kh3", {"kind": "convolution"}),
        ("g4ic4oc12ih8kh3", {"kind": "depthwise", "channel_multiplier": 3}),
        ("linear_ic768oc3072", {"kind": "linear", "batch": 1, "height": 1, "kernel": (1, 1)}),
        ("linear_mb8ic4oc5_nobias_act:gelu", {"bias": False, "activations": ("gelu",)}),
        ("mean_ic1280ih7iw5_bf16", {"kind": "mean", "kernel": (7, 5), "out_channels": 1280}),
        ("mean_ic8ih1iw5", {"height": 1, "width": 5, "activations": (), "bias": False}),
    ],
)
def test_grammar(text: str, expected: dict[str, Any]) -> None:
    problem = Problem.parse(text)
    assert {field: getattr(problem, field) for field in expected} == expected


def test_what_is_not_read_has_one_form() -> None:
    """With stride 3 the last two columns of ten are not read, however the padding says so."""
    plain = Problem(1, 4, 4, 10, 11, (3, 3), (3, 3))
    for after in (0, -1):
        assert replace(plain, padding=(0, 0, 0, after)) == plain
    assert "ow" not in str(plain)
    cut = replace(plain, padding=(0, 0, 0, -3))
    assert cut.padding == (0, 0, 0, -5)
    assert (str(cut), cut.out_width) == ("mb1ic4oc4ih10iw11kh3sh3ph0ow2", 2)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("ic4ih8kh3", "oc: missing"),
        ("ic4oc4ih8kh3qq3", "qq: unknown key"),
        ("ic4oc4ih8kh3kh5", "kh: given twice"),
        ("ic4oc4ih8kh3_f64", "f: unknown key"),
        ("ic4oc4ih8kh3_act:relu", "must name 2 for a separable"),
        ("ic4oc4ih8kh3_act:relu,tanh", "'tanh': must be one of none, relu"),
        ("ic4oc4ih8kh3oh0", "oh=0: does not follow"),
        ("ic4oc4ih8kh3ph1pb1oh9", "oh=9: does not follow"),
        ("g2ic4oc4ih8kh3", "g=2: must equal ic=4 (depthwise), or be 1 (ordinary)"),
        ("g4ic4oc6ih8kh3", "oc=6: a depthwise convolution gives a multiple of g=4"),
        ("g4ic4oc8ih8kh3cm3", "oc=8: a depthwise convolution gives a multiple of g=4"),
        ("g1ic4oc4ih8kh3cm2", "channel_multiplier=2: a convolution has 1"),
        ("g1ic4oc4ih8kh3_act:relu,relu", "must name 1 for a convolution"),
        ("linear_ic4", "oc: missing"),
        ("linear_ic4oc4ih8", "ih: a linear has only mb ic oc"),
        ("linear_ic4oc4_act:relu,relu", "must name 1 for a linear"),
        ("mean_ic4iw5", "ih: missing"),
        ("mean_ic4oc4ih7", "oc: a mean has only mb ic ih iw"),
        ("mean_ic4ih7_bias", "it has no padding or bias"),
        ("mean_ic4ih7_act:relu", "must name 0 for a mean"),
        ("conv_ic4oc4ih8kh3", "'conv': not understood"),
        ("ic0oc4ih8kh3", "in_channels=0: must be a whole number of at least 1"),
        ("ic4oc4ih8kh3sh0", "stride=0"),
        ("ic4oc4ih2kh3", "height=2: with padding 0+0 it must be at least the dilated kernel's 3"),
        ("", "not understood"),
    ],
)
def test_invalid_descriptors_name_the_rule(text: str, rule: str) -> None:
    with pytest.raises(ValueError, match="descriptor") as error:
        Problem.parse(text)
    assert rule in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"kernel": (3, 3, 3)}, r"kernel=\(3, 3, 3\): must have 1 or 2 numbers"),
        ({"batch": 1.5}, r"batch=1\.5"),
        ({"dtype": "f16"}, "dtype='f16'"),
        ({"kind": "pool"}, "kind='pool': must be one of separable, convolution"),
        ({"padding": (-1, 0, 0, 0)}, "padding=-1: must be a whole number of at least 0"),
        ({"padding": (0, -7, 0, 0)}, r"height=8: with padding 0\+-7"),
        ({"bias": 1}, "bias=1: must be true or false"),
        ({"kind": "depthwise", "in_channels": 1}, "in_channels=1: depthwise needs 2"),
        ({"kind": "depthwise", "out_channels": 6}, "out_channels=6: must be in_channels"),
        ({"kind": "linear"}, "kind='linear': has 1x1 images"),
        ({"kind": "mean"}, "kind='mean': its kernel is the image"),
        (
            {"kind": "mean", "kernel": (8, 8), "out_channels": 5, "bias": False},
            "out_channels=5: must be 4",
        ),
    ],
)
def test_invalid_fields_name_the_field(fields: dict[str, Any], rule: str) -> None:
    sizes = {"batch": 1, "in_channels": 4, "out_channels": 4, "height": 8, "width": 8, "kernel": 3}
    with pytest.raises(ValueError, match=rule):
        Problem(**(sizes | fields))


def test_shapes_of_each_kind() -> None:
    shapes = {
        "mb2ic4oc6ih8kh3cm2": ((8, 1, 3, 3), (6, 8, 1, 1), (2, 6, 6, 6)),
        "g1mb2ic4oc6ih8kh3": (None, (6, 4, 3, 3), (2, 6, 6, 6)),
        "g4mb2ic4oc8ih8kh3": ((8, 1, 3, 3), None, (2, 8, 6, 6)),
        "linear_mb2ic4oc6": (None, (6, 4, 1, 1), (2, 6, 1, 1)),
        "mean_mb2ic4ih8": (None, None, (2, 4, 1, 1)),
    }
    assert {
        text: (p.depthwise_shape, p.pointwise_shape, p.output_shape)
        for text in shapes
        if (p := Problem.parse(text))
    } == shapes


def test_which_kinds_keep_integers() -> None:
    kept = ("ic4oc4ih8kh3_act:relu,relu6", "g1ic4oc4ih8kh3", "linear_ic4oc4_act:relu")
    lost = ("mean_ic4ih7", "linear_ic4oc4_act:gelu", "ic4oc4ih8kh3_act:relu,silu")
    assert all(Problem.parse(text).keeps_integers for text in kept)
    assert not any(Problem.parse(text).keeps_integers for text in lost)
