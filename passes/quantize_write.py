"""Writes a quantization plan into a graph: decoders for constants, Q/DQ pairs on values, operands pointed at them.

Names: value `v` gets `v_quantized` and `v_dequantized`, with `v_scale` and `v_zero_point`; constants likewise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from graphc.ir.edit import Edit
from graphc.ir.graph import Attribute, Graph, Node
from graphc.passes.quantize_casts import integers_of, is_given
from graphc.passes.quantize_dynamic import Dynamic
from graphc.passes.quantize_operators import LIMITERS, STORED, Role, weight_position
from graphc.passes.quantize_plan import Plan, Unit, stored_as
from graphc.passes.quantize_schemes import (
    FLOATS,
    Integers,
    Parameters,
    Scheme,
    dequantize,
    least_scales,
    quantize,
    quantize_bias,
)
from graphc.passes.quantize_weights import Decoders, Weights, weights_of

Floats = npt.NDArray[np.float64]


class Options(Protocol):
    """What writing asks of a node's options."""

    @property
    def weights(self) -> str: ...
    @property
    def embeddings(self) -> str: ...
    @property
    def scheme(self) -> Scheme: ...
    def scheme_as(self, form: str) -> Scheme: ...


class Rounder(Protocol):
    """How the weights of a node become integers, and what their error adds to the node's results on average."""

    def rounded(
        self, node: Node, rows: Floats, scheme: Scheme, least: Floats | float
    ) -> tuple[Integers, Parameters]: ...

    def drift(self, node: Node, change: Floats) -> Floats | None:
        """The mean of each channel's results that `change` [channels, depth] of the weights makes; None: not asked."""


def write(
    graph: Graph,
    plan: Plan,
    options: Mapping[Node, Options],
    grids: Mapping[str, Parameters],
    borders: Sequence[str],
    rounder: Rounder,
) -> Graph:
    """`graph` as `plan` says, each value on its grid; `borders` are the inputs and outputs that become integers."""
    if not grids and not plan.weight_only and not plan.dynamic:
        return graph
    return _Writer(graph, plan, options, grids, frozenset(borders), rounder).write()


