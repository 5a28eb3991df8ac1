"""The spec's budget against what came: every limit, and an error that names the missed ones and by how much."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from graphc.errors import BudgetError
from graphc.metrics import Metric
from graphc.report import Limit, Report, Step, TargetReport
from graphc.spec.model import Budget
from graphc.terminal import duration, number, size

UNITS: Mapping[str, Callable[[float], str]] = {
    "flash": size,
    "ram": size,
    "size": size,
    "latency": duration,
    "macs": number,
}


def limits(
    budget: Budget, steps: Sequence[Step], targets: Sequence[TargetReport], model_bytes: int, metric: Metric | None
) -> tuple[Limit, ...]:
    """Each limit that the budget sets, once for the model or once per target, with the figure it is compared with."""
    found: list[tuple[str, str, float | None, float | None]] = [
        ("size", "", budget.size, model_bytes),
        ("macs", "", budget.macs, steps[-1].macs),
    ]
    for target in targets:
        latency = target.latency.median if target.latency else None
        found += [
            ("flash", target.id, budget.flash, target.flash),
            ("ram", target.id, budget.ram, target.ram),
            ("latency", target.id, budget.latency, latency),
        ]
    found += [("accuracy_drop", where, budget.accuracy_drop, drop) for where, drop in _drops(steps, targets, metric)]
    return tuple(
        Limit(key=key, target=target, allowed=allowed, actual=actual)
        for key, target, allowed, actual in found
        if allowed is not None
    )


def _drops(
    steps: Sequence[Step], targets: Sequence[TargetReport], metric: Metric | None
) -> Iterator[tuple[str, float | None]]:
    """How much worse than the original: the model, and each artifact that was run here."""
    if metric is None:
        return
    for where, quality in [("", steps[-1].quality), *((target.id, target.quality) for target in targets)]:
        before = steps[0].quality
        if quality is not None and quality.value is not None and before is not None and before.value is not None:
            yield where, metric.drop(before.value, quality.value)


def check_budget(report: Report) -> None:
    """Raise BudgetError that names every missed limit and by how much."""
    missed = [_line(limit) for limit in report.budget if limit.missed]
    if missed:
        remedy = "Compress more, or raise the budget in the spec. The build itself is finished."
        raise BudgetError(report.name, f"over its budget: {'; '.join(missed)}.", remedy)


def _line(limit: Limit) -> str:
    shown = UNITS.get(limit.key, "{:.3g}".format)
    assert limit.actual is not None
    excess = limit.actual - limit.allowed
    percent = f" ({excess / limit.allowed:+.0%})" if limit.allowed else ""
    where = f" on {limit.target}" if limit.target else ""
    return f"{limit.key}{where} is {shown(limit.actual)}, {shown(excess)} more than {shown(limit.allowed)}{percent}"
