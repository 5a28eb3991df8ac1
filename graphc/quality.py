"""How far models are from the original, and how good they are: one pass over the data for all of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, log10
from typing import Literal, TypeAlias

import numpy as np

from graphc.data import Batch, Dataset
from graphc.execute import Session
from graphc.ir import Array, Graph
from graphc.ir.text import fingerprint
from graphc.memory import Memory
from graphc.metrics import Metric, Outputs
from graphc.progress import Progress, silent
from graphc.relative_entropy import RelativeEntropy
from graphc.report import Quality

Model: TypeAlias = Callable[[Mapping[str, Array]], Outputs]
"""Runs once: inputs by name -> outputs by name."""


@dataclass(frozen=True)
class Samples:
    """What models are judged on. Without a metric only the distance from the original is measured."""

    dataset: Dataset
    kind: Literal["evaluation", "calibration", "random"]
    metric: Metric | None


def qualities(
    original: Graph,
    starts: Mapping[str, Callable[[], Model]],
    samples: Samples,
    memory: Memory,
    progress: Progress = silent,
) -> dict[str, Quality]:
    """The quality of each model, under the name it is given: the content of what it runs. `starts` makes them ready.

    Those not remembered are measured in one run over the data, in which the original runs once per batch.
    Raises InputError where labels are missing or an output holds NaN.
    """
    metric = samples.metric
    decided_by = (fingerprint(original), samples.dataset.fingerprint, samples.kind, metric.name if metric else "")
    found: dict[str, Quality] = {}
    for name in starts:
        # The code behind a metric of the user's own may have changed: such a value is measured every time.
        kept = None if metric and ":" in metric.name else memory.recall("quality", name, *decided_by)
        if kept is not None:
            found[name] = Quality.model_validate_json(kept)
    missing = {name: start() for name, start in starts.items() if name not in found}
    if missing:
        found |= _measure(Session(original).run, missing, samples, progress)
    for name in missing:
        memory.keep(found[name].model_dump_json().encode(), "quality", name, *decided_by)
    return found


def _measure(original: Model, models: Mapping[str, Model], samples: Samples, progress: Progress) -> dict[str, Quality]:
    judges = {name: Judge(samples.metric) for name in models}
    total = len(samples.dataset)
    count = 0
    for done, batch in enumerate(samples.dataset, 1):
        reference = original(batch.feeds)
        for name, model in models.items():
            judges[name].add(model(batch.feeds), batch.labels, reference)
        count += _rows(batch)
        progress(f"accuracy on {samples.kind} data", done / total)
    return {name: judge.quality(samples, count) for name, judge in judges.items()}


def _rows(batch: Batch) -> int:
    """Samples in one run: its labels, or else the largest first dimension."""
    if batch.labels is not None and batch.labels.ndim:
        return len(batch.labels)
    return max((len(array) for array in batch.feeds.values() if array.ndim), default=1)


class Judge:
    """Takes in one model's outputs, run by run."""

    def __init__(self, metric: Metric | None) -> None:
        self._metric = metric
        self._accumulator = metric.start() if metric else None
        self._differences: dict[str, Difference] = {}
        self._divergences: dict[str, RelativeEntropy] = {}

    def add(self, outputs: Outputs, labels: Array | None, reference: Outputs) -> None:
        """One run: what the model gave, the labels, what the original gave on the same input."""
        if self._metric and self._accumulator:
            wanted = reference if self._metric.needs_reference else None
            self._accumulator.add(outputs, None if wanted else labels, wanted)
        for name, expected in reference.items():
            if expected.dtype.kind in "biuf" and outputs[name].shape == expected.shape:
                self._differences.setdefault(name, Difference()).add(outputs[name], expected)
                self._divergences.setdefault(name, RelativeEntropy()).add(outputs[name], expected)

    def quality(self, samples: Samples, count: int) -> Quality:
        """The figures over all runs so far."""
        ratios = (difference.sqnr for difference in self._differences.values())
        divergences = (divergence.value for divergence in self._divergences.values())
        return Quality(
            samples=count,
            data=samples.kind,
            metric=self._metric.name if self._metric else None,
            value=self._accumulator.value() if self._accumulator else None,
            sqnr=min((ratio for ratio in ratios if ratio is not None), default=None),
            error=max((difference.error for difference in self._differences.values()), default=0.0),
            kl=max((value for value in divergences if value is not None), default=None),
        )


@dataclass
class Difference:
    """Sums over the elements of one value, in float64."""

    signal: float = 0.0
    noise: float = 0.0
    peak: float = 0.0
    largest: float = 0.0

    def add(self, actual: Array, expected: Array) -> None:
        """Take in two arrays of one shape. Equal infinities and NaNs do not differ; unequal ones do so infinitely."""
        left, right = actual.astype(np.float64), expected.astype(np.float64)
        same = (left == right) | (np.isnan(left) & np.isnan(right))
        finite = np.where(np.isfinite(right), right, 0.0)
        apart = np.abs(np.subtract(left, right, where=~same, out=np.zeros_like(left)))
        apart = np.where(np.isnan(apart), inf, apart)
        self.signal += float(np.square(finite).sum())
        self.noise += float(np.square(apart).sum())
        self.peak = max(self.peak, float(np.abs(finite).max(initial=0.0)))
        self.largest = max(self.largest, float(apart.max(initial=0.0)))

    @property
    def sqnr(self) -> float | None:
        """Signal to noise in dB; None where nothing differs."""
        if self.noise == 0.0:
            return None
        ratio = self.signal / self.noise
        return 10.0 * log10(ratio) if ratio else -inf

    @property
    def error(self) -> float:
        """The largest difference over the largest magnitude expected; infinite where that is 0 and they differ."""
        if self.largest == 0.0:
            return 0.0
        return self.largest / self.peak if self.peak else inf
