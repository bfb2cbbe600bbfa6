"""Reports what ``optimize`` did to a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from dnnsep.problem import Problem


@dataclass(frozen=True)
class Entry:
    """What became of some layers of the model, which ``layers`` names.

    ``kind`` is ``separable`` (they became one SeparableConv2d), ``convolution`` (one PackedConv2d),
    ``linear`` (one PackedLinear) or ``left``, which ``reason`` explains. ``flops`` are those on the
    example, two for each multiply-add; ``problem`` is what a separable layer is on the example.
    """

    layers: tuple[str, ...]
    kind: str
    flops: int
    reason: str = ""
    problem: Problem | None = None


@dataclass
class Report:
    """What became of each convolution and of replaced linear layers. Prints as a table.

    ``error`` is the largest difference of an output from the original model's on the example,
    relative to the largest output; ``bound`` is the most it may be. ``notes`` say why the model
    was not rewritten as a whole, or not at all. ``plans`` counts what the plans of the layers on
    the fused kernel were chosen by: "measured", now or by an earlier process, "by model" or "the
    only one"; ``tuning_seconds`` were spent on measuring them now.
    """

    entries: list[Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: float = 0.0
    bound: float = 0.0
    plans: Counter[str] = field(default_factory=Counter)
    tuning_seconds: float = 0.0

    @property
    def separable_share(self) -> float:
        """Returns the share of all FLOPs, 0 to 1, in layers that became a SeparableConv2d."""
        total = sum(entry.flops for entry in self.entries)
        return sum(e.flops for e in self.entries if e.kind == "separable") / total if total else 0.0

    def count(self, kind: str) -> int:
        """Returns the number of entries of a kind."""
        return sum(entry.kind == kind for entry in self.entries)

    def __str__(self) -> str:
        rows = [("layers", "became", "MFLOP", "problem, or why it was left")]
        for entry in self.entries:
            layers = entry.layers[0] + (f" … {entry.layers[-1]}" if len(entry.layers) > 1 else "")
            detail = entry.reason or (str(entry.problem) if entry.problem else "")
            rows.append((layers, entry.kind, f"{entry.flops / 1e6:.1f}", detail))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip()
            for row in rows
        ]
        lines += [f"note: {note}" for note in self.notes]
        if self.plans:
            measured, by_model, only = (
                self.plans[word] for word in ("measured", "by model", "the only one")
            )
            lines.append(
                f"plans of the layers on the fused kernel: {measured} measured, {by_model} by the "
                f"cost model, {only} the only one; {self.tuning_seconds:.1f} s spent on measuring"
            )
        lines.append(
            f"{self.count('separable')} separable layers ({self.separable_share:.0%} of the FLOPs),"
            f" {self.count('convolution')} other convolutions and {self.count('linear')} linear "
            f"layers packed, {self.count('left')} left; outputs differ by {self.error:.1e} of the "
            f"largest (bound {self.bound:.0e})"
        )
        return "\n".join(lines)
