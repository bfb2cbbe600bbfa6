"""What counts as a difference between two models' results, and how large it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dnnsep.graph.difference import difference

_INFINITE = float("inf")


def _detections(*rows: tuple[float, int, float], **more: Tensor) -> dict[str, Tensor]:
    """Returns detections of (score, label, where all four sides of the box are)."""
    scores, labels, places = zip(*rows, strict=True) if rows else ((), (), ())
    return {
        "boxes": torch.tensor(places, dtype=torch.float32).reshape(-1, 1).expand(len(rows), 4),
        "scores": torch.tensor(scores),
        "labels": torch.tensor(labels, dtype=torch.int64),
        **more,
    }


_EXPECTED = _detections((0.8, 1, 10), (0.60001, 2, 20), (0.6, 3, 40), (0.5, 1, 30), (0.3, 4, 5))


@pytest.mark.parametrize(
    ("actual", "expected", "apart"),
    [
        (torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0]), 0.25),
        (torch.tensor([0.5]), torch.tensor([0.0]), 0.5),
        (torch.tensor([1.0]), torch.tensor([1.0, 1.0]), _INFINITE),
        (torch.tensor([torch.inf, 1.0]), torch.tensor([torch.inf, 2.0]), 1.0),
        (torch.tensor([torch.nan]), torch.tensor([torch.nan]), 0.0),
        (torch.tensor([torch.nan]), torch.tensor([1.0]), _INFINITE),
        (torch.zeros(0, 3), torch.zeros(0, 3), 0.0),
        (torch.tensor([1, 2], dtype=torch.int32), torch.tensor([1, 2]), 0.0),
        (torch.tensor([1, 3]), torch.tensor([1, 2]), _INFINITE),
        (torch.tensor([True]), torch.tensor([False]), _INFINITE),
        ([torch.tensor([1.0])], (torch.tensor([1.0]),), 0.0),
        ({"a": torch.tensor([1.0]), "b": 3}, {"a": torch.tensor([2.0]), "b": 3}, 0.5),
        ({"a": torch.tensor([1.0]), "b": 3}, {"a": torch.tensor([1.0]), "b": 4}, _INFINITE),
        ([torch.tensor([1.0])], [torch.tensor([1.0])] * 2, _INFINITE),
        (1.0, torch.tensor([1.0]), _INFINITE),
    ],
)
def test_trees_of_tensors(actual: Any, expected: Any, apart: float) -> None:
    assert difference(actual, expected) == apart


def test_ties_may_change_places_with_all_that_belongs_to_them() -> None:
    swapped = _detections((0.8, 1, 10), (0.6, 3, 40), (0.59999, 2, 20), (0.5, 1, 30), (0.3, 4, 5))
    assert difference(swapped, _EXPECTED) == pytest.approx(2e-5 / 0.8, rel=0.01)
    assert difference(swapped, _EXPECTED, bound=1e-6) == _INFINITE
    masks = torch.eye(5)
    kept = {**swapped, "masks": masks}
    assert difference(kept, {**_EXPECTED, "masks": masks}) == 1
    assert difference(kept, {**_EXPECTED, "masks": masks[[0, 2, 1, 3, 4]]}) < 1e-3


def test_others_may_not() -> None:
    order = [3, 1, 2, 0, 4]
    moved = {key: value[order] for key, value in _EXPECTED.items()}
    assert difference(moved, _EXPECTED) == _INFINITE


def test_of_equal_labels_and_scores_the_nearest_boxes_belong_together() -> None:
    expected = _detections((0.6, 2, 20), (0.6, 2, 40), (0.6, 2, 30))
    assert difference(_detections((0.6, 2, 30), (0.6, 2, 20), (0.6, 2, 40)), expected) == 0
    moved = _detections((0.6, 2, 31), (0.6, 2, 20), (0.6, 2, 40))
    assert difference(moved, expected) == pytest.approx(1 / 40)


@pytest.mark.parametrize(
    "wrong",
    [
        _detections((0.8, 7, 10), (0.60001, 2, 20), (0.6, 3, 40), (0.5, 1, 30), (0.3, 4, 5)),
        _detections((0.8, 1, 10), (0.60001, 3, 20), (0.6, 2, 40), (0.5, 1, 30), (0.3, 4, 5)),
        _detections((0.8, 1, 10), (0.60001, 2, 20), (0.6, 2, 40), (0.5, 1, 30), (0.3, 4, 5)),
        _detections((0.8, 1, 10), (0.60001, 2, 20), (0.6, 3, 40), (0.45, 1, 30), (0.3, 4, 5)),
        _detections((0.8, 1, 10), (0.60001, 2, 20), (0.6, 3, 40), (0.3, 4, 5)),
        _detections((0.8, 1, 10)),
        _detections(),
        [torch.ones(5, 4), torch.ones(5), torch.ones(5)],
    ],
    ids=["label", "labels", "label of a tie", "score", "one less", "one left", "none", "no dict"],
)
def test_other_differences_of_detections_are_not_allowed(wrong: Any) -> None:
    """Swapped labels are no tie: their boxes stay, and count as moved."""
    assert difference(wrong, _EXPECTED) > 0.4
    assert difference([wrong, 1], [_EXPECTED, 1]) > 0.4


def test_the_lowest_may_cross_the_threshold() -> None:
    rows = [(0.8, 1, 10.0), (0.3001, 2, 20.0), (0.3, 4, 5.0)]
    assert difference(_detections(*rows[:2]), _detections(*rows)) == 0
    assert difference(_detections(*rows), _detections(*rows[:2])) == 0
    other = [*rows[:2], (0.3002, 3, 7.0)]
    assert difference(_detections(*other), _detections(*rows)) == 0
    far = [*rows[:2], (0.2, 4, 5.0)]
    assert difference(_detections(*rows[:2]), _detections(*far)) == _INFINITE


def test_no_more_than_one_may_be_missing() -> None:
    rows = [(0.3, label, 5.0) for label in range(4)]
    assert difference(_detections(*rows[:3]), _detections(*rows)) == 0
    assert difference(_detections(*rows[:2]), _detections(*rows)) == _INFINITE
    changed = [(0.3, label + 4, 5.0) for label in range(4)]
    assert difference(_detections(*changed), _detections(*rows)) == _INFINITE


def test_integers_beside_no_scores_must_be_equal() -> None:
    expected = {"values": torch.tensor([0.5, 0.5]), "labels": torch.tensor([1, 2])}
    actual = {"values": torch.tensor([0.5, 0.5]), "labels": torch.tensor([2, 1])}
    assert difference(actual, expected) == _INFINITE


def test_no_detections_at_all() -> None:
    assert difference(_detections(), _detections()) == 0
    assert difference(_detections((0.3, 1, 5.0)), _detections()) == _INFINITE
