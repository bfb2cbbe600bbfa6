"""Optimized models on numbers and sizes of images that they were not prepared for."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import dnnsep
from dnnsep.codegen import background
from dnnsep.codegen.generalstep import GeneralStep
from dnnsep.codegen.layerstep import LayerStep
from dnnsep.graph import opened
from dnnsep.graph.asking import SizesError, sizes_of
from dnnsep.graph.dims import condition_of
from dnnsep.graph.kept import Kept
from dnnsep.graph.opened import Sized
from dnnsep.graph.sizes import Sizes
from tests.graph.models import runner_of, settled

SIZES = [(1, 40, 40), (2, 40, 40), (1, 33, 57), (3, 21, 96), (8, 17, 19)]


def _bn(channels: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU6())


class Net(nn.Module):
    """What networks for mobiles are made of: a stem, a residual block with squeeze-and-excitation,
    a concatenation, pooling, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), _bn(16))
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.wide = nn.Sequential(nn.Conv2d(16, 48, 1), _bn(48))
        self.depthwise = nn.Sequential(nn.Conv2d(48, 48, 5, padding=2, groups=48), _bn(48))
        self.squeeze = nn.Sequential(nn.Conv2d(48, 8, 1), nn.ReLU(), nn.Conv2d(8, 48, 1))
        self.narrow = nn.Sequential(nn.Conv2d(48, 16, 1), nn.BatchNorm2d(16))
        self.side = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), _bn(24))
        self.head = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        y = self.depthwise(self.wide(x))
        y = y * torch.sigmoid(self.squeeze(y.mean((2, 3), keepdim=True)))
        x = x + self.narrow(y)
        x = torch.cat([x, self.side(x)], 1)
        result: Tensor = self.head(x.mean((2, 3)))
        return result


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return settled(Net())


def _optimized(model: nn.Module, x: Tensor | None = None, **options: Any) -> nn.Module:
    return dnnsep.optimize(model, torch.randn(SIZE) if x is None else x, tune=False, **options)


SIZE = (1, 3, 40, 40)


def _x(size: tuple[int, int, int]) -> Tensor:
    images, height, width = size
    return torch.randn(images, 3, height, width)


def _call(model: nn.Module, x: Tensor) -> Any:
    with torch.no_grad():
        return model(x)


def _close(model: nn.Module, plain: nn.Module, x: Tensor) -> Tensor:
    found, expected = _call(model, x), _call(plain, x)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    result: Tensor = found
    return result


def _why_fixed(model: nn.Module) -> str:
    return runner_of(model).why_fixed


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_other_sizes_are_not_prepared(model: nn.Module, memory_format: torch.memory_format) -> None:
    x = torch.randn(SIZE).to(memory_format=memory_format)
    optimized = _optimized(model, x)
    assert "other sizes: by the same kernels" in str(optimized.dnnsep_report)
    for size in SIZES:
        _close(optimized, model, _x(size).to(memory_format=memory_format))
    runner = runner_of(optimized)
    assert len(runner.prepared) == 1
    assert len(runner.sized) == len(SIZES) - 1
    texts = dnnsep.what_ran(optimized)
    assert any("by general kernels), " in text and "3 x 21 x 96 images" in text for text in texts)


def test_they_give_what_a_model_prepared_for_them_gives(model: nn.Module) -> None:
    optimized = _optimized(model)
    for size in SIZES:
        x = _x(size)
        assert torch.equal(_call(optimized, x), _call(_optimized(model, x), x))


@pytest.mark.parametrize("batch", [1, 2])
def test_the_example_may_have_any_number_of_images(model: nn.Module, batch: int) -> None:
    optimized = _optimized(model, torch.randn(batch, 3, 40, 40))
    assert _why_fixed(optimized) == ""
    for size in SIZES:
        _close(optimized, model, _x(size))
    assert len(runner_of(optimized).prepared) == 1


