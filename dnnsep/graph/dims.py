"""Reads torch.export's ``dynamic_shapes``, of images, as a condition for their sizes.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.export import Dim
from torch.utils import _pytree as pytree

_NAMES = {0: "images", 2: "height", 3: "width"}


def condition_of(dynamic_shapes: Any, example: tuple[Any, ...]) -> str:
    """Returns the condition (see Sizes) that ``dynamic_shapes``, a tree like the arguments whose
    leaves say something of a tensor's dimensions, is for the images among the ``example``; None
    stands for no condition.

    Raises ValueError where it is not for a single tensor of images, or has a dimension that is
    computed from another one.
    """
    if dynamic_shapes is None:
        return "True"
    tensors = [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor)]
    if len(tensors) != 1 or tensors[0].dim() != 4:
        raise ValueError("dynamic_shapes: taken for models of a single tensor of images only")
    dims = _dims(dynamic_shapes)
    unknown = sorted(dim for dim in dims if dim not in range(4))
    if unknown:
        raise ValueError(f"dynamic_shapes: images have no dimension {unknown[0]}")
    conditions, first = [], dict[Any, str]()
    for dim, name in _NAMES.items():
        said = dims.get(dim)
        if said is None or isinstance(said, int) or said == Dim.STATIC:
            conditions.append(f"{name} == {tensors[0].shape[dim]}")
            continue
        if said in (Dim.AUTO, Dim.DYNAMIC):
            continue
        if not isinstance(said, Dim) or type(said).__name__ == "_DerivedDim":
            raise ValueError(f"dynamic_shapes: {name}: neither a Dim of its own nor a number")
        conditions += [f"{name} >= {int(said.min)}"]
        # Without a maximum it is infinite.
        conditions += [f"{name} <= {int(said.max)}"] if said.max < 1 << 40 else []
        conditions += [f"{name} == {first[said.__name__]}"] if said.__name__ in first else []
        first[said.__name__] = name
    return " and ".join(conditions) or "True"


def _dims(shapes: Any) -> dict[int, Any]:
    """Returns what is said of each dimension of the only tensor."""
    while shapes is not None:
        if isinstance(shapes, Mapping) and all(isinstance(key, int) for key in shapes):
            return dict(shapes)
        if isinstance(shapes, Sequence) and not isinstance(shapes, str) and len(shapes) == 4:
            return dict(enumerate(shapes))
        inner = list(shapes.values()) if isinstance(shapes, Mapping) else shapes
        if not isinstance(inner, Sequence) or isinstance(inner, str) or len(inner) != 1:
            raise ValueError("dynamic_shapes: not those of a single tensor of images")
        shapes = inner[0]
    return {}
