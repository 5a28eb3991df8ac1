"""What a fused PrimFunc computes: one anchor (a contraction, a pool), its padding, and an epilogue per output element.

pad[...]  = x or a constant          (optional)
acc[...] += pad[...] * w[...]        the anchor; its block carries `graphc.anchor`, a JSON object that describes it
y[i]      = f(acc[i], bias, residual, ...)
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import tvm.ir
import tvm_ffi
from tvm import s_tir, tirx

from graphc.backends.expressions import loads
from graphc.backends.schedule_generic import inline_all
from graphc.backends.winograd import Filtering


@dataclass(frozen=True)
class Anchor:
    """A fused PrimFunc taken apart. Buffers are TVM's; `parameters` keep the order of the PrimFunc's."""

    info: Mapping[str, Any]
    parameters: tuple[Any, ...]
    attributes: Any
    x: Any
    weights: tuple[Any, ...]
    """One buffer; those of a decoder in the order of `Layout.operands`; `starts`, `index` and `values` of sparse ones;
    none for a pool."""
    accumulator: Any
    variables: tuple[Any, ...]
    """The output position in the epilogue."""
    store: Any
    """The epilogue: one BufferStore of one output element."""

    def epilogue(self, position: Sequence[Any], accumulated: Any) -> Any:
        """The store of the element at `position`, given the expression of its accumulator."""
        places = dict(zip(self.variables, position, strict=True))

        def variable(var: Any) -> Any:
            return places.get(var, var)

        def load(expression: Any) -> Any:
            return accumulated if expression.source.same_as(self.accumulator) else expression

        return tvm_ffi.structural_map(self.store, [(tvm.ir.TensorLoad, load), (tirx.Var, variable)])


def find(function: Any) -> Anchor | None:
    """The anchor of a fused PrimFunc, None where it has another form."""
    sch = s_tir.Schedule(function, debug_mask="none")
    inline_all(sch)
    blocks = [sch.get(block) for block in sch.get_child_blocks(sch.get_sblock("root"))]
    anchors = [block for block in blocks if "graphc.anchor" in block.annotations]
    roles = {str(block.annotations["graphc.role"]): block for block in blocks if "graphc.role" in block.annotations}
    if len(anchors) != 1 or blocks[-1] is anchors[0] or len(blocks) != len(roles) + 2:
        return None
    anchor, out = anchors[0], blocks[-1]
    before = [roles[role] for role in ("pad", "winograd_input") if role in roles]
    sums = roles.get("winograd_output", anchor).body.buffer
    operands = _operands(anchor)
    if not operands or not isinstance(out.body, tirx.BufferStore):
        return None
    info = json.loads(str(anchor.annotations["graphc.anchor"]))
    x = operands.pop(2 if info.get("sparse") else 0)  # after what its place is read from
    if before:
        if not before[0].body.buffer.same_as(x):
            return None
        x = _operands(before[0])[0]
    variables = tuple(axis.var for axis in out.iter_vars)
    places = list(out.body.indices)
    if len(places) != len(variables) or any(not i.same_as(v) for i, v in zip(places, variables, strict=True)):
        return None
    if [int(axis.dom.extent) for axis in out.iter_vars] != _result(info):
        return None  # a broadcast that grew: several outputs share one sum
    return Anchor(
        info,
        tuple(function.params),
        function.attrs,
        x,
        tuple(operands),
        sums,
        variables,
        out.body,
    )


def products(function: Any) -> int | None:
    """How many products a fused PrimFunc executes by Winograd's filtering, or that skips zeros; None for others."""
    found: list[Any] = []
    tvm_ffi.structural_walk(function, (s_tir.SBlock, lambda block: found.append(block.annotations)))
    infos = [json.loads(str(each["graphc.anchor"])) for each in found if "graphc.anchor" in each]
    for info in infos:
        if info["kind"] == "conv_winograd":
            filtering = Filtering(info["m"])
            tiles = info["input"][0] * prod(filtering.tiles(info["output"]))
            return int(filtering.points * tiles * info["depth"] * info["filters"])
        if info.get("sparse"):
            stored = info["sparse"]["count"] * info["sparse"]["run"] * info["block"]
            return int(prod(_result(info)[:-1]) * stored)
    return None


def _result(info: Mapping[str, Any]) -> list[int]:
    """The shape of an anchor's result."""
    if info["kind"] == "matmul":
        return [*info["batch"], info["rows"], info["columns"]]
    return [info["input"][0], *info["output"], info.get("filters", info["input"][-1])]


def _operands(block: Any) -> list[Any]:
    """The buffers that a block reads, in the order they are written in its expression; its own result left out."""
    found: list[Any] = []

    for load in loads(block.body.value):
        if not load.source.same_as(block.body.buffer) and not any(b.same_as(load.source) for b in found):
            found.append(load.source)
    return found
