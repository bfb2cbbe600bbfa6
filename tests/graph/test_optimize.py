"""Whole models rewritten: what is replaced, what is left alone and why, and the same answers."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dnnsep
from dnnsep.codegen import tuner
from dnnsep.codegen.tuner import Question
from dnnsep.graph.difference import difference
from dnnsep.graph.optimize import report_of
from dnnsep.graph.report import Report
from dnnsep.host import cachefiles
from dnnsep.nn.module import SeparableConv2d
from dnnsep.nn.packed import PackedConv2d, PackedLinear


def _depthwise(channels: int = 8, **arguments: object) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, **arguments)  # type: ignore[arg-type]


class Block(nn.Module):
    """MobileNet V2's: expansion, depthwise, projection, and the input again."""

    def __init__(self, between: nn.Module | None = None) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.depthwise = _depthwise(16, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.between = between or nn.Identity()
        self.project = nn.Conv2d(16, 8, 1, bias=False)
        self.last = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.between(F.relu6(self.norm(self.depthwise(self.expand(x)))))
        projected: Tensor = self.last(self.project(y))
        return x + projected


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


def _settled(model: nn.Module) -> nn.Module:
    """In eval mode, with normalisations that do something."""
    torch.manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1, 0.2)
            nn.init.normal_(layer.bias)
            nn.init.normal_(layer.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(layer.running_var, 0.5, 2)  # type: ignore[arg-type]
    return model.eval()


def _x(channels: int = 8) -> Tensor:
    return torch.randn(2, channels, 10, 9, generator=torch.Generator().manual_seed(3))


def _check(model: nn.Module, x: Tensor | None = None, **options: object) -> Report:
    """Optimize; the answers must agree, on another input too, and the model must be as it was."""
    x = _x() if x is None else x
    before = copy.deepcopy(model.state_dict())
    optimized = dnnsep.optimize(model, x, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for other in (x, x.flip(-1) * 2):
            assert difference(optimized(other.clone()), model(other.clone())) < 1e-5
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    return report_of(optimized)


def _left(report: Report) -> list[str]:
    return [entry.reason for entry in report.entries if entry.kind == "left"]


def test_an_inverted_residual_block() -> None:
    model = _settled(nn.Sequential(Block(), Block(), nn.Conv2d(8, 3, 3, stride=2)))
    report = _check(model)
    assert (report.count("separable"), report.count("convolution")) == (2, 3)
    first = next(entry for entry in report.entries if entry.kind == "separable")
    assert first.layers == ("0.depthwise", "0.norm", "0.project", "0.last")
    assert str(first.problem) == "mb2ic16oc8ih10iw9kh3sh1ph1_act:relu6,none"
    assert first.flops == dnnsep.cost(first.problem).flops  # type: ignore[arg-type]
    optimized = dnnsep.optimize(model, _x())
    layers = list(optimized.modules())
    assert sum(isinstance(m, SeparableConv2d) for m in layers) == 2
    assert sum(isinstance(m, PackedConv2d) for m in layers) == 3
    assert not any(isinstance(m, nn.BatchNorm2d) for m in layers)
    assert re.search(r"0\.depthwise … 0\.last +separable +0\.1 ", str(report))


def test_squeeze_and_excitation_between_the_stages() -> None:
    report = _check(_settled(Block(SqueezeExcite())))
    assert (report.count("separable"), report.count("convolution")) == (0, 5)
    reasons = [entry.reason for entry in report.entries if entry.layers[0] == "depthwise"]
    assert reasons == ["depthwise only: its result goes to 2 places"]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.pointwise = _depthwise(), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pointwise(self.depthwise(self.pointwise(self.depthwise(x))))
        return y


def test_shared_weights_are_left() -> None:
    assert _left(_check(Twice().eval())) == ["used 2 times (shared weights)"] * 4
    tied = nn.Sequential(_depthwise(), nn.Conv2d(8, 8, 1), _depthwise(), nn.Conv2d(8, 8, 1))
    tied[2].weight = tied[0].weight
    report = _check(tied.eval())
    assert _left(report) == ["shared weights"] * 2
    assert report.count("convolution") == 2


def test_hooks_parametrizations_and_odd_paddings_are_left() -> None:
    model = nn.Sequential(_depthwise(), nn.Conv2d(8, 8, 1), _depthwise(), nn.Conv2d(8, 8, 1)).eval()
    seen = []
    model[1].register_forward_hook(lambda *arguments: seen.append(1))
    nn.utils.parametrizations.weight_norm(model[2])
    report = _check(model)
    assert sorted(_left(report)) == ["has hooks", "parametrized weights"]
    assert seen
    assert _left(
        _check(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")).eval())
    )


def test_odd_normalisations_end_the_chain() -> None:
    model = nn.Sequential(_depthwise(), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1)).eval()
    report = _check(model)
    assert report.count("separable") == 0
    assert "followed by 1 (GroupNorm)" in report.entries[0].reason
    own = nn.BatchNorm2d(8, track_running_stats=False)
    assert (
        _check(nn.Sequential(_depthwise(), own, nn.Conv2d(8, 8, 1)).eval()).count("separable") == 0
    )


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
    model = nn.Sequential(_depthwise(), make(), nn.Conv2d(8, 5, 1), nn.Dropout(), make(), make())
    report = _check(model.eval())
    (entry,) = report.entries
    assert entry.problem is not None
    assert entry.problem.activations == (name, name)
    other = nn.Sequential(_depthwise(), nn.Tanh(), nn.Conv2d(8, 5, 1), nn.GELU("tanh")).eval()
    assert _check(other).count("separable") == 0


class Residual(nn.Module):
    """ResNet's end of a block, with an addition of some kind."""

    def __init__(self, add: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise, self.pointwise = _depthwise(), nn.Conv2d(8, 8, 1)
        self.add = add

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x * 1.5
        y = torch.relu(self.add(self.norm(self.convolution(x)), x))
        return self.add(self.pointwise(self.depthwise(y)), y), x + y


def _into_the_other(a: Tensor, b: Tensor) -> Tensor:
    b += a
    return b


@pytest.mark.parametrize(
    "add",
    [torch.add, lambda a, b: b + a, lambda a, b: a.add_(b), _into_the_other],
    ids=["add", "swapped", "in place", "into the other"],
)
def test_residual_additions(add: Callable[[Tensor, Tensor], Tensor]) -> None:
    report = _check(_settled(Residual(add)))
    traced = add is not _into_the_other  # torch.fx takes += for +
    assert (report.count("separable"), report.count("convolution")) == (
        (1, 1) if traced else (0, 3)
    )


def test_an_addition_of_two_convolutions() -> None:
    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.short, self.norm = nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6)
            self.depthwise, self.pointwise = _depthwise(), nn.Conv2d(8, 6, 1)
            self.third = nn.Conv2d(6, 6, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm(self.short(x)) + self.pointwise(self.depthwise(x))
            z: Tensor = self.third(y)
            return z + y

    report = _check(_settled(Shortcut()))
    assert (report.count("separable"), report.count("convolution")) == (1, 2)


def test_broadcast_additions_are_no_residuals() -> None:
    class Broadcast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.convolution(x)
            return torch.relu(y + x.mean((2, 3), keepdim=True))

    _check(Broadcast().eval())


class Branching(nn.Module):
    """Looks at values, which cannot be traced."""

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


def test_what_cannot_be_traced_is_taken_part_by_part() -> None:
    report = _check(_settled(Branching()))
    assert report.count("separable") == 2  # one branch was never called
    assert report.notes
    assert report.notes[0].startswith("taken part by part: ")
    assert {"the example calls it not once"} == set(_left(report))
    assert report.entries[-1].kind == "convolution"


def test_a_model_that_depends_on_its_arguments() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(
            self, x: Tensor, scale: Tensor | None = None, times: int = 1
        ) -> dict[str, Tensor]:
            for _ in range(times):
                x = self.block(x) if times == 1 else x
            return {"y": x if scale is None else x * scale}

    assert _check(_settled(Optional())).count("separable") == 1


def test_linear_layers() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(720, 33), nn.ReLU(), nn.Linear(33, 5)).eval()
    report = _check(model)
    assert report.count("linear") == 2
    assert report.entries[0].flops == 2 * 2 * 720 * 33
    optimized = dnnsep.optimize(model, _x())
    with torch.no_grad():
        optimized(_x())
    ran = [m.runs_on for m in optimized.modules() if isinstance(m, PackedLinear)]
    assert all(text.startswith("fused") for found in ran for text in found.values())
    assert _check(model, backend="onednn").count("linear") == 0
    assert _check(nn.Sequential(nn.Linear(9, 4)).eval()).count("linear") == 1  # on (N, C, H, W)


def test_nothing_to_replace() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Softmax(1)).eval()
    report = _check(model)
    assert not report.entries
    with torch.no_grad():
        assert torch.equal(dnnsep.optimize(model, _x())(_x()), model(_x()))


def test_filter_and_backend() -> None:
    model = _settled(nn.Sequential(Block(), Block()))
    report = _check(model, filter=lambda name: not name.startswith("0."), backend="onednn")
    assert report.count("separable") == 1
    assert set(_left(report)) == {"filtered out"}
    optimized = dnnsep.optimize(model, _x(), backend="onednn")
    with torch.no_grad():
        optimized(_x())
    ran = [m.runs_on for m in optimized.modules() if isinstance(m, SeparableConv2d)]
    assert all("onednn" in text for found in ran for text in found.values())


def test_bfloat16() -> None:
    model = _settled(nn.Sequential(Block(), Block()))
    optimized = dnnsep.optimize(model, _x(), dtype=torch.bfloat16)
    with torch.no_grad():
        y, expected = optimized(_x()), model(_x())
    assert y.dtype is torch.float32
    assert 0 < difference(y, expected) < 0.05
    assert all(p.dtype is torch.bfloat16 for p in optimized.parameters())


def test_in_place_keeps_no_copy() -> None:
    model = _settled(Block())
    expected = copy.deepcopy(model)
    weight = model.project.weight if isinstance(model, Block) else None
    optimized = dnnsep.optimize(
        nn.Sequential(_depthwise(), nn.Conv2d(8, 8, 1)).eval(), _x(), inplace=True
    )
    assert report_of(optimized).count("separable") == 1
    optimized = dnnsep.optimize(model, _x(), inplace=True)
    assert weight is not None
    with torch.no_grad():
        assert difference(optimized(_x()), expected(_x())) < 1e-5


def test_a_result_that_differs_is_not_returned() -> None:
    class Counting(nn.Module):
        """Answers differently each time: no rewrite can be checked."""

        def __init__(self) -> None:
            super().__init__()
            self.depthwise, self.pointwise = _depthwise(), nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.pointwise(self.depthwise(x))
            return y + torch.rand(1)

    report = report_of(dnnsep.optimize(Counting().eval(), _x()))
    assert not report.entries
    assert "outputs differed" in report.notes[-1]


def check_from_many_threads(model: nn.Module, inputs: list[Tensor], expected: list[Tensor]) -> None:
    """Eight threads at once get what one got, to the bit."""

    def work(start: int) -> bool:
        numbers = [n % len(inputs) for n in range(start, start + 40)]
        with torch.no_grad():
            return all(torch.equal(model(inputs[n]), expected[n]) for n in numbers)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_one_model_called_from_many_threads() -> None:
    optimized = dnnsep.optimize(_settled(nn.Sequential(Block(), Block())), _x())
    inputs = [torch.randn(1, 8, n, 9) for n in range(4, 12)]
    with torch.no_grad():
        expected = [optimized(x) for x in inputs]

    check_from_many_threads(optimized, inputs, expected)


@pytest.mark.slow
def test_compiled_and_exported() -> None:
    model, x = _settled(nn.Sequential(Block(), Block(), Block(SqueezeExcite()))), _x()
    optimized = dnnsep.optimize(model, x)
    with torch.no_grad():
        expected = optimized(x)
        compiled = torch.compile(optimized, fullgraph=True)
        assert difference(compiled(x), expected) < 1e-5
        program = torch.export.export(optimized, (x,))
        assert difference(program.module()(x), expected) < 1e-5
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("dnnsep.separable_conv2d.default") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "magic"}, "backend 'magic'"),
        ({"dtype": torch.float16}, "dtype=torch.float16: must be torch.float32 or torch.bfloat16"),
    ],
)
def test_bad_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dnnsep.optimize(Block().eval(), _x(), **options)  # type: ignore[arg-type]


