"""What runs a block: each action with its time, and the cascades that were looked at."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from dnnsep.block import Block
from dnnsep.codegen.cascade import choose
from dnnsep.codegen.cascade.step import Cut
from dnnsep.codegen.lang.isa import this_isa
from dnnsep.host.machine import cpus_for
from dnnsep.models import explain as explaining
from dnnsep.models.explain import explain
from dnnsep.report.explain_block import as_dict
from tests.test_cli import _dnnsep, _json

_BLOCK = Block.parse("mbconv_mb1ic8ex24oc8ih14kh3sh1_act:relu6")
_PROBLEMS = ("g1mb1ic8oc24ih14kh1sh1ph0_act:relu6", "mb1ic24oc8ih14kh3sh1ph1_act:relu6,none")


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    _ = this_isa()
    monkeypatch.setattr(explaining, "keep_on", lambda cpus: True)


def test_small_layers_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNNSEP_TUNE", "0")
    threads = torch.get_num_threads()
    found = explain(_BLOCK, cpus_for(threads))
    assert [ran.problems for ran in found.actions] == [(problem,) for problem in _PROBLEMS]
    assert all(ran.us > 0 and ran.runs.startswith("fused:") for ran in found.actions)
    (looked,) = found.cascades
    assert looked.problems == _PROBLEMS
    assert (looked.taken, looked.ratio) == (False, None)
    assert looked.between_bytes == 24 * 14 * 14 * 4 // threads
    assert looked.why_not == "what is between them stays in the second cache"
    assert as_dict(found)["block"] == str(_BLOCK)


@pytest.mark.parametrize(
    ("verdict", "why_not"),
    [
        (choose.Verdict(Cut(1, 2, 4096), 1.5, 1.0, in_network=True), ""),
        (choose.Verdict(None, 0.8, 1.0), "not faster by 2% in most rounds"),
        (choose.Verdict(), "not measured: DNNSEP_TUNE=0, too slow, or the machine was not quiet"),
    ],
)
def test_cascades_that_are_worth_a_look(
    verdict: choose.Verdict, why_not: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DNNSEP_TUNE", "0")
    monkeypatch.setattr(choose, "is_worth_a_look", lambda *_: True)
    monkeypatch.setattr(choose, "_known", lambda _: verdict)
    found = explain(_BLOCK, cpus_for(torch.get_num_threads()))
    (looked,) = found.cascades
    assert looked.why_not == why_not
    assert looked.taken == (not why_not)
    assert looked.ratio == (verdict.ratio or None)
    names = [ran.problems for ran in found.actions]
    assert names == ([_PROBLEMS] if looked.taken else [(problem,) for problem in _PROBLEMS])


def test_torch_and_other_kernels_are_actions_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNNSEP_TUNE", "0")
    block = Block.parse("convnext_mb1ic8ex32ih9kh7_bf16")
    found = explain(block, cpus_for(torch.get_num_threads()))
    assert [len(ran.problems) for ran in found.actions] == [1, 0, 1, 1]
    steps = (
        *("g8mb1ic8oc8ih9kh7sh1ph3_bf16", "Rowwise"),
        *("linear_mb81ic8oc32_act:gelu_bf16", "linear_mb81ic32oc8_bf16"),
    )
    assert [looked.problems for looked in found.cascades] == list(pairwise(steps))
    assert all("stays in the second cache" in looked.why_not for looked in found.cascades)


def test_the_command_prints_all_of_it() -> None:
    found = _json("explain", str(_BLOCK), "--dtype", "bf16", "--threads", "1", "--json")
    assert found["block"] == f"{_BLOCK}_bf16"
    assert [ran["problems"] for ran in found["actions"]] == [[f"{p}_bf16"] for p in _PROBLEMS]
    assert [looked["taken"] for looked in found["cascades"]] == [False]


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (("explain", str(_BLOCK), "--dump", "asm"), "--backend and --dump: only of single layers"),
        (("explain", str(_BLOCK), "--dtype", "u8s8"), "dtype='u8s8': must be one of f32, bf16"),
        (("explain", "mbconv_mb1ic8oc8ih14kh3"), "ex: missing"),
        (("tune", str(_BLOCK), "--all"), "--all: of single layers only"),
    ],
)
def test_bad_input_is_said_in_one_line(words: tuple[str, ...], rule: str) -> None:
    done = _dnnsep(*words)
    assert done.returncode == 2
    assert rule in done.stderr
    assert done.stderr.count("\n") == 1
