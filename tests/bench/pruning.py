"""Channel pruning without training: ResNet-56 at half its MACs beside torch-pruning, and 30 % of every real model.

    python -m tests.bench.pruning [--part resnet56 torch models] [--method NAME ...] [--rows N]

resnet56: one step, 1,000 training images as calibration, CIFAR-10 test images; with repair and without. torch: the same
weights in a torch twin, cut by torch-pruning to the same MACs (needs `pip install torch` and `pip install --no-deps
torch-pruning`). models: onnx.checker, onnxruntime, MACs and file size of each model, or why it is refused.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime

import graphc
from graphc.exporter import save
from graphc.ir.cost import cost
from graphc.ir.graph import Graph
from graphc.passes.fold import Fold
from graphc.passes.protocol import Context
from graphc.passes.prune import Prune
from tests.bench.tasks import Array, cifar, normalized
from tests.conftest import find_shared
from tests.models import MODELS

RESNET = "converted/cifar10_resnet56.onnx"
BATCH = 100
CALIBRATION = 1000
HALF = 0.5
GRAPHC: Mapping[str, Mapping[str, Any]] = {
    "least squares": {
        "method": "reconstruction",
        "allocation": "sensitivity",
        "repair": "least_squares",
    },
    "bias": {"method": "reconstruction", "allocation": "sensitivity", "repair": "bias"},
    "least squares, uniform magnitude": {"method": "magnitude", "repair": "least_squares"},
}


def resnet56(data: Path, rows: int | None, methods: Sequence[str]) -> Iterator[tuple[str, float, float]]:
    """(what was done, MACs left in per cent, top-1 in per cent) by the road of a spec."""
    read = cifar(normalized, CALIBRATION)(data)
    assert read.labels is not None
    chosen = np.linspace(0, len(read.test) - 1, rows or len(read.test)).astype(int)
    with TemporaryDirectory() as folder:
        for name, arrays in {
            "calibration": {"input": read.calibration},
            "test": {"input": read.test[chosen], "y": read.labels[chosen]},
        }.items():
            np.savez(Path(folder) / name, **arrays)  # type: ignore[arg-type]
        for method in methods:
            spec = {
                "name": "bench",
                "model": {"path": str(data / "models" / RESNET), "inputs": {"input": [BATCH, 3, 32, 32]}},
                "data": {
                    "calibration": {"path": f"{folder}/calibration.npz"},
                    "evaluation": {"path": f"{folder}/test.npz", "metric": "top1"},
                },
                "passes": [{"kind": "fold"}, {"kind": "prune", "pattern": "channels", "macs": HALF, **GRAPHC[method]}],
            }
            first, *_, last = graphc.compile(None, spec, out=Path(folder) / "build").report.steps
            assert first.macs and last.macs and last.quality and last.quality.value is not None
            assert first.quality is not None and first.quality.value is not None
            if method == methods[0]:
                yield "dense", 100.0, first.quality.value
            left = 100 * last.macs / first.macs
            yield f"graphc: {method}", left, last.quality.value
            yield "  without repair", left, last.compared["without repair"].value or 0.0


def with_torch(data: Path, rows: int | None, _methods: Sequence[str]) -> Iterator[tuple[str, float, float]]:
    """torch-pruning on the same weights: inner channels of blocks (it cannot follow the padded shortcuts)."""
    import torch
    import torch_pruning

    from tests.bench.torch_resnet import Twin

    read = cifar(normalized, CALIBRATION)(data)
    assert read.labels is not None
    chosen = np.linspace(0, len(read.test) - 1, rows or len(read.test)).astype(int)
    example = torch.zeros(1, 3, 32, 32)
    ways = {
        "magnitude, per layer": (torch_pruning.importance.MagnitudeImportance(p=2), False),
        "magnitude, global": (torch_pruning.importance.MagnitudeImportance(p=2, normalizer="mean"), True),
        "LAMP, global": (torch_pruning.importance.LAMPImportance(p=2), True),
    }
    for name, (importance, is_global) in ways.items():
        twin = Twin.read(data / "models" / RESNET)
        whole, _ = torch_pruning.utils.count_ops_and_params(twin, example)
        pruner = torch_pruning.pruner.MetaPruner(
            twin, example, importance=importance, global_pruning=is_global, pruning_ratio=0.95, iterative_steps=100,
            ignored_layers=[twin.stem, twin.head, *(block.second for block in twin.blocks)], max_pruning_ratio=0.95,
        )  # fmt: skip
        macs = whole
        while macs > 1.01 * HALF * whole:
            pruner.step()
            macs, _ = torch_pruning.utils.count_ops_and_params(twin, example)
        images, labels = torch.from_numpy(read.test[chosen]), read.labels[chosen]
        with torch.no_grad():
            answers = torch.cat([twin(part).argmax(1) for part in images.split(BATCH)]).numpy()
        yield f"torch-pruning: {name}", 100 * macs / whole, 100 * float((answers == labels).mean())


def models(data: Path) -> Iterator[Sequence[str]]:
    """A row for each real model: MACs and bytes before and after, or why nothing goes."""
    step = Prune.model_validate({"method": "magnitude", "pattern": "channels", "sparsity": 0.3})
    for name, model in MODELS.items():
        given = graphc.load(data / "models" / name, model.shapes)
        graph = Fold().apply(given, Context())
        if not cost(graph).macs:
            continue
        context = Context()
        after = step.apply(graph, context)
        if after is graph:
            yield name, "", "", f"refused: {context.skips[0].reason if context.skips else 'no weights'}"
            continue
        sizes = [_exported(each, model.feeds()) for each in (graph, after)]
        macs = [cost(each).macs or 0 for each in (graph, after)]
        shown = [f"{b / 1e6:.2f} -> {a / 1e6:.2f}" for b, a in (macs, sizes)]
        verdict = "" if macs[1] < macs[0] and sizes[1] < sizes[0] else "NOT SMALLER"
        stay = f"{len(context.skips)} layers keep theirs" if context.skips else ""
        yield name, *shown, verdict or stay


def _exported(graph: Graph, feeds: Mapping[str, Array]) -> int:
    """Bytes of the file, which onnx checks and onnxruntime runs to finite outputs of the stated shapes."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save(graph, path)
        onnx.checker.check_model(str(path), full_check=True)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = {each.name for each in session.get_inputs()}
        found = session.run(None, {key: array for key, array in feeds.items() if key in names})
        for output, array in zip(graph.outputs, found, strict=True):
            assert array.shape == graph.types[output].dims, output
        return path.stat().st_size


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=("resnet56", "torch", "models"), default=["resnet56", "torch"])
    parser.add_argument("--method", nargs="+", choices=GRAPHC, default=list(GRAPHC))
    parser.add_argument("--rows", type=int, help="so many test rows, spread evenly (default: all)")
    given = parser.parse_args()
    data = find_shared()
    if data is None:
        print("../shared/data is absent: nothing to measure on", file=sys.stderr)
        return 2
    for part, run in {"resnet56": resnet56, "torch": with_torch}.items():
        if part in given.part:
            for name, left, top1 in run(data, given.rows, given.method):
                print(f"| {name} | {left:.1f} % | {top1:.2f} |", flush=True)
    if "models" in given.part:
        for row in models(data):
            print("| " + " | ".join(row) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
