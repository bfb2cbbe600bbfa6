"""Models in files: the same outputs to the bit, without their classes, and never by surprise."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import dnnsep
from dnnsep.codegen import choose, kernel, rates
from dnnsep.codegen.lang.isa import CAP_VARIABLE
from dnnsep.codegen.lang.jit import machine_code
from dnnsep.codegen.rowwise import kernel as rowwise
from dnnsep.graph import loaded
from dnnsep.graph.difference import difference
from dnnsep.host import cachefiles, container


@pytest.fixture(autouse=True)
def _own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The user's key, and the kernels of this process, are the test's own."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    yield
    _forget_kernels()


def _forget_kernels() -> None:
    kernel.compiled.cache_clear()
    rowwise.compiled.cache_clear()


class Residual(nn.Module):
    """What a network begins with, a normalisation, a sum, and a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pointwise, self.last = nn.Conv2d(16, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.first(x)))
        y = y + self.pointwise(torch.relu(self.depthwise(y)))
        logits: Tensor = self.last(y.mean((2, 3)))
        return logits


class Several(nn.Module):
    """Tensors and other values in, results of all sorts out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3)
        self.table = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x: Tensor, more: list[Tensor], scale: float = 1.0, flip: bool = False) -> Any:
        y = self.layer(x + more[0]) * scale
        z = torch.fft.rfft(y).abs() if scale > 9 else y.flip(3) if flip else y
        result = OrderedDict(y=y, rest=(z + self.table, [y.amax((2, 3)), x.sum()]))
        return {"result": result, "number": 3}


def _settled(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.normal_(layer.running_mean)  # type: ignore[arg-type]
    return model.eval()


def _x(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape or (1, 3, 20, 18), generator=torch.Generator().manual_seed(seed))


def _optimized(model: nn.Module | None = None, *inputs: Any, **options: Any) -> nn.Module:
    return dnnsep.optimize(_settled(model or Residual()), inputs or (_x(),), **options)


def _called(model: nn.Module, *inputs: Any, **named: Any) -> Any:
    with torch.no_grad():
        return model(*inputs, **named)


def _check_equal(found: Any, expected: Any) -> None:
    """The results must be nested alike, and equal to the bit."""
    flat, spec = pytree.tree_flatten(found)
    right, right_spec = pytree.tree_flatten(expected)
    assert spec == right_spec
    for one, other in zip(flat, right, strict=True):
        assert type(one) is type(other)
        same = torch.equal(one, other) if isinstance(one, Tensor) else one == other
        assert same
        assert getattr(one, "dtype", None) == getattr(other, "dtype", None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.dnnsep"


def _check(model: nn.Module, path: Path, *inputs: Any, **named: Any) -> loaded.LoadedModel:
    dnnsep.save(model, path)
    read = dnnsep.load(path)
    assert isinstance(read, loaded.LoadedModel)
    _check_equal(read(*inputs, **named), _called(model, *inputs, **named))
    return read


def test_the_outputs_are_the_same_to_the_bit(path: Path) -> None:
    optimized = _optimized()
    read = _check(optimized, path, _x())
    _check_equal(read(_x(seed=5)), _called(optimized, _x(seed=5)))
    assert not read.training
    assert not list(read.parameters())


def test_no_gradients_are_needed(path: Path) -> None:
    read = _check(_optimized(), path, _x())
    with torch.set_grad_enabled(True):
        assert not read(_x().requires_grad_()).requires_grad
    with torch.autocast("cpu"):
        assert read(_x()).dtype == torch.float32


def test_layers_that_are_left_to_torch_stay_so(path: Path) -> None:
    optimized = _optimized(filter=lambda name: name != "pointwise")
    read = _check(optimized, path, _x())
    ((ready,),) = read._ready.values()
    assert list(ready.lowered.left.values()) == ["filtered out"]


def test_sizes_that_it_is_open_for_need_not_have_come(path: Path) -> None:
    optimized = _optimized()
    read = _check(optimized, path, _x())
    for shape in ((2, 3, 20, 18), (1, 3, 9, 30), (1, 3, 21, 18)):
        _check_equal(read(_x(*shape)), _called(optimized, _x(*shape)))
    listed = "for (1, 3, 20, 18) float32 and other sizes of its images"
    for x, what in (
        (_x(1, 4, 20, 18), "(1, 4, 20, 18) float32"),
        (_x().double(), "(1, 3, 20, 18) float64"),
        (3, "3"),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            read(x)
        assert str(caught.value) == f"arguments: nothing was saved for {what}, but {listed}"
    with pytest.raises(ValueError, match="nothing was saved for none, but"):
        read()
    with pytest.raises(ValueError, match="nothing was saved"):
        read(_x(), flip=True)


def test_each_shape_that_came_is_saved(path: Path) -> None:
    optimized = _optimized(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.ReLU()))
    shapes = [(2, 3, 20, 18), (1, 3, 9, 30)]
    for shape in shapes:
        _called(optimized, _x(*shape))
    read = _check(optimized, path, _x())
    for shape in shapes:
        _check_equal(read(_x(*shape)), _called(optimized, _x(*shape)))
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read(_x(1, 3, 21, 18))
    listed = "for (1, 3, 20, 18) float32; for (2, 3, 20, 18) float32; for (1, 3, 9, 30) float32"
    assert str(caught.value) == (
        f"arguments: nothing was saved for (1, 3, 21, 18) float32, but {listed}"
    )


def _size_of_one(path: Path) -> int:
    dnnsep.save(_optimized(), path)
    return os.path.getsize(path)


def test_input_may_lie_in_memory_in_any_way(path: Path) -> None:
    optimized = _optimized()
    last = _x().contiguous(memory_format=torch.channels_last)
    _called(optimized, last)
    read = _check(optimized, path, _x())
    _check_equal(read(last), _called(optimized, last))
    assert len(next(iter(read._ready.values()))) == 2
    _check_equal(read(_x().flip(3).flip(3)[:, :, :, :]), read(_x()))
    wider = torch.zeros(1, 3, 20, 19)
    wider[..., :18] = _x()
    _check_equal(read(wider[..., :18]), read(_x()))
    _check_equal(read(torch.zeros(1).expand(1, 3, 20, 18)), read(torch.zeros(1, 3, 20, 18)))


def test_only_plain_tensors_are_taken(path: Path) -> None:
    read = _check(_optimized(), path, _x())
    with pytest.raises(ValueError, match="plain tensors"):
        read(_x().to("meta"))


@pytest.mark.parametrize("model", [Residual, Several])
def test_the_dtype_is_kept(path: Path, model: Callable[[], nn.Module]) -> None:
    inputs = (_x(),) if model is Residual else (_x(), [_x(seed=1)])
    optimized = _optimized(model(), *inputs, dtype=torch.bfloat16)
    read = _check(optimized, path, *inputs)
    halves = pytree.tree_map(lambda x: x.bfloat16(), inputs)
    _check_equal(read(*halves), _called(optimized, *halves))


def test_nested_arguments_and_results_are_kept(path: Path) -> None:
    inputs = (_x(), [_x(seed=1)])
    optimized = _optimized(Several(), *inputs)
    _called(optimized, *inputs, scale=2.0)
    _called(optimized, *inputs, flip=True, scale=1.5)
    read = _check(optimized, path, *inputs)
    for named in ({}, {"scale": 2.0}, {"scale": 1.5, "flip": True}, {"flip": True, "scale": 1.5}):
        _check_equal(read(*inputs, **named), _called(optimized, *inputs, **named))
    for named in ({"scale": 3.0}, {"scale": 2.0, "flip": True}, {"scale": 1.5, "flip": 1}):
        with pytest.raises(ValueError, match="nothing was saved"):
            read(*inputs, **named)
    with pytest.raises(ValueError, match="nothing was saved"):
        read(_x(), (_x(seed=1),))


def test_a_file_may_be_saved_over_and_loaded_twice(path: Path) -> None:
    optimized = _optimized()
    dnnsep.save(optimized, str(path))
    first = dnnsep.load(str(path))
    dnnsep.save(_optimized(Several(), _x(), [_x()]), path)
    _check_equal(first(_x()), _called(optimized, _x()))
    assert path.read_bytes()[:8] == b"\x89dnnsep\n"


def test_what_cannot_be_saved_says_why(path: Path) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Residual()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.part(x)
            return y if y.sum() > 0 else -y

    def hooked() -> nn.Module:
        model = _optimized()
        model.register_forward_hook(lambda *_: None)
        return model

    def changed() -> nn.Module:
        model = _optimized()
        with torch.no_grad():
            model.last.weight.add_(1)  # type: ignore[union-attr, operator]
        return model

    for model, reason in (
        (Residual(), "is not one that dnnsep.optimize returned"),
        (_optimized(Branches()), "taken part by part"),
        (_optimized().train(), "is in training mode"),
        (hooked(), "has hooks"),
        (changed(), "is not prepared for any input, or its parameters have changed"),
    ):
        with pytest.raises(ValueError, match=rf"^model: [^\n]*{reason}[^\n]*$"):
            dnnsep.save(model, path)
    assert not path.exists()
    again = changed()
    _called(again, _x())
    _check(again, path, _x())


def test_operators_that_files_may_not_have_are_named(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimized = _optimized(Several(), _x(), [_x()])
    monkeypatch.setattr("dnnsep.graph.operators._ATEN", frozenset({"add"}))
    with pytest.raises(ValueError, match=r"^operator aten\.[A-Za-z_.]+: cannot be saved$"):
        dnnsep.save(optimized, path)


# What of a file is used.


def _no_compiler(*_: Any) -> bytes:
    raise RuntimeError("nothing is compiled")


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """Returns a call after which there are no kernels but those of a file."""

    def forbid() -> None:
        _forget_kernels()
        monkeypatch.setenv(cachefiles.VARIABLE, str(tmp_path / "empty"))
        for module in (kernel, rowwise):
            monkeypatch.setattr(module, "machine_code", _no_compiler)

    return forbid


def test_nothing_is_compiled_measured_or_packed_again(
    path: Path, no_compiler: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    optimized = _optimized(Several(), _x(), [_x()])
    dnnsep.save(optimized, path)
    no_compiler()
    monkeypatch.setattr("dnnsep.codegen.pack.Packing.pack", _no_compiler)
    monkeypatch.setattr("dnnsep.codegen.tuner.candidates", _no_compiler)
    _check_equal(dnnsep.load(path)(_x(), [_x()]), _called(optimized, _x(), [_x()]))
    assert not (path.parent / "empty").exists()


def test_machine_code_of_others_is_not_run(
    path: Path, no_compiler: Callable[[], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    optimized = _optimized()
    dnnsep.save(optimized, path)
    no_compiler()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "of another user"))
    with pytest.raises(ValueError, match=r"^[^\n]*cannot be prepared: RuntimeError: nothing is"):
        dnnsep.load(path)
    _check_equal(dnnsep.load(path, trusted=True)(_x()), _called(optimized, _x()))


def test_changed_machine_code_is_not_run(path: Path, no_compiler: Callable[[], None]) -> None:
    dnnsep.save(_optimized(), path)
    content, blocks = container.read(path)
    number = next(number for kind, _, number in content["kept"] if kind == "kernels")
    blocks[number][-1] ^= 1
    container.write(path, content, blocks)
    no_compiler()
    with pytest.raises(ValueError, match="nothing is compiled"):
        dnnsep.load(path)


def test_another_generator_makes_everything_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimized = _optimized()
    dnnsep.save(optimized, path)
    for module in (kernel, rowwise, rates, choose, loaded):
        monkeypatch.setattr(module, "generator", lambda: "another generator")
    _forget_kernels()
    compiled = []

    def noted(*arguments: Any) -> bytes:
        compiled.append(arguments)
        return machine_code(*arguments)

    monkeypatch.setattr(kernel, "machine_code", noted)
    read = dnnsep.load(path)
    assert compiled
    assert difference(read(_x()), _called(optimized, _x())) <= 1e-3


def test_packed_weights_of_another_size_are_not_used(path: Path) -> None:
    optimized = _optimized()
    dnnsep.save(optimized, path)
    content, blocks = container.read(path)
    content["packed"] = [[name, 0] for name, _ in content["packed"]]
    blocks[0] = blocks[0][:16]  # kernels would read beyond it
    content["constants"] = [[n + 1, *rest] for n, *rest in content["constants"]]
    content["kept"] = [[kind, name, n + 1] for kind, name, n in content["kept"]]
    container.write(path, content, [blocks[0], *container.read(path)[1]])
    _check_equal(dnnsep.load(path)(_x()), _called(optimized, _x()))


def test_another_number_of_threads_gives_the_same(path: Path) -> None:
    optimized = _optimized()
    expected = _called(optimized, _x())
    dnnsep.save(optimized, path)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        _check_equal(dnnsep.load(path)(_x()), expected)
    finally:
        torch.set_num_threads(threads)


_LOAD = """
import sys, time
sys.modules["timm"] = None
import torch, dnnsep
torch.set_num_threads(int(sys.argv[3]))
start = time.perf_counter()
model = dnnsep.load(sys.argv[1])
seconds = time.perf_counter() - start
inputs = torch.load(sys.argv[2])
torch.save(model(*inputs), sys.argv[2])
late = {"torch._dynamo", "sympy"} & set(sys.modules)
print(f"{seconds:.3f}", *sorted(late))
"""


def _in_a_new_process(path: Path, *inputs: Tensor, **variables: str) -> tuple[Any, str]:
    """Returns the outputs of a file's model in another process, and what it prints."""
    file = path.with_name("tensors.pt")
    torch.save(inputs, file)
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(path), str(file), str(torch.get_num_threads())],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return torch.load(file), done.stdout


