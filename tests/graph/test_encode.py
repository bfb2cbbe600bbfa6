"""Values and operators as files have them."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.immutable_collections import immutable_dict, immutable_list

from dnnsep.graph import ops
from dnnsep.graph.encode import decoded, encoded
from dnnsep.graph.operators import _ATEN, name_of, operator_of

_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.complex_numbers(),
    st.sampled_from([torch.bfloat16, torch.strided, torch.channels_last, torch.device("cpu"), ...]),
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inside: st.one_of(
        st.lists(inside),
        st.lists(inside).map(tuple),
        st.dictionaries(st.text(), inside),
        st.dictionaries(st.integers(), inside).map(OrderedDict),
    ),
)


def _written(value: Any) -> Any:
    return decoded(json.loads(json.dumps(encoded(value), allow_nan=False)))


@given(_VALUES)
def test_values_come_back_as_they_were(value: Any) -> None:
    # repr tells 1 from 1.0 and True, 0.0 from -0.0, and has equal texts for equal NaN.
    assert repr(_written(value)) == repr(value)


def test_lists_of_graphs_become_plain() -> None:
    value = (immutable_list([1, 2.0]), immutable_dict({"a": math.inf}), torch.Size([1, 2]))
    assert repr(_written(value)) == "([1, 2.0], {'a': inf}, (1, 2))"


class Pair(NamedTuple):
    one: int


@pytest.mark.parametrize(
    "value", [Pair(1), {1}, object(), torch.device("meta"), torch.zeros(1), b"", int, slice(1)]
)
def test_what_files_cannot_have_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^a value of the type .*: cannot be saved$"):
        encoded([value])


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": 1, "b": 2},
        {"module": "os"},
        {"node": 0},
        {"dtype": "float"[::-1]},
        {"dtype": "_C"},
        {"layout": "float32"},
        {"device": "cuda"},
        {"float": "1"},
        {"dict": [[1]]},
        {"tuple": 3},
    ],
)
def test_what_is_no_value_is_refused(value: object) -> None:
    with pytest.raises((ValueError, LookupError, TypeError)):
        decoded(value)


def test_all_operators_that_files_may_have_exist() -> None:
    for packet in _ATEN:
        overloads = getattr(torch.ops.aten, packet).overloads()
        found: list[Any] = [getattr(getattr(torch.ops.aten, packet), n) for n in overloads]
        kept = [one for one in found if not one._schema.is_mutable]
        assert kept, packet
        for one in kept:
            types = {str(argument.type) for argument in one._schema.arguments}
            assert not types & {"Storage", "Stream", "AnyClassType", "Any"}, one
            assert operator_of(name_of(one)) is one


@pytest.mark.parametrize("target", [ops.convolution, ops.activation])
def test_own_operators_have_names(target: Any) -> None:
    assert operator_of(name_of(target)) is target


@pytest.mark.parametrize("target", [print, torch.relu, torch.ops.aten.add, "add", len])
def test_other_functions_have_none(target: Any) -> None:
    with pytest.raises(ValueError, match="cannot be saved"):
        name_of(target)
