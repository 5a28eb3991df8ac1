"""Metrics against their textbook definitions, streamed in pieces, and the user's own functions."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from graphc import metrics
from graphc.errors import InputError
from graphc.ir import Array
from graphc.spec.model import METRICS, Evaluation

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(200, 10)).astype(np.float32)
LABELS = RNG.integers(0, 10, 200)


def metric(
    name: str, folder: Path = Path(), output: str | None = None, outputs: tuple[str, ...] = ("z",)
) -> metrics.Metric:
    return metrics.create(Evaluation(path=Path("unused.npz"), metric=name, output=output), outputs, folder)


def measure(name: str, scores: Array, labels: Array | None, reference: Array | None = None, pieces: int = 7) -> float:
    state = metric(name).start()
    for rows in np.array_split(np.arange(len(scores)), pieces):
        truth = None if labels is None else labels[rows]
        state.add({"z": scores[rows]}, truth, None if reference is None else {"z": reference[rows]})
    return state.value()


def test_every_name_of_the_spec_is_there() -> None:
    for name in METRICS:
        assert metric(name).name == name


def test_top1() -> None:
    assert measure("top1", SCORES, LABELS) == 100 * np.mean(SCORES.argmax(1) == LABELS)


def test_top5() -> None:
    best = np.argsort(-SCORES, axis=1)[:, :5]
    assert measure("top5", SCORES, LABELS) == 100 * np.mean(
        [label in row for label, row in zip(LABELS, best, strict=True)]
    )


def test_equal_scores_favour_the_lower_class() -> None:
    scores = np.zeros((4, 3), np.int8)
    assert measure("top1", scores, np.array([0, 1, 2, 0])) == 50.0


@pytest.mark.parametrize("shape", [(200, 10, 1, 1), (200, 1, 10)])
def test_dimensions_of_one_count_for_nothing(shape: tuple[int, ...]) -> None:
    assert measure("top1", SCORES.reshape(shape), LABELS[:, None]) == measure("top1", SCORES, LABELS)


def test_labels_per_pixel() -> None:
    scores = RNG.normal(size=(5, 3, 8, 6)).astype(np.float32)
    labels = RNG.integers(0, 3, (5, 8, 6))
    assert measure("top1", scores, labels, pieces=2) == pytest.approx(
        100 * np.mean(scores.argmax(1) == labels), abs=1e-9
    )


def test_mse() -> None:
    truth = RNG.normal(size=(200, 10)).astype(np.float32)
    assert measure("mse", SCORES, truth) == pytest.approx(np.mean((SCORES.astype(float) - truth) ** 2), rel=1e-12)


@pytest.mark.parametrize("decimals", [1, 6])
def test_auc(decimals: int) -> None:
    scores, labels = SCORES[:, 0].round(decimals), LABELS % 2
    assert measure("auc", scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    two = np.stack([np.zeros_like(scores), scores], axis=1)
    assert measure("auc", two, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_perplexity() -> None:
    logits, tokens = RNG.normal(size=(6, 12, 32)).astype(np.float32), RNG.integers(0, 32, (6, 12))
    tokens[0, 3:] = -1
    probabilities = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(-1, keepdims=True)
    chosen = np.take_along_axis(probabilities, np.maximum(tokens, 0)[..., None], -1)[..., 0][tokens >= 0]
    assert measure("perplexity", logits, tokens, pieces=3) == pytest.approx(np.exp(-np.log(chosen).mean()), rel=1e-12)
    assert measure("perplexity", np.zeros((2, 5, 32), np.float32), np.ones((2, 5), int), pieces=1) == pytest.approx(32)


def test_agreement() -> None:
    other = SCORES + RNG.normal(size=SCORES.shape).astype(np.float32)
    expected = 100 * np.mean(SCORES.argmax(1) == other.argmax(1))
    assert measure("agreement", SCORES, None, other) == expected
    assert (metric("agreement").needs_reference, metric("agreement").needs_labels) == (True, False)


@pytest.mark.parametrize(("name", "worse"), [("top1", 1.5), ("auc", 1.5), ("mse", -1.5), ("perplexity", -1.5)])
def test_direction(name: str, worse: float) -> None:
    assert metric(name).drop(3.0, 1.5) == worse


@pytest.mark.parametrize(
    ("name", "scores", "labels", "message"),
    [
        ("top1", SCORES, None, "expected one label for every set of class scores .*, got no labels"),
        ("top1", SCORES, LABELS[:, None].repeat(2, 1), "one label for every set of class scores"),
        ("top1", SCORES[:, 0], LABELS, "one label for every set"),
        ("top1", SCORES, LABELS + 1, "expected labels from 0 to 9, got 10"),
        ("top1", SCORES, LABELS - 1, "expected labels from 0 to 9, got -1"),
        ("top1", SCORES, LABELS + 0.5, "expected labels from 0 to 9"),
        ("top1", np.full((200, 10), np.nan, np.float32), LABELS, "expected numbers, got NaN"),
        ("mse", SCORES, LABELS, "expected a label for every element"),
        ("auc", SCORES[:, 0], LABELS, "labels that are 0 or 1"),
        ("auc", SCORES[:, 0], np.ones(200, int), "samples of both classes, got 0 of 0 and 200 of 1"),
        ("perplexity", SCORES, np.full(200, -1), "nothing was measured"),
        ("perplexity", SCORES, np.full(200, -2), "expected labels from -1 to 9, got -2"),
        ("agreement", SCORES, None, "class scores from both models"),
    ],
)
def test_misfits(name: str, scores: Array, labels: Array | None, message: str) -> None:
    with pytest.raises(InputError, match=f"output 'z': .*{message}"):
        measure(name, scores, labels)


def test_which_output() -> None:
    with pytest.raises(InputError, match=r"one of the model's outputs \(a, b\), got nothing. Name the output"):
        metric("top1", outputs=("a", "b"))
    with pytest.raises(InputError, match="got c"):
        metric("top1", output="c", outputs=("a", "b"))
    state = metric("top1", output="b", outputs=("a", "b")).start()
    state.add({"a": SCORES, "b": SCORES}, SCORES.argmax(1), None)
    assert state.value() == 100.0


OWN = """
import numpy as np

