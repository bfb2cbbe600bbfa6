from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from dnnsep.problem import Problem
from tests.strategies import problems


@given(problems())
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
    ],
)
def test_grammar(text: str, expected: dict[str, Any]) -> None:
    problem = Problem.parse(text)
    assert {field: getattr(problem, field) for field in expected} == expected


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("ic4ih8kh3", "oc: missing"),
        ("ic4oc4ih8kh3qq3", "qq: unknown key"),
        ("ic4oc4ih8kh3kh3", "kh: given twice"),
        ("ic4oc4ih8kh3_f64", "f: unknown key"),
        ("ic4oc4ih8kh3_act:relu", "must name 2"),
        ("ic4oc4ih8kh3_act:relu,tanh", "'tanh': must be one of none, relu"),
        ("ic4oc4ih8kh3oh9", "oh=9: does not follow"),
        ("g2ic4oc4ih8kh3", "g=2: must equal ic=4"),
        ("ic0oc4ih8kh3", "in_channels=0: must be a whole number of at least 1"),
        ("ic4oc4ih8kh3sh0", "stride=0"),
        ("ic4oc4ih2kh3", "height=2: with padding 0+0 it must be at least the dilated kernel's 3"),
        ("ic4oc4ih8kh3ph3", "padding=3: must be less than the dilated kernel's height of 3"),
        ("", "not understood"),
    ],
)
def test_invalid_descriptors_name_the_rule(text: str, rule: str) -> None:
    with pytest.raises(ValueError, match="descriptor") as error:
        Problem.parse(text)
    assert rule in str(error.value)
    assert "\n" not in str(error.value)


def test_invalid_fields_name_the_field() -> None:
    with pytest.raises(ValueError, match=r"kernel=\(3, 3, 3\): must have 1 or 2 numbers"):
        Problem(1, 4, 4, 8, 8, (3, 3, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"batch=1\.5"):
        Problem(1.5, 4, 4, 8, 8, (3, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dtype='f16'"):
        Problem(1, 4, 4, 8, 8, (3, 3), dtype="f16")
