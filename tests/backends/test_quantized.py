"""Engines on quantised problems: to the bit where no rounding but the outputs' can differ, else
within a step of each tensor."""

from __future__ import annotations

import dataclasses

import pytest

from dnnsep import Problem, get_backend
from dnnsep.sweep.check import CheckData
from tests.backends.test_backends import check
from tests.backends.test_peers import PEERS_UNDER_TEST

TEXTS = [
    "mb2ic33oc40ih13iw9kh3ph1_act:relu,relu",
    "ic32oc16ih14kh5sh2ph2_act:relu6,none",
    "ic16oc24ih9kh3ph1_act:silu,hardswish",
    "g1mb2ic3oc32ih17kh3sh2ph1_act:relu",
    "g1mb2ic24oc40ih7kh1_nobias",
    "g24mb2ic24oc24ih9kh3ph1_act:relu6",
    "linear_mb5ic64oc40",
]
DTYPES = ["u8s8", "u8s8f32", "s8s8"]
ENGINES = ["fused", "onednn", "reference", *(n for n in PEERS_UNDER_TEST if n != "ncnn")]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ENGINES)
def test_right_or_refused(name: str, text: str, dtype: str) -> None:
    problem = dataclasses.replace(Problem.parse(text), dtype=dtype)
    check(get_backend(name), problem, CheckData.exact(problem))
    check(get_backend(name), problem, CheckData.random(problem))


@pytest.mark.parametrize("name", ["eager", "ipex", "ipex-trace", "inductor", "ncnn"])
def test_who_is_given_none_says_so(name: str) -> None:
    backend, problem = get_backend(name), Problem.parse("ic8oc8ih8kh3ph1_u8s8")
    if backend.available():
        verdict = backend.supports(problem)
        assert not verdict
        assert "quantised" in verdict.reason


@pytest.mark.parametrize("text", ["ic8oc8ih8kh3ph1_u8s8", "g1ic8oc16ih8kh1_u8s8"])
def test_oneDNN_runs_bytes(text: str) -> None:  # noqa: N802
    """And exactly, on numbers of all sizes: it rounds as the reference does."""
    problem = Problem.parse(text)
    for seed in range(5):
        data = dataclasses.replace(CheckData.random(problem, seed), bound=None)
        check(get_backend("onednn"), problem, data)
