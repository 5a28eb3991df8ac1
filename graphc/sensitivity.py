"""How much each layer's compression costs: one layer at a time, everything else as it was.

The subject is a spec's `quantize` step, and the candidates are formats of weights; or its `prune` step, and the
candidates are shares that go. For every layer and candidate: the output's signal-to-noise ratio on real data, the
divergence of its scores (graphc.relative_entropy), the metric where the spec has one, and the bytes and
multiply-accumulates that it saves. What was measured is kept, layer by
layer, so a run that was cut short goes on.
"""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

from graphc.data import Dataset
from graphc.errors import InputError
from graphc.execute import Session
from graphc.ir import Graph
from graphc.ir.cost import Cost, cost
from graphc.ir.graph import Node
from graphc.ir.text import fingerprint
from graphc.job import Job
from graphc.memory import Memory
from graphc.passes.protocol import Context, Pass, Statistics
from graphc.passes.prune import Prune
from graphc.passes.quantize import Quantize
from graphc.pipeline import observe
from graphc.progress import Progress, silent, stage_of
from graphc.quality import Model, Samples, qualities
from graphc.report import Quality

TOGETHER = 8
"""Variants judged in one run over the data: their sessions are in memory at once."""


By: TypeAlias = Literal["sqnr", "kl", "metric"]
"""What tells how much a layer loses: noise over signal at the output, divergence of its scores, or the metric."""
MEASURES: tuple[By, ...] = get_args(By)


@dataclass(frozen=True)
class Row:
    """One layer with one candidate: a format of weights, or a share that goes. `saved` are bytes, `macs` those saved;
    `sqnr` in dB (None: the output is the same), `kl` in nats (None: no output has scores).
    """

    layer: str
    operator: str
    candidate: str
    elements: int
    saved: int
    sqnr: float | None
    value: float | None
    macs: int = 0
    kl: float | None = None

    @property
    def noise(self) -> float:
        """Noise over signal at the output."""
        return 0.0 if self.sqnr is None else 10 ** (-self.sqnr / 10)


Choice = Mapping[str, Row]
"""Layer -> the row of the candidate that it gets."""


@dataclass(frozen=True)
class Sensitivity:
    """The rows of every layer, grouped, candidates in the order given; the metric before, the model's bytes and MACs.

    `title` says what candidates are; `by`, what layers are compared by.
    """

    rows: tuple[Row, ...]
    metric: str | None
    before: float | None
    bytes: int
    samples: int
    macs: int = 0
    title: str = "weights"
    by: By = "sqnr"
    higher_is_better: bool = True

    def loss(self, row: Row) -> float:
        """What a candidate costs, in the unit of `by`."""
        if self.by == "sqnr":
            return row.noise
        if self.by == "kl":
            return row.kl or 0.0
        change = (self.before or 0.0) - (row.value or 0.0)
        return change if self.higher_is_better else -change


@dataclass(frozen=True)
class Subject:
    """A job cut at a step: the graph that the step gets, what calibration found for it, what judges it."""

    job: Job
    step: Pass
    graph: Graph
    statistics: Statistics
    samples: Samples
    memory: Memory

    @property
    @abstractmethod
    def title(self) -> str:
        """What a candidate is, in a word or two."""

    @abstractmethod
    def layers(self) -> Sequence[tuple[Node, ...]]:
        """What is measured alone: a node with weights, then what goes with it."""

    @abstractmethod
    def candidates(self, layer: Node, wanted: Sequence[str]) -> Sequence[str]:
        """What is tried on a layer: what was asked for, else what the step does."""

    @abstractmethod
    def alone(self, nodes: Sequence[Node], candidate: str) -> Pass:
        """The step that does this to one layer and nothing to the others."""

    @abstractmethod
    def chosen(self, choice: Choice) -> Pass:
        """The spec's step with a rule for each layer that the step itself would treat in another way."""

    def applied(self, step: Pass) -> Graph:
        """The graph after another step of the same observations."""
        return step.apply(self.graph, Context(self.statistics))

    def price(self, choice: Choice) -> Cost:
        """What the graph costs with this choice."""
        return cost(self.applied(self.measured(choice)))

    def measured(self, choice: Choice) -> Pass:
        """The step of a choice as it is measured."""
        return self.chosen(choice)

    def judge(self, graphs: Mapping[str, Graph]) -> dict[str, Quality]:
        """The quality of each graph against the model, by name."""
        names = {name: fingerprint(graph) for name, graph in graphs.items()}
        starts = {names[name]: partial(_start, graph) for name, graph in graphs.items()}
        found = qualities(self.job.model, starts, self.samples, self.memory)
        return {name: found[names[name]] for name in graphs}

    def size(self, layer: Node) -> int:
        """Weights of a layer."""
        return self.graph.types[_weight(self.graph, layer)].size


