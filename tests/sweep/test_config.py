from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dnnsep.problem import KINDS
from dnnsep.sweep.config import ConfigError, Overrides, Sweep, load_sweep

CONFIGS = Path(__file__).parents[2] / "configs"


def _load(tmp_path: Path, text: str, overrides: Overrides | None = None) -> Sweep:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return load_sweep([str(path)], overrides or Overrides(), 2)


def _shapes(sweep: Sweep) -> list[str]:
    return [str(case.problem) for case in sweep.cases]


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONFIGS))
)
def test_shipped_configs_load(path: Path) -> None:
    sweep = load_sweep([str(path)], Overrides(), 2)
    assert sweep.all_cases
    assert sweep.left_out == []


@pytest.mark.parametrize(
    ("name", "count", "kernels"),
    [
        ("mobilenet_v1", 9, {(3, 3)}),
        ("mobilenet_v2", 12, {(3, 3)}),
        ("xception", 10, {(3, 3)}),
        ("efficientnet_b0", 12, {(3, 3), (5, 5)}),
        ("convnext_tiny", 4, {(7, 7)}),
        ("audio_1d", 6, {(1, 31), (1, 33), (1, 51), (1, 3)}),
    ],
)
def test_model_shape_sets(name: str, count: int, kernels: set[tuple[int, int]]) -> None:
    sweep = load_sweep([str(CONFIGS / "models" / f"{name}.yaml")], Overrides(), 2)
    assert len(sweep.cases) == count
    assert {case.problem.kernel for case in sweep.cases} == kernels


def test_axes_as_product_and_zip(tmp_path: Path) -> None:
    sweep = _load(
        tmp_path,
        """
title: axes
problems:
  - axes: {ic: [8, 16], oc: 32, ih: 14, kh: [3, 5], ph: same, sh: 1}
  - axes: {ic: [1, 2], oc: [3, 4], ih: 9, kh: 3, act: "relu,none", dtype: bf16, bias: false}
    combine: zip
""",
    )
    assert _shapes(sweep) == [
        "mb1ic8oc32ih14kh3sh1ph1",
        "mb1ic8oc32ih14kh5sh1ph2",
        "mb1ic16oc32ih14kh3sh1ph1",
        "mb1ic16oc32ih14kh5sh1ph2",
        "mb1ic1oc3ih9kh3sh1ph0_nobias_act:relu,none_bf16",
        "mb1ic2oc4ih9kh3sh1ph0_nobias_act:relu,none_bf16",
    ]


def test_layers_of_every_kind_are_shipped() -> None:
    sweep = load_sweep([str(CONFIGS / "kinds.yaml")], Overrides(), 2)
    assert {case.problem.kind for case in sweep.cases} == set(KINDS)
    assert all(case.name for case in sweep.cases)


def test_axes_of_every_kind(tmp_path: Path) -> None:
    sweep = _load(
        tmp_path,
        """
title: axes
problems:
  - axes: {kind: linear, mb: [1, 64], ic: 768, oc: 3072, act: gelu, bias: false}
  - axes: {kind: mean, ic: [8, 16], ih: 7, dtype: [f32, bf16]}
  - axes: {g: 1, ic: 3, oc: 32, ih: 14, kh: 3, ph: same, sh: 2, act: [relu, none]}
  - axes: {g: [8, 16], ic: [8, 16], oc: 16, ih: 14, kh: 5, ph: same}
    combine: zip
""",
    )
    assert _shapes(sweep) == [
        "linear_mb1ic768oc3072_nobias_act:gelu",
        "linear_mb64ic768oc3072_nobias_act:gelu",
        "mean_mb1ic8ih7",
        "mean_mb1ic8ih7_bf16",
        "mean_mb1ic16ih7",
        "mean_mb1ic16ih7_bf16",
        "g1mb1ic3oc32ih14kh3sh2ph1_act:relu",
        "g1mb1ic3oc32ih14kh3sh2ph1",
        "g8mb1ic8oc16ih14kh5sh1ph2cm2",
        "g16mb1ic16oc16ih14kh5sh1ph2",
    ]


def test_batch_and_dtype_of_every_kind_are_replaced() -> None:
    overrides = Overrides(dtypes=["bf16"], batch=[3])
    before = load_sweep([str(CONFIGS / "kinds.yaml")], Overrides(), 2).cases
    after = load_sweep([str(CONFIGS / "kinds.yaml")], overrides, 2).cases
    assert [(c.problem.batch, c.problem.dtype) for c in after] == [(3, "bf16")] * len(before)
    for old, new in zip(before, after, strict=True):
        assert replace(new.problem, batch=old.problem.batch, dtype="f32") == old.problem


def test_a_shape_file_of_other_things_does_not_end_a_sweep(tmp_path: Path) -> None:
    """Its lines are left out and named; only where there is nothing at all is it an error."""
    three_dimensional, empty = tmp_path / "shapes_3d", tmp_path / "shapes_none"
    three_dimensional.write_text('mb1ic4oc4id5kd3n"a"\nmb1ic4oc4id6kd3n"b"\n')
    empty.write_text("# nothing\n")
    sweep = load_sweep([str(three_dimensional), str(empty)], Overrides(), 2)
    assert sweep.cases == []
    assert [line.line for line in sweep.left_out] == [1, 2]
    with pytest.raises(ConfigError, match="shapes_none: no problem in it"):
        load_sweep([str(empty)], Overrides(), 2)


