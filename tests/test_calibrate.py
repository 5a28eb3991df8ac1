"""Calibration: statistics streamed over feeds, independent of batching, in fixed memory; bad data refused by name."""

import tracemalloc
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import parser

from graphc.calibrate import calibrate, from_arrays, to_arrays
from graphc.collectors import HistogramCollector
from graphc.errors import InputError
from graphc.importer import load
from graphc.ir.graph import Graph
from graphc.passes.protocol import AverageRange, Histogram, Observation, Range

Floats = npt.NDArray[np.float32]
TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[n,4] x) => (float[n,4] y, int64[2] s)
<float[4] w = {1, -2, 3, 0.5}>
{
  h = Mul (x, w)
  y = Sqrt (h)
  s = Shape (x)
}
"""
SEEN = (Observation("x", Range()), Observation("h", Range()), Observation("w", Range()))


def graph() -> Graph:
    return load(parser.parse_model(TEXT))


def feeds(*rows: Sequence[float]) -> list[dict[str, Floats]]:
    return [{"x": np.array([row], np.float32)} for row in rows]


def test_ranges_of_inputs_results_and_constants() -> None:
    found = calibrate(graph(), SEEN, feeds([1, -1, 1, 1], [2, 0, 0, 3]))
    spans = {each.value: (float(arrays["low"]), float(arrays["high"])) for each, arrays in found.items()}
    assert spans == {"x": (-1, 3), "h": (0, 3), "w": (-2, 3)}


def test_no_wish_needs_no_data() -> None:
    assert calibrate(graph(), (), []) == {}


def test_progress_follows_each_feed() -> None:
    done: list[int] = []
    calibrate(graph(), SEEN, feeds([1, 0, 1, 1], [2, 0, 0, 3]), progress=done.append)
    assert done == [1, 2]


def test_average_ranges_are_means_over_feeds() -> None:
    wish = Observation("x", AverageRange())
    found = calibrate(graph(), (wish,), feeds([0, 0, 1, 1], [2, 0, 0, 4]))[wish]
    assert (found["low"], found["high"]) == (0.0, 2.5)


@pytest.mark.parametrize(
    ("given_feeds", "wish", "problem"),
    [
        ([], SEEN[0], "calibration data: is empty"),
        (feeds([1, 0, 1, np.nan]), SEEN[0], r"feed 1, input 'x': holds NaN or infinity \(1 of 4"),
        (feeds([1, 0, 1, 1], [1, 0, np.inf, 1]), SEEN[0], "feed 2, input 'x'"),
        (feeds([1, 1, 1, 1]), Observation("y", Range()), "feed 1, value 'y': holds NaN"),
        (feeds([1, 1, 1, 1]), Observation("q", Range()), "value 'q': is not in the graph"),
        (feeds([1, 1, 1, 1]), Observation("s", Range()), "value 's': is int64"),
        ([{"z": np.zeros((1, 4), np.float32)}], SEEN[0], "data 'z': is no input"),
        ([{"x": np.zeros((1, 5), np.float32)}], SEEN[0], "input 'x': has another shape"),
        ([{"x": np.zeros((1, 4), np.float64)}], SEEN[0], "input 'x': has another type"),
        ([{"x": np.zeros((0, 4), np.float32)}], SEEN[0], "value 'x': had no element"),
    ],
)
def test_bad_data_is_refused_by_name(given_feeds: list[dict[str, Floats]], wish: Observation, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        calibrate(graph(), (wish,), given_feeds)


def test_statistics_go_through_plain_arrays() -> None:
    wishes = (*SEEN, Observation("h", Histogram()))
    found = calibrate(graph(), wishes, feeds([1, 0, 1, 1], [2, 0, 0, 3]))
    flat = to_arrays(found)
    back = from_arrays(wishes, flat)
    assert back is not None
    assert list(back) == list(wishes)
    np.testing.assert_array_equal(back[wishes[-1]]["counts"], found[wishes[-1]]["counts"])
    assert from_arrays((*wishes, Observation("y", Range())), flat) is None


VALUES = arrays(np.float32, st.integers(1, 60), elements=st.floats(-(2.0**100), 2.0**100, width=32))


@settings(deadline=None)
@given(VALUES, st.lists(st.integers(1, 59), max_size=4))
def test_a_histogram_does_not_depend_on_batches_or_order(values: Floats, cuts: list[int]) -> None:
    whole = HistogramCollector(Histogram(64))
    whole.add(values)
    parts = HistogramCollector(Histogram(64))
    shuffled = np.random.default_rng(len(cuts)).permutation(values)
    for part in np.split(shuffled, sorted({cut for cut in cuts if cut < len(values)})):
        parts.add(part)
    expected, found = whole.arrays(), parts.arrays()
    for key, array in expected.items():
        np.testing.assert_array_equal(array, found[key])


@settings(deadline=None)
@given(VALUES)
def test_every_value_is_counted_in_its_bin(values: Floats) -> None:
    collector = HistogramCollector(Histogram(64))
    collector.add(values)
    found = collector.arrays()
    edges = (np.arange(65) - 32) * float(found["width"])
    np.testing.assert_array_equal(found["counts"], np.histogram(values.astype(np.float64), edges)[0])
    assert found["counts"].sum() == len(values)


def test_memory_does_not_grow_with_the_number_of_feeds() -> None:
    wishes = tuple(Observation(name, statistic) for name in ("x", "h") for statistic in (Range(), Histogram()))
    row = np.random.default_rng(0).uniform(0, 1, (64, 4)).astype(np.float32)
    peaks = []
    for count in (10, 500):
        tracemalloc.start()
        calibrate(graph(), wishes, ({"x": row * (1 + step % 8)} for step in range(count)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] <= 1.3 * peaks[0]
