"""What tells how good a model is: top1, top5, mse, auc, perplexity, agreement, or the user's own `module:function`.

A metric is started, fed run by run, and asked for its value. All but auc keep sums only (auc: one number per sample).
Shapes: dimensions of size 1 beside the batch count for nothing, so `[N, 10, 1, 1]` is `[N, 10]`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphc import user_code
from graphc.errors import InputError
from graphc.ir import Array
from graphc.spec.model import Evaluation

Numbers: TypeAlias = npt.NDArray[np.float64]
Whole: TypeAlias = npt.NDArray[np.int64]
Outputs: TypeAlias = Mapping[str, Array]
"""A model's outputs by name."""


class Accumulator(ABC):
    """A metric being measured."""

    @abstractmethod
    def add(self, outputs: Outputs, labels: Array | None, reference: Outputs | None) -> None:
        """Take in one run: the model's outputs, the labels, the original model's outputs on the same input.

        Raises InputError where they do not fit the metric.
        """

    @abstractmethod
    def value(self) -> float:
        """The metric over all runs so far. Raises InputError where there were none."""


@dataclass(frozen=True)
class Metric:
    """`needs_labels`, `needs_reference`: what `add` must be given. `unit` is '%' or empty."""

    name: str
    unit: str
    higher_is_better: bool
    needs_labels: bool
    needs_reference: bool
    start: Callable[[], Accumulator]

    def drop(self, before: float, after: float) -> float:
        """How much worse `after` is, in the metric's unit; negative where it is better."""
        return before - after if self.higher_is_better else after - before


def create(evaluation: Evaluation, outputs: Sequence[str], folder: Path) -> Metric:
    """The metric that a spec asks for, on one of the model's `outputs`; own functions are looked for in `folder` first.

    Raises InputError where the output is not clear or the function cannot be had.
    """
    if ":" in evaluation.metric:
        return _own(evaluation.metric, folder)
    output = evaluation.output or outputs[0]
    if output not in outputs or (evaluation.output is None and len(outputs) > 1):
        problem = f"expected one of the model's outputs ({', '.join(outputs)}), got {evaluation.output or 'nothing'}."
        raise InputError("data.evaluation.output", problem, "Name the output that the metric reads.")
    unit, higher, labels, reference, start = _BUILT_IN[evaluation.metric]
    return Metric(evaluation.metric, unit, higher, labels, reference, partial(start, output))


class _Mean(Accumulator):
    """A mean over entries; `score` gives the sum and the number of entries of one run."""

    def __init__(self, output: str) -> None:
        self.output, self.total, self.number = output, 0.0, 0

    def add(self, outputs: Outputs, labels: Array | None, reference: Outputs | None) -> None:
        result = outputs[self.output]
        if np.issubdtype(result.dtype, np.floating) and np.isnan(result).any():
            raise InputError(
                f"output '{self.output}'", "expected numbers, got NaN.", "The model is broken on this data."
            )
        total, number = self.score(result, labels if reference is None else reference[self.output])
        self.total += total
        self.number += number

    @abstractmethod
    def score(self, result: Array, truth: Array | None) -> tuple[float, int]: ...

    def value(self) -> float:
        if not self.number:
            raise InputError(
                f"output '{self.output}'", "nothing was measured.", "Give at least one sample with a label."
            )
        return self.total / self.number

    def misfit(self, result: Array, truth: Array | None, expected: str) -> InputError:
        got = "no labels" if truth is None else f"labels of shape {list(truth.shape)}"
        problem = f"expected {expected} for its shape {list(result.shape)}, got {got}."
        return InputError(f"output '{self.output}'", problem, "Labels are the array `y` of the data file.")


