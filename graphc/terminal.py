"""What the command line puts on a screen: bars while it works, tables at the end. In a pipe: lines, never wrapped.

Figures and tables go to stdout, progress to stderr, so that `graphc ... --json | jq` sees JSON alone.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from graphc.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

SHOWN_AFTER = 1.0
"""Seconds that a stage must last before anything is said about it."""
REPEAT = 10.0
"""Seconds between two lines about one stage in a pipe."""


@contextmanager
def progress() -> Iterator[Progress]:
    """Bars on a terminal, lines in a pipe; either only for stages that last longer than `SHOWN_AFTER`."""
    if not sys.stderr.isatty():
        yield Lines(sys.stderr)
        return
    bars = _bars()
    with bars:
        yield _feed(bars)


def _bars() -> "Bars":
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    class SlowStages(Bars):
        def get_renderables(self) -> Iterator["object"]:  # type: ignore[override]  # rich's own return type is narrower
            took = [(task, task.finished_time if task.finished else task.elapsed) for task in self.tasks]
            yield self.make_tasks_table([task for task, seconds in took if (seconds or 0.0) >= SHOWN_AFTER])

    name = TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
    columns = (name, BarColumn(bar_width=24), TaskProgressColumn(), TimeElapsedColumn())
    return SlowStages(*columns, console=Console(stderr=True), refresh_per_second=8, expand=True)


def _feed(bars: "Bars") -> Progress:
    tasks: dict[str, int] = {}

    def report(stage: str, fraction: float) -> None:
        from rich.progress import TaskID

        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=1.0)
        bars.update(TaskID(tasks[stage]), completed=min(fraction, 1.0))

    return report


class Lines:
    """Progress as lines: one when a slow stage is first heard of, one every `REPEAT` seconds, one at its end."""

    def __init__(self, stream: IO[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._begun: dict[str, float] = {}
        self._said: dict[str, float] = {}

    def __call__(self, stage: str, fraction: float) -> None:
        now = self._clock()
        elapsed = now - self._begun.setdefault(stage, now)
        if elapsed < SHOWN_AFTER:
            return
        if fraction >= 1.0:
            self._say(f"{stage}: done in {duration(elapsed)}")
            self._begun.pop(stage)
            self._said.pop(stage, None)
        elif now - self._said.get(stage, -REPEAT) >= REPEAT:
            self._said[stage] = now
            self._say(f"{stage}: {fraction:.0%}")

    def _say(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()


def table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str, title: str = "") -> None:
    """A table on stdout; `align` has a letter for each column: `<` for text, `>` for figures."""
    if sys.stdout.isatty():
        _rich_table(header, rows, align, title)
    else:
        _plain_table(header, rows, align, title)


def _rich_table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str, title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(
        box=box.SIMPLE_HEAD,
        title=Text(title, style="bold") if title else None,
        title_justify="left",
        pad_edge=False,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name, side in zip(header, align, strict=True):
        drawn.add_column(Text(name), justify="left" if side == "<" else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    Console().print(drawn)


def _plain_table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str, title: str) -> None:
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    if title:
        line_out(title)
    for line in lines:
        cells = (f"{cell:{side}{width}}" for cell, side, width in zip(line, align, widths, strict=True))
        line_out("  ".join(cells).rstrip())


def line_out(text: str = "") -> None:
    """One line on stdout."""
    sys.stdout.write(f"{text}\n")


def size(count: float) -> str:
    """Bytes as people read them: 1234567 -> '1.18 MiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} B" if unit == "B" else f"{_three(count)} {unit}"


def number(count: float) -> str:
    """A count as people read it: 1234567 -> '1.23 M'."""
    for unit in ("", " k", " M", " G", " T"):
        if abs(count) < 1000 or unit == " T":
            break
        count /= 1000
    return f"{count:.0f}" if not unit else f"{_three(count)}{unit}"


def duration(seconds: float) -> str:
    """A time as people read it: 0.00123 -> '1.23 ms'."""
    for factor, unit in ((1e9, "ns"), (1e6, "us"), (1e3, "ms"), (1.0, "s")):
        if abs(seconds) * factor < 1000 or unit == "s":
            break
    return f"{_three(seconds * factor)} {unit}"


def _three(value: float) -> str:
    """Three significant digits, without an exponent."""
    whole = len(str(int(abs(value))))
    return f"{value:.{max(0, 3 - whole)}f}"
