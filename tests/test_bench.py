"""Timing: order statistics, taking turns, and what peers say when they cannot take part."""

from collections.abc import Callable
from pathlib import Path

import pytest

from graphc.bench import MIN_ROUNDS, Timing, interleave, percentile
from graphc.errors import InputError, ToolchainError
from graphc.peers import start


class Clock:
    """A clock that moves only when something runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float, log: list[str], name: str) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds
            log.append(name)

        return run


def test_timing_gives_order_statistics() -> None:
    assert Timing.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Timing(median=3.0, minimum=1.0, low=1.4, high=4.6)
    assert percentile([7.0], 90) == 7.0


def test_interleave_takes_turns_and_times_each_round() -> None:
    clock, log = Clock(), list[str]()
    runs = {"a": clock.work(0.01, log, "a"), "b": clock.work(0.02, log, "b")}
    figures = interleave(runs, seconds=0.0, clock=clock)
    assert [len(samples) for samples in figures.values()] == [MIN_ROUNDS, MIN_ROUNDS]
    assert figures["a"] == pytest.approx([0.01] * MIN_ROUNDS)
    assert figures["b"] == pytest.approx([0.02] * MIN_ROUNDS)
    assert log[4:12] == [
        "a",
        "a",
        "b",
        "b",
        "b",
        "b",
        "a",
        "a",
    ]  # after two trials of each: rounds of warm and timed runs


def test_interleave_fills_a_block_with_short_runs() -> None:
    clock, log = Clock(), list[str]()
    interleave({"a": clock.work(0.001, log, "a")}, seconds=0.0, clock=clock)
    assert len(log) == 2 + MIN_ROUNDS * (1 + 5)


def test_an_unknown_peer_is_refused() -> None:
    with pytest.raises(InputError, match="Known: onnxruntime, openvino"):
        start("tensorflow", Path("model.onnx"), {}, 1)


def test_a_missing_peer_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphc.peers.find_spec", lambda _name: None)
    with pytest.raises(ToolchainError, match=r"not installed.*pip install 'graphc\[bench\]'"):
        start("openvino", Path("model.onnx"), {}, 1)
