"""onnxruntime, imported here and nowhere else, and only when it is needed: that takes 0.1 s.

From 1.31 on, importing it starts a thread that reports its use over the network and keeps a database in the user's
cache folder, unless ORT_DISABLE_TELEMETRY is set. graphc must do neither; and a process that was forked while that
thread held a lock would wait for it forever. Where the program imported onnxruntime before, its choice stands.
"""

import os
from functools import cache
from typing import Any

OFF = "ORT_DISABLE_TELEMETRY"


@cache
def onnxruntime() -> Any:
    """The module, imported with its telemetry off."""
    before = os.environ.get(OFF)
    os.environ[OFF] = "1"
    try:
        import onnxruntime as module
    finally:
        if before is None:
            del os.environ[OFF]
        else:
            os.environ[OFF] = before
    return module


@cache
def refusals() -> tuple[type[Exception], ...]:
    """What it raises for a model or a run it cannot do; its classes share no base of their own."""
    onnxruntime()
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")
    found: dict[str, Any] = vars(state)
    return tuple(found[name] for name in names)
