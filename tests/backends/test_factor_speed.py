"""The model of how fast thin layers are: what it refuses, and where its limits lie."""

from typing import Any

import numpy as np
import pytest

from graphc.backends.factor_speed import speed_on
from graphc.backends.x86 import LEVELS, level_target
from graphc.errors import InputError
from graphc.passes.factorize import Factorize
from graphc.passes.protocol import Context, Sums
from tests.passes.quantized import model, normal

TARGETS = [level_target(level) for level in LEVELS]


def pair(channels: int, rank: int, side: int) -> tuple[Sums, list[Sums]]:
    """A 1x1 convolution, and the two that stand for it."""
    places = (1, side, side)
    return Sums(places, 1, channels, channels), [Sums(places, 1, channels, rank), Sums(places, 1, rank, channels)]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.id)
def test_half_the_work_of_a_wide_layer_is_nearly_twice_as_fast(target: Any) -> None:
    ratio, name = speed_on([target])(*pair(256, 64, 14))
    assert 1.5 < ratio <= 2.1
    assert name == target.id


def test_what_does_not_fill_vectors_gains_nothing() -> None:
    assert speed_on(TARGETS)(*pair(16, 4, 32))[0] < 1.05
    assert speed_on(TARGETS)(*pair(256, 128, 28))[0] < 1.05


def test_results_that_no_cache_holds_are_bound_by_memory() -> None:
    places, target = (1, 56, 56), level_target(LEVELS[-1])
    stages = [Sums(places, 1, 64, 25), Sums(places, 1, 25, 256)]
    assert 1 < speed_on([target])(Sums(places, 1, 64, 256), stages)[0] < 1.5


def test_without_targets_everything_gains() -> None:
    assert speed_on([])(*pair(16, 8, 4))[0] == float("inf")


def test_more_rank_is_slower() -> None:
    ratios = [speed_on(TARGETS)(*pair(512, rank, 14))[0] for rank in (32, 64, 128, 192)]
    assert (np.diff(ratios) < 0).all()


def test_the_slowest_target_decides() -> None:
    each = [speed_on([target])(*pair(64, 16, 14)) for target in TARGETS]
    assert speed_on(TARGETS)(*pair(64, 16, 14)) == min(each)


def factorized(**options: Any) -> list[str]:
    """Why the layers of a network of two thin ones stay as they are."""
    graph = model(
        "(float[1,16,8,8] x) => (float[1,256,8,8] y)", "a = Conv (x, w)\ny = Conv (a, v)",
        w=normal(16, 16, 1, 1), v=normal(256, 16, 1, 1),
    )  # fmt: skip
    context = Context(speed=speed_on(TARGETS))
    Factorize.model_validate({"form": "channel", "data": "none", **options}).apply(graph, context)
    return [skip.reason for skip in context.skips]


def test_factors_that_would_be_slower_are_refused() -> None:
    (narrow, *_) = factorized(ratio=0.5)
    assert narrow.startswith("its thin layers should have at best 0.")
    assert f"x its speed on {TARGETS[0].id}, at 0." in narrow or TARGETS[-1].id in narrow
    assert not [reason for reason in factorized(ratio=0.5, never_slower=False) if "speed" in reason]


@pytest.mark.parametrize("rule", ["macs", "parameters"])
def test_a_share_that_the_layers_that_gain_do_not_reach_is_refused(rule: str) -> None:
    with pytest.raises(InputError, match=rf"factorize\.{rule}: 0\.1 cannot be met: the least .* slower on the targets"):
        factorized(**{rule: 0.1})
    assert factorized(**{rule: 0.1}, never_slower=False) == []
