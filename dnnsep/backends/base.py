"""What a backend is.

The rules: a backend imports its framework when it is used, never when it is listed. It refuses
what it cannot do with a Verdict that says why; it never answers wrongly and never hands a problem
to another backend in silence. Its executors can be called from several threads at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dnnsep.problem import Problem
from dnnsep.weights import Weights

if TYPE_CHECKING:
    from dnnsep.backends.executor import Executor


@dataclass(frozen=True)
class Verdict:
    """A yes or a no that never comes without its reason."""

    ok: bool
    reason: str

    def __bool__(self) -> bool:
        return self.ok


def unquantized_verdict(problem: Problem, engine: str) -> Verdict:
    """Returns no for a quantised problem, which this backend has no way to give to an engine."""
    if problem.precision.quantized:
        return Verdict(False, f"{engine} is given no quantised problems here ({problem.dtype})")
    return Verdict(True, "")


class Backend(Protocol):
    """An engine that runs problems."""

    @property
    def name(self) -> str:
        """The backend's name, with the options that make it differ from its defaults."""

    def available(self) -> Verdict:
        """Returns whether this machine and environment can run the backend, by looking only: it
        imports nothing."""

    def supports(self, problem: Problem) -> Verdict:
        """Returns whether the backend can run the problem. Imports the framework."""

    def prepare(self, problem: Problem, weights: Weights) -> Executor:
        """Returns the problem made ready to run, its weights packed.

        Raises ValueError with the reason if the problem is not supported, or naming the array of
        weights that does not fit it.
        """