def test_feature_maps_and_several_results(model: nn.Module) -> None:
    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            net: Any = self.net
            maps = net.pool(net.stem(x))
            return maps, {"side": net.side(maps)}

    plain = settled(Maps())
    optimized = _optimized(plain)
    assert _why_fixed(optimized) == ""
    for size in SIZES:
        x = _x(size)
        (found, named), (expected, more) = _call(optimized, x), _call(plain, x)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 1e-5
        assert (named["side"] - more["side"]).abs().max() < 1e-5
    assert len(runner_of(optimized).prepared) == 1


def test_bf16(model: nn.Module) -> None:
    optimized = _optimized(model, dtype=torch.bfloat16)
    for size in SIZES:
        x = _x(size)
        expected = _call(model, x)
        assert (_call(optimized, x) - expected).abs().max() <= 0.1 * expected.abs().max()


class Branch(nn.Module):
    def __init__(self, axis: int, most: int) -> None:
        super().__init__()
        self.axis, self.most = axis, most
        self.small, self.large = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        layer = self.small if x.shape[self.axis] <= self.most else self.large
        result: Tensor = layer(x)
        return result


@pytest.mark.parametrize(("axis", "most"), [(0, 1), (0, 2), (2, 40), (3, 50)])
def test_a_branch_by_size_is_noticed(axis: int, most: int) -> None:
    plain = settled(Branch(axis, most))
    optimized = _optimized(plain)
    for size in SIZES:
        _close(optimized, plain, _x(size))
    assert 2 <= len(runner_of(optimized).prepared) < len(SIZES) + 1


class Squeezed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x).mean((2, 3), keepdim=True).squeeze()
        return result


class OfOneSize(nn.Module):
    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.layer, self.last = nn.Conv2d(3, 8, 3, padding=1), last

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.layer(x))
        return result


class Cut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :30]


class Padded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, (0, x.shape[3] % 4, 0, x.shape[2] % 4))


@pytest.mark.parametrize(
    "plain",
    [
        Squeezed(),
        OfOneSize(nn.AdaptiveAvgPool2d(7)),
        OfOneSize(nn.Upsample(scale_factor=2)),
        OfOneSize(nn.LayerNorm(40)),
        OfOneSize(nn.Flatten(2)),
        OfOneSize(Cut()),
        OfOneSize(Padded()),
    ],
    ids=lambda model: type(getattr(model, "last", model)).__name__,
)
def test_other_models_are_prepared_for_each_size(plain: nn.Module) -> None:
    optimized = _optimized(settled(plain))
    assert _why_fixed(optimized)
    note = f"other sizes: prepared when they first come: {_why_fixed(optimized)}"
    assert note in str(optimized.dnnsep_report)
    sizes = [(2, 40, 40)] if isinstance(getattr(plain, "last", None), nn.LayerNorm) else SIZES
    for size in sizes:
        _close(optimized, plain, _x(size))


def test_a_last_map_of_one_pixel_is_no_example() -> None:
    plain = settled(Net())
    optimized = _optimized(plain, torch.randn(1, 3, 4, 4))
    assert "too small" in _why_fixed(optimized)
    for size in SIZES:
        _close(optimized, plain, _x(size))


def test_smaller_images_than_the_kernels_take_are_prepared(model: nn.Module) -> None:
    optimized = _optimized(model)
    for size in ((1, 3, 3), (2, 1, 1), (1, 4, 40)):
        _close(optimized, model, _x(size))


def test_parameters_that_change_are_seen(model: nn.Module) -> None:
    plain = settled(Net())
    optimized = _optimized(plain)
    _close(optimized, plain, _x((2, 33, 33)))
    with torch.no_grad():
        for one in (plain, optimized):
            one.head.weight.mul_(2)  # type: ignore[union-attr, operator]
    _close(optimized, plain, _x((2, 33, 33)))
    _close(optimized, plain, _x((1, 50, 33)))