@dataclass(frozen=True)
class QuantizeSubject(Subject):
    """Candidates are formats of weights."""

    step: Quantize

    @property
    def title(self) -> str:
        return "weights"

    def layers(self) -> Sequence[tuple[Node, ...]]:
        return self.step.layers(self.graph)

    def candidates(self, layer: Node, wanted: Sequence[str]) -> Sequence[str]:
        return wanted or [self.step.options(self.graph)[layer].weights]

    def alone(self, nodes: Sequence[Node], candidate: str) -> Quantize:
        """`nodes` are the layer's, with its bias and Relu."""
        own = self.step.options(self.graph)[nodes[0]]
        fields = {key: getattr(own, key) for key in Quantize.overridable}
        rule = {**{key: value for key, value in fields.items() if value is not None}, "weights": candidate}
        rules = [{**rule, "name": literal(node.name)} for node in nodes]
        return Quantize.model_validate({"weights": "none", "activations": "none", "where": rules})

    def chosen(self, choice: Choice) -> Quantize:
        options = {node.name: own for node, own in self.step.options(self.graph).items()}
        rules: list[Any] = [rule.model_dump(exclude_none=True) for rule in self.step.where]
        for layer, row in choice.items():
            if options[layer].weights != row.candidate:
                rules.append({"name": literal(layer), "weights": row.candidate})
        original = next(step for step in self.job.spec.passes if isinstance(step, Quantize))
        return Quantize.model_validate({**original.model_dump(exclude_unset=True), "where": rules})

    def measured(self, choice: Choice) -> Quantize:
        return self.chosen(choice).model_copy(update={"io": "float"})


@dataclass(frozen=True)
class PruneSubject(Subject):
    """Candidates are shares that go. A layer of channels stands for all that must go with them."""

    step: Prune

    @property
    def title(self) -> str:
        return "sparsity"

    def layers(self) -> Sequence[tuple[Node, ...]]:
        return tuple((node,) for node in self.step.layers(self.graph))

    def candidates(self, layer: Node, wanted: Sequence[str]) -> Sequence[str]:
        if not wanted and self.step.macs is not None:
            raise InputError("passes", "the `prune` step gives no share to try.", "Give some with --sparsity.")
        return wanted or [str(self.step.options(self.graph)[layer].stages[-1])]

    def alone(self, nodes: Sequence[Node], candidate: str) -> Prune:
        rule = {"name": literal(nodes[0].name), "sparsity": float(candidate)}
        return self._with([{"name": "*", "sparsity": 0.0}, rule])

    def chosen(self, choice: Choice) -> Prune:
        rules: list[Any] = [rule.model_dump(exclude_none=True) for rule in self.step.where]
        given = [{"name": literal(layer), "sparsity": float(row.candidate)} for layer, row in choice.items()]
        return self._with([*rules, *given])

    def price(self, choice: Choice) -> Cost:
        """What is repaired costs the same."""
        return cost(self.applied(self.chosen(choice).model_copy(update={"repair": "none"})))

    def _with(self, rules: Sequence[Any]) -> Prune:
        fields = self.step.model_dump(exclude_unset=True, exclude={"macs", "allocation", "where"})
        return Prune.model_validate({**fields, "sparsity": self._share, "where": rules})

    @property
    def _share(self) -> float:
        """What layers that no rule names lose: nothing, where the step speaks of the whole."""
        return self.step.stages[-1] if self.step.macs is None and self.step.allocation == "uniform" else 0.0


def subject_of(job: Job, memory: Memory, candidates: Sequence[str], count: int, progress: Progress = silent) -> Subject:
    """Run the passes before the step and calibrate for it, with every candidate in mind.

    Raises InputError where the spec has no `quantize` or `prune` step or more than one, or no data.
    """
    places = [index for index, step in enumerate(job.spec.passes) if isinstance(step, Quantize | Prune)]
    if len(places) != 1:
        problem = f"expected one `quantize` or `prune` step, got {len(places)}."
        raise InputError("passes", problem, "Sensitivity is that of the layers of one step.")
    graph = job.model
    for each in job.spec.passes[: places[0]]:
        stage = stage_of(progress, each.kind)
        graph = each.apply(graph, Context(observe(each, graph, job.data, memory, stage), stage))
    step = job.spec.passes[places[0]]
    if isinstance(step, Prune) and step.pattern == "layers":
        raise InputError("passes", "pattern layers takes whole blocks: there is no share of one.", "Prune channels.")
    calibration = stage_of(progress, "calibration")
    samples = _samples(job, count)
    if isinstance(step, Prune):
        statistics = observe(step, graph, job.data, memory, calibration)
        return PruneSubject(job, step, graph, statistics, samples, memory)
    assert isinstance(step, Quantize)
    step = step.model_copy(update={"io": "float"})  # borders are no layers, and floats measure alike
    found: dict[Any, Any] = {}
    for tried in (step, *(_with_weights(step, name) for name in candidates)):
        found.update(observe(tried, graph, job.data, memory, calibration))
    step, statistics = step.resolved(graph, found)
    return QuantizeSubject(job, step, graph, statistics, samples, memory)


