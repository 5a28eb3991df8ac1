"""Factorize: a layer becomes two or more thin ones of low rank, whose product comes close to it.

    Conv(x, w, b) -> Conv(Conv(x, v), u, b)      MatMul(x, w) -> MatMul(MatMul(x, v), u)      Gather(t, i) -> MatMul

`form` says how windows of convolutions are cut up (factorize_forms.py has the mathematics and sources); matrices and
1x1 convolutions always become two. With `data: whitened` what counts is the error at the layer's output on calibration
data, known from the Gram matrix of its input; with `none`, the error of the weights.

Ranks, by exactly one of:
- energy: the smallest rank of each layer that keeps so much of its output's (its weights') energy;
- ratio: the best of each layer that takes so much of its multiply-accumulates;
- macs, parameters: what may be left of the whole model's, shared out among layers by their errors (factorize_ranks.py);
- accuracy_drop: the fewest multiply-accumulates with which at most so many per cent of `samples` calibration feeds get
  another answer (another largest output) than before.

`repair` fits every layer that is touched, last stages among them, to the results of the dense graph on `samples` feeds,
one after another with what the layers before come to then (channel_repair.py): the closed-form update of the factors.
A layer stays as it is, with a reason, where no rank that is a multiple of `multiple` makes it smaller; `never_slower`
refuses ranks with which it should not be faster on each target of the spec (backends/factor_speed.py).
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from graphc.ir.cost import cost
from graphc.ir.edit import Edit
from graphc.ir.graph import Array, Graph
from graphc.passes.channel_repair import Repair, repaired
from graphc.passes.factorize_forms import Doubles, Form, Moments
from graphc.passes.factorize_layers import Target, candidates, targets, write
from graphc.passes.factorize_ranks import Candidate, by_energy, by_ratio, by_total
from graphc.passes.protocol import Context, Observation, Pass, Whole, unknown

RULES = ("energy", "ratio", "macs", "parameters", "accuracy_drop")
Share = Annotated[float | None, Field(gt=0, lt=1)]
STEPS = 6
"""Halvings of the multiply-accumulates in the search for an accuracy."""


class Factorize(Pass):
    """Thin layers of low rank: Conv(x, w) -> Conv(Conv(x, v), u)."""

    requires: ClassVar[frozenset[str]] = frozenset({"fold"})
    before: ClassVar[frozenset[str]] = frozenset({"quantize", "share_weights"})
    overridable: ClassVar[frozenset[str]] = frozenset(("form", "data", "energy", "ratio", "multiple"))

    kind: Literal["factorize"] = "factorize"
    form: Annotated[Form | Literal["none"], Field(description="how windows are cut up; none: leave the layer alone")]
    data: Annotated[
        Literal["none", "whitened"], Field(description="what errors count; whitened needs calibration data")
    ]
    energy: Annotated[Share, Field(description="part of each layer's energy to keep")] = None
    ratio: Annotated[Share, Field(description="part of each layer's multiply-accumulates that may be left")] = None
    macs: Annotated[Share, Field(description="part of the model's multiply-accumulates that may be left")] = None
    parameters: Annotated[Share, Field(description="part of the model's parameters that may be left")] = None
    accuracy_drop: Annotated[
        float | None, Field(gt=0, lt=100, description="per cent of calibration feeds whose answer may change")
    ] = None
    multiple: Annotated[int, Field(ge=1, description="what ranks are multiples of")] = 1
    repair: Annotated[Repair, Field(description="how layers make up for the error of those before")] = "none"
    never_slower: Annotated[
        bool, Field(description="factors that should not be faster than the dense layer on a target are refused")
    ] = False
    samples: Annotated[int, Field(ge=1, description="calibration feeds that repair and accuracy_drop run on")] = 64

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        """Ranks are decided by one rule; a rule for some nodes replaces that of the others."""
        given = [rule for rule in RULES if getattr(self, rule) is not None]
        if len(given) != 1:
            context = {"expected": f"one of {', '.join(RULES)} (given: {', '.join(given) or 'none'})"}
            error = InitErrorDetails(type="literal_error", loc=("ratio",), input=self.ratio, ctx=context)
            raise ValidationError.from_exception_data("Factorize", [error])
        return self

    def observes(self, graph: Graph) -> tuple[Observation, ...]:
        """Gram matrices of the layers' inputs, and whole feeds for what runs the graph again."""
        options = self.options(graph)
        wishes = [
            each.layer.gram
            for each in targets(graph)
            if isinstance(each, Target) and each.layer is not None and options[each.node].data == "whitened"
        ]
        if self.repair != "none" or self.accuracy_drop is not None:
            wishes += [Observation(name, Whole(self.samples)) for name in graph.inputs]
        return tuple(dict.fromkeys(wishes))

    def apply(self, graph: Graph, context: Context) -> Graph:
        """Factors for every layer that gets smaller by them; the report has ranks and errors of each."""
        choices = self._choices(graph, context)
        if self.accuracy_drop is not None:
            return self._within(graph, choices, context)
        return self._built(graph, choices, self._chosen(graph, choices, self.macs, self.parameters), context)

    def _choices(self, graph: Graph, context: Context) -> dict[Target, list[Candidate]]:
        """Every layer that may become factors, with its candidates, the dense layer first."""
        options, found = self.options(graph), {}
        every = list(targets(graph))
        for done, each in enumerate(every):
            if not isinstance(each, Target):
                context.skip(*each)
                continue
            context.progress(each.node.name, done / len(every))
            own = options[each.node]
            if own.form == "none":
                continue
            speed = context.speed if self.never_slower else unknown
            made = list(candidates(each, _moments(each, own, context), own.form, own.multiple, speed))
            if made:
                found[each] = [each.dense(), *made]
            else:
                faster = " and is faster on every target" if self.never_slower else ""
                context.skip(each.node, f"no rank reduces its multiply-accumulates and parameters{faster}")
        return found

    def _chosen(
        self, graph: Graph, choices: Mapping[Target, Sequence[Candidate]], macs: float | None, parameters: float | None
    ) -> Sequence[Candidate]:
        """One candidate per layer, in order."""
        options = self.options(graph)
        layers = list(choices.values())
        if macs is not None or parameters is not None:
            price = cost(graph)
            whole = price.macs if macs is not None else price.parameters
            counted = _macs if macs is not None else _parameters
            share = macs if macs is not None else parameters
            rest = (whole or 0) - sum(counted(each[0]) for each in layers)
            chosen = by_total(layers, (share or 0) * (whole or 0) - rest, counted)
            return chosen if chosen is not None else [min(each, key=counted) for each in layers]
        found = []
        for target, each in choices.items():
            own = options[target.node]
            if own.energy is not None:
                found.append(by_energy(each, own.energy))
            else:
                found.append(by_ratio(each, own.ratio or 1.0, _parameters if target.layer is None else _macs))
        return found

    def _built(
        self,
        graph: Graph,
        choices: Mapping[Target, Sequence[Candidate]],
        chosen: Sequence[Candidate],
        context: Context,
    ) -> Graph:
        edit = Edit(graph)
        for target, each in zip(choices, chosen, strict=True):
            if each.make is None:
                context.skip(target.node, "no rank within the limits errs less than the dense layer costs")
                continue
            write(edit, target, each.make())
            dense, ranks = target.dense(), {f"rank{i or ''}": rank for i, rank in enumerate(each.ranks)}
            left = {"macs": each.macs / max(dense.macs, 1), "parameters": each.parameters / dense.parameters}
            context.note(target.node, **ranks, **left, error=each.error**0.5)
        after = edit.apply()
        if after is graph or self.repair == "none":
            return after
        return repaired(graph, after, {}, self._feeds(graph, context), self.repair, context)

    def _within(self, graph: Graph, choices: Mapping[Target, Sequence[Candidate]], context: Context) -> Graph:
        """The graph with the fewest multiply-accumulates whose answers stay."""
        from graphc.execute import Session  # onnxruntime is not needed where another rule is asked for

        feeds = self._feeds(graph, context)
        expected = _answers(Session(graph), feeds)
        low, high, best, heard = 0.0, 1.0, graph, Context(context.statistics)
        for _ in range(STEPS):
            share = (low + high) / 2
            tried = Context(context.statistics, context.progress)
            after = self._built(graph, choices, self._chosen(graph, choices, share, None), tried)
            changed = 100 * float(np.mean(_answers(Session(after), feeds) != expected))
            if changed <= (self.accuracy_drop or 0):
                high, best, heard = share, after, tried
            else:
                low = share
        context.skips += heard.skips
        context.notes += heard.notes
        return best

    def _feeds(self, graph: Graph, context: Context) -> list[dict[str, Array]]:
        stored = {name: context.statistics[Observation(name, Whole(self.samples))]["values"] for name in graph.inputs}
        return [{name: array[i] for name, array in stored.items()} for i in range(len(next(iter(stored.values()))))]


def _moments(target: Target, options: Factorize, context: Context) -> Moments:
    gram: Doubles | None = None
    if target.layer is not None and options.data == "whitened":
        gram = context.statistics[target.layer.gram]["gram"][0].astype(np.float64)
    return Moments.of(target.matrix, gram)


def _macs(candidate: Candidate) -> int:
    return candidate.macs


def _parameters(candidate: Candidate) -> int:
    return candidate.parameters


def _answers(session: "object", feeds: Sequence[Mapping[str, Array]]) -> Array:
    """The place of the largest element of the first output, feed by feed and row by row."""
    from graphc.execute import Session

    assert isinstance(session, Session)
    found = (session.run(feed)[session.graph.outputs[0]] for feed in feeds)
    return np.concatenate([np.asarray(values).reshape(-1, values.shape[-1]).argmax(axis=1) for values in found])
