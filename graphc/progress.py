"""How long work says where it is: one callback, which the command line turns into bars and a script into nothing."""

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, float], None]
"""`progress(stage, fraction)`: how much of a stage is done. It begins with its first call and ends at fraction 1."""


def silent(_stage: str, _fraction: float) -> None:
    """Progress nobody watches."""


Stage: TypeAlias = Callable[[str, float], None]
"""The progress of one stage: what it is at, and how much of the stage is done."""


def stage_of(progress: Progress, name: str) -> Stage:
    """What a stage is at is not shown: a bar that is renamed all the time cannot be read."""
    return lambda _at, fraction: progress(name, fraction)
