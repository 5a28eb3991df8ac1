"""Running the passes of a spec, one after another, and measuring what each one did.

model --pass 1--> graph --pass 2--> ... ; after each: checked, counted, and judged on data against the model
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from graphc.borders import Border, border_types
from graphc.calibrate import Kept, calibrate, from_arrays, to_arrays
from graphc.data import Dataset
from graphc.errors import InputError
from graphc.execute import Session
from graphc.ir import Array, Graph
from graphc.ir.check import check
from graphc.ir.cost import cost
from graphc.ir.text import fingerprint
from graphc.memory import Memory
from graphc.metrics import Metric
from graphc.passes.protocol import (
    LANES,
    Context,
    Observation,
    Pass,
    Slower,
    Speed,
    Statistics,
    check_order,
    never,
    unknown,
)
from graphc.progress import Progress, Stage, silent, stage_of
from graphc.quality import Model, Samples, qualities
from graphc.report import Noted, Quality, Skipped, Step


@dataclass(frozen=True)
class Data:
    """What passes observe and what the steps are judged by; either may be missing."""

    calibration: Dataset | None = None
    evaluation: Dataset | None = None
    metric: Metric | None = None

    @property
    def judged_on(self) -> Samples | None:
        """The evaluation data where there is some, else the calibration data; random data is called that."""
        if self.evaluation is not None:
            return Samples(self.evaluation, "evaluation", self.metric)
        if self.calibration is None:
            return None
        return Samples(self.calibration, "random" if self.calibration.is_random else "calibration", None)


@dataclass(frozen=True)
class Compressed:
    """The graph after the last step, and what each step did; step 0 is the model itself."""

    graph: Graph
    steps: tuple[Step, ...]


def run(
    model: Graph,
    passes: Sequence[Pass],
    data: Data,
    memory: Memory,
    *,
    progress: Progress = silent,
    stop_after: int | None = None,
    slower: Slower = never,
    speed: Speed = unknown,
    lanes: int = LANES,
) -> Compressed:
    """Apply `passes` (the first `stop_after` of them) to `model`; `slower`, `speed`, `lanes` are about targets.

    Raises InputError where the order of the passes breaks their rules, before anything runs, and where a pass wants
    statistics and there is no calibration data; InternalError where a pass leaves a graph that is not valid.
    """
    check_order(passes)
    graphs: list[Graph] = [model]
    contexts: list[Context] = [Context()]
    drop = partial(_drop, model, data.metric, data, memory) if data.metric is not None else None
    for index, step in enumerate(passes[:stop_after], 1):
        name = f"step {index} ({step.kind})"
        statistics = observe(step, graphs[-1], data, memory, stage_of(progress, f"{name}: calibration"))
        stage = stage_of(progress, name)
        context = Context(statistics, stage, slower=slower, speed=speed, lanes=lanes, drop=drop)
        context.progress("", 0.0)
        graphs.append(step.apply(graphs[-1], context))
        check(graphs[-1])
        contexts.append(context)
        context.progress("", 1.0)
    beside = [graph for context in contexts for graph in context.compared.values()]
    qualities = _judge([*graphs, *beside], data, memory, progress)
    compared = iter(qualities[len(graphs) :])
    steps = zip([None, *passes], graphs, contexts, qualities, strict=False)
    return Compressed(graphs[-1], tuple(_step(index, *parts, compared) for index, parts in enumerate(steps)))


def _step(
    index: int,
    step: Pass | None,
    graph: Graph,
    context: Context,
    quality: Quality | None,
    compared: Iterator[Quality | None],
) -> Step:
    price = cost(graph)
    return Step(
        index=index,
        kind=step.kind if step else "model",
        options=step.model_dump(mode="json", exclude={"kind"}) if step else {},
        nodes=len(graph.nodes),
        bytes=price.bytes,
        parameters=price.parameters,
        macs=price.macs,
        quality=quality,
        compared={name: other for name in context.compared if (other := next(compared)) is not None},
        skips=tuple(Skipped(node=skip.node, operator=skip.operator, reason=skip.reason) for skip in context.skips),
        notes=tuple(Noted(node=n.node, operator=n.operator, figures=dict(n.figures)) for n in context.notes),
    )


def observe(step: Pass, graph: Graph, data: Data, memory: Memory, stage: Stage) -> Statistics:
    """What `step` wants to know of `graph`: collected in one run over the calibration data, or remembered."""
    wishes = step.observes(graph)
    if not wishes:
        return {}
    if data.calibration is None:
        problem = f"the pass {step.kind} needs calibration data, and the spec has none."
        raise InputError("data.calibration", problem, "Add `calibration: {path: ..., count: ...}` under `data:`.")
    parts = (fingerprint(graph), data.calibration.fingerprint, [f"{wish.value} {wish.statistic}" for wish in wishes])
    kept = memory.recall("statistics", *parts)
    if kept is not None and (found := from_arrays(wishes, _unpacked(kept))) is not None:
        return found
    collected = _collect(graph, wishes, data.calibration, stage, _Half(memory, parts))
    memory.keep(_packed(to_arrays(collected)), "statistics", *parts)
    return collected


@dataclass(frozen=True)
class _Half:
    """The state of a calibration under way, in `memory`: one that was cut short goes on from there."""

    memory: Memory
    parts: Sequence[Any]

    def load(self) -> dict[str, Array] | None:
        kept = self.memory.recall("calibration", *self.parts)
        return None if kept is None else _unpacked(kept)

    def save(self, state: Mapping[str, Array]) -> None:
        self.memory.keep(_packed(state), "calibration", *self.parts)


def _collect(graph: Graph, wishes: Sequence[Observation], data: Dataset, stage: Stage, kept: Kept) -> Statistics:
    feeds = (batch.feeds for batch in data)
    return calibrate(graph, wishes, feeds, progress=lambda done: stage("", done / len(data)), kept=kept)


def _judge(graphs: Sequence[Graph], data: Data, memory: Memory, progress: Progress) -> list[Quality | None]:
    """The quality of each graph against the first."""
    if data.judged_on is None:
        return [None] * len(graphs)
    names = [fingerprint(graph) for graph in graphs]
    outside = border_types(graphs[0])
    starts = {name: partial(_runner, graph, outside) for name, graph in zip(names, graphs, strict=True)}
    found = qualities(graphs[0], starts, data.judged_on, memory, progress)
    return [found[name] for name in names]


def _drop(model: Graph, metric: Metric, data: Data, memory: Memory, graph: Graph) -> float:
    """How much worse the metric of `graph` is than the model's, on the evaluation data."""
    before, after = (quality.value for quality in _judge([model, graph], data, memory, silent) if quality is not None)
    assert before is not None and after is not None
    return metric.drop(before, after)


def _runner(graph: Graph, outside: Mapping[str, np.dtype[np.generic]]) -> Model:
    return Border.of(graph, outside).around(Session(graph).run)


def _packed(arrays: Mapping[str, Array]) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]  # numpy's own annotation takes each keyword for allow_pickle
    return content.getvalue()


def _unpacked(content: bytes) -> dict[str, Array]:
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return dict(stored)
