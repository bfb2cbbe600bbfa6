"""``dnnsep.optimize``: its arguments, what it returns, and what its report says."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dnnsep
from dnnsep.codegen import tuner
from dnnsep.codegen.tuner import Question
from dnnsep.graph.difference import difference
from dnnsep.graph.optimize import report_of
from dnnsep.graph.report import Report
from dnnsep.host import cachefiles
from tests.graph.models import (
    Block,
    Function,
    SqueezeExcite,
    assert_same,
    check,
    depthwise,
    image,
    kinds,
    left,
    ran,
    settled,
)


def test_an_inverted_residual_block() -> None:
    model = settled(nn.Sequential(Block(), Block(), nn.Conv2d(8, 3, 3, stride=2)))
    report = check(model)
    assert kinds(report) == ["convolution", "separable"] * 2 + ["convolution"]
    first = report.entries[1]
    assert first.layers == ("0.depthwise", "0.project")
    assert str(first.problem) == "mb2ic16oc8ih10iw9kh3sh1ph1_act:relu6,none"
    assert first.flops == dnnsep.cost(first.problem).flops  # type: ignore[arg-type]
    assert re.search(r"0\.depthwise … 0\.project +separable +0\.1 ", str(report))


def test_the_model_is_not_touched_and_the_result_is_one_of_its_kind() -> None:
    model = settled(nn.Sequential(Block(), Block()))
    before = copy.deepcopy(model.state_dict())
    names = [name for name, _ in model.named_modules()]
    optimized = dnnsep.optimize(model, image())
    assert type(optimized) is nn.Sequential
    assert [name for name, _ in optimized.named_modules()] == names
    assert [*map(type, optimized.modules())] == [*map(type, model.modules())]
    for found in (optimized.state_dict(), model.state_dict()):
        assert list(found) == list(before)
        assert all(torch.equal(found[name], before[name]) for name in before)
    assert not {p.data_ptr() for p in model.parameters()} & {
        p.data_ptr() for p in optimized.parameters()
    }
    assert "forward" not in model.__dict__
    assert not hasattr(model, "dnnsep_report")
    model.load_state_dict(optimized.state_dict())


def test_in_place_keeps_no_copy() -> None:
    model = settled(Block())
    expected, parameters = copy.deepcopy(model), list(model.parameters())
    optimized = dnnsep.optimize(model, image(), inplace=True)
    assert optimized is model
    assert [*map(id, model.parameters())] == [*map(id, parameters)]
    assert_same(optimized, expected, (image(),))
    assert ran(optimized) >= 1


def test_a_model_may_be_optimized_again() -> None:
    model = settled(nn.Sequential(Block(), Block()))
    once = dnnsep.optimize(model, image())
    twice = dnnsep.optimize(once, image())
    assert kinds(report_of(twice)) == kinds(report_of(once))
    assert_same(twice, model, (image(),))
    assert_same(dnnsep.optimize(once, image(), inplace=True), model, (image(),))


def test_linear_layers() -> None:
    model = settled(nn.Sequential(nn.Flatten(), nn.Linear(720, 33), nn.ReLU(), nn.Linear(33, 5)))
    report = check(model)
    assert kinds(report) == ["linear", "linear"]
    assert report.entries[0].flops == 2 * 2 * 720 * 33
    assert str(report.entries[0].problem) == "linear_mb2ic720oc33_act:relu"
    assert check(nn.Sequential(nn.Linear(9, 4)).eval()).count("linear") == 1  # on (N, C, H, W)


def test_nothing_to_run() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Softmax(1)).eval()
    report = check(model)
    assert not report.entries
    assert report.native_flops == report.separable_share == 0.0
    assert check(nn.Sequential().eval()).notes == []


class Counted(nn.Module):
    """Adds how often it was called: no two answers are the same."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.convolution(x)
        return y + torch.rand(1)


def test_a_result_that_differs_is_not_returned() -> None:
    model = Counted().eval()
    optimized = dnnsep.optimize(model, image())
    report = report_of(optimized)
    assert not report.entries
    assert report.notes[-1].startswith("left as it is: outputs differed by ")
    assert "forward" not in optimized.__dict__


