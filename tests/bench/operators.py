"""Speed of single operators that contract nothing: graphc's kernels beside onnxruntime's and OpenVINO's, one thread.

    python -m tests.bench.operators [--only build|time] [--cpu native] [--seconds 1] [--folder DIR] [CASE ...]

CASE is a beginning of names. Artifacts and models are made in the folder first; those whose code did not change come
from the kernel cache. Then all contestants of a case take turns. Inputs are random; what is constant in a case, too.
"""

import argparse
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import geometric_mean

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

from graphc import peers
from graphc.backends import targets
from graphc.backends.build import build_target
from graphc.backends.cache import Cache
from graphc.backends.worker import Server
from graphc.bench import Timing, interleave
from graphc.errors import UnsupportedError
from graphc.importer import load
from graphc.ir import Array
from graphc.machine import machine
from graphc.runner import Runner

PEERS = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Case:
    """ONNX text that makes y of x (and r, of the same type and shape); `constants` are of int64 or shapes of floats."""

    text: str
    x: tuple[int, ...]
    axes: tuple[int, ...] = ()
    weights: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dtype: str = "float"

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("x", "r") if "r)" in self.text else ("x",)


def _affine(channels: int) -> Mapping[str, tuple[int, ...]]:
    return {"g": (channels,), "b": (channels,)}


