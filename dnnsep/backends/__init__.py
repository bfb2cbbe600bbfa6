"""The engines that run problems: ours, the frameworks', and the peers they are measured against."""

from __future__ import annotations

from dnnsep.backends.base import Backend, Verdict
from dnnsep.backends.registry import BACKENDS, PEERS, get_backend

__all__ = ["BACKENDS", "PEERS", "Backend", "Verdict", "get_backend"]