def test_lists_multiply_and_includes_nest(tmp_path: Path) -> None:
    (tmp_path / "inner.yaml").write_text("title: inner\nproblems: [ic4oc4ih8kh3, ic8oc4ih8kh3]\n")
    (tmp_path / "shapes").write_text("g4ic4ih9oc4kh3ph1\ng2ic4oc4ih9kh3ph1\n")
    sweep = _load(
        tmp_path,
        """
title: outer
problems:
  - include: inner.yaml
  - include: shapes
backends: [onednn, {ipex: {pointwise: conv1x1}}]
dtypes: [f32, bf16]
threads: [1, 2]
batch: [1, 16]
""",
    )
    assert len(sweep.cases) == 3 * 2 * 2 * 2
    (left_out,) = sweep.left_out
    assert str(left_out).startswith(f"{tmp_path / 'shapes'}:2: g2ic4oc4ih9kh3ph1: g=2: neither")
    assert {case.backends for case in sweep.cases} == {("onednn", "ipex:pointwise=conv1x1")}
    assert len({(case.problem, case.threads) for case in sweep.cases}) == len(sweep.cases)


def test_overrides_replace_the_files_lists(tmp_path: Path) -> None:
    text = "title: t\nproblems: [ic4oc4ih8kh3]\nbackends: [eager]\nthreads: [2]\n"
    sweep = _load(tmp_path, text, Overrides(["onednn"], [1], ["bf16"], [4]))
    (case,) = sweep.cases
    assert str(case.problem) == "mb4ic4oc4ih8kh3sh1ph0_bf16"
    assert (case.threads, case.backends) == (1, ("onednn",))


def test_descriptors_stand_for_files_and_doubles_are_measured_once() -> None:
    sweep = load_sweep(["ic4oc4ih8kh3", "mb1ic4oc4ih8kh3sh1"], Overrides(["eager"]), 2)
    assert _shapes(sweep) == ["mb1ic4oc4ih8kh3sh1ph0"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("title: t\n", "sweep.yaml:1: problems: Field required"),
        ("title: t\nproblems: []\n", "sweep.yaml:2: problems: List should have at least 1 item"),
        (
            "title: t\nproblems:\n  - ic4oc4ih8kh3\n  - ic4ih8kh3\n",
            "sweep.yaml:4: problems[1].shape: descriptor 'ic4ih8kh3': oc: missing",
        ),
        (
            "title: t\nproblems:\n  - shape: ic4oc4ih8kh3\n    nme: x\n",
            "sweep.yaml:4: problems[0].nme: Extra inputs are not permitted",
        ),
        (
            "title: t\nproblems: [ic4oc4ih8kh3]\nbackends: [onednn, mkl]\n",
            "sweep.yaml:3: backends[1]: backend 'mkl': must be one of",
        ),
        (
            "title: t\nproblems: [ic4oc4ih8kh3]\nthreads:\n  - 1\n  - 0\n",
            "sweep.yaml:5: threads[1]: Input should be greater than or equal to 1 (given: 0)",
        ),
        (
            "title: t\nproblems: [ic4oc4ih8kh3]\ndtypes: [f16]\n",
            "sweep.yaml:3: dtypes[0]: Input should be 'f32', 'bf16', 'u8s8', 's8s8', 'u8s8s8', "
            "'u8s8f32', 's8s8u8', 's8s8f32' or 'int8' (given: 'f16')",
        ),
        (
            "title: t\nproblems:\n  - axes: {ic: [1, 2, 3], oc: [1, 2], ih: 4, kh: 1}\n"
            "    combine: zip\n",
            "sweep.yaml:3: problems[0]: zip: the lists must be of one length",
        ),
        (
            "title: t\nproblems:\n  - axes: {ic: many, oc: 4, ih: 4, kh: 1}\n",
            "sweep.yaml:3: problems[0]: ic: must be a whole number (given: 'many')",
        ),
        (
            "title: t\nproblems:\n  - axes: {kind: conv, ic: 4, oc: 4, ih: 4, kh: 1}\n",
            "sweep.yaml:3: problems[0]: kind: must be linear or mean, g tells the others "
            "(given: 'conv')",
        ),
        (
            "title: t\nproblems:\n  - axes: {kind: linear, ic: 4, oc: 4, kh: 3}\n",
            "sweep.yaml:3: problems[0]: descriptor 'linear_ic4oc4kh3': kh: a linear has only",
        ),
        (
            "title: t\nproblems:\n  - axes: {g: 1, ic: 4, oc: 4, ih: 4, kh: 1, act: 'relu,relu'}\n",
            "activations=('relu', 'relu'): must name 1 for a convolution",
        ),
        (
            "title: t\nproblems:\n  - include: nowhere.yaml\n",
            "sweep.yaml:3: include: no such file",
        ),
        (
            "title: t\nproblems:\n  - include: sweep.yaml\n",
            "sweep.yaml:3: include: sweep.yaml includes itself",
        ),
        ("title: t\ntitle: u\nproblems: [ic4oc4ih8kh3]\n", "sweep.yaml:2: title: given twice"),
        ("title: [t\n", "sweep.yaml:2: not YAML"),
        ("- a list\n", "sweep.yaml:1: must be a mapping"),
        ("", "sweep.yaml:1: must be a mapping"),
    ],
)
def test_errors_name_file_line_field_and_rule(tmp_path: Path, text: str, error: str) -> None:
    with pytest.raises(ConfigError) as raised:
        _load(tmp_path, text)
    assert error in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_files_are_said_to_be_missing() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        load_sweep(["nowhere.yaml"], Overrides(), 2)
