"""Control flow that is decided before the model runs.

    If(true)      ->  the nodes of its then branch
    Loop, Scan    ->  their bodies, once per step, where the number of steps is known and the result is small

Unrolled steps share their weights, so the model does not grow by them. Bodies that stay are folded like any graph.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from graphc.ir.edit import Edit, rename_captures
from graphc.ir.graph import Attribute, Graph, Node
from graphc.passes.fold_sweep import Rules, Sweep, by_operator

UNROLLED = 2048
"""Nodes that a loop may become."""


class _Splice:
    """Copies of a body's nodes in the graph around it, each value under a name of its own."""

    def __init__(self, edit: Edit, node: Node) -> None:
        self._edit = edit
        self._node = node

    def __call__(self, body: Graph, operands: Sequence[str]) -> list[str]:
        """Add the nodes of `body`, its inputs replaced by `operands`; returns the names of its outputs here."""
        names = dict(zip(body.inputs, operands, strict=True))
        for name, array in body.constants.items():
            names[name] = self._edit.constant(array, name)
        for node in body.nodes:
            names.update({name: self._edit.fresh(name) for name in node.results})
            attributes: dict[str, Attribute] = {
                key: rename_captures(value, names) if isinstance(value, Graph) else value
                for key, value in node.attributes.items()
            }
            self._edit.add(
                node.op,
                [names.get(name, name) for name in node.inputs],
                attributes,
                name=node.name,
                domain=node.domain,
                outputs=[names.get(name, name) for name in node.outputs],
                types=[body.types[name] for name in node.outputs] if node.subgraphs and all(node.outputs) else (),
                near=self._node,
            )
        return [names.get(name, name) for name in body.outputs]

    def pick(self, source: str, step: int, axis: int) -> str:
        """Element `step` of `source` along `axis`, without that dimension."""
        index = self._edit.constant(np.array(step, np.int64), f"{source}_index")
        return self._edit.add(
            "Gather", [source, index], {"axis": axis}, name=f"{self._node.name}_take", near=self._node
        )

    def stack(self, parts: Sequence[str], axis: int, result: str) -> None:
        """The parts side by side along a new dimension."""
        where = self._edit.constant(np.array([axis], np.int64), f"{result}_axis")
        wide = [self._edit.add("Unsqueeze", [part, where], near=self._node) for part in parts]
        self._edit.add(
            "Concat", wide, {"axis": axis}, name=f"{self._node.name}_stack", outputs=[result], near=self._node
        )

    def finish(self, sources: Sequence[str], results: Sequence[str]) -> None:
        """The control-flow node's results are `sources`."""
        for source, result in zip(sources, results, strict=True):
            if result:
                self._edit.add("Identity", [source], outputs=[result], near=self._node)


def inline_if(sweep: Sweep, node: Node) -> bool:
    """If(constant)  ->  the branch that is taken"""
    condition = sweep.constant(node.inputs[0])
    if condition is None or condition.size != 1:
        return False
    branch = node.attributes["then_branch" if condition.reshape(()) else "else_branch"]
    if not isinstance(branch, Graph) or not sweep.claim(node):
        return False
    sweep.edit.dissolve(node)
    splice = _Splice(sweep.edit, node)
    splice.finish(splice(branch, ()), node.outputs)
    return True


def unroll_scan(sweep: Sweep, node: Node) -> bool:
    """Scan over a known number of elements  ->  its body, once for each"""
    body = node.attributes["body"]
    assert isinstance(body, Graph)
    scanned = node.get_int("num_scan_inputs", 0)
    states = len(node.inputs) - scanned
    shapes = [sweep.shape(name) for name in node.inputs[states:]]
    axes = node.get_ints("scan_input_axes") or (0,) * scanned
    stacked = len(node.outputs) - states
    out_axes = node.get_ints("scan_output_axes") or (0,) * stacked
    if any(shape is None for shape in shapes) or any(axis < 0 for axis in out_axes):
        return False
    lengths = {shape[axis] for shape, axis in zip(shapes, axes, strict=True) if shape is not None}
    if len(lengths) != 1 or not _worthwhile(sweep, node, body, min(lengths)):
        return False
    steps = lengths.pop()
    splice = _Splice(sweep.edit, node)
    carried, collected = list(node.inputs[:states]), [[""] * steps for _ in range(stacked)]
    backward, reversed_out = node.get_ints("scan_input_directions"), node.get_ints("scan_output_directions")
    for step in range(steps):
        picked = [
            splice.pick(name, steps - 1 - step if backward and backward[i] else step, axes[i] % len(shapes[i] or ()))
            for i, name in enumerate(node.inputs[states:])
        ]
        results = splice(body, [*carried, *picked])
        carried = results[:states]
        for i, name in enumerate(results[states:]):
            collected[i][steps - 1 - step if reversed_out and reversed_out[i] else step] = name
    _finish(sweep, node, splice, carried, [(parts, axis) for parts, axis in zip(collected, out_axes, strict=True)])
    return True


