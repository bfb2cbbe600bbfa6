"""What a rewrite did to a model."""

from __future__ import annotations

from dataclasses import dataclass, field

from dnnsep.problem import Problem


@dataclass(frozen=True)
class Entry:
    """Some layers of the model, by their names in it.

    ``kind`` is ``separable`` (they became one SeparableConv2d), ``convolution`` (one PackedConv2d),
    ``linear`` (one PackedLinear) or ``left``, which ``reason`` explains. ``flops`` are those on the
    example, 2 for a multiply-add; ``problem`` is what a separable layer runs.
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
    relative to the largest output; ``bound`` is what it was held to. ``notes`` say what kept the
    rewrite from taking the model as a whole.
    """

    entries: list[Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: float = 0.0
    bound: float = 0.0

    @property
    def separable_share(self) -> float:
        """Of the FLOPs of all entries, those in layers that became a SeparableConv2d."""
        total = sum(entry.flops for entry in self.entries)
        return sum(e.flops for e in self.entries if e.kind == "separable") / total if total else 0.0

    def count(self, kind: str) -> int:
        return sum(entry.kind == kind for entry in self.entries)

    def __str__(self) -> str:
        rows = [("layers", "became", "MFLOP", "problem, or why it was left")]
        for entry in self.entries:
            layers = entry.layers[0] + (f" … {entry.layers[-1]}" if len(entry.layers) > 1 else "")
            why = entry.reason or (str(entry.problem) if entry.problem else "")
            rows.append((layers, entry.kind, f"{entry.flops / 1e6:.1f}", why))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip()
            for row in rows
        ]
        lines += [f"note: {note}" for note in self.notes]
        lines.append(
            f"{self.count('separable')} separable layers ({self.separable_share:.0%} of the FLOPs),"
            f" {self.count('convolution')} other convolutions and {self.count('linear')} linear "
            f"layers packed, {self.count('left')} left; outputs differ by {self.error:.1e} of the "
            f"largest (bound {self.bound:.0e})"
        )
        return "\n".join(lines)