# The arguments.


def test_a_filter_leaves_layers_to_torch() -> None:
    model = settled(nn.Sequential(Block(), Block()))
    asked: list[str] = []

    def wanted(name: str) -> bool:
        asked.append(name)
        return not name.startswith("0.")

    report = check(model, filter=wanted)
    assert [(e.layers, e.kind) for e in report.entries] == [
        (("0.expand.0",), "left"),
        (("0.depthwise",), "left"),
        (("0.project",), "left"),
        (("1.expand.0",), "convolution"),
        (("1.depthwise", "1.project"), "separable"),
    ]
    assert set(left(report)) == {"filtered out"}
    assert {"0.depthwise", "1.expand.0"} <= set(asked)


@pytest.mark.parametrize("backend", ["onednn", "eager"])
def test_another_backend_runs_separable_layers(backend: str) -> None:
    model = settled(nn.Sequential(Block(), Block(SqueezeExcite()), nn.ReLU()))
    report = check(model, backend=backend)
    assert kinds(report) == ["left", "separable", "left", "left", "left", "left", "left"]
    assert set(left(report)) == {f"not a separable layer for {backend}"}
    assert sum(count for name, count in report.calls.items() if name.startswith(backend)) == 1
    assert not report.kernels or set(report.kernels) == {"copy"}


@pytest.mark.parametrize("whole", [True, False])
def test_bfloat16(whole: bool) -> None:
    model = settled(nn.Sequential(Block(), Block()) if whole else nn.Sequential(Branching()))
    optimized = dnnsep.optimize(model, image(), dtype=torch.bfloat16)
    report = report_of(optimized)
    assert bool(report.notes) is not whole
    assert report.bound == 0.1
    assert 0 < report.error < 0.05
    assert {e.problem.dtype for e in report.entries if e.problem is not None} == {"bf16"}
    assert all(p.dtype is torch.bfloat16 for p in optimized.parameters())
    with torch.no_grad():
        y, expected = optimized(image()), model(image())
        assert y.dtype is torch.float32
        assert 0 < difference(y, expected) < 0.05
        assert optimized(image().bfloat16()).dtype is torch.bfloat16
        optimized.train()
        assert optimized(image()).dtype is torch.float32
    optimized.eval()
    assert optimized(image()).dtype is torch.float32  # with gradients


def test_a_model_in_bfloat16_already() -> None:
    model = settled(nn.Sequential(Block(), Block(SqueezeExcite()))).bfloat16()
    report = check(model, image().bfloat16(), bound=0.02)
    assert not report.notes
    assert report.bound == 0.1
    assert {e.problem.dtype for e in report.entries if e.problem is not None} == {"bf16"}
    optimized = dnnsep.optimize(model, image().bfloat16())
    with torch.no_grad():
        assert optimized(image().bfloat16()).dtype is torch.bfloat16


