"""`graphc build` and `graphc check`: what they print."""

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from graphc import terminal
from graphc.budget import check_budget
from graphc.compile import Build, build_job
from graphc.ir.cost import cost
from graphc.job import Job, prepare
from graphc.report import Latency, Quality, Report, Step
from graphc.terminal import duration, line_out, number, size, table

NOTHING, FLOAT = "-", "float32"
SHOWN_NAMES = 4
"""Skipped nodes named per reason; the report has them all."""


def build_spec(spec: Path, out: Path, only: Sequence[str], stop_after: int | None, json: bool) -> None:
    """Build, then print the report: its JSON, or tables. A missed budget is an error after them."""
    job = prepare(None, spec, only)
    with terminal.progress() as progress:
        build = build_job(job, out, stop_after=stop_after, progress=progress)
    if json:
        line_out(build.report.text().rstrip())
    else:
        _print_build(build, job.data.metric.unit if job.data.metric else "")
    if build.cache_problem is not None:
        sys.stderr.write(f"note: results were not kept for the next build: {build.cache_problem}\n")
    check_budget(build.report)


def _print_build(build: Build, unit: str) -> None:
    """The steps, what they skipped, before and after, and where everything is."""
    report = build.report
    metric = report.steps[0].quality.metric if report.steps[0].quality else None
    header = ("step", "nodes", "weights", "MACs", metric or "", "SQNR", "skipped")
    rows = [row for step in report.steps for row in (_step_row(step, unit), *_compared(step, unit))]
    kept = [i for i, name in enumerate(header) if any(row[i] != NOTHING for row in rows) and name]
    align = "".join("<>>>>>>"[i] for i in kept)
    table([header[i] for i in kept], [[row[i] for i in kept] for row in rows], align)
    for line in (*_skips(report.steps), *_decisions(report), *_prepared(report), *_multiplied(report)):
        line_out(line)
    line_out()
    table((report.name, "before", "after", ""), list(_summary(report, unit)), "<>><")
    line_out()
    line_out(f"model     {build.model}")
    for target in report.targets:
        line_out(f"artifact  {build.artifact(target.id)}")
        if target.tuning:
            line_out(f"tuning    {target.id}: {target.tuning}")


def _step_row(step: Step, unit: str) -> Sequence[str]:
    return (
        f"{step.index} {step.kind}",
        str(step.nodes),
        size(step.bytes),
        _count(step.macs),
        _value(step.quality, unit),
        _sqnr(step.quality),
        str(len(step.skips)) if step.skips else NOTHING,
    )


def _compared(step: Step, unit: str) -> Iterator[Sequence[str]]:
    """What the step could have come to instead."""
    for name, quality in step.compared.items():
        yield (f"  {name}", NOTHING, NOTHING, NOTHING, _value(quality, unit), _sqnr(quality), NOTHING)


def _sqnr(quality: Quality | None) -> str:
    return NOTHING if quality is None or quality.sqnr is None else f"{quality.sqnr:.1f} dB"


def _skips(steps: Sequence[Step]) -> Iterator[str]:
    """One line per pass and reason."""
    for step in steps:
        names = defaultdict(list)
        for skip in step.skips:
            names[skip.reason].append(skip.node)
        for reason, nodes in names.items():
            more = f", ... {len(nodes)} in all" if len(nodes) > SHOWN_NAMES else ""
            yield f"{step.kind} skipped {', '.join(nodes[:SHOWN_NAMES])}{more}: {reason}"


def _summary(report: Report, unit: str) -> Iterator[tuple[str, str, str, str]]:
    """Rows: what, before, after, a remark."""
    first, last = report.steps[0], report.steps[-1]
    if first.quality and first.quality.metric:
        yield from _accuracy(report, first.quality, unit)
    elif last.quality and len(report.steps) > 1:
        remark = f"{last.quality.samples} samples of {last.quality.data} data"
        yield "largest error", NOTHING, f"{last.quality.error:.2e}", f"of the largest output; {remark}"
    yield "weights", size(first.bytes), size(last.bytes), _times(first.bytes, last.bytes, "smaller", "larger")
    yield "MACs", _count(first.macs), _count(last.macs), ""
    for target in report.targets:
        if target.latency is not None:
            yield _latency(target.id, report.before, target.latency)
        yield f"flash, {target.id}", NOTHING, size(target.flash), "code and weights"
        yield f"RAM, {target.id}", NOTHING, size(target.ram), ""


