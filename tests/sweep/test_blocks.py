"""Blocks in sweep files, and a small sweep of one."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from dnnsep.block import Block
from dnnsep.measure.roofs import MemoryLevel, Roofs
from dnnsep.report.commands import commands
from dnnsep.report.compact import labels_of
from dnnsep.sweep.case import BlockCase, why_not
from dnnsep.sweep.config import ConfigError, Overrides, Sweep, load_sweep
from dnnsep.sweep.results import Results, block_of, parse_model
from tests.test_cli import _dnnsep

_BLOCK = "mbconv_mb1ic8ex24oc8ih9kh3sh1_act:relu6"


def _load(tmp_path: Path, text: str, overrides: Overrides | None = None) -> Sweep:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return load_sweep([str(path)], overrides or Overrides(), 2)


def test_a_file_with_layers_and_blocks(tmp_path: Path) -> None:
    sweep = _load(
        tmp_path,
        f"""
title: both
problems:
  - {{name: a, shape: "{_BLOCK}"}}
  - mb1ic8oc8ih9kh3ph1
backends: [eager, {{dnnsep: {{cascades: no}}}}, "dnnsep", peers, xnnpack]
dtypes: [f32, bf16]
batch: [1, 4]
""",
    )
    assert [str(case.problem) for case in sweep.cases][-1] == "mb4ic8oc8ih9kh3sh1ph1_bf16"
    four = _BLOCK.replace("mb1", "mb4")
    assert [case.problem for case in sweep.blocks] == [
        f"{_BLOCK} 1x8x9x9",
        f"{four} 4x8x9x9",
        f"{_BLOCK} bf16 1x8x9x9",
        f"{four} bf16 4x8x9x9",
    ]
    assert {case.name for case in sweep.blocks} == {"a"}
    assert sweep.blocks[0].backends == (
        *("eager", "dnnsep:cascades=no", "dnnsep", "openvino", "onnxruntime", "inductor"),
        *("ipex-trace", "xnnpack"),
    )
    assert "ncnn" in sweep.cases[0].backends
    assert sweep.all_cases == [*sweep.cases, *sweep.blocks]


def test_a_blocks_descriptor_in_place_of_a_file() -> None:
    sweep = load_sweep([f"{_BLOCK}_int8"], Overrides(), 2)
    assert not sweep.cases
    (case,) = sweep.blocks
    assert case.problem == f"{_BLOCK} int8 1x8x9x9"
    assert case.backends == ("eager", "dnnsep:cascades=no", "dnnsep")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (
            "title: t\nproblems:\n  - mbconv_mb1ic8oc8ih9kh3\n",
            "sweep.yaml:3: problems[0].shape: descriptor 'mbconv_mb1ic8oc8ih9kh3': ex: missing",
        ),
        (
            f"title: t\nproblems: [{_BLOCK!r}]\ndtypes: [u8s8]\n",
            f"sweep.yaml: dtype u8s8: {_BLOCK} is a block, which runs in f32, bf16, int8",
        ),
        (
            "title: t\nproblems: [mb1ic8oc8ih9kh3]\ndtypes: [int8]\n",
            "dtype int8: mb1ic8oc8ih9kh3sh1ph0 is a single layer, which runs in f32, bf16, u8s8",
        ),
        (
            f"title: t\nproblems: [{_BLOCK!r}]\nbackends: ['dnnsep:cascades=yes']\n",
            "sweep.yaml:3: backends[0]: backend 'dnnsep:cascades=yes': its only option is cascades",
        ),
        (
            f"title: t\nproblems: [{_BLOCK!r}]\nbackends: [{{dnnsep: {{tune: no}}}}]\n",
            "backend 'dnnsep:tune=no': its only option is cascades=no",
        ),
        (
            f"title: t\nproblems: [{_BLOCK!r}]\nbackends: [mkl]\n",
            "or of blocks dnnsep",
        ),
    ],
)
def test_errors(tmp_path: Path, text: str, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, text)
    assert rule in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_runs_only_the_other_kind_is_said() -> None:
    block = load_sweep([_BLOCK], Overrides(), 2).blocks[0]
    layer = load_sweep(["mb1ic8oc8ih9kh3"], Overrides(), 2).cases[0]
    assert why_not(block, "fused") == "fused runs single layers, no blocks or models"
    assert why_not(layer, "dnnsep") == "dnnsep runs blocks and models, no single layers"
    for backend in ("eager", "openvino"):
        assert not why_not(block, backend)
        assert not why_not(layer, backend)
    assert not why_not(layer, "ipex:pointwise=conv1x1")


def test_a_records_text_reads_back() -> None:
    block = Block.parse("convnext_mb4ic8ex32ih9iw7kh7_bf16")
    case = BlockCase(block, None, 2, ("eager",))
    assert block_of(case.problem) == block
    assert parse_model(case.problem) == ("convnext_mb4ic8ex32ih9iw7kh7", (4, 8, 9, 7), "bf16")
    assert block_of("convnext_tiny 1x3x224x224") is None
    assert block_of("mb1ic8oc8ih9kh3sh1ph0") is None


def test_labels_without_activations() -> None:
    texts = {f"{_BLOCK} bf16 1x8x9x9": None, "mobilenetv2_100 1x3x224x224": None}
    assert list(labels_of(texts, 60).values()) == [
        "mbconv_mb1ic8ex24oc8ih9kh3sh1_bf16",
        "mobilenetv2_100 1x3x224x224",
    ]


@pytest.mark.parametrize(("gbs", "binds"), [(2.0, "vector unit"), (0.5, "DRAM")])
def test_the_roof_is_that_of_all_layers(gbs: float, binds: str) -> None:
    roofs = Roofs(
        threads=1,
        clock_ghz=1.0,
        fma_gflops={"f32": 10.0},
        fma_flops_per_cycle={"f32": 10.0},
        memory=[MemoryLevel(name="DRAM", capacity_bytes=None, read_gbs=gbs, copy_gbs=gbs)],
    )
    block = Block.parse("mbconv_mb1ic8ex24oc8ih9kh1sh1")
    parameters = (8 + 1) * 24 + (1 + 1) * 24 + (24 + 1) * 8
    assert block.bytes_fused == 4 * (2 * 8 * 81 + parameters)
    assert block.flops == 2 * 81 * (8 * 24 + 24 + 24 * 8)
    roof = roofs.of_block(block, "cold")
    rates = {"vector unit": 10.0, "DRAM": gbs * block.flops / block.bytes_fused}
    assert roof.binds == binds
    assert roof.gflops == pytest.approx(rates[binds], rel=1e-3)


@pytest.mark.slow
def test_a_sweep_of_a_block(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    words = ["sweep", f"{_BLOCK}_bf16", "--seconds", "0.02", "-o", str(path)]
    for backend in ("eager", "dnnsep", "dnnsep:cascades=no", "fused"):
        words += ["--backend", backend]
    _dnnsep(*words)
    results = Results.load(path)
    found = {record.backend: record for record in results.records}
    assert found.pop("fused").status == "refused"
    assert [record.status for record in found.values()] == ["ok"] * 3
    for record in found.values():
        assert (record.problem, record.dtype) == (f"{_BLOCK} bf16 1x8x9x9", "bf16")
        assert record.flops == Block.parse(_BLOCK).flops
        assert record.roof is not None
    (again,) = commands(results)
    assert again.startswith(f"dnnsep sweep {_BLOCK}_bf16 --backend")
    assert "cascades=no" in again
    exported = _dnnsep("export", str(path), "--to", "csv", "-o", str(tmp_path / "r.csv"))
    assert exported.returncode == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "r.csv").read_text())))
    assert {row["kind"] for row in rows} == {"mbconv"}
    assert {row["kernel_h"] for row in rows} == {"3"}
    assert _dnnsep(*words, "--resume").returncode == 0
