"""The process that runs whole models on one engine, as the worker does layers on a backend.

Run as ``python -m dnnsep.sweep.modelworker ENGINE keep|system``.
"""

from __future__ import annotations

from typing import Any

from dnnsep.block import is_block
from dnnsep.host.affinity import keep_on, pin_workers
from dnnsep.measure.cachestate import Evictor
from dnnsep.models.engines import CannotRunError, WrongResultError, bind, verdict
from dnnsep.sweep.results import parse_model
from dnnsep.sweep.worker import Timer, serve

# Each engine chooses its own scales: what they take from a model is no fault, what is not the model
# any more is found by this.
INT8_BOUND = 0.2


class ModelWorker(Timer):
    """An engine, and the model that it was last asked to prepare."""

    def __init__(self, engine: str) -> None:
        super().__init__()
        self._engine = engine

    def start(self) -> dict[str, Any]:
        """Say why the engine cannot run here, or what it stands on."""
        found = verdict(self._engine)
        return {"reason": found.reason} if found else {"unavailable": found.reason}

    def prepare(self, problem: str, cpus: list[int], data: str) -> dict[str, Any]:
        """Prepare a model for a thread on each CPU and compare it with plain torch in f32.

        Outputs may differ by as much as ``optimize`` allows in the model's dtype, in int8 by
        INT8_BOUND. A block gets what layers get within a network. The answer has ``refused`` with
        the reason where the engine does not compute in it here, or does not convert or run the
        model.
        """
        import torch

        from dnnsep.backends.executor import TORCH_DTYPES
        from dnnsep.graph.difference import BOUNDS, difference
        from dnnsep.models.zoo import load

        self.reset(cpus)
        name, shape, dtype = parse_model(problem)
        found = verdict(self._engine, dtype)
        if not found:
            return {"refused": found.reason}
        model, x = load(name, shape)
        expected = model(x)
        try:
            (call, impls), actual = bind(self._engine, model, x, dtype, is_block(name))
        except CannotRunError as reason:
            return {"refused": str(reason)}
        except WrongResultError as reason:
            return {"correct": False, "check": str(reason)}
        bound = INT8_BOUND if dtype == "int8" else BOUNDS[TORCH_DTYPES[dtype]]
        error = difference(_in_form_of(expected, actual), expected, bound)
        correct = error <= bound
        pinned = keep_on(cpus)  # the threads that the engine has started since
        if correct:
            self.calls = {"all": call}
            self.evict = Evictor(cpus, self._engine not in ("openvino", "onnxruntime"))
            pin_workers(cpus, call)
        del expected, actual
        return {
            "correct": correct,
            "check": f"differs from eager torch in f32 by {error:.1e} of the largest output "
            f"(bound {bound:.0e})",
            "ran_on": self._engine,
            "stages": [],
            "impls": impls,
            "plans": [],
            "output": "allocated by each call",
            "cpus": cpus if pinned else None,
            "denormals": False,
            "threads": torch.get_num_threads(),
        }


def _in_form_of(expected: Any, actual: Any) -> Any:
    """Returns a result in the form of the expected one, where it has as many tensors.

    Some engines give a list of the tensors only.
    """
    from torch import Tensor
    from torch.utils import _pytree as pytree

    leaves, form = pytree.tree_flatten(expected)
    tensors = [leaf for leaf in pytree.tree_leaves(actual) if isinstance(leaf, Tensor)]
    if len(tensors) != sum(isinstance(leaf, Tensor) for leaf in leaves):
        return actual
    ours = iter(tensors)
    return pytree.tree_unflatten(
        [next(ours) if isinstance(leaf, Tensor) else leaf for leaf in leaves], form
    )


if __name__ == "__main__":
    serve(ModelWorker)
