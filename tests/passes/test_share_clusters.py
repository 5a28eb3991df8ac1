"""Clusters of numbers and vectors, with scikit-learn's k-means as the oracle."""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from graphc.passes.share_clusters import (
    MOST,
    Doubles,
    Start,
    centers,
    nearest,
    nearest_vectors,
    vector_centers,
)

STARTS: tuple[Start, ...] = ("linear", "density", "kmeans++", "optimal")


def points() -> tuple[Doubles, Doubles]:
    rng = np.random.default_rng(0)
    return rng.standard_t(4, 1000), rng.exponential(size=1000)


def error(values: Doubles, weights: Doubles, found: Doubles) -> float:
    return float((weights * np.square(values - found[nearest(values, found)])).sum())


@pytest.mark.parametrize("count", [2, 5, 16])
def test_optimal_clusters_are_at_least_as_good_as_the_best_of_many_starts(count: int) -> None:
    values, weights = points()
    oracle = KMeans(count, n_init=10, random_state=0).fit(values[:, None], sample_weight=weights)
    assert error(values, weights, centers(values, weights, count, "optimal")) <= oracle.inertia_ * 1.001


@pytest.mark.parametrize("start", STARTS)
def test_every_start_ends_where_nothing_moves(start: Start) -> None:
    values, weights = points()
    found = centers(values, weights, 8, start)
    again = KMeans(8, init=found[:, None], n_init=1, max_iter=1).fit(values[:, None], sample_weight=weights)
    np.testing.assert_allclose(np.sort(again.cluster_centers_[:, 0]), found, atol=1e-3)
    assert (np.diff(found) > 0).all()


def test_few_different_numbers_are_their_own_centers() -> None:
    np.testing.assert_array_equal(centers(np.float32([3, 1, 3, 2]), None, 16, "optimal"), [1, 2, 3])


@pytest.mark.parametrize("start", STARTS)
def test_the_same_numbers_give_the_same_centers(start: Start) -> None:
    values, weights = points()
    np.testing.assert_array_equal(centers(values, weights, 16, start), centers(values, weights, 16, start))


def test_many_points_are_gathered_in_bins_without_loss() -> None:
    values = np.random.default_rng(0).normal(size=MOST + 1).astype(np.float32)
    whole, part = (centers(each, None, 16, "optimal") for each in (values, values[:: len(values) // 1_000_000]))
    errors = [np.square(values - found[nearest(values, found)]).mean() for found in (whole, part)]
    assert errors[0] <= errors[1] * 1.001
    assert errors[0] == pytest.approx(0.009497, rel=0.01)  # 16 levels for a normal distribution: J. Max, 1960, table I


def test_nearest_is_nearest() -> None:
    values, weights = points()
    found = centers(values, weights, 16, "density")
    np.testing.assert_array_equal(nearest(values, found), np.abs(values[:, None] - found).argmin(axis=1))


@pytest.mark.parametrize("start", STARTS)
def test_vectors_come_close_to_the_best_of_many_starts(start: Start) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(1000, 4)) @ rng.normal(size=(4, 4))
    found = vector_centers(vectors, None, 16, start)
    apart = np.square(vectors - found[nearest_vectors(vectors, None, found)]).sum()
    assert apart <= KMeans(16, n_init=10, random_state=0).fit(vectors).inertia_ * 1.1


def test_weights_draw_vectors_to_what_counts() -> None:
    rng = np.random.default_rng(0)
    vectors, weights = rng.normal(size=(1000, 2)), np.broadcast_to([100.0, 1.0], (1000, 2))
    found = vector_centers(vectors, weights, 16, "density")
    apart = np.square(vectors - found[nearest_vectors(vectors, weights, found)]).mean(axis=0)
    assert apart[0] < apart[1] / 10
