"""Quantize: float weights and activations become 8-bit integers, as plain ONNX QuantizeLinear/DequantizeLinear pairs.

    Relu(Conv(x, w, b))  ->  DQ(Q(Relu(Conv(DQ(Q(x)), DQ(w8), DQ(b32)))))

    Q(x) = saturate(rint(x / scale) + zero_point)        DQ(q) = (q - zero_point) * scale

- Weights are integers of `weights`, around zero (`symmetric_weights`) or not, with one scale per output channel
  (`per_channel`), one for every `group` weights that a channel multiplies by (the last group of a channel is shorter
  where that does not divide), or one for all. fp16 and bf16 store them as narrower floats.
- Biases are int32 in steps of input scale * weight scale, so that they add to the integer sums.
- Activations are integers of `activations`; `calibrate` says how their ranges come from data, or that they are found at
  run time (quantize_dynamic.py). int16 keeps what 8 bits round away, for twice the memory traffic, and reaches twice as
  far as the values seen; functions that are tables of 8 bits are computed in floating point there. A pair stands on
  every value between two units of integer work, none inside one: an operator and its Relu or Clip, a MatMul and the
  Add of its bias, a chain of elementwise functions of one value. Data movement keeps the grid of what it moves.
- `weights` without `activations` gives decoders for the weights alone, those of LSTM, GRU and RNN too, and so do groups
  and narrower floats, whose sums are not integers. `embeddings` does so for the tables that Gather reads. `io` makes
  the model's own inputs and outputs integers; their scales are on the DequantizeLinear (QuantizeLinear) beside them.

A node whose integer code is known to be slower than its float code on a target of the spec stays float
(backends/integer_speed.py), whatever the other targets are: all of them compute the same integers. With
`never_slower: false` it becomes integers all the same; with `true` weights alone, which are for size, stay floats too.

The result is a model that onnxruntime runs as it is. Mathematics: quantize_schemes.py; operators:
quantize_operators.py; what becomes a unit: quantize_plan.py.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from graphc.ir.graph import Graph, Node
from graphc.ir.sparse import densified
from graphc.passes.layers import layer_of
from graphc.passes.protocol import Context, Histogram, Observation, Pass, Range, Slower, Statistics, never
from graphc.passes.quantize_best import BEST, RANGES, ROUNDINGS, Trials, Way, feeds_wanted
from graphc.passes.quantize_dynamic import DYNAMIC
from graphc.passes.quantize_grids import Grids
from graphc.passes.quantize_logarithms import before_logarithms
from graphc.passes.quantize_operators import STORED, TABLE
from graphc.passes.quantize_plan import FLOAT32, Plan, plan
from graphc.passes.quantize_pruned import masked
from graphc.passes.quantize_ranges import Method
from graphc.passes.quantize_rounder import Memory, Rounder
from graphc.passes.quantize_rounding import Rounding, WeightRange
from graphc.passes.quantize_schemes import FORMATS, Scheme
from graphc.passes.quantize_sums import overflowing
from graphc.passes.quantize_write import write

Activations = Literal["int8", "uint8", "int16", "none"]
Weights = Literal["int8", "uint8", "int4", "uint4", "int2", "uint2", "fp16", "bf16", "none"]


def _slower(graph: Graph, decided: Plan, context: Context, decoded: bool) -> dict[Node, str]:
    """Nodes whose integer code does not pay on the targets, with the reason; `decoded`: and nodes of weights alone."""
    reasons = {unit: context.slower(graph, unit.anchor, False) for unit in decided.units}
    found = {node: reason for unit, reason in reasons.items() if reason for node in unit.nodes}
    others = [(node, context.slower(graph, node, False)) for node in decided.dynamic]
    others += [(node, context.slower(graph, node, True)) for node in decided.weight_only if decoded]
    return {**found, **{node: reason for node, reason in others if reason}}


def _tried(step: "Quantize", graph: Graph, context: Context, memory: Memory, way: Way) -> Graph:
    tried = step.model_copy(update=way)
    return tried.written(densified(graph), Context(context.statistics, slower=context.slower), memory)


class Quantize(Pass):
    """Integer weights and activations: Conv(x, w) -> DQ(Q(Conv(DQ(Q(x)), DQ(w8))))."""

    requires: ClassVar[frozenset[str]] = frozenset({"fold"})
    overridable: ClassVar[frozenset[str]] = frozenset(
        ("weights", "per_channel", "group", "symmetric_weights", "activations", "calibrate", "percentile", "symmetric")
    ) | {"embeddings", "weight_range", "rounding", "bias_correction", "round_terms"}

    kind: Literal["quantize"] = "quantize"
    weights: Annotated[Weights, Field(description="number format of constant weights; none: float")]
    activations: Annotated[Activations, Field(description="number format of activations; none: float")]
    embeddings: Annotated[
        Weights, Field(description="number format of constant tables that Gather reads; a run decodes its rows alone")
    ] = "none"
    calibrate: Annotated[
        Method | Literal["dynamic"] | None,
        Field(description="how ranges of activations come from data; needed for integers; dynamic: found at run time"),
    ] = None
    percentile: Annotated[
        float | None, Field(gt=50, le=100, description="for calibrate: percentile, how much of the values to cover")
    ] = None
    per_channel: Annotated[bool, Field(description="one weight scale per output channel, or one for all")] = True
    group: Annotated[
        int | None, Field(ge=2, description="one weight scale for so many weights along a channel's sum")
    ] = None
    symmetric_weights: Annotated[bool, Field(description="weights: zero in the middle of the integers")] = True
    weight_range: Annotated[
        WeightRange, Field(description="how the grid of integer weights is chosen; output needs data")
    ] = "minmax"
    rounding: Annotated[
        Rounding, Field(description="how weights become integers; gptq, adaround and best need calibration data")
    ] = "nearest"
    bias_correction: Annotated[
        bool, Field(description="biases make up for the mean error of rounded weights; needs calibration data")
    ] = False
    symmetric: Annotated[bool, Field(description="activations: the same room for both signs (int16 always has it)")] = (
        False
    )
    round_terms: Annotated[
        bool,
        Field(
            description="a product that only an Add reads is rounded before the sum too, as onnxruntime's integer"
            " kernels want it; else the sum is rounded once"
        ),
    ] = False
    never_slower: Annotated[
        bool | None,
        Field(
            description="nodes whose integer code is slower than float code on a target stay float; unsaid: not where"
            " weights alone are integers, which is for size"
        ),
    ] = None
    io: Annotated[Literal["float", "int8", "uint8"], Field(description="type of the model's inputs, outputs")] = "float"

    @model_validator(mode="after")
    def _states_what_it_needs(self) -> Self:
        """Integer activations need a way to find ranges; integer inputs and outputs need integer activations."""
        errors: list[InitErrorDetails] = []
        if self.activations != "none" and self.calibrate is None:
            errors.append(InitErrorDetails(type="missing", loc=("calibrate",), input={}))
        if self.calibrate == "percentile" and self.percentile is None:
            errors.append(InitErrorDetails(type="missing", loc=("percentile",), input={}))
        if self.calibrate != "percentile" and self.percentile is not None:
            context = {"expected": "nothing (calibrate is not 'percentile')"}
            errors.append(
                InitErrorDetails(type="literal_error", loc=("percentile",), input=self.percentile, ctx=context)
            )
        if self.activations == "none" and self.io != "float":
            context = {"expected": "'float' (activations are none)"}
            errors.append(InitErrorDetails(type="literal_error", loc=("io",), input=self.io, ctx=context))
        if self.calibrate == DYNAMIC and (self.activations not in ("uint8", "none") or self.io != "float"):
            context = {"expected": "uint8 activations and float io (ranges are found at run time)"}
            errors.append(InitErrorDetails(type="literal_error", loc=("calibrate",), input=self.calibrate, ctx=context))
        if self.group is not None and not (self.per_channel and self._has_integer_weights):
            context = {"expected": "nothing (groups need integer weights and per_channel)"}
            errors.append(InitErrorDetails(type="literal_error", loc=("group",), input=self.group, ctx=context))
        for key in (key for key, given in self._rounded_with().items() if given and not self._has_integer_weights):
            context = {"expected": "nothing (no weights are integers)"}
            errors.append(InitErrorDetails(type="literal_error", loc=(key,), input=getattr(self, key), ctx=context))
        for index, rule in enumerate(self.where):
            for key in (key for key in ("calibrate", "rounding") if rule.overrides.get(key) == BEST):
                context = {"expected": "a method other than best: it is for all nodes"}
                details = InitErrorDetails(type="literal_error", loc=("where", index, key), input=BEST, ctx=context)
                errors.append(details)
        if errors:
            raise ValidationError.from_exception_data("Quantize", errors)
        return self

    def _rounded_with(self) -> dict[str, bool]:
        """The options about how weights become integers -> whether they ask for more than the nearest."""
        return {
            "weight_range": self.weight_range != "minmax",
            "rounding": self.rounding != "nearest",
            "bias_correction": self.bias_correction,
        }

    @property
    def _has_integer_weights(self) -> bool:
        """Whether some node's weights may be integers."""
        named = (*self.named("weights"), *self.named("embeddings"))
        return any(isinstance(form, str) and form in FORMATS for form in named)

    def named(self, option: str) -> tuple[Any, ...]:
        """All that the pass and its rules say for an option."""
        return (getattr(self, option), *(rule.overrides[option] for rule in self.where if option in rule.overrides))

    def _laid_over(self, own: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Without the pass's percentile where a rule finds ranges otherwise, and without its groups and rounding where
        a rule leaves no integer weights to them.
        """
        options = super()._laid_over(own, overrides)
        moot: set[str] = set()
        if options.get("calibrate") != "percentile":
            moot.add("percentile")
        if not any(form in FORMATS for form in map(str, (options["weights"], options.get("embeddings", "none")))):
            moot.update(("group", *self._rounded_with()))
        elif not options.get("per_channel", True):
            moot.add("group")
        return {key: value for key, value in options.items() if key in overrides or key not in moot}

    @property
    def scheme(self) -> Scheme:
        """How weights become integers; only where `weights` names integers."""
        return self.scheme_as(self.weights)

    def scheme_as(self, form: str) -> Scheme:
        """The same with another format."""
        return Scheme(FORMATS[form], self.per_channel, self.symmetric_weights, self.group)

    def layers(self, graph: Graph) -> tuple[tuple[Node, ...], ...]:
        """What this pass makes integers of constant weights for: a node, then what its integer work takes in."""
        graph = densified(graph)
        options = self.options(graph)
        decided = plan(graph, options, self._borders(graph))
        products = (unit.nodes for unit in decided.units if unit.operator.weight is not None)
        groups = (*products, *((node,) for node in decided.weight_only))
        order = {node: place for place, node in enumerate(graph.nodes)}
        chosen = (
            nodes
            for nodes in groups
            if options[nodes[0]].weights in FORMATS
            and nodes[0].op != TABLE
            and nodes[0].inputs[STORED[nodes[0].op][0]] in graph.constants
        )
        return tuple(sorted(chosen, key=lambda nodes: order[nodes[0]]))

    def observes(self, graph: Graph) -> tuple[Observation, ...]:
        """The values that decide a grid, each with what its method needs to know."""
        graph = densified(graph)
        options = self.options(graph)
        decided = plan(graph, options, self._borders(graph))
        wide = (Observation(name, Histogram()) for name in before_logarithms(graph) if name in decided.shares)
        wanted = (*Grids(graph, self, options, {}).observations(decided), *wide)
        tried = feeds_wanted(graph) if self._is_open else ()
        return tuple(dict.fromkeys((*wanted, *tried, *self._layers_wanted(graph, decided, options))))

    def apply(self, graph: Graph, context: Context) -> Graph:
        """Quantize all that the table and the options allow; every other float node is skipped with a reason."""
        dense = densified(graph)
        quantized = self._apply(dense, context)
        return graph if quantized is dense else masked(graph, quantized, context)

    def _apply(self, graph: Graph, context: Context) -> Graph:
        if self._is_open:
            step, statistics = self.resolved(graph, context.statistics, context.slower)
            return step.written(graph, replace(context, statistics=statistics), {})
        return self.written(graph, context, {})

    def written(self, graph: Graph, context: Context, memory: Memory) -> Graph:
        """A dense graph quantized as the options say, none of them `best`."""
        options, borders = self.options(graph), self._borders(graph)
        grids = Grids(graph, self, options, context.statistics)
        decided = plan(graph, options, borders)
        refused = {**grids.crushed(decided), **grids.wide(decided), **grids.constant(decided)}
        refused.update(overflowing(graph, decided, options))
        if self.never_slower is not False:
            refused.update(_slower(graph, decided, context, bool(self.never_slower)))
        if refused:
            decided = plan(graph, options, borders, refused)
        for node in graph.nodes:
            if node in decided.skipped:
                context.skip(node, decided.skipped[node])
        rounder = Rounder(graph, options, context, memory)
        return write(graph, decided, options, grids.of(decided, self.io, borders, context.progress), borders, rounder)

    def resolved(self, graph: Graph, statistics: Statistics, slower: Slower = never) -> tuple[Self, Statistics]:
        """This pass with the methods that `best` comes to, and the statistics that they need; else as they are.

        Rules that name another method for a node keep it.
        """
        if not self._is_open:
            return self, statistics
        known = {**statistics}
        for wish, found in statistics.items():
            if isinstance(wish.statistic, Histogram):
                known[Observation(wish.value, Range())] = {key: found[key] for key in ("low", "high")}
        trials = Trials(graph, known)
        context = Context(trials.statistics, slower=slower)
        inner = self.model_copy(update={"io": "float"})
        ranges = RANGES if self.calibrate == BEST else ({},)
        ways = [{**one, **two} for two in (ROUNDINGS if self.rounding == BEST else ({},)) for one in ranges]
        return self.model_copy(update=trials.best(ways, partial(_tried, inner, graph, context, {}))), known

    @property
    def _is_open(self) -> bool:
        """Whether a method is still to be found."""
        return BEST in (self.calibrate, self.rounding)

    def _layers_wanted(self, graph: Graph, decided: Plan, options: Mapping[Node, Self]) -> Iterator[Observation]:
        """What rounding and bias correction need to know of the inputs of layers."""
        for node in (*(unit.anchor for unit in decided.units), *decided.weight_only, *decided.dynamic):
            layer = layer_of(graph, node)
            if layer is None or options[node].weights not in FORMATS:
                continue
            if options[node].rounding != "nearest" or options[node].weight_range == "output":
                yield layer.gram
            if options[node].bias_correction or options[node].rounding == BEST:
                yield layer.total

    def _borders(self, graph: Graph) -> tuple[str, ...]:
        """Inputs and outputs that become integers."""
        if self.io == "float":
            return ()
        names = dict.fromkeys((*graph.inputs, *graph.outputs))
        return tuple(n for n in names if graph.types[n].dtype == FLOAT32 and n not in graph.constants)