def test_it_is_the_same_in_another_process(path: Path) -> None:
    optimized = _optimized()
    dnnsep.save(optimized, path)
    found, printed = _in_a_new_process(path, _x())
    _check_equal(found, _called(optimized, _x()))
    # Importing these takes longer than loading.
    assert len(printed.split()) == 1, printed


def test_another_cpu_makes_everything_anew(path: Path) -> None:
    optimized = _optimized()
    dnnsep.save(optimized, path)
    found, _ = _in_a_new_process(path, _x(), **{CAP_VARIABLE: "avx2"})
    assert difference(found, _called(optimized, _x())) <= 1e-3


# Files that somebody forged: their hashes are right.


def _forged(path: Path, change: Callable[[Any], object]) -> None:
    dnnsep.save(_optimized(), path)
    content, blocks = container.read(path)
    change(content)
    container.write(path, content, blocks)


def _node(content: Any, call: str) -> Any:
    return next(n for n in content["graphs"][0]["nodes"] if n.get("call") == call)


@pytest.mark.parametrize(
    "call",
    [
        "aten.from_file.default",
        "aten.add_.Tensor",
        "aten.add.out",
        "aten.set_.source_Tensor",
        "aten.as_strided.default",
        "aten.add",
        "aten.add.__class__",
        "aten.__class__.__init__",
        "prims.add.default",
        "os.system",
        "eval",
        "",
    ],
)
def test_operators_that_do_other_things_are_refused(path: Path, call: str) -> None:
    _forged(path, lambda content: _node(content, "activation").update(call=call))
    with pytest.raises(ValueError, match=r"^[^\n]*is not one that a saved model may have$"):
        dnnsep.load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.clear(),
        lambda content: content.update(graphs=[{}]),
        lambda content: content.update(graphs=3),
        lambda content: content["graphs"][0]["nodes"].pop(),
        lambda content: content["graphs"][0].update(nodes=[]),
        lambda content: content["graphs"][0].update(leaves=[]),
        lambda content: content["graphs"][0]["leaves"][0]["tensor"].__setitem__(1, [1, 4, 9, 9]),
        lambda content: content["graphs"][0]["leaves"][0]["tensor"].__setitem__(1, [1 << 62] * 4),
        lambda content: content["graphs"][0]["leaves"][0]["tensor"].__setitem__(2, [-1] * 4),
        lambda content: _node(content, "convolution")["args"].__setitem__(0, {"node": 99}),
        lambda content: _node(content, "convolution")["args"].__setitem__(0, {"node": -1}),
        lambda content: _node(content, "convolution")["args"].__setitem__(0, {"file": "x"}),
        lambda content: _node(content, "convolution")["args"].__setitem__(0, 1),
        lambda content: _node(content, "convolution")["args"].__setitem__(6, 3),
        lambda content: _node(content, "convolution")["args"].__setitem__(6, 0),
        lambda content: _node(content, "activation").update(args=[{"node": 0}, "system"]),
        lambda content: content["constants"][0].__setitem__(0, 1 << 40),
        lambda content: content["constants"][0].__setitem__(1, {"dtype": "float999"}),
        lambda content: content["constants"][0].__setitem__(1, {"dtype": "quint8"}),
        lambda content: content["constants"][0].__setitem__(2, [1 << 30] * 2),
        lambda content: content["constants"][0].__setitem__(3, [1 << 40, 1 << 40, 1, 1]),
        lambda content: content["constants"].pop(0),
        lambda content: content.update(packed=[["name", 1 << 40]]),
        lambda content: content.update(dtype={"layout": "strided"}),
        lambda content: content.update(dtype={"dtype": "os"}),
    ],
)
def test_what_does_not_fit_is_refused(path: Path, change: Callable[[Any], object]) -> None:
    _forged(path, change)
    with pytest.raises(ValueError, match=rf"^{path}: [^\n]*$"):
        dnnsep.load(path)


@pytest.mark.parametrize("kept", [3, [[1]], [["kernels", "name", 1 << 40]], None])
def test_without_what_is_kept_all_is_made_anew(path: Path, kept: object) -> None:
    _forged(path, lambda content: content.update(kept=kept))
    assert dnnsep.load(path)(_x()).shape == (1, 5)


@pytest.mark.slow
def test_mobilenet_v2_in_a_new_process_without_timm(path: Path) -> None:
    from dnnsep.models.zoo import load

    model, x = load("mobilenetv2_100")
    optimized = dnnsep.optimize(model, x)
    dnnsep.save(optimized, path)
    for _ in range(2):  # the first one may have to read all libraries from the disk
        found, seconds = _in_a_new_process(path, x)
    _check_equal(found, _called(optimized, x))
    print(f"loaded in {seconds.strip()} s")
    assert len(seconds.split()) == 1
