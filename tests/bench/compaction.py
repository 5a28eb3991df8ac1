"""Shared, entropy-coded and factorized weights: what they take and what they lose.

    python -m tests.bench.compaction accuracy [MODEL ...] [--rows N]     sharing and factorizing beside plain ways
    python -m tests.bench.compaction sizes [MODEL ...]                   prune + share + code on large models
    python -m tests.bench.compaction streams [MODEL ...]                 the same without compiling kernels
    python -m tests.bench.compaction coders [FILE]                       Huffman and rANS on the weights of a model
    python -m tests.bench.compaction pairs [--only build|time]           factorized layers beside the dense ones

Accuracy is that of the compressed graph in onnxruntime on the rows of tests/bench/tasks.py. The large models are those
inside the `onnx` wheel, whose weights are left out: they get seeded random ones, so that sizes and times mean something
and accuracy does not. Those run one in a process each, whose time and largest memory are shown.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import graphc
from graphc.backends.entropy import METHODS, counted, encode, encoded, entropy_bytes
from graphc.calibrate import calibrate
from graphc.execute import Session
from graphc.importer import load
from graphc.ir.cost import cost
from graphc.ir.edit import Edit
from graphc.ir.graph import Array, Graph
from graphc.passes.protocol import Context
from graphc.passes.registry import registry
from graphc.runner import Runner
from tests.bench.tasks import TASKS, Rows, Task, cifar, normalized
from tests.conftest import find_shared

FOLDER = Path("build/compaction")
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
LARGE = {"alexnet": "light_bvlc_alexnet", "resnet50": "light_resnet50", "vgg19": "light_vgg19"}
PRUNED_AND_SHARED: Sequence[Mapping[str, Any]] = (
    {"kind": "fold"},
    {"kind": "prune", "pattern": "unstructured", "method": "magnitude", "sparsity": 0.8},
    {"kind": "share_weights", "bits": 4, "weighting": "none", "zeros": "codebook"},
)

PAIRS: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "1x1 256->256 14x14": ((1, 256, 14, 14), (256, 256, 1, 1)),
    "1x1 512->512 7x7": ((1, 512, 7, 7), (512, 512, 1, 1)),
    "1x1 128->128 28x28": ((1, 128, 28, 28), (128, 128, 1, 1)),
    "1x1 64->256 56x56": ((1, 64, 56, 56), (256, 64, 1, 1)),
    "1x1 64->64 224x224": ((1, 64, 224, 224), (64, 64, 1, 1)),
    "3x3 128->128 28x28": ((1, 128, 28, 28), (128, 128, 3, 3)),
    "3x3 16->16 32x32": ((1, 16, 32, 32), (16, 16, 3, 3)),
}
"""Layers that are measured beside their pair at half the multiply-accumulates: shapes of the input and the weights."""

STRIPS = {"1x1 256->256 14x14": 2, "1x1 128->128 28x28": 4, "1x1 64->256 56x56": 7, "1x1 64->64 224x224": 28}
"""Into how many strips of rows an image is cut, to see what a pair gains whose intermediate is read while it is hot."""

PLAIN = {"kind": "share_weights", "weighting": "none"}
WEIGHTED = {"kind": "share_weights", "weighting": "hessian", "rounding": "gptq"}
THIN = {"kind": "factorize", "form": "channel", "data": "whitened"}
REPAIRED = {"repair": "least_squares", "samples": 500}
METHODS_OF: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "ds_cnn_l": {
        "32 clusters, k-means from even steps": {**PLAIN, "bits": 5, "start": "linear"},
        "32 clusters, plain": {**PLAIN, "bits": 5},
        "32 clusters, Hessian": {**WEIGHTED, "bits": 5, "rounding": "nearest"},
        "32 clusters, Hessian + GPTQ": {**WEIGHTED, "bits": 5},
        "16 clusters, Hessian + GPTQ": {**WEIGHTED, "bits": 4},
    },
    "resnet56": {
        "4 bits, k-means from even steps": {**PLAIN, "bits": 4, "start": "linear"},
        "4 bits, plain": {**PLAIN, "bits": 4},
        "4 bits, Hessian": {**WEIGHTED, "bits": 4, "rounding": "nearest"},
        "4 bits, Hessian + GPTQ": {**WEIGHTED, "bits": 4},
        "3 bits, plain": {**PLAIN, "bits": 3},
        "3 bits, Hessian + GPTQ": {**WEIGHTED, "bits": 3},
        "1.5x fewer MACs, channel, plain SVD": {**THIN, "data": "none", "macs": 0.6667},
        "1.5x fewer MACs, channel, whitened": {**THIN, "macs": 0.6667},
        "1.5x fewer MACs, channel, whitened + least squares": {**THIN, "macs": 0.6667, **REPAIRED},
        "1.5x fewer MACs, Tucker-2, plain": {**THIN, "form": "tucker", "data": "none", "macs": 0.6667},
        "1.5x fewer MACs, Tucker-2, whitened + least squares": {
            **THIN, "form": "tucker", "macs": 0.6667, **REPAIRED
        },
    },
    "magika": {
        "4 bits, k-means from even steps": {**PLAIN, "bits": 4, "start": "linear"},
        "4 bits, plain": {**PLAIN, "bits": 4},
        "4 bits, Hessian": {**WEIGHTED, "bits": 4, "rounding": "nearest"},
        "4 bits, Hessian + GPTQ": {**WEIGHTED, "bits": 4},
    },
    "autoencoder": {
        "2x fewer parameters, plain SVD": {**THIN, "data": "none", "parameters": 0.5},
        "2x fewer parameters, whitened": {**THIN, "parameters": 0.5},
        "2x fewer parameters, whitened + least squares": {
            **THIN, "parameters": 0.5, "repair": "least_squares", "samples": 80
        },
    },
    "kwt1": {
        "2x fewer parameters, plain SVD": {**THIN, "data": "none", "parameters": 0.5},
        "2x fewer parameters, whitened": {**THIN, "parameters": 0.5},
    },
}  # fmt: skip
"""Model -> what it is compressed by, by the name in the table."""
MORE = {"resnet56": cifar(normalized, 500)}
"""Rows to calibrate on for what fits weights to them, where the task has fewer."""


@dataclass(frozen=True)
class Subject:
    """A model, folded, and its rows."""

    task: Task
    rows: Rows
    more: Rows
    graph: Graph

    @classmethod
    def of(cls, name: str, data: Path, limit: int | None) -> "Subject":
        task, rows = TASKS[name], TASKS[name].rows(data)
        more = MORE[name](data) if name in MORE else rows
        if limit is not None and limit < len(rows.test):
            chosen = np.linspace(0, len(rows.test) - 1, limit).astype(int)
            rows = replace(rows, test=rows.test[chosen], labels=None if rows.labels is None else rows.labels[chosen])
        path = data / "models" / task.model
        given = onnx.load(path).graph.input[0]
        dims = tuple(dim.dim_value or 1 for dim in given.type.tensor_type.shape.dim)
        return cls(task, rows, more, registry().kinds["fold"]().apply(load(path, {given.name: dims}), Context()))  # type: ignore[call-arg]

    def feed(self, row: Array) -> dict[str, Array]:
        (name,) = self.graph.inputs
        return {name: row.reshape(self.graph.types[name].dims)}

    def compressed(self, options: Mapping[str, Any]) -> Graph:
        step = registry().kinds[str(options["kind"])].model_validate(options)
        rows = (
            self.more.calibration if options.get("samples", 0) > len(self.rows.calibration) else self.rows.calibration
        )
        statistics = calibrate(self.graph, step.observes(self.graph), map(self.feed, rows))
        return step.apply(self.graph, Context(statistics))

    def outputs(self, graph: Graph) -> Array:
        session = Session(graph, optimize=True)
        found = (session.run(self.feed(row))[graph.outputs[0]] for row in self.rows.test)
        return np.concatenate([np.asarray(values).reshape(1, -1) for values in found])


def accuracy(names: Sequence[str], limit: int | None, methods: Sequence[str]) -> Iterator[str]:
    """Lines of a table as they are known; of `methods`, those whose label holds one of these."""
    data = find_shared()
    if data is None:
        sys.exit("../shared/data is absent: nothing to measure on")
    yield "| model | weights | score | output error | bytes of fp32 | MACs | parameters stored |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for name in names:
        subject = Subject.of(name, data, limit)
        reference, floats = subject.outputs(subject.graph), cost(subject.graph)
        for label, options in ({"float": {}} | METHODS_OF[name]).items():
            if methods and not any(each in label for each in methods):
                continue
            graph = subject.compressed(options) if options else subject.graph
            outputs, price = subject.outputs(graph), cost(graph)
            ((_, value), *_) = subject.task.score(outputs, reference, subject.rows).items()
            apart = (
                np.square(outputs.astype(np.float64) - reference).sum() / np.square(reference.astype(np.float64)).sum()
            )
            shares = price.bytes / floats.bytes, (price.macs or 0) / (floats.macs or 1)
            cells = [f"{value:.2f}", f"{apart:.2e}", *(f"{100 * share:.1f} %" for share in shares)]
            yield f"| {name} | {label} | {' | '.join(cells)} | {price.parameters / floats.parameters:.2f} |"


def large(name: str) -> Graph:
    """A model of the `onnx` wheel with seeded random weights: normal, of a variance of 2 over the fan-in."""
    graph = load(LIGHT / f"{LARGE[name]}.onnx")
    edit, rng = Edit(graph), np.random.default_rng(0)
    for node in graph.nodes:
        if node.op == "ConstantOfShape":
            shape = graph.types[node.outputs[0]].dims
            deviation = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.1
            values = rng.standard_normal(shape, np.float32) * np.float32(deviation)
            edit.remove(node)
            edit.define(node.outputs[0], values if len(shape) > 1 else np.abs(values) + np.float32(0.5))
    return replace(edit.apply(), name=name)


def sizes(name: str) -> str:
    """A line: bytes as fp32, packed, coded, and the entropy's; this process' time and memory."""
    start = time.monotonic()
    spec = {"name": name, "passes": list(PRUNED_AND_SHARED), "targets": [{"cpu": "native", "weights": "coded"}]}
    build = graphc.compile(large(name), spec, out=FOLDER)
    whole, target = build.report.targets[0].weights[-1], build.report.targets[0]
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    processor = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    used = sum(usage.ru_maxrss for usage in usages)
    mega = [f"{number / 1e6:.2f}" for number in (whole.raw, whole.packed, whole.stored, whole.bound, target.ram)]
    latency = f"{target.latency.median * 1e3:.1f}" if target.latency else ""
    seconds = f"{time.monotonic() - start:.0f} | {processor:.0f}"
    return f"| {name} | {' | '.join(mega)} | {latency} | {seconds} | {used / 1e6:.2f} |"


def streams(name: str) -> str:
    """A line as of `sizes`, of the exported model's constants instead of the kernels' own."""
    graph, whole = large(name), np.zeros(4)
    for options in PRUNED_AND_SHARED:
        step = registry().kinds[str(options["kind"])].model_validate(options)
        graph = step.apply(graph, Context())
        whole[0] = max(whole[0], sum(array.nbytes for array in graph.constants.values()))  # as it is once folded
    for array in graph.constants.values():
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if len(flat):
            whole[1:] += len(flat), len(encoded(flat).data), entropy_bytes(counted(flat))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    mega = [f"{number / 1e6:.2f}" for number in whole]
    return f"| {name} | {' | '.join(mega)} | {usage.ru_utime + usage.ru_stime:.0f} | {usage.ru_maxrss / 1e6:.2f} |"


def coders(path: Path) -> Iterator[str]:
    """How large each constant of at least a kilobyte becomes, beside its entropy, and all of them."""
    yield "| constant | bytes | entropy | huffman | rans |"
    yield "|---|---:|---:|---:|---:|"
    total = np.zeros(4)
    for name, array in load(path).constants.items():
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8) if array.nbytes >= 1024 else None
        if flat is not None:
            found = np.array(
                [len(flat), entropy_bytes(counted(flat)), *(len(encode(flat, each)) for each in METHODS[1:])]
            )
            total += found
            yield f"| {name} | {' | '.join(f'{number:.0f}' for number in found)} |"
    yield f"| all | {' | '.join(f'{number:.0f}' for number in total)} |"


def strip(name: str) -> tuple[int, ...]:
    """The shape of one strip of a layer's input."""
    (batch, channels, rows, columns), _ = PAIRS[name]
    return batch, channels, rows // STRIPS.get(name, 1), columns


def layer(name: str, x: tuple[int, ...]) -> Graph:
    """A convolution of an input of shape x with a bias and a Relu, as networks have them, with random weights."""
    _, w = PAIRS[name]
    rng, side = np.random.default_rng(0), w[2] // 2
    constants = {"w": rng.standard_normal(w, np.float32), "b": rng.standard_normal(w[0], np.float32)}
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[side] * 4),
        onnx.helper.make_node("Relu", ["c"], ["y"]),
    ]
    info = onnx.helper.make_tensor_value_info
    tensors = [onnx.numpy_helper.from_array(array, each) for each, array in constants.items()]
    graph = onnx.helper.make_graph(nodes, "layer", [info("x", 1, x)], [info("y", 1, None)], tensors)
    return load(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10))


def place(name: str, form: str) -> str:
    return f"{form}_{''.join(letter if letter.isalnum() else '_' for letter in name)}"


def build_pairs() -> None:
    half = {"kind": "factorize", "form": "channel", "data": "none", "ratio": 0.5, "never_slower": False}
    for name, (x, _) in PAIRS.items():
        for form, shape, passes in (("dense", x, []), ("pair", x, [half]), ("strip", strip(name), [half])):
            spec = {"name": place(name, form), "passes": [{"kind": "fold"}, *passes], "targets": [{"cpu": "native"}]}
            graphc.compile(layer(name, shape), spec, out=FOLDER)


def runners(name: str) -> Mapping[str, Sequence[tuple[Runner, Array]]]:
    """What computes a layer, each with its input: the strips of one layer have memory of their own."""
    shape, _ = PAIRS[name]
    x = np.random.default_rng(1).standard_normal(shape, np.float32)
    found = {}
    for form, count in (("dense", 1), ("pair", 1), ("strip", STRIPS.get(name, 0))):
        parts = np.split(x, count, axis=2) if count else []
        found[form] = [(Runner(FOLDER / place(name, form) / "native", 1), np.ascontiguousarray(part)) for part in parts]
    return found


def kernel_ticks(runner: Runner, x: Array) -> int:
    """Nanoseconds of the layer's own kernels: no inner layer has the transposes at the borders."""
    steps = zip(runner.manifest.steps, runner.profile(x), strict=True)
    return sum(tick for step, tick in steps if any(node.startswith("c") for node in step.nodes))


def pairs(rounds: int) -> Iterator[str]:
    """Milliseconds on one thread, in turns; in strips, both thin layers run on some rows before the next."""
    yield "| layer | dense ms | pair ms | times as fast | pair in strips ms |"
    yield "|---|---:|---:|---:|---:|"
    for name in PAIRS:
        forms = runners(name)
        found: dict[str, list[int]] = {form: [] for form in forms}
        for _ in range(rounds):
            for form, parts in forms.items():
                found[form].append(sum(kernel_ticks(*part) for part in parts))
        dense, pair, strips = (float(np.median(found[form])) / 1e6 for form in ("dense", "pair", "strip"))
        yield f"| {name} | {dense:.4f} | {pair:.4f} | {dense / pair:.2f} | {f'{strips:.4f}' if strips else ''} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("accuracy", "sizes", "streams", "coders", "pairs"))
    parser.add_argument("names", nargs="*", metavar="MODEL")
    parser.add_argument("--rows", type=int, help="so many test rows, spread evenly (default: all)")
    parser.add_argument("--method", action="append", default=[], metavar="TEXT", help="only those whose name holds it")
    parser.add_argument("--only", choices=("build", "time"), help="of pairs")
    given = parser.parse_args()
    if given.what == "accuracy":
        for line in accuracy(given.names or list(METHODS_OF), given.rows, given.method):
            print(line, flush=True)
    elif given.what == "pairs":
        if given.only != "time":
            build_pairs()
        if given.only != "build":
            print(*pairs(300), sep="\n")
    elif given.what == "coders":
        print(*coders(Path(given.names[0])), sep="\n")
    elif len(given.names) == 1:
        print((sizes if given.what == "sizes" else streams)(given.names[0]))
    else:
        more = " arena MB | run ms | build s | CPU s |" if given.what == "sizes" else " CPU s |"
        print(f"| model | fp32 MB | packed MB | coded MB | entropy MB |{more} peak GB |")
        print("|---|" + "---:|" * (5 + more.count("|")), flush=True)
        for name in given.names or LARGE:
            subprocess.run([sys.executable, "-m", "tests.bench.compaction", given.what, name], check=True)


if __name__ == "__main__":
    main()