CASES: Mapping[str, Case] = {
    "max rows 512x1024": Case("y = ReduceMax<keepdims=0>(x, axes)", (512, 1024), (1,)),
    "max rows 64x1000": Case("y = ReduceMax(x, axes)", (64, 1000), (1,)),
    "max columns 512x1024": Case("y = ReduceMax<keepdims=0>(x, axes)", (512, 1024), (0,)),
    "max spatial 1x256x28x28": Case("y = ReduceMax(x, axes)", (1, 256, 28, 28), (2, 3)),
    "max channels 1x21x128x128": Case("y = ReduceMax(x, axes)", (1, 21, 128, 128), (1,)),
    "max pairs 65536x4": Case("y = ReduceMax(x, axes)", (65536, 4), (1,)),
    "max int32 rows 512x1024": Case("y = ReduceMax(x, axes)", (512, 1024), (1,), dtype="int32"),
    "max int8 rows 512x1024": Case("y = ReduceMax(x, axes)", (512, 1024), (1,), dtype="int8"),
    "min everything 512x1024": Case("y = ReduceMin(x, axes)", (512, 1024), (0, 1)),
    "sum rows 512x1024": Case("y = ReduceSum(x, axes)", (512, 1024), (1,)),
    "sum rows 512x197": Case("y = ReduceSum(x, axes)", (512, 197), (1,)),
    "sum everything 512x1024": Case("y = ReduceSum(x, axes)", (512, 1024), (0, 1)),
    "mean columns 512x1000": Case("y = ReduceMean(x, axes)", (512, 1000), (0,)),
    "mean spatial 1x256x28x28": Case("y = ReduceMean(x, axes)", (1, 256, 28, 28), (2, 3)),
    "product rows 512x1024": Case("y = ReduceProd(x, axes)", (512, 1024), (1,)),
    "norm rows 512x1024": Case("y = ReduceL2(x, axes)", (512, 1024), (1,)),
    "logsumexp rows 512x1024": Case("y = ReduceLogSumExp(x, axes)", (512, 1024), (1,)),
    "argmax rows 512x1024": Case("y = ArgMax<axis=1>(x)", (512, 1024)),
    "argmax rows 64x1000": Case("y = ArgMax<axis=1>(x)", (64, 1000)),
    "argmax channels 1x21x128x128": Case("y = ArgMax<axis=1>(x)", (1, 21, 128, 128)),
    "argmin int8 rows 512x1024": Case("y = ArgMin<axis=1>(x)", (512, 1024), dtype="int8"),
    "top1 rows 512x1000": Case("v, y = TopK(x, axes)", (512, 1000), (1,)),
    "top5 rows 512x1000": Case("v, y = TopK(x, axes)", (512, 1000), (5,)),
    "cumsum rows 512x1024": Case("y = CumSum(x, axes)", (512, 1024), (1,)),
    "cumsum columns 512x1024": Case("y = CumSum(x, axes)", (512, 1024), (0,)),
    "softmax rows 512x197": Case("y = Softmax(x)", (512, 197)),
    "softmax rows 1536x128": Case("y = Softmax(x)", (1536, 128)),
    "softmax channels 1x21x128x128": Case("y = Softmax<axis=1>(x)", (1, 21, 128, 128)),
    "softmax channels 1x4x160x160": Case("y = Softmax<axis=1>(x)", (1, 4, 160, 160)),
    "softmax columns 1x64x1024x17": Case("y = Softmax<axis=2>(x)", (1, 64, 1024, 17)),
    "logsoftmax channels 1x21x128x128": Case("y = LogSoftmax<axis=1>(x)", (1, 21, 128, 128)),
    "logsoftmax rows 256x1000": Case("y = LogSoftmax(x)", (256, 1000)),
    "layernorm 128x384": Case("y = LayerNormalization(x, g, b)", (128, 384), weights=_affine(384)),
    "layernorm 197x768": Case("y = LayerNormalization(x, g, b)", (1, 197, 768), weights=_affine(768)),
    "residual layernorm 197x768": Case(
        "s = Add(x, r) y = LayerNormalization(s, g, b)", (1, 197, 768), weights=_affine(768)
    ),
    "layernorm gelu 197x768": Case("n = LayerNormalization(x, g, b) y = Gelu(n)", (1, 197, 768), weights=_affine(768)),
    "layernorm planes 1x64x56x56": Case(
        "y = LayerNormalization<axis=2>(x, g, b)", (1, 64, 56, 56), weights={"g": (56, 56), "b": (56, 56)}
    ),
    "rmsnorm 128x2048": Case("y = RMSNormalization(x, g)", (1, 128, 2048), weights={"g": (2048,)}),
    "residual rmsnorm 128x2048": Case(
        "s = Add(x, r) y = RMSNormalization(s, g)", (1, 128, 2048), weights={"g": (2048,)}
    ),
    "instancenorm 1x64x128x128": Case("y = InstanceNormalization(x, g, b)", (1, 64, 128, 128), weights=_affine(64)),
    "instancenorm relu 1x64x128x128": Case(
        "n = InstanceNormalization(x, g, b) y = Relu(n)", (1, 64, 128, 128), weights=_affine(64)
    ),
    "groupnorm 1x256x32x32": Case(
        "y = GroupNormalization<num_groups=32>(x, g, b)", (1, 256, 32, 32), weights=_affine(256)
    ),
    "groupnorm silu 1x256x32x32": Case(
        "n = GroupNormalization<num_groups=32>(x, g, b) s = Sigmoid(n) y = Mul(n, s)",
        (1, 256, 32, 32),
        weights=_affine(256),
    ),
    "conv instancenorm relu conv 1x32x128x128": Case(
        "c = Conv<pads=[1,1,1,1]>(x, w) n = InstanceNormalization(c, g, b) m = Relu(n) y = Conv<pads=[1,1,1,1]>(m, w)",
        (1, 32, 128, 128),
        weights={**_affine(32), "w": (32, 32, 3, 3)},
    ),
    "conv groupnorm silu conv 1x64x64x64": Case(
        "c = Conv<pads=[1,1,1,1]>(x, w) n = GroupNormalization<num_groups=8>(c, g, b) s = Sigmoid(n) m = Mul(n, s)"
        " y = Conv<pads=[1,1,1,1]>(m, w)",
        (1, 64, 64, 64),
        weights={**_affine(64), "w": (64, 64, 3, 3)},
    ),
    "globalpool 1x1280x7x7": Case("y = GlobalAveragePool(x)", (1, 1280, 7, 7)),
    "globalpool 1x64x112x112": Case("y = GlobalAveragePool(x)", (1, 64, 112, 112)),
    "globalmax 1x512x14x14": Case("y = GlobalMaxPool(x)", (1, 512, 14, 14)),
}


