"""The layers that can be factors: their candidates with what they cost, and the nodes that take their place.

y = Conv(x, w, b)    ->  y = Conv(... Conv(x, first) ..., last, b)
y = MatMul(x, w)     ->  y = MatMul(MatMul(x, first), last)                    Gemm likewise, bias and alpha at the end
y = Gather(table, i) ->  y = MatMul(Gather(first, i), last)                    embeddings
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, prod

import numpy as np

from graphc.ir.edit import Edit
from graphc.ir.graph import Attribute, Graph, Node
from graphc.passes import factorize_forms as forms
from graphc.passes.factorize_forms import Doubles, Factors, Form, Moments
from graphc.passes.factorize_ranks import Candidate
from graphc.passes.layers import Layer, layer_of
from graphc.passes.protocol import Speed, Sums

FRACTIONS = tuple(percent / 100 for percent in range(15, 100, 5))
"""Of the channels that Tucker's ranks are tried at."""
FASTER, WORTH, ENOUGH = 1.05, 0.75, 1.5
"""How many times as fast thin layers must be: FASTER, and WORTH of what their multiply-accumulates promise, but no more
than ENOUGH."""
FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True, slots=True)
class Window:
    """Where one stage of a convolution looks: its kernel along each axis, and how that moves."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    def along(self, axes: Sequence[int]) -> "Window":
        """This window on some axes, one place wide on the others."""
        rank = len(self.kernel)

        def pick(values: tuple[int, ...], otherwise: int) -> tuple[int, ...]:
            return tuple(v if i % rank in axes else otherwise for i, v in enumerate(values))

        return Window(pick(self.kernel, 1), pick(self.strides, 1), pick(self.dilations, 1), pick(self.pads, 0))

    def places(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The result's size, from the input's."""
        rank = len(size)
        reach = [dilation * (kernel - 1) + 1 for kernel, dilation in zip(self.kernel, self.dilations, strict=True)]
        return tuple(
            (size[i] + self.pads[i] + self.pads[i + rank] - reach[i]) // self.strides[i] + 1 for i in range(rank)
        )


def _nothing() -> float:
    return 0.0


def windows(form: Form, whole: Window) -> tuple[tuple[Window, bool], ...]:
    """The window of each stage of a form, and whether it works on each channel alone."""
    point, down, across = whole.along(()), whole.along((0,)), whole.along((1,))
    return {
        "channel": ((whole, False), (point, False)),
        "tucker": ((point, False), (whole, False), (point, False)),
        "spatial": ((down, False), (across, False)),
        "depthwise": ((whole, True), (point, False)),
        "cp": ((point, False), (down, True), (across, True), (point, False)),
    }[form]


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """One node that may become factors. `layer` is None for an embedding; `rows` of a matrix, `size` of an image."""

    node: Node
    weight: str
    weights: Doubles
    layer: Layer | None
    rows: int
    size: tuple[int, ...]

    @property
    def is_convolution(self) -> bool:
        return self.node.op == "Conv"

    @property
    def matrix(self) -> Doubles:
        """W [N, K]; of an embedding, its columns are the results."""
        return self.weights.reshape(len(self.weights), -1)

    @property
    def window(self) -> Window:
        assert self.layer is not None
        rows = self.layer.rows
        return Window(rows.kernel, rows.strides, rows.dilations, rows.pads)

    def dense(self) -> Candidate:
        if self.layer is None:
            return Candidate((), 0, self.weights.size, _nothing, None)
        places = prod(self.window.places(self.size)) if self.is_convolution else 1
        return Candidate((), self.weights.size * self.rows * places, self.weights.size, _nothing, None)

    def sums(self, form: Form, shapes: Sequence[tuple[int, ...]]) -> tuple[Sums, list[Sums]]:
        """What the layer adds up, and its stages with weights of these shapes."""
        if not self.is_convolution:
            read = shapes[1:] if self.layer is None else shapes
            whole = Sums((self.rows,), 1, self.matrix.shape[1], self.matrix.shape[0])
            return whole, [Sums((self.rows,), 1, shape[1], shape[0]) for shape in read]
        found, size = [], self.size
        for shape, (window, alone) in zip(shapes, windows(form, self.window), strict=True):
            size = window.places(size)
            found.append(_sums(shape, window, (self.rows, *size), alone))
        return _sums(self.weights.shape, self.window, (self.rows, *size), False), found

    def cost(self, form: Form, shapes: Sequence[tuple[int, ...]]) -> tuple[int, int]:
        """(multiply-accumulates, parameters) of stages with weights of these shapes."""
        parameters = sum(map(prod, shapes))
        if not self.is_convolution:
            read = shapes[1:] if self.layer is None else shapes  # an embedding's first stage is looked up
            return sum(map(prod, read)) * self.rows, parameters
        macs, size = 0, self.size
        for shape, (window, _) in zip(shapes, windows(form, self.window), strict=True):
            size = window.places(size)
            macs += prod(shape) * prod(size) * self.rows
        return macs, parameters


