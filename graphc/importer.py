"""ONNX file -> Graph. Opsets from 7 up are converted to the one that graphs speak; weights stay out of onnx calls.

    read -> take weights out -> inline foreign functions -> convert the opset -> fix dimensions -> spell out quantized
    operators -> infer types -> Graph

onnx's own tools serialize the whole model at every step and fail past 2 GB. So tensors of more than a few elements
leave the protobuf first, typed graph inputs hold their places, and they become constants of the finished Graph.
External data is memory-mapped and never copied.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping, MutableSequence, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import networkx as nx
import onnx
import onnx.inliner
import onnx.version_converter
from google.protobuf.message import DecodeError, Message
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from graphc.errors import InputError, UnsupportedError
from graphc.external import Folder
from graphc.ir.functions import DOMAIN, function_for, functions_in
from graphc.ir.graph import OPSET, Array, Attribute, Dim, Graph, Node, TensorType
from graphc.ir.infer import ONNX_ERRORS, type_from_proto
from graphc.ir.nested import retype
from graphc.ir.protobuf import attribute_from_proto, forget_output_types, type_to_proto
from graphc.opsets import dissolved, lowered, opset_of, raised
from graphc.qoperators import spelled_out
from graphc.weights import ONNX, Weights, describe, free_name, set_field, subgraphs

LARGEST_FILE = 1 << 31
"""Bytes at which protobuf ends."""

Source: TypeAlias = str | Path | bytes | ModelProto


def load(source: Source, inputs: Mapping[str, Sequence[Dim]] | None = None, *, allow_nan: bool = False) -> Graph:
    """Read a model: a file, its bytes, or a ModelProto (which stays as it is).

    `inputs` gives input shapes; a symbol fixed there is fixed wherever it stands. NaN weights are an error unless
    `allow_nan`; external data is mapped, not read, so its values are checked by `graphc.ir.check.check_values`.

    Raises InputError (the file, what is wrong with it, what to do) and UnsupportedError (a valid model that graphs
    cannot hold: opsets out of range, sequences, maps, optional types, sparse tensors).
    """
    label = _label(source)
    try:
        model, folder = _read(source)
        return _load(model, folder, inputs or {}, allow_nan)
    except InputError as error:
        raise type(error)(
            f"{label}: {error.subject}" if error.subject else label, error.problem, error.remedy
        ) from error


def _load(model: ModelProto, folder: Folder, shapes: Mapping[str, Sequence[Dim]], allow_nan: bool) -> Graph:
    _check_text(model)
    opset = opset_of(model)
    declared = {
        output.name: len(output.type.tensor_type.shape.dim)
        for output in model.graph.output
        if output.type.tensor_type.HasField("shape")
    }
    weights = Weights(folder, allow_nan)
    for function in model.functions:
        _sort_nodes(function.node, {*function.input}, function.name)
    _sort_graph(model.graph, set())
    weights.take(model.graph)
    model = _inline(model)
    weights.take(model.graph)
    if opset < OPSET:
        _forget_types(model.graph)
        model = raised(model, opset)
    elif opset > OPSET:
        model = lowered(model, opset)
    model = dissolved(model)
    _sort_graph(model.graph, set())
    weights.take(model.graph)
    _fix_shapes(model.graph, shapes, weights.arrays)
    _forget_types(model.graph)
    proto = _infer_types(model).graph
    graph = retype(spelled_out(_Reader(weights).read(proto, top=True)), proto, {}, {})
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    ranks = {
        name: replace(graph.types[name], shape=("?",) * rank)
        for name, rank in declared.items()
        if graph.types[name].shape is None
    }
    return replace(graph, types={**graph.types, **ranks}, metadata=metadata)


def _label(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else "model"


def _read(source: Source) -> tuple[ModelProto, Folder]:
    """The protobuf, without external data, and the folder that its external data lies in."""
    if isinstance(source, ModelProto):
        model = ModelProto()
        model.CopyFrom(source)
        return model, Folder(None)
    folder = Folder(None)
    if not isinstance(source, bytes):
        path = Path(source)
        source, folder = _read_file(path), Folder(path.parent)
    if not source:
        raise InputError("", "the file is empty.", "Export or download the model again.")
    try:
        model = ModelProto.FromString(source)
    except DecodeError as error:
        raise InputError(
            "",
            "not an ONNX model, or a truncated one (its protobuf does not parse).",
            "Export or download the model again.",
        ) from error
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise InputError("", "not an ONNX model: it holds no graph.", "Export or download the model again.")
    return model, folder


def _read_file(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise InputError("", "this is no file.", "Give the path of an ONNX file.")
        if path.stat().st_size >= LARGEST_FILE:
            remedy = "Save the weights as external data (onnx.save_model with save_as_external_data=True)."
            raise InputError("", f"the file has {path.stat().st_size} bytes, and ONNX files end at 2 GiB.", remedy)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError("", "no such file.", "Check the path.") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        raise InputError("", f"cannot be read: {error}.", "Check the path and its permissions.") from error


def _check_text(model: ModelProto) -> None:
    """Refuse names that are not UTF-8: protobuf hands them out as bytes, and every later step trips over one."""
    broken = next((text for text in _texts(model) if isinstance(text, bytes)), None)
    if broken is not None:
        raise InputError("", f"the name {broken!r} is not UTF-8.", "The file is damaged; export it again.")


def _texts(message: Message) -> Iterator[str | bytes]:
    if isinstance(message, TensorProto):  # reading its other fields would copy the weights
        yield message.name
        return
    for field, value in message.ListFields():
        values = [value] if isinstance(value, str | bytes | Message) else value
        if field.type == field.TYPE_STRING:
            yield from values
        elif field.type == field.TYPE_MESSAGE:
            for part in values:
                yield from _texts(part)


def _reads(node: NodeProto) -> list[str]:
    """Operands, and what subgraphs take from outside."""
    return [*(name for name in node.input if name), *(name for graph in subgraphs(node) for name in _captures(graph))]


def _captures(graph: GraphProto) -> list[str]:
    own = {
        *(i.name for i in graph.input),
        *(i.name for i in graph.initializer),
        *(n for node in graph.node for n in node.output),
    }
    return [
        n for n in [*(n for node in graph.node for n in _reads(node)), *(o.name for o in graph.output)] if n not in own
    ]


def _sort_graph(graph: GraphProto, outer: set[str]) -> None:
    """Put nodes in topological order, subgraphs too; inputs that have a default value become plain constants.

    Raises InputError for names defined twice or never, and for cycles.
    """
    where = f"graph '{graph.name}'"
    if graph.sparse_initializer:
        raise UnsupportedError(where, "it holds sparse tensors.", "Store them dense, or as graphc.SparseToDense.")
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    set_field(graph.input, inputs)
    own: set[str] = set()
    defined = [
        *(i.name for i in inputs),
        *(t.name for t in graph.initializer),
        *(n for node in graph.node for n in node.output if n),
    ]
    for name in defined:
        if not name or name in own or name in outer:
            problem = f"the name '{name}' is defined twice." if name else "an input or constant has no name."
            raise InputError(where, problem, "Each value needs a name of its own; export the model again.")
        own.add(name)
    _sort_nodes(graph.node, outer | stored | {i.name for i in inputs}, where)
    for output in graph.output:
        if output.name not in own and output.name not in outer:
            raise InputError(where, f"its output '{output.name}' is produced by no node.", "Export the model again.")
    for node in graph.node:
        for subgraph in subgraphs(node):
            _sort_graph(subgraph, outer | own)


def _sort_nodes(nodes: MutableSequence[NodeProto], given: set[str], where: str) -> None:
    """Kahn's algorithm that keeps the given order where it can (a sorted list stays as it is)."""
    producers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    needs: list[set[int]] = []
    readers: list[list[int]] = [[] for _ in nodes]
    for i, node in enumerate(nodes):
        reads = _reads(node)
        unknown = next((name for name in reads if name not in producers and name not in given), None)
        if unknown is not None:
            raise InputError(
                describe(node), f"reads '{unknown}', which nothing in {where} produces.", "Export the model again."
            )
        needs.append({producers[name] for name in reads if name in producers})
        for source in needs[i]:
            readers[source].append(i)
    ready = [i for i, sources in enumerate(needs) if not sources]
    order: list[int] = []
    heapq.heapify(ready)
    while ready:
        order.append(heapq.heappop(ready))
        for reader in readers[order[-1]]:
            needs[reader].discard(order[-1])
            if not needs[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(nodes):
        stuck = next(node for i, node in enumerate(nodes) if needs[i])
        raise InputError(
            describe(stuck),
            f"lies on, or behind, a cycle in {where}.",
            "A graph must be acyclic; export the model again.",
        )
    if order != sorted(order):
        set_field(nodes, [nodes[i] for i in order])


def _inline(model: ModelProto) -> ModelProto:
    """Foreign functions dissolved into their nodes; graphc's own stay nodes and lose the bodies that came with them."""
    foreign = [function for function in model.functions if function.domain != DOMAIN]
    for function in model.functions:
        if function.domain == DOMAIN:
            function_for(function.name)
    set_field(model.functions, foreign)
    if not foreign:
        return model
    _refuse_recursion(model)
    try:
        inlined = onnx.inliner.inline_local_functions(model, convert_version=True)
    except ONNX_ERRORS as error:
        raise InputError(
            "", f"its functions cannot be inlined: {error}.", "Inline them with the tool that wrote the model."
        ) from error
    if inlined.functions:
        left = inlined.functions[0]
        raise UnsupportedError(
            f"function {left.domain}.{left.name}",
            "it cannot be inlined (it may need another opset than the model's).",
            "Export functions and model at one opset.",
        )
    _sort_graph(inlined.graph, set())
    return inlined


def _refuse_recursion(model: ModelProto) -> None:
    calls = nx.DiGraph()
    for function in model.functions:
        calls.add_edges_from(((function.domain, function.name), callee) for callee in _callees(function.node))
    if not nx.is_directed_acyclic_graph(calls):
        domain, name = nx.find_cycle(calls)[0][0]
        raise InputError(f"function {domain}.{name}", "it calls itself.", "ONNX functions must not be recursive.")


def _callees(nodes: Iterable[NodeProto]) -> Iterator[tuple[str, str]]:
    for node in nodes:
        yield node.domain, node.op_type
        for subgraph in subgraphs(node):
            yield from _callees(subgraph.node)


def _forget_types(graph: GraphProto) -> None:
    """Drop types of results: files carry stale ones, and inference believes what it finds."""
    del graph.value_info[:]
    forget_output_types(graph)
    for node in graph.node:
        for subgraph in subgraphs(node):
            _forget_types(subgraph)


def _infer_types(model: ModelProto) -> ModelProto:
    """The model with the types that onnx's inference finds; none where it fails (the reader then names the node)."""
    model.functions.extend(functions_in(model.graph))
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except ONNX_ERRORS:
        return model


def _fix_shapes(graph: GraphProto, shapes: Mapping[str, Sequence[Dim]], arrays: Mapping[str, Array]) -> None:
    """Give inputs the stated shapes, and every symbol that this fixes its number, in subgraphs too."""
    inputs = {value.name: value for value in graph.input if value.name not in arrays}
    for name in shapes:
        if name not in inputs:
            raise InputError(
                f"inputs.{name}",
                f"the model has no such input (it has {', '.join(inputs) or 'none'}).",
                "Use the model's names.",
            )
    symbols: dict[str, int] = {}
    for name, value in inputs.items():
        kind = type_from_proto(value.type, f"input '{name}'")
        if name in shapes:
            value.type.CopyFrom(type_to_proto(replace(kind, shape=_fitted(name, kind, tuple(shapes[name]), symbols))))
    _fix_symbols(graph, symbols)


def _fitted(name: str, kind: TensorType, shape: tuple[Dim, ...], symbols: dict[str, int]) -> tuple[Dim, ...]:
    """`shape` if it agrees with the input's declared one; notes the numbers of its symbols."""
    where = f"inputs.{name}"
    for dim in shape:
        if isinstance(dim, bool) or not isinstance(dim, int | str) or (isinstance(dim, int) and dim < 0):
            raise InputError(where, f"{dim!r} is no dimension.", "Give whole numbers.")
    declared = kind.shape if kind.shape is not None else shape
    if len(declared) != len(shape):
        raise InputError(
            where, f"{len(shape)} dimensions {list(shape)} for an input {kind}.", f"Give {len(declared)} dimensions."
        )
    for old, new in zip(declared, shape, strict=True):
        if isinstance(old, int) and new != old:
            raise InputError(
                where, f"shape {list(shape)} for an input {kind}, whose {old} is fixed.", "Change only open dimensions."
            )
        if isinstance(old, str) and old != "?" and isinstance(new, int) and symbols.setdefault(old, new) != new:
            raise InputError(
                where,
                f"the dimension '{old}' is {new} here and {symbols[old]} elsewhere.",
                "Give one symbol one number.",
            )
    return shape


def _fix_symbols(graph: GraphProto, symbols: Mapping[str, int]) -> None:
    for value in graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param]
    for node in graph.node:
        for subgraph in subgraphs(node):
            _fix_symbols(subgraph, symbols)