class _Top(_Mean):
    """Percent of labels among the `k` highest scores; between equal scores the lower class comes first."""

    def __init__(self, k: int, output: str) -> None:
        super().__init__(output)
        self.k = k

    def score(self, result: Array, truth: Array | None) -> tuple[float, int]:
        scores, labels = self.classes(result, truth)
        own = np.take_along_axis(scores, labels[..., None], axis=-1)
        ahead = (scores > own) | ((scores == own) & (np.arange(scores.shape[-1]) < labels[..., None]))
        return 100.0 * float((ahead.sum(axis=-1) < self.k).sum()), labels.size

    def classes(self, result: Array, truth: Array | None) -> tuple[Numbers, Whole]:
        """Scores with the classes last, and a class number for each. The classes are the one axis that labels lack."""
        scores: Numbers = _slim(result).astype(np.float64)
        labels = None if truth is None else _slim(truth)
        if labels is None or scores.ndim != labels.ndim + 1:
            raise self.misfit(result, truth, "one label for every set of class scores")
        if scores.shape[:-1] != labels.shape:
            scores = np.moveaxis(scores, 1, -1)
        if scores.shape[:-1] != labels.shape:
            raise self.misfit(result, truth, "one label for every set of class scores")
        whole: Whole = labels.astype(np.int64)
        wrong = (whole != labels) | (whole >= scores.shape[-1]) | (whole < self.lowest)
        if wrong.any():
            problem = f"expected labels from {self.lowest} to {scores.shape[-1] - 1}, got {labels[wrong][0]}."
            raise InputError(f"output '{self.output}'", problem, "Labels are class numbers that count from 0.")
        return scores, whole

    lowest = 0


class _Perplexity(_Top):
    """exp of the mean negative log-likelihood of the tokens `y`, from logits; a label of -1 counts for nothing."""

    lowest = -1

    def __init__(self, output: str) -> None:
        super().__init__(1, output)

    def score(self, result: Array, truth: Array | None) -> tuple[float, int]:
        scores, labels = self.classes(result, truth)
        peak = scores.max(axis=-1, keepdims=True)
        total = (peak + np.log(np.exp(scores - peak).sum(axis=-1, keepdims=True)))[..., 0]
        likelihood = np.take_along_axis(scores, np.maximum(labels, 0)[..., None], axis=-1)[..., 0] - total
        return -float(likelihood[labels >= 0].sum()), int((labels >= 0).sum())

    def value(self) -> float:
        return float(np.exp(super().value()))


class _SquaredError(_Mean):
    """Mean squared difference between the output and `y`, in float64."""

    def score(self, result: Array, truth: Array | None) -> tuple[float, int]:
        if truth is None or _slim(result).shape != _slim(truth).shape:
            raise self.misfit(result, truth, "a label for every element")
        difference = _slim(result).astype(np.float64) - _slim(truth).astype(np.float64)
        return float(np.square(difference).sum()), difference.size


class _Agreement(_Mean):
    """Percent of samples whose highest score is the original model's. Classes: the last axis, axis 1 from rank 4 on."""

    def score(self, result: Array, truth: Array | None) -> tuple[float, int]:
        mine, theirs = (_slim(array) if array is not None else None for array in (result, truth))
        if mine is None or theirs is None or mine.shape != theirs.shape or mine.ndim < 2:
            raise self.misfit(result, truth, "class scores from both models")
        axis = 1 if mine.ndim >= 4 else -1
        same = mine.argmax(axis) == theirs.argmax(axis)
        return 100.0 * float(same.sum()), same.size


