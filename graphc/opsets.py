"""Bringing a model to the one opset that graphs speak: older ones through onnx's converter, newer ones where nothing
that they use has changed since.

A newer operator is the old one when its schema says the same but for the element types it takes; whether the types in
the model are among the old ones is settled by type inference, later. `_COMPATIBLE` lists what else is known to agree.
"""

from collections.abc import Callable, Iterable, Iterator

import onnx
import onnx.inliner
import onnx.version_converter
from onnx import ModelProto, NodeProto, helper

from graphc.errors import InputError, UnsupportedError
from graphc.ir.functions import DOMAIN, VERSION
from graphc.ir.graph import IR_VERSION, OPSET
from graphc.ir.infer import ONNX_ERRORS
from graphc.weights import ONNX, describe, subgraphs

OLDEST_OPSET = 7
NOT_IN_ONNXRUNTIME = frozenset(("Swish",))
"""Operators with a body in onnx that onnxruntime 1.31 cannot run at this opset."""


def opset_of(model: ModelProto) -> int:
    """The model's opset; domain names are brought to their one spelling.

    Raises InputError where none is stated, UnsupportedError for one that cannot be read.
    """
    versions: dict[str, int] = {}
    for entry in model.opset_import:
        entry.domain = "" if entry.domain in ONNX else entry.domain
        versions[entry.domain] = entry.version
    if "" not in versions and versions and all(node.domain not in ONNX for node in every_node(model.graph.node)):
        model.opset_import.append(helper.make_opsetid("", OPSET))
        return OPSET
    opset = versions.get("", 0)
    newest = max(OPSET, onnx.defs.onnx_opset_version())
    if not opset:
        raise InputError("", "the model states no ONNX opset.", "Export it again with an opset import.")
    if not OLDEST_OPSET <= opset <= newest:
        remedy = f"Export the model at opset {min(max(opset, 13), OPSET)}."
        raise UnsupportedError("", f"opset {opset} (expected {OLDEST_OPSET} to {newest}).", remedy)
    if versions.get(DOMAIN, VERSION) != VERSION:
        problem = f"{DOMAIN} operators of version {versions[DOMAIN]} (this graphc has {VERSION})."
        raise UnsupportedError("", problem, "Read the model with the graphc version that wrote it.")
    return opset


