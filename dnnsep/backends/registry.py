"""The engines that run problems, by name.

A backend's text form is its name, with its options where they differ from the defaults:
``ipex``, ``ipex:pointwise=conv1x1``. ``get_backend(backend.name) == backend``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dnnsep.backends.auto import AutoBackend
from dnnsep.backends.base import Backend
from dnnsep.backends.eager import EagerBackend
from dnnsep.backends.fused import FusedBackend
from dnnsep.backends.ipex import IpexBackend
from dnnsep.backends.onednn import OneDNNBackend
from dnnsep.backends.peers.inductor import InductorBackend
from dnnsep.backends.peers.ipex_trace import IpexTraceBackend
from dnnsep.backends.peers.ncnn import NcnnBackend
from dnnsep.backends.peers.onnxruntime import OnnxRuntimeBackend
from dnnsep.backends.peers.openvino import OpenVinoBackend
from dnnsep.backends.peers.xnnpack import XnnpackBackend
from dnnsep.backends.reference import ReferenceBackend

BACKENDS: dict[str, Callable[..., Backend]] = {
    "ipex": IpexBackend,
    "onednn": OneDNNBackend,
    "eager": EagerBackend,
    "fused": FusedBackend,
    "auto": AutoBackend,
    "reference": ReferenceBackend,
    "openvino": OpenVinoBackend,
    "onnxruntime": OnnxRuntimeBackend,
    "xnnpack": XnnpackBackend,
    "inductor": InductorBackend,
    "ipex-trace": IpexTraceBackend,
    "ncnn": NcnnBackend,
}

# The engines a user could pick instead, to be measured beside ours.
PEERS = ("openvino", "onnxruntime", "xnnpack", "inductor", "ipex-trace", "ncnn")

# The fields of a backend's dataclass that a user may set.
_OPTIONS: dict[str, tuple[str, ...]] = {"ipex": ("pointwise",)}


def get_backend(text: str, **options: Any) -> Backend:
    """Returns the backend of a text form such as ``ipex:pointwise=conv1x1``.

    Raises ValueError naming the backend, the option and the rule.
    """
    name, _, rest = text.partition(":")
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r}: must be one of {', '.join(BACKENDS)}")
    for item in filter(None, rest.split(",")):
        key, _, value = item.partition("=")
        options[key] = value
    for key in options:
        if key not in _OPTIONS.get(name, ()):
            known = ", ".join(_OPTIONS.get(name, ())) or "none"
            raise ValueError(f"backend {name!r}: unknown option {key!r} (it has: {known})")
    try:
        return BACKENDS[name](**options)
    except ValueError as error:
        raise ValueError(f"backend {name!r}: {error}") from None
