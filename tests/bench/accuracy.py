"""Accuracy after 8-bit quantization: graphc's compiled artifacts beside onnxruntime's quantizer and NNCF.

    python -m tests.bench.accuracy [--model NAME ...] [--method NAME ...] [--rows N] [--json FILE]

Same calibration rows, same test rows (tests/bench/tasks.py), one thread. Every result is kept in build/accuracy as soon
as it is known, so a run that was cut short goes on; --again measures anew. A loss beyond what is stated ends in exit 1.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphc.version import VERSION
from tests.bench.quantizers import (
    QUANTIZED,
    Array,
    Model,
    Run,
    nncf_environment,
    of_onnx,
    with_graphc,
    with_nncf,
    with_onnxruntime,
)
from tests.bench.tasks import TASKS, Figures, Rows, Task
from tests.conftest import find_shared

KEPT = Path("build/accuracy")
PEERS = ("onnxruntime MinMax", "onnxruntime Entropy", "onnxruntime Percentile", "nncf")
PEER_FAILURES = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, subprocess.CalledProcessError)
"""What quantizers raise for a model that they cannot do; the table then says `fails`."""
FLOAT = "float"
FOUR_BITS = {"kind": "quantize", "weights": "int4", "group": 32, "activations": "none"}
GRAPHC: Mapping[str, list[Mapping[str, Any]]] = {
    "graphc": [{**QUANTIZED, "calibrate": "best", "rounding": "best"}],
    "graphc nearest": [{**QUANTIZED, "calibrate": "best"}],
    "graphc minmax": [{**QUANTIZED, "calibrate": "minmax"}],
    "int8 weights": [{"kind": "quantize", "weights": "int8", "activations": "none"}],
    "int4 nearest": [FOUR_BITS],
    "int4 gptq": [{**FOUR_BITS, "weight_range": "output", "rounding": "gptq"}],
    "int4 adaround": [{**FOUR_BITS, "weight_range": "output", "rounding": "adaround"}],
    "int4 awq": [{"kind": "awq", "weights": "int4", "group": 32}, {**FOUR_BITS, "weight_range": "output"}],
}
"""What a spec says after `fold`. The first is the one that is compared; the others show what its options give. `bytes`
of the figures are those of the artifact's constants."""
USUAL = (FLOAT, "graphc", "graphc nearest", "graphc minmax", *PEERS)