def test_other_dtypes_are_left_to_torch() -> None:
    model = settled(nn.Sequential(Block(), Block())).double()
    report = check(model, image().double(), bound=1e-12)
    assert kinds(report) == ["left"] * 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "magic"}, "backend 'magic'"),
        ({"dtype": torch.float16}, "dtype=torch.float16: must be torch.float32 or torch.bfloat16"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dnnsep.optimize(Block().eval(), image(), **options)


def test_bad_models() -> None:
    with pytest.raises(ValueError, match="model: is in training mode"):
        dnnsep.optimize(Block(), image())
    with pytest.raises(ValueError, match=r"example_inputs: the model fails on them: .*channels"):
        dnnsep.optimize(Block().eval(), image(7))


def test_a_model_that_refuses_other_values() -> None:
    """Then the example is all that it is compared on."""

    def positive(convolution: nn.Module, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and bool((x < 0).any()):
            raise ValueError("negative")
        y: Tensor = convolution(x)
        return y

    model = settled(Function(positive, nn.Conv2d(8, 4, 3)))
    optimized = dnnsep.optimize(model, image().abs())
    assert report_of(optimized).count("convolution") == 1
    with torch.no_grad():
        x = image(seed=4).abs()
        assert difference(optimized(x), model(x)) < 1e-5


# What goes in and out.


class Plenty(nn.Module):
    """Takes and returns all sorts of things."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(
        self,
        images: dict[str, Tensor],
        pair: tuple[Tensor, list[Tensor]],
        scale: Tensor | None = None,
        times: int = 1,
    ) -> dict[str, Any]:
        y = torch.relu(self.first(images["x"])) + pair[0]
        for _ in range(times):
            y = y + pair[1][0]
        return {
            "y": (y, [self.second(y if scale is None else y * scale)]),
            "none": None,
            "number": times,
            "x": images["x"],
            "text": "text",
        }


@pytest.mark.parametrize("arguments", [(), (None, 2), (torch.full((8, 1, 1), 0.5), 0)], ids=str)
def test_trees_of_arguments_and_results(arguments: tuple[Any, ...]) -> None:
    model = settled(Plenty())
    example = ({"x": image()}, (image(seed=4), [image(seed=5)]), *arguments)
    report = check(model, example)
    assert report.count("convolution") == 2
    optimized = dnnsep.optimize(model, example)
    with torch.no_grad():
        found, expected = optimized(*example), model(*example)
    assert list(found) == list(expected)
    assert isinstance(found["y"], tuple)
    assert isinstance(found["y"][1], list)
    assert (found["none"], found["number"], found["text"]) == (None, expected["number"], "text")


def test_arguments_by_name() -> None:
    model = settled(Plenty())
    example = ({"x": image()}, (image(seed=4), [image(seed=5)]))
    optimized = dnnsep.optimize(model, example)
    scale = torch.full((8, 1, 1), 0.5)
    with torch.no_grad():
        for named in ({}, {"scale": scale}, {"times": 3, "scale": scale}, {"scale": 2 * scale}):
            found, expected = optimized(*example, **named), model(*example, **named)
            assert difference(found, expected) < 1e-5
        found = optimized(pair=example[1], images=example[0])
        assert difference(found, model(*example)) < 1e-5
    assert ran(optimized) == 4


@pytest.mark.parametrize("flag", [True, 1, 1.0, 0, False, None, "x"], ids=repr)
def test_arguments_that_are_no_tensors_are_told_apart(flag: object) -> None:
    def of(convolution: nn.Module, x: Tensor, flag: object) -> Tensor:
        y: Tensor = convolution(x)
        return y * {"bool": 2, "int": 3, "float": 5}.get(type(flag).__name__, 7)

    model = settled(Function(of, nn.Conv2d(8, 4, 1)))
    optimized = dnnsep.optimize(model, (image(), 1))
    with torch.no_grad():
        assert difference(optimized(image(), flag), model(image(), flag)) < 1e-5


def test_integers_and_indices() -> None:
    def of(embedding: nn.Module, linear: nn.Module, indices: Tensor) -> tuple[Tensor, Tensor]:
        return linear(embedding(indices)), indices * 2

    model = settled(Function(of, nn.Embedding(10, 16), nn.Linear(16, 7)))
    report = check(model, (torch.tensor([[1, 2, 9], [0, 0, 3]]),))
    assert report.count("linear") == 1


# Reports.


def test_a_report_counts_everything() -> None:
    model = settled(
        nn.Sequential(
            nn.Conv2d(8, 8, 3),
            nn.Softplus(),  # no kernel
            depthwise(),
            nn.Conv2d(8, 16, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.LayerNorm(16),
            nn.Linear(16, 5),
        )
    )
    x = image().contiguous(memory_format=torch.channels_last)
    report = check(model, x)
    assert kinds(report) == ["convolution", "separable", "linear"]
    assert report.calls == {"softplus": 1}
    assert report.kernels == {"reduction": 1, "row-wise": 1}
    assert report.pieces == 2
    assert report.native_flops == 1.0
    flops = [entry.flops for entry in report.entries]
    assert flops == [2 * 2 * 8 * 7 * 8 * 72, 2 * 2 * 8 * 7 * 8 * (9 + 16), 2 * 2 * 16 * 5]
    assert report.separable_share == flops[1] / sum(flops)
    assert list(report.shares) == ["softplus"]
    assert 0 < report.shares["softplus"] < 1
    assert report.native_time == 1 - report.shares["softplus"]
    text = str(report)
    assert "other kernels: 1 reduction, 1 row-wise" in text
    assert re.search(r"calls of torch \(share of the time\): 1 softplus \(\d+%\)", text)
    assert re.search(
        r"1 separable layers \(\d+% of the FLOPs\), 1 other convolutions and 1 linear layers by "
        r"kernels in 2 pieces, 0 left; outputs differ by .* of the largest \(bound 1e-03\)",
        text,
    )


def test_a_report_names_what_was_left() -> None:
    model = settled(nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)))
    report = check(model, filter=lambda name: name != "0")
    assert left(report) == ["filtered out"]
    assert report.native_flops == pytest.approx(1 / 3)
    assert re.search(r"^0 +left +0\.0 +filtered out$", str(report), re.MULTILINE)


def test_what_ran_grows_with_the_kinds_of_input() -> None:
    model = settled(nn.Sequential(Block(), nn.Flatten(2), nn.Softmax(1)))
    optimized = dnnsep.optimize(model, image())
    before = dnnsep.what_ran(optimized)
    assert all(text.startswith("2 layers by fused:") for text in before)
    with torch.no_grad():
        optimized(image(batch=5))
    assert len(dnnsep.what_ran(optimized)) == len(before) + 1
    assert dnnsep.what_ran(model) == []


class Branching(nn.Module):
    """Looks at values, which cannot be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Block()
        self.branch = nn.ModuleList([Block(), Block()])
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.branch[int(x.sum() > 0)](x)
        y: Tensor = self.head(x)
        return y


def test_a_report_of_parts() -> None:
    model = settled(Branching())
    report = check(model)
    assert report.notes[0].startswith("taken part by part: ")
    assert report.entries[0].layers == ("first.expand.0",)
    assert report.entries[-1].layers == ("head",)
    assert kinds(report) == ["convolution", "separable"] * 2 + ["convolution"]


# Which plans are measured.


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Question]:
    """Lists what plans are measured for, which takes the model's choice as the best."""
    questions: list[Question] = []

    def measure(question: Question, program: object) -> tuner._Answer:
        questions.append(question)
        plans = tuner.candidates(question)
        return tuner._Answer(plans[0], measured=len(plans) > 1)

    monkeypatch.setenv(cachefiles.VARIABLE, str(tmp_path))
    monkeypatch.setenv(tuner.VARIABLE, "1")
    monkeypatch.setattr(tuner, "_answers", {})
    monkeypatch.setattr(tuner, "_measure", measure)
    return questions


def _problems(questions: list[Question]) -> set[tuple[str, str]]:
    return {(question.problem.kind, question.problem.dtype) for question in questions}


def test_the_report_counts_the_plans_that_were_measured(measured: list[Question]) -> None:
    model = settled(nn.Sequential(Block(), nn.Flatten(), nn.Linear(720, 40)))
    report = report_of(dnnsep.optimize(model, image()))
    assert _problems(measured) == {("convolution", "f32"), ("separable", "f32"), ("linear", "f32")}
    assert report.plans.total() == 3
    assert report.plans["measured"] == 3
    assert report.tuning_seconds > 0
    assert "plans of the layers: 3 measured, 0 by the cost model, 0 the only one" in str(report)
    again = report_of(dnnsep.optimize(model, image()))
    assert again.plans == report.plans
    assert again.tuning_seconds == 0
    assert len(measured) == 3


def test_layers_that_are_not_to_be_measured_never_are(measured: list[Question]) -> None:
    """Whatever became of them since, and whatever comes."""
    model = settled(nn.Sequential(Block(), nn.Flatten(2), nn.Linear(90, 5)))
    optimized = dnnsep.optimize(model, image(), tune=False)
    report = report_of(optimized)
    assert report.plans == {"by model": 2, "the only one": 1}
    assert report.tuning_seconds == 0
    wanted = len(measured)
    with torch.no_grad():
        for other in (optimized, copy.deepcopy(optimized), pickle.loads(pickle.dumps(optimized))):
            other.train().eval()(image()[:1])
        assert len(measured) == wanted
        dnnsep.optimize(model, image())(image()[:1])
    assert len(measured) > wanted


def test_means_are_not_measured_either(measured: list[Question]) -> None:
    model = settled(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)))
    dnnsep.optimize(model, image(), tune=False)
    assert not measured


