"""The graph: values, edits, checks, text form, networkx views and cost."""

from graphc.ir.edit import Edit
from graphc.ir.graph import OPSET, Array, Attribute, Dim, Graph, Node, TensorType

__all__ = ["OPSET", "Array", "Attribute", "Dim", "Edit", "Graph", "Node", "TensorType"]
