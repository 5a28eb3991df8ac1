"""`graphc sensitivity`: what it prints, plots and writes."""

import json as json_text
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from graphc import mixed_precision as mixed
from graphc import terminal
from graphc.backends.cache import Cache
from graphc.compile import FolderMemory, build_job
from graphc.errors import InputError, UnsupportedError
from graphc.job import Job, prepare
from graphc.passes.protocol import Pass
from graphc.passes.quantize_schemes import FORMATS
from graphc.sensitivity import MEASURES, By, Choice, Row, Sensitivity, Subject, sensitivity, subject_of
from graphc.spec.units import BYTES, COUNTS, SECONDS, quantity
from graphc.spec.writer import write
from graphc.terminal import line_out, size, table

LABELS = {"sqnr": "output SQNR in dB", "kl": "KL divergence of the scores in nats", "metric": "drop of the metric"}
SHARE = re.compile(r"0|0?\.\d+|0\.\d*")


@dataclass(frozen=True)
class Tried:
    """What the command line asks to try: formats of weights, or shares that go."""

    weights: Sequence[str] = ()
    sparsity: Sequence[str] = ()

    def checked(self) -> Sequence[str]:
        """The candidates. Raises InputError for what is none."""
        if unknown := [name for name in self.weights if name not in FORMATS]:
            raise InputError("--weights", f"expected some of {', '.join(FORMATS)}, got {', '.join(unknown)}.")
        if wrong := [text for text in self.sparsity if not SHARE.fullmatch(text)]:
            raise InputError("--sparsity", f"expected shares, such as 0,0.3,0.5, got {', '.join(wrong)}.")
        return (*self.weights, *self.sparsity)


def measure_of(text: str) -> By:
    """What layers are compared by, as the command line gives it. Raises InputError for what is no such measure."""
    for measure in MEASURES:
        if text == measure:
            return measure
    raise InputError("--by", f"expected one of {', '.join(MEASURES)}, got {text}.")


@dataclass(frozen=True)
class Limits:
    """At most one is given: bytes of weights, MACs, bits per weight, the metric's drop, seconds per run."""

    size: int | None = None
    average_bits: float | None = None
    accuracy_drop: float | None = None
    latency: float | None = None
    macs: int | None = None

    @property
    def given(self) -> Mapping[str, float]:
        return {name: value for name, value in asdict(self).items() if value is not None}


def limits_of(size: str, average_bits: float | None, accuracy_drop: float | None, latency: str, macs: str) -> Limits:
    """Limits as the command line gives them; empty texts are none. Raises InputError for what is no such quantity."""
    texts = {"--size": (size, BYTES), "--latency": (latency, SECONDS), "--macs": (macs, COUNTS)}
    bytes_, seconds, products = (quantity(text, units) for text, units in texts.values())
    for (option, (text, _)), number in zip(texts.items(), (bytes_, seconds, products), strict=True):
        if text and number is None:
            raise InputError(option, f"expected a number with a unit, such as 200KiB, 2ms or 60M, got {text!r}.")
    return Limits(
        int(bytes_) if size and bytes_ is not None else None,
        average_bits,
        accuracy_drop,
        float(seconds) if latency and seconds is not None else None,
        int(products) if macs and products is not None else None,
    )


def show_sensitivity(
    spec: Path, tried: Tried, count: int, limits: Limits, *, by: By, json: bool, plot: Path | None, out: Path | None
) -> None:
    """Measure, print the table; under a limit, choose candidates, print them and write the spec that gives them."""
    candidates = tried.checked()
    if len(limits.given) > 1:
        raise InputError("sensitivity", f"expected one limit, got {', '.join(limits.given)}.", "Give one of them.")
    job, memory = prepare(None, spec), FolderMemory(Cache(None))
    with terminal.progress() as progress:
        subject = subject_of(job, memory, candidates, count, progress)
        _check_fit(subject, tried, limits)
        found = sensitivity(subject, candidates, progress, by)
    choice = _chosen(subject, found, limits) if limits.given else None
    if plot is not None:
        draw(found, plot)
    if json:
        chosen = None if choice is None else {layer: row.candidate for layer, row in choice.items()}
        line_out(json_text.dumps({**asdict(found), "chosen": chosen}, indent=1))
    else:
        _print(found, choice)
    if choice is not None:
        path = out or spec.with_name(f"{spec.stem}_mixed.yaml")
        write(_with_step(job, subject.chosen(choice)).spec, path)
        if not json:
            line_out(f"spec      {path}")


