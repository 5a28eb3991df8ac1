"""Pruned tensors: `SparseToDense(mask, values; shape)` read and written. The mask's bits are LSB first."""

from collections.abc import Mapping
from math import prod

import numpy as np
import numpy.typing as npt

from graphc.ir.edit import Edit
from graphc.ir.functions import DOMAIN
from graphc.ir.graph import Array, Graph, Node, TensorType

OPERATOR = "SparseToDense"
Mask = npt.NDArray[np.bool_]


def mask_of(graph: Graph, node: Node) -> Mask:
    """Where a SparseToDense of constants keeps a value, in the shape of its result."""
    shape = node.get_ints("shape")
    stream = graph.constants[node.inputs[0]].reshape(-1).astype(np.uint8)
    return np.unpackbits(stream, bitorder="little", count=prod(shape)).astype(bool).reshape(shape)


def dense_of(graph: Graph, node: Node) -> Array:
    """The result of a SparseToDense of constants."""
    mask, values = mask_of(graph, node), graph.constants[node.inputs[1]]
    dense = np.zeros(mask.shape, values.dtype)
    dense[mask] = values
    return dense


def pruned_values(graph: Graph) -> Mapping[str, Node]:
    """Value -> the SparseToDense of constants that makes it."""
    return {
        node.outputs[0]: node
        for node in graph.nodes
        if (node.domain, node.op) == (DOMAIN, OPERATOR) and all(name in graph.constants for name in node.inputs)
    }


def densified(graph: Graph) -> Graph:
    """The same computation with every pruned tensor stored as a plain constant, zeros included, under its own name."""
    edit = Edit(graph)
    for name, node in pruned_values(graph).items():
        edit.remove(node)
        edit.define(name, dense_of(graph, node))
    return edit.apply()


def sparse(edit: Edit, dense: Array, mask: Mask, name: str, near: Node, output: str = "") -> str:
    """Add `dense`, of which only what `mask` keeps is stored; returns the name of the result (`output`, or a new one).

    Raises ValueError where the mask leaves out an element that is not zero.
    """
    if dense[~mask].astype(bool).any():
        raise ValueError(f"{name}: the mask leaves out elements that are not zero")
    stream = np.packbits(mask.reshape(-1), bitorder="little")
    operands = [edit.constant(stream, f"{name}_mask"), edit.constant(dense[mask], f"{name}_values")]
    return edit.add(
        OPERATOR,
        operands,
        {"shape": dense.shape},
        name=f"{name}_decode",
        domain=DOMAIN,
        outputs=[output or edit.fresh(f"{name}_pruned")],
        types=[TensorType(dense.dtype, dense.shape)],
        near=near,
    )
