"""Where an artifact and its reference first part: built again with intermediate values as outputs, in order.

A value that is an output is written to memory, so nothing is fused around it, and a mistake of fusion disappears.
Then values are kept one at a time, halving the range that holds the mistake.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from graphc.backends.build import build_integerized
from graphc.backends.cache import Cache
from graphc.backends.targets import from_description
from graphc.backends.toolchain import find_for
from graphc.backends.worker import Server
from graphc.ir import Graph
from graphc.progress import Progress, silent
from graphc.verify import Comparison, Subject, compare

MOST = 400
"""Values kept in one build: each is an argument of the C function."""


@dataclass(frozen=True)
class Divergence:
    """`node` is the first whose result differs; None where a fresh build agrees with the reference.

    `alone`: it differs only while the values around it are not kept, which points at fusion or at the memory plan.
    """

    node: str | None
    comparison: Comparison | None
    alone: bool = False

    def __str__(self) -> str:
        if self.node is None or self.comparison is None:
            return "a fresh build agrees: this artifact is damaged, or of another model or graphc. Build it again."
        found = self.comparison
        amount = f"{found.differing} of {found.elements} elements" if found.limit == 0 else f"error {found.error:.1e}"
        fused = "; only while it is fused with its neighbours" if self.alone else ""
        return f"they first part at {self.node} ({amount}{fused})."


def first_divergence(subject: Subject, cache: Cache, progress: Progress = silent) -> Divergence:
    """The first node, in topological order, whose result in the artifact differs from the reference.

    Raises as builds do.
    """
    with TemporaryDirectory(prefix="verify-", dir=cache.scratch()) as folder, Server(scratch=cache.scratch()) as server:
        search = _Search(subject, Path(folder), cache, server, progress)
        if all(found.agrees for found in search.compare(subject.graph.outputs)):
            return Divergence(None, None)
        values = _values(subject.graph)
        for begin in range(0, len(values), MOST):
            for found in search.compare(values[begin : begin + MOST]):
                if not found.agrees:
                    return Divergence(search.label(found.name), found)
        return search.halve(values)


def _values(graph: Graph) -> list[str]:
    """What nodes compute, in topological order, as far as an artifact can return it."""
    return [name for node in graph.nodes for name in node.results if graph.types[name].dtype.kind in "biuf"]


@dataclass
class _Search:
    subject: Subject
    folder: Path
    cache: Cache
    server: Server
    progress: Progress
    builds: int = 0

    def compare(self, kept: Sequence[str]) -> Sequence[Comparison]:
        """The values `kept`, each against the reference, in a build of their own."""
        self.builds += 1
        graph = replace(self.subject.graph, outputs=tuple(kept))
        folder = self.folder / str(self.builds)
        target = from_description(self.subject.manifest.target)
        tools = find_for(target, self.cache.folder)
        build_integerized(graph, target, folder, self.server, self.cache, tools, progress=self.progress)
        return compare(self.subject, folder, graph)

    def halve(self, values: Sequence[str]) -> Divergence:
        """The first value that differs when it is kept beside the outputs alone; at the end, an output."""
        low, high = 0, len(values)
        worst: Comparison | None = None
        while low < high:
            middle = (low + high) // 2
            kept = tuple(dict.fromkeys((values[middle], *self.subject.graph.outputs)))
            found = self.compare(kept)[0]
            if found.agrees:
                low = middle + 1
            else:
                high, worst = middle, found
        if worst is None:
            worst = next(found for found in self.compare(self.subject.graph.outputs) if not found.agrees)
        return Divergence(self.label(worst.name), worst, alone=True)

    def label(self, value: str) -> str:
        """How the node that computes a value is named."""
        return self.subject.graph.producers[value].label