class _Writer:
    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        options: Mapping[Node, Options],
        grids: Mapping[str, Parameters],
        borders: frozenset[str],
        rounder: Rounder,
    ) -> None:
        self._graph, self._plan, self._options, self._grids, self._borders = graph, plan, options, grids, borders
        self._rounder = rounder
        self._edit = Edit(graph)
        self._unit_of = {node: unit for unit in plan.units for node in unit.nodes}
        self._maker = {name: unit for unit in plan.units for name in unit.results}
        self._unrounded: dict[str, str] = {}
        self._rounded: dict[str, str] = {}
        self._grid_names: dict[int, tuple[str, str]] = {}
        self._casts = integers_of(graph)
        self._decoders = Decoders(self._edit)
        self._dynamic = Dynamic(self._edit)
        self._biases: dict[Unit, str] = {}

    def write(self) -> Graph:
        for name in self._grids:
            self._rounded[name] = self._constant(name) if name in self._graph.constants else self._value(name)
        kinds = {name: self._graph.types[name] for name in self._graph.inputs}
        if not self._borders.isdisjoint(kinds):
            integers = {n: replace(kinds[n], dtype=self._grids[n].format.dtype) for n in kinds if n in self._borders}
            self._edit.set_inputs({**kinds, **integers})
        weight_only, dynamic = set(self._plan.weight_only), set(self._plan.dynamic)
        for node in self._graph.nodes:
            if node in dynamic:
                self._multiply_dynamically(node)
            elif node.outputs[0] in self._rounded and node.outputs[0] in self._casts and self._has_no_reader(node):
                self._edit.remove(node)
            else:
                self._rewrite(node, node in weight_only)
        return self._edit.apply()

    def _has_no_reader(self, cast: Node) -> bool:
        """Whether all that read a Cast read the integers now."""
        name, graph = cast.outputs[0], self._graph
        captured = any(name in inner.captures for node in graph.nodes for inner in node.subgraphs)
        return name not in self._unrounded and name not in graph.outputs and not captured

    def _constant(self, name: str) -> str:
        """A constant on the grid of the values beside it; returns its decoder."""
        integers = quantize(self._graph.constants[name].astype(np.float64), self._grids[name])
        stored = self._edit.constant(integers, f"{name}_quantized")
        return self._dequantize(name, stored, ())

    def _value(self, name: str) -> str:
        """A pair on an activation, as far as it is needed; returns the rounded float.

        Where a unit's result is an output of the graph, the last of the pair takes over its name; at an integer border
        that is the QuantizeLinear, and at an integer input there is no QuantizeLinear, nor where a Cast gives integers.
        """
        graph, border = self._graph, name in self._borders
        if border and name in graph.inputs:
            return self._dequantize(name, name, ()) if name in graph.users else name
        if name in self._casts and is_given(graph, self._casts[name], self._grids[name]):
            return self._dequantize(name, self._casts[name], ())
        ends = name in graph.outputs and (border or name in self._maker)
        self._unrounded[name] = self._edit.fresh(f"{name}_float") if ends else name
        stored = name if ends and border else self._edit.fresh(f"{name}_quantized")
        operands = [self._unrounded[name], *self._grid_of(name)]
        self._edit.add("QuantizeLinear", operands, name=f"{name}_quantize", outputs=[stored], near=self._place(name))
        if border and name not in graph.users:
            return name
        return self._dequantize(name, stored, [name] if ends and not border else ())

    def _dequantize(self, name: str, stored: str, outputs: Sequence[str]) -> str:
        return self._edit.add(
            "DequantizeLinear",
            [stored, *self._grid_of(name)],
            name=f"{name}_dequantize",
            outputs=outputs or [self._edit.fresh(f"{name}_dequantized")],
            near=self._place(name),
        )

    def _place(self, name: str) -> Node:
        return self._graph.producers.get(name) or self._graph.users[name][0]

    def _grid_of(self, name: str) -> tuple[str, str]:
        """Scale and zero point of a value: two constants for all values on its grid."""
        grid = self._grids[name]
        if id(grid) not in self._grid_names:
            scale, zero_point = self._edit.constant(grid.scale, f"{name}_scale"), f"{name}_zero_point"
            self._grid_names[id(grid)] = scale, self._edit.constant(grid.zero_point, zero_point)
        return self._grid_names[id(grid)]

    def _rewrite(self, node: Node, weight_only: bool) -> None:
        """Point a node's operands at what stands for them now; its results are floats that nothing has rounded yet."""
        unit = self._unit_of.get(node)
        operands = [self._operand(unit, name) for name in node.inputs]
        attributes = dict(node.attributes)
        if weight_only:
            self._store(node, operands)
        elif unit is not None and unit.operator.role is Role.PRODUCT and node.op not in LIMITERS:
            if node is unit.anchor:
                self._biases[unit] = self._product(unit, operands)
                attributes = _without_factors(attributes)
            for position, name in enumerate(node.inputs):
                if name and name == unit.bias:
                    operands[position] = self._biases[unit]
        results = tuple(self._unrounded.get(name, name) for name in node.outputs)
        if tuple(operands) != node.inputs or results != node.outputs:
            types = [self._graph.types[name] for name in node.results]
            self._edit.replace(node, inputs=operands, attributes=attributes, outputs=results, types=types)

    def _multiply_dynamically(self, node: Node) -> None:
        weights = weights_of(self._graph, node, node.get_float("alpha", 1.0))
        scheme = weights.fitted(self._options[node].scheme)
        encoded = self._rounder.rounded(node, weights.rows, scheme, 0.0)
        bias = None
        if len(node.inputs) > 2 and node.inputs[2]:
            bias = self._graph.constants[node.inputs[2]].astype(np.float64).ravel() * node.get_float("beta", 1.0)
        drift = self._rounder.drift(node, dequantize(*encoded) - weights.rows)
        if drift is not None:
            bias = (0.0 if bias is None else bias) - drift
        self._dynamic.write(node, self._operand(None, node.inputs[0]), weights, encoded, bias)

    def _operand(self, unit: Unit | None, name: str) -> str:
        """What `name` is read as: unrounded inside a unit and between float nodes, rounded everywhere else."""
        if name not in self._rounded:
            return name
        maker = self._maker.get(name)
        if unit is not None and name in unit.data:
            return self._rounded[name]
        if name in self._graph.constants or (maker is not None and maker is unit):
            return self._unrounded.get(name, name)
        integer_input = name not in self._unrounded
        return self._rounded[name] if maker is not None or integer_input else self._unrounded[name]

    def _store(self, node: Node, operands: list[str]) -> None:
        """Decode weights that meet floating-point activations, in `operands`, and make up for their drift."""
        wanted = stored_as(node, self._options[node])
        for position in STORED[node.op]:
            weights = weights_of(self._graph, node, position=position)
            if wanted in FLOATS:
                stored = self._graph.constants[weights.name].astype(FLOATS[wanted])
                operands[position] = self._decoders.floats(weights, stored)
                continue
            scheme = weights.fitted(self._options[node].scheme_as(wanted), blocks=True)
            integers, parameters = self._rounder.rounded(node, weights.rows, scheme, 0.0)
            operands[position] = self._decoders.integers(weights, integers, parameters)
            self._correct(node, operands, weights, self._drift(node, weights, integers, parameters))

    def _correct(self, node: Node, operands: list[str], weights: Weights, drift: Floats | None) -> None:
        """Take what rounding adds on average off the bias of a product."""
        if drift is not None:
            bias = self._graph.constants[operands[2]].astype(np.float64).ravel() if len(operands) > 2 else 0.0
            drift = drift * node.get_float("alpha", 1.0) / node.get_float("beta", 1.0)
            operands[2:] = [self._edit.constant((bias - drift).astype(np.float32), f"{weights.name}_bias")]

    def _drift(self, node: Node, weights: Weights, integers: Integers, parameters: Parameters) -> Floats | None:
        """What rounding adds to a node's results on average, where a bias can take it back."""
        if node.op not in ("Conv", "Gemm") and not self._has_bias(node):
            return None
        return self._rounder.drift(node, dequantize(integers, parameters) - weights.rows)

    def _has_bias(self, node: Node) -> bool:
        return node in self._unit_of and bool(self._unit_of[node].bias)

    def _product(self, unit: Unit, operands: list[str]) -> str:
        """Decode the weights of a product, in `operands`; returns the decoder of its bias, if it has one."""
        graph, node = self._graph, unit.anchor
        step = self._grids[unit.data[0]].scale
        bias, least = self._bias(unit), np.zeros(1)
        position = weight_position(node)
        if node.inputs[position] in graph.constants:
            weights = weights_of(graph, node, node.get_float("alpha", 1.0))
            if bias is not None:
                bias = np.broadcast_to(bias, (weights.channels,))
                least = least_scales(weights.per_scale(bias), float(step))
            scheme = weights.fitted(self._options[node].scheme)
            integers, parameters = self._rounder.rounded(node, weights.rows, scheme, least)
            operands[position] = self._decoders.integers(weights, integers, parameters)
            step = weights.per_channel(step * parameters.scale)
            drift = self._drift(node, weights, integers, parameters)
            if drift is not None:
                bias = (0.0 if bias is None else bias) - drift
        else:
            step = step * self._grids[unit.data[1]].scale
        if bias is None:
            return ""
        found = self._bias_decoder(unit.bias or node.inputs[position], bias, np.asarray(step, np.float32))
        if not unit.bias:
            operands[2:] = [found]
        return found

    def _bias(self, unit: Unit) -> Floats | None:
        """What is added to a product's sums: one number, or one for each channel."""
        if not unit.bias:
            return None
        values: Floats = self._graph.constants[unit.bias].astype(np.float64).ravel()
        return values * unit.anchor.get_float("beta", 1.0)

    def _bias_decoder(self, name: str, bias: Floats, step: npt.NDArray[np.float32]) -> str:
        """DequantizeLinear over an int32 bias whose steps are those of the sums it is added to."""
        attributes: dict[str, Attribute] = {"axis": 0} if step.ndim else {}
        return self._decoders.dequantize(name, quantize_bias(bias, step), (step,), attributes)


def _without_factors(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    """Gemm's alpha and beta are in its constants now."""
    return {key: value for key, value in attributes.items() if key not in ("alpha", "beta")}
