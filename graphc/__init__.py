"""graphc: make a neural network small and fast from one spec file, and run it anywhere.

    graph = graphc.load("model.onnx")
    build = graphc.compile("model.onnx", "spec.yaml")
    with graphc.open(build.folder / "native") as model:
        y = model(x)

Importing graphc imports nothing heavy; each name below is fetched when it is first used.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from graphc.version import VERSION

if TYPE_CHECKING:
    from graphc.compile import Build as Build
    from graphc.compile import compile as compile  # noqa: A004
    from graphc.errors import GraphcError as GraphcError
    from graphc.importer import load as load
    from graphc.ir.graph import Graph as Graph
    from graphc.runner import Runner as Runner
    from graphc.runner import open as open  # noqa: A004
    from graphc.spec import Spec as Spec

__version__ = VERSION

_HOMES = {
    "Build": "graphc.compile",
    "Graph": "graphc.ir.graph",
    "GraphcError": "graphc.errors",
    "Runner": "graphc.runner",
    "Spec": "graphc.spec",
    "compile": "graphc.compile",
    "load": "graphc.importer",
    "open": "graphc.runner",
}

__all__ = [
    "Build",
    "Graph",
    "GraphcError",
    "Runner",
    "Spec",
    "__version__",
    "compile",
    "load",
    "open",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'graphc' has no attribute '{name}'")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Importing the module `graphc.compile` would bind it over the function of that name: it may not."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
