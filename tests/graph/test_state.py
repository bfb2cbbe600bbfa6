"""What is noticed of a module that changes after it was prepared, natively and by Python alone."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from dnnsep.graph import state as state_module
from dnnsep.graph.state import SlowWatch, State
from dnnsep.graph.watch import Watch


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4, bias=False)
        self.register_buffer("scale", torch.ones(4))


@pytest.fixture(params=[Watch, SlowWatch])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model, watched in one of the two ways."""
    monkeypatch.setattr(state_module, "Watch", request.param)
    model = Model().eval().requires_grad_(False)
    assert type(State.of(model).everything) is request.param
    return model


def _replaced(model: Any) -> None:
    model.head.weight = nn.Parameter(model.head.weight.clone())


def _replaced_in_the_dictionary(model: Any) -> None:
    model.body[0]._parameters["weight"] = model.body[0].weight.clone()


def _bias_appears(model: Any) -> None:
    model.head.bias = nn.Parameter(torch.zeros(4))


def _bias_goes(model: Any) -> None:
    model.body[0].bias = None


def _deleted(model: Any) -> None:
    del model.scale


def _buffer_replaced(model: Any) -> None:
    model.body[1].running_mean = torch.ones(8)


def _written(model: Any) -> None:
    model.body[1].running_var.mul_(2)


def _loaded(model: Any) -> None:
    model.load_state_dict(Model().state_dict())


def _other_data(model: Any) -> None:
    model.head.weight.data = torch.zeros(4, 8)


def _swapped(model: Any) -> None:
    torch.utils.swap_tensors(  # type: ignore[no-untyped-call]
        model.head.weight, nn.Parameter(torch.zeros(4, 8))
    )


def _hooked(model: Any) -> None:
    model.body[2].register_forward_hook(lambda *_: None)


def _hooked_before(model: Any) -> None:
    model.head.register_forward_pre_hook(lambda *_: None)


def _part_added(model: Any) -> None:
    model.body.append(nn.ReLU())


def _part_replaced(model: Any) -> None:
    model.body[2] = nn.GELU()


def _written_through_data(model: Any) -> None:
    model.head.weight.data.mul_(2)


def _written_through_numpy(model: Any) -> None:
    model.body[0].weight.numpy()[:] *= 0.5


def _in_double(model: Any) -> None:
    model.double()


CHANGES: list[Callable[[Any], None]] = [
    _replaced,
    _replaced_in_the_dictionary,
    _bias_appears,
    _bias_goes,
    _deleted,
    _buffer_replaced,
    _written,
    _loaded,
    _other_data,
    _swapped,
    _hooked,
    _hooked_before,
    _part_added,
    _part_replaced,
    _written_through_data,
    _written_through_numpy,
    _in_double,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__[1:])
def test_a_change_is_noticed(model: Model, change: Callable[[Any], None]) -> None:
    state = State.of(model)
    assert state.holds()
    change(model)
    assert not state.holds()
    assert State.of(model).holds()


def test_use_is_no_change(model: Model) -> None:
    state = State.of(model)
    model.body(torch.zeros(1, 3, 8, 8))
    model.to("cpu").requires_grad_(True)
    model.__dict__["remembered"] = "an attribute"
    list(model.parameters())
    assert state.holds()


def test_what_functional_call_puts_in_is_noticed_while_it_is_there(model: Model) -> None:
    state, seen = State.of(model), []
    model.forward = lambda x: seen.append(state.holds())
    torch.func.functional_call(model, {"head.weight": torch.zeros(4, 8)}, (torch.zeros(1),))
    assert seen == [False]
    assert state.holds()


def test_training_of_a_part_is_noticed(model: Model) -> None:
    state = State.of(model)
    assert not state.any_training()
    model.body[1].train()
    assert state.any_training()
    assert state.holds()
    assert State.of(model).any_training()
    model.eval()
    assert not state.any_training()


def test_tensors_made_in_inference_mode_count_no_versions(model: Model) -> None:
    with torch.inference_mode():
        model.head.weight = nn.Parameter(torch.zeros(4, 8), requires_grad=False)
    state = State.of(model)
    assert state.holds()
    _written(model)
    assert not state.holds()


def test_writes_into_tensors_made_in_inference_mode_are_noticed(model: Model) -> None:
    with torch.inference_mode():
        model.head.weight = nn.Parameter(torch.randn(4, 8), requires_grad=False)
        state = State.of(model)
        assert state.holds()
        model.head.weight.mul_(2)
        assert not state.holds()


def test_a_module_without_parameters() -> None:
    state = State.of(nn.ReLU())
    assert state.holds()
    assert state.any_training()


def test_every_one_of_many_is_looked_at() -> None:
    layers = nn.Sequential(OrderedDict((f"layer {n}", nn.Linear(1, 1)) for n in range(40))).eval()
    for layer in layers:
        state = State.of(layers)
        assert type(state.everything) is Watch
        with torch.no_grad():
            layer.bias.add_(1)  # type: ignore[operator]
        assert not state.holds()


def test_other_dictionaries_are_left_to_python() -> None:
    model = Model().eval()
    model.__dict__["_buffers"] = UserDict(model._buffers)
    state = State.of(model)
    assert type(state.everything) is SlowWatch
    assert state.holds()
    model._buffers["scale"] = torch.zeros(4)
    assert not state.holds()
