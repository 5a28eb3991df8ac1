"""Zeros in weights: what they cost in accuracy, one shot and without training, and what skipping them gains in speed.

    python -m tests.bench.sparsity accuracy [--model resnet56 ds_cnn_l] [--rows N]
    python -m tests.bench.sparsity speed RESNET50.onnx [--out DIR] [--again]

accuracy: the road of a spec, calibrated on training rows, every test row; top-1 in per cent. speed: a ResNet-50 (its
weights may be random) with blocks of zeros, one thread: whole runs in turns, and kernels of 1x1 and 3x3 convolutions
one by one, beside the same graph with dense weights. Artifacts that are in DIR already are not built again. Run it
while nothing else computes.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from statistics import geometric_mean, median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import graphc
from graphc import artifact
from graphc.backends import targets
from graphc.backends.build import build_target
from graphc.backends.cache import Cache
from graphc.backends.targets import Target
from graphc.backends.worker import Server
from graphc.bench import interleave
from graphc.benchmark import profile
from graphc.calibrate import calibrate
from graphc.exporter import save
from graphc.ir.graph import Graph
from graphc.passes.fold import Fold
from graphc.passes.protocol import Context, Pass
from graphc.passes.prune import Prune
from graphc.passes.quantize import Quantize
from graphc.peers import Run
from graphc.runner import Runner
from graphc.staging import MODEL
from tests.bench.tasks import MEL, TASKS, Array, Rows, cifar, normalized, same, split
from tests.conftest import find_shared

CALIBRATION = 1000
BATCH = 50
HALF = {"pattern": "unstructured", "sparsity": 0.5}
CORRECTED = {**HALF, "repair": "bias"}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "magnitude 50 %": {**HALF, "method": "magnitude"},
    "Wanda 50 %": {**HALF, "method": "wanda"},
    "Wanda 50 %, sensitivity, bias": {**CORRECTED, "method": "wanda", "allocation": "sensitivity"},
    "Wanda 50 %, least squares": {**HALF, "method": "wanda", "repair": "least_squares"},
    "Wanda 50 %, sensitivity, least squares": {
        **HALF,
        "method": "wanda",
        "allocation": "sensitivity",
        "repair": "least_squares",
    },
    "SparseGPT 50 %": {**HALF, "method": "sparsegpt"},
    "SparseGPT 50 %, bias": {**CORRECTED, "method": "sparsegpt"},
    "SparseGPT 50 %, sensitivity, bias": {**CORRECTED, "method": "sparsegpt", "allocation": "sensitivity"},
    "SparseGPT 2:4, bias": {"pattern": "2:4", "method": "sparsegpt", "repair": "bias"},
}
ROWS = {"resnet56": cifar(normalized, CALIBRATION), "ds_cnn_l": split(MEL, same, 100)}
SECONDS = 8.0


def accuracy(name: str, data: Path, rows: int | None, methods: Sequence[str]) -> Iterator[tuple[str, float, float]]:
    """(method, top-1, weights' bytes in per cent of the float model's)."""
    read = ROWS[name](data)
    assert read.labels is not None
    chosen = np.linspace(0, len(read.test) - 1, rows or len(read.test)).astype(int)
    model = data / "models" / TASKS[name].model
    graph = graphc.load(model)
    (input_,) = graph.inputs
    fixed = graph.types[input_].is_static
    with TemporaryDirectory() as folder:
        _write(Path(folder), input_, Rows(read.calibration, read.test[chosen], read.labels[chosen]))
        shape = [1 if fixed or len(chosen) % BATCH else BATCH, *read.test.shape[1:]]
        for method in methods:
            spec = {
                "name": "bench",
                "model": {"path": str(model), "inputs": {input_: shape}},
                "data": {
                    "calibration": {"path": f"{folder}/calibration.npz"},
                    "evaluation": {"path": f"{folder}/test.npz", "metric": "top1"},
                },
                "passes": [{"kind": "fold"}, {"kind": "prune", **METHODS[method]}],
            }
            first, _, last = graphc.compile(None, spec, out=Path(folder) / "build").report.steps
            assert first.quality and last.quality and first.quality.value and last.quality.value
            if method == methods[0]:
                yield "float", first.quality.value, 100.0
            yield method, last.quality.value, 100 * last.bytes / first.bytes


def _write(folder: Path, name: str, rows: Rows) -> None:
    assert rows.labels is not None
    for file, arrays in {"calibration": {name: rows.calibration}, "test": {name: rows.test, "y": rows.labels}}.items():
        np.savez(folder / file, **arrays)  # type: ignore[arg-type]


def passed(graph: Graph, steps: Sequence[Pass], target: Target) -> Graph:
    """`graph` after `steps`; statistics are those of noise: only speed is measured."""
    noise = {name: np.random.default_rng(0).standard_normal(graph.types[name].dims) for name in graph.inputs}
    feeds: list[dict[str, Array]] = [{name: array.astype(np.float32) for name, array in noise.items()}]
    for step in steps:
        statistics = calibrate(graph, step.observes(graph), feeds)
        graph = step.apply(graph, Context(statistics, lanes=target.lanes(32)))
    return graph


def variants() -> dict[str, tuple[list[Pass], Target]]:
    """Artifact -> the passes and the target it is built with."""
    native = targets.resolve({"cpu": "native"})
    vectors = replace(native, instructions=native.instructions - {"amx_int8"})
    blocks = Prune.model_validate({"method": "magnitude", "pattern": "block", "sparsity": 0.75})
    two_of_four = Prune.model_validate({"method": "magnitude", "pattern": "2:4"})
    integers = Quantize.model_validate({"weights": "int8", "activations": "uint8", "calibrate": "minmax"})
    return {
        "dense": ([Fold()], native),
        "dense direct": ([Fold()], replace(native, winograd=False)),
        "blocks 75 %": ([Fold(), blocks], native),
        "2:4": ([Fold(), two_of_four], native),
        "int8 dense, VNNI": ([Fold(), integers], vectors),
        "int8 blocks 75 %, VNNI": ([Fold(), blocks, integers], vectors),
        "int8 dense, AMX": ([Fold(), integers], native),
        "int8 blocks 75 %, AMX": ([Fold(), blocks, integers], native),
    }


PAIRS = (("dense direct", "blocks 75 %"), ("int8 dense, VNNI", "int8 blocks 75 %, VNNI"), ("dense", "2:4"))
"""(dense, sparse) artifacts whose kernels are compared one by one."""


def build(model: Path, out: Path, names: Sequence[str], again: bool) -> dict[str, Path]:
    """The folders of the artifacts."""
    graph = graphc.load(model)
    open_ = {name: kind.shape for name in graph.inputs if (kind := graph.types[name]).shape and not kind.is_static}
    graph = graphc.load(model, {name: (1, *map(int, shape[1:])) for name, shape in open_.items() if shape})
    folders = {}
    with Server() as server:
        for name in names:
            steps, target = variants()[name]
            folder = out / "".join(c if c.isalnum() else "_" for c in name)
            if again or not folder.exists():
                print(f"building {name}", file=sys.stderr, flush=True)
                folder.mkdir(parents=True, exist_ok=True)
                made = passed(graph, steps, target)
                save(made, folder / MODEL)
                build_target(made, target, folder / target.id, server, Cache())
            folders[name] = folder / target.id
    return folders


def whole(folders: Mapping[str, Path]) -> dict[str, float]:
    """Median seconds of a run of each artifact, in turns."""
    runs: dict[str, Run] = {}
    for name, folder in folders.items():
        runner = Runner(folder)
        given = [np.random.default_rng(1).standard_normal(each.shape).astype(each.dtype) for each in runner.inputs]
        runs[name] = runner.bind(*given)
    return {name: median(times) for name, times in interleave(runs, SECONDS).items()}


def kernels(graph: Graph, dense: Path, sparse: Path) -> dict[str, list[float]]:
    """Form of a convolution -> how many times as fast each one's kernel is, its epilogue included.

    Layers that the build left dense because zeros would not pay have the same kernel in both, and do not count.
    """
    refused = {decision.node for decision in artifact.read(sparse).decisions if decision.kernel == "dense"}
    convolutions = {node.name: graph.types[node.inputs[1]].dims for node in graph.nodes if node.op == "Conv"}
    first, second = (_seconds(folder, list(convolutions)) for folder in (dense, sparse))
    found: dict[str, list[float]] = {}
    for name, (_, inputs, *kernel) in convolutions.items():
        if prod(kernel) in (1, 9) and inputs > 3 and name not in refused:
            found.setdefault("x".join(map(str, kernel)), []).append(first[name] / second[name])
    return found


def _seconds(folder: Path, names: Sequence[str]) -> dict[str, float]:
    """Node -> the median seconds of its calls; an integer node is named after the value that it quantizes."""
    found = dict.fromkeys(names, 0.0)
    for call in profile(folder, 1):
        for name in {node.removesuffix("_q") for node in call.nodes} & found.keys():
            found[name] += call.seconds
    return found


def speed(model: Path, out: Path, names: Sequence[str], again: bool) -> None:
    folders = build(model, out, names, again)
    seconds = whole(folders)
    print("| artifact | ms | beside dense |\n|---|---:|---:|")
    for name, taken in seconds.items():
        beside = next(
            (n for n in seconds if n == ("int8 dense, " + name.split(", ")[-1] if "int8" in name else "dense")), name
        )
        print(f"| {name} | {1000 * taken:.2f} | {seconds[beside] / taken:.2f}x |")
    graph = Fold().apply(graphc.load(model), Context())
    print("\nLayers that are missing were refused: the build left them dense.")
    print("\n| kernels | form | layers | smallest | geometric mean | largest |\n|---|---|---:|---:|---:|---:|")
    for dense, sparse in PAIRS:
        if dense in folders and sparse in folders:
            for form, ratios in kernels(graph, folders[dense], folders[sparse]).items():
                row = (min(ratios), geometric_mean(ratios), max(ratios))
                print(
                    f"| {sparse} beside {dense} | {form} | {len(ratios)} | "
                    + " | ".join(f"{r:.2f}x" for r in row)
                    + " |"
                )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    of_accuracy, of_speed = parts.add_parser("accuracy"), parts.add_parser("speed")
    of_accuracy.add_argument("--model", nargs="+", choices=ROWS, default=list(ROWS))
    of_accuracy.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    of_accuracy.add_argument("--rows", type=int, help="so many test rows, spread evenly (default: all)")
    of_speed.add_argument("model", type=Path)
    of_speed.add_argument("--out", type=Path, default=Path("build/sparsity"))
    of_speed.add_argument("--artifact", nargs="+", choices=variants(), default=list(variants()))
    of_speed.add_argument("--again", action="store_true", help="build anew what is there")
    given = parser.parse_args()
    if given.part == "speed":
        speed(given.model, given.out, given.artifact, given.again)
        return 0
    data = find_shared()
    if data is None:
        print("../shared/data is absent: nothing to measure on", file=sys.stderr)
        return 2
    for name in given.model:
        for method, top1, size in accuracy(name, data, given.rows, given.method):
            print(f"| {name} | {method} | {top1:.2f} | {size:.1f} % |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
