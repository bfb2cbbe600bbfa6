"""Reports what ``optimize`` did to a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from dnnsep.problem import Problem


@dataclass(frozen=True)
class Entry:
    """What became of some layers of the model, which ``layers`` names.

    ``kind`` is ``separable`` (a depthwise and a pointwise convolution became one layer),
    ``convolution``, ``linear``, or ``left`` (to torch), which ``reason`` explains. ``flops`` are
    those on the example, two for each multiply-add; ``problem`` is what the kernel computes of it:
    of a grouped convolution it is one of its groups.
    """

    layers: tuple[str, ...]
    kind: str
    flops: int
    reason: str = ""
    problem: Problem | None = None


@dataclass
class Report:
    """What became of a model's convolutions and linear layers, and what else it runs. Prints as a
    table.

    ``kernels`` counts the generated kernels beside those layers, by what they do, and ``calls`` the
    calls of torch's operators, by name; ``shares`` are the shares of the time, 0 to 1, that these
    took in one call on the example. ``cascades`` are steps that run band by band, so that what is
    between them stays in the caches, with how many times as fast as one after the other that was
    measured to be. ``pieces`` is into how many runs of kernels the calls of torch
    cut the model. ``error`` is the largest difference of an output from the original model's on the
    example and on a random input, relative to the largest output; ``bound`` is the most it may be.
    ``notes`` say what was not done, and why. ``plans`` counts what the plans of the layers were
    chosen by: "measured", now or by an earlier process, "by model" or "the only one";
    ``tuning_seconds`` were spent on measuring them now. ``why_fixed`` says why other sizes of
    images are prepared when they first come; it is empty where the same kernels run them.
    ``packed_bytes`` is the memory of the kernels' own copies of weights, beside ``parameter_bytes``
    of the model's parameters. These stay: training, gradients and the state_dict need them, and a
    normalisation that was folded into weights cannot be taken out of them again.
    """

    entries: list[Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: float = 0.0
    bound: float = 0.0
    kernels: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    shares: dict[str, float] = field(default_factory=dict)
    cascades: dict[str, float] = field(default_factory=dict)
    pieces: int = 0
    plans: Counter[str] = field(default_factory=Counter)
    tuning_seconds: float = 0.0
    why_fixed: str = ""
    packed_bytes: int = 0
    parameter_bytes: int = 0

    @property
    def separable_share(self) -> float:
        """Returns the share of all FLOPs, 0 to 1, in separable layers."""
        return self._share("separable")

    @property
    def native_flops(self) -> float:
        """Returns the share of all FLOPs, 0 to 1, in layers that generated kernels run."""
        return self._share("separable", "convolution", "linear")

    @property
    def native_time(self) -> float:
        """Returns the share of the time, 0 to 1, that torch's operators did not take."""
        return 1.0 - sum(self.shares.values())

    def _share(self, *kinds: str) -> float:
        total = sum(entry.flops for entry in self.entries)
        return sum(e.flops for e in self.entries if e.kind in kinds) / total if total else 0.0

    def count(self, kind: str) -> int:
        """Returns the number of entries of a kind."""
        return sum(entry.kind == kind for entry in self.entries)

    def __str__(self) -> str:
        lines = self._table()
        lines += [f"note: {note}" for note in self.notes]
        if self.kernels:
            others = ", ".join(f"{count} {name}" for name, count in self.kernels.most_common())
            lines.append(f"other kernels: {others}")
        if self.cascades:
            times = self.cascades.values()
            lines.append(
                f"cascades: {len(times)}, whose steps take turns band by band, "
                f"{min(times):.2f} to {max(times):.2f} times as fast as one after the other"
            )
        if self.calls:
            calls = ", ".join(
                f"{count} {name} ({self.shares.get(name, 0.0):.0%})"
                for name, count in self.calls.most_common()
            )
            lines.append(f"calls of torch (share of the time): {calls}")
        if self.plans:
            measured, by_model, only = (
                self.plans[word] for word in ("measured", "by model", "the only one")
            )
            lines.append(
                f"plans of the layers: {measured} measured, {by_model} by the cost model, {only} "
                f"the only one; {self.tuning_seconds:.1f} s spent on measuring"
            )
        fixed = f"prepared when they first come: {self.why_fixed}"
        lines.append(f"other sizes: {fixed if self.why_fixed else 'by the same kernels'}")
        packed, own = (size / 2**20 for size in (self.packed_bytes, self.parameter_bytes))
        lines.append(f"weights: {packed:.1f} MiB for the kernels, beside {own:.1f} MiB parameters")
        lines.append(
            f"{self.count('separable')} separable layers ({self.separable_share:.0%} of the FLOPs),"
            f" {self.count('convolution')} other convolutions and {self.count('linear')} linear "
            f"layers by kernels in {self.pieces} {'piece' if self.pieces == 1 else 'pieces'}, "
            f"{self.count('left')} left; outputs differ by {self.error:.1e} of the largest (bound "
            f"{self.bound:.0e})"
        )
        return "\n".join(lines)

    def _table(self) -> list[str]:
        rows = [("layers", "became", "MFLOP", "problem, or why it was left")]
        for entry in self.entries:
            layers = entry.layers[0] + (f" … {entry.layers[-1]}" if len(entry.layers) > 1 else "")
            detail = entry.reason or (str(entry.problem) if entry.problem else "")
            rows.append((layers, entry.kind, f"{entry.flops / 1e6:.1f}", detail))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return [
            f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip()
            for row in rows
        ]
