"""Speed of contractions whose weights are decoded in the kernel, beside graphc's float kernel and onnxruntime.

    python -m tests.bench.decoders [--only build|time] [--cpu native] [--seconds 3] [LAYER ...]

Artifacts and models are made in build/decoders first, and kept; then all contestants of a layer take turns, one thread.
Weights are random: int8 has a scale per output, int4 and int2 one per 32 steps of depth, lookup4 16 shared values.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

from graphc.backends import targets
from graphc.backends.build import build_target
from graphc.backends.cache import Cache
from graphc.backends.worker import Server
from graphc.bench import Timing, interleave
from graphc.importer import load
from graphc.ir import Array
from graphc.machine import machine
from graphc.ort import onnxruntime
from graphc.runner import Runner

FOLDER = Path("build/decoders")
GROUP = 32
FORMATS = ("fp32", "int8", "int4", "int2", "lookup4")
PEERS = ("onnxruntime fp32", "onnxruntime MatMulNBits")


@dataclass(frozen=True)
class Layer:
    """An operator with an input of shape `x` and weights of shape `weights`, whose reduction axes are (I, *K) or K."""

    op: str
    x: tuple[int, ...]
    weights: tuple[int, ...]
    pads: tuple[int, ...] = ()


LAYERS: Mapping[str, Layer] = {
    "gemv 4096x4096": Layer("MatMul", (1, 4096), (4096, 4096)),
    "matmul 4x4096x4096": Layer("MatMul", (4, 4096), (4096, 4096)),
    "matmul 128x1024x1024": Layer("MatMul", (128, 1024), (1024, 1024)),
    "conv 1x1 256->256 14x14": Layer("Conv", (1, 256, 14, 14), (256, 256, 1, 1), (0, 0, 0, 0)),
    "conv 3x3 128->128 28x28": Layer("Conv", (1, 128, 28, 28), (128, 128, 3, 3), (1, 1, 1, 1)),
    "conv 3x3 512->512 7x7": Layer("Conv", (1, 512, 7, 7), (512, 512, 3, 3), (1, 1, 1, 1)),
}


class Weights:
    """The nodes and constants that a format stores weights of a layer as; the last node's result is `w`."""

    def __init__(self, layer: Layer, form: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.random = np.random.default_rng(0)
        outputs = layer.weights[0] if layer.op == "Conv" else layer.weights[1]
        matrix = (outputs, prod(layer.weights) // outputs)
        if form == "fp32":
            self.constants["w"] = self.random.standard_normal(layer.weights).astype(np.float32)
        elif form == "lookup4":
            self._lookup(layer.weights)
        elif layer.op == "Conv":
            self._integers(matrix, form, outputs_axis=0, result="matrix")
            self.constants["shape"] = np.array(layer.weights)
            self.nodes.append(helper.make_node("Reshape", ["matrix", "shape"], ["w"]))
        else:
            self._integers(matrix[::-1], form, outputs_axis=1, result="w")

    def _lookup(self, shape: tuple[int, ...]) -> None:
        self.constants["codebook"] = self.random.standard_normal(16).astype(np.float32)
        self.constants["packed"] = self.random.integers(0, 256, prod(shape) // 2, np.uint8)
        attributes = {"bits": 4, "shape": shape, "domain": "graphc"}
        self.nodes.append(helper.make_node("Lookup", ["codebook", "packed"], ["w"], **attributes))

    def _integers(self, shape: tuple[int, int], form: str, outputs_axis: int, result: str) -> None:
        kind = ml_dtypes.iinfo(getattr(ml_dtypes, form, form))
        self.constants["q"] = self.random.integers(kind.min, kind.max, shape, endpoint=True).astype(kind.dtype)
        if form == "int8":
            scales, attributes = (shape[outputs_axis],), {"axis": outputs_axis}
        else:
            axis = 1 - outputs_axis
            scales = tuple(n // GROUP if a == axis else n for a, n in enumerate(shape))
            attributes = {"axis": axis, "block_size": GROUP}
        self.constants["scale"] = self.random.uniform(0.01, 0.1, scales).astype(np.float32)
        self.nodes.append(helper.make_node("DequantizeLinear", ["q", "scale"], [result], **attributes))


def model(layer: Layer, form: str) -> onnx.ModelProto:
    """The layer alone, its weights in a format."""
    weights = Weights(layer, form)
    attributes = {"pads": layer.pads} if layer.pads else {}
    nodes = [*weights.nodes, helper.make_node(layer.op, ["x", "w"], ["y"], **attributes)]
    return _model(layer, nodes, weights.constants, [helper.make_opsetid("", 26), helper.make_opsetid("graphc", 1)])


def packed_model(layer: Layer) -> onnx.ModelProto:
    """The product as onnxruntime's own operator for weights of 4 bits in groups."""
    inner, outputs = layer.weights
    random = np.random.default_rng(0)
    constants: dict[str, Array] = {
        "q": random.integers(0, 256, (outputs, inner // GROUP, GROUP // 2), np.uint8),
        "scale": random.uniform(0.01, 0.1, (outputs, inner // GROUP)).astype(np.float32),
    }
    attributes = {"K": inner, "N": outputs, "bits": 4, "block_size": GROUP, "domain": "com.microsoft"}
    node = helper.make_node("MatMulNBits", ["x", "q", "scale"], ["y"], **attributes)
    return _model(layer, [node], constants, [helper.make_opsetid("", 26), helper.make_opsetid("com.microsoft", 1)])


def _model(
    layer: Layer, nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Array], imports: Sequence[Any]
) -> onnx.ModelProto:
    inputs, outputs = (helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", layer.x), ("y", None)))
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "layer", [inputs], [outputs], initializers)
    return helper.make_model(graph, opset_imports=imports, ir_version=13)


def build(names: Sequence[str], cpu: str) -> None:
    """Artifacts and models that are not there yet."""
    cache = Cache(Path.home() / ".cache" / "graphc")
    with Server(1) as server:
        for name in names:
            for form in FORMATS:
                place = _place(name, form, cpu)
                if not place.exists():
                    build_target(load(model(LAYERS[name], form)), targets.resolve({"cpu": cpu}), place, server, cache)


def _place(name: str, form: str, cpu: str) -> Path:
    return FOLDER / cpu / name.replace(" ", "_").replace(">", "") / form


def contestants(name: str, cpu: str) -> dict[str, Callable[[], object]]:
    """What takes turns on a layer, by format or peer."""
    layer = LAYERS[name]
    x = np.random.default_rng(1).standard_normal(layer.x).astype(np.float32)
    runs: dict[str, Callable[[], object]] = {}
    for form in FORMATS:
        runner = Runner(_place(name, form, cpu), 1)
        runs[form] = lambda runner=runner: runner(x)
    peers = {PEERS[0]: model(layer, "fp32"), **({PEERS[1]: packed_model(layer)} if layer.op == "MatMul" else {})}
    for peer, proto in peers.items():
        options = onnxruntime().SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime().InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
        runs[peer] = lambda session=session: session.run(None, {"x": x})
    return runs


def table(names: Sequence[str], cpu: str, seconds: float) -> str:
    """Milliseconds, and how many times as fast as graphc's own float kernel, as Markdown."""
    columns = (*FORMATS, *PEERS)
    lines = ["| layer | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name in names:
        timings = {who: Timing.of(found) for who, found in interleave(contestants(name, cpu), seconds).items()}
        base = timings["fp32"].median
        cells = [
            f"{timings[who].median * 1e3:.3g} ms ({base / timings[who].median:.2f}x)" if who in timings else ""
            for who in columns
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layers", nargs="*", metavar="LAYER", help=f"of {', '.join(LAYERS)}; all unless given")
    parser.add_argument("--only", choices=("build", "time"))
    parser.add_argument("--cpu", default="native")
    parser.add_argument("--seconds", type=float, default=3.0, help="per layer")
    given = parser.parse_args()
    names = given.layers or list(LAYERS)
    if given.only != "time":
        build(names, given.cpu)
    if given.only != "build":
        print(machine())
        print(table(names, given.cpu, given.seconds))


if __name__ == "__main__":
    main()