def model(case: Case) -> onnx.ModelProto:
    """The case as a graph of its own; results that nothing reads but y are outputs too where the operator has two."""
    shape = ",".join(map(str, case.x))
    inputs = ", ".join(f"{case.dtype}[{shape}] {name}" for name in case.inputs)
    graph = parser.parse_graph(f"g ({inputs}) => (y) {{ {case.text} }}")
    constants: dict[str, Array] = {"axes": np.array(case.axes, np.int64)} if case.axes else {}
    rng = np.random.default_rng(0)
    constants |= {name: rng.standard_normal(dims).astype(np.float32) for name, dims in case.weights.items()}
    graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items())
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    return onnx.shape_inference.infer_shapes(made)


def build(names: Sequence[str], cpu: str, folder: Path) -> None:
    """Every model as an ONNX file, and its artifact."""
    cache = Cache(Path.home() / ".cache" / "graphc")
    target = targets.resolve({"cpu": cpu})
    with Server(1) as server:
        for name in names:
            place = _place(folder, name)
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            proto = model(CASES[name])
            onnx.save(proto, place / "model.onnx")
            build_target(load(proto), target, place / cpu, server, cache)


def _place(folder: Path, name: str) -> Path:
    return folder / name.replace(" ", "_")


def feeds(case: Case) -> dict[str, Array]:
    """Random inputs: normal floats (near 1, so that products stay finite), all values of integers."""
    rng = np.random.default_rng(1)
    if case.dtype == "float":
        return {name: (1 + 0.1 * rng.standard_normal(case.x)).astype(np.float32) for name in case.inputs}
    limits = np.iinfo(case.dtype)
    return {name: rng.integers(limits.min, limits.max, case.x, case.dtype, endpoint=True) for name in case.inputs}


def timings(name: str, cpu: str, folder: Path, seconds: float) -> dict[str, Timing]:
    """Of graphc and of every peer that can run the case."""
    place, given = _place(folder, name), feeds(CASES[name])
    with Runner(place / cpu, 1) as runner:
        runs: dict[str, Callable[[], object]] = {"graphc": runner.bind(**given)}
        for peer in PEERS:
            try:
                runs[peer] = peers.start(peer, place / "model.onnx", given, 1)
            except UnsupportedError:
                continue  # the table shows a gap
        return {who: Timing.of(found) for who, found in interleave(runs, seconds).items()}


def table(names: Sequence[str], cpu: str, folder: Path, seconds: float) -> str:
    """Microseconds, and the faster peer's over graphc's, as Markdown."""
    lines = ["| operator | graphc us | onnxruntime us | OpenVINO us | faster peer / graphc |", "|---|" + "---:|" * 4]
    ratios: list[float] = []
    for name in names:
        found = timings(name, cpu, folder, seconds)
        ratios.append(min(found[peer].median for peer in PEERS if peer in found) / found["graphc"].median)
        cells = [f"{found[who].median * 1e6:.0f}" if who in found else "" for who in ("graphc", *PEERS)]
        lines.append(f"| {name} | {' | '.join(cells)} | {ratios[-1]:.2f} |")
    return "\n".join([*lines, "", f"Geometric mean: {geometric_mean(ratios):.2f}; smallest: {min(ratios):.2f}."])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all unless given")
    arguments.add_argument("--only", choices=("build", "time"))
    arguments.add_argument("--cpu", default="native")
    arguments.add_argument("--folder", type=Path, default=Path("build/operators"))
    arguments.add_argument("--seconds", type=float, default=1.0, help="per case")
    given = arguments.parse_args()
    names = [name for name in CASES if not given.cases or name.startswith(tuple(given.cases))]
    if given.only != "time":
        build(names, given.cpu, given.folder)
    if given.only != "build":
        print(machine())
        print(table(names, given.cpu, given.folder, given.seconds))


if __name__ == "__main__":
    main()