def test_memory_is_shared_by_all_sizes(model: nn.Module) -> None:
    optimized = _optimized(model)
    packings = len(runner_of(optimized)._shelf.packings)
    for size in SIZES:
        _call(optimized, _x(size))
    assert len(runner_of(optimized)._shelf.packings) == packings
    ((_, one),) = runner_of(optimized)._opened
    assert len(one.memory._idle) == 1
    before = one.memory._idle[0].data_ptr()
    _call(optimized, _x(SIZES[1]))
    assert one.memory._idle[0].data_ptr() == before


def test_several_threads_and_sizes_at_once(model: nn.Module) -> None:
    optimized = _optimized(model)
    inputs = [_x(size) for size in SIZES for _ in range(3)]
    expected = [_call(_optimized(model, x), x) for x in inputs]

    def work(number: int) -> bool:
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(number))
        return all(torch.equal(_call(optimized, inputs[n]), expected[n]) for n in order.tolist())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_a_size_that_comes_often_gets_specialised_kernels(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened, "GAIN", -1.0)  # whatever they are, they are faster
    optimized, x = _optimized(model), _x((2, 36, 44))
    first = _call(optimized, x)
    (sized,) = runner_of(optimized).sized
    assert all(not isinstance(step, LayerStep) for step in sized.network.steps)
    end = time.monotonic() + 120
    while not any(isinstance(step, LayerStep) for step in sized.network.steps):
        assert torch.equal(_call(optimized, x), first)
        assert time.monotonic() < end
    assert torch.equal(_call(optimized, x), first)


def test_kernels_that_are_not_faster_are_dropped(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened, "GAIN", 1e9)
    made = threading.Event()

    def submit(job: Any) -> None:
        job.done([step and _special(step) for step in job.steps])
        made.set()

    monkeypatch.setattr(background, "submit", submit)
    optimized, x = _optimized(model), _x((2, 36, 44))
    for _ in range(100):
        _call(optimized, x)
    assert made.is_set()
    (sized,) = runner_of(optimized).sized
    assert sized._trial is None
    assert all(not isinstance(step, LayerStep) for step in sized.network.steps)


def _special(step: GeneralStep) -> LayerStep | None:
    from dnnsep.codegen.choose import choose
    from dnnsep.codegen.specialise import as_specialised, may_be_specialised

    if not may_be_specialised(step):
        return None
    return as_specialised(step, choose(step.problem, step.layer.isa, step.threads))


def test_warm_up(model: nn.Module) -> None:
    optimized, x = _optimized(model), _x((2, 36, 44))
    expected = _call(_optimized(model, x), x)
    dnnsep.warm_up(optimized, [(2, 3, 36, 44), x[:1], (torch.randn(1, 3, 30, 30),)])
    assert len(runner_of(optimized).sized) == 3
    assert torch.equal(_call(optimized, x), expected)
    with pytest.raises(ValueError, match=r"^model: is not one that dnnsep\.optimize returned"):
        dnnsep.warm_up(model, [(2, 3, 36, 44)])
    optimized.train()
    with pytest.raises(ValueError, match="is in training mode"):
        dnnsep.warm_up(optimized, [(2, 3, 36, 44)])


def test_dynamic_shapes_say_which_sizes_it_is_open_for(model: nn.Module) -> None:
    side = Dim("side", min=32, max=64)
    optimized = _optimized(model, dynamic_shapes={"x": {0: Dim.AUTO, 2: side, 3: side}})
    for size in ((2, 36, 36), (3, 64, 64), (1, 36, 40), (1, 65, 65)):
        _close(optimized, model, _x(size))
    assert len(runner_of(optimized).sized) == 2
    assert len(runner_of(optimized).prepared) == 3


