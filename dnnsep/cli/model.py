"""Commands for whole models: their layers, their separable problems, their speed."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dnnsep.cli.common import MOST_THREADS, AsJson, Dtype, bad_input, console
from dnnsep.cli.measure import (
    Memory,
    Output,
    Precision,
    Resume,
    Seconds,
    Shown,
    Visits,
    measure,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dnnsep.graph.report import Report
    from dnnsep.models.layers import LayerCost
    from dnnsep.sweep.case import ModelCase

Name = Annotated[
    str, typer.Argument(help="timm's or torchvision's name, or path.py:factory.", metavar="NAME")
]
# A model's input of 1 GiB.
_MOST_VALUES = 1 << 28

Input = Annotated[
    str | None, typer.Option("--input", help="The input's shape. [default: the model's own]")
]


def model(name: Name, input_shape: Input = None, as_json: AsJson = False) -> None:
    """A model's layers with parameters, multiply-adds and FLOPs, and what optimize would do."""
    from dnnsep.report import model as shown

    network, x = load_model(name, input_shape)
    try:
        found = _layers(name, network, x)
    except ValueError as error:
        bad_input(error)
    report = _optimized(network, x)
    if as_json:
        typer.echo(json.dumps(shown.as_dict(name, tuple(x.shape), found, report), indent=1))
        return
    console().print(shown.as_table(name, tuple(x.shape), found))
    typer.echo(str(report))


def extract(
    name: Name,
    output: Annotated[Path, typer.Option("-o", "--output", help="The YAML file to write.")],
    input_shape: Input = None,
) -> None:
    """Write a model's separable layers as a sweep file."""
    import yaml

    from dnnsep.host.inputs import exists

    network, x = load_model(name, input_shape)
    if exists(output):
        bad_input(f"{output}: exists; choose another name")
    found: dict[str, list[str]] = {}
    for entry in _optimized(network, x).entries:
        if entry.kind == "separable":
            found.setdefault(str(entry.problem), []).append(entry.layers[0])
    if not found:
        typer.echo(f"{name}: has no separable layers", err=True)
        raise typer.Exit(1)
    problems = [
        {"name": layers[0] + (f" x{len(layers)}" if len(layers) > 1 else ""), "shape": shape}
        for shape, layers in found.items()
    ]
    content = {"title": f"{name}, input {'x'.join(map(str, x.shape))}", "problems": problems}
    try:
        output.write_text(yaml.safe_dump(content, sort_keys=False, width=100), encoding="utf-8")
    except OSError as error:
        bad_input(f"{output}: {error.strerror}")
    count = sum(map(len, found.values()))
    typer.echo(f"{output}: {len(found)} problems of {count} separable layers")


def load_model(name: str, input_shape: str | None) -> tuple[nn.Module, Tensor]:
    """Returns a model and an input of a shape, as ``1,3,224,224``. Exits as for bad input."""
    from dnnsep.models.zoo import load

    try:
        return load(name, _shape_of(input_shape))
    except ValueError as error:
        bad_input(error)


def _layers(name: str, network: nn.Module, x: Tensor) -> list[LayerCost]:
    """The model's layers. Raises ValueError where its own code fails on such an input."""
    from dnnsep.models.layers import layers

    try:
        return layers(network, x)
    except Exception as error:  # the model's own code
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"model {name!r} fails on an input of {list(x.shape)}: {reason}") from None