def _sums(shape: tuple[int, ...], window: Window, places: tuple[int, ...], alone: bool) -> Sums:
    square = {*window.strides, *window.dilations} == {1} and len({*window.kernel}) == 1
    return Sums(places, prod(window.kernel), shape[1], shape[0], square, alone)


def targets(graph: Graph) -> Iterator[Target | tuple[Node, str]]:
    """Every layer and embedding with float32 weights of its own; or the node, and why it is none."""
    for node in graph.nodes:
        layer = layer_of(graph, node)
        weight = (
            layer.weight if layer is not None else node.inputs[0] if node.op == "Gather" and not node.domain else ""
        )
        array = graph.constant(weight) if weight else None
        if not weight or (layer is None and (array is None or array.ndim != 2 or node.get_int("axis", 0) != 0)):
            continue
        if array is None or array.dtype != FLOAT32:
            yield node, "its weights are no plain float32 constant"
        elif len(graph.users[weight]) > 1:
            yield node, "other nodes share its weights"
        elif layer is not None and layer.rows.groups > 1:
            yield node, "its channels are in groups, which are thin already"
        elif not graph.types[node.inputs[0]].is_static or not graph.types[node.outputs[0]].is_static:
            yield node, "its shapes are open"
        else:
            yield _target(graph, node, weight, np.asarray(array, np.float64), layer)


def _target(graph: Graph, node: Node, weight: str, array: Doubles, layer: Layer | None) -> Target:
    if node.op == "Conv":
        dims = graph.types[node.inputs[0]].dims
        return Target(node, weight, array, layer, dims[0], dims[2:])
    out = graph.types[node.outputs[0]].dims
    transposed = layer is None or layer.transposed
    return Target(node, weight, array.T if transposed else array, layer, prod(out[:-1]), ())


def candidates(target: Target, moments: Moments, form: Form, multiple: int, speed: Speed) -> Iterator[Candidate]:
    """Ranks that reduce parameters, and work where there is any; those of channels are multiples of `multiple`."""
    dense = target.dense()
    if prod(target.weights.shape[2:]) == 1:
        form = "channel"
    for ranks, shapes, error, make in _of_form(target, moments, form, multiple):
        macs, parameters = target.cost(form, shapes)
        if parameters < dense.parameters and (macs < dense.macs or target.layer is None):
            faster = speed(*target.sums(form, shapes)) if target.layer is not None else (inf, "")
            yield Candidate(ranks, macs, parameters, partial(_lost, error, moments, make), make, *faster)


def _lost(known: float | None, moments: Moments, make: "partial[Factors]") -> float:
    return known if known is not None else moments.error(make().matrix)


def pays(candidate: Candidate, dense: Candidate) -> bool:
    """Whether thin layers are enough faster than the layer that they stand for."""
    promised = WORTH * dense.macs / max(candidate.macs, 1)
    return candidate.speed >= min(max(FASTER, promised), ENOUGH)


_Option = tuple[tuple[int, ...], list[tuple[int, ...]], float | None, "partial[Factors]"]


