"""What the compile server's tests run in its children."""

import ctypes
import os
import sys
import time
from pathlib import Path

from graphc.backends.worker import note
from graphc.errors import UnsupportedError


def add(a: int, b: int) -> int:
    return a + b


def crash() -> None:
    note("node conv_7")
    print("LLVM ERROR: cannot select", file=sys.stderr, flush=True)
    os.abort()


def segfault() -> None:
    ctypes.string_at(0)


def sleep(seconds: float, file: str = "") -> None:
    note("node lstm_1")
    if file:
        Path(file).write_text(str(os.getpid()))
    time.sleep(seconds)


def divide(a: int, b: int) -> float:
    note("node div")
    return a / b


def refuse() -> None:
    raise UnsupportedError("node 'x' (Scan)", "no kernel.", "Remove it.")


def leave(code: int) -> None:
    os._exit(code)


def allocate(size: int) -> int:
    return len(bytearray(size))


def large(size: int) -> bytes:
    return bytes(size)


def length(data: bytes) -> int:
    return len(data)


def shout(text: str) -> str:
    print(text)
    os.write(1, text.encode())
    os.write(2, text.encode())
    return text


def surroundings() -> tuple[str | None, str | None, int, int]:
    """(threads wanted, seed of hashes, threads there are, the server's process)."""
    threads = len(list(Path("/proc/self/task").iterdir()))
    return os.environ.get("TVM_NUM_THREADS"), os.environ.get("PYTHONHASHSEED"), threads, os.getppid()


def has_tvm() -> bool:
    return "tvm" in sys.modules
