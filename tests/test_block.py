"""Descriptors of blocks: they read back, mean what they say, and are refused in one line."""

from __future__ import annotations

import pytest

from dnnsep.block import Block, is_block

_V2 = "mbconv_mb1ic16ex96oc24ih112kh3sh2_act:relu6"
_V3 = "mbconv_mb2ic40ex120oc40ih28iw20kh5sh1se32_act:hardswish_se:relu,hardsigmoid_bf16"
_EFFICIENT = "mbconv_mb1ic32ex32oc16ih112kh3sh1se8_act:silu_int8"
_CONVNEXT = "convnext_mb1ic96ex384ih56kh7"


@pytest.mark.parametrize("text", [_V2, _V3, _EFFICIENT, _CONVNEXT, f"{_CONVNEXT}_bf16"])
def test_a_canonical_descriptor_reads_back(text: str) -> None:
    assert str(Block.parse(text)) == text
    assert is_block(text)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("mbconv_ic8ex16oc8ih7kh3", "mbconv_mb1ic8ex16oc8ih7kh3sh1"),
        ("mbconv_oc8ex16ic8ih7iw7kw3kh3sw2", "mbconv_mb1ic8ex16oc8ih7kh3sh2"),
        (
            "mbconv_mb1ic8ex16oc8ih7kh3sh1se4_act:silu_se:silu,sigmoid",
            "mbconv_mb1ic8ex16oc8ih7kh3sh1se4_act:silu",
        ),
        ("mbconv_mb1ic8ex16oc8ih7kh1kw3sh1sw2_f32", "mbconv_mb1ic8ex16oc8ih7kh1kw3sh1sw2"),
    ],
)
def test_what_is_left_out(text: str, canonical: str) -> None:
    assert str(Block.parse(text)) == canonical
    assert Block.parse(canonical) == Block.parse(text)


def test_layers_and_operations() -> None:
    block = Block.parse(_V2)
    assert [str(layer) for layer in block.layers] == [
        "g1mb1ic16oc96ih112kh1sh1ph0_act:relu6",
        "g96mb1ic96oc96ih112kh3sh2ph1_act:relu6",
        "g1mb1ic96oc24ih56kh1sh1ph0",
    ]
    assert block.output_shape == (1, 24, 56, 56)
    assert block.flops == 2 * (112 * 112 * 16 * 96 + 56 * 56 * 96 * (9 + 24))
    assert not block.has_residual


def test_layers_with_squeeze_and_excitation() -> None:
    block = Block.parse(_V3)
    assert block.has_residual
    assert [str(layer) for layer in block.layers][1:] == [
        "g120mb2ic120oc120ih28iw20kh5sh1ph2_act:hardswish_bf16",
        "mean_mb2ic120ih28iw20_bf16",
        "linear_mb2ic120oc32_act:relu_bf16",
        "linear_mb2ic32oc120_act:hardsigmoid_bf16",
        "g1mb2ic120oc40ih28iw20kh1sh1ph0_bf16",
    ]


def test_without_expansion() -> None:
    block = Block.parse(_EFFICIENT)
    assert not block.has_expansion
    assert block.layers[0].kind == "depthwise"
    assert {layer.dtype for layer in block.layers} == {"u8s8", "f32"}  # a mean is not quantised


def test_layers_of_convnext() -> None:
    block = Block.parse(_CONVNEXT)
    assert [str(layer) for layer in block.layers] == [
        "g96mb1ic96oc96ih56kh7sh1ph3",
        "linear_mb3136ic96oc384_act:gelu",
        "linear_mb3136ic384oc96",
    ]
    assert block.has_residual
    assert block.output_shape == block.input_shape


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("mb1ic8ex16oc8ih7kh3", "'mb1ic8ex16oc8ih7kh3': a block begins with mbconv or convnext"),
        ("mbconv_mb1ic8oc8ih7kh3", "ex: missing"),
        ("mbconv_mb1ic8ex16oc8ih7", "kh: missing"),
        ("mbconv_mb1ic8ex16oc8ih7kh4", r"kernel=\(4, 4\): must be odd"),
        ("mbconv_mb1ic8ex16oc8ih7kh3ph1", "ph: unknown key, the grammar is: mbconv_ mb ic ex"),
        ("mbconv_mb1ic8ex16oc8ih7kh3kh5", "kh: given twice"),
        ("mbconv_mb1ic8ex1oc8ih7kh3", "expanded=1: must be a whole number of at least 2"),
        ("mbconv_mb0ic8ex16oc8ih7kh3", "batch=0: must be a whole number of at least 1"),
        ("mbconv_mb1ic8ex16oc8ih7kh3sh0", "stride=0: must be a whole number of at least 1"),
        ("mbconv_mb1ic8ex1234567890oc8ih7kh3", "ex: a number of 10 digits is too large"),
        ("mbconv_mb1ic8ex16oc8ih7kh3_act:relu7", "activation='relu7': must be one of none, relu"),
        ("mbconv_mb1ic8ex16oc8ih7kh3_se:relu,relu", "squeezed_activations: only with se"),
        ("mbconv_mb1ic8ex16oc8ih7kh3se4_se:relu", "must name 2, between and after"),
        ("mbconv_mb1ic8ex16oc8ih7kh3_u8s8", "dtype='u8s8': must be one of f32, bf16, int8"),
        ("convnext_mb1ic96ex384oc96ih56kh7", "oc: unknown key"),
        ("convnext_mb1ic96ex384ih56kh7_act:relu", "act: a convnext's activation is always gelu"),
    ],
)
def test_bad_descriptors(text: str, rule: str) -> None:
    with pytest.raises(ValueError, match=f"^descriptor {text!r}: .*{rule}") as caught:
        Block.parse(text)
    assert "\n" not in str(caught.value)
