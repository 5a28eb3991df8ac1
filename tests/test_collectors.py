"""Collectors of layers' inputs: what they keep is what numpy finds on all the data at once, whatever the batching."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from graphc.calibrate import calibrate
from graphc.collectors import collector, scrambled
from graphc.errors import InputError
from graphc.ir.graph import Array, Graph
from graphc.passes.protocol import (
    AverageRange,
    Gram,
    Histogram,
    Moments,
    Observation,
    Range,
    Rows,
    Sample,
    Statistic,
    Total,
)
from tests.passes.quantized import model

STATISTICS: Sequence[Statistic] = (
    Range(), AverageRange(), Histogram(64), Total(Rows()), Gram(Rows()), Gram(Rows(2, (3,), (2,), (1,), (1, 1))),
    Moments(1), Sample(Rows(), 7),
)  # fmt: skip


def values(count: int, *shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).normal(1, 2, (count, *shape)).astype(np.float32)


def collected(statistic: Statistic, pieces: Sequence[npt.NDArray[np.float32]]) -> dict[str, Array]:
    found = collector(statistic)
    for piece in pieces:
        found.add(piece)
    return found.arrays()


def test_gram_and_total_are_those_of_all_rows() -> None:
    x = values(300, 5, 6)
    found = collected(Gram(Rows()), [x])
    rows = x.reshape(-1, 6).astype(np.float64)
    np.testing.assert_allclose(found["gram"][0], rows.T @ rows, rtol=1e-12)
    np.testing.assert_allclose(collected(Total(Rows()), [x])["total"][0], rows.sum(0), rtol=1e-12)
    assert found["count"] == 1500


def test_moments_are_those_of_each_channel() -> None:
    x = values(50, 4, 3)
    found = collected(Moments(1), [x])
    flat = x.astype(np.float64).transpose(1, 0, 2).reshape(4, -1)
    for name, expected in {
        "low": flat.min(1), "high": flat.max(1), "mean": flat.mean(1),
        "magnitude": np.abs(flat).mean(1), "energy": np.square(flat).mean(1),
    }.items():  # fmt: skip
        np.testing.assert_allclose(found[name], expected, rtol=1e-12)


@pytest.mark.parametrize("statistic", [each for each in STATISTICS if each != AverageRange()], ids=str)
def test_batching_changes_no_bit(statistic: Statistic) -> None:
    x = values(600, 4, 9)
    whole = collected(statistic, [x])
    for size in (1, 7, 100):
        parts = collected(statistic, np.split(x, range(size, len(x), size)))
        for name, array in whole.items():
            np.testing.assert_array_equal(array, parts[name])


def test_a_sample_is_rows_of_the_data_in_order_and_of_all_of_it() -> None:
    x = np.arange(5000, dtype=np.float32)[:, None]
    found = collected(Sample(Rows(), 400), [x])["sample"][0, :, 0].astype(np.float64)
    assert len(found) == 400 and (np.diff(found) > 0).all()
    assert abs(found.mean() - 2499.5) < 4 * 5000 / np.sqrt(12 * 400)  # four deviations of a mean of 400
    assert not np.array_equal(found, collected(Sample(Rows(), 400, 1), [x])["sample"][0, :, 0])
    few = collected(Sample(Rows(), 400), [x[:9]])["sample"]
    np.testing.assert_array_equal(few[0], x[:9])


def test_hashes_spread_evenly() -> None:
    found = scrambled(np.arange(100_000), 0) / 2.0**64
    counts = np.histogram(found, 100, (0, 1))[0]
    assert (np.square(counts - 1000) / 1000).sum() < 160  # chi-squared, 99 degrees of freedom: p < 1e-4 beyond


def graph() -> Graph:
    return model("(float[n,4,9] x) => (float[n,4,9] y)", "y = Relu (x)")


class Box:
    """Keeps the last state in memory."""

    def __init__(self) -> None:
        self.state: dict[str, Array] | None = None

    def load(self) -> dict[str, Array] | None:
        return self.state

    def save(self, state: Mapping[str, Array]) -> None:
        self.state = {name: array.copy() for name, array in state.items()}


def test_a_run_that_was_cut_short_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphc.calibrate.KEEP_EVERY", 0.0)
    wishes = [Observation("x", statistic) for statistic in STATISTICS]
    feeds = [{"x": part} for part in np.split(values(60, 4, 9), 6)]
    bad = [*feeds[:3], {"x": feeds[3]["x"] * np.float32(np.nan)}]
    box, done = Box(), list[int]()
    with pytest.raises(InputError, match="feed 4"):
        calibrate(graph(), wishes, bad, kept=box)
    resumed = calibrate(graph(), wishes, feeds, kept=box, progress=done.append)
    assert done == [4, 5, 6]
    for wish, arrays in calibrate(graph(), wishes, feeds).items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(resumed[wish][name], array)
