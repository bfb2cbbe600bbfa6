"""What tells models' cases apart."""

from __future__ import annotations

from itertools import product

import pytest

from dnnsep.sweep.case import ModelCase
from dnnsep.sweep.results import parse_model

_NAMES = ("mobilenetv2_100", "torchvision:resnet18", "/a folder/bf16 net.py:small")
_SHAPES = ((1, 3, 224, 224), (4, 3, 18, 18), (8,))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("shape", _SHAPES)
@pytest.mark.parametrize("name", _NAMES)
def test_a_models_text_reads_back(name: str, shape: tuple[int, ...], dtype: str) -> None:
    case = ModelCase(name, shape, 1, 2, ("eager",), dtype)
    assert parse_model(case.problem) == (name, shape, dtype)


def test_the_text_of_f32_is_that_of_older_results() -> None:
    case = ModelCase("mobilenetv2_100", (1, 3, 224, 224), 1, 2, ("eager",))
    assert case.problem == "mobilenetv2_100 1x3x224x224"


def test_dtypes_and_batches_have_keys_of_their_own() -> None:
    cases = [
        ModelCase(name, shape, 1, threads, ("eager",), dtype)
        for name, shape, threads, dtype in product(_NAMES, _SHAPES, (1, 2), ("f32", "bf16"))
    ]
    assert len({case.key("eager") for case in cases}) == len(cases)
