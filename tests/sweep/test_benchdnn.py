from __future__ import annotations

from pathlib import Path

import pytest

from dnnsep.sweep.benchdnn import read_shape_file

_SHAPES = """\
# Two models' worth of shapes

mb1ic3ih32iw32oc32oh16ow16kh3kw3sh2sw2ph1pw1n"stem"
g64mb1ic64ih20iw20oc64oh20ow20kh3kw3sh1sw1ph1pw1n"block1_dw"
mb1ic64ih20iw20oc128oh20ow20kh1kw1sh1sw1ph0pw0n"block1_pw"
g128mb1_ic128ih20iw20oc128oh10ow10_kh3kw3sh2sw2dh0ph1pw1_n"block2_dw"
mb1ic64ih20iw20oc128oh20ow20kh1kw1sh1sw1ph0pw0n"of another input"
g8ic8ih8oc16oh8kh3ph1n"multiplier"
mb1ic16ih8iw8oc4oh8ow8kh1ph0
g4ic16ih8oc16oh8kh3ph1n"grouped, not depthwise"
--batch=other_file
g32mb1ic32ih224iw224oc32oh112ow112kh3kw3sh2sw2ph0pw0n"SAME of TensorFlow"
"""


def test_pairs_depthwise_with_pointwise(tmp_path: Path) -> None:
    path = tmp_path / "shapes_two"
    path.write_text(_SHAPES)
    shapes = read_shape_file(path)
    assert [(named.name, str(named.problem)) for named in shapes.problems] == [
        ("block1_dw", "mb1ic64oc128ih20kh3sh1ph1"),
        ("block2_dw", "mb1ic128oc128ih20kh3sh2ph1"),
        ("multiplier", "mb1ic8oc4ih8kh3sh1ph1cm2"),
        ("SAME of TensorFlow", "mb1ic32oc32ih224kh3sh2ph0pb1pr1"),
    ]
    assert shapes.left_out == 4  # stem, of another input, grouped, --batch


def test_a_bad_depthwise_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "shapes_bad"
    path.write_text('\ng8ic8ih2oc8kh3ph0n"too small"\n')
    with pytest.raises(ValueError, match=r"shapes_bad:2: descriptor .*height=2"):
        read_shape_file(path)