class _Reader:
    """Turns checked protobuf into a Graph, the subgraphs with it."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def read(self, proto: GraphProto, top: bool = False) -> Graph:
        """The graph as it stands, with the types of its inputs and constants alone."""
        constants = {tensor.name: self._weights.read(tensor) for tensor in proto.initializer}
        if top:
            constants.update(self._weights.arrays)
        inputs = [value for value in proto.input if value.name not in constants]
        types = {name: TensorType(array.dtype, tuple(array.shape)) for name, array in constants.items()}
        for value in inputs:
            if top or value.type.WhichOneof("value"):
                types[value.name] = type_from_proto(value.type, f"input '{value.name}'")
        names = _Names()
        nodes = tuple(self._node(entry, names.unique(entry)) for entry in proto.node)
        outputs = tuple(output.name for output in proto.output)
        used = {name for node in nodes for name in node.reads} | set(outputs)
        return Graph(
            proto.name or "graph",
            tuple(value.name for value in inputs),
            outputs,
            nodes,
            {name: kind for name, kind in types.items() if name in used or name not in constants},
            {name: array for name, array in constants.items() if name in used},
        )

    def _node(self, proto: NodeProto, name: str) -> Node:
        where = describe(proto)
        attributes: dict[str, Attribute] = {}
        for attribute in proto.attribute:
            if attribute.name in attributes or attribute.ref_attr_name:
                problem = f"its attribute '{attribute.name}' is given twice or refers to a function's."
                raise InputError(where, problem, "Export the model again.")
            attributes[attribute.name] = attribute_from_proto(attribute, self.read, where)
        domain = "" if proto.domain in ONNX else proto.domain
        return Node(proto.op_type, tuple(proto.input), tuple(proto.output), attributes, name, domain)


class _Names:
    """Node names: as in the file where they are given and unique, else after the node's first result."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def unique(self, node: NodeProto) -> str:
        wanted = node.name or next((name for name in node.output if name), node.op_type.lower())
        name = free_name(wanted, self._taken)
        self._taken.add(name)
        return name