def test_plans_of_another_dtype_than_the_models_are_not_measured(measured: list[Question]) -> None:
    model = settled(nn.Sequential(Block(), Block()))
    report = report_of(dnnsep.optimize(model, image(), dtype=torch.bfloat16))
    assert {question.problem.dtype for question in measured} == {"bf16"}
    assert report.plans["measured"] == report.plans.total() == 4


def test_a_wrong_value_of_the_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tuner.VARIABLE, "on")
    with pytest.raises(ValueError, match="DNNSEP_TUNE='on': must be 0 or 1"):
        dnnsep.optimize(Block().eval(), image())


# How far results are apart.


@pytest.mark.parametrize(
    ("found", "expected", "apart"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]), 0.5),
        (torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 2.0]]), float("inf")),
        ({"a": (torch.zeros(2), 3)}, {"a": (torch.zeros(2), 3)}, 0.0),
        ({"a": (torch.zeros(2), 3)}, {"a": (torch.zeros(2), 4)}, float("inf")),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), float("inf")),
        (torch.tensor([float("nan"), 1.0]), torch.tensor([float("nan"), 1.0]), 0.0),
        (torch.tensor([float("nan")]), torch.tensor([1.0]), float("inf")),
        (torch.tensor([float("inf")]), torch.tensor([float("inf")]), 0.0),
        (torch.tensor([0.5]), torch.tensor([0.0]), 0.5),
        (torch.zeros(0, 3), torch.zeros(0, 3), 0.0),
    ],
)
def test_differences(found: Any, expected: Any, apart: float) -> None:
    assert difference(found, expected) == apart


