"""How good an artifact's own code is: the metric of its spec, on held-out samples, here or in an emulator."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from graphc import artifact, metrics
from graphc.borders import Border
from graphc.emulator import open_anywhere
from graphc.errors import InputError, UnsupportedError
from graphc.importer import load
from graphc.measure import by_name
from graphc.progress import Progress, silent
from graphc.report import read_report
from graphc.samples import data_section, dataset_of, model_beside


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A metric's `value` over so many samples; `unit` is '%' or empty."""

    metric: str
    unit: str
    value: float
    samples: int


def accuracy_of(folder: Path, count: int, threads: int = 1, progress: Progress = silent) -> Accuracy:
    """The metric of the spec that the artifact in `folder` was built from, on the first `count` samples of its data.

    Raises InputError where the spec has no evaluation data or it is gone, UnsupportedError for a metric that needs the
    original model beside it; else as opening the artifact does.
    """
    graph, report = load(model_beside(folder)), read_report(artifact.find(folder).resolve().parent)
    data = data_section(report)
    if data.evaluation is None:
        raise InputError("--accuracy", "its spec has no `data: evaluation`.", "Add it and build again.")
    metric = metrics.create(data.evaluation, graph.outputs, Path(report.folder))
    if metric.needs_reference:
        raise UnsupportedError("--accuracy", f"metric {metric.name} needs the original model, which is not part of it.")
    samples = dataset_of(report, data, data.evaluation, {name: graph.types[name] for name in graph.inputs})
    border = Border.of(graph, {name: np.dtype(dtype) for name, dtype in report.types.items()})
    judge, taken, total = metric.start(), 0, min(count, len(samples))
    with open_anywhere(folder, threads) as runner:
        model = border.around(by_name(runner))
        for batch in islice(samples, count):
            judge.add(model(batch.feeds), batch.labels, None)
            taken += 1
            progress("accuracy", taken / total)
    return Accuracy(metric.name, metric.unit, judge.value(), taken)
