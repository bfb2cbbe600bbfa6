"""Layers and networks in processes that were started after they ran: forked, spawned, or by a fork
server, and in DataLoader's workers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import dnnsep
from dnnsep import SeparableConv2d

_SECONDS = 60


class Images(Dataset[Tensor]):
    """Images that a layer has already run on, in whichever process asks for them."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            result: Tensor = self.layer(_image(index))[0]
        return result


def _image(seed: int) -> Tensor:
    return torch.randn(1, 16, 20, 20, generator=torch.Generator().manual_seed(seed))


def _layer() -> nn.Module:
    torch.manual_seed(0)
    return SeparableConv2d(16, 32, 3, padding=1, backend="fused").eval()


def _network() -> nn.Module:
    torch.manual_seed(0)
    parts = nn.Sequential(nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1)).eval()
    return dnnsep.optimize(parts, _image(0), tune=False)


@pytest.fixture(params=[_layer, _network])
def made(request: pytest.FixtureRequest) -> Iterator[tuple[Any, list[Tensor]]]:
    """What makes a module, and what it gives for two images by two threads in this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    module = request.param()
    with torch.no_grad():
        results = [module(_image(n)) for n in range(2)]
    yield (request.param, module), results
    torch.set_num_threads(before)


def _run(module: Any, make: Any, answers: Any) -> None:
    module = module if module is not None else make()
    with torch.no_grad():
        answers.send([module(_image(n)).contiguous().numpy() for n in range(2)])
    answers.close()


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_another_process_gives_the_same(made: Any, start: str) -> None:
    (make, module), expected = made
    context: Any = multiprocessing.get_context(start)
    answers, answering = context.Pipe(duplex=False)
    # Only a forked process has the module as it is here, with the threads that it ran by.
    given = module if start == "fork" else None
    process = context.Process(target=_run, args=(given, make, answering))
    process.start()
    try:
        assert answers.poll(_SECONDS), f"no answer of a process started by {start}"
        found = answers.recv()
    finally:
        process.kill()
        process.join()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(torch.from_numpy(one), other)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_data_loader(made: Any, start: str) -> None:
    (_, module), expected = made
    loader = DataLoader(
        Images(module),
        batch_size=1,
        num_workers=2,
        multiprocessing_context=start,
        timeout=_SECONDS,
    )
    found = list(loader)
    for one, other in zip(found[:2], expected, strict=True):
        assert torch.equal(one, other)


def test_the_number_of_threads_is_the_callers(made: Any) -> None:
    (_, module), expected = made
    torch.set_num_threads(1)
    with torch.no_grad():
        assert torch.equal(module(_image(1)), expected[1])
