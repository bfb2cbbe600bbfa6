"""Makes packed weights anew where a change of them could not be noticed: ``dnnsep.repack``.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from torch import nn

from dnnsep.graph.runner import Runner
from dnnsep.nn import operator
from dnnsep.nn.packed import PackedLayer


def repack(model: nn.Module) -> None:
    """Forgets what was packed of the weights of a model that ``dnnsep.optimize`` returned, or that
    has layers of dnnsep; its next call makes it anew of the weights as they are then.

    Replaced and reloaded weights, and those written to as torch counts it, are noticed without
    this, and so is most of what is written through ``.data``, through NumPy or into tensors made
    in inference mode: each tensor's largest element is compared before each call. This is for
    such writes that leave that element as it was. It may not run during a call of the model.
    """
    for module in model.modules():
        runner = module.__dict__.get("forward")
        if isinstance(runner, Runner):
            runner.forget()
        if isinstance(module, PackedLayer):
            module.forget()
    operator.forget()
