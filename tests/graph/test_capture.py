"""Models as graphs: their inputs and outputs, whose tensors they hold, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnnsep.graph.capture import capture
from dnnsep.graph.rewrite import CaptureError

from .captures import Function, cases, check, difference, image, operators, settled


class Nested(nn.Module):
    offset: Tensor
    head: nn.Linear

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.head = nn.Linear(4, 3)
        self.scale = torch.full((4, 1, 1), 1.5, dtype=torch.float64)  # neither of the two
        self.register_buffer("offset", torch.ones(4, 1, 1))

    def forward(self, x: Tensor, more: dict[str, Any], times: int = 1, *, last: Any = None) -> Any:
        y = self.block(x) * self.scale + self.offset * times
        y += more["extra"][0]
        result = {"y": self.head(y.mean((2, 3))), "x": x, "weight": self.head.weight, "none": None}
        return (result, y.shape[0]) if last is None else (result, last * 2)


def _arguments() -> tuple[Tensor, dict[str, Any]]:
    return image(), {"extra": [image(4, 7, 6), "unused"]}


def test_nested_arguments_and_outputs() -> None:
    model = settled(Nested())
    x, more = _arguments()
    last = image(1, 2, 2)
    captured = capture(model, (x, more, 3), {"last": last})
    for factor in (1, -2):
        args, kwargs = (x * factor, more, 3), {"last": last * factor}
        with torch.no_grad():
            expected, expected_last = model(*args, **kwargs)
        found, found_last = captured.unflatten(
            captured.graph_module(*captured.flatten(args, kwargs))
        )
        assert list(found) == ["y", "x", "weight", "none"]
        assert torch.equal(found["y"], expected["y"])
        assert torch.equal(found_last, expected_last)
        assert found["x"] is args[0]
        assert found["weight"] is model.head.weight
        assert found["none"] is None


def test_a_number_as_an_output() -> None:
    captured = capture(settled(Nested()), _arguments())
    assert captured.unflatten(captured.graph_module(*captured.flatten(_arguments())))[1] == 2


def test_arguments_unlike_the_examples() -> None:
    x, more = _arguments()
    captured = capture(settled(Nested()), (x, more, 3))
    with pytest.raises(ValueError, match="4 where the example has 3"):
        captured.flatten((x, more, 4))
    with pytest.raises(ValueError, match="nested otherwise"):
        captured.flatten((x, {"extra": [x]}, 3))
    with pytest.raises(ValueError, match="not tensors where"):
        captured.flatten((x, {"extra": [1, "unused"]}, 3))


class Keywords(nn.Module):
    def forward(self, *, a: Tensor, b: Tensor) -> Tensor:
        return a - b


def test_the_order_of_keywords_does_not_matter() -> None:
    captured = capture(Keywords().eval(), (), {"a": image(), "b": image() * 2})
    flat = captured.flatten((), {"b": image() * 3, "a": image()})
    assert torch.equal(captured.graph_module(*flat)[0], image() - image() * 3)


def test_the_graph_sees_later_changes_of_the_models_tensors() -> None:
    model = settled(Nested())
    arguments = _arguments()
    captured = capture(model, arguments)
    with torch.no_grad():
        for tensor in (*model.parameters(), model.offset, model.scale):
            assert isinstance(tensor, Tensor)
            tensor.mul_(1.25).add_(0.1)
        expected = model(*arguments)[0]["y"]
    (found, *_) = captured.graph_module(*captured.flatten(arguments))
    assert torch.equal(found, expected)


def test_names_of_tensors_and_layers() -> None:
    captured = capture(settled(Nested()), _arguments())
    nodes = captured.graph_module.graph.nodes
    names = {node.target for node in nodes if node.op == "get_attr"}
    assert {"block.0.weight", "block.1.running_var", "head.bias", "offset", "scale"} <= names
    layers = [node.meta["layer"] for node in nodes if node.op == "call_function"]
    assert layers[:4] == ["block.0", "block.1", "block.2", ""]
    assert layers[-1] == "head"


def test_a_shared_layer_keeps_its_name() -> None:
    layer = nn.Conv2d(6, 6, 1)
    captured = capture(settled(nn.Sequential(layer, nn.ReLU(), layer)), (image(),))
    (weight,) = [
        n.target for n in captured.graph_module.graph.nodes if str(n.target).endswith("weight")
    ]
    assert captured.graph_module.get_parameter(str(weight)) is layer.weight


class Remembers(nn.Module):
    """Keeps what it computed, as some attention layers keep their biases."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Tensor] = {}
        self.weight = nn.Parameter(torch.randn(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if "twice" not in self.kept:
            self.kept["twice"] = self.weight * 2
        return x * self.kept["twice"]


def test_the_model_itself_stays_as_it_is() -> None:
    model = settled(Remembers())
    before = copy.deepcopy(model.state_dict())
    captured = capture(model, (image(),))
    assert model.kept == {}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert difference(cases(model, image()), captured) == 0


@pytest.mark.parametrize("enabled", [False, True])
def test_blocks_with_a_context(enabled: bool) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        with torch.autocast("cpu", enabled=enabled), torch.no_grad():
            y = self.conv(x)
        return y + 1

    model = Function(forward, conv=nn.Conv2d(6, 6, 1))
    if enabled:
        with pytest.raises(CaptureError, match="autocast within the model"):
            capture(settled(model), (image(),))
    else:
        assert check(model, image()) == {"conv2d": 1, "add": 1}


def test_writes_in_place() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.conv(x)
        z = F.relu_(y)
        z += x
        y.mul_(2)  # the same tensor as z
        view = z.flatten(1)
        view.sub_(1)
        return view.reshape(y.shape)

    found = check(Function(forward, conv=nn.Conv2d(6, 6, 1)), image())
    assert not any(name.endswith("_") for name in found)
    assert (found["relu"], found["add"], found["mul"], found["sub"]) == (1, 1, 1, 1)


def test_a_write_that_another_view_sees() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.conv(x)
        first, second = y.chunk(2, 1)
        first += second
        y[:, :, 1:3] = 0
        return y * first.sum()

    model = Function(forward, conv=nn.Conv2d(6, 6, 1))
    assert not any(name.endswith("_") for name in check(model, image()))


def test_a_write_through_dropout() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.conv(x)
        z = F.relu_(self.dropout(y))  # in eval mode y itself
        return y + z

    check(Function(forward, conv=nn.Conv2d(6, 6, 1), dropout=nn.Dropout()), image())


def test_a_write_that_converts() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = x.float()
        y += x  # stays f32
        return y

    assert check(Function(forward), image())["_to_copy"] == 1


def _counts(self: Any, x: Tensor) -> Tensor:
    self.count.add_(1)
    return x * 2


def _writes_input(self: Any, x: Tensor) -> Tensor:
    return x.relu_()


def _depends_on_data(self: Any, x: Tensor) -> Tensor:
    return x[x > 0]


def _branches_on_data(self: Any, x: Tensor) -> Tensor:
    return x * 2 if x.sum() > 0 else x


def _fails(self: Any, x: Tensor) -> Tensor:
    raise RuntimeError("out of luck\nsecond line")


def _trains(self: Any, x: Tensor) -> Tensor:
    return F.dropout(x)


def _counts_batch(self: Any, x: Tensor) -> Tensor:
    norm = self.norm
    return F.batch_norm(x, norm.running_mean, norm.running_var, training=True)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (_counts, "the model writes into count"),
        (_writes_input, "the model writes into "),
        (_depends_on_data, "depends on data|data-dependent|unbacked"),
        (_branches_on_data, "data"),
        (_fails, "^RuntimeError: out of luck$"),
        (_trains, "dropout in training mode"),
        (_counts_batch, "batch_norm.default in training mode"),
    ],
)
def test_refusals(function: Any, reason: str) -> None:
    model = Function(function, norm=nn.BatchNorm2d(6))
    model.register_buffer("count", torch.zeros(()))
    with pytest.raises(CaptureError, match=reason) as raised:
        capture(settled(model), (image(),))
    assert "\n" not in str(raised.value)


def test_a_module_in_training_mode() -> None:
    model = settled(nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)))
    model[1].train()
    with pytest.raises(CaptureError, match="training mode"):
        capture(model, (image(),))


def test_a_norm_of_the_batch_itself_is_no_training() -> None:
    found = check(nn.BatchNorm2d(6, track_running_stats=False), image())
    assert sum(found.values()) == 1


def test_unused_tensors_are_not_held() -> None:
    captured = capture(
        settled(Function(lambda self, x: x * 2, conv=nn.Conv2d(6, 6, 1))), (image(),)
    )
    assert not list(captured.graph_module.parameters())
    assert operators(captured.graph_module) == {"mul": 1}
