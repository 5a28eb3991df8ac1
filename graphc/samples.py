"""Inputs to run an artifact on: the data it was built with where that is still there, else seeded random numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from graphc import artifact
from graphc.borders import Border
from graphc.data import Dataset
from graphc.errors import InputError
from graphc.ir import Array, Graph, TensorType
from graphc.report import Report, read_report
from graphc.sources import SEED, random_array
from graphc.spec.model import Calibration, Data
from graphc.staging import MODEL


def model_beside(folder: Path) -> Path:
    """The model.onnx of the build that an artifact belongs to. Raises InputError where there is none."""
    path = artifact.find(folder).resolve().parent / MODEL
    if not path.is_file():
        problem = f"there is no {MODEL} beside it to compare it with."
        raise InputError(str(folder), problem, "Use the folder where `graphc build` put it, or build again.")
    return path


@dataclass(frozen=True)
class Inputs:
    """Feeds for the model, and a sentence that says what they are."""

    feeds: tuple[Mapping[str, Array], ...]
    source: str


def inputs_for(folder: Path, model: Graph, count: int, real: bool = False) -> Inputs:
    """Up to `count` samples of the data that the report of an artifact's build names, as `model` takes them.

    Where there is none, or it is gone: random inputs, and why is said; with `real`, InputError that says why.
    """
    types = {name: model.types[name] for name in model.inputs}
    try:
        report = read_report(artifact.find(folder).resolve().parent)
        dataset = _dataset(report, types)
    except InputError as error:
        if real:
            raise
        found = seeded(types, count)
        return Inputs(found.feeds, f"{found.source}, because: {error}")
    if dataset is None:
        if real:
            raise InputError(str(folder), "its spec names no data.", "Add `data: evaluation` and build again.")
        return seeded(types, count)
    border = Border.of(model, {name: np.dtype(dtype) for name, dtype in report.types.items()})
    feeds = tuple(border.enter(batch.feeds) for batch in islice(dataset, count))
    return Inputs(feeds, f"{_inputs(len(feeds))} of {dataset.label}")


def data_section(report: Report) -> Data:
    """The data section of the spec that a build was made from. Raises InputError where it was altered."""
    try:
        return Data.model_validate(report.spec.get("data", {}))
    except ValidationError as error:
        raise InputError("report.json", "its data section was altered.", "Build again.") from error


def _dataset(report: Report, types: Mapping[str, TensorType]) -> Dataset | None:
    """The evaluation data of a build, else its calibration data, for a model with these inputs."""
    data = data_section(report)
    section = data.evaluation or data.calibration
    return dataset_of(report, data, section, types) if section is not None else None


def dataset_of(report: Report, data: Data, section: Calibration, types: Mapping[str, TensorType]) -> Dataset:
    """A section of a build's data for its model, whose inputs have these types; samples are the original model's."""
    outside = {name: TensorType(np.dtype(report.types[name]), kind.shape) for name, kind in types.items()}
    return Dataset(section, outside, data.preprocess, Path(report.folder))


def seeded(inputs: Mapping[str, TensorType], count: int) -> Inputs:
    """Random inputs, the same every time: normal floats, all integers of 8 and 16 bits, 0 or 1 for longer ones."""
    rng = np.random.default_rng(SEED)
    feeds = tuple({name: random_array(rng, kind) for name, kind in inputs.items()} for _ in range(count))
    return Inputs(feeds, f"{_inputs(count, 'random ')} (seed {SEED})")


def _inputs(count: int, kind: str = "") -> str:
    return f"{count} {kind}input{'s' if count > 1 else ''}"
