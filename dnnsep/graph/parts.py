"""Takes a model part by part where its graph cannot be captured as a whole.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dnnsep.graph.prepare import Options
from dnnsep.graph.rewrite import CaptureError
from dnnsep.graph.runner import Runner

# Parts with one of these are worth it.
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)


def replace_parts(
    model: nn.Module, example: tuple[Any, ...], options: Options
) -> dict[str, Runner]:
    """Replaces ``forward`` of the largest parts of a model whose graphs can be captured, and
    returns what took its place, by their names.

    A part is captured with the arguments of its first call on the example. One that is not called,
    or has neither convolutions nor linear layers, stays.
    """
    calls = _calls(model, example)
    runners: dict[str, Runner] = {}

    def replace(parent: nn.Module, path: str) -> None:
        for name, child in parent.named_children():
            full = f"{path}.{name}" if path else name
            if not any(isinstance(m, _LAYERS) for m in child.modules()):
                continue
            if child in calls and "forward" not in child.__dict__:
                arguments, named = calls[child]
                runner = Runner(child, options.inside(full))
                try:
                    runner.prepare_for(arguments, named)
                except CaptureError:
                    pass
                else:
                    child.forward = runner
                    runners[full] = runner
                    continue
            replace(child, full)

    replace(model, "")
    return runners


def _calls(
    model: nn.Module, example: tuple[Any, ...]
) -> dict[nn.Module, tuple[tuple[Any, ...], Mapping[str, Any]]]:
    """Returns the arguments of each module's first call on the example."""
    calls: dict[nn.Module, tuple[tuple[Any, ...], Mapping[str, Any]]] = {}

    def note(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if module not in calls:
            calls[module] = pytree.tree_map(_copied, (arguments, named))

    hooks = [m.register_forward_pre_hook(note, with_kwargs=True) for m in model.modules()]
    try:
        model(*pytree.tree_map(_copied, example))
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
