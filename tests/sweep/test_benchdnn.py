from __future__ import annotations

from pathlib import Path

import pytest

from dnnsep.sweep.benchdnn import ShapeFile, read_shape_file

_SHAPES = """\
# Two models' worth of shapes

mb1ic3ih32iw32oc32oh16ow16kh3kw3sh2sw2ph1pw1n"stem*4"  # a comment
g64mb1ic64ih20iw20oc64oh20ow20kh3kw3sh1sw1ph1pw1n"block1_dw"
mb1ic64ih20iw20oc128oh20ow20kh1kw1sh1sw1ph0pw0n"block1_pw"
g128mb1_ic128ih20iw20oc128oh10ow10_kh3kw3sh2sw2dh0ph1pw1_n"block2_dw"
mb1ic64ih20iw20oc128oh20ow20kh1kw1sh1sw1ph0pw0n"of another input"
g8mb1ic8ih8oc16oh8kh3ph1n"multiplier"
g1mb1ic16ih8oc4oh8kh1ph0
g32mb1ic32ih224iw224oc32oh112ow112kh3kw3sh2sw2ph0pw0n"SAME of TensorFlow"
"""


def _read(tmp_path: Path, text: str) -> ShapeFile:
    path = tmp_path / "shapes"
    path.write_text(text)
    return read_shape_file(path)


def _one(tmp_path: Path, line: str) -> str:
    shapes = _read(tmp_path, line)
    assert not shapes.left_out
    (named,) = shapes.problems
    return str(named.problem)


def test_pairs_depthwise_with_pointwise(tmp_path: Path) -> None:
    shapes = _read(tmp_path, _SHAPES)
    assert [(named.name, str(named.problem)) for named in shapes.problems] == [
        ("stem*4", "g1mb1ic3oc32ih32kh3sh2ph1"),
        ("block1_dw", "mb1ic64oc128ih20kh3sh1ph1"),
        ("block2_dw", "g128mb1ic128oc128ih20kh3sh2ph1"),
        ("of another input", "g1mb1ic64oc128ih20kh1sh1ph0"),
        ("multiplier", "mb1ic8oc4ih8kh3sh1ph1cm2"),
        ("SAME of TensorFlow", "g32mb1ic32oc32ih224kh3sh2ph0pb1pr1"),
    ]
    assert shapes.left_out == []


@pytest.mark.parametrize(
    "second",
    [
        "mb1ic8ih6oc4kh1ph0",  # of another size
        "mb2ic8ih8oc4kh1ph0",  # of another batch
        "mb1ic8ih8oc4kh3ph1",  # no 1x1
        "mb1ic8ih8oc4kh1sh2ph0",  # with a stride
        "mb1ic8ih8oc4kh1ph1",  # padded
        "g8mb1ic8ih8oc8kh1ph0",  # depthwise itself
    ],
)
def test_what_does_not_read_the_output_stays_apart(tmp_path: Path, second: str) -> None:
    first = 'g8mb1ic8ih8oc8kh3ph1n"dw"\n'
    kinds = [named.problem.kind for named in _read(tmp_path, first + second).problems]
    assert kinds == ["depthwise", "depthwise" if second[0] == "g" else "convolution"]


def test_a_line_between_keeps_two_apart(tmp_path: Path) -> None:
    pointwise = "mb1ic8ih8oc4kh1ph0\n"
    shapes = _read(tmp_path, "g8mb1ic8ih8oc8kh3ph1\ng2mb1ic8ih8oc8kh3ph1\n" + pointwise)
    assert [named.problem.kind for named in shapes.problems] == ["depthwise", "convolution"]
    shapes = _read(tmp_path, "g8mb1ic8ih8oc8kh3ph1\n\n# a comment\n" + pointwise + pointwise)
    assert [named.problem.kind for named in shapes.problems] == ["separable", "convolution"]