def sensitivity(
    subject: Subject, candidates: Sequence[str], progress: Progress = silent, by: By = "sqnr"
) -> Sensitivity:
    """Measure every layer with every one of `candidates`; without any, with what the step does.

    Raises InputError where the step changes no layer, and where there is nothing to compare layers `by`.
    """
    if by == "metric" and subject.samples.metric is None:
        raise InputError("--by", "the spec has no metric to compare layers by.", "Add `evaluation` under `data:`.")
    layers = subject.layers()
    if not layers:
        raise InputError("passes", f"the `{subject.step.kind}` step changes no layer.", "Check its options.")
    whole = cost(subject.graph)
    pairs = [(nodes, name) for nodes in layers for name in subject.candidates(nodes[0], candidates)]
    kept = _Rows(subject)
    rows = {pair: kept.recall(*pair) for pair in pairs}
    missing = [pair for pair, row in rows.items() if row is None]
    for start in range(0, len(missing), TOGETHER):
        progress("layers", (len(pairs) - len(missing) + start) / len(pairs))
        part = missing[start : start + TOGETHER]
        variants = {str(i): subject.applied(subject.alone(*pair)) for i, pair in enumerate(part)}
        found = subject.judge(variants)
        for i, (nodes, name) in enumerate(part):
            price, node = cost(variants[str(i)]), nodes[0]
            rows[nodes, name] = Row(
                layer=node.name,
                operator=node.op,
                candidate=name,
                elements=subject.size(node),
                saved=whole.bytes - price.bytes,
                sqnr=found[str(i)].sqnr,
                value=found[str(i)].value,
                macs=(whole.macs or 0) - (price.macs or 0),
                kl=found[str(i)].kl,
            )
            kept.keep(nodes, name, rows[nodes, name])
    if by == "kl" and any(row is not None and row.kl is None for row in rows.values()):
        raise InputError("--by", "no output of the model is scores of classes, [batch, ..., classes].", "Use sqnr.")
    before = subject.judge({"model": subject.job.model})["model"].value
    progress("layers", 1.0)
    metric, data = subject.samples.metric, subject.samples.dataset
    samples = len(data) * data.rows
    return Sensitivity(
        rows=tuple(row for row in rows.values() if row is not None),
        metric=metric.name if metric else None,
        before=before,
        bytes=whole.bytes,
        samples=samples,
        macs=whole.macs or 0,
        title=subject.title,
        by=by,
        higher_is_better=metric.higher_is_better if metric else True,
    )


@dataclass(frozen=True)
class _Rows:
    """Rows in memory: of the same graph, step, data and judge. A metric of the user's own may have changed."""

    subject: Subject

    def recall(self, nodes: tuple[Node, ...], candidate: str) -> Row | None:
        metric = self.subject.samples.metric
        kept = (
            None if metric and ":" in metric.name else self.subject.memory.recall("row", *self._key(nodes, candidate))
        )
        return None if kept is None else Row(**json.loads(kept))

    def keep(self, nodes: tuple[Node, ...], candidate: str, row: Row | None) -> None:
        assert row is not None
        self.subject.memory.keep(json.dumps(asdict(row)).encode(), "row", *self._key(nodes, candidate))

    def _key(self, nodes: tuple[Node, ...], candidate: str) -> tuple[str, ...]:
        subject, data = self.subject, self.subject.job.data
        metric, calibration = subject.samples.metric, data.calibration
        return (
            fingerprint(subject.job.model),
            fingerprint(subject.graph),
            subject.alone(nodes, candidate).model_dump_json(),
            calibration.fingerprint if calibration is not None else "",
            subject.samples.dataset.fingerprint,
            metric.name if metric else "",
        )


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
    return replace(judged, dataset=Dataset(fewer, inputs, job.spec.data.preprocess, job.spec.folder))


def _start(graph: Graph) -> Model:
    return Session(graph).run