@pytest.mark.parametrize(
    ("shapes", "condition"),
    [
        (None, "True"),
        ({"x": None}, "images == 1 and height == 40 and width == 40"),
        (({0: Dim("n", max=8)},), "images >= 0 and images <= 8 and height == 40 and width == 40"),
        ([[Dim.AUTO, None, Dim.DYNAMIC, 40]], "width == 40"),
        ({"x": {0: Dim.STATIC, 2: Dim.AUTO, 3: Dim.AUTO}}, "images == 1"),
    ],
)
def test_conditions_of_dynamic_shapes(shapes: Any, condition: str) -> None:
    assert condition_of(shapes, (torch.zeros(SIZE),)) == condition


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"x": {0: 2 * Dim("n")}}, "images: neither a Dim of its own nor a number"),
        ({"x": {7: Dim("n")}}, "images have no dimension 7"),
        ({"x": {0: None}, "y": {0: None}}, "not those of a single tensor of images"),
        ("n", "not those of a single tensor of images"),
    ],
)
def test_dynamic_shapes_that_say_nothing_clear(shapes: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"^dynamic_shapes: {reason}$"):
        condition_of(shapes, (torch.zeros(SIZE),))
    with pytest.raises(ValueError, match="models of a single tensor of images only"):
        condition_of({}, (torch.zeros(3, 4),))


def test_a_program_of_torch_export_keeps_its_sizes(model: nn.Module) -> None:
    dims = ({0: Dim("n", max=4)},)
    program = torch.export.export(model, (torch.randn(2, 3, 40, 40),), dynamic_shapes=dims)
    optimized = dnnsep.optimize(program, torch.randn(2, 3, 40, 40), tune=False)
    for images in (2, 3, 4):
        _close(optimized, model, _x((images, 40, 40)))
    assert len(runner_of(optimized).prepared) == 1
    for size in ((5, 40, 40), (2, 41, 40)):
        with pytest.raises((RuntimeError, AssertionError)):
            _call(optimized, _x(size))


def test_questions_of_a_model(model: nn.Module) -> None:
    x = torch.randn(SIZE)
    sizes = sizes_of(model, x)
    assert all(sizes.allows(*size) for size in SIZES)
    assert not sizes_of(Branch(2, 40), x).allows(1, 41, 41)
    assert sizes_of(Branch(2, 40), x).allows(1, 39, 41)
    assert not sizes_of(Branch(0, 1), x).allows(2, 40, 40)
    assert not sizes_of(Branch(0, 1), torch.randn(2, 3, 40, 40)).allows(1, 40, 40)
    with pytest.raises(SizesError, match=r"aten\.slice"):
        sizes_of(OfOneSize(Cut()), x)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "images.__class__",
        "(lambda: 1)()",
        "[images for images in (1,)]",
        "open",
        "max(images, key=min)",
        "'a' < 'b'",
        "images >",
        "images := 1",
    ],
)
def test_a_condition_is_nothing_else(text: str) -> None:
    with pytest.raises(ValueError, match=r"^sizes"):
        Sizes(text)


def test_conditions() -> None:
    one = Sizes("images * max(height, 1 + (width - 1) // 2) >= 7")
    assert one.allows(1, 7, 1)
    assert not one.allows(1, 6, 12)
    assert not one.which("width == 2").allows(1, 7, 1)


def test_what_was_used_last_is_kept() -> None:
    class Used:
        used = 0

    kept: Kept[Used] = Kept(2)
    first, second, third = Used(), Used(), Used()
    kept.keep("first", first)
    kept.keep("second", second)
    assert kept["first"] is first
    kept.keep("third", third)
    assert [key for key, _ in kept.items()] == ["first", "third"]
    with pytest.raises(KeyError):
        kept["second"]


def test_sized_is_what_runs_other_sizes(model: nn.Module) -> None:
    optimized = _optimized(model)
    _call(optimized, _x((2, 33, 33)))
    assert all(isinstance(one, Sized) for one in runner_of(optimized).sized)


def test_a_model_that_fails_at_another_size_is_fixed(model: nn.Module) -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x: Tensor) -> Tensor:
            if type(x) is Tensor and tuple(x.shape[2:]) == (56, 72):
                raise RuntimeError("not of this size")
            result: Tensor = self.net(x)
            return result

    optimized = _optimized(Fails().eval())
    assert _why_fixed(optimized) == "it fails at another size: RuntimeError: not of this size"
