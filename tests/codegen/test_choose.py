"""Which plans are chosen and why, and those kept by ``tune``."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnnsep.codegen.choose import choose, keep, plan_key
from dnnsep.codegen.extras import Extras
from dnnsep.codegen.lang.isa import CAP_VARIABLE, Isa, this_isa
from dnnsep.codegen.layer import layer_of
from dnnsep.codegen.plan import tile_bytes
from dnnsep.codegen.weigh import Caches, all_plans, close_plans, cost, layer_for
from dnnsep.host import cachefiles
from dnnsep.problem import Problem

CACHES = Caches(48 * 1024, 1 << 20, 32 << 20)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cachefiles.VARIABLE, str(tmp_path))


def _best(text: str, isa: Isa, threads: int) -> tuple[int, int]:
    problem = Problem.parse(text)
    plans = all_plans(problem, isa, threads, CACHES)
    best = min(plans, key=lambda plan: cost(problem, plan, CACHES).cycles)
    return best.pixel_parts, best.channel_parts


def test_threads_share_pixels_where_there_are_many_and_channels_where_there_are_few(
    isa: Isa,
) -> None:
    assert _best("ic32oc64ih112kh3ph1", isa, 2) == (2, 1)
    assert _best("ic1024oc1024ih1kh1", isa, 2) == (1, 2)
    assert _best("ic64oc64ih1kh1", isa, 1) == (1, 1)


def test_large_outputs_are_streamed_and_large_inputs_fetched_ahead(isa: Isa) -> None:
    def traits(text: str) -> tuple[bool, bool]:
        plan = next(all_plans(Problem.parse(text), isa, 2, CACHES))
        return plan.streaming, plan.prefetch

    assert traits("mb16ic32oc64ih112kh3ph1") == (True, True)
    assert traits("mb1ic32oc64ih112kh3ph1") == (False, True)
    assert traits("mb1ic32oc64ih28kh3ph1") == (False, False)
    assert traits("mb16ic32oc65ih112kh3ph1")[0] is False  # no whole vectors


def test_a_pointwise_layers_input_is_read_where_it_is(isa: Isa) -> None:
    """Copied only where its rows start at the same places of the first cache, or for a way of
    multiplying that does not take it as it is."""

    def gathers(text: str, l1: int) -> bool:
        caches = Caches(l1, CACHES.l2, CACHES.last)
        found = {plan.gathers for plan in all_plans(Problem.parse(text), isa, 2, caches)}
        assert len(found) == 1
        return found.pop()

    assert not gathers("g1ic1000oc64ih28kh1", 1 << 13)
    assert not gathers("g1ic1024oc64ih28kh1", 1 << 20)
    assert gathers("g1ic1024oc64ih28kh1", 1 << 13)
    bf16 = layer_of(Problem.parse("g1ic1000oc64ih28kh1_bf16"), isa)
    assert gathers("g1ic1000oc64ih28kh1_bf16", 1 << 13) is not bf16.reads_input
    assert gathers("g1ic999oc64ih28kh1_bf16", 1 << 13)  # no whole pairs


def test_tiles_fit_the_cores_own_cache(isa: Isa) -> None:
    problem = Problem.parse("mb4ic512oc512ih28kh3ph1")
    for plan in all_plans(problem, isa, 2, CACHES):
        assert plan.tile == 1 or tile_bytes(problem, layer_for(problem, plan), plan) <= CACHES.l2
        assert plan.tile <= plan.pieces


def test_weights_from_afar_cost_more(isa: Isa) -> None:
    problem = Problem.parse("ic256oc256ih14kh3ph1")
    plan = next(all_plans(problem, isa, 2, CACHES))
    small = Caches(CACHES.l1, 1 << 18, CACHES.last)
    assert cost(problem, plan, small).weights > cost(problem, plan, CACHES).weights


def test_a_kept_plan_is_chosen_for_its_problem_and_threads_only(isa: Isa) -> None:
    problem = Problem.parse("ic64oc128ih56kh3ph1")
    plans = [plan for plan, _ in close_plans(problem, isa, 2)]
    assert choose(problem, isa, 2) == plans[0]
    keep(problem, 2, plans[-1])
    assert plans[-1] != plans[0]
    assert choose(problem, isa, 2) == plans[-1]
    assert choose(problem, isa, 1) == close_plans(problem, isa, 1)[0][0]


def test_slices_of_wider_tensors_have_the_plan_of_dense_ones(isa: Isa) -> None:
    problem = Problem.parse("ic64oc128ih56kh3ph1")
    plans = [plan for plan, _ in close_plans(problem, isa, 2)]
    keep(problem, 2, plans[-1], Extras(residual=True, x_pitch=96))
    found = choose(problem, isa, 2, Extras(residual=True, y_pitch=200, residual_pitch=130))
    assert found == plans[-1] != plans[0]
    assert choose(problem, isa, 2, Extras(x_pitch=96)) == plans[0]


@pytest.mark.parametrize("content", [b'{"tile": 100000, "channel_parts": 1}', b"[]", b"{"])
def test_a_kept_plan_that_is_none_is_not_chosen(isa: Isa, content: bytes) -> None:
    problem = Problem.parse("ic64oc128ih56kh3ph1")
    cachefiles.save("plans", plan_key(problem, isa, 2), content)
    assert choose(problem, isa, 2) == close_plans(problem, isa, 2)[0][0]


def test_the_cap_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CAP_VARIABLE, "sse")
    with pytest.raises(ValueError, match="DNNSEP_MAX_ISA='sse': must be one of avx2, avx2_vnni"):
        this_isa()
    monkeypatch.setenv(CAP_VARIABLE, "avx2")
    assert this_isa().name == "avx2"
