"""The MLPerf Tiny models without an operating system: memory, instructions, and every bit against the x86 artifact.

    python -m tests.bench.arm_bare [--board mps2-an386 ...] [--model kws ...] [--samples 100] [--layers FILE]
    python -m tests.bench.arm_bare --accuracy [--model kws ic]

Each model is built as the reference int8 file is given, and from its float file by graphc's `quantize` with
`io: int8`; both for this machine and for the boards. The same samples run on both; the exit code is the number of
rows that differ or exceed a limit. `--layers` writes the instructions of each call of each build. `--accuracy` runs all
labelled data on this machine's artifact, whose bits the boards' are.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import graphc
from graphc.artifact import Tensor, read
from graphc.emulated_board import EmulatedBoard
from graphc.errors import GraphcError
from tests.bench.tasks import TASKS, Array
from tests.models import MODELS

BOARDS = ("mps2-an386", "mps2-an500", "mps3-an547")
KIB = 1024


@dataclass(frozen=True)
class Limits:
    """`task` prepares the float model's rows, and `grid` is the scale and zero point of the int8 file's input; bytes of
    the reference TFLite file and of RAM are what must not be exceeded, by more than `CODE` of flash."""

    files: tuple[str, str]
    task: str
    tflite: int
    ram: int
    grid: tuple[float, int]


CODE = 40 * KIB
MODEL_LIMITS: Mapping[str, Limits] = {
    "ic": Limits(("ic_resnet8_int8_qdq", "ic_resnet8_float"), "resnet8", 98_496, 52 * KIB, (1.0, -128)),
    "kws": Limits(("kws_dscnn_int8_qdq", "kws_dscnn_float"), "kws_dscnn", 53_936, 20 * KIB, (0.5847029089927673, 83)),
    "vww": Limits(("vww_mobilenet025_int8_qdq", "vww_mobilenet025_float"), "vww", 333_288, 64 * KIB, (1 / 255, -128)),
    "ad": Limits(
        ("ad_autoencoder_int8_qdq", "ad_autoencoder_float"), "autoencoder", 276_976, 5 * KIB, (0.3910152316, 89)
    ),
}


def spec(name: str, data: Path, folder: Path, boards: tuple[str, ...], calibration: Array | None) -> dict[str, Any]:
    """A build for this machine and the boards; quantized where there is something to calibrate with."""
    shapes = {key: list(shape) for key, shape in MODELS[f"mlperf_tiny/{name}.onnx"].shapes.items()}
    found: dict[str, Any] = {
        "name": name,
        "model": {
            "path": str(data / f"models/mlperf_tiny/{name}.onnx"),
            "inputs": {k: list(v) for k, v in shapes.items()},
        },
        "passes": [{"kind": "fold"}],
        "targets": [{"cpu": "native"}, *({"board": board} for board in boards)],
    }
    if calibration is not None:
        np.savez(folder / "calibration.npz", **{next(iter(shapes)): calibration})
        found["data"] = {"calibration": {"path": str(folder / "calibration.npz")}}
        quantize = {"kind": "quantize", "weights": "int8", "activations": "int8", "calibrate": "minmax", "io": "int8"}
        found["passes"].append(quantize)
    return found


def stored(tensor: Tensor, rows: Array, grid: tuple[float, int]) -> Array:
    """Rows of real values as the artifact takes them; `grid` is that of an int8 input that says nothing itself."""
    if tensor.dtype != "int8":
        return rows.astype(tensor.dtype)
    own = tensor.quantization
    scale, zero_point = (own.scale, own.zero_point) if own else grid
    return np.clip(np.rint(rows / np.float32(scale)) + zero_point, -128, 127).astype(np.int8)


def rows(
    name: str, limits: Limits, samples: int, folder: Path, boards: tuple[str, ...], data: Path
) -> Iterator[dict[str, Any]]:
    """One row per board."""
    task = TASKS[limits.task].rows(data)
    quantized = name.endswith("_float")
    built = graphc.compile(None, spec(name, data, folder, boards, task.calibration if quantized else None), out=folder)
    with built.open("native") as native:
        inputs = stored(native.inputs[0], task.test[:samples], limits.grid).reshape(-1, *native.inputs[0].shape)
        expected = [native(given) for given in inputs]
    for board in boards:
        manifest = read(built.artifact(board))
        assert manifest.footprint is not None
        with EmulatedBoard(built.artifact(board)) as emulated:
            same = sum(np.array_equal(emulated(given), answer) for given, answer in zip(inputs, expected, strict=True))
            steps = emulated.profile(inputs[0])
            seen = emulated.counts.stack
        yield {
            "model": name,
            "board": board,
            "same": same,
            "samples": len(inputs),
            "flash": manifest.weights.bytes + manifest.footprint.code,
            "flash_limit": limits.tflite + CODE,
            "ram": manifest.ram,
            "ram_limit": limits.ram,
            "lower_bound": manifest.arena.lower_bound,
            "stack": manifest.footprint.stack,
            "stack_seen": seen,
            "instructions": sum(steps),
            "layers": [(", ".join(step.nodes), step.kernel, n) for step, n in zip(manifest.steps, steps, strict=True)],
        }


def accuracy(name: str, limits: Limits, folder: Path, data: Path) -> tuple[float, int]:
    """(top-1 accuracy in percent, labelled samples) of this machine's artifact, in the boards' arithmetic."""
    task = TASKS[limits.task].rows(data)
    assert task.labels is not None
    calibration = task.calibration if name.endswith("_float") else None
    built = graphc.compile(None, spec(name, data, folder, (), calibration), out=folder)
    with built.open("native") as native:
        inputs = stored(native.inputs[0], task.test, limits.grid).reshape(-1, *native.inputs[0].shape)
        answers = np.array([np.argmax(native(given)) for given in inputs])
    return 100 * float(np.mean(answers == task.labels.ravel())), len(inputs)


def line(row: Mapping[str, Any]) -> tuple[bool, str]:
    """(whether everything holds, the row of the table)."""
    holds = row["same"] == row["samples"] and row["flash"] <= row["flash_limit"] and row["ram"] <= row["ram_limit"]
    figures = f"{row['same']} of {row['samples']} | {row['flash']:,} ({row['flash_limit']:,})"
    figures += f" | {row['ram']:,} ({row['ram_limit']:,})"
    rest = f"{row['lower_bound']:,} | {row['stack']:,} ({row['stack_seen']:,}) | {row['instructions']:,}"
    return holds, f"| {row['model']} | {row['board']} | {figures} | {rest} | {'' if holds else 'NO'} |"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--board", nargs="*", default=BOARDS)
    parser.add_argument("--model", nargs="*", default=list(MODEL_LIMITS), choices=list(MODEL_LIMITS))
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--layers", type=Path)
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    given = parser.parse_args(arguments)
    if given.accuracy:
        for name in (name for key in given.model for name in MODEL_LIMITS[key].files):
            with TemporaryDirectory() as folder:
                top1, count = accuracy(name, MODEL_LIMITS[name.partition("_")[0]], Path(folder), given.shared)
            print(f"| {name} | {top1:.2f} | {count:,} |", flush=True)
        return 0
    print("| model | board | equal to x86 | flash (limit) | RAM (limit) | live set | stack (seen) | instructions | |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    failed, layers = 0, []
    for key in given.model:
        for name in MODEL_LIMITS[key].files:
            try:
                with TemporaryDirectory() as folder:
                    for row in rows(
                        name, MODEL_LIMITS[key], given.samples, Path(folder), tuple(given.board), given.shared
                    ):
                        holds, text = line(row)
                        failed += not holds
                        layers.append(row)
                        print(text, flush=True)
            except GraphcError as error:
                failed += 1
                print(f"| {name} | | {error} | | | | | | NO |", flush=True)
    if given.layers is not None:
        given.layers.write_text(json.dumps(layers, indent=1) + "\n", encoding="utf-8")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
