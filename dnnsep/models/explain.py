"""What an optimized block runs, action by action, and which cascades were looked at in it.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter
from typing import Any, cast

import torch
from torch import Tensor

from dnnsep.backends.executor import TORCH_DTYPES
from dnnsep.backends.fused_executor import impl_name
from dnnsep.block import Block
from dnnsep.codegen.cascade.step import CascadeStep
from dnnsep.codegen.layerstep import LayerStep
from dnnsep.graph.considered import Looked, described, looked_at
from dnnsep.graph.network import Action, Call, Network
from dnnsep.graph.optimize import optimize, report_of
from dnnsep.graph.runner import Runner
from dnnsep.host.affinity import keep_on
from dnnsep.models.quantized import by_pt2e
from dnnsep.models.zoo import load

# So many calls are timed, after as many that warm up.
_CALLS = 50


@dataclass(frozen=True)
class Ran:
    """A kernel or a call of torch: the layers that it computes, if it computes any, what runs them
    and how they are cut up, and the microseconds of a call with all threads waiting for its end."""

    name: str
    problems: tuple[str, ...]
    runs: str
    us: float


@dataclass(frozen=True)
class Explained:
    """What runs a block on so many threads, in order, with the microseconds of a call with cascades
    and of one layer by layer."""

    block: Block
    threads: int
    us: float
    layer_by_layer_us: float
    actions: tuple[Ran, ...]
    cascades: tuple[Looked, ...]


def explain(block: Block, cpus: Sequence[int]) -> Explained:
    """Returns what runs a block, a thread on each CPU; its plans and cascades are measured if they
    were not before.

    Raises ValueError where the block does not run as kernels and calls in order.
    """
    torch.set_num_threads(len(cpus))
    keep_on(list(cpus))
    with torch.inference_mode():
        network, inputs = optimized(block, cascades=True)
        plain, _ = optimized(block, cascades=False)
        us, plain_us = _us([network, plain], inputs)
        seconds = network.times_of_actions(inputs, _CALLS)
    return Explained(
        block,
        len(cpus),
        us,
        plain_us,
        tuple(_ran(a, 1e6 * s) for a, s in zip(network.actions, seconds, strict=True)),
        tuple(looked_at(network.actions, plain, len(cpus))),
    )


def optimized(block: Block, cascades: bool) -> tuple[Network, list[Tensor]]:
    """Returns the network that runs a block, and its inputs. Raises ValueError where there is no
    such network."""
    model, x = load(str(replace(block, dtype="f32")))
    images = x.contiguous(memory_format=torch.channels_last)
    dtype = TORCH_DTYPES["bf16"] if block.dtype == "bf16" else None
    if block.dtype == "int8":
        model = by_pt2e(model, x)
    made = optimize(model, images, dtype=dtype, cascades=cascades)
    runner = cast("Any", made.__dict__.get("forward"))
    if not isinstance(runner, Runner) or not runner.prepared:
        raise ValueError(f"{block}: {'; '.join(report_of(made).notes)}")
    (prepared,) = runner.prepared
    return prepared.lowered.network, [images if dtype is None else images.to(dtype)]


def _us(networks: Sequence[Network], inputs: list[Tensor]) -> list[float]:
    """Returns the median microseconds of a call of each network, called in turns."""
    times: list[list[float]] = [[] for _ in networks]
    for _ in range(2 * _CALLS):
        for network, of_network in zip(networks, times, strict=True):
            network.run(inputs)  # what the other one left in the caches
            start = perf_counter()
            network.run(inputs)
            of_network.append(1e6 * (perf_counter() - start))
    return [median(of_network[_CALLS:]) for of_network in times]


def _ran(action: Action, us: float) -> Ran:
    if isinstance(action, Call):
        return Ran(action.name, (), "torch", us)
    step = action.step
    if isinstance(step, CascadeStep):
        return Ran(action.name, *described(step), us)
    if isinstance(step, LayerStep):
        plan = step.plan
        cut = f"{plan.pixel_parts} x {plan.channel_parts} parts, tiles of {plan.tile} pieces"
        text = f"{impl_name([step])}, {cut} of {plan.pixels} pixels"
        return Ran(action.name, (str(step.problem),), text, us)
    return Ran(action.name, (), type(step).__name__, us)
