"""The command that quantises a model and tells what that costs it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dnnsep.cli.common import AsJson, bad_input, console
from dnnsep.cli.model import Input, Name, load_model

if TYPE_CHECKING:
    from torch import Tensor, fx, nn

    from dnnsep.models.agreement import Agreement

# Less than this share of equal results is a failure.
_LEAST_SHARE = 0.99
# Which models are compared, the right one first: the model, the quantised one, that optimized.
_PAIRS = {
    "optimized int8 and the quantised model": (1, 2),
    "the quantised model and the model": (0, 1),
    "optimized int8 and the model": (0, 2),
}


def quantize(
    name: Name,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Inputs as .npy, (inputs, channels, height, width), f32. [default: normally "
            "distributed ones]"
        ),
    ] = None,
    calibrate: Annotated[int, typer.Option(min=1, help="The first so many calibrate.")] = 8,
    compare: Annotated[int, typer.Option(min=1, help="On the next so many.")] = 500,
    keep: Annotated[
        list[str] | None, typer.Option(help="A module whose layers stay in f32; several.")
    ] = None,
    input_shape: Input = None,
    as_json: AsJson = False,
) -> None:
    """Quantise a model: what each layer loses, and how often results agree.

    Exits with 1 where the model as it is optimized gives another top-1 than the quantised one on
    more than 1 % of the inputs. Models by timm's names have random weights here, which have no
    accuracy to lose: give a factory that loads yours.
    """
    from dnnsep.graph.quantize import quantization_report

    model, x = load_model(name, input_shape)
    count = calibrate + compare
    inputs = _random(x, count) if data is None else _of_file(data, x, calibrate, count)
    quantized, optimized = _made(model, list(islice(inputs, calibrate)), keep or [])
    with console(True).status("") as status:
        found = _compared(
            [model, quantized, optimized],
            _counted(inputs, lambda n: status.update(f"compare on input {n} of {compare}")),
        )
    report = quantization_report(quantized)
    if as_json:
        agreements = {pair: asdict(one) for pair, one in found.items()}
        typer.echo(
            json.dumps({"model": name, **asdict(report), "agreements": agreements}, indent=1)
        )
    else:
        typer.echo(str(report))
        for pair, one in found.items():
            typer.echo(f"{pair}: {one}")
    if next(iter(found.values())).share < _LEAST_SHARE:
        raise typer.Exit(1)


def _random(like: Tensor, count: int) -> Iterator[Tensor]:
    """Yields so many inputs of the model's shape."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield torch.randn(like.shape, generator=generator)


def _of_file(path: Path, like: Tensor, calibrate: int, most: int) -> Iterator[Tensor]:
    """Yields the inputs of a file, each shaped as the model's but for its batch of 1. Exits as for
    bad input, also where none is left beside those that ``calibrate``."""
    import numpy as np
    import torch

    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        bad_input(f"--data {path}: {error.strerror}")
    except ValueError as error:
        bad_input(f"--data {path}: {error}")
    wanted = tuple(like.shape[1:])
    sizes = ", ".join(map(str, wanted))
    if values.shape[1:] != wanted or values.dtype != np.float32:
        bad_input(f"--data {path}: is {values.dtype} {values.shape}, must be float32 (N, {sizes})")
    if len(values) <= calibrate:
        bad_input(f"--data {path}: has {len(values)} inputs, and {calibrate} are to calibrate")
    for n in range(min(most, len(values))):
        yield torch.from_numpy(np.array(values[n : n + 1]))


def _counted(inputs: Iterator[Tensor], show: Callable[[int], None]) -> Iterator[Tensor]:
    for number, x in enumerate(inputs, 1):
        show(number)
        yield x


def _finite(told: Any) -> Any:
    """Returns what JSON can hold: a text for infinity."""
    if isinstance(told, dict):
        return {key: _finite(value) for key, value in told.items()}
    if isinstance(told, list | tuple):
        return [_finite(value) for value in told]
    return str(told) if isinstance(told, float) and not isfinite(told) else told


def _made(
    model: nn.Module, batches: list[Tensor], keep: list[str]
) -> tuple[fx.GraphModule, nn.Module]:
    """Returns the model quantised, and that optimized. Exits as for bad input."""
    from dnnsep.graph.optimize import optimize
    from dnnsep.graph.quantize import quantize as quantized_of

    with console(True).status("calibrate") as status:
        try:
            quantized = quantized_of(model, batches, keep=keep)
            status.update("optimize")
            return quantized, optimize(quantized, batches[0])
        except (ImportError, ValueError) as error:
            bad_input(str(error))


def _compared(
    models: Sequence[Callable[[Tensor], Any]], inputs: Iterator[Tensor]
) -> dict[str, Agreement]:
    """Returns how models agree, by what is compared. Exits as for bad input."""
    from dnnsep.models.agreement import agreements

    try:
        return dict(zip(_PAIRS, agreements(models, list(_PAIRS.values()), inputs), strict=True))
    except ValueError as error:
        bad_input(error)
