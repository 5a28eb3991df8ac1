"""Methods that choose a range: against brute force, on distributions whose answer is known, on degenerate data."""

import numpy as np
import numpy.typing as npt
import pytest

from graphc.collectors import HistogramCollector, RangeCollector
from graphc.ir.graph import Array
from graphc.passes.protocol import Histogram, Range
from graphc.passes.quantize_ranges import STATISTICS, Choice, Method, choose
from graphc.passes.quantize_schemes import FORMATS, affine, dequantize, quantize

Floats = npt.NDArray[np.float32]
UINT8 = FORMATS["uint8"]
SEARCHED: list[Method] = ["mse", "entropy"]
RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=100_000).astype(np.float32)
WITH_OUTLIER = np.append(NORMAL, np.float32(400))


def histogram(values: Floats) -> dict[str, Array]:
    collector = HistogramCollector(Histogram())
    collector.add(values)
    return collector.arrays()


def span(
    values: Floats, method: Method, percentile: float | None = None, symmetric: bool = False
) -> tuple[float, float]:
    return choose(histogram(values), Choice(method, percentile, UINT8, symmetric))


def error(values: Floats, low: float, high: float) -> float:
    grid = affine(low, high, UINT8, False, "x")
    return float(np.square(dequantize(quantize(values, grid), grid) - values.astype(np.float64)).mean())


def test_minmax_is_what_was_seen() -> None:
    collector = RangeCollector()
    collector.add(np.float32([-1, 3]))
    assert choose(collector.arrays(), Choice("minmax", None, UINT8, False)) == (-1, 3)
    assert STATISTICS["minmax"] == Range()


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentiles_are_those_of_numpy_to_a_bin(percentile: float) -> None:
    low, high = span(NORMAL, "percentile", percentile)
    tail = (100 - percentile) / 2
    width = float(histogram(NORMAL)["width"])
    np.testing.assert_allclose([low, high], np.percentile(NORMAL, [tail, 100 - tail]), atol=width)
    assert span(NORMAL, "percentile", 100.0) == (NORMAL.min(), NORMAL.max())


@pytest.mark.parametrize("values", [NORMAL, np.maximum(NORMAL, 0), WITH_OUTLIER, np.abs(NORMAL) ** 3])
def test_mse_is_within_two_percent_of_brute_force(values: Floats) -> None:
    low, high = min(float(values.min()), 0.0), float(values.max())
    shares = np.linspace(0.005, 1, 200)
    brute = min(error(values, low * s, high * s) for s in shares)
    assert error(values, *span(values, "mse")) <= 1.02 * brute


def test_an_outlier_ruins_minmax_and_no_other_method() -> None:
    everything = error(NORMAL, *map(float, (NORMAL.min(), 400)))
    for method, percentile in (("mse", None), ("entropy", None), ("percentile", 99.99)):
        found = span(WITH_OUTLIER, method, percentile)  # type: ignore[arg-type]
        if method == "mse":
            assert error(WITH_OUTLIER, *found) < error(WITH_OUTLIER, float(NORMAL.min()), 400)
        else:
            assert error(NORMAL, *found) < everything / 50, method


@pytest.mark.parametrize("method", SEARCHED)
def test_searched_ranges_lie_within_what_was_seen_and_do_not_cut_uniform_data(method: Method) -> None:
    values = RNG.uniform(-1, 3, 100_000).astype(np.float32)
    low, high = span(values, method)
    assert values.min() <= low <= -0.95
    assert 2.9 <= high <= values.max()


@pytest.mark.parametrize("method", SEARCHED)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("values", [[0.0], [2.0], [-3.0], [0.0, 0.0], [1e-30, 0.0], [-1.0, 1.0]])
def test_degenerate_data_gives_a_range_that_holds_it(values: list[float], symmetric: bool, method: Method) -> None:
    found = span(np.float32(values), method, symmetric=symmetric)
    grid = affine(*found, UINT8, symmetric, "x")
    back = dequantize(quantize(np.float32(values), grid), grid)
    np.testing.assert_allclose(back, values, atol=float(grid.scale), rtol=0.01)