def distance(outputs, labels):
    return np.abs(outputs["z"]).sum(axis=1)
distance.higher_is_better = False

class Largest:
    higher_is_better = True
    def __init__(self): self.found = -np.inf
    def add(self, outputs, labels): self.found = max(self.found, float(outputs["z"].max()))
    def value(self): return self.found

class Hollow(Largest):
    def value(self): return float("nan")

def undirected(outputs, labels): return [1.0]
def broken(outputs, labels): return outputs["nope"]
broken.higher_is_better = True
def matrix(outputs, labels): return outputs["z"]
matrix.higher_is_better = True
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.py").write_text(OWN)
    (tmp_path / "faulty.py").write_text("x = 1\ny = x +\n")
    (tmp_path / "raises.py").write_text("x = 1\nraise ValueError('no luck')\n")
    return tmp_path


def own(name: str, folder: Path) -> float:
    state = metric(name, folder).start()
    for rows in np.array_split(np.arange(len(SCORES)), 7):
        state.add({"z": SCORES[rows]}, None, None)
    return state.value()


def test_own_function_is_averaged_over_samples(folder: Path) -> None:
    assert own("own.mine:distance", folder) == pytest.approx(np.abs(SCORES).sum(axis=1).mean(), rel=1e-6)
    assert metric("own.mine:distance", folder).drop(1.0, 3.0) == 2.0


def test_own_accumulator(folder: Path) -> None:
    assert own("own.mine:Largest", folder) == float(SCORES.max())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own.mine:absent", "expected a function or class 'absent' in own.mine, got None"),
        ("own.mine:undirected", "Write `undirected.higher_is_better = True`"),
        ("own.mine:broken", r"mine\.py:\d+: KeyError: 'nope'"),
        ("own.mine:matrix", "expected a list of finite numbers, one per sample"),
        ("own.mine:Hollow", "expected a finite number as its value, got nan"),
        ("nowhere_to_be_found:f", "cannot be imported: No module named 'nowhere_to_be_found'. Put nowhere"),
        ("faulty:f", r"faulty\.py:2: invalid syntax"),
        ("raises:f", r"raises\.py:2: ValueError: no luck"),
    ],
)
def test_own_mistakes(name: str, message: str, folder: Path) -> None:
    with pytest.raises(InputError, match=f"metric {name}: .*{message}"):
        own(name, folder)