def unroll_loop(sweep: Sweep, node: Node) -> bool:
    """Loop with a constant trip count and a condition that stays true  ->  its body, once for each trip"""
    body = node.attributes["body"]
    assert isinstance(body, Graph)
    count, condition = sweep.integers(sweep.operand(node, 0)), sweep.operand(node, 1)
    if count is None or (condition and sweep.scalar(condition) != 1) or not _stays_true(body):
        return False
    steps, states = max(count[0], 0), len(node.inputs) - 2
    if not _worthwhile(sweep, node, body, steps):
        return False
    splice = _Splice(sweep.edit, node)
    truth = sweep.edit.constant(np.array(True), f"{node.name}_condition")
    carried, collected = list(node.inputs[2:]), [[""] * steps for _ in node.outputs[states:]]
    for step in range(steps):
        trip = sweep.edit.constant(np.array(step, np.int64), f"{node.name}_trip")
        results = splice(body, [trip, truth, *carried])[1:]
        carried = results[:states]
        for parts, name in zip(collected, results[states:], strict=True):
            parts[step] = name
    _finish(sweep, node, splice, carried, [(parts, 0) for parts in collected])
    return True


def _stays_true(body: Graph) -> bool:
    """Whether the condition that a loop's body computes is the one that it was given, or true."""
    name = body.outputs[0]
    while name in body.producers and body.producers[name].op in {"Identity", "Cast"}:
        name = body.producers[name].inputs[0]
    array = body.constants.get(name)
    return name == body.inputs[1] or (array is not None and bool(array.all()))


def _worthwhile(sweep: Sweep, node: Node, body: Graph, steps: int) -> bool:
    """Whether the loop may be unrolled: at least one step, and not too many nodes; dissolves it then."""
    if steps * max(len(body.nodes), 1) > UNROLLED:
        sweep.refuse(
            node, f"{steps} steps of {len(body.nodes)} nodes are too many to unroll (at most {UNROLLED} nodes)"
        )
        return False
    if steps == 0 or not sweep.claim(node):
        return False
    sweep.edit.dissolve(node)
    return True


def _finish(
    sweep: Sweep, node: Node, splice: _Splice, carried: list[str], collected: Sequence[tuple[list[str], int]]
) -> None:
    splice.finish(carried, node.outputs[: len(carried)])
    for (parts, axis), result in zip(collected, node.outputs[len(carried) :], strict=True):
        if result:
            splice.stack(parts, axis, result)


def fold_bodies(graph: Graph, fold: Callable[[Graph], Graph]) -> Graph:
    """Fold the bodies of the control-flow nodes that stay."""
    edit = Edit(graph)
    taken = _names(graph)
    for node in graph.nodes:
        folded = {key: fold(value) for key, value in node.attributes.items() if isinstance(value, Graph)}
        if any(body is not node.attributes[key] for key, body in folded.items()):
            bodies = {key: _renamed(body, taken - _names(_body(node, key))) for key, body in folded.items()}
            edit.replace(node, attributes={**node.attributes, **bodies}, types=[graph.types[n] for n in node.results])
    return edit.apply()


def _body(node: Node, key: str) -> Graph:
    body = node.attributes[key]
    assert isinstance(body, Graph)
    return body


def _names(graph: Graph) -> set[str]:
    names = {*graph.types, *(node.name for node in graph.nodes)}
    return names.union(*(_names(body) for node in graph.nodes for body in node.subgraphs))


def _renamed(body: Graph, taken: set[str]) -> Graph:
    """`body` with other names for values that would hide one of `taken`, the names around it."""
    own = {name for node in body.nodes for name in node.results} | set(body.constants)
    clashes = own & taken
    if not clashes:
        return body
    numbers = {name: next(i for i in range(1, len(taken) + 2) if f"{name}_{i}" not in taken | own) for name in clashes}
    names = {name: f"{name}_{number}" for name, number in numbers.items()}
    nodes = tuple(
        replace(
            node,
            inputs=tuple(names.get(name, name) for name in node.inputs),
            outputs=tuple(names.get(name, name) for name in node.outputs),
            attributes={
                k: rename_captures(v, names) if isinstance(v, Graph) else v for k, v in node.attributes.items()
            },
        )
        for node in body.nodes
    )
    return replace(
        body,
        nodes=nodes,
        outputs=tuple(names.get(name, name) for name in body.outputs),
        types={names.get(name, name): kind for name, kind in body.types.items()},
        constants={names.get(name, name): array for name, array in body.constants.items()},
    )


RULES: Rules = by_operator(((inline_if, ("If",)), (unroll_scan, ("Scan",)), (unroll_loop, ("Loop",))))
