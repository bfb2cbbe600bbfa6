"""A whole network as production calls it: beside other work, on changing sizes, by many callers.

python perf/production.py neighbours --model mobilenetv2_100
python perf/production.py sizes --model mobilenetv2_100 --engine dnnsep
python perf/production.py callers --model mobilenetv2_100 --callers 8

Each engine runs in a process of its own, one after the other. Needs the extras peers and models.
"""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from statistics import median
from typing import Annotated, Any

import psutil
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True)
ENGINES = ("dnnsep", "eager", "openvino", "onnxruntime")
COMPILED = ("dnnsep", "inductor", "openvino", "onnxruntime")
# Seconds that one engine is called for, and calls, at most.
_SECONDS, _CALLS = 15.0, 200

Model = Annotated[list[str], typer.Option("--model", help="timm's names")]
Engine = Annotated[list[str], typer.Option("--engine", help="engines to run")]
Threads = Annotated[int, typer.Option(help="threads of each engine")]


@app.command()
def neighbours(
    model: Model,
    engine: Engine = list(ENGINES),  # noqa: B006
    loops: Annotated[list[int], typer.Option(help="busy loops beside it")] = [0, 1, 2],  # noqa: B006
    threads: Threads = 2,
) -> None:
    """Median and 99th percentile of a call beside busy loops on the same CPUs, in ms."""
    table = Table("model", "engine", *(f"{n} loops: median, p99" for n in loops))
    for name in model:
        for one in engine:
            cells = []
            for count in loops:
                found = _in_own_process("beside", name, one, threads, count)
                cells.append(f"{found['median']:.2f}, {found['p99']:.2f}")
            table.add_row(name, one, *cells)
    Console().print(table)


@app.command()
def callers(
    model: Model,
    engine: Engine = list(ENGINES),  # noqa: B006
    callers: Annotated[int, typer.Option(help="threads that call the model")] = 8,
    threads: Threads = 2,
) -> None:
    """Calls a second and the 99th percentile of a call, in ms, of one caller and of several."""
    table = Table("model", "engine", "callers", "calls/s", "p99 ms", "same to the bit")
    for name in model:
        for one in engine:
            for count in (1, callers):
                found = _in_own_process("called", name, one, threads, count)
                same = "yes" if found["same"] else "no"
                rate, p99 = f"{found['rate']:.1f}", f"{found['p99']:.1f}"
                table.add_row(name, one, str(count), rate, p99, same)
    Console().print(table)


@app.command()
def sizes(
    model: Model,
    engine: Engine = list(COMPILED),  # noqa: B006
    count: Annotated[int, typer.Option(help="sizes, in random order")] = 40,
    threads: Threads = 2,
) -> None:
    """First calls of sizes (1 to 8 images of 96 to 320 pixels a side) against later ones."""
    table = Table(
        *("model", "engine", "first/median", "worst", "more ms, worst", "MiB, first", "MiB, last"),
        "median ms, all",
    )
    for name in model:
        for one in engine:
            rows = _in_own_process("sized", name, one, threads, count)["rows"]
            ratios = [first / later for first, later, _ in rows]
            more = max(first - later for first, later, _ in rows)
            table.add_row(
                *(name, one, f"{median(ratios):.2f}", f"{max(ratios):.2f}", f"{more:.1f}"),
                *(f"{rows[0][2]:.0f}", f"{rows[-1][2]:.0f}"),
                f"{sum(later for _, later, _ in rows):.0f}",
            )
    Console().print(table)