@dataclass(frozen=True)
class Bench:
    """One model of the comparison, with its rows at hand; `limit` is the number of test rows used."""

    name: str
    task: Task
    model: Model
    rows: Rows
    nncf: Path

    @classmethod
    def of(cls, name: str, data: Path, limit: int | None, nncf: Path) -> "Bench":
        task, rows = TASKS[name], TASKS[name].rows(data)
        if limit is not None:  # spread evenly: CIFAR's rows are sorted by class
            chosen = np.linspace(0, len(rows.test) - 1, min(limit, len(rows.test))).astype(int)
            rows = Rows(rows.calibration, rows.test[chosen], None if rows.labels is None else rows.labels[chosen])
        path = data / "models" / task.model
        given = onnx.load(path).graph.input[0]
        dims = [dim.dim_value or 1 for dim in given.type.tensor_type.shape.dim]
        folder = KEPT / name
        folder.mkdir(parents=True, exist_ok=True)
        return cls(
            name, task, Model(path, given.name, tuple(dims), folder, rows.calibration, task.transformer), rows, nncf
        )

    def figures(self, method: str, again: bool) -> Figures:
        """How good `method` is here: remembered, or measured on every test row."""
        own = [self._passes(method), VERSION] if method in GRAPHC else []
        what = (method, sha256(self.rows.test.tobytes()).hexdigest(), *own)
        kept = KEPT / f"{self.name}-{sha256(repr(what).encode()).hexdigest()[:12]}.json"
        if kept.exists() and not again:
            found: dict[str, float] = json.loads(kept.read_text())
            return found
        try:
            run, more = self._run(method)
            outputs = self._outputs(run)
        except PEER_FAILURES as error:
            if method not in PEERS:
                raise
            print(f"{self.name}: {method} fails: {error}", file=sys.stderr)
            return {"failed": float("nan")}
        figures = {**self.task.score(outputs, self._reference(outputs, method), self.rows), **more}
        kept.write_text(json.dumps(figures))
        return figures

    def _reference(self, outputs: Array, method: str) -> Array:
        """The float model's outputs, computed once."""
        path = self.model.folder / f"float-{sha256(self.rows.test.tobytes()).hexdigest()[:12]}.npy"
        if not path.exists():
            np.save(path, outputs if method == FLOAT else self._outputs(of_onnx(self.model.path)))
        found: Array = np.load(path)
        return found

    def _outputs(self, run: Run) -> Array:
        return np.concatenate([np.asarray(run(row)).reshape(1, -1) for row in self.rows.test])

    def _passes(self, method: str) -> list[Mapping[str, Any]]:
        if method != "graphc":
            return GRAPHC[method]
        return [{**step, **self.task.options} for step in GRAPHC[method]]

    def _run(self, method: str) -> tuple[Run, Figures]:
        """What runs the model as `method` gives it, and what else is known of it."""
        if method in GRAPHC:
            run, stored = with_graphc(self.model, method, self._passes(method))
            return run, {"bytes": stored}
        if method == FLOAT:
            return of_onnx(self.model.path), {}
        if method == "nncf":
            return with_nncf(self.model, nncf_environment(self.nncf)), {}
        return with_onnxruntime(self.model, method.split()[1]), {}

    def verdict(self, found: Mapping[str, Figures]) -> str:
        """Why graphc's first result is not good enough; empty where it is."""
        sign = 1 if self.task.higher else -1
        values = {method: sign * next(iter(figures.values())) for method, figures in found.items()}
        own = values["graphc"]
        few = len(self.rows.test) < 1500
        room = 0.0 if self.rows.labels is None else 300 / len(self.rows.test) if few else 0.2
        peers = [value for method, value in values.items() if method in PEERS and np.isfinite(value)]
        problems = []
        if peers and own < max(peers) - room - 1e-9:
            problems.append(f"{max(peers) - own:.2f} below the best peer (room: {room:.2f})")
        if self.task.drop is not None and own < values[FLOAT] - self.task.drop - 1e-9:
            problems.append(f"{values[FLOAT] - own:.2f} below float (room: {self.task.drop})")
        for name, limit in self.task.limits.items():
            if not found["graphc"][name] <= limit:
                problems.append(f"{name} {found['graphc'][name]:.4g} (at most {limit:g})")
        return "; ".join(problems)


def table(found: Mapping[str, Mapping[str, Figures]], methods: Sequence[str]) -> str:
    """Markdown: a line per model, a column per method; the figure that decides."""
    lines = ["| model | " + " | ".join(methods) + " |", "|---|" + "---:|" * len(methods)]
    for name, figures in found.items():
        cells = [_shown(figures.get(method)) for method in methods]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _shown(figures: Figures | None) -> str:
    if figures is not None and "failed" in figures:
        return "fails"
    return "" if figures is None else " / ".join(f"{value:.2f}" for value in list(figures.values())[:1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--method", nargs="+", choices=(FLOAT, *GRAPHC, *PEERS), default=USUAL)
    parser.add_argument("--rows", type=int, help="so many test rows, spread evenly (default: all)")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--nncf", type=Path, default=Path("build/nncf"), help="environment with nncf; made if missing")
    parser.add_argument("--again", action="store_true", help="measure anew what is remembered")
    given = parser.parse_args()
    data = find_shared()
    if data is None:
        print("../shared/data is absent: nothing to measure on", file=sys.stderr)
        return 2
    found: dict[str, dict[str, Figures]] = {}
    missed = []
    for name in given.model:
        bench = Bench.of(name, data, given.rows, given.nncf)
        found[name] = {}
        for method in given.method:
            found[name][method] = bench.figures(method, given.again)
            print(f"{name}: {method}: {dict(found[name][method])}", file=sys.stderr, flush=True)
        if {FLOAT, "graphc"} <= found[name].keys() and (problem := bench.verdict(found[name])):
            missed.append(f"{name}: {problem}")
    print(table(found, given.method))
    print(*missed, sep="\n")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
