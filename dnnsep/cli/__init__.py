"""The command line. Exit codes: 0 fine, 1 a check failed, 2 bad usage or input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from dnnsep.cli.ab import ab
from dnnsep.cli.fleet import fleet
from dnnsep.cli.history import history
from dnnsep.cli.look import backends, cost, explain, machine
from dnnsep.cli.model import bench_model, extract, model
from dnnsep.cli.quantize import quantize
from dnnsep.cli.read import compare, export, report
from dnnsep.cli.sweep import sweep
from dnnsep.cli.tune import tune

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

_EXAMPLES: dict[Callable[..., None], str] = {
    sweep: "dnnsep sweep configs/quickstart.yaml --backend ipex -o r.json",
    compare: "dnnsep compare base.json new.json --threshold 5 --fail-on slower",
    ab: "dnnsep ab configs/models/mobilenet_v1.yaml --base ../dnnsep-main --new .",
    report: "dnnsep report r.json -o report.html",
    export: "dnnsep export r.json --to csv --samples",
    history: "dnnsep history nightly/ -o history.html --fail-on slower",
    explain: "dnnsep explain mb1ic64oc128ih112kh3sh1ph1 --backend ipex",
    cost: "dnnsep cost mb1ic3oc64ih228kh5sh2",
    tune: "dnnsep tune configs/models/mobilenet_v1.yaml --threads 2",
    model: "dnnsep model mobilenetv2_100 --input 1,3,224,224",
    extract: "dnnsep extract timm:efficientnet_b0 -o shapes.yaml",
    bench_model: "dnnsep bench-model mobilenetv2_100 --dtype f32 --dtype bf16 --batch 1 --batch 16",
    quantize: "dnnsep quantize my_model.py:trained --data images.npy --keep head",
    fleet: "dnnsep fleet 10.0.0.1:6379",
    machine: "dnnsep machine --threads 1 --threads 2",
    backends: "dnnsep backends --json",
}
for _command, _example in _EXAMPLES.items():
    app.command(epilog=f"Example: `{_example}`")(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        import dnnsep

        typer.echo(dnnsep.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="And exit.")
    ] = False,
) -> None:
    """Depthwise-separable convolution on x86 CPUs through oneDNN: measure, explain, count."""


def main() -> None:
    """The entry point."""
    app()
