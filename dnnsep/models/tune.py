"""Measures the cascades of a block for longer than preparing it does; keeps what most measurements
found.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from dnnsep.block import Block
from dnnsep.codegen.cascade import choose
from dnnsep.codegen.cascade.choose import Verdict
from dnnsep.codegen.cascade.links import Member
from dnnsep.graph.considered import texts_of, worth_a_look
from dnnsep.host.affinity import keep_on
from dnnsep.host.turns import measuring
from dnnsep.models.explain import optimized

# So many measurements, each as long as the one that preparing makes, and how many must agree.
_MEASUREMENTS, _AGREEING = 7, 5


@dataclass(frozen=True)
class TunedCascade:
    """Steps that follow each other, layers by their problems, and the microseconds that they take
    one after the other and as the fastest cascade (None where none could be timed).

    ``taken`` says whether they run as a cascade from now on, and ``before`` whether they did; of
    the measurements ``agreeing`` found so, and ``kept`` is whether those are enough to keep it.
    """

    problems: tuple[str, ...]
    layer_by_layer_us: float
    cascade_us: float | None
    taken: bool
    before: bool
    agreeing: int
    kept: bool


def tune(block: Block, cpus: Sequence[int], step: Callable[[str], None]) -> list[TunedCascade]:
    """Measures the cascades of a block that are worth a look, a thread on each CPU, and keeps for
    later processes which are taken. ``step`` is told what is being measured.

    Raises ValueError where the block does not run as a network of kernels.
    """
    threads = len(cpus)
    torch.set_num_threads(threads)
    keep_on(list(cpus))
    step(f"{block}: its layers")
    with torch.inference_mode():
        plain, _ = optimized(block, cascades=False)
    found = []
    for members in worth_a_look(plain, threads):
        step(f"{block}: {', '.join(texts_of(members))}")
        found.append(_tuned(members, threads))
    return found


def _tuned(members: list[Member], threads: int) -> TunedCascade:
    before = _is_taken(members, threads)
    with measuring():
        verdicts = [choose.measure(members, threads)[0] for _ in range(_MEASUREMENTS)]
    verdict, agreeing = agreed(verdicts)
    kept = agreeing >= _AGREEING
    if kept:
        choose.note(members, threads, verdict, keep=True)
    us = 1e6 * verdict.seconds
    return TunedCascade(
        texts_of(members),
        us,
        us / verdict.ratio if verdict.ratio else None,
        _is_taken(members, threads),
        before,
        agreeing,
        kept,
    )


def _is_taken(members: list[Member], threads: int) -> bool:
    """Returns whether steps are known to be faster as a cascade."""
    return choose.verdict_on(members, threads, tune=False).cut is not None


def agreed(verdicts: Sequence[Verdict]) -> tuple[Verdict, int]:
    """Returns what most verdicts say, and how many of them: whether there is a cascade, and of
    those that say so the cut that most of them have. Times are medians of those that agree; such a
    verdict needs no confirmation within the network."""
    with_cascade = [verdict for verdict in verdicts if verdict.cut is not None]
    without = [verdict for verdict in verdicts if verdict.cut is None]
    most = with_cascade if len(with_cascade) > len(without) else without
    ((cut, _),) = Counter(verdict.cut for verdict in most).most_common(1)
    alike = [verdict for verdict in most if verdict.cut == cut]
    seconds = median(verdict.seconds for verdict in alike)
    ratio = median(verdict.ratio for verdict in alike)
    return Verdict(cut, ratio, seconds, in_network=True), len(most)
