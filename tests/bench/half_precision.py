"""Half precision: bfloat16 arithmetic beside OpenVINO's, and what 16-bit weights take, in one run.

    python -m tests.bench.half_precision MODEL.onnx [...] [--threads 1 2] [--seconds S] [--out DIR]

Each model is built for this machine four times: in float32, with `arithmetic: bf16`, and with weights stored as fp16
and as bf16. The first two are timed in turns with OpenVINO in both precisions; ratios compare round by round. `error`
is the largest difference from the float32 reference, of the largest magnitude, and `limit` what `graphc verify` allows:
three times what rounding alone does. `products` says which instruction multiplies how many layers. Run it while nothing
else computes. Needs the extra `bench`.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import graphc
from graphc import artifact, peers
from graphc.bench import interleave
from graphc.machine import machine
from graphc.runner import Runner
from graphc.samples import inputs_for
from graphc.verify import Comparison, verify

BF16, FLOAT = "graphc bf16", "graphc float32"
PEERS = {"OpenVINO bf16": "openvino-bf16", "OpenVINO float32": "openvino"}
BUILDS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    FLOAT: ([], {}),
    BF16: ([], {"arithmetic": "bf16"}),
    "fp16 weights": ([{"kind": "quantize", "weights": "fp16", "activations": "none"}], {}),
    "bf16 weights": ([{"kind": "quantize", "weights": "bf16", "activations": "none"}], {}),
}
"""Passes after folding, and what the target adds."""


@dataclass(frozen=True)
class Cell:
    """Median seconds of every engine; `ratio`: another engine's time over graphc's in bfloat16, by engine."""

    threads: int
    seconds: dict[str, float]
    ratio: dict[str, float]


@dataclass(frozen=True)
class Result:
    model: str
    cells: list[Cell]
    megabytes: dict[str, float]
    """Of weights, by build."""
    verified: dict[str, Comparison]
    """The worst output, by build."""
    products: dict[str, int]


def built(model: Path, out: Path, name: str) -> Path:
    """The artifact's folder."""
    passes, options = BUILDS[name]
    spec = {
        "name": f"{model.stem}_{name}".replace(" ", "_").replace("-", "_"),
        "passes": [{"kind": "fold"}, *passes],
        "targets": [{"cpu": "native", **options}],
    }
    return graphc.compile(model, spec, out=out).artifact("native")


def timed(model: Path, folders: dict[str, Path], threads: int, seconds: float) -> Cell:
    feeds = inputs_for(folders[BF16], graphc.load(model), 1).feeds[0]
    with Runner(folders[BF16], threads) as narrow, Runner(folders[FLOAT], threads) as plain:
        given = [np.require(feeds[tensor.name], requirements=("C", "A")) for tensor in narrow.inputs]
        runs: dict[str, peers.Run] = {BF16: narrow.bind(*given), FLOAT: plain.bind(*given)}
        runs |= {label: peers.start(engine, model, feeds, threads) for label, engine in PEERS.items()}
        figures = interleave(runs, seconds)
    ratios = {
        name: median(other / own for other, own in zip(figures[name], figures[BF16], strict=True)) for name in figures
    }
    return Cell(threads, {name: median(times) for name, times in figures.items()}, ratios)


def measure(model: Path, out: Path, threads: Sequence[int], seconds: float) -> Result:
    folders = {name: built(model, out, name) for name in BUILDS}
    manifests = {name: artifact.read(folder) for name, folder in folders.items()}
    verified = {
        name: max(verify(folder, 2).outputs, key=lambda output: output.error) for name, folder in folders.items()
    }
    return Result(
        model.stem,
        [timed(model, folders, count, seconds) for count in threads],
        {name: manifest.weights.bytes / 1e6 for name, manifest in manifests.items()},
        verified,
        Counter(each.instruction for each in manifests[BF16].multiplied),
    )


def table(results: Sequence[Result]) -> str:
    """Markdown: a line per model and number of threads, then one per model."""
    engines = (BF16, FLOAT, *PEERS)
    lines = [
        f"| model | threads | {' | '.join(f'{name} ms' for name in engines)} | OpenVINO bf16 / graphc bf16 |",
        "|---|" + "---:|" * (len(engines) + 2),
    ]
    for result in results:
        for cell in result.cells:
            times = " | ".join(f"{cell.seconds[name] * 1e3:.2f}" for name in engines)
            lines.append(f"| {result.model} | {cell.threads} | {times} | {cell.ratio['OpenVINO bf16']:.2f} |")
    lines += ["", f"| model | {' | '.join(f'{name} MB' for name in BUILDS)} | bf16 error | limit | products |"]
    lines += ["|---|" + "---:|" * (len(BUILDS) + 2) + "---|"]
    for result in results:
        sizes = " | ".join(f"{result.megabytes[name]:.1f}" for name in BUILDS)
        worst = result.verified[BF16]
        products = ", ".join(f"{count} {name}" for name, count in result.products.items())
        lines.append(f"| {result.model} | {sizes} | {worst.error:.1e} | {worst.limit:.1e} | {products} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=6.0, help="how long each cell is timed, about")
    parser.add_argument("--out", type=Path, default=Path("build/half_precision"), help="where artifacts are built")
    given = parser.parse_args()
    results = [measure(model, given.out, given.threads, given.seconds) for model in given.models]
    print(machine())
    print(table(results))
    disagreeing = [name for each in results for name, output in each.verified.items() if not output.agrees]
    return 4 if disagreeing else 0


if __name__ == "__main__":
    sys.exit(main())