def test_bad_models() -> None:
    with pytest.raises(ValueError, match="model: is in training mode"):
        dnnsep.optimize(Block(), _x())
    with pytest.raises(ValueError, match="example_inputs: the model fails on them"):
        dnnsep.optimize(Block().eval(), _x(7))


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
    model = _settled(nn.Sequential(Block(), nn.Flatten(), nn.Linear(720, 40)))
    report = report_of(dnnsep.optimize(model, _x()))
    assert _problems(measured) == {("convolution", "f32"), ("separable", "f32"), ("linear", "f32")}
    assert report.plans.total() == 3
    assert report.plans["measured"] == 3
    assert report.tuning_seconds > 0
    assert "fused kernel: 3 measured, 0 by the cost model, 0 the only one; 0.0 s" in str(report)
    again = report_of(dnnsep.optimize(model, _x()))
    assert again.plans == report.plans
    assert again.tuning_seconds == 0
    assert len(measured) == 3


def test_layers_that_are_not_to_be_measured_never_are(measured: list[Question]) -> None:
    """Whatever became of them since, and whatever comes."""
    model = _settled(nn.Sequential(Block(), nn.Flatten(2), nn.Linear(90, 5)))
    optimized = dnnsep.optimize(model, _x(), tune=False)
    report = report_of(optimized)
    assert report.plans == {"by model": 2, "the only one": 1}
    assert report.tuning_seconds == 0
    assert optimized.state_dict().keys() == dnnsep.optimize(model, _x()).state_dict().keys()
    wanted = len(measured)
    with torch.no_grad():
        for other in (optimized, copy.deepcopy(optimized), pickle.loads(pickle.dumps(optimized))):
            other.train().eval()(_x()[:1])
        assert len(measured) == wanted
        dnnsep.optimize(model, _x())(_x()[:1])
    assert len(measured) > wanted


def test_plans_of_another_dtype_than_the_models_are_not_measured(measured: list[Question]) -> None:
    model = _settled(nn.Sequential(Block(), Block()))
    report = report_of(dnnsep.optimize(model, _x(), dtype=torch.bfloat16))
    assert {question.problem.dtype for question in measured} == {"bf16"}
    assert report.plans["measured"] == report.plans.total() == 4


def test_a_wrong_value_of_the_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tuner.VARIABLE, "on")
    with pytest.raises(ValueError, match="DNNSEP_TUNE='on': must be 0 or 1"):
        dnnsep.optimize(Block().eval(), _x())
