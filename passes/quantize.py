"""Quantize: float weights and activations become 8-bit integers, as plain ONNX QuantizeLinear/DequantizeLinear pairs.

    Relu(Conv(x, w, b))  ->  DQ(Q(Relu(Conv(DQ(Q(x)), DQ(w8), DQ(b32)))))

    Q(x) = saturate(rint(x / scale) + zero_point)        DQ(q) = (q - zero_point) * scale

- Weights are integers of `weights`, symmetric, with one scale per output channel (`per_channel`) or one for all.
- Biases are int32 in steps of input scale * weight scale, so that they add to the integer sums.
- Activations are integers of `activations`; `calibrate` says how their ranges come from data. A pair stands on every
  value between two units of integer work, none inside one: an operator and its Relu or Clip, a MatMul and the Add of
  its bias, a chain of elementwise functions of one value. Data movement keeps the grid of what it moves.
- `weights` without `activations` gives decoders for the weights alone. `io` makes the model's own inputs and outputs
  integers; their scales are on the DequantizeLinear (QuantizeLinear) beside them.

The result is a model that onnxruntime runs as it is. Mathematics: quantize_schemes.py; operators:
quantize_operators.py; what becomes a unit: quantize_plan.py.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from graphc.errors import InputError, InternalError
from graphc.ir.graph import Graph, Node
from graphc.passes import quantize_schemes as schemes
from graphc.passes.protocol import Context, Observation, Pass, Statistics
from graphc.passes.quantize_plan import FLOAT32, Share, plan
from graphc.passes.quantize_ranges import STATISTICS, Choice, Method, Span, choose
from graphc.passes.quantize_schemes import FORMATS, Parameters
from graphc.passes.quantize_write import write

Activations = Literal["int8", "uint8", "none"]
Weights = Literal["int8", "uint8", "none"]


class Quantize(Pass):
    """Integer weights and activations: Conv(x, w) -> DQ(Q(Conv(DQ(Q(x)), DQ(w8))))."""

    requires: ClassVar[frozenset[str]] = frozenset({"fold"})
    overridable: ClassVar[frozenset[str]] = frozenset(
        {"weights", "activations", "calibrate", "percentile", "per_channel", "symmetric"}
    )

    kind: Literal["quantize"] = "quantize"
    weights: Annotated[Weights, Field(description="number format of constant weights; none: float")]
    activations: Annotated[Activations, Field(description="number format of activations; none: float")]
    calibrate: Annotated[
        Method | None, Field(description="how ranges of activations come from data; needed for integers")
    ] = None
    percentile: Annotated[
        float | None, Field(gt=50, le=100, description="for calibrate: percentile, how much of the values to cover")
    ] = None
    per_channel: Annotated[bool, Field(description="one weight scale per output channel, or one for all")] = True
    symmetric: Annotated[bool, Field(description="activations: the same room for both signs")] = False
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
        if errors:
            raise ValidationError.from_exception_data("Quantize", errors)
        return self

    @property
    def method(self) -> Method:
        """How ranges are chosen. Raises InternalError where there are no integer activations to choose for."""
        if self.calibrate is None:
            raise InternalError("quantize", "asks for ranges without a method.")
        return self.calibrate

    def observes(self, graph: Graph) -> tuple[Observation, ...]:
        """The values that decide a grid, each with what its method needs to know."""
        options = self.options(graph)
        shares = dict.fromkeys(plan(graph, options, self._borders(graph)).shares.values())
        return tuple(
            self._observation(name, self._own(share, options))
            for share in shares
            if not share.probability
            for name in share.roots
            if name not in graph.constants
        )

    def apply(self, graph: Graph, context: Context) -> Graph:
        """Quantize all that the table and the options allow; every other float node is skipped with a reason."""
        options = self.options(graph)
        decided = plan(graph, options, self._borders(graph))
        for node in graph.nodes:
            if node in decided.skipped:
                context.skip(node, decided.skipped[node])
        grids = {
            name: parameters
            for share in dict.fromkeys(decided.shares.values())
            for parameters in [self._grid(graph, share, options, context.statistics)]
            for name in share.members
        }
        return write(graph, decided, options, grids, self._borders(graph))

    def _borders(self, graph: Graph) -> tuple[str, ...]:
        """Inputs and outputs that become integers."""
        if self.io == "float":
            return ()
        names = dict.fromkeys((*graph.inputs, *graph.outputs))
        return tuple(n for n in names if graph.types[n].dtype == FLOAT32 and n not in graph.constants)

    def _grid(
        self, graph: Graph, share: Share, options: Mapping[Node, "Quantize"], statistics: Statistics
    ) -> Parameters:
        """The grid of values that share one."""
        own = self._own(share, options)
        at_border = not set(self._borders(graph)).isdisjoint(share.members)
        form = FORMATS[self.io if at_border else own.activations]
        if share.probability:
            return schemes.unit_interval(form)
        choice = Choice(own.method, own.percentile, form, own.symmetric)
        ranges = [self._range(graph, name, own, choice, statistics) for name in share.roots]
        low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
        return schemes.affine(low, high, form, own.symmetric, f"value '{share.roots[0]}'")

    def _own(self, share: Share, options: Mapping[Node, "Quantize"]) -> "Quantize":
        """The options of the node that decides for a share; this pass's own where no node does."""
        return options[share.owner] if share.owner is not None else self

    def _observation(self, name: str, own: "Quantize") -> Observation:
        return Observation(name, STATISTICS[own.method])

    def _range(self, graph: Graph, name: str, own: "Quantize", choice: Choice, statistics: Statistics) -> Span:
        """The range of a root: of a constant all of it, of any other value what its method makes of the statistics."""
        constant = graph.constant(name)
        if constant is not None:
            values = constant.astype(np.float64)
            return float(values.min(initial=0.0)), float(values.max(initial=0.0))
        found = statistics.get(self._observation(name, own))
        if found is None:
            remedy = "Give calibration data (`data: {calibration: ...}`)."
            raise InputError(f"value '{name}'", "has no statistics, so it cannot be quantized.", remedy)
        return choose(found, choice)
