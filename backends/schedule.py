"""Which rule schedules a fused PrimFunc: the first that takes its anchor, else the generic one."""

from typing import Any

from graphc.backends import (
    schedule_amx,
    schedule_channel_norm,
    schedule_columns,
    schedule_contraction,
    schedule_decoded,
    schedule_depthwise,
    schedule_generic,
    schedule_half,
    schedule_pad,
    schedule_rows,
    schedule_searched,
    schedule_sparse,
    schedule_window,
    schedule_winograd,
)
from graphc.backends.anchor import find
from graphc.backends.relax_module import READY
from graphc.backends.targets import Target

RULES = (
    schedule_decoded.schedule,
    schedule_sparse.schedule,
    schedule_amx.schedule,
    schedule_columns.schedule,
    schedule_winograd.schedule,
    schedule_half.schedule,
    schedule_contraction.schedule,
    schedule_depthwise.schedule,
    schedule_window.schedule,
    schedule_channel_norm.schedule,
)


def scheduled(function: Any, target: Target) -> Any:
    """The PrimFunc as a sequence of loop nests, each a stage."""
    if READY in (function.attrs or {}):
        return function
    anchor = find(function)
    if anchor is not None:
        for rule in RULES:
            nest = rule(anchor, target)
            if nest is not None:
                return nest
    searched = schedule_searched.schedule(function, target)
    by_rows = searched or schedule_pad.schedule(function, target) or schedule_rows.schedule(function, target)
    return by_rows or schedule_generic.schedule(function, target)
