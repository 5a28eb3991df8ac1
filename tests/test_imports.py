"""Imports point one way, each library stays in its room, and what is light stays light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {"graphc": "graphc", "passes": "graphc.passes", "backends": "graphc.backends"}
ORDER = (
    "errors", "ir", "exporter", "importer", "execute", "passes", "spec", "data", "calibrate", "pipeline", "backends",
    "compile", "cli",
)  # fmt: skip
"""A unit (a file of graphc/, or a whole room) reaches only units that stand before it here; those not listed may stand
anywhere between."""

ALLOWED = {
    "yaml": {"graphc.spec"},
    "tvm": {"graphc.backends"},
    "onnxruntime": {"graphc.ort"},
    "openvino": {"graphc.peers"},
    "rich": {"graphc.terminal"},
    "PIL": {"graphc.sources"},
    "typer": {"graphc.cli"},
    "torch": set[str](),
}
"""Library -> the units that may import it."""


def modules() -> dict[str, Path]:
    found = {}
    for room, package in ROOMS.items():
        for path in (ROOT / room).rglob("*.py"):
            parts = path.relative_to(ROOT / room).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


MODULES = modules()
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def at_import(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that run when a module is imported: those inside functions and for type checkers do not."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for each in child.orelse:
                yield from at_import(each)
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from at_import(child)


def names(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.module is not None and node.level == 0, "write imports in full"
    return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]


def unit(module: str) -> str:
    """graphc.ir.edit -> ir, graphc.data -> data, graphc -> graphc."""
    return module.split(".")[1] if "." in module else module


def eager() -> nx.DiGraph:
    graph = nx.DiGraph()
    graph.add_nodes_from(MODULES)
    for module, tree in TREES.items():
        wanted = {name for node in at_import(tree) for name in names(node) if name in MODULES}
        graph.add_edges_from((module, name) for name in wanted - {module, "graphc"})
    return graph


def test_no_cycles() -> None:
    assert list(nx.simple_cycles(eager())) == []


def test_imports_point_one_way() -> None:
    units = nx.DiGraph((unit(a), unit(b)) for a, b in eager().edges if unit(a) != unit(b))
    wrong = [
        f"{earlier} reaches {later}: {' -> '.join(nx.shortest_path(units, earlier, later))}"
        for place, earlier in enumerate(ORDER)
        for later in ORDER[place + 1 :]
        if units.has_node(earlier) and units.has_node(later) and nx.has_path(units, earlier, later)
    ]
    assert wrong == []


@pytest.mark.parametrize("library", ALLOWED)
def test_each_library_stays_in_its_room(library: str) -> None:
    found = {
        module
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and names(node)[0].split(".")[0] == library
    }
    rooms = ALLOWED[library]
    assert [module for module in sorted(found) if not any(f"{module}.".startswith(f"{room}.") for room in rooms)] == []


HEAVY = ("tvm", "onnx", "onnxruntime", "pydantic", "networkx", "yaml", "typer", "rich", "torch", "sklearn")


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import graphc", HEAVY),
        ("import graphc.runner", HEAVY),  # a board's Python has numpy and nothing else
        ("import graphc; graphc.open", ("tvm", "onnx", "onnxruntime", "networkx", "yaml", "typer", "rich")),
        ("import graphc.spec, graphc.backends.x86", ("tvm", "typer", "rich", "torch", "openvino")),
        ("import graphc.compile", ("tvm", "torch", "openvino")),
    ],
)
def test_what_is_light_stays_light(statement: str, absent: tuple[str, ...]) -> None:
    code = f"{statement}\nimport sys\nprint(*({set(absent)!r} & sys.modules.keys()))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == []
