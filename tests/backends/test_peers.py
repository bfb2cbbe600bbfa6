"""The engines dnnsep is measured against: right on what they run, and a reason for the rest.

``DNNSEP_TEST_PEERS`` names them, separated by commas; one that is named and not available fails.
"""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch

from dnnsep import Backend, Problem, get_backend
from dnnsep.backends import PEERS
from dnnsep.backends.tensors import to_channels_last
from dnnsep.sweep.check import CheckData

PEERS_UNDER_TEST = [p for p in os.environ.get("DNNSEP_TEST_PEERS", ",".join(PEERS)).split(",") if p]

SHAPES = [
    "ic32oc64ih28kh3ph1_act:relu,relu",
    "mb2ic7oc5ih9iw11kh3ph1_act:relu6,none",
    "ic33oc65ih14kh5sh2ph2_nobias",
    "ic16oc24ih15kh3sh2ph0pb1pw0pr1_act:relu,none",
    "ic16oc8ih20kh3ph2dh1",
    "ic8oc8ih21iw19kh3kw5sh2ph1pw2",
    "ic12oc10ih10kh3ph1cm2",
    "ic5oc6ih1iw64kh1kw31ph0pw15",
    "ic1oc1ih1kh1",
    "ic19oc21ih9kh3ph1_act:silu,gelu",
    "ic16oc16ih9kh3ph1_act:hardswish,silu",
    "mb2ic19oc21ih9kh3ph1_act:sigmoid,hardsigmoid",
    "ic16oc8ih9kh3ph4",
    "mb2ic9oc8ih11kh3sh2oh4ow3",
    "g1mb2ic16oc33ih7kh1_act:sigmoid",
    "g1mb3ic5oc16ih13iw9kh3sh2ph1_act:silu",
    "g1ic3oc24ih32kh4sh4_nobias",
    "g1ic1oc8ih9kh3ph1",
    "g1mb2ic16oc8ih9kh3ph3_act:hardsigmoid",
    "g33mb2ic33oc33ih9kh5ph2_act:hardswish",
    "g8ic8oc24ih9kh3sh2ph1_act:hardsigmoid",
    "linear_ic64oc40_act:relu6",
    "linear_mb3ic17oc9_act:hardsigmoid",
    "linear_mb5ic32oc16_nobias",
    "mean_ic64ih7",
    "mean_mb3ic17ih5iw9",
]

# What the fast tests run: a layer of each kind.
KINDS = [
    "ic32oc64ih28kh3ph1_act:relu,relu",
    "g1mb2ic16oc24ih13iw9kh3ph1_act:relu",
    "g24mb2ic24oc24ih9kh3ph1_act:hardsigmoid",
    "linear_mb3ic17oc9_act:silu",
    "mean_mb2ic24ih7",
]


@pytest.fixture(params=PEERS_UNDER_TEST)
def peer(request: pytest.FixtureRequest) -> Backend:
    found = get_backend(request.param)
    verdict = found.available()
    assert verdict, verdict.reason
    return found


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_right_or_refused(peer: Backend, shape: str, dtype: str) -> None:
    problem = dataclasses.replace(Problem.parse(shape), dtype=dtype)
    data = CheckData.exact(problem)
    verdict = peer.supports(problem)
    if not verdict:
        assert verdict.reason
        with pytest.raises(ValueError, match=r".") as error:
            peer.prepare(problem, data.weights)
        assert str(error.value) == verdict.reason
        return
    executor = peer.prepare(problem, data.weights)
    x = to_channels_last(data.x, dtype)
    call = executor.bind(x)
    for y in (call(), call(), executor(x), executor(x, torch.empty_like(executor(x)))):
        assert y.shape == problem.output_shape
        correct, finding = data.verdict(y.float().numpy())
        assert correct, f"{peer.name} {problem}: {finding}"
    other = executor(x * 2)  # a bound call does not answer for another input
    again = call()
    assert not torch.equal(other.float(), again.float()) or problem.out_pixels == 1


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("text", KINDS)
def test_a_layer_of_each_kind(peer: Backend, text: str, dtype: str) -> None:
    problem = Problem.parse(f"{text}_{dtype}")
    if not peer.supports(problem):
        return
    data = CheckData.exact(problem)
    executor = peer.prepare(problem, data.weights)
    y = executor.bind(to_channels_last(data.x, dtype))()
    correct, finding = data.verdict(y.float().numpy())
    assert correct, finding
    assert executor.impls or peer.name in ("inductor", "ipex-trace")  # oneDNN's log tells theirs
