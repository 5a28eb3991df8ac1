"""How a decomposition rule writes: nodes added in the place of one node, constants worked out at once."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from graphc.ir.edit import Edit, rename_captures
from graphc.ir.graph import Array, Attribute, Graph, Node, TensorType


class Decline(Exception):  # noqa: N818 (an answer, not an error)
    """A rule's answer for a node that it leaves alone."""


class Rewrite:
    """The place of one node. Values are named by strings, as in the graph; nothing changes before `finish`."""

    def __init__(self, graph: Graph, edit: Edit, node: Node, kernels: bool = False) -> None:
        self.graph, self.node, self.kernels = graph, node, kernels
        self._edit = edit
        self._lists: dict[tuple[int, ...], str] = {}

    def op(self, op: str, *inputs: str, **attributes: Attribute) -> str:
        """A new node with one result."""
        return self.ops(op, 1, *inputs, **attributes)[0]

    def ops(self, op: str, count: int, *inputs: str, **attributes: Attribute) -> list[str]:
        """A new node with `count` results."""
        hint = f"{self.label}_{op.lower()}"
        results = [self._edit.fresh(hint) for _ in range(count)]
        self._edit.add(op, inputs, attributes, name=hint, outputs=results, near=self.node)
        return results

    def kernel(self, domain: str, kind: TensorType, inputs: Sequence[str], attributes: Mapping[str, Attribute]) -> str:
        """A node of this node's operator in a domain of code generation, which onnx cannot type."""
        hint = f"{self.label}_kernel"
        result = [self._edit.fresh(hint)]
        return self._edit.add(
            self.node.op, inputs, attributes, name=hint, domain=domain, outputs=result, types=[kind], near=self.node
        )

    @property
    def label(self) -> str:
        return self.node.name or self.node.results[0]

    def constant(self, array: Array) -> str:
        return self._edit.constant(np.ascontiguousarray(array).reshape(array.shape), f"{self.label}_constant")

    def number(self, value: float, like: str | np.dtype[np.generic]) -> str:
        """A scalar of the type of the value `like`, or of that type."""
        dtype = self.type(like).dtype if isinstance(like, str) else like
        return self.constant(np.array(value, dtype))

    def ints(self, *values: int) -> str:
        """A list of int64, for shapes and axes; equal lists are one constant."""
        if values not in self._lists:
            self._lists[values] = self.constant(np.array(values, np.int64))
        return self._lists[values]

    def type(self, name: str) -> TensorType:
        """The type of a value of the graph (not of one added here)."""
        return self.graph.types[name]

    def dims(self, name: str) -> tuple[int, ...]:
        """The shape of a value of the graph. Raises Decline where it is open."""
        if not self.type(name).is_static:
            raise Decline
        return self.type(name).dims

    def input(self, index: int) -> str:
        """An operand, or the empty string where it is absent."""
        return self.node.inputs[index] if index < len(self.node.inputs) else ""

    def value(self, index: int) -> npt.NDArray[np.generic] | None:
        """The constant behind an operand, if it is one."""
        return self.graph.constant(self.input(index))

    def wants(self, index: int) -> bool:
        """Whether the node's result is there and read by someone."""
        name = self.node.outputs[index] if index < len(self.node.outputs) else ""
        return bool(name) and (name in self.graph.users or name in self.graph.outputs)

    def reshape(self, name: str, *shape: int) -> str:
        return self.op("Reshape", name, self.ints(*shape))

    def slice(self, name: str, axis: int, start: int, stop: int) -> str:
        """Elements start..stop-1 along one axis."""
        return self.op("Slice", name, self.ints(start), self.ints(stop), self.ints(axis))

    def splice(self, body: Graph, operands: Sequence[str]) -> list[str]:
        """The nodes of `body`, its inputs replaced by `operands`; returns its outputs here."""
        names = dict(zip(body.inputs, operands, strict=True))
        names.update({name: self._edit.constant(array, name) for name, array in body.constants.items()})
        for node in body.nodes:
            names.update({name: self._edit.fresh(f"{self.label}_{name}") for name in node.results})
            attributes = {
                key: rename_captures(value, names) if isinstance(value, Graph) else value
                for key, value in node.attributes.items()
            }
            outputs = [names[name] if name else "" for name in node.outputs]
            self._edit.add(
                node.op, [names.get(name, name) for name in node.inputs], attributes, domain=node.domain,
                name=f"{self.label}_{node.name or node.op.lower()}", outputs=outputs, near=self.node,
                types=[body.types[name] for name in node.outputs] if node.subgraphs and all(node.outputs) else (),
            )  # fmt: skip
        return [names.get(name, name) for name in body.outputs]

    def finish(self, *results: str) -> None:
        """`results` take the place of the node's, which goes; an empty one is for a result that nothing reads."""
        for old, new in zip(self.node.outputs, results, strict=False):
            if old and new:
                self._edit.redirect(old, new)
        self._edit.remove(self.node)


Rule: TypeAlias = Callable[[Rewrite], None]
"""Writes a node in terms of simpler ones and calls `finish`. Raises Decline where it leaves the node alone."""
