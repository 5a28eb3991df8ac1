"""`graphc run`, `graphc verify` and `graphc bench`: what they read and print."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graphc import terminal
from graphc.artifact import Manifest
from graphc.errors import InputError, VerificationError
from graphc.ir.graph import Array
from graphc.runner import Runner
from graphc.terminal import duration, line_out, table

if TYPE_CHECKING:
    from graphc.benchmark import Benchmark, CallTime
    from graphc.roofline import Roofline
    from graphc.verify import OnBoard


def run_artifact(folder: Path, inputs: Sequence[str], output: Path, threads: int) -> None:
    """Run once on the files given as NAME=FILE.npy and write one file per output."""
    feeds = dict(_feed(text) for text in inputs)
    with Runner(folder, threads) as runner:
        found = runner(**feeds)
        names = [tensor.name for tensor in runner.outputs]
    results = {names[0]: found} if len(names) == 1 else found
    output.mkdir(parents=True, exist_ok=True)
    for name, array in results.items():
        path = output / f"{_file_name(name)}.npy"
        beside = path.with_name(f".{path.name}")
        with beside.open("wb") as file:
            np.save(file, array)
        beside.replace(path)
        line_out(f"{name}: {array.dtype}{list(array.shape)} -> {path}")


def _feed(text: str) -> tuple[str, Array]:
    """An input's name and its array, from NAME=FILE.npy."""
    name, equals, file = text.rpartition("=")
    if not equals or not name:
        raise InputError(f"--input {text}", "expected NAME=FILE.npy.", "Name the model's input before the file.")
    try:
        array = np.load(file, allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(file, "no such file.", "Check the path.") from error
    except (ValueError, EOFError) as error:
        raise InputError(file, f"expected a .npy file: {error}.", "Write it with numpy.save.") from error
    if not isinstance(array, np.ndarray):
        raise InputError(file, "expected one array, got an .npz archive.", "Write one .npy for each input.")
    return name, array


def _file_name(output: str) -> str:
    """An output's name as a file's: whatever could lead elsewhere becomes `_`."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in output).lstrip(".") or "output"


def verify_artifact(
    folder: Path, samples: int, threads: int, accuracy: int, *, real: bool, layers: bool, as_json: bool
) -> None:
    """Compare, print, and raise VerificationError, with the first node that differs, where they do not agree.

    `real`: on the spec's data or not at all; `layers` adds what each call took on an emulated board.
    """
    from graphc.accuracy import accuracy_of
    from graphc.backends.cache import Cache
    from graphc.diverge import first_divergence
    from graphc.verify import compare_subject, subject

    with terminal.progress() as progress:
        found = subject(folder, samples, real)
        result = compare_subject(found, threads, progress)
        where = "" if result.agrees else str(first_divergence(found, Cache(), progress))
        judged = accuracy_of(folder, accuracy, threads, progress) if accuracy else None
    if as_json:
        figures = {"agrees": result.agrees, **asdict(result), "divergence": where or None}
        line_out(json.dumps({**figures, "accuracy": asdict(judged) if judged else None}, indent=1))
    else:
        rows = [
            (
                c.name,
                f"{c.limit:.1e}" if c.limit else "every bit",
                str(c.elements),
                str(c.differing),
                f"{c.error:.1e}",
                _mark(c.agrees),
            )
            for c in result.outputs
        ]
        line_out(f"on {result.inputs}; {result.integer_nodes} nodes in integers")
        table(("output", "must agree to", "elements", "differ", "largest error", ""), rows, "<<>>><")
        if judged is not None:
            line_out(f"{judged.metric} {judged.value:.4g}{judged.unit} on {judged.samples} samples")
        if result.on_board is not None:
            _print_on_board(found.manifest, result.on_board, layers)
    if not result.agrees:
        names = ", ".join(c.name for c in result.outputs if not c.agrees)
        raise VerificationError(str(folder), f"differs from its model in {names}: {where}")


def _print_on_board(manifest: Manifest, taken: "OnBoard", layers: bool) -> None:
    """Instructions and stack of one run, and of each call where they are asked for."""
    line_out(f"on the emulated {taken.board}: {taken.instructions:,} instructions a run, to {taken.tick:g} a call")
    line_out(f"stack: {taken.stack} bytes seen, {taken.stack_bound} at most")
    if layers:
        rows = [
            (str(index), ", ".join(step.nodes), step.kernel, f"{count:,}", f"{count / taken.instructions:.1%}")
            for index, (step, count) in enumerate(zip(manifest.steps, taken.steps, strict=True))
        ]
        table(("call", "nodes", "kernel", "instructions", "share"), rows, "><<>>")


def _mark(agrees: bool) -> str:
    return "ok" if agrees else "DIFFERS"


def bench_artifact(
    folder: Path,
    *,
    against: str,
    threads: str,
    seconds: float,
    model: Path | None,
    real: bool,
    layers: bool,
    file: Path | None,
) -> None:
    """Time, print, and write the figures where a file is given ('-': stdout, and nothing else there)."""
    from graphc.benchmark import benchmark, profile

    engines = [name.strip() for name in against.split(",") if name.strip()]
    if file is not None and not file.parent.is_dir():
        raise InputError(f"--json {file}", "no such folder.", "Make it first, or name another file.")
    with terminal.progress() as progress:
        result = benchmark(folder, engines, _numbers(threads), seconds, model=model, real=real, progress=progress)
        limit = result.rooflines[0] if result.rooflines else None
        calls = profile(folder, _numbers(threads)[0], limit) if layers else ()
    listed = [{**asdict(call), "roofline": call.roofline} for call in calls]
    text = json.dumps({**asdict(result), "layers": listed}, indent=1) + "\n"
    if file is not None and str(file) == "-":
        sys.stdout.write(text)
        return
    if file is not None:
        file.write_text(text, encoding="utf-8")
    _print_benchmark(result)
    if calls:
        line_out()
        _print_layers(calls)


def _print_benchmark(result: "Benchmark") -> None:
    line_out(f"machine   {result.machine}")
    for limit in result.rooflines:
        for line in _limits(limit):
            line_out(f"roofline  {line}")
    if result.unmeasured:
        line_out(f"roofline  not measured: {result.unmeasured}")
    line_out(f"inputs    {result.inputs}")
    line_out(f"engines   run {result.model}; ratio: their time over graphc's, round by round")
    header = ("thr", "engine", "median", "min", "p10", "p90", "ratio", "p10", "p90", "roofline")
    table(header, _rows(result), "><>>>>>>>>")


def _limits(limit: "Roofline") -> Iterator[str]:
    """What was measured, in lines that fit a terminal."""
    speeds = [
        f"{arithmetic} {speed / 1e9:.0f} ({instruction})"
        for arithmetic, of_type in limit.peaks.items()
        for instruction, speed in of_type.items()
    ]
    yield f"{limit.threads} thr, GMAC/s: {', '.join(speeds)}"
    reads = [f"{_whole(size)} {speed / 1e9:.0f}" for size, speed in limit.bandwidth]
    yield f"{limit.threads} thr, GB/s: {', '.join(reads)}"


def _whole(count: int) -> str:
    """A power of two: '256K', '16M'."""
    return f"{count >> 20}M" if count >= 1 << 20 else f"{count >> 10}K"


def _print_layers(calls: Sequence["CallTime"]) -> None:
    """A row per call: what it did per second, and which part of the roofline that is."""
    total = sum(call.seconds for call in calls)
    rows = [
        (
            str(call.index),
            _first(call.nodes),
            duration(call.seconds),
            f"{call.seconds / total:.1%}",
            _speed(call),
            _part(call.roofline),
        )
        for call in calls
    ]
    table(("call", "node", "median", "share", "per second", "roofline"), rows, "><>>>>")


def _first(nodes: Sequence[str]) -> str:
    """The anchor of a call, and how many nodes are fused with it; the JSON names them all, and the kernel."""
    return nodes[0] if len(nodes) == 1 else f"{nodes[0]} +{len(nodes) - 1}"


def _speed(call: "CallTime") -> str:
    """Multiply-accumulates per second, bytes where there are none."""
    if not call.seconds:
        return ""
    if call.work.macs:
        return f"{call.work.macs / call.seconds / 1e9:.1f} GMAC"
    return f"{(call.work.data + call.work.weights) / call.seconds / 1e9:.1f} GB"


def _part(fraction: float | None) -> str:
    return "" if fraction is None else f"{fraction:.0%}"


def _rows(result: "Benchmark") -> list[list[str]]:
    """One row per engine and number of threads."""
    rows = []
    for figure in result.figures:
        time, ratio = figure.timing, figure.ratio
        times = [duration(seconds) for seconds in (time.median, time.minimum, time.low, time.high)]
        ratios = [f"{value:.2f}" for value in (ratio.median, ratio.low, ratio.high)] if ratio else [""] * 3
        rows.append([str(figure.threads), figure.engine, *times, *ratios, _part(figure.roofline)])
    return rows


def _numbers(text: str) -> list[int]:
    """'1,2' -> [1, 2]."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--threads {text}", "expected numbers of threads, such as 1 or 1,2.")
    return [int(part) for part in parts]