def _in_own_process(what: str, *arguments: Any) -> Any:
    command = [sys.executable, __file__, "run", what, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [*done.stderr.splitlines(), "failed"]
        raise typer.BadParameter(
            f"{' '.join(map(str, arguments))}: {lines[-2 if done.stderr else 0]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


@app.command(hidden=True)
def run(what: str, name: str, engine: str, threads: int, number: int) -> None:
    """Measures one engine and prints what was found as JSON."""
    import timm

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    plain = timm.create_model(name).eval()
    with torch.no_grad():
        call = _ready(plain, engine, threads)
        found = {"beside": _beside, "called": _called, "sized": _sized}[what](call, number)
    typer.echo(json.dumps(found))


def _ready(model: nn.Module, engine: str, threads: int) -> Callable[[Tensor], Any]:
    """Returns a model on an engine, for any number and size of images."""
    x = torch.randn(1, 3, 224, 224)
    if engine == "dnnsep":
        import dnnsep

        return dnnsep.optimize(model, x, inplace=True)
    if engine == "eager":
        return model
    if engine == "inductor":
        compiled: Callable[[Tensor], Any] = torch.compile(model, dynamic=True)
        return compiled
    if engine == "openvino":
        import openvino as ov

        converted = ov.convert_model(model, example_input=x)
        converted.reshape([-1, 3, -1, -1])
        # It takes bf16 by itself on CPUs that have it.
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
        }
        whole = ov.compile_model(converted, "CPU", options)
        own = threading.local()

        def infer(images: Tensor) -> Any:
            if not hasattr(own, "request"):
                own.request = whole.create_infer_request()
            return own.request.infer([images.numpy()])[0].copy()

        return infer
    if engine == "onnxruntime":
        import onnxruntime as ort

        file: Any = io.BytesIO()
        axes = {"x": {0: "n", 2: "h", 3: "w"}, "y": {0: "n"}}
        names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"]}
        torch.onnx.export(model, (x,), file, **names, dynamic_axes=axes, dynamo=False)
        chosen = ort.SessionOptions()
        chosen.intra_op_num_threads = threads
        session = ort.InferenceSession(file.getvalue(), chosen, ["CPUExecutionProvider"])
        return lambda images: session.run(None, {"x": images.numpy()})[0]
    raise typer.BadParameter(
        f"engine {engine!r}: must be one of {', '.join((*ENGINES, 'inductor'))}"
    )


def _beside(call: Callable[[Tensor], Any], loops: int) -> dict[str, float]:
    x = torch.randn(1, 3, 224, 224)
    for _ in range(20):
        call(x)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        time.sleep(1)
        seconds: list[float] = []
        while len(seconds) < _CALLS and sum(seconds) < _SECONDS:
            start = time.perf_counter()
            call(x)
            seconds.append(time.perf_counter() - start)
    finally:
        for process in busy:
            process.kill()
    return {"median": median(seconds) * 1e3, "p99": _p99(seconds)}


def _called(call: Callable[[Tensor], Any], callers: int) -> dict[str, Any]:
    x = torch.randn(1, 3, 224, 224)
    expected = torch.as_tensor(call(x)).clone()
    for _ in range(20):
        call(x)
    lock, seconds, same = threading.Lock(), list[float](), [True]
    start = time.perf_counter()
    end = start + _SECONDS / 3

    def work() -> None:
        own: list[float] = []
        with torch.no_grad():
            while (before := time.perf_counter()) < end:
                y = call(x)
                own.append(time.perf_counter() - before)
                same[0] = same[0] and torch.equal(torch.as_tensor(y), expected)
        with lock:
            seconds.extend(own)

    threads = [threading.Thread(target=work) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = len(seconds) / (time.perf_counter() - start)
    return {"rate": rate, "p99": _p99(seconds), "same": same[0]}


def _sized(call: Callable[[Tensor], Any], count: int) -> dict[str, Any]:
    draw, rows = random.Random(0), []
    call(torch.randn(8, 3, 320, 320))
    for _ in range(count):
        x = torch.randn(draw.randint(1, 8), 3, draw.randint(96, 320), draw.randint(96, 320))
        seconds = []
        for _ in range(8):
            start = time.perf_counter()
            call(x)
            seconds.append((time.perf_counter() - start) * 1e3)
        memory = psutil.Process().memory_info().rss / 2**20
        rows.append((seconds[0], median(seconds[1:]), memory))
    return {"rows": rows}


def _p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(0.99 * len(seconds))] * 1e3


if __name__ == "__main__":
    app()
