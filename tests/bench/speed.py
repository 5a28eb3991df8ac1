"""Speed, memory and compile time of whole models: graphc's artifacts beside onnxruntime and OpenVINO, in one run.

    python -m tests.bench.speed [MODEL.onnx ...] [--threads 1 2] [--seconds S] [--out DIR] [--json FILE]
                                [--markdown FILE]

Without models: those of `tests.bench.speed_models`, made in DIR/models. The table is printed, or written to a file.
Each model is built for this machine in a fresh cache (its time is the cold build), verified against onnxruntime, and
timed in turns with the peers (graphc/bench.py). A cell compares with the faster peer of that cell. Memory is the peak
of a Python process that opens the model and runs it ten times. Run it while nothing else computes, and compare ratios
within one run only. Needs the extra `bench`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import geometric_mean

from graphc.benchmark import OWN, Benchmark, benchmark
from graphc.machine import machine
from graphc.verify import verify
from tests.bench.speed_models import make

PEERS = ("onnxruntime", "openvino")
RUNS = 10

SPEC = """
model: {{path: {model}}}
passes: [{{kind: fold}}]
targets: [{{cpu: native}}]
"""

OPEN_GRAPHC = """
import numpy, graphc
with graphc.open({folder!r}) as model:
    given = [numpy.ones(i.shape, i.dtype) for i in model.inputs]
    for _ in range({runs}): model(*given)
"""
OPEN_ONNXRUNTIME = """
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession({model!r}, options, providers=["CPUExecutionProvider"])
types = {{"tensor(float)": "float32", "tensor(uint8)": "uint8", "tensor(int8)": "int8"}}
given = {{i.name: numpy.ones(i.shape, types[i.type]) for i in session.get_inputs()}}
for _ in range({runs}): session.run(None, given)
"""


@dataclass(frozen=True)
class Cell:
    """Median seconds of every engine with one number of threads; `ratio`: the faster peer's over graphc's."""

    threads: int
    seconds: dict[str, float]
    ratio: float


@dataclass(frozen=True)
class Result:
    """One model: `build` in seconds, `peak` in MiB of each engine, `error` relative to the largest magnitude."""

    model: str
    build: float
    agrees: bool
    error: float
    cells: list[Cell]
    peak: dict[str, float]


def cold_build(model: Path, out: Path) -> tuple[Path, float]:
    """(the artifact's folder, seconds): `graphc build` as a process of its own, nothing cached."""
    name = model.stem.replace("-", "_")
    spec = out / f"{name}.yaml"
    spec.write_text(SPEC.format(model=model.resolve()))
    with tempfile.TemporaryDirectory() as cache:
        begin = time.perf_counter()
        command = [sys.executable, "-c", "from graphc.cli import main; main()", "build", str(spec), "-o", str(out)]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "GRAPHC_CACHE": cache})
        return out / name / "native", time.perf_counter() - begin


def peak(program: str) -> float:
    """MiB of memory that a Python program holds at most."""
    measured = program + "\nprint(open('/proc/self/status').read())"  # rusage counts what was there before exec
    run = subprocess.run([sys.executable, "-c", measured], check=True, capture_output=True, text=True)
    lines = (line.split() for line in run.stdout.splitlines())
    return next(int(words[1]) for words in lines if words and words[0] == "VmHWM:") / 1024


def cells(found: Benchmark, threads: Sequence[int]) -> list[Cell]:
    made = []
    for count in threads:
        figures = [figure for figure in found.figures if figure.threads == count]
        ratios = [figure.ratio.median for figure in figures if figure.ratio is not None]
        made.append(Cell(count, {figure.engine: figure.timing.median for figure in figures}, min(ratios)))
    return made


def measure(model: Path, out: Path, threads: Sequence[int], seconds: float) -> Result:
    folder, built = cold_build(model, out)
    verification = verify(folder, 1)
    timed = benchmark(folder, PEERS, threads, seconds, model=model)
    held = {
        OWN: peak(OPEN_GRAPHC.format(folder=str(folder), runs=RUNS)),
        "onnxruntime": peak(OPEN_ONNXRUNTIME.format(model=str(model), runs=RUNS)),
    }
    worst = max(output.error for output in verification.outputs)
    return Result(model.stem, built, verification.agrees, worst, cells(timed, threads), held)


def table(results: Sequence[Result]) -> str:
    """Markdown: a line per cell, then memory and build time per model."""
    lines = [
        "| model | threads | graphc ms | onnxruntime ms | OpenVINO ms | faster peer / graphc |",
        "|---|" + "---:|" * 5,
    ]
    for result in results:
        for cell in result.cells:
            times = " | ".join(f"{cell.seconds[name] * 1e3:.2f}" for name in (OWN, *PEERS))
            lines.append(f"| {result.model} | {cell.threads} | {times} | {cell.ratio:.2f} |")
    ratios = [cell.ratio for result in results for cell in result.cells]
    lines += ["", f"Geometric mean of the last column: {geometric_mean(ratios):.2f}; smallest: {min(ratios):.2f}.", ""]
    lines += ["| model | peak MiB graphc | onnxruntime | cold build s | agrees | error |", "|---|" + "---:|" * 5]
    for result in results:
        held = f"{result.peak[OWN]:.0f} | {result.peak['onnxruntime']:.0f}"
        agrees = "yes" if result.agrees else "NO"
        lines.append(f"| {result.model} | {held} | {result.build:.0f} | {agrees} | {result.error:.1e} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=6.0, help="how long each cell is timed, about")
    parser.add_argument("--out", type=Path, default=Path("build/speed"), help="where artifacts are built")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    results = []
    for model in given.models or make(given.out / "models"):
        results.append(measure(model, given.out, given.threads, given.seconds))
        print(f"{model.stem}: {[round(cell.ratio, 2) for cell in results[-1].cells]}", file=sys.stderr, flush=True)
        if given.json:
            given.json.write_text(json.dumps([asdict(result) for result in results], indent=1))
    text = f"{machine()}\n\n{table(results)}\n"
    if given.markdown:
        given.markdown.write_text(text)
    else:
        print(text, end="")
    return 0 if all(result.agrees for result in results) else 4


if __name__ == "__main__":
    sys.exit(main())
