"""Expressions as they are written, the passes they are computed in, and the functions they use."""

from __future__ import annotations

import numpy as np
import pytest

from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.rowwise.expression import (
    Expression,
    Input,
    Number,
    Operation,
    apply,
    channels,
    image,
    layer_norm,
    operand,
    pixel,
    pixels,
    softmax,
)
from dnnsep.codegen.rowwise.naive import naive
from dnnsep.codegen.rowwise.schedule import schedule
from dnnsep.codegen.rowwise.special import Rowwise
from dnnsep.dtypes import Array
from tests.codegen.rowwise import VECTOR_ISAS, run, same_bits, step_of

# Long together; what one kernel, rule or operator does is in them, networks of all in other files.
pytestmark = pytest.mark.slow

X = pixels(0)


@pytest.fixture(params=VECTOR_ISAS, ids=lambda isa: isa.name)
def isa(request: pytest.FixtureRequest) -> Isa:
    found: Isa = request.param
    return found


def test_terms_are_there_once() -> None:
    expression = (X + 1.0) * (X + 1.0)
    assert expression.terms == (
        Input(0, "pixels"),
        Number(1.0),
        Operation("add", (0, 1)),
        Operation("mul", (2, 2)),
    )
    assert expression == (X + 1) * (X + 1)
    assert hash(expression) == hash((X + 1) * (X + 1))
    deep = X
    for _ in range(200):
        deep = deep + deep
    assert len(deep.terms) == 201


def test_operators_as_they_are_written() -> None:
    x = np.full((1, 1, 1), 3.0)
    for expression, right in (
        (X + 1, 4),
        (1 + X, 4),
        (X - 1, 2),
        (1 - X, -2),
        (X * 2, 6),
        (2 * X, 6),
        (X / 2, 1.5),
        (6 / X, 2),
        (-X, -3),
    ):
        assert naive(expression, [x], 1) == right


def test_norms_by_their_definition() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 5))
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    assert np.allclose(naive(layer_norm(X, 1e-3), [x], 5), (x - mean) / np.sqrt(variance + 1e-3))
    power = np.exp(x)
    assert np.allclose(naive(softmax(X), [x], 5), power / power.sum(-1, keepdims=True))


def test_inputs_are_in_order() -> None:
    expression = channels(2) * pixel(1) + X
    assert [term.kind for term in expression.inputs] == ["pixels", "pixel", "channels"]
    for wrong in (X + pixels(2), X + channels(0), pixels(1), X + pixels(0, "f32")):
        with pytest.raises(ValueError, match="must be numbered"):
            _ = wrong.inputs


def test_what_is_not_known_is_named() -> None:
    with pytest.raises(ValueError, match="operator 'pow'"):
        apply("pow", X, 2)
    with pytest.raises(ValueError, match="takes 2 arguments, not 1"):
        apply("add", X)
    with pytest.raises(ValueError, match="takes 1 arguments, not 2"):
        apply("sum", X, X)
    with pytest.raises(ValueError, match="input 8"):
        pixels(8)
    with pytest.raises(ValueError, match="kind 'rows'"):
        operand(0, "rows")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dtype 'f16'"):
        pixels(0, "f16")


def _passes(expression: Expression) -> list[list[str]]:
    return [[root.name for root in one.roots] for one in schedule(expression).passes]


def _kept(expression: Expression) -> list[str]:
    terms = [expression.terms[place] for place in schedule(expression).kept]
    return [term.name for term in terms if isinstance(term, Operation)]


def test_passes() -> None:
    assert _passes(X + 1) == [[]]
    assert _passes(layer_norm(X, 1e-5)) == [["mean"], ["mean"], []]
    assert _passes(softmax(X)) == [["max"], ["sum"], []]
    assert _passes(X * apply("sum", X) + apply("max", X)) == [["sum", "max"], []]


def test_what_is_kept() -> None:
    """What takes long, where a later pass needs it again; not what it was computed from."""
    gelu = apply("gelu", X)
    assert _kept(layer_norm(X, 1e-5)) == []
    assert _kept(softmax(X)) == ["exp"]
    assert _kept(gelu) == []
    assert _kept(layer_norm(gelu, 1e-5)) == ["gelu"]
    power = apply("exp", gelu)
    assert _kept(power * apply("sum", power)) == ["exp"]
    assert _kept(power * apply("sum", power) * gelu) == ["gelu", "exp"]
    scale = apply("rsqrt", pixel(1))
    assert _kept(X * scale * apply("sum", X * scale)) == []


def test_rows_as_one(isa: Isa) -> None:
    """They make whole vectors, and not too few of them."""
    for count in (1, 3, 7, 24, 33, 64, 100, 768):
        special = Rowwise(apply("relu", X * channels(1) + image(2)), count, "f32", isa)
        width = special.together * count
        assert width >= 4 * isa.lanes
        assert width % isa.lanes == 0 or count >= 8 * isa.lanes
    assert Rowwise(softmax(X), 3, "f32", isa).together == 1


def _of(isa: Isa, name: str, x: Array) -> Array:
    special = Rowwise(apply(name, X), x.size, "f32", isa)
    found: Array = run(step_of(special, 1, 1), [x.reshape(1, 1, -1)])[0, 0]
    return found


def test_exp_over_all_of_f32(isa: Isa) -> None:
    x = np.linspace(-86.9, 88.72, 50_001, dtype=np.float32)
    right = np.exp(x.astype(np.float64))
    assert (np.abs(_of(isa, "exp", x) / right - 1) <= 4 * 2.0**-24).all()
    low = np.linspace(-110, -86.9, 1001, dtype=np.float32)
    assert (np.abs(_of(isa, "exp", low) - np.exp(low.astype(np.float64))) <= 2.0**-125).all()
    assert (_of(isa, "exp", np.array([88.73, 89, 1e30], np.float32)) == np.inf).all()
    assert (_of(isa, "exp", np.array([-88, -1e30, -np.inf], np.float32)) == 0).all()


def test_tanh_is_never_beyond_one(isa: Isa) -> None:
    x = np.concatenate([np.linspace(-12, 12, 50_001), np.logspace(-30, 30, 5000)])
    x = x.astype(np.float32)
    found, right = _of(isa, "tanh", x), np.tanh(x.astype(np.float64))
    assert (np.abs(found - right) <= 8 * 2.0**-24 * np.abs(right)).all()
    assert np.abs(found).max() == 1
    assert (np.abs(found[np.abs(x) > 9.1]) == 1).all()
    assert same_bits(found, -_of(isa, "tanh", -x))