def _of_form(target: Target, moments: Moments, form: Form, multiple: int) -> Iterator[_Option]:
    """(ranks, shapes of the stages, error where it is known without the factors, the factors)."""
    shape = target.weights.shape
    outputs, inputs, kernel = shape[0], shape[1], shape[2:]
    ones = tuple(1 for _ in kernel)
    if form == "channel":
        explained = np.cumsum(forms.spectrum(moments)[0])
        for r in range(multiple, min(outputs, prod(shape[1:])) + 1, multiple):
            error = max(1 - float(explained[r - 1]) / moments.power, 0.0) if moments.power else 0.0
            yield (r,), [(r, *shape[1:]), (outputs, r, *ones)], error, partial(forms.channel, shape, moments, r)
    elif form == "tucker":
        for fraction in FRACTIONS:
            p, q = (max(round(n * fraction / multiple), 1) * multiple for n in (inputs, outputs))
            shapes = [(p, inputs, *ones), (q, p, *kernel), (outputs, q, *ones)]
            yield (p, q), shapes, None, partial(forms.tucker, target.weights, moments, (p, q))
    elif len(kernel) == 2 and form == "spatial":
        for r in range(multiple, min(inputs * kernel[0], outputs * kernel[1]), multiple):
            shapes = [(r, inputs, kernel[0], 1), (outputs, r, 1, kernel[1])]
            yield (r,), shapes, None, partial(forms.spatial, target.weights, r)
    elif len(kernel) == 2 and form == "depthwise":
        for m in range(1, prod(kernel)):
            shapes = [(inputs * m, 1, *kernel), (outputs, inputs * m, 1, 1)]
            yield (m,), shapes, None, partial(forms.depthwise, target.weights, moments, m)
    elif len(kernel) == 2 and form == "cp":
        for fraction in (0.25, 0.5, 1.0, 1.5, 2.0, 3.0):
            r = max(round(max(inputs, outputs) * fraction / multiple), 1) * multiple
            shapes = [(r, inputs, 1, 1), (r, 1, kernel[0], 1), (r, 1, 1, kernel[1]), (outputs, r, 1, 1)]
            yield (r,), shapes, None, partial(forms.cp, target.weights, moments, r)


def write(edit: Edit, target: Target, factors: Factors) -> None:
    """The stages in the place of the node; the last one keeps its name, its result and its bias."""
    node = target.node
    if target.is_convolution:
        return _write_convolution(edit, target, factors)
    first, last = (np.ascontiguousarray(stage) for stage in factors.stages)
    swapped = target.layer is not None and not target.layer.transposed  # Gemm with transB holds [out, in]
    arrays = [(stage if swapped else stage.T).astype(np.float32) for stage in (first, last)]
    names = [
        edit.constant(array, f"{target.weight}_{place}") for array, place in zip(arrays, ("first", "last"), strict=True)
    ]
    if target.layer is None:  # W is the table transposed: its first stage is looked up
        middle = edit.add("Gather", [names[0], node.inputs[1]], node.attributes, name=f"{node.name}_first", near=node)
        edit.replace(node, "MatMul", [middle, names[1]], {})
        return None
    if node.op == "MatMul":
        middle = edit.add("MatMul", [node.inputs[0], names[0]], name=f"{node.name}_first", near=node)
    else:
        kept: dict[str, Attribute] = {"transB": node.get_int("transB", 0)}
        middle = edit.add("Gemm", [node.inputs[0], names[0]], kept, name=f"{node.name}_first", near=node)
    edit.replace(node, inputs=[middle, names[1], *node.inputs[2:]])
    return None


def _write_convolution(edit: Edit, target: Target, factors: Factors) -> None:
    node, value, channels = target.node, target.node.inputs[0], target.weights.shape[1]
    stages = list(zip(factors.stages, windows(factors.form, target.window), strict=True))
    for number, (stage, (window, alone)) in enumerate(stages, 1):
        attributes: dict[str, Attribute] = {
            "kernel_shape": window.kernel,
            "strides": window.strides,
            "dilations": window.dilations,
            "pads": window.pads,
            "group": channels if alone else 1,
        }
        array = np.ascontiguousarray(stage).astype(np.float32)
        weights = edit.constant(array, f"{target.weight}_{number}")
        if number == len(stages):
            edit.replace(node, inputs=[value, weights, *node.inputs[2:]], attributes=attributes)
        else:
            value = edit.add("Conv", [value, weights], attributes, name=f"{node.name}_{number}", near=node)
        channels = stage.shape[0]
