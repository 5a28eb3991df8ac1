"""What a build is asked for, settled and checked before any work starts: spec, model, data, targets, name.

Everything a user can get wrong without a pass being run is found here, so `graphc check` is this and no more.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError

from graphc import metrics, preprocess
from graphc.backends import targets
from graphc.backends.targets import Target
from graphc.data import Dataset
from graphc.errors import InputError
from graphc.importer import Source, load
from graphc.ir import Graph, TensorType
from graphc.ir.check import check_values
from graphc.passes.protocol import check_order
from graphc.pipeline import Data
from graphc.spec import Spec, read
from graphc.spec.mistakes import describe, sentence
from graphc.spec.model import Calibration, Cpu
from graphc.spec.model import Target as TargetEntry
from graphc.tune import Tuning

SpecSource: TypeAlias = str | Path | Mapping[str, Any] | Spec


@dataclass(frozen=True)
class Job:
    """`model` is the network as it was loaded, preprocessing in front where the spec folds it in, under the job's name.

    `source` says where it came from.
    """

    spec: Spec
    name: str
    model: Graph
    source: str
    data: Data
    targets: tuple[Target, ...]
    tunings: Mapping[str, Tuning]
    """By target: which kernels are to be chosen by measuring."""


def prepare(model: Source | Graph | None, spec: SpecSource, only: Collection[str] = ()) -> Job:
    """Read and check everything. `model` stands in for the spec's own; `only` are ids of the spec's targets to build.

    Raises InputError naming what is wrong: in the spec, the model, the data, the targets or the order of passes.
    """
    spec = read_spec(spec)
    check_order(spec.passes)
    entries = _chosen(spec.targets, only)
    chosen = tuple(targets.resolve(entry.model_dump()) for entry in entries)
    graph, source = _model(model, spec)
    name = spec.name or _name(graph, source)
    if spec.data.preprocess is not None and spec.data.preprocess.fold:
        graph = preprocess.prepend(graph, spec.data.preprocess)
    tunings = {
        entry.id: Tuning(entry.tune, spec.folder / entry.tuning)
        for entry in entries
        if isinstance(entry, Cpu) and entry.tune is not None
    }
    return Job(spec, name, replace(graph, name=name), source, data_of(spec, graph), chosen, tunings)


def read_spec(spec: SpecSource) -> Spec:
    """A spec from a file, from plain data (paths relative to the working folder), or as it is."""
    if isinstance(spec, Spec):
        return spec
    if isinstance(spec, str | Path):
        return read(spec)
    try:
        return Spec.model_validate(spec, context={"folder": Path.cwd()})
    except ValidationError as errors:
        lines = []
        for error in errors.errors(include_url=False):
            expected, got, remedy = describe(error, Spec)
            lines.append(f"{_key(error['loc'])}: {sentence(expected, got)} {remedy}".rstrip())
        raise InputError("spec", "\n".join(lines) if len(lines) == 1 else "\n" + "\n".join(lines)) from None


def data_of(spec: Spec, model: Graph) -> Data:
    """The spec's data for a model, opened and checked against its inputs. The files are read when they are iterated."""
    inputs = {name: model.types[name] for name in model.inputs}
    calibration, evaluation = spec.data.calibration, spec.data.evaluation
    if evaluation is None:
        return Data(calibration=_dataset(calibration, inputs, spec))
    metric = metrics.create(evaluation, model.outputs, spec.folder)
    held_out = Dataset(evaluation, inputs, spec.data.preprocess, spec.folder)
    if metric.needs_labels and not held_out.has_labels:
        problem = f"metric {metric.name} needs labels, and {held_out.label} holds no array `y`."
        raise InputError("data.evaluation", problem, "Add the array `y`, or folders of images per class.")
    return Data(_dataset(calibration, inputs, spec), held_out, metric)


def _chosen(entries: tuple[TargetEntry, ...], only: Collection[str]) -> list[TargetEntry]:
    """The spec's targets, or those of them that are asked for."""
    known = {entry.id: entry for entry in entries}
    for id_ in only:
        if id_ not in known:
            there = ", ".join(known) or "none"
            raise InputError("--target", f"the spec has no target '{id_}' (it has: {there}).", "Add it to `targets:`.")
    return [entry for id_, entry in known.items() if not only or id_ in only]


def _model(model: Source | Graph | None, spec: Spec) -> tuple[Graph, str]:
    """The network, and where it came from."""
    if isinstance(model, Graph):
        return model, "graph"
    shapes = spec.model.inputs if spec.model else {}
    if model is None:
        if spec.model is None:
            raise InputError("model", "the spec names no model, and none was given.", "Add `model: {path: ...}`.")
        model = spec.model.path
    graph = load(model, shapes)
    check_values(graph)
    for name in graph.inputs:
        if not graph.types[name].is_static:
            problem = f"has open dimensions: {graph.types[name]}."
            remedy = f"Fix them in the spec: `model: {{inputs: {{{name}: [...]}}}}`."
            raise InputError(f"{_source(model)}: input '{name}'", problem, remedy)
    return graph, _source(model)


def _source(model: Source) -> str:
    return str(Path(model).absolute()) if isinstance(model, str | Path) else "memory"


def _name(graph: Graph, source: str) -> str:
    """An artifact's name where the spec has none: the model's file name, else the graph's own name."""
    given = Path(source).stem if source not in ("graph", "memory") else graph.name
    name = re.sub(r"[^a-z0-9]+", "_", given.lower()).strip("_")[:60] or "model"
    return name if name[0].isalpha() else f"m_{name}"


def _dataset(section: Calibration | None, inputs: Mapping[str, TensorType], spec: Spec) -> Dataset | None:
    return Dataset(section, inputs, spec.data.preprocess, spec.folder) if section is not None else None


def _key(location: tuple[int | str, ...]) -> str:
    """A place in plain data: passes[2].weights."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".") or "spec"
