"""Which rule schedules a fused PrimFunc: the first that takes its anchor, else the generic one."""

from typing import Any

from graphc.backends import schedule_generic
from graphc.backends.targets import Target


def scheduled(function: Any, target: Target) -> Any:
    """The PrimFunc as a sequence of loop nests, each a stage."""
    return schedule_generic.schedule(function)