class _Auc(_Mean):
    """Area under the ROC curve: how often a sample labelled 1 scores above one labelled 0, ties counting half."""

    def __init__(self, output: str) -> None:
        super().__init__(output)
        self.scores: list[Numbers] = []
        self.labels: list[npt.NDArray[np.bool_]] = []

    def score(self, result: Array, truth: Array | None) -> tuple[float, int]:
        scores, labels = _slim(result).astype(np.float64), None if truth is None else _slim(truth)
        if scores.ndim == 2 and scores.shape[1] == 2:
            scores = scores[:, 1] - scores[:, 0]
        if labels is None or scores.shape != labels.shape or not np.isin(labels, (0, 1)).all():
            raise self.misfit(result, truth, "one score (or two) per sample and labels that are 0 or 1")
        self.scores.append(scores)
        self.labels.append(labels.astype(bool))
        return 0.0, labels.size

    def value(self) -> float:
        super().value()
        scores, labels = np.concatenate(self.scores), np.concatenate(self.labels)
        positive, negative = int(labels.sum()), int((~labels).sum())
        if not positive or not negative:
            problem = f"auc needs samples of both classes, got {negative} of 0 and {positive} of 1."
            raise InputError(f"output '{self.output}'", problem, "Raise `count`, or give other data.")
        _, place, repeats = np.unique(scores, return_inverse=True, return_counts=True)
        ranks = np.cumsum(repeats) - (repeats - 1) / 2
        return float((ranks[place][labels].sum() - positive * (positive + 1) / 2) / (positive * negative))


_BUILT_IN: Mapping[str, tuple[str, bool, bool, bool, Callable[[str], Accumulator]]] = {
    "top1": ("%", True, True, False, partial(_Top, 1)),
    "top5": ("%", True, True, False, partial(_Top, 5)),
    "mse": ("", False, True, False, _SquaredError),
    "auc": ("", True, True, False, _Auc),
    "perplexity": ("", False, True, False, _Perplexity),
    "agreement": ("%", True, False, True, _Agreement),
}
"""Name -> unit, higher is better, needs labels, needs the original's outputs, start."""


def _slim(array: Array) -> Array:
    """Without the dimensions of size 1 beside the batch."""
    return array.reshape(array.shape[:1] + tuple(dim for dim in array.shape[1:] if dim != 1))


class _Own(Accumulator):
    """Averages what the user's function returns: one number per sample."""

    def __init__(self, name: str, function: Callable[[dict[str, Array], Array | None], object]) -> None:
        self.name, self.function, self.total, self.number = name, function, 0.0, 0

    def add(self, outputs: Outputs, labels: Array | None, reference: Outputs | None) -> None:
        try:
            scores = np.asarray(self.function(dict(outputs), labels), np.float64)
        except user_code.RAISED as error:
            raise InputError(f"metric {self.name}", user_code.failure(error)) from error
        if scores.ndim != 1 or not np.isfinite(scores).all():
            problem = f"expected a list of finite numbers, one per sample, got {scores.tolist()!r:.60}."
            raise InputError(f"metric {self.name}", problem, "Return one score for each sample of the batch.")
        self.total += float(scores.sum())
        self.number += scores.size

    def value(self) -> float:
        if not self.number:
            raise InputError(f"metric {self.name}", "nothing was measured.", "Give at least one sample.")
        return self.total / self.number


class _OwnState(Accumulator):
    """The user's own accumulator: `add(outputs, labels)` and `value()`."""

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        self.name = name
        self.state = self._call(make)

    def add(self, outputs: Outputs, labels: Array | None, reference: Outputs | None) -> None:
        self._call(lambda: self.state.add(dict(outputs), labels))

    def value(self) -> float:
        found = float(self._call(lambda: float(self.state.value())))
        if not np.isfinite(found):
            raise InputError(f"metric {self.name}", f"expected a finite number as its value, got {found}.")
        return found

    def _call(self, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except user_code.RAISED as error:
            raise InputError(f"metric {self.name}", user_code.failure(error)) from error


def _own(name: str, folder: Path) -> Metric:
    """`module:function`: a function `(outputs, labels) -> score per sample`, averaged; or a class (`add`, `value`)."""
    found = user_code.find(f"metric {name}", name, folder)
    attribute = name.rpartition(":")[2]
    higher = getattr(found, "higher_is_better", None)
    if not isinstance(higher, bool):
        remedy = f"Write `{attribute}.higher_is_better = True` (or False) below it."
        raise InputError(f"metric {name}", f"expected an attribute higher_is_better, got {higher!r}.", remedy)
    start = partial(_OwnState, name, found) if isinstance(found, type) else partial(_Own, name, found)
    return Metric(name, "", higher, False, False, start)
