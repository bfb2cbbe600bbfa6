"""The backends under test, and what every test of them needs.

``DNNSEP_TEST_BACKENDS`` names them, separated by ``,``. A backend that is named and not available
fails its tests: nothing is skipped for a missing dependency.
"""

from __future__ import annotations

import os
import tempfile

import pytest

from dnnsep import Backend, get_backend
from dnnsep.codegen import tuner
from dnnsep.host import cachefiles

# The tests' own, and their subprocesses': what a user has kept changes nothing.
os.environ[cachefiles.VARIABLE] = tempfile.mkdtemp(prefix="dnnsep-test-cache-")

# Plans are the model's, whatever the machine does meanwhile; tests of measuring switch it on.
os.environ[tuner.VARIABLE] = "0"

_ALL = "ipex,ipex:pointwise=inner_product,ipex:pointwise=conv1x1,onednn,eager,fused"

BACKENDS_UNDER_TEST = os.environ.get("DNNSEP_TEST_BACKENDS", _ALL).split(",")
HAS_IPEX = "ipex" in BACKENDS_UNDER_TEST


@pytest.fixture(params=BACKENDS_UNDER_TEST)
def backend(request: pytest.FixtureRequest) -> Backend:
    return _there(request.param)


@pytest.fixture(params=[name for name in BACKENDS_UNDER_TEST if name != "fused"])
def onednn_backend(request: pytest.FixtureRequest) -> Backend:
    """One that runs oneDNN's primitives."""
    return _there(request.param)


def _there(name: str) -> Backend:
    found = get_backend(name)
    verdict = found.available()
    assert verdict, verdict.reason
    return found