@pytest.mark.parametrize(
    ("line", "descriptor"),
    [
        # Without mb benchdnn takes a batch of 2.
        ("ic3oc4ih5kh3ph1", "g1mb2ic3oc4ih5kh3sh1ph1"),
        # One row where there is no key of the height, a square where there is none of the width.
        ("mb1ic3oc4iw9kw3pw1sw2", "g1mb1ic3oc4ih1iw9kh1kw3sh1sw2ph0pw1"),
        ("g4mb1ic4oc4ih9kh3ph1sw1pw0", "g4mb1ic4oc4ih9kh3sh1ph1"),
        # With a key of the width it takes nothing of the height: a stride of 1, and here the
        # padding that gives as many pixels.
        ("mb1ic4oc4ih15oh7kh5sh2ph1_iw10ow10kw3", "g1mb1ic4oc4ih15iw10kh5kw3sh2sw1ph1"),
        # Where only an output size is given both sides are padded alike, the lower one by the rest.
        ("mb1ic4oc4ih8oh8kh3", "g1mb1ic4oc4ih8kh3sh1ph1"),
        ("mb1ic4oc4ih8oh4kh3sh2", "g1mb1ic4oc4ih8kh3sh2ph0pb1pr1"),
        ("mb1ic4oc4ih8oh5kh3sh1ph0", "g1mb1ic4oc4ih8kh3sh1ph0oh5ow5"),
        ("mb1ic4oc4ih8kh3ph9", "g1mb1ic4oc4ih8kh3sh1ph9"),
        # A depth of one is none; groups of one channel are none where there is one channel.
        (
            "g1mb1ic1oc1_id1ih2iw2od1oh1ow1_kd1kh1kw1_sd1sh2sw2_pd0ph0pw0_dd0dh0dw0",
            "g1mb1ic1oc1ih2kh1sh2ph0",
        ),
        # The last of two values counts, and _ means nothing.
        ("mb1__ic4oc4_ih8_kh3_kh5ph2_", "g1mb1ic4oc4ih8kh5sh1ph2"),
        ("mb1ic4oc4ih8kh3sh2dh1ph2", "g1mb1ic4oc4ih8kh3sh2ph2dh1"),
    ],
)
def test_a_line_means_what_benchdnn_means(tmp_path: Path, line: str, descriptor: str) -> None:
    assert _one(tmp_path, line) == descriptor


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("mb1ic4oc4id5od5kd3pd1", "id=5: has three dimensions"),
        ("mb1ic4oc4id1ih5kd1kh3pd1", "pd=1: has three dimensions"),
        ("g2mb1ic4oc4ih8kh3", "g=2: neither depthwise (ic=4, oc=4) nor ordinary (1)"),
        ("g4mb1ic4oc6ih8kh3", "g=4: neither depthwise (ic=4, oc=6) nor ordinary (1)"),
        ("g0mb1ic4oc4ih8kh3", "g=0: neither depthwise (ic=4, oc=4) nor ordinary (1)"),
        ("g0mb1ic0oc4ih8kh3", "g=0: neither depthwise (ic=0, oc=4) nor ordinary (1)"),
        ("mb0ic4oc4ih8kh3", "batch=0: must be a whole number of at least 1"),
        ("mb1ic4oc0ih8kh3", "out_channels=0: must be a whole number of at least 1"),
        ("mb1ic4oc4ih0kh3", "height=0: must be a whole number of at least 1"),
        ("mb1ic4oc4ih8kh3sh0oh2", "stride=0: must be"),
        ("mb1ic4oc4ih0kh0", "ih: missing"),
        ("mb1ic4oc4", "ih: missing"),
        ("mb1ic4oc4ih8iw9kh3", "kw: missing"),
        ("mb1oc4ih8kh3", "ic: missing"),
        ("g8mb1ic8ih2oc8kh3ph0", "height=2: with padding 0+0 it must be at least the dilated"),
        ("mb1ic4oc4ih8oh2kh3", "padding=-2: must be a whole number of at least 0"),
        ("mb1ic4oc4ih8kh3cm2", "cm: unknown key"),
        ("mb1ic4oc4ih8kh3_nobias", "not understood"),
        ('mb1ic4oc4ih8kh3n"open', "not understood"),
        ("mb1ic4oc4ih8kh3ph-1", "not understood"),
        ("--batch=shapes_other", "options of benchdnn are not read"),
        ("--strides=9x1::9x1 mb1ic4oc4ih8kh3", "options of benchdnn are not read"),
    ],
)
def test_other_lines_are_left_out_and_named(tmp_path: Path, line: str, reason: str) -> None:
    shapes = _read(tmp_path, f"mb1ic4oc4ih8kh3\n\n{line} # why\nmb1ic8oc8ih8kh3\n")
    assert [named.problem.in_channels for named in shapes.problems] == [4, 8]
    (left_out,) = shapes.left_out
    assert str(left_out).startswith(f"{tmp_path / 'shapes'}:3: {line}: {reason}")
    assert "\n" not in str(left_out)


def test_several_words_on_a_line(tmp_path: Path) -> None:
    shapes = _read(tmp_path, 'mb1ic4oc4ih8kh3n"a # b" mb1ic5oc4ih8kh3 mb1ic6\tg2 #mb1ic7\n')
    assert [(n.name, n.problem.in_channels) for n in shapes.problems] == [("a # b", 4), (None, 5)]
    assert [(line.line, line.text) for line in shapes.left_out] == [(1, "mb1ic6"), (1, "g2")]