def _shape_of(text: str | None) -> tuple[int, ...] | None:
    """Of ``1,3,224,224``. Exits as for bad input."""
    if text is None:
        return None
    try:
        sizes = tuple(int(size) for size in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        bad_input(f"--input {text!r}: must be whole numbers of at least 1, as in 1,3,224,224")
    if math.prod(sizes) > _MOST_VALUES:
        bad_input(f"--input {text!r}: has more than {_MOST_VALUES} values")
    return sizes


def _optimized(network: nn.Module, x: Tensor) -> Report:
    from dnnsep.graph.optimize import optimize, report_of

    try:
        return report_of(optimize(network, x))
    except ValueError as error:
        bad_input(error)


def model_cases(
    names: Sequence[str],
    input_shape: str | None,
    threads: Sequence[int],
    engines: tuple[str, ...],
    batches: Sequence[int] = (),
    dtypes: Sequence[Dtype] = (),
) -> list[ModelCase]:
    """Each model on each number of threads, in each batch and dtype: the input's own, and f32.

    Names the models on stderr that do not load or do not run on such an input, and leaves them out;
    exits as for bad input where none remains.
    """
    from dnnsep.sweep.case import ModelCase

    cases: list[ModelCase] = []
    left_out: list[str] = []
    shape = _shape_of(input_shape)
    with console(True).status("") as status:
        for name in names:
            status.update(f"load {name}")
            try:
                flops = _flops(name, shape, batches)
            except ValueError as error:
                left_out.append(str(error))
                continue
            cases += [
                ModelCase(
                    _named(name, images[0]), images, flops[images], count, engines, dtype.value
                )
                for images in flops
                for dtype in dtypes or [Dtype.f32]
                for count in threads
            ]
    if not cases:
        bad_input("; ".join(left_out))
    for reason in left_out:
        typer.echo(f"left out: {reason}", err=True)
    return list(dict.fromkeys(cases))


def _named(name: str, batch: int) -> str:
    """Returns a block's descriptor as sweeps write it; any other name as it is."""
    from dnnsep.block import Block, is_block

    return str(dataclasses.replace(Block.parse(name), batch=batch)) if is_block(name) else name


def _flops(
    name: str, input_shape: tuple[int, ...] | None, batches: Sequence[int]
) -> dict[tuple[int, ...], int]:
    """A model's FLOPs by its input's shape, in each batch. Raises ValueError naming the model."""
    from dnnsep.models.zoo import load

    network, x = load(name, input_shape)
    shapes = [(batch, *x.shape[1:]) for batch in batches or [len(x)]]
    found = {}
    for shape in shapes:
        images = x[:1].expand(shape)
        found[shape] = sum(layer.flops for layer in _layers(name, network, images))
    return found


def bench_model(
    names: Annotated[
        list[str],
        typer.Argument(
            help="As for dnnsep model, or YAML files that list them under models, shipped ones by "
            "name (networks/families); several.",
            metavar="NAME…",
        ),
    ],
    against: Annotated[
        str, typer.Option(help="Engines, separated by commas.")
    ] = "eager,ipex-trace,inductor,openvino,onnxruntime",
    input_shape: Input = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, max=MOST_THREADS, help="[default: the physical cores]"),
    ] = None,
    dtype: Annotated[
        list[Dtype] | None, typer.Option(help="What the whole model runs in. [default: f32]")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Instead of the input's.")] = None,
    output: Output = None,
    shown: Shown = "table",
    seconds: Seconds = 2.0,
    precision: Precision = 1.0,
    visits: Visits = 1,
    allocator: Memory = "keep",
    resume: Resume = False,
) -> None:
    """Measure whole models through optimize and on other engines, in turns, as a sweep does."""
    from dnnsep.host.machine import default_threads
    from dnnsep.models.engines import ENGINES
    from dnnsep.models.names import model_names
    from dnnsep.sweep.node import Effort

    try:
        models = model_names(names)
    except ValueError as error:
        bad_input(error)
    engines = ("dnnsep", *dict.fromkeys(e for e in against.split(",") if e not in ("", "dnnsep")))
    for engine in engines:
        if engine not in ENGINES:
            bad_input(f"--against {engine!r}: must be one of {', '.join(ENGINES)}")
    counts = threads or [default_threads()]
    cases = model_cases(models, input_shape, counts, engines, batch or (), dtype or ())
    settings = {"models": models, "engines": list(engines)}
    effort = Effort(seconds, precision / 100, visits)
    measure(cases, "models", settings, effort, allocator, output, resume, shown, with_roofs=False)