def _decisions(report: Report) -> Iterator[str]:
    """What became of weights with zeros: how many kernels skip them, and which do not."""
    for target in report.targets:
        dense = [f"{each.node} ({each.speed:.1f}x)" for each in target.decisions if each.kernel == "dense"]
        sparse = len(target.decisions) - len(dense)
        if sparse:
            yield f"{target.id}: {sparse} of {len(target.decisions)} layers with zeros skip them"
        if dense:
            more = f", ... {len(dense)} in all" if len(dense) > SHOWN_NAMES else ""
            yield f"{target.id}: kept dense, which is faster: {', '.join(dense[:SHOWN_NAMES])}{more}"


def _prepared(report: Report) -> Iterator[str]:
    """Which decoders are no part of the kernels that read what they decode, and when they run."""
    for target in report.targets:
        for once, when in ((True, "once, by init"), (False, "at every run")):
            made = [each for each in target.prepared if each.once == once]
            names = list(dict.fromkeys(name for each in made for name in each.nodes))
            if made:
                more = f", ... {len(names)} in all" if len(names) > SHOWN_NAMES else ""
                shown = f"{', '.join(names[:SHOWN_NAMES])}{more}"
                yield f"{target.id}: made of constants {when}, {size(sum(each.bytes for each in made))}: {shown}"


def _multiplied(report: Report) -> Iterator[str]:
    """Which instructions multiply narrow floats, and which layers stay in float32."""
    for target in report.targets:
        names = defaultdict(list)
        for each in target.multiplied:
            key = each.instruction if each.instruction != FLOAT else f"{FLOAT}, as {each.reason}"
            names[key].append(each.node)
        for key, nodes in names.items():
            yield f"{target.id}: {len(nodes)} of {len(target.multiplied)} products by {key}{_listed(key, nodes)}"


def _listed(key: str, nodes: Sequence[str]) -> str:
    """The names of layers that stayed as they were."""
    if not key.startswith(FLOAT):
        return ""
    more = f", ... {len(nodes)} in all" if len(nodes) > SHOWN_NAMES else ""
    return f": {', '.join(nodes[:SHOWN_NAMES])}{more}"


def _latency(target: str, before: Latency | None, after: Latency) -> tuple[str, str, str, str]:
    if before is None:
        return f"latency, {target}", NOTHING, duration(after.median), "onnxruntime cannot run the original"
    remark = f"{before.engine} before; {_times(before.median, after.median, 'faster', 'slower')}"
    return f"latency, {target}", duration(before.median), duration(after.median), remark


def _accuracy(report: Report, before: Quality, unit: str) -> Iterator[tuple[str, str, str, str]]:
    """The metric of each artifact that ran here; of model.onnx where none did."""
    name = before.metric or ""
    remark = f"{before.samples} samples of {before.data} data"
    measured = {target.id: target.quality for target in report.targets if target.quality is not None}
    if not measured:
        yield name, _value(before, unit), _value(report.steps[-1].quality, unit), f"{remark}; model.onnx"
    for id_, quality in measured.items():
        yield f"{name}, {id_}", _value(before, unit), _value(quality, unit), remark


def _value(quality: Quality | None, unit: str) -> str:
    if quality is None or quality.value is None:
        return NOTHING
    return f"{quality.value:.2f} %" if unit == "%" else f"{quality.value:.4g}"


def _count(macs: int | None) -> str:
    return NOTHING if macs is None else number(macs)


def _times(before: float, after: float, better: str, worse: str) -> str:
    if not before or not after:
        return ""
    ratio = max(before / after, after / before)
    if ratio < 1.005:
        return "about the same"
    return f"{ratio:.2f}x {better if after < before else worse}"


def check_spec(spec: Path, json: bool) -> None:
    """Say what a build of this spec would work on; any mistake is an error."""
    job = prepare(None, spec)
    facts = _facts(job)
    if json:
        from json import dumps

        line_out(dumps(facts, indent=1))
        return
    for name, value in facts.items():
        line_out(f"{name:<12}{value}")
    line_out("no mistakes found")


def _facts(job: Job) -> dict[str, str]:
    model, price = job.model, cost(job.model)
    facts = {"name": job.name, "model": job.source}
    facts["inputs"] = ", ".join(f"{name}: {model.types[name]}" for name in model.inputs)
    facts["outputs"] = ", ".join(f"{name}: {model.types[name]}" for name in model.outputs)
    facts["cost"] = f"{len(model.nodes)} nodes, {size(price.bytes)} of weights, {_count(price.macs)} MACs"
    if job.data.calibration is not None:
        facts["calibration"] = f"{job.data.calibration.label}: {len(job.data.calibration)} runs"
    if job.data.evaluation is not None and job.data.metric is not None:
        facts["evaluation"] = f"{job.data.evaluation.label}: {len(job.data.evaluation)} runs, {job.data.metric.name}"
    facts["passes"] = ", ".join(step.kind for step in job.spec.passes) or "none"
    facts["targets"] = ", ".join(target.id for target in job.targets) or "none"
    return facts
