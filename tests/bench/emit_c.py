"""Real models for Cortex-M7 twice, as objects and as `emit: c`: built, run on the emulated board, compared.

    python -m tests.bench.emit_c [--shared ../shared/data] [MODEL ...]

Prints a row for each model as it is done: integers must be equal, floats may differ by 1e-4 of the largest magnitude.
The exit code is the number of models that do not.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from graphc.artifact import Manifest
from graphc.backends import targets, toolchain
from graphc.backends.build import build_target
from graphc.backends.cache import Cache
from graphc.backends.worker import Server
from graphc.emulated_board import EmulatedBoard
from graphc.errors import GraphcError
from graphc.importer import load
from graphc.measure import by_name
from graphc.passes.fold import fold
from graphc.quality import Difference
from tests.models import MODELS

TOLERANCE = 1e-4
ENTRY = {"cpu": "cortex-m7"}


def compared(name: str, file: Path, server: Server) -> tuple[bool, str]:
    """(whether both give the same, what to say)."""
    model = MODELS[name]
    graph = fold(load(file, model.shapes))
    feeds = {each: value for each, value in model.feeds(0).items() if each in graph.inputs}
    manifests: list[Manifest] = []
    results: list[Mapping[str, np.ndarray]] = []
    with TemporaryDirectory() as folder:
        for emit in ("objects", "c"):
            place, target = Path(folder) / emit, targets.resolve({**ENTRY, "emit": emit})
            manifests.append(build_target(graph, target, place, server, Cache()))
            with EmulatedBoard(place) as board:
                results.append(by_name(board)(feeds))
    worst, bits = 0.0, True
    for key, value in results[0].items():
        difference = Difference()
        difference.add(results[1][key], value)
        bits = bits and np.array_equal(results[1][key], value)
        worst = max(worst, difference.error)
    flash = " | ".join(f"{m.weights.bytes + (m.footprint.code if m.footprint else 0):,}" for m in manifests)
    return bits or worst <= TOLERANCE, f"{'every bit' if bits else f'{worst:.1e}'} | {flash} | {manifests[0].ram:,}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="parts of names; all where there is none")
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    given = parser.parse_args(arguments)
    toolchain.find_for(targets.resolve(ENTRY), Cache().folder)
    print("| model | C against objects | flash, objects | flash, C | RAM |\n|---|---|---|---|---|", flush=True)
    failed = 0
    with Server(scratch=Cache().scratch()) as server:
        for name in MODELS:
            if given.models and not any(part in name for part in given.models):
                continue
            try:
                agrees, text = compared(name, given.shared / "models" / name, server)
            except GraphcError as error:
                agrees, text = False, f"{error} | | |"
            failed += not agrees
            print(f"| {name} | {text} |", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
