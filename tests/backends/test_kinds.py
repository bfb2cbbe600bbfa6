"""Every kind of problem on every backend: right to the bit or within the bound, or refused with a
reason. Separable ones have tests of their own in test_backends.py."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings

from dnnsep import Backend, Problem, get_backend
from dnnsep.activations import ACTIVATIONS
from dnnsep.host import amx
from dnnsep.problem import KINDS
from dnnsep.sweep.check import CheckData
from tests.backends.test_backends import check
from tests.strategies import problems

SHAPES = {
    "pointwise": [
        "g1ic7oc5ih5kh1",
        "g1mb3ic33oc65ih4iw6kh1",
        "g1ic1oc9ih6kh1_nobias",
        "g1mb2ic64oc40ih1kh1",
    ],
    "convolution": [
        "g1ic3oc32ih15kh3sh2ph1",
        "g1mb2ic7oc5ih9iw11kh3kw5ph1pw2_nobias",
        "g1ic1oc8ih7kh3ph1",
        "g1mb2ic17oc9ih12kh3ph2dh1",
        "g1ic5oc6ih9kh1sh2",
        "g1ic4oc6ih5kh1ph2",
        "g1ic16oc24ih15kh3sh2ph0pb1pw0pr1",
        "g1ic8oc12ih16kh4sh4",
        "g1mb2ic8oc16ih1kh3ph1",
        "g1ic6oc7ih5kh2ph5pw4",
        "g1mb2ic6oc7ih10kh3oh4ow5",
        "g1ic12oc16ih8kh8",
    ],
    "depthwise": [
        "g7mb2ic7oc7ih9iw11kh3ph1",
        "g33ic33oc33ih14kh5sh2ph2_nobias",
        "g16ic16oc16ih10kh3ph2dh1",
        "g8mb2ic8oc24ih9kh3ph1",
        "g5ic5oc10ih8kh2sh2ph0pb1pw0pr1",
        "g16mb3ic16oc16ih1kh3ph1",
        "g6ic6oc6ih5kh3ph7pw3",
        "g9ic9oc9ih11kh3sh2oh3ow4",
        "g32ic32oc32ih7kh7",
    ],
    "linear": [
        "linear_ic32oc10",
        "linear_mb3ic7oc5",
        "linear_mb17ic33oc65_nobias",
        "linear_mb2ic1oc9",
        "linear_mb4ic64oc1",
    ],
    "mean": ["mean_ic32ih7", "mean_mb3ic7ih5iw9", "mean_mb2ic1ih4", "mean_mb2ic40ih1"],
}
# One small problem that an activation may follow, for each path that a backend has.
ACTIVATED = [
    "g1mb2ic19oc21ih5kh1",
    "g1mb2ic9oc21ih5kh3ph1",
    "g9ic9oc9ih6kh3ph1",
    "linear_mb5ic9oc7",
]

# oneDNN's known faults, and the problem beside each that it gets right.
FAULTS = [
    ("g1ic1oc8ih4iw5kh3kw7sh1sw2ph1pw1", "g1ic1oc8ih4iw5kh3kw7sh1sw1ph1pw1"),
    ("g1ic8oc3ih7iw8kh3kw8sw8_bf16", "g1ic8oc3ih7iw7kh3kw7sw1sh1_bf16"),
    ("g16ic16oc16ih4iw33kh1kw15pw7ph0_bf16", "g17ic17oc17ih4iw33kh1kw15pw7ph0_bf16"),
]


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("shape", [shape for shapes in SHAPES.values() for shape in shapes])
def test_shapes(backend: Backend, shape: str, dtype: str) -> None:
    problem = dataclasses.replace(Problem.parse(shape), dtype=dtype)
    check(backend, problem, CheckData.exact(problem))
    check(backend, problem, CheckData.random(problem))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", ACTIVATED)
def test_activations(backend: Backend, shape: str, activation: str, dtype: str) -> None:
    problem = Problem.parse(f"{shape}_act:{activation}_{dtype}")
    assert backend.supports(problem)
    check(backend, problem, CheckData.exact(problem))
    check(backend, problem, CheckData.random(problem))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(problem=problems(kinds=tuple(KINDS), any_padding=True))
def test_random_problems(backend: Backend, problem: Problem) -> None:
    check(backend, problem, CheckData.exact(problem))


@pytest.mark.slow
@settings(
    max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(problem=problems(kinds=tuple(KINDS), any_padding=True))
def test_many_random_problems(onednn_backend: Backend, problem: Problem) -> None:
    check(onednn_backend, problem, CheckData.exact(problem))
    check(onednn_backend, problem, CheckData.random(problem))


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("g1ic8oc9ih5kh1", ["pointwise"]),
        ("g1ic8oc9ih5kh1sh2", ["convolution"]),
        ("g1ic8oc9ih6kh3ph0pb1pw0pr1", ["pad", "convolution"]),
        ("g1ic8oc9ih6kh3ph3", ["pad", "convolution"]),
        ("g8ic8oc8ih6kh3oh3ow3", ["pad", "depthwise"]),
        ("linear_mb3ic8oc9", ["linear"]),
        ("mean_ic8ih5", ["mean"]),
        ("ic8oc9ih6kh3ph4_act:sigmoid,hardsigmoid", ["pad", "depthwise", "pointwise"]),
    ],
)
def test_stages_are_named_for_what_they_do(
    onednn_backend: Backend, text: str, stages: list[str]
) -> None:
    problem = Problem.parse(text)
    data = CheckData.exact(problem)
    executor = onednn_backend.prepare(problem, data.weights)
    assert [stage.name for stage in executor.stages] == stages
    check(onednn_backend, problem, data)


@pytest.mark.parametrize(("refused", "beside"), FAULTS)
def test_known_faults_of_onednn_are_refused(refused: str, beside: str) -> None:
    backend = get_backend("onednn")
    verdict = backend.supports(Problem.parse(refused))
    assert not verdict
    assert verdict.reason.startswith("oneDNN ")
    problem = Problem.parse(beside)
    assert backend.supports(problem)
    check(backend, problem, CheckData.exact(problem))


@pytest.mark.parametrize("name", ["onednn", "eager"])
@pytest.mark.parametrize(
    "text",
    [
        "g1ic8oc3ih7iw10kh3kw8sh1_bf16",
        "g1ic4oc3ih7iw26kh3kw16sh1_bf16",
        "g1ic8oc7ih1iw5kh3kw1sh2sw1ph3pw0dh1dw0_bf16",  # the process would end
    ],
)
def test_what_onednn_gets_wrong_on_amx_is_refused_there(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    backend, problem = get_backend(name), Problem.parse(text)
    for there in (True, False):
        monkeypatch.setattr(amx, "is_there", lambda there=there: there)
        assert bool(backend.supports(problem)) is not there
    monkeypatch.undo()
    others = [f"{text}_bf16" for text in ("g1ic16oc3ih7iw10kh3kw8sh1", "g1ic8oc3ih3iw10kh3kw8sh1")]
    for other in [problem, *map(Problem.parse, others)]:
        if backend.supports(other):
            check(backend, other, CheckData.exact(other))


@pytest.mark.parametrize(
    "text",
    [
        # oneDNN would take the image for one without padding and write beyond its buffers.
        "g1mb3ic17oc32ih1iw14kh7sh4sw7ph3_bf16",
        "g1ic15oc48ih2iw22kh1kw7sh3sw9ph0pw3dh0dw1_bf16",
        # oneDNN would end the process.
        "g1ic16oc32ih2iw1kh2sh1sw4ph5pw6dh1dw2",
        # oneDNN would hang.
        "g17ic17oc17ih1iw21kh1kw16ph0pw21_bf16",
    ],
)
def test_padding_that_onednn_cannot_be_left_with(onednn_backend: Backend, text: str) -> None:
    problem = Problem.parse(text)
    assert onednn_backend.supports(problem)
    check(onednn_backend, problem, CheckData.exact(problem))


@pytest.mark.parametrize("kind", KINDS)
def test_auto_takes_fused_for_every_kind(kind: str) -> None:
    shapes = {"separable": ["ic9oc8ih6kh3ph1"], **SHAPES}[kind]
    problem = Problem.parse(shapes[0])
    auto = get_backend("auto")
    assert "fused" in auto.supports(problem).reason
    check(auto, problem, CheckData.exact(problem))
