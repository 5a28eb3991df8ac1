"""Every real model for an Arm processor: built, and its code compared with the reference under QEMU's user mode.

    python -m tests.bench.arm [--cpu cortex-a72] [--samples 1] [--shared ../shared/data] [MODEL ...]

Prints one row of a table for each model as it is done: integers must agree in every bit, floats to 1e-4 of the largest
magnitude. The exit code is the number of models that do not.
"""

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from graphc import verify
from graphc.backends import targets
from graphc.backends.build import build_target
from graphc.backends.cache import Cache
from graphc.backends.decompose import decompose
from graphc.backends.integer import integerize
from graphc.backends.targets import Target
from graphc.backends.worker import Server
from graphc.errors import GraphcError
from graphc.importer import load
from graphc.passes.fold import fold
from graphc.samples import Inputs
from tests.models import MODELS


def row(name: str, file: Path, target: Target, samples: int, server: Server) -> tuple[bool, str]:
    """(whether the artifact agrees with the model, its row of the table)."""
    model = MODELS[name]
    begin = time.monotonic()
    try:
        graph = fold(load(file, model.shapes))
        with TemporaryDirectory() as folder:
            manifest = build_target(graph, target, Path(folder) / "artifact", server, Cache())
            built = time.monotonic()
            made = [model.feeds(seed) for seed in range(samples)]
            feeds = tuple({each: given[each] for each in graph.inputs} for given in made)
            reference = integerize(decompose(graph))
            subject = verify.Subject(Path(folder) / "artifact", manifest, reference, Inputs(feeds, "seeded"))
            found = verify.compare(subject, subject.folder, reference, threads=2)
    except GraphcError as error:
        return False, f"| {name} | {error} | | | |"
    agrees = all(each.agrees for each in found)
    exact = all(each.differing == 0 for each in found)
    error = "every bit" if exact else f"{max(each.error for each in found):.1e}"
    figures = f"{manifest.weights.bytes / 2**20:.2f} | {manifest.arena.bytes / 2**20:.2f} | {built - begin:.0f}"
    return agrees, f"| {name} | {error if agrees else f'DIFFERS {error}'} | {figures} |"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="parts of names; all where there is none")
    parser.add_argument("--cpu", default="cortex-a72")
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    given = parser.parse_args(arguments)
    target = targets.resolve({"cpu": given.cpu})
    chosen = [name for name in MODELS if not given.models or any(part in name for part in given.models)]
    failed = 0
    print(f"| {given.cpu} | agrees to | weights MiB | arena MiB | build s |\n|---|---|---:|---:|---:|", flush=True)
    with Server(1) as server:
        for name in chosen:
            agrees, text = row(name, given.shared / "models" / name, target, given.samples, server)
            failed += not agrees
            print(text, flush=True)
    print(f"\n{len(chosen) - failed} of {len(chosen)} agree.")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
