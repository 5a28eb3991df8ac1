"""Nodes that lead to no output of a graph go."""

from graphc.ir.edit import Edit
from graphc.ir.graph import Graph, Node


def drop_dead_nodes(graph: Graph) -> Graph:
    """`graph` without what nothing reads; the same object where everything is read."""
    wanted = set(graph.outputs)
    dead: list[Node] = []
    for node in reversed(graph.nodes):
        if wanted.isdisjoint(node.results):
            dead.append(node)
        else:
            wanted.update(node.reads)
    edit = Edit(graph)
    edit.remove(*dead)
    return edit.apply()
