"""The graph as networkx sees it, for the theory: orders, dominators, components, cuts. Derived, never stored."""

from typing import Any

import networkx as nx

from graphc.ir.graph import Graph


def nodes_view(graph: Graph) -> "nx.DiGraph[Any]":
    """Nodes are `Node`s, in order; an edge means that the second reads the first, its `values` say what."""
    view: nx.DiGraph[Any] = nx.DiGraph()
    view.add_nodes_from(graph.nodes)
    for node in graph.nodes:
        for name in node.reads:
            source = graph.producers.get(name)
            if source is None:
                continue
            if view.has_edge(source, node):
                view.edges[source, node]["values"] += (name,)
            else:
                view.add_edge(source, node, values=(name,))
    return view