def _check_fit(subject: Subject, tried: Tried, limits: Limits) -> None:
    """Raises InputError for candidates or a limit that speak of another kind of step."""
    kind = subject.step.kind
    if tried.sparsity and kind != "prune":
        raise InputError("--sparsity", f"the spec's step is `{kind}`, which has no shares.", "Give --weights.")
    if (tried.weights or limits.average_bits is not None) and kind != "quantize":
        raise InputError("sensitivity", f"the spec's step is `{kind}`, which has no bits.", "Give --sparsity.")


def _chosen(subject: Subject, found: Sensitivity, limits: Limits) -> Choice:
    if limits.size is not None:
        return mixed.within_size(subject, found, limits.size)
    if limits.macs is not None:
        return mixed.within_macs(subject, found, limits.macs)
    if limits.average_bits is not None:
        return mixed.within_bits(found, limits.average_bits)
    if limits.accuracy_drop is not None:
        return mixed.within_drop(subject, found, limits.accuracy_drop)
    assert limits.latency is not None
    return mixed.within_latency(mixed.walk(found), limits.latency, lambda choice: _latency(subject, choice))


def _latency(subject: Subject, choice: Choice) -> float:
    """Seconds of one run of the artifact with these formats, built for the spec's first target."""
    job = _with_step(subject.job, subject.chosen(choice))
    with TemporaryDirectory(prefix="latency-") as folder:
        targets = build_job(job, Path(folder)).report.targets
    if not targets or targets[0].latency is None:
        raise UnsupportedError("--latency", "the spec has no target that runs on this machine.", "Add `cpu: native`.")
    return targets[0].latency.median


def _with_step(job: Job, step: Pass) -> Job:
    """The job with another step of this kind."""
    passes = tuple(step if each.kind == step.kind else each for each in job.spec.passes)
    return replace(job, spec=job.spec.model_copy(update={"passes": passes}))


def _print(found: Sensitivity, choice: Choice | None) -> None:
    """A line per layer and candidate, most sensitive first; what was chosen is marked."""
    metric = [found.metric] if found.metric else []
    header = ["layer", "operator", found.title, "elements", "saved", "MACs", "SQNR", "KL", *metric]
    header += ["chosen"] if choice else []
    rows = []
    for row in sorted(found.rows, key=lambda row: -found.loss(row)):
        cells = [row.layer, row.operator, row.candidate, str(row.elements), size(row.saved), f"{row.macs / 1e6:.2f}M"]
        cells.append("equal" if row.sqnr is None else f"{row.sqnr:.1f} dB")
        cells.append("" if row.kl is None else f"{row.kl:.2e}")
        cells += [f"{row.value:.2f}" for _ in metric if row.value is not None]
        rows.append([*cells, *(["*" if choice[row.layer] is row else ""] if choice else [])])
    table(header, rows, "<<<>>>>>" + ">" * len(metric) + ("<" if choice else ""))
    before = f", {found.metric} {found.before:.2f} before" if found.before is not None else ""
    line_out(f"\none layer changed at a time, {found.samples} samples{before}")
    if choice is not None:
        total = found.bytes - sum(row.saved for row in choice.values())
        left = found.macs - sum(row.macs for row in choice.values())
        bits = f"{mixed.average_bits(choice):.2f} bits per weight, " if found.title == "weights" else ""
        line_out(f"chosen    {bits}about {size(total)}, {left / 1e6:.2f}M MACs")


def draw(found: Sensitivity, path: Path) -> None:
    """A bar per layer and candidate. Raises UnsupportedError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnsupportedError("--plot", "needs matplotlib.", "Install graphc with the extra `report`.") from error
    layers = list(dict.fromkeys(row.layer for row in found.rows))
    figure = Figure(figsize=(max(6.0, 0.25 * len(layers)), 4.0), layout="constrained")
    axes = figure.add_subplot()
    by_candidate: dict[str, list[Row]] = {}
    for row in found.rows:
        by_candidate.setdefault(row.candidate, []).append(row)
    width = 0.8 / len(by_candidate)
    for index, (name, rows) in enumerate(by_candidate.items()):
        places = [layers.index(row.layer) + (index - (len(by_candidate) - 1) / 2) * width for row in rows]
        heights = [row.sqnr or 0.0 if found.by == "sqnr" else found.loss(row) for row in rows]
        axes.bar(places, heights, width, label=name)
    axes.set_xticks(range(len(layers)), layers, rotation=90, fontsize=6)
    axes.set_ylabel(f"{LABELS[found.by]}, this layer alone")
    axes.legend()
    figure.savefig(path)
