"""Factorize: a layer becomes two or more thin ones of low rank, whose product comes close to it.

    Conv(x, w, b) -> Conv(Conv(x, v), u, b)      MatMul(x, w) -> MatMul(MatMul(x, v), u)      Gather(t, i) -> MatMul

`form` says how windows of convolutions are cut up (factorize_forms.py has the mathematics and sources); matrices and
1x1 convolutions always become two. With `data: whitened` what counts is the error at the layer's output on calibration
data, known from the Gram matrix of its input; with `none`, the error of the weights.

Ranks, by exactly one of:
- energy: the smallest rank of each layer that keeps so much of its output's (its weights') energy;
- ratio: the best of each layer that takes so much of its multiply-accumulates;
- macs, parameters: what may be left of the whole model's, shared out among layers by their errors (factorize_ranks.py);
- accuracy_drop: the fewest multiply-accumulates with which the metric of the evaluation data is at most so much worse
  than the model's, in its own unit. Where the spec has no metric: with which at most so many per cent of `samples`
  calibration feeds get another answer (another largest output) than before.

`repair` fits every layer that is touched, last stages among them, to the results of the dense graph on `samples` feeds,
one after another with what the layers before come to then (channel_repair.py): the closed-form update of the factors.
A layer stays as it is, with a reason, where no rank that is a multiple of `multiple` makes it smaller, or none of those
should be faster on each target of the spec (backends/factor_speed.py). `never_slower: false` takes slower ones as well;
unsaid, so does a share of parameters, which is for size, as long as they are not slower than the dense layer.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from graphc.errors import InputError
from graphc.ir.cost import cost
from graphc.ir.edit import Edit
from graphc.ir.graph import Array, Graph
from graphc.passes.channel_repair import Repair, repaired
from graphc.passes.factorize_forms import Doubles, Form, Moments
from graphc.passes.factorize_layers import Target, candidates, pays, targets, write
from graphc.passes.factorize_ranks import Candidate, by_energy, by_ratio, by_total
from graphc.passes.protocol import Context, Observation, Pass, Whole, unknown

RULES = ("energy", "ratio", "macs", "parameters", "accuracy_drop")
Share = Annotated[float | None, Field(gt=0, lt=1)]
Choices = Mapping[Target, Sequence[Candidate]]
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
        float | None,
        Field(gt=0, lt=100, description="how much worse the metric may be; without one, per cent of changed answers"),
    ] = None
    multiple: Annotated[int, Field(ge=1, description="what ranks are multiples of")] = 1
    repair: Annotated[Repair, Field(description="how layers make up for the error of those before")] = "none"
    never_slower: Annotated[
        bool, Field(description="factors that should not be faster than the dense layer on a target are refused")
    ] = True
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
        if self.macs is None and self.parameters is None:
            return self._built(graph, choices, self._each_alone(graph, choices), context)
        chosen = self._together(graph, choices)
        if chosen is None:
            raise self._out_of_reach(graph, choices)
        return self._built(graph, choices, chosen, context)

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
            fast = [candidate for candidate in made if self._pays(candidate, each)]
            if fast:
                found[each] = [each.dense(), *fast]
            elif made:
                best = max(made, key=lambda candidate: candidate.speed)
                reason = f"its thin layers should have at best {best.speed:.2f}x its speed on {best.slowest}"
                context.skip(each.node, f"{reason}, at {best.macs / each.dense().macs:.2f} of its multiply-accumulates")
            else:
                context.skip(each.node, "no rank reduces its multiply-accumulates and parameters")
        return found

    def _pays(self, candidate: Candidate, layer: Target) -> bool:
        return candidate.speed >= 1 if self.parameters is not None else pays(candidate, layer.dense())

    def _each_alone(self, graph: Graph, choices: Choices) -> list[Candidate]:
        """One candidate per layer, in order, by the options of its own."""
        options = self.options(graph)
        return [_alone(options[target.node], target, each) for target, each in choices.items()]

    @property
    def _counted(self) -> Callable[[Candidate], int]:
        """What the target of the whole model counts."""
        return _macs if self.parameters is None else _parameters

    def _together(self, graph: Graph, choices: Choices, macs: float | None = None) -> list[Candidate] | None:
        """One candidate per layer, in order, so that the whole model keeps its target (or this share of its
        multiply-accumulates); None where the cheapest do not."""
        layers, counted = list(choices.values()), self._counted
        share = macs or self.macs or self.parameters or 1.0
        whole = _whole(graph, counted)
        return by_total(layers, share * whole - (whole - _sum(counted, (each[0] for each in layers))), counted)

    def _out_of_reach(self, graph: Graph, choices: Choices) -> InputError:
        counted, whole = self._counted, _whole(graph, self._counted)
        saved = sum(counted(each[0]) - min(map(counted, each)) for each in choices.values())
        rule = "macs" if self.macs is not None else "parameters"
        problem = f"cannot be met: the least that ranks leave is {1 - saved / max(whole, 1):.3f} of the model's"
        reason = ", because others should be slower on the targets" if self.never_slower else ""
        remedy = "Ask for less, for other forms" + (", or for `never_slower: false`." if self.never_slower else ".")
        return InputError(f"factorize.{rule}", f"{getattr(self, rule)} {problem}{reason}.", remedy)

    def _built(
        self,
        graph: Graph,
        choices: Choices,
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

    def _within(self, graph: Graph, choices: Choices, context: Context) -> Graph:
        """The graph with the fewest multiply-accumulates that is accurate enough."""
        lost = self._lost(graph, context)
        low, high, best, heard = 0.0, 1.0, graph, Context()
        for _ in range(STEPS):
            share = (low + high) / 2
            chosen = self._together(graph, choices, share)
            if chosen is None:
                low = share
                continue
            tried = Context(context.statistics, context.progress)
            after = self._built(graph, choices, chosen, tried)
            if lost(after) <= (self.accuracy_drop or 0):
                high, best, heard = share, after, tried
            else:
                low = share
        if best is graph:
            for target in choices:
                context.skip(target.node, "no ranks that were tried keep the accuracy")
        context.skips += heard.skips
        context.notes += heard.notes
        return best

    def _lost(self, graph: Graph, context: Context) -> Callable[[Graph], float]:
        """How much worse a graph is: by the metric, or where there is none by answers that differ, in per cent."""
        if context.drop is not None:
            return context.drop
        from graphc.execute import Session  # onnxruntime is not needed where another rule is asked for

        feeds = self._feeds(graph, context)
        expected = _answers(Session(graph), feeds)
        return lambda after: 100 * float(np.mean(_answers(Session(after), feeds) != expected))

    def _feeds(self, graph: Graph, context: Context) -> list[dict[str, Array]]:
        stored = {name: context.statistics[Observation(name, Whole(self.samples))]["values"] for name in graph.inputs}
        return [{name: array[i] for name, array in stored.items()} for i in range(len(next(iter(stored.values()))))]


def _moments(target: Target, options: Factorize, context: Context) -> Moments:
    gram: Doubles | None = None
    if target.layer is not None and options.data == "whitened":
        gram = context.statistics[target.layer.gram]["gram"][0].astype(np.float64)
    return Moments.of(target.matrix, gram)


def _alone(options: Factorize, target: Target, each: Sequence[Candidate]) -> Candidate:
    if options.energy is not None:
        return by_energy(each, options.energy)
    return by_ratio(each, options.ratio or 1.0, _parameters if target.layer is None else _macs)


def _whole(graph: Graph, counted: Callable[[Candidate], int]) -> int:
    price = cost(graph)
    return (price.macs or 0) if counted is _macs else price.parameters


def _sum(counted: Callable[[Candidate], int], candidates: Iterable[Candidate]) -> int:
    return sum(map(counted, candidates))


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
