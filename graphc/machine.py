"""The machine that figures are measured on, as a key and for people."""

import os
import platform
from pathlib import Path


def machine() -> str:
    """Processor, and how many of its threads this process may use: 'AMD EPYC 9R14, 2 threads'."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor()}, {usable} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
