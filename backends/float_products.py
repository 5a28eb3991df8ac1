"""Products of floats as a target's `arithmetic` has them: one entry per kind (no TVM)."""

from collections.abc import Mapping

from graphc.backends.narrow import Narrowed, Narrowing
from graphc.backends.narrow_bf16 import Bfloat16
from graphc.backends.narrow_fp16 import Float16
from graphc.backends.targets import Target
from graphc.ir.graph import Graph

KINDS: Mapping[str, type[Narrowing]] = {"bf16": Bfloat16, "fp16": Float16}


def narrowed(graph: Graph, target: Target) -> Narrowed:
    """A laid-out graph with its products as `target.arithmetic` has them; the same object where that is float32."""
    kind = KINDS.get(target.arithmetic)
    return Narrowed(graph) if kind is None else kind(graph, target).run()
