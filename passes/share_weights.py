"""Share weights: a codebook of 2^bits numbers per tensor, or per group of channels, and a few bits for each weight.

    Conv(x, w)  ->  Conv(x, Lookup(codebook, packed))                                      codebook [2^bits]
                    Conv(x, Lookup(DequantizeLinear(int8, scale), packed))                 codebook: int8
                    Conv(x, SparseToDense(mask, Lookup(codebook, packed)))                 pruned, where that is smaller
    MatMul(x, w) -> MatMul(x, Transpose(Lookup(codebook [G, 2^bits, D], packed)))          codebooks of groups, vectors

Entries minimize sum h (w - w')^2 over the weights that share a codebook (share_clusters.py): h = 1, or with `weighting:
hessian` the mean square of the input that a weight multiplies, the diagonal of the Hessian of the squared error at the
layer's output (Y. Choi et al., "Towards the Limit of Network Quantization", 2017, section 3.3). `rounding: gptq` then
chooses entries column by column, each column's error made up for by those that follow (quantize_rounding.py).

- `group`: so many output channels share a codebook; absent: all. `vector`: entries are so many successive weights of a
  channel (product quantization: P. Stock et al., "And the Bit Goes Down", 2020), bits / vector bits a weight.
- Pruned weights keep their zeros: entry 0 of the codebook is zero, or a mask holds them and the codebook the others.
- Kernels decode codebooks of single weights in registers, one per tensor or per group, behind a mask or not. Entries of
  several weights, and weights of transposed convolutions, are decoded to memory: once, by init, or on boards without
  an operating system and for `weights: streamed` before each use. The report names them (`prepared`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from graphc.ir.edit import Edit
from graphc.ir.functions import DOMAIN
from graphc.ir.graph import Array, Graph, Node
from graphc.ir.sparse import dense_of, pruned_values
from graphc.passes.layers import Layer, layer_of
from graphc.passes.protocol import WEIGHT_OPERANDS, Context, Observation, Pass
from graphc.passes.share_clusters import Start
from graphc.passes.share_codebooks import KEPT, Doubles, Floats, Scheme, Shared, packed, share

FLOAT32 = np.dtype(np.float32)


class ShareWeights(Pass):
    """Few different weights: Conv(x, w) -> Conv(x, Lookup(codebook, packed)), codes of 1 to 8 bits."""

    requires: ClassVar[frozenset[str]] = frozenset({"fold"})
    after: ClassVar[frozenset[str]] = frozenset({"prune", "factorize"})
    before: ClassVar[frozenset[str]] = frozenset({"quantize"})
    overridable: ClassVar[frozenset[str]] = frozenset(
        ("bits", "weighting", "start", "group", "vector", "zeros", "codebook", "rounding")
    )

    kind: Literal["share_weights"] = "share_weights"
    bits: Annotated[int, Field(ge=1, le=8, description="of a code: a codebook has 2^bits entries")]
    weighting: Annotated[
        Literal["none", "hessian"], Field(description="what a weight's error counts; hessian needs calibration data")
    ]
    start: Annotated[Start, Field(description="where k-means starts from")] = "optimal"
    group: Annotated[int | None, Field(ge=1, description="output channels that share a codebook; absent: all")] = None
    vector: Annotated[int, Field(ge=1, le=16, description="successive weights that one entry stands for")] = 1
    zeros: Annotated[
        Literal["smaller", "codebook", "mask"], Field(description="how zeros of pruned weights are stored")
    ] = "smaller"
    codebook: Annotated[Literal["fp32", "int8"], Field(description="number format of codebooks")] = "fp32"
    rounding: Annotated[
        Literal["nearest", "gptq"], Field(description="how entries are chosen; gptq needs calibration data")
    ] = "nearest"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """Vectors are chosen whole; what a mask leaves of each group of channels is not equally long."""
        errors: list[InitErrorDetails] = []
        if self.vector > 1 and self.rounding == "gptq":
            context = {"expected": "'nearest' (entries are vectors)"}
            errors.append(InitErrorDetails(type="literal_error", loc=("rounding",), input=self.rounding, ctx=context))
        if self.group is not None and self.zeros == "mask":
            context = {"expected": "'codebook' (groups have codebooks of their own)"}
            errors.append(InitErrorDetails(type="literal_error", loc=("zeros",), input=self.zeros, ctx=context))
        if errors:
            raise ValidationError.from_exception_data("ShareWeights", errors)
        return self

    @property
    def scheme(self) -> Scheme:
        """What decides codebooks."""
        return Scheme(self.bits, self.start, self.group, self.vector, self.codebook)

    def observes(self, graph: Graph) -> tuple[Observation, ...]:
        """What is known of each layer's inputs: every channel's energy, or the Gram matrix."""
        options = self.options(graph)
        wishes = (
            wish
            for each in tensors(graph)
            if each.layer is not None
            for wish in _wishes(options[each.node], each.layer)
        )
        return tuple(dict.fromkeys(wishes))

    def apply(self, graph: Graph, context: Context) -> Graph:
        """Every float32 matrix that a node multiplies by; one that would not get smaller stays, with a reason."""
        options, edit = self.options(graph), Edit(graph)
        found = list(tensors(graph))
        for done, each in enumerate(found):
            context.progress(each.node.name, done / len(found))
            own = options[each.node]
            if problem := own._problem(each):
                context.skip(each.node, problem)
            else:
                own._share(edit, each, context)
        return edit.apply()

    def _problem(self, each: "Tensor") -> str:
        """Why weights stay as they are, or the empty string."""
        size, depth = prod(each.shape), prod(each.shape) // each.channels
        if self.group is not None and each.channels % self.group:
            return f"its {each.channels} channels are no multiple of {self.group}, which share a codebook"
        if depth % self.vector:
            return f"its {depth} weights per channel are no multiple of {self.vector}, which an entry stands for"
        if self.vector > 1 and (each.rows == 0).mean() >= KEPT:
            return "it was pruned, and entries of several weights would not keep its zeros"
        books = each.channels // self.group if self.group else 1
        table = books * (1 << self.bits) * self.vector * (4 if self.codebook == "fp32" else 1)
        stored = table + size * self.bits // (8 * self.vector)
        return f"sharing stores {stored} bytes instead of {4 * size}" if stored >= 4 * size else ""

    def _share(self, edit: Edit, each: "Tensor", context: Context) -> None:
        statistics = context.statistics
        weights = gram = None
        if each.layer is not None and self.rounding == "gptq":
            gram = statistics[each.layer.gram]["gram"].astype(np.float64)
        elif self.rounding == "gptq":
            context.skip(each.node, f"its entries are the nearest: gptq does not know {each.node.op} so")
        if each.layer is not None and self.weighting == "hessian":
            weights = each.importance(statistics[each.layer.moments]["energy"].astype(np.float64))
        elif self.weighting == "hessian":
            context.skip(each.node, f"its weights count alike: their inputs are not known of {each.node.op}")
        rows = each.rows
        shared = share(rows, weights, self.scheme, gram)
        error = shared.error(rows, weights)
        _Writer(edit, each, shared, self).write()
        context.note(each.node, bits=self.bits / self.vector, codebooks=len(shared.values), error=error**0.5)


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A constant `name` that `node` multiplies by, as rows [channels, depth]; `layer` where its inputs are known.

    `decoder`: the SparseToDense of constants that makes it, where it is one.
    """

    name: str
    node: Node
    graph: Graph
    layer: Layer | None
    decoder: Node | None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.graph.types[self.name].dims

    @property
    def rows(self) -> Floats:
        """Made each time: those of all layers together take as much room as the model."""
        stored = self.graph.constants[self.name] if self.decoder is None else dense_of(self.graph, self.decoder)
        array = np.asarray(stored, np.float32)
        if self.layer is None:
            return array.reshape(len(array), -1)
        matrix = np.asarray(self.layer.matrix(array), np.float32)
        return matrix.reshape(-1, matrix.shape[2])

    @property
    def channels(self) -> int:
        return self.shape[1 if self.transposed else 0]

    @property
    def transposed(self) -> bool:
        return self.layer is not None and self.layer.transposed

    def importance(self, energy: Doubles) -> Doubles:
        """The mean square of what each element of `rows` multiplies, from each input channel's: [channels, depth]."""
        assert self.layer is not None
        groups, channels = self.layer.rows.groups, self.shape[0]
        by_group = np.repeat(energy.reshape(groups, -1), prod(self.layer.rows.kernel), axis=1)
        floor = max(1e-6 * float(energy.mean()), 1e-30)
        return np.maximum(np.repeat(by_group, channels // groups if groups > 1 else 1, axis=0), floor)


def tensors(graph: Graph) -> Iterator[Tensor]:
    """Every constant float32 array of two axes or more that is the weights of a node, once, in order."""
    seen: set[str] = set()
    before = pruned_values(graph)
    for node in graph.nodes:
        positions = () if node.domain else WEIGHT_OPERANDS.get(node.op, ())
        for name in (node.inputs[p] for p in positions if p < len(node.inputs)):
            if name in seen or not name or graph.types[name].dtype != FLOAT32 or len(graph.types[name].shape or ()) < 2:
                continue
            if name in graph.constants or name in before:
                seen.add(name)
                layer = layer_of(graph, node)
                own = layer if layer is not None and layer.weight == name else None
                yield Tensor(name, node, graph, own, before.get(name))


def _wishes(options: ShareWeights, layer: Layer) -> Iterator[Observation]:
    if options.weighting == "hessian":
        yield layer.moments
    if options.rounding == "gptq":
        yield layer.gram


class _Writer:
    """Puts a decoder in the place of one tensor."""

    def __init__(self, edit: Edit, tensor: Tensor, shared: Shared, options: ShareWeights) -> None:
        self._edit, self._tensor, self._shared, self._options = edit, tensor, shared, options

    def write(self) -> None:
        tensor, shared = self._tensor, self._shared
        plain = shared.values.shape[0] == shared.values.shape[2] == 1
        codes, shape = shared.codes, tensor.shape
        if plain and tensor.transposed:
            codes = np.ascontiguousarray(codes.T)
        elif tensor.transposed:
            shape = shape[::-1]
        held = codes.reshape(-1) != 0 if shared.zeros and plain else None
        if held is not None and self._is_masked(held):
            found = self._add(
                "Lookup", [self._codebook(plain), self._packed(codes.reshape(-1)[held])], (int(held.sum()),)
            )
            mask = self._edit.constant(np.packbits(held, bitorder="little"), f"{tensor.name}_mask")
            found = self._add("SparseToDense", [mask, found], shape)
        else:
            found = self._add("Lookup", [self._codebook(plain), self._packed(codes)], shape)
        if not plain and tensor.transposed:
            found = self._edit.add("Transpose", [found], {"perm": (1, 0)}, near=tensor.node)
        self._edit.redirect(tensor.name, found)
        if tensor.decoder is not None:
            self._edit.remove(tensor.decoder)

    def _is_masked(self, held: Array) -> bool:
        bits, zeros = self._options.bits, self._options.zeros
        count = int(np.count_nonzero(held))
        return count > 0 and (zeros == "mask" or (zeros == "smaller" and held.size + count * bits < held.size * bits))

    def _codebook(self, plain: bool) -> str:
        values, scale = self._shared.values, self._shared.scale
        table = values.reshape(-1) if plain else values
        name = f"{self._tensor.name}_codebook"
        if scale is None:
            return self._edit.constant(table, name)
        stored = self._edit.constant(np.rint(table / scale).astype(np.int8), name)
        operands = [stored, self._edit.constant(np.asarray(scale), f"{name}_scale")]
        return self._edit.add("DequantizeLinear", operands, near=self._tensor.node)

    def _packed(self, codes: Array) -> str:
        return self._edit.constant(
            packed(codes.astype(np.uint8, copy=False), self._options.bits), f"{self._tensor.name}_packed"
        )

    def _add(self, op: str, operands: list[str], shape: tuple[int, ...]) -> str:
        bits: Mapping[str, int] = {"bits": self._options.bits} if op == "Lookup" else {}
        verb = {"Lookup": "lookup", "SparseToDense": "sparse_to_dense"}[op]
        outputs = [self._edit.fresh(f"{self._tensor.name}_{'shared' if op == 'Lookup' else 'dense'}")]
        name = f"{self._tensor.name}_{verb}"
        return self._edit.add(
            op, operands, {**bits, "shape": shape}, name=name, domain=DOMAIN, outputs=outputs, near=self._tensor.node
        )