def every_node(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Nodes, and those of their subgraphs."""
    for node in nodes:
        yield node
        for body in subgraphs(node):
            yield from every_node(body.node)


def raised(model: ModelProto, opset: int) -> ModelProto:
    """The model at `OPSET`, from an older one."""
    scan = next((node for node in every_node(model.graph.node) if node.op_type == "Scan" and opset < 9), None)
    if scan is not None:  # the converter drops the batch dimension, and with it the meaning
        problem = "it scans a batch, as Scan of opset 8 does, which later opsets cannot."
        raise UnsupportedError(describe(scan), problem, "Export the model at opset 9 or newer.")
    for node in every_node(model.graph.node):
        _check_attributes(node, opset)
    model.ir_version = max(model.ir_version, IR_VERSION)  # older ones demand an input for every initializer
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except ONNX_ERRORS as error:
        problem = f"onnx cannot convert it from opset {opset} to {OPSET}: {error}."
        raise UnsupportedError("", problem, "Export the model at a newer opset.") from error


def _check_attributes(node: NodeProto, opset: int) -> None:
    """Raise InputError for attributes that are missing or of another kind than theirs: the converter would crash."""
    if node.domain not in ONNX or not onnx.defs.has(node.op_type, opset, ""):
        return
    wanted = onnx.defs.get_schema(node.op_type, opset, "").attributes
    given = {attribute.name: attribute.type for attribute in node.attribute}
    for name, attribute in wanted.items():
        if name in given and given[name] != attribute.type.value:
            problem = f"attribute '{name}' is no {attribute.type.name}, as {node.op_type} of opset {opset} has it."
            raise InputError(describe(node), problem, "The file is damaged; export it again.")
        if attribute.required and name not in given:
            raise InputError(describe(node), f"attribute '{name}' is missing.", "Export the model again.")


def lowered(model: ModelProto, opset: int) -> ModelProto:
    """The model at `OPSET`, from a newer one: new operators dissolve into the function bodies that onnx gives them.

    Raises UnsupportedError naming the first operator that is none of the old ones, and has no body.
    """
    changed = {
        node.op_type
        for node in every_node(model.graph.node)
        if node.domain in ONNX and onnx.defs.has(node.op_type, opset, "") and not _unchanged(node, opset)
    }
    model = _inlined(model, {name for name in changed if _with_body(name, opset)})
    for node in every_node(model.graph.node):
        if node.domain in ONNX and not _unchanged(node, opset):
            remedy = f"Export the model at opset {OPSET}, or without this operator."
            raise UnsupportedError(describe(node), f"its operator is new, or has changed, after opset {OPSET}.", remedy)
    for entry in model.opset_import:
        entry.version = OPSET if entry.domain in ONNX else entry.version
    return model


def dissolved(model: ModelProto) -> ModelProto:
    """The model without operators that onnxruntime can neither run nor take apart at `OPSET`."""
    return _inlined(model, {node.op_type for node in every_node(model.graph.node)} & NOT_IN_ONNXRUNTIME)


def _inlined(model: ModelProto, operators: set[str]) -> ModelProto:
    if not operators:
        return model
    opset = next(entry.version for entry in model.opset_import if entry.domain in ONNX)
    for node in every_node(model.graph.node):
        if node.op_type in operators and node.domain in ONNX:
            _state_defaults(node, opset)
    try:
        return onnx.inliner.inline_selected_functions(
            model, [("", name) for name in sorted(operators)], inline_schema_functions=True
        )
    except ONNX_ERRORS as error:
        problem = f"onnx cannot write {', '.join(sorted(operators))} in simpler operators: {error}."
        raise UnsupportedError("", problem, f"Export the model at opset {OPSET}.") from error


def _state_defaults(node: NodeProto, opset: int) -> None:
    """Write out attributes that are left at their default: the inliner does not know it."""
    stated = {attribute.name for attribute in node.attribute}
    for attribute in onnx.defs.get_schema(node.op_type, opset, "").attributes.values():
        if attribute.name not in stated and attribute.default_value.name:
            node.attribute.append(attribute.default_value)


def _with_body(name: str, opset: int) -> bool:
    schema = onnx.defs.get_schema(name, opset, "")
    return bool(schema.has_function or schema.has_context_dependent_function)


def _unchanged(node: NodeProto, opset: int) -> bool:
    if not onnx.defs.has(node.op_type, OPSET, ""):
        return not onnx.defs.has(node.op_type, opset, "")  # unknown to both: type inference names it
    new, old = (onnx.defs.get_schema(node.op_type, version, "") for version in (opset, OPSET))
    if new.since_version <= OPSET or (new.doc == old.doc and _signature(new) == _signature(old)):
        return True
    return node.op_type in _COMPATIBLE and _COMPATIBLE[node.op_type](node)


def _signature(schema: onnx.defs.OpSchema) -> object:
    """Operands, results and attributes with their defaults; not the element types."""
    formals = [[(f.name, f.option, f.type_str) for f in side] for side in (schema.inputs, schema.outputs)]
    attributes = {a.name: (a.type, a.required, str(a.default_value)) for a in schema.attributes.values()}
    return formals, attributes


def _without(name: str, default: bytes | None = None) -> Callable[[NodeProto], bool]:
    """Drop an attribute that says nothing on the old element types, or nothing at its default."""

    def drop(node: NodeProto) -> bool:
        found = next((a for a in node.attribute if a.name == name), None)
        if found is not None and default in (None, found.s):
            node.attribute.remove(found)
            return True
        return found is None

    return drop


_COMPATIBLE: dict[str, Callable[[NodeProto], bool]] = {
    "BitShift": lambda node: True,  # 28: signed types, and shifts by too many bits, which were undefined
    "Mod": lambda node: True,  # 28: fmod=0 on floats, which type inference refuses
    "Range": _without("stash_type"),  # 27: float16 and how to sum it
    "SpaceToDepth": _without("mode", b"DCR"),  # 28: another order
}
