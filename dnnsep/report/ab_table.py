"""An A/B run's findings as a table for the terminal, as JSON, and in single lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from dnnsep.report.ab import Estimate, Finding, Geomean, Verdict
from dnnsep.report.table import impl_text

_HEADINGS = (
    "case",
    "backend",
    "thr",
    "base us",
    "new us",
    "new / base",
    "95 % interval",
    "verdict",
    "why",
)
_RIGHT = ("thr", "base us", "new us", "new / base", "95 % interval")
_STYLES = {
    Verdict.SLOWER: "red",
    Verdict.INCORRECT: "red",
    Verdict.FAILED: "red",
    Verdict.FASTER: "green",
    Verdict.UNSURE: "yellow",
}


def as_rich(findings: Sequence[Finding]) -> Table:
    """The table for the terminal, a row for each case on a backend."""
    table = Table(header_style="bold")
    for heading in _HEADINGS:
        right = heading in _RIGHT
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for finding in findings:
        table.add_row(*_cells(finding), style=_STYLES.get(finding.verdict, ""))
    return table


def as_dict(findings: Sequence[Finding], means: Sequence[Geomean]) -> dict[str, Any]:
    """What ``--json`` prints: the cases, the geometric means, and how many of each verdict."""
    return {
        "cases": [
            {
                **f.trial.model_dump(exclude={"visits", "status", "reason"}),
                "verdict": f.verdict.value,
                "reason": f.reason,
                "base_us": f.base_us,
                "new_us": f.new_us,
                **_figures(f.estimate),
                "p_value": f.p_value,
                "visits": len(f.trial.visits),
            }
            for f in findings
        ],
        "geomeans": [
            {"group": mean.group, "count": mean.count, **_figures(mean.estimate)} for mean in means
        ],
        "counts": dict(Counter(f.verdict.value for f in findings)),
    }


def summary(findings: Sequence[Finding], means: Sequence[Geomean]) -> list[str]:
    """A line for each geometric mean, then ``18 cases: 16 same, 2 slower; 1 impl-changed``."""
    lines = [
        f"geomean new / base, {mean.group}: {mean.estimate.ratio:.3f} "
        f"({_interval(mean.estimate)}) of {mean.count}"
        for mean in means
    ]
    counts = Counter(f.verdict.value for f in findings)
    changed = sum(f.impl_changed for f in findings)
    text = f"{len(findings)} cases: " + ", ".join(f"{n} {word}" for word, n in counts.items())
    return [*lines, text + (f"; {changed} impl-changed" if changed else "")]


def line(finding: Finding) -> str:
    """One finding in one line."""
    case, backend, threads, _, _, ratio, interval, verdict, why = _cells(finding)
    figures = f" {ratio} ({interval})" if ratio else ""
    verdict = verdict.replace("\n", " ")
    return f"{verdict}{figures}: {case.splitlines()[-1]}, {backend}, {threads} threads: {why}"


def _cells(finding: Finding) -> list[str]:
    trial, estimate = finding.trial, finding.estimate
    verdict, why = finding.verdict.value.upper(), finding.reason
    if finding.impl_changed:
        verdict += "\nIMPL-CHANGED"
        why += f"; {impl_text(trial.base_impls)} -> {impl_text(trial.new_impls)}"
    name = f"{trial.name}\n" if trial.name else ""
    cold = " (cold)" if trial.cache == "cold" else ""
    return [
        f"{name}{trial.problem}{cold}",
        trial.backend,
        str(trial.threads),
        _us(finding.base_us),
        _us(finding.new_us),
        f"{estimate.ratio:.3f}" if estimate else "",
        _interval(estimate) if estimate else "",
        verdict,
        why,
    ]


def _us(time: float | None) -> str:
    return "" if time is None else f"{time:.1f}" if time < 1000 else f"{time:.0f}"


def _interval(estimate: Estimate) -> str:
    low, high = (100 * (end - 1) for end in estimate.interval)
    return f"{low:+.1f} to {high:+.1f} %"


def _figures(estimate: Estimate | None) -> dict[str, float | None]:
    """The ratio new over base with its 95 % interval."""
    if estimate is None:
        return {"ratio": None, "low": None, "high": None}
    low, high = estimate.interval
    return {"ratio": estimate.ratio, "low": low, "high": high}
