"""Convolutions that no schedule rule takes: by the generic rule, with tiles that MetaSchedule found, and by the peers.

    python -m tests.bench.searched [--only build|time] [--seconds 1] [--folder DIR] [CASE ...]

CASE is a beginning of names. Building searches with `tune: thorough` what FOLDER/tuning.json lacks. One thread, inputs
and weights are random, and what kernels compute is checked against onnxruntime. Contestants of a case take turns.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

import graphc
from graphc import execute, peers
from graphc.bench import Timing, interleave
from graphc.ir import Array
from graphc.machine import machine
from graphc.runner import Runner

PEERS = ("onnxruntime", "openvino")
TOLERANCE = 1e-4
"""Largest difference from onnxruntime, as part of the largest result."""


@dataclass(frozen=True)
class Case:
    """A node that makes y of x and the weights w, and what it makes."""

    text: str
    x: tuple[int, ...]
    w: tuple[int, ...]
    y: tuple[int, ...]


CASES: Mapping[str, Case] = {
    "transposed 2x2, 64 to 32 channels": Case(
        "ConvTranspose<strides=[2,2]>(x, w)", (1, 64, 28, 28), (64, 32, 2, 2), (1, 32, 56, 56)
    ),
    "transposed 4x4, 128 to 64 channels": Case(
        "ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(x, w)", (1, 128, 14, 14), (128, 64, 4, 4), (1, 64, 28, 28)
    ),
    "transposed 3x3, 64 channels, stride 1": Case(
        "ConvTranspose<pads=[1,1,1,1]>(x, w)", (1, 64, 28, 28), (64, 64, 3, 3), (1, 64, 28, 28)
    ),
    "depthwise 3x3, 64 channels, 2 filters each": Case(
        "Conv<group=64, pads=[1,1,1,1]>(x, w)", (1, 64, 28, 28), (128, 1, 3, 3), (1, 128, 28, 28)
    ),
}


def model(case: Case) -> onnx.ModelProto:
    """The case as a model of one node."""
    x, y, w = (",".join(map(str, dims)) for dims in (case.x, case.y, case.w))
    header = f'<ir_version: 10, opset_import: ["" : 21]> g (float[{x}] x) => (float[{y}] y) <float[{w}] w>'
    proto = parser.parse_model(f"{header} {{ y = {case.text} }}")
    weights = np.random.default_rng(0).standard_normal(case.w).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    return helper.make_model(proto.graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)


def _place(folder: Path, name: str) -> Path:
    return folder / name.replace(" ", "_").replace(",", "")


def feeds(case: Case) -> dict[str, Array]:
    return {"x": np.random.default_rng(1).standard_normal(case.x).astype(np.float32)}


def build(name: str, folder: Path) -> None:
    """An artifact as the generic rule makes it, and a searched one."""
    place = _place(folder, name)
    place.mkdir(parents=True, exist_ok=True)
    proto = model(CASES[name])
    onnx.save(proto, place / "model.onnx")
    tuning = {"tune": "thorough", "tuning": str((folder / "tuning.json").absolute())}
    for kind, more in (("generic", {}), ("searched", tuning)):
        spec = {"name": kind, "passes": [], "targets": [{"cpu": "native", **more}]}
        built = graphc.compile(proto, spec, out=place)
        print(f"{name}, {kind}: {built.report.targets[0].tuning}", flush=True)


def timings(name: str, folder: Path, seconds: float) -> dict[str, Timing]:
    """Of both artifacts and the peers, after a look at what they compute."""
    place, given = _place(folder, name), feeds(CASES[name])
    with Runner(place / "generic/native", 1) as generic, Runner(place / "searched/native", 1) as searched:
        runs: dict[str, Callable[[], object]] = {"generic": generic.bind(**given), "searched": searched.bind(**given)}
        for peer in PEERS:
            runs[peer] = peers.start(peer, place / "model.onnx", given, 1)
        reference = execute.run(graphc.load(place / "model.onnx"), given)["y"]
        for runner in (generic, searched):
            difference = float(np.abs(np.asarray(runner(**given)) - reference).max() / np.abs(reference).max())
            if difference > TOLERANCE:
                raise SystemExit(f"{name}: differs from onnxruntime by {difference:.1e} of the largest result.")
        return {who: Timing.of(found) for who, found in interleave(runs, seconds).items()}


def table(names: Sequence[str], folder: Path, seconds: float) -> str:
    """Microseconds, and how many times as fast as the generic rule the searched kernel is, as Markdown."""
    columns = ("generic", "searched", *PEERS)
    lines = ["| convolution | generic us | searched us | onnxruntime us | OpenVINO us | generic / searched |"]
    lines.append("|---|" + "---:|" * 5)
    for name in names:
        found = timings(name, folder, seconds)
        cells = [f"{found[who].median * 1e6:.0f}" for who in columns]
        lines.append(f"| {name} | {' | '.join(cells)} | {found['generic'].median / found['searched'].median:.2f} |")
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("cases", nargs="*", metavar="CASE", help=f"of {'; '.join(CASES)}; all unless given")
    arguments.add_argument("--only", choices=("build", "time"))
    arguments.add_argument("--folder", type=Path, default=Path("build/searched"))
    arguments.add_argument("--seconds", type=float, default=1.0, help="per case")
    given = arguments.parse_args()
    names = [name for name in CASES if not given.cases or name.startswith(tuple(given.cases))]
    for name in names if given.only != "time" else ():
        build(name, given.folder)
    if given.only != "build":
        print(machine())
        print(table(names, given.folder, given.seconds))


if __name__ == "__main__":
    main()
