"""Captures oneDNN's own log of what ran in a block of code, and parses it.

The log proves what ran: it names each primitive, its implementation and its memory formats. oneDNN
prints it to the C library's stdout (file descriptor 1); torch and IPEX hold a copy of oneDNN each,
and both can be told to log at run time.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dnnsep.host.turns import slowed


@dataclass(frozen=True)
class Primitive:
    """One line of oneDNN's log: a primitive that was executed.

    ``memory`` maps src, wei, bia and dst to data type and memory format tag, e.g.
    ``f32:debcA16a``. ``problem`` is oneDNN's own descriptor. ``milliseconds`` is oneDNN's timing.
    """

    kind: str
    impl: str
    memory: dict[str, str]
    post_ops: str
    problem: str
    milliseconds: float

    @property
    def weights_dims(self) -> tuple[int, ...]:
        """Returns the dimensions that oneDNN's descriptor gives the weights; empty for other kinds.

        They are (oc, ic, kh, kw) of a convolution, (groups, oc, ic, kh, kw) of a grouped one,
        (oc, ic) of an inner product, and the second factor's of a matmul.
        """
        if self.kind == "convolution":
            size = {k: int(v) for k, v in re.findall(r"([a-z]+)(\d+)", self.problem)}
            filters = (size["kh"], size["kw"])
            if "g" in size:
                groups = size["g"]
                return (groups, size["oc"] // groups, size["ic"] // groups, *filters)
            return (size["oc"], size["ic"], *filters)
        if self.kind == "matmul":
            return tuple(map(int, self.problem.split(":")[1].split("x")))
        if self.kind == "inner_product":
            size = {k: int(v) for k, v in re.findall(r"([a-z]+)(\d+)", self.problem)}
            return (size["oc"], size["ic"])
        return ()

    @classmethod
    def parse(cls, line: str) -> Primitive | None:
        """Returns the primitive of an ``exec`` line of a log (format v1), None for other lines."""
        fields = line.strip().split(",")
        if len(fields) != 13 or fields[:4] != ["onednn_verbose", "v1", "primitive", "exec"]:
            return None
        kind, impl, memory, attributes, problem, time = (
            fields[5],
            fields[6],
            fields[8],
            fields[9],
            fields[11],
            fields[12],
        )
        return cls(
            kind=kind,
            impl=impl,
            memory=dict(_memory_descriptors(memory)),
            post_ops=" ".join(re.findall(r"attr-post-ops:(\S+)", attributes)),
            problem=problem,
            milliseconds=float(time),
        )


def _memory_descriptors(text: str) -> Iterator[tuple[str, str]]:
    """Yields ("wei", "f32:debcA16a") for each ``wei:f32:a:blocked:debcA16a::f0``."""
    for descriptor in text.split():
        fields = descriptor.split(":")
        if len(fields) >= 5 and fields[1] != "undef":
            yield fields[0], f"{fields[1]}:{fields[4]}"


@dataclass
class Log:
    """The lines that a block made oneDNN print; they are there when the block has ended."""

    lines: list[str]

    @property
    def primitives(self) -> list[Primitive]:
        """Returns the primitives that ran, in order."""
        return [p for p in map(Primitive.parse, self.lines) if p is not None]

    @property
    def versions(self) -> list[str]:
        """Returns oneDNN's versions if this block was the first of the process that used oneDNN."""
        return [line.split(",")[3] for line in self.lines if ",info,oneDNN v" in line]

    @property
    def isa(self) -> str | None:
        """Returns the instruction set that oneDNN uses, if this block was the first to use it."""
        names = [line.split(",isa:")[1] for line in self.lines if ",info,cpu,isa:" in line]
        return names[-1].strip() if names else None


@contextmanager
def onednn_log() -> Iterator[Log]:
    """Captures the log of the block, and all else that is written to file descriptor 1.

    A framework that is imported within the block does not log: import it before. The backend auto
    compares no engines within the block, since writing the log takes time.
    """
    log = Log([])
    sys.stdout.flush()
    _flush_c_streams()
    saved = os.dup(1)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        _set_verbose(1)
        try:
            with slowed():
                yield log
        finally:
            _set_verbose(0)
            _flush_c_streams()
            os.dup2(saved, 1)
            os.close(saved)
            file.seek(0)
            log.lines.extend(file.read().decode(errors="replace").splitlines())


def _set_verbose(level: int) -> None:
    """Sets how much oneDNN logs, in torch's copy and in IPEX's, where they are imported."""
    if "torch" in sys.modules:
        import torch

        torch._C._verbose.mkldnn_set_verbose(level)
    if "intel_extension_for_pytorch" in sys.modules:
        from intel_extension_for_pytorch import _C

        _C.mkldnn_set_verbose(level)


def _flush_c_streams() -> None:
    ctypes.CDLL(None).fflush(None)
