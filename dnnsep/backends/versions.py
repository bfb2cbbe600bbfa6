"""Whether the frameworks that backends need are there, without importing any of them."""

from __future__ import annotations

import platform

from dnnsep.backends.base import Verdict
from dnnsep.host.packages import installed_version, minor_version


def torch_verdict() -> Verdict:
    """Returns whether torch is there and recent enough."""
    found = installed_version("torch")
    if found is None:
        return Verdict(False, "torch is not installed")
    if minor_version(found) < (2, 8):
        return Verdict(False, f"torch {found} is installed, 2.8 or later is needed")
    return Verdict(True, f"torch {found}")


def x86_verdict() -> Verdict:
    """Returns whether this is an x86-64 CPU, which the oneDNN backends are written for."""
    machine = platform.machine().lower()
    return Verdict(machine in ("x86_64", "amd64"), f"{machine} CPU; an x86-64 one is needed")


def ipex_verdict() -> Verdict:
    """Returns whether IPEX is there and was built for the torch that is there.

    With another torch its import raises or ends the process, so the versions decide beforehand.
    """
    torch_ok = torch_verdict()
    if not torch_ok:
        return torch_ok
    found = installed_version("intel-extension-for-pytorch")
    if found is None:
        return Verdict(False, "intel-extension-for-pytorch is not installed (extra: ipex)")
    torch_version = installed_version("torch")
    assert torch_version is not None
    if minor_version(found) != minor_version(torch_version):
        return Verdict(
            False,
            f"intel-extension-for-pytorch {found} needs torch "
            f"{'.'.join(map(str, minor_version(found)))}.*, torch {torch_version} is installed",
        )
    return Verdict(True, f"intel-extension-for-pytorch {found} on torch {torch_version}")
