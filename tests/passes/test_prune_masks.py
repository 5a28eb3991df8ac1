"""Which weights go: the least of each row, as a stable sort would have them."""

import numpy as np
import pytest

from graphc.passes.prune_masks import Shape, least, pruned


@pytest.mark.parametrize("count", [0, 1, 17, 99, 100])
def test_the_least_of_each_row_go_and_of_equals_the_first(count: int) -> None:
    rows = np.random.default_rng(0).integers(0, 12, (5, 100)).astype(np.float64)
    expected = np.zeros(rows.shape, bool)
    np.put_along_axis(expected, np.argsort(rows, axis=1, kind="stable")[:, :count], values=True, axis=1)
    np.testing.assert_array_equal(least(rows, count), expected)


@pytest.mark.parametrize("by_output", [False, True])
def test_single_weights_are_blocks_of_one(by_output: bool) -> None:
    worth = np.random.default_rng(1).random((2, 6, 30))
    gone = pruned(worth, 10, Shape(), 0.4, by_output)
    assert gone.mean() == pytest.approx(0.4)
    if by_output:
        np.testing.assert_array_equal(gone.sum(axis=2), 12)
    else:
        assert worth[gone].max() < worth[~gone].min()