def test_results_of_another_number_of_values_differ() -> None:
    assert difference((torch.zeros(2), torch.zeros(2)), (torch.zeros(2),)) == float("inf")


def test_an_exception_is_never_reported_as_a_difference() -> None:
    report = Report(notes=[], bound=1e-3)
    assert "inf" not in str(report)

    class Fails(nn.Module):
        """Refuses the kind of module that the forward of a part is replaced in."""

        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            if "forward" in self.convolution.__dict__:
                raise KeyError("of its own")
            if x.sum() > 1e9:
                return x
            y: Tensor = self.convolution(x)
            return y

    report = report_of(dnnsep.optimize(Fails().eval(), image()))
    assert report.notes[-1] == "left as it is: KeyError: 'of its own'"
    assert "differ" not in "".join(report.notes)


@pytest.mark.parametrize("name", ["relu", "relu6", "silu", "hardswish", "gelu"])
def test_activations(name: str) -> None:
    modules: dict[str, Callable[[], nn.Module]] = {
        "relu": lambda: nn.ReLU(inplace=True),
        "relu6": lambda: nn.Hardtanh(0, 6),
        "silu": nn.SiLU,
        "hardswish": nn.Hardswish,
        "gelu": nn.GELU,
    }
    make = modules[name]
    model = nn.Sequential(depthwise(), make(), nn.Conv2d(8, 5, 1), nn.Dropout(), make(), make())
    (entry,) = check(settled(model)).entries
    assert entry.problem is not None
    assert entry.problem.activations == (name, name)


def test_other_activations_end_a_separable_layer() -> None:
    model = nn.Sequential(depthwise(), nn.Tanh(), nn.Conv2d(8, 5, 1), nn.GELU("tanh"))
    report = check(settled(model))
    assert kinds(report) == ["convolution"] * 2
