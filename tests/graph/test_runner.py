"""What an optimized model is called with, and what becomes of it: inputs of all kinds, parameters
that change, training, copies, threads, torch.compile and torch.export."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dnnsep
from dnnsep.graph.difference import difference
from dnnsep.graph.optimize import report_of
from tests.graph.models import (
    Block,
    Function,
    SqueezeExcite,
    assert_same,
    check,
    check_from_many_threads,
    depthwise,
    image,
    kinds,
    ran,
    runner_of,
    settled,
)


def _blocks() -> nn.Module:
    return settled(nn.Sequential(Block(), Block(SqueezeExcite())))


def _same(optimized: nn.Module, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        assert difference(optimized(x.clone()), model(x.clone())) < 1e-5


# Inputs.

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "rows and columns swapped": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "images innermost": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "a slice of channels": lambda x: torch.cat([x, x, x], 1)[:, 8:16],
    "a slice of channels-last channels": lambda x: torch.cat([x, x, x], 1).contiguous(
        memory_format=torch.channels_last
    )[:, 8:16],
    "a slice of columns": lambda x: torch.cat([x, x], 3)[..., 9:],
    "a slice of channels-last columns": lambda x: torch.cat([x, x], 3).contiguous(
        memory_format=torch.channels_last
    )[..., :9],
    "every second row": lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
    "one image for all": lambda x: x[:1].expand_as(x),
    "one channel for all": lambda x: x[:, :1].expand_as(x),
    "one column for all": lambda x: x[..., :1].expand_as(x),
    "one number for all": lambda x: x[:1, :1, :1, :1].expand_as(x),
    "not where a line begins": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view_as(x),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_inputs_that_lie_in_memory_somehow(name: str) -> None:
    model, optimized = _blocks(), dnnsep.optimize(_blocks(), image())
    before = ran(optimized)
    with torch.no_grad():
        for seed in (4, 5):
            x = LAYOUTS[name](image(seed=seed))
            kept = x.clone()
            assert difference(optimized(x), model(x)) < 1e-5
            assert torch.equal(x, kept)
    assert ran(optimized) == before + (name not in ("contiguous", "not where a line begins"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_examples_that_lie_in_memory_somehow(name: str) -> None:
    report = check(_blocks(), LAYOUTS[name](image()))
    assert not report.notes
    assert kinds(report).count("separable") == 1


@pytest.mark.parametrize("name", LAYOUTS)
def test_additions_of_inputs_that_lie_somehow(name: str) -> None:
    """Beside those that lie otherwise."""
    model = settled(
        Function(lambda c, x, y: torch.relu(c(x) + y) + y * x, nn.Conv2d(8, 8, 3, padding=1))
    )
    check(model, (image(), LAYOUTS[name](image(seed=4))))
    check(model, (LAYOUTS[name](image()), image(seed=4)))


def test_many_shapes_of_one_model() -> None:
    model, optimized = _blocks(), dnnsep.optimize(_blocks(), image())
    for shape in ((1, 8, 10, 9), (2, 8, 1, 1), (3, 8, 5, 4), (1, 8, 31, 2), (2, 8, 10, 9)):
        _same(optimized, model, torch.randn(shape))


def test_so_many_kinds_of_input_stay_prepared() -> None:
    model = settled(nn.Sequential(nn.Linear(8, 4)))
    optimized = dnnsep.optimize(model, torch.randn(1, 8))
    for batch in range(1, 41):
        _same(optimized, model, torch.randn(batch, 8))
    assert ran(optimized) == 32
    made = runner_of(optimized).prepared
    _same(optimized, model, torch.randn(40, 8))
    assert runner_of(optimized).prepared == made
    _same(optimized, model, torch.randn(1, 8))  # one that was forgotten
    assert ran(optimized) == 32


def test_weights_are_packed_once_for_all_sizes_of_the_input(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dnnsep.codegen.pack import Packing

    packed: list[Packing] = []
    pack = Packing.pack

    def noted(self: Packing, weights: Any) -> Any:
        packed.append(self)
        return pack(self, weights)

    monkeypatch.setattr(Packing, "pack", noted)
    model = settled(nn.Sequential(nn.Conv2d(8, 24, 3, padding=1), nn.BatchNorm2d(24)))
    optimized = dnnsep.optimize(model, image())
    for size in (9, 20, 33):
        _same(optimized, model, torch.randn(1, 8, size, size + 1))
    for size in (1, 2):  # torch 2.8 asks if there is one pixel: then it is prepared by itself
        _same(optimized, model, torch.randn(1, 8, 1, size))
    assert 1 <= len(packed) <= 2
    with torch.no_grad():
        optimized[0].weight.mul_(2)  # type: ignore[index]
        model[0].weight.mul_(2)  # type: ignore[index]
    before = len(packed)
    _same(optimized, model, torch.randn(1, 8, 9, 10))
    assert len(packed) == before + 1


def test_the_report_says_what_weights_take() -> None:
    model = settled(nn.Sequential(nn.Conv2d(64, 128, 3, padding=1), nn.BatchNorm2d(128)))
    report = report_of(dnnsep.optimize(model, image(64)))
    weights = 4 * 64 * 128 * 9
    assert report.parameter_bytes == weights + 4 * 3 * 128
    assert weights <= report.packed_bytes < 1.1 * weights
    assert f"weights: {report.packed_bytes / 2**20:.1f} MiB for the kernels" in str(report)


def test_empty_inputs_go_to_torch() -> None:
    model = settled(nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU()))
    optimized = dnnsep.optimize(model, image())
    before = ran(optimized)
    with torch.no_grad():
        assert optimized(torch.empty(0, 8, 10, 9)).shape == (0, 4, 10, 9)
        with pytest.raises(RuntimeError, match="greater than actual input size"):
            optimized(torch.empty(2, 8, 0, 9))
    assert ran(optimized) == before


def test_an_empty_example() -> None:
    model = settled(nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU()))
    optimized = dnnsep.optimize(model, torch.empty(0, 8, 10, 9))
    with torch.no_grad():
        assert optimized(torch.empty(0, 8, 10, 9)).shape == (0, 4, 10, 9)
    _same(optimized, model, image())


def test_what_torch_refuses_is_refused_by_torch() -> None:
    model = _blocks()
    optimized = dnnsep.optimize(model, image())
    for x, message in (
        (image(4), "channels"),
        (image().double(), "type|dtype"),
        (torch.randn(8), "Expected|expected"),
    ):
        with torch.no_grad(), pytest.raises(RuntimeError, match=message):
            optimized(x)
    with pytest.raises(TypeError, match="argument"):
        optimized()
    _same(optimized, model, image())


def test_results_of_earlier_calls_stay() -> None:
    model = _blocks()
    optimized = dnnsep.optimize(model, image())
    with torch.no_grad():
        first = optimized(image())
        kept = first.clone()
        second = optimized(image(seed=9))
        assert torch.equal(first, kept)
        second.zero_()
        assert torch.equal(optimized(image()), kept)


def test_results_that_are_inputs_or_parameters() -> None:
    class Returns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3))
            self.convolution = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> tuple[Any, ...]:
            y = self.convolution(x)
            return x, y, x[:, 1:], y, y.flatten(1), self.weight, self.weight * 2

    model = settled(Returns())
    check(model, image())
    optimized, x = dnnsep.optimize(model, image()), image(seed=4)
    with torch.no_grad():
        found = optimized(x)
        assert found[0].data_ptr() == x.data_ptr()
        assert found[2].data_ptr() == x[:, 1:].data_ptr()
        again = optimized(x)
    assert again[1].data_ptr() != found[1].data_ptr()


def test_one_tensor_for_two_arguments() -> None:
    model = settled(Function(lambda c, x, y: c(x) + y, nn.Conv2d(8, 8, 1)))
    optimized = dnnsep.optimize(model, (image(), image(seed=4)))
    x = image(seed=5)
    with torch.no_grad():
        assert difference(optimized(x, x), model(x, x)) < 1e-5


def test_inputs_that_are_written_into() -> None:
    def of(convolution: nn.Module, x: Tensor) -> Tensor:
        x.mul_(2)
        y: Tensor = convolution(x)
        return y

    model = settled(Function(of, nn.Conv2d(8, 4, 1)))
    optimized = dnnsep.optimize(model, image())
    with torch.no_grad():
        found, expected = image(), image()
        assert difference(optimized(found), model(expected)) < 1e-5
    assert torch.equal(found, expected)
    assert not torch.equal(found, image())


def test_a_buffer_that_counts() -> None:
    class Counts(nn.Module):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))
            self.convolution = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            y: Tensor = self.convolution(x)
            return y

    optimized: Any = dnnsep.optimize(settled(Counts()), image())
    with torch.no_grad():
        before = float(optimized.calls)
        optimized(image())
        optimized(image(seed=4))
        assert float(optimized.calls) == before + 2


# Parameters.


def _changes() -> dict[str, Callable[[nn.Sequential], Any]]:
    def load(model: nn.Sequential) -> None:
        state = {name: value * 0.5 for name, value in model.state_dict().items()}
        model.load_state_dict(state)

    def assign(model: nn.Sequential) -> None:
        state = {name: value * 0.5 for name, value in model.state_dict().items()}
        model.load_state_dict(state, assign=True)

    return {
        "in place": lambda m: m[0].expand[0].weight.mul_(2),
        "another parameter": lambda m: setattr(
            m[0].project, "weight", nn.Parameter(m[0].project.weight * 2)
        ),
        "other data": lambda m: setattr(m[1].project.weight, "data", m[1].project.weight * 2),
        "a norm's statistics": lambda m: m[1].norm.running_mean.add_(1),
        "a norm's other statistics": lambda m: m[0].last.running_var.mul_(4),
        "a norm's weight": lambda m: m[0].norm.weight.mul_(-1),
        "loaded": load,
        "assigned": assign,
        "initialized": lambda m: nn.init.ones_(m[1].expand[0].weight),
        "a bias that goes": lambda m: setattr(m[1].between.reduce, "bias", None),
        "a bias that comes": lambda m: setattr(m[0].project, "bias", nn.Parameter(torch.ones(8))),
    }


@pytest.mark.parametrize("name", _changes())
def test_changed_parameters_are_seen(name: str) -> None:
    model = _blocks()
    optimized = dnnsep.optimize(model, image())
    with torch.no_grad():
        before = optimized(image())
        for each in (model, optimized):
            _changes()[name](each)  # type: ignore[arg-type]
        assert difference(before, model(image())) > 1e-3
    assert_same(optimized, model, (image(),))
    assert ran(optimized) >= 1


def test_a_replaced_module_is_seen() -> None:
    model = settled(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)))
    optimized = dnnsep.optimize(model, image())
    torch.manual_seed(3)
    replaced = nn.Conv2d(8, 4, 1)
    for each in (model, optimized):
        each[2] = replaced  # type: ignore[operator]
    assert_same(optimized, model, (image(),))


def test_an_added_module_is_seen() -> None:
    model = settled(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()))
    optimized = dnnsep.optimize(model, image())
    added = nn.Conv2d(8, 4, 1)
    for each in (model, optimized):
        each.append(added)  # type: ignore[operator]
    assert_same(optimized, model, (image(),))
    with torch.no_grad():
        assert optimized(image()).shape == (2, 4, 10, 9)


def test_parametrized_weights() -> None:
    model = nn.Sequential(depthwise(), nn.Conv2d(8, 8, 1))
    nn.utils.parametrizations.weight_norm(model[0])
    report = check(settled(model))
    assert kinds(report) == ["separable"]
    optimized = dnnsep.optimize(model, image())
    with torch.no_grad():
        for each in (model, optimized):
            each[0].parametrizations.weight.original0.mul_(3)  # type: ignore[index]
    _same(optimized, model, image())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.pointwise = depthwise(), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pointwise(self.depthwise(self.pointwise(self.depthwise(x))))
        return y


def test_shared_weights() -> None:
    assert kinds(check(settled(Twice()))) == ["separable"] * 2
    tied = nn.Sequential(depthwise(), nn.Conv2d(8, 8, 1), depthwise(), nn.Conv2d(8, 8, 1))
    tied[2].weight = tied[0].weight
    settled(tied)
    assert kinds(check(tied)) == ["separable"] * 2
    optimized = dnnsep.optimize(tied, image())
    assert optimized[2].weight is optimized[0].weight  # type: ignore[index]


def test_hooks() -> None:
    """Of the model are called as ever; a model whose parts have some is taken part by part."""
    seen: list[str] = []

    def hook(name: str) -> Callable[..., None]:
        return lambda *arguments: seen.append(name)

    model = settled(nn.Sequential(Block(), nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU())))
    model.register_forward_hook(hook("model"))
    optimized = dnnsep.optimize(model, image())
    assert not report_of(optimized).notes
    seen.clear()
    _same(optimized, model, image())
    assert seen == ["model"] * 2

    model[1].register_forward_pre_hook(hook("before"))  # type: ignore[index]
    model[1][0].register_forward_hook(hook("part"))  # type: ignore[index]
    optimized = dnnsep.optimize(model, image())
    assert report_of(optimized).notes == ["taken part by part: parts of it have hooks"]
    assert kinds(report_of(optimized)) == ["convolution", "separable", "convolution"]
    for _ in range(2):
        seen.clear()
        with torch.no_grad():
            optimized(image())
        assert seen == ["before", "part", "model"]


def test_hooks_that_come_later() -> None:
    model = settled(nn.Sequential(Block(), nn.Conv2d(8, 4, 1)))
    optimized = dnnsep.optimize(model, image())
    seen: list[int] = []
    handle = optimized[1].register_forward_hook(lambda *arguments: seen.append(1))  # type: ignore[index]
    for _ in range(2):
        _same(optimized, model, image())
    assert seen == [1, 1]
    handle.remove()
    _same(optimized, model, image())
    assert seen == [1, 1]
    assert ran(optimized) == 1


# Training, gradients.


def test_training_is_as_it_was() -> None:
    model = settled(nn.Sequential(Block(), nn.BatchNorm2d(8), nn.Dropout(0.5)))
    optimized = dnnsep.optimize(model, image())
    for each in (model, optimized):
        each.train()
    found: list[Tensor] = []
    expected: list[Tensor] = []
    for each, results in ((optimized, found), (model, expected)):
        torch.manual_seed(0)
        with torch.no_grad():
            results += [each(image()) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    for each in (model, optimized):
        each.eval()
    assert_same(optimized, model, (image(),))  # with the statistics that it has learned


def test_a_part_in_training() -> None:
    model = settled(nn.Sequential(Block(), nn.BatchNorm2d(8)))
    optimized = dnnsep.optimize(model, image())
    for each in (model, optimized):
        each[1].train()  # type: ignore[index]
    for _ in range(2):
        with torch.no_grad():
            assert torch.equal(optimized(image()), model(image()))
    for each in (model, optimized):
        each.eval()
    assert_same(optimized, model, (image(),))


def test_gradients() -> None:
    model = settled(nn.Sequential(Block(), Block()))
    optimized = dnnsep.optimize(model, image())
    gradients = []
    for each in (model, optimized):
        x = image().requires_grad_()
        each(x).square().sum().backward()
        gradients.append([x.grad, *(parameter.grad for parameter in each.parameters())])
    for a, b in zip(*gradients, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)
    with torch.no_grad():
        assert not optimized(image().requires_grad_()).requires_grad
    assert_same(optimized, model, (image(),))


def test_a_model_learns_and_runs_in_turns() -> None:
    model = settled(nn.Sequential(Block(), nn.Conv2d(8, 2, 1)))
    optimized = dnnsep.optimize(model, image())
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.01) for each in (model, optimized)]
    for _ in range(3):
        for each, optimizer in zip((model, optimized), optimizers, strict=True):
            each.train()
            optimizer.zero_grad()
            each(image()).square().mean().backward()
            optimizer.step()
            each.eval()
        assert_same(optimized, model, (image(),))


def test_inference_mode() -> None:
    model, optimized = _blocks(), dnnsep.optimize(_blocks(), image())
    with torch.inference_mode():
        assert difference(optimized(image()), model(image())) < 1e-5
        other = dnnsep.optimize(model, image())
        assert difference(other(image()), model(image())) < 1e-5
    _same(other, model, image())


def test_autocast_is_torch_s() -> None:
    model, optimized = _blocks(), dnnsep.optimize(_blocks(), image())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, expected = optimized(image()), model(image())
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


# Copies, threads.


def test_copies_and_pickles() -> None:
    model = _blocks()
    optimized = dnnsep.optimize(model, image())
    file = io.BytesIO()
    torch.save(optimized, file)
    file.seek(0)
    copies = [
        copy.deepcopy(optimized),
        pickle.loads(pickle.dumps(optimized)),
        torch.load(file, weights_only=False),
    ]
    with torch.no_grad():
        expected = optimized(image())
        for other in copies:
            assert ran(other) == 0
            assert torch.equal(other(image()), expected)
            assert ran(other) == 1
            assert report_of(other).entries == report_of(optimized).entries
            for parameter in other.parameters():
                parameter.zero_()
            assert_same(other, copy.deepcopy(other).train().eval(), (image(),))
        assert torch.equal(optimized(image()), expected)


def _but_the_first(name: str) -> bool:
    return not name.startswith("0.")


def test_a_copy_leaves_the_same_layers_to_torch() -> None:
    optimized = dnnsep.optimize(_blocks(), image(), filter=_but_the_first)
    (text,) = {*dnnsep.what_ran(optimized)}
    for other in (copy.deepcopy(optimized), pickle.loads(pickle.dumps(optimized))):
        with torch.no_grad():
            other(image())
        assert dnnsep.what_ran(other) == [text]


@pytest.mark.xfail(strict=True, reason="a model keeps the filter, which may not be picklable")
def test_a_pickle_of_a_model_with_any_filter() -> None:
    pickle.dumps(dnnsep.optimize(_blocks(), image(), filter=lambda name: name != "0.project"))


def test_one_model_called_from_many_threads() -> None:
    optimized = dnnsep.optimize(_blocks(), image())
    inputs = [torch.randn(1, 8, n, 9) for n in range(4, 12)]
    with torch.no_grad():
        expected = [optimized(x) for x in inputs]
    check_from_many_threads(optimized, inputs, expected)


def test_one_model_first_called_from_many_threads() -> None:
    """While it is prepared for some, others may get torch's own results."""
    model, optimized = _blocks(), dnnsep.optimize(_blocks(), image())
    inputs = [torch.randn(1, 8, n, 9) for n in range(4, 12)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]

    def work(start: int) -> float:
        numbers = [n % len(inputs) for n in range(start, start + 16)]
        with torch.no_grad():
            return max(difference(optimized(inputs[n]), expected[n]) for n in numbers)

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(work, range(8))) < 1e-5
    with torch.no_grad():
        expected = [optimized(x) for x in inputs]
    check_from_many_threads(optimized, inputs, expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(threads: int) -> None:
    optimized = dnnsep.optimize(_blocks(), image())
    before = torch.get_num_threads()
    with torch.no_grad():
        expected = optimized(image())
        torch.set_num_threads(threads)
        try:
            assert torch.equal(optimized(image()), expected)
            runner_of(optimized).forget()  # prepared again, for these threads
            assert torch.equal(optimized(image()), expected)
        finally:
            torch.set_num_threads(before)


# torch.compile, torch.export, torch.jit.


def _targets(graph: torch.fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("strict", [True, False])
def test_torch_export_sees_the_model_as_it_was(strict: bool) -> None:
    model = _blocks()
    optimized = dnnsep.optimize(model, image())
    found, expected = (
        torch.export.export(each, (image(),), strict=strict) for each in (optimized, model)
    )
    assert _targets(found.graph) == _targets(expected.graph)
    assert list(found.state_dict) == list(expected.state_dict)
    file = io.BytesIO()
    torch.export.save(found, file)
    file.seek(0)
    _same(torch.export.load(file).module(), model, image())
    _same(optimized, model, image())


def test_torch_compile_sees_the_model_as_it_was() -> None:
    seen: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        seen.append(graph)
        return graph.forward

    model = _blocks()
    optimized = dnnsep.optimize(model, image())
    with torch.no_grad():
        for each in (optimized, model):
            found = torch.compile(each, backend=keep, fullgraph=True)(image())
            assert difference(found, model(image())) < 1e-5
    first, second = (
        [str(n.target) for n in graph.graph.nodes if n.op != "get_attr"] for graph in seen
    )
    assert len(first) == len(second)


@pytest.mark.slow
def test_torch_compile_with_inductor() -> None:
    model, optimized = _blocks(), dnnsep.optimize(_blocks(), image())
    with torch.no_grad():
        compiled = torch.compile(optimized, fullgraph=True)
        assert difference(compiled(image()), model(image())) < 1e-5


def test_torch_export_of_a_model_in_parts() -> None:
    model = _blocks()
    model[1].register_forward_hook(lambda *arguments: None)  # type: ignore[index]
    optimized = dnnsep.optimize(model, image())
    assert report_of(optimized).notes
    program = torch.export.export(optimized, (image(),))
    _same(program.module(), model, image())


def test_a_model_in_bfloat16_is_exported_in_bfloat16() -> None:
    model = settled(nn.Sequential(Block(), Block()))
    optimized = dnnsep.optimize(model, image(), dtype=torch.bfloat16)
    exported = torch.export.export(optimized, (image(),)).module()
    with torch.no_grad():
        found = exported(image())
        assert found.dtype is torch.float32
        assert difference(found, model(image())) < 0.05


def test_tracing_stays_right() -> None:
    model, optimized = _blocks(), dnnsep.optimize(_blocks(), image())
    with torch.no_grad():
        traced = torch.jit.trace(optimized, image())  # type: ignore[no-untyped-call]
        assert difference(traced(image(seed=4)), model(image(seed=4))) < 1e-5


def test_tensors_without_data() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    optimized = dnnsep.optimize(_blocks(), image())
    before = ran(optimized)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert optimized(mode.from_tensor(image())).shape == (2, 8, 10, 9)
    with torch.no_grad():
        mapped = torch.func.vmap(optimized)(torch.stack([image(), image(seed=4)]))
        assert difference(mapped[1], _blocks()(image(seed=4))) < 1e-5
    assert ran(optimized) == before
