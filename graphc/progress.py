"""How long work says where it is: one callback, which the command line turns into bars and a script into nothing."""

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, float], None]
"""`progress(stage, fraction)`: how much of a stage is done. It begins with its first call and ends at fraction 1."""


def silent(_stage: str, _fraction: float) -> None:
    """Progress nobody watches."""


def within(progress: Progress, stage: str) -> Progress:
    """The progress of a part: its own stages are named after `stage`."""
    return lambda part, fraction: progress(f"{stage}: {part}" if part else stage, fraction)
