"""How much each layer's quantization costs: one layer quantized at a time, everything else in floating point.

For every layer that a spec's `quantize` step makes integers of, and every candidate for its weights: the output's
signal-to-noise ratio on real data, the metric where the spec has one, and the bytes that it saves. What was measured is
kept, layer by layer, so a run that was cut short goes on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from graphc.data import Dataset
from graphc.errors import InputError
from graphc.execute import Session
from graphc.ir import Graph
from graphc.ir.cost import cost
from graphc.ir.graph import Node
from graphc.ir.text import fingerprint
from graphc.job import Job
from graphc.memory import Memory
from graphc.passes.protocol import Context, Statistics
from graphc.passes.quantize import Quantize
from graphc.pipeline import observe
from graphc.progress import Progress, silent, stage_of
from graphc.quality import Model, Samples, qualities
from graphc.report import Quality

TOGETHER = 8
"""Variants judged in one run over the data: their sessions are in memory at once."""


@dataclass(frozen=True)
class Row:
    """One layer with weights of one format. `saved` are bytes; `sqnr` in dB (None: the output is the same)."""

    layer: str
    operator: str
    weights: str
    elements: int
    saved: int
    sqnr: float | None
    value: float | None

    @property
    def noise(self) -> float:
        """Noise over signal at the output."""
        return 0.0 if self.sqnr is None else 10 ** (-self.sqnr / 10)


@dataclass(frozen=True)
class Sensitivity:
    """The rows of every layer, grouped, candidates in the order given; the metric before, and the model's bytes."""

    rows: tuple[Row, ...]
    metric: str | None
    before: float | None
    bytes: int
    samples: int


@dataclass(frozen=True)
class Subject:
    """A job cut at its `quantize` step: the graph that the step gets, what calibration found for it, what judges it."""

    job: Job
    step: Quantize
    graph: Graph
    statistics: Statistics
    samples: Samples
    memory: Memory

    def quantized(self, step: Quantize) -> Graph:
        """The graph after another step of the same observations."""
        return step.apply(self.graph, Context(self.statistics))

    def judge(self, graphs: Mapping[str, Graph]) -> dict[str, Quality]:
        """The quality of each graph against the model, by name."""
        names = {name: fingerprint(graph) for name, graph in graphs.items()}
        starts = {names[name]: partial(_start, graph) for name, graph in graphs.items()}
        found = qualities(self.job.model, starts, self.samples, self.memory)
        return {name: found[names[name]] for name in graphs}


def subject_of(job: Job, memory: Memory, weights: Sequence[str], count: int, progress: Progress = silent) -> Subject:
    """Run the passes before `quantize` and calibrate for it, with every format of `weights` in mind.

    Raises InputError where the spec has no `quantize` step or more than one, or no data.
    """
    places = [index for index, step in enumerate(job.spec.passes) if isinstance(step, Quantize)]
    if len(places) != 1:
        problem = f"expected one `quantize` step, got {len(places)}."
        raise InputError("passes", problem, "Sensitivity is that of the layers of one step.")
    graph = job.model
    for step in job.spec.passes[: places[0]]:
        stage = stage_of(progress, step.kind)
        graph = step.apply(graph, Context(observe(step, graph, job.data, memory, stage), stage))
    step = job.spec.passes[places[0]]
    assert isinstance(step, Quantize)
    step = step.model_copy(update={"io": "float"})  # borders are no layers, and floats measure alike
    calibration = stage_of(progress, "calibration")
    found: dict[Any, Any] = {}
    for each in (step, *(_with_weights(step, name) for name in weights)):
        found.update(observe(each, graph, job.data, memory, calibration))
    step, statistics = step.resolved(graph, found)
    return Subject(job, step, graph, statistics, _samples(job, count), memory)


def sensitivity(subject: Subject, weights: Sequence[str], progress: Progress = silent) -> Sensitivity:
    """Measure every layer with every format of `weights`; without any, with the step's own."""
    layers = subject.step.layers(subject.graph)
    if not layers:
        raise InputError("passes", "the `quantize` step makes integers of no layer.", "Check its options.")
    options = subject.step.options(subject.graph)
    floats = cost(subject.graph).bytes
    pairs = [(nodes, name) for nodes in layers for name in (weights or [options[nodes[0]].weights])]
    rows: list[Row] = []
    before: float | None = None
    for start in range(0, len(pairs), TOGETHER):
        progress("layers", start / len(pairs))
        part = pairs[start : start + TOGETHER]
        variants = {str(i): subject.quantized(alone(subject, *pair)) for i, pair in enumerate(part)}
        found = subject.judge({**variants, "model": subject.job.model})
        before = found["model"].value
        for i, ((node, *_), name) in enumerate(part):
            quality, graph = found[str(i)], variants[str(i)]
            size = subject.graph.types[_weight(subject.graph, node)].size
            saved = floats - cost(graph).bytes
            rows.append(Row(node.name, node.op, name, size, saved, quality.sqnr, quality.value))
    progress("layers", 1.0)
    metric, data = subject.samples.metric, subject.samples.dataset
    samples = len(data) * data.rows
    return Sensitivity(tuple(rows), metric.name if metric else None, before, floats, samples)


def alone(subject: Subject, nodes: Sequence[Node], weights: str) -> Quantize:
    """The step that quantizes one layer as the subject's own does, but for the format of its weights.

    `nodes` are the layer's, with its bias and Relu.
    """
    own = subject.step.options(subject.graph)[nodes[0]]
    fields = {key: getattr(own, key) for key in Quantize.overridable}
    rule = {**{key: value for key, value in fields.items() if value is not None}, "weights": weights}
    rules = [{**rule, "name": literal(node.name)} for node in nodes]
    return Quantize.model_validate({"weights": "none", "activations": "none", "where": rules})


def literal(name: str) -> str:
    """A rule's pattern that matches this name alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _with_weights(step: Quantize, weights: str) -> Quantize:
    return Quantize.model_validate({**step.model_dump(exclude_unset=True), "weights": weights, "where": ()})


def _weight(graph: Graph, node: Node) -> str:
    return max((name for name in node.reads if name in graph.constants), key=lambda name: graph.types[name].size)


def _samples(job: Job, count: int) -> Samples:
    """Up to `count` samples of what judges the job, evenly spread."""
    judged = job.data.judged_on
    section = job.spec.data.evaluation or job.spec.data.calibration
    if judged is None or section is None:
        raise InputError("data", "sensitivity needs real data.", "Add `evaluation` or `calibration` under `data:`.")
    rows = judged.dataset.rows
    runs = max(min(count // rows, len(judged.dataset)), 1)
    inputs = {name: job.model.types[name] for name in job.model.inputs}
    fewer = section.model_copy(update={"count": runs * rows})
    return replace(judged, dataset=Dataset(fewer, inputs, job.spec.data.preprocess))


def _start(graph: Graph) -> Model:
    return Session(graph).run
